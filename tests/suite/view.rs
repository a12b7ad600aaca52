//! `cltlab view` by raw requests: what it serves, and what never leaves the folder.

use crate::attribution::{replacement, TOKENS};
use crate::support::scratch;
use cltlab::prelude::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Server {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cltlab")).args(["view", "--port", "0"]).arg(folder).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.split("http://127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()?.parse().ok()).unwrap_or_else(|| panic!("no address: {line}"));
        Server { child, port }
    }

    /// The answer to `request`, a whole request without its last empty line.
    fn raw(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "{request}\r\nConnection: close\r\n\r\n").unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("{request}: {:?}", String::from_utf8_lossy(&all)));
        let head = String::from_utf8_lossy(&all[..end]).into_owned();
        Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head, body: all[end + 4..].to_vec() }
    }

    fn get(&self, path: &str) -> Answer {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}", self.port))
    }
}

fn graphs(name: &str) -> PathBuf {
    let folder = scratch(name).join("graphs");
    std::fs::create_dir(&folder).unwrap();
    let graph = replacement("gpt2").attribute(&TOKENS, &AttributeConfig::default()).unwrap().prune(&PruneConfig::default()).unwrap();
    graph.save(folder.join("dallas.json"), &GraphSaveConfig::default()).unwrap();
    folder
}

#[test]
fn graphs_pictures_and_data_are_served() {
    let folder = graphs("view");
    let server = Server::start(&folder);
    let index = server.get("/");
    assert!(index.status == 200 && index.text().contains("href=\"/graph/dallas\""), "{}", index.text());
    let file = std::fs::read(folder.join("dallas.json")).unwrap();
    let graph: serde_json::Value = serde_json::from_slice(&file).unwrap();
    for list in ["nodes", "links"] {
        let count = graph[list].as_array().unwrap().len();
        assert!(index.text().contains(&format!("<td class=\"n\">{count}</td>")), "{list}: {}", index.text());
    }
    let page = server.get("/graph/dallas");
    assert!(page.status == 200 && page.text().contains("src=\"/picture/dallas.svg\""));
    let picture = server.get("/picture/dallas.svg");
    assert!(picture.status == 200 && picture.head.contains("image/svg+xml") && picture.text().starts_with("<svg"), "{}", picture.head);
    // What circuit-tracer's page asks for.
    for path in ["/data/graph-metadata.json", "/graph-metadata.json"] {
        let list = server.get(path).json();
        assert_eq!(list["graphs"][0], graph["metadata"]);
    }
    for path in ["/graph_data/dallas.json", "/data/dallas.json", "/data/dallas.json?x=1", "/data/d%61llas.json"] {
        assert!(server.get(path).body == file, "{path}");
    }
    std::fs::create_dir(folder.join("features")).unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    std::fs::write(folder.join("features/layer_0.bin"), &bytes).unwrap();
    let part = |range: &str| server.raw(&format!("GET /features/layer_0.bin HTTP/1.1\r\nHost: localhost:{}\r\nRange: {range}", server.port));
    for (range, from, to) in [("bytes=10-19", 10, 20), ("bytes=250-999", 250, 256), ("bytes=-6", 250, 256), ("bytes=0-", 0, 256)] {
        let answer = part(range);
        assert!(answer.status == 206 && answer.body == bytes[from..to], "{range}: {}", answer.head);
        assert!(answer.head.contains(&format!("Content-Range: bytes {from}-{}/256", to - 1)), "{range}: {}", answer.head);
    }
    assert_eq!(part("bytes=256-").status, 416);
    for odd in ["bytes=9-3", "lines=1-2", "bytes=a-b"] {
        assert!(part(odd).status == 200, "{odd}");
    }
    // A graph that is written meanwhile is there at once; a file that is none is not listed.
    std::fs::copy(folder.join("dallas.json"), folder.join("b.json")).unwrap();
    std::fs::write(folder.join("broken.json"), "{").unwrap();
    let index = server.get("/").text();
    assert!(index.contains("/graph/b\"") && !index.contains("broken"), "{index}");
}

