//! A hostile hub or proxy: names and headers that lead elsewhere, redirects that
//! would carry the token away, answers that are none; and the environment as `huggingface_hub` reads it.

use crate::support::{self, scratch};
use cltlab::hub::{HubConfig, HubRepo};
use cltlab::ErrorKind;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Requests that came: path, then token.
type Heard = Arc<Mutex<Vec<(String, String)>>>;

/// A server whose answers `answer` makes from path and range.
fn serve(answer: impl Fn(&str, &str) -> String + Send + 'static) -> (u16, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Heard::default();
    let log = heard.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_string();
            let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let header = |name: &str| headers.iter().find_map(|line| line.to_lowercase().starts_with(name).then(|| line[name.len()..].trim().to_string())).unwrap_or_default();
            log.lock().unwrap().push((path.clone(), header("authorization:")));
            let _ = stream.write_all(answer(&path, &header("range:")).as_bytes());
        }
    });
    (port, heard)
}

fn whole(body: &str, range: &str, etag: &str, commit: &str) -> String {
    let from: usize = range.trim_start_matches("bytes=").split('-').next().and_then(|from| from.parse().ok()).unwrap_or(0);
    let part = if range == "bytes=0-0" { &body[..1] } else { &body[from..] };
    format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{part}",
        body.len() - 1,
        body.len(),
        part.len()
    )
}