#[test]
fn head_and_other_methods() {
    let folder = graphs("view-methods");
    let server = Server::start(&folder);
    let host = format!("HTTP/1.1\r\nHost: 127.0.0.1:{}", server.port);
    for path in ["/", "/graph_data/dallas.json", "/picture/dallas.svg"] {
        let (head, get) = (server.raw(&format!("HEAD {path} {host}")), server.get(path));
        assert!(head.status == 200 && head.body.is_empty(), "{path}");
        assert!(head.head.contains(&format!("Content-Length: {}", get.body.len())), "{path}: {}", head.head);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(server.raw(&format!("{method} /graph_data/dallas.json {host}\r\nContent-Length: 0")).status, 405, "{method}");
    }
    assert!(folder.join("dallas.json").exists());
    for path in ["/none", "/graph/none", "/picture/none.svg", "/data/none.json", "/features/index.json.gz"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
}

#[test]
fn names_never_leave_the_folder() {
    let folder = graphs("view-names");
    let outside = folder.parent().unwrap().join("secret.json");
    std::fs::write(&outside, "{\"metadata\": {}, \"nodes\": [], \"links\": [], \"secret\": 1}").unwrap();
    std::fs::write(folder.join(".hidden.json"), "{\"secret\": 1}").unwrap();
    std::fs::write(folder.join("notes.txt"), "secret").unwrap();
    std::os::unix::fs::symlink(&outside, folder.join("link.json")).unwrap();
    std::os::unix::fs::symlink(folder.parent().unwrap(), folder.join("up")).unwrap();
    std::os::unix::fs::symlink("dallas.json", folder.join("inside.json")).unwrap();
    let server = Server::start(&folder);
    let absolute = outside.display();
    let encoded = outside.display().to_string().replace('/', "%2F");
    let paths = [
        "/data/../secret.json".to_string(),
        "/../secret.json".into(),
        "/data/%2e%2e/secret.json".into(),
        "/data/%2e%2e%2fsecret.json".into(),
        "/data/..%2fsecret.json".into(),
        "/data/..%5csecret.json".into(),
        "/data/....//secret.json".into(),
        "/data/features/../../secret.json".into(),
        "/features/../../secret.json".into(),
        "/features/%2e%2e/%2e%2e/secret.json".into(),
        "/graph/..%2fsecret".into(),
        "/picture/..%2fsecret.svg".into(),
        format!("/data/{absolute}"),
        format!("/data/{encoded}"),
        format!("/graph_data//{absolute}"),
        "/data/link.json".into(),
        "/graph/link".into(),
        "/data/up/secret.json".into(),
        "/data/.hidden.json".into(),
        "/data/notes.txt".into(),
        "/data/".into(),
        "/data/dallas.json%00.txt".into(),
        "/data/%252e%252e/secret.json".into(),
        format!("http://127.0.0.1:{}/data/../secret.json", server.port),
    ];
    for path in paths {
        let answer = server.get(&path);
        assert!(matches!(answer.status, 400 | 404) && !answer.text().contains("secret\": 1"), "{path}: {} {}", answer.status, answer.text());
    }
    assert!(!server.get("/").text().contains("/graph/link"));
    // A link that stays inside is a name like others.
    assert_eq!(server.get("/data/inside.json").status, 200);
    for path in ["/data/%zz", "/data/%e9.json", &format!("/data/{}.json", "a".repeat(5000))] {
        assert_eq!(server.get(path).status, 400, "{path}");
    }
}

#[test]
fn only_this_machine_s_names_are_answered() {
    let folder = graphs("view-host");
    let server = Server::start(&folder);
    let hosts = |lines: &str| server.raw(&format!("GET /graph_data/dallas.json HTTP/1.1{lines}")).status;
    for host in ["127.0.0.1", "localhost", "LOCALHOST:99", "[::1]:8032"] {
        assert_eq!(hosts(&format!("\r\nHost: {host}")), 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.0.0.1@evil.example", "0.0.0.0", "", "evil.example:127.0.0.1", "10.0.0.1"] {
        let answer = server.raw(&format!("GET /graph_data/dallas.json HTTP/1.1\r\nHost: {host}"));
        assert!(matches!(answer.status, 400 | 421) && !answer.text().contains("nodes"), "{host}: {}", answer.status);
    }
    assert!(matches!(hosts("\r\nHost: localhost\r\nHost: evil.example"), 400 | 421));
    assert!(matches!(hosts("\r\nX: 1"), 400 | 421));
}

#[test]
fn names_and_texts_of_files_are_escaped() {
    let folder = graphs("view-escaped");
    let hostile = "<img src=x onerror=alert(1)>\"'&\u{1b}[31m\u{202e}";
    let graph = serde_json::json!({"metadata": {"slug": "s", "prompt": hostile, "scan": hostile, "title_prefix": hostile}, "nodes": [], "links": []});
    std::fs::write(folder.join("<b>x' onload='y%2f.json"), graph.to_string()).unwrap();
    let server = Server::start(&folder);
    let index = server.get("/").text();
    assert!(!index.contains("<img src=x") && !index.contains("<b>") && !index.contains('\u{1b}') && !index.contains('\u{202e}'), "{index}");
    assert!(index.contains("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;"), "{index}");
    let link = "/graph/%3Cb%3Ex%27%20onload%3D%27y%252f";
    assert!(index.contains(&format!("href=\"{link}\"")), "{index}");
    let page = server.get(link);
    assert!(page.status == 200 && !page.text().contains("<b>") && !page.text().contains("' onload"), "{}", page.text());
    for policy in ["Content-Security-Policy: default-src 'none'", "X-Content-Type-Options: nosniff", "Cross-Origin-Resource-Policy: same-origin"] {
        assert!(page.head.contains(policy), "{}", page.head);
    }
}