fn open(port: u16, cache: &Path, token: Option<&str>) -> HubRepo {
    let config = HubConfig { endpoint: format!("http://127.0.0.1:{port}"), cache: cache.to_path_buf(), token: token.map(str::to_string), offline: false };
    HubRepo::open("lab/tiny", &config).unwrap()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn names_that_lead_elsewhere_are_refused_before_anything_is_asked() {
    let cache = scratch("hub-names");
    let outside = scratch("hub-names-outside").join("evil");
    let (port, heard) = serve(|_, range| whole("payload", range, "e", "c"));
    let repo = open(port, &cache, None);
    let absolute = outside.to_str().unwrap();
    let up = format!("payload?/../../../../../..{absolute}");
    for name in [absolute, &up, "../evil", "a/../../evil", "./a", "a/.", "a//b", "a/", "", ".", "..", "a?b", "a#b", "a%2e%2e%2fb", "a\\b", "a\nb", "a\u{7f}", "a\0b", "C:/x", "a/c:x"] {
        for error in [repo.file(name).unwrap_err(), repo.optional(name).unwrap_err()] {
            assert!(error.kind() == ErrorKind::BadFile && error.to_string().contains("relative path"), "{name:?}: {error}");
            assert!(!error.to_string().chars().any(char::is_control), "{name:?}");
        }
        assert_eq!(repo.cached(name), None);
    }
    assert!(heard.lock().unwrap().is_empty() && is_empty(&cache) && !outside.exists());
    for revision in ["/etc", "a//b", "..", "./main", "a/../b"] {
        assert_eq!(HubRepo::open(&format!("lab/tiny@{revision}"), &Default::default()).err().unwrap().kind(), ErrorKind::BadInput, "{revision}");
    }
    assert!(repo.file("a folder/b-1.2_c.json").is_ok(), "plain names are asked for");
}

#[test]
fn an_etag_or_a_commit_cannot_lead_elsewhere() {
    for (etag, commit) in [("../../../evil", "c"), ("/tmp/evil", "c"), ("e", "../../../evil"), ("e", "/tmp/evil"), ("e", "a/b"), ("", "c"), ("e", ".."), ("e%00", "c")] {
        let cache = scratch("hub-headers");
        let folder = cache.join("cache");
        std::fs::create_dir(&folder).unwrap();
        let (etag, commit) = (etag.to_string(), commit.to_string());
        let (port, _) = serve({
            let (etag, commit) = (etag.clone(), commit.clone());
            move |_, range| whole("payload", range, &etag, &commit)
        });
        let error = open(port, &folder, None).file("config.json").unwrap_err();
        assert!(error.kind() == ErrorKind::Network && error.to_string().contains("cannot name a file"), "{etag} {commit}: {error}");
        assert!(is_empty(&folder) && std::fs::read_dir(&cache).unwrap().count() == 1, "{etag} {commit}");
    }
}

#[test]
fn the_token_stays_with_the_hub() {
    let (other, stranger) = serve(|_, range| whole("payload", range, "of another", "of another"));
    for host in ["localhost", "127.0.0.1"] {
        let (port, hub) = serve(move |path, range| match path {
            // Within the hub, then away.
            "/lab/tiny/resolve/main/config.json" => "HTTP/1.1 307 Temporary Redirect\r\nLocation: /moved/config.json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_string(),
            "/moved/config.json" => format!("HTTP/1.1 302 Found\r\nLocation: http://{host}:{other}/store\r\nX-Repo-Commit: c1\r\nX-Linked-Etag: \"e1\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            _ => whole("x", range, "e", "c"),
        });
        let cache = scratch("hub-token");
        let path = open(port, &cache, Some("hf_secret")).file("config.json").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "payload");
        assert!(path.ends_with("models--lab--tiny/snapshots/c1/config.json") && cache.join("models--lab--tiny/blobs/e1").is_file(), "the hub's own word counts");
        assert!(hub.lock().unwrap().iter().all(|(_, token)| token == "Bearer hf_secret"));
        assert!(stranger.lock().unwrap().iter().all(|(_, token)| token.is_empty()), "{:?}", stranger.lock().unwrap());
        assert!(!stranger.lock().unwrap().is_empty());
    }
}

#[test]
fn neither_token_nor_password_is_shown() {
    let (port, _) = serve(|_, _| "HTTP/1.1 403 Forbidden\r\nX-Error-Code: no hf_secret \x1b]0;x\x07\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_string());
    let cache = scratch("hub-secrets");
    for endpoint in [format!("http://me:pass@127.0.0.1:{port}"), "http://me:pass@127.0.0.1:9".into(), "http://me:pass@nowhere.invalid".into(), "nonsense://me:pass@x".into(), "http://me:pass/pass@x".into(), "http://me:pass@pass@127.0.0.1:9".into(), "http://me:pass@[::x".into()] {
        let config = HubConfig { endpoint: endpoint.clone(), cache: cache.clone(), token: Some("hf_secret".into()), offline: false };
        let repo = HubRepo::open("lab/tiny", &config).unwrap();
        for error in [repo.file("config.json").unwrap_err(), repo.list().unwrap_err()] {
            let text = error.to_string();
            assert!(!text.contains("pass") && !text.contains("hf_secret") && !text.chars().any(char::is_control), "{endpoint}: {text}");
        }
    }
    let config = HubConfig { endpoint: "http://127.0.0.1:9".into(), cache, token: Some("hf_sec\nret".into()), offline: false };
    let error = HubRepo::open("lab/tiny", &config).err().unwrap();
    assert!(!error.to_string().contains("hf_sec"), "{error}");
}

#[test]
fn answers_that_are_none_are_errors() {
    let end = "Connection: close\r\n\r\n";
    let known = "ETag: e\r\nX-Repo-Commit: c\r\n";
    for (answer, words) in [
        ("".to_string(), "check the network"),
        (format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n{end}abc"), "commit"),
        (format!("HTTP/1.1 200 OK\r\nX-Repo-Commit: c\r\nContent-Length: 3\r\n{end}abc"), "etag"),
        (format!("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n{end}"), "without an address"),
        (format!("HTTP/1.1 302 Found\r\nLocation: http://[::x\r\nContent-Length: 0\r\n{end}"), "cannot be read"),
        (format!("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n{end}"), "redirects"),
        (format!("HTTP/1.1 304 Not Modified\r\n{known}{end}"), "304"),
        (format!("HTTP/1.1 206 Partial Content\r\n{known}Content-Range: bytes 5-9/10\r\nContent-Length: 3\r\n{end}abc"), "from 5"),
        (format!("HTTP/1.1 206 Partial Content\r\n{known}Content-Range: bytes 0-9/10\r\nContent-Length: 3\r\n{end}abc"), "10"),
        (format!("HTTP/1.1 206 Partial Content\r\n{known}Content-Range: bytes 0-9/2\r\nContent-Length: 3\r\n{end}abc"), "it had said 2"),
        (format!("HTTP/1.1 206 Partial Content\r\n{known}Content-Range: bytes x/y\r\nContent-Length: 3\r\n{end}abc"), "size"),
    ] {
        let cache = scratch("hub-answers");
        let shown = answer.clone();
        let (port, _) = serve(move |_, _| answer.clone());
        let error = open(port, &cache, None).file("config.json").unwrap_err();
        assert!(error.kind() == ErrorKind::Network && error.to_string().contains(words), "{shown}: {error}");
        assert!(!cache.join("models--lab--tiny/snapshots").exists());
        assert_eq!(open(port, &cache, None).list().unwrap_err().kind(), ErrorKind::Network);
    }
    // A server without ranges, and an empty file.
    let cache = scratch("hub-plain");
    let (port, _) = serve(move |path, _| match path.ends_with("empty") {
        true => "HTTP/1.1 416 Range Not Satisfiable\r\nETag: e0\r\nX-Repo-Commit: c\r\nContent-Range: bytes */0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_string(),
        false => "HTTP/1.1 200 OK\r\nETag: e\r\nX-Repo-Commit: c\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc".to_string(),
    });
    let repo = open(port, &cache, None);
    assert_eq!(std::fs::read_to_string(repo.file("sub/a.txt").unwrap()).unwrap(), "abc");
    assert_eq!(std::fs::read_to_string(repo.file("empty").unwrap()).unwrap(), "");
}

/// A cache that another program filled, found by each variable that names it; nothing is asked.
#[test]
fn the_environment_is_that_of_huggingface_hub() {
    let home = scratch("hub-environment");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let hub = home.join("place/hub");
    let folder = hub.join("models--lab--tiny");
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::create_dir_all(folder.join("snapshots").join(commit)).unwrap();
    std::fs::write(folder.join("refs/main"), format!("{commit}\n")).unwrap();
    for entry in std::fs::read_dir(support::fixture("attribution/llama/model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join("snapshots").join(commit).join(path.file_name().unwrap())).unwrap();
    }
    std::fs::create_dir_all(home.join(".cache")).unwrap();
    std::os::unix::fs::symlink(home.join("place"), home.join(".cache/huggingface")).unwrap();
    let run = |model: &str, more: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cltlab"));
        command.args(["run", "--model", model, "--tokens", "1,2,3", "--top", "1"]).env("HOME", &home).env("HF_ENDPOINT", "http://127.0.0.1:9");
        for name in ["HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME", "HUGGING_FACE_HUB_TOKEN"] {
            command.env_remove(name);
        }
        let output = command.current_dir(&home).envs(more.iter().copied()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let offline = ("TRANSFORMERS_OFFLINE", "1");
    for place in [
        ("HF_HOME", "~/place"),
        ("HF_HOME", "$HOME/place"),
        ("HF_HOME", "${HOME}/place"),
        ("HF_HUB_CACHE", "~/place/hub"),
        ("HUGGINGFACE_HUB_CACHE", "~/place/hub"),
        ("XDG_CACHE_HOME", "~/.cache"),
        ("LANG", "C"),
    ] {
        for model in ["lab/tiny".to_string(), format!("lab/tiny@{commit}")] {
            let (done, text) = run(&model, &[place, offline]);
            assert!(done, "{place:?} {model}: {text}");
        }
    }
    let (done, text) = run("lab/tiny", &[("HF_HOME", "~/elsewhere"), offline]);
    assert!(!done && text.contains("HF_HUB_OFFLINE"), "{text}");
    assert!(!home.join("~").exists());
    // The first variable counts where both are set.
    let (done, text) = run("lab/other", &[offline, ("HF_HUB_OFFLINE", "0")]);
    assert!(!done && text.contains("check the network"), "{text}");
}

#[test]
fn each_place_of_a_token_is_read() {
    let home = scratch("hub-token-places");
    std::fs::write(home.join("file"), "hf_of_file\n").unwrap();
    let (port, heard) = serve(|_, _| "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_string());
    for (more, token) in [
        (vec![("HF_TOKEN", " hf_a\r\n")], "Bearer hf_a"),
        (vec![("HUGGING_FACE_HUB_TOKEN", "hf_b")], "Bearer hf_b"),
        (vec![("HF_TOKEN", "hf_a"), ("HUGGING_FACE_HUB_TOKEN", "hf_b")], "Bearer hf_a"),
        (vec![("HF_TOKEN_PATH", "~/file")], "Bearer hf_of_file"),
        (vec![("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], ""),
    ] {
        heard.lock().unwrap().clear();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cltlab"));
        command.args(["run", "--model", "lab/tiny", "--tokens", "1"]).env("HOME", &home).env("HF_HOME", home.join("hf")).env("HF_ENDPOINT", format!("http://127.0.0.1:{port}/"));
        for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        let output = command.envs(more.clone()).output().unwrap();
        assert!(!output.status.success());
        let heard = heard.lock().unwrap();
        assert!(!heard.is_empty() && heard.iter().all(|(path, had)| had == token && path.starts_with("/lab/tiny/")), "{more:?}: {heard:?}");
    }
}
