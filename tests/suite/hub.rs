//! The hub, played by a small server of our own: files, revisions, tokens, refusals, a connection
//! that breaks off in the middle of a file.

use crate::support;
use cltlab::hub::{HubConfig, HubRepo};
use cltlab::ErrorKind;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// `GET` lines that came, each with its range and its token.
type Heard = Arc<Mutex<Vec<String>>>;

/// Serves `folder` as `lab/tiny` at revisions `main` and `v1`; `lab/gated` to those with the token
/// `right`, and nothing else. The first answer for a whole `big.bin` breaks off after half.
fn serve(folder: PathBuf) -> (String, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heard = Heard::default();
    let log = heard.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &folder, &log);
        }
    });
    (address, heard)
}

fn answer(mut stream: TcpStream, folder: &Path, log: &Heard) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let line = lines.next().transpose()?.unwrap_or_default();
    let (mut range, mut token) = (String::new(), String::new());
    for header in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = header.split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "range" => range = value.trim_start_matches("bytes=").to_string(),
            "authorization" => token = value.trim_start_matches("Bearer ").to_string(),
            _ => {}
        }
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let broken = path.ends_with("big.bin") && !log.lock().unwrap().iter().any(|line| line.contains("big.bin 0-|"));
    log.lock().unwrap().push(format!("{path} {range}|{token}"));
    let refuse = |mut stream: TcpStream, status: &str, code: &str| {
        write!(stream, "HTTP/1.1 {status}\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    if let Some(repo) = path.strip_prefix("/api/datasets/") {
        let Some("lab/texts") = repo.strip_suffix("/revision/main") else { return refuse(stream, "404 Not Found", "RepoNotFound") };
        let mut files: Vec<String> = std::fs::read_dir(folder.join("data"))?.flatten().map(|entry| format!("data/{}", entry.file_name().to_string_lossy())).collect();
        files.extend(["README.md".to_string(), ".gitattributes".to_string(), "dataset_infos.json".to_string(), "data.tokens".to_string()]);
        let siblings: Vec<_> = files.iter().map(|file| serde_json::json!({ "rfilename": file })).collect();
        let body = serde_json::json!({"siblings": siblings, "sha": "commit-main"}).to_string();
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    }
    let Some((repo, rest)) = path.trim_start_matches('/').split_once("/resolve/") else { return refuse(stream, "404 Not Found", "") };
    let Some((revision, file)) = rest.split_once('/') else { return refuse(stream, "404 Not Found", "") };
    match (repo, revision, token.as_str()) {
        ("lab/gated", _, "") => return refuse(stream, "401 Unauthorized", "GatedRepo"),
        ("lab/gated", _, "wrong") => return refuse(stream, "403 Forbidden", "GatedRepo"),
        ("lab/busy", ..) => return refuse(stream, "503 Service Unavailable", ""),
        ("lab/tiny" | "lab/gated" | "datasets/lab/texts", "main" | "v1", _) => {}
        ("lab/tiny", ..) => return refuse(stream, "404 Not Found", "RevisionNotFound"),
        _ => return refuse(stream, "401 Unauthorized", "RepoNotFound"),
    }
    let Ok(bytes) = std::fs::read(folder.join(file)) else { return refuse(stream, "404 Not Found", "EntryNotFound") };
    let (from, to) = range.split_once('-').unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap_or(0);
    let to = to.parse::<usize>().map_or(bytes.len(), |last| last + 1).min(bytes.len());
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nETag: \"{revision}-{file}\"\r\nX-Repo-Commit: commit-{revision}\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        to.saturating_sub(1),
        bytes.len(),
        to - from
    )?;
    let whole = range == "0-";
    stream.write_all(&bytes[from..if broken && whole { from + (to - from) / 2 } else { to }])
}

fn config(endpoint: &str, cache: &Path) -> HubConfig {
    HubConfig { endpoint: endpoint.to_string(), cache: cache.to_path_buf(), token: None, offline: false }
}

/// The tiny model's folder with a larger file beside it; a folder of its own for each test, which run side by side.
fn content() -> PathBuf {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let folder = support::scratch(&format!("hub-content-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
    for entry in std::fs::read_dir(support::fixture("attribution/llama/model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(folder.join("big.bin"), bytes).unwrap();
    folder
}

#[test]
fn fetched_once_and_taken_up_where_it_broke_off() {
    let (folder, cache) = (content(), support::scratch("hub-cache"));
    let (address, heard) = serve(folder.clone());
    let repo = HubRepo::open("lab/tiny", &config(&address, &cache)).unwrap();
    let path = repo.file("big.bin").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(folder.join("big.bin")).unwrap());
    let asked: Vec<String> = heard.lock().unwrap().iter().filter(|line| line.contains("big.bin") && !line.contains("0-0")).cloned().collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].contains(" 0-|") && asked[1].contains(" 150000-|"), "the second half only: {asked:?}");
    let before = heard.lock().unwrap().len();
    assert_eq!(repo.file("big.bin").unwrap(), path);
    assert_eq!(heard.lock().unwrap().len(), before, "what is cached is not asked for");
    // Offline the same file is there and another is not.
    let offline = HubRepo::open("lab/tiny", &HubConfig { offline: true, ..config(&address, &cache) }).unwrap();
    assert_eq!(offline.file("big.bin").unwrap(), path);
    let error = offline.file("config.json").unwrap_err();
    assert!(error.kind() == ErrorKind::MissingFile && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(heard.lock().unwrap().len(), before);
    // Another revision has a folder of its own.
    let other = HubRepo::open("lab/tiny@v1", &config(&address, &cache)).unwrap().file("config.json").unwrap();
    assert!(other.to_string_lossy().contains("commit-v1"), "{}", other.display());
}

#[test]
fn each_refusal_has_a_kind_and_says_what_to_do() {
    let (folder, cache) = (content(), support::scratch("hub-refused"));
    let (address, _) = serve(folder);
    let error = |source: &str, token: Option<&str>, file: &str| {
        let config = HubConfig { token: token.map(str::to_string), ..config(&address, &cache) };
        HubRepo::open(source, &config).and_then(|repo| repo.file(file)).unwrap_err()
    };
    for (source, token, file, kind, words) in [
        ("lab/gated", None, "config.json", ErrorKind::AccessDenied, "set HF_TOKEN"),
        ("lab/gated", Some("wrong"), "config.json", ErrorKind::AccessDenied, "the token has no access"),
        ("lab/nothing", None, "config.json", ErrorKind::AccessDenied, "check the repository's name"),
        ("lab/tiny", None, "absent.json", ErrorKind::MissingFile, "does not have this file"),
        ("lab/tiny@v9", None, "config.json", ErrorKind::MissingFile, "check the revision"),
        ("lab/busy", None, "config.json", ErrorKind::Network, "try again later"),
        ("lab/../x", None, "config.json", ErrorKind::BadInput, "owner/name"),
        ("lab/tiny@", None, "config.json", ErrorKind::BadInput, "owner/name"),
    ] {
        let error = error(source, token, file);
        assert!(error.kind() == kind && error.to_string().contains(words), "{source} {file}: {:?} {error}", error.kind());
    }
    let right = HubConfig { token: Some("right".to_string()), ..config(&address, &cache) };
    let repo = HubRepo::open("lab/gated", &right).unwrap();
    assert!(repo.file("config.json").is_ok());
    assert_eq!(repo.optional("absent.json").unwrap(), None);
    let unreachable = HubConfig { endpoint: "http://127.0.0.1:9".to_string(), ..config(&address, &cache) };
    let error = HubRepo::open("lab/tiny", &unreachable).unwrap().file("README.md").unwrap_err();
    assert!(error.kind() == ErrorKind::Network && error.to_string().contains("check the network"), "{error}");
}

/// The program takes endpoint, cache, token and offline from the environment.
#[test]
fn the_environment_is_read() {
    let (folder, home) = (content(), support::scratch("hub-home"));
    let (address, heard) = serve(folder);
    let run = |source: &str, more: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cltlab"));
        command.args(["run", "--model", source, "--tokens", "1,2,3", "--top", "1"]).env("HF_HOME", &home).env("HF_ENDPOINT", &address);
        for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        let output = command.envs(more.iter().copied()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, text) = run("lab/gated", &[]);
    assert!(!done && text.contains("gated") && text.contains("HF_TOKEN"), "{text}");
    std::fs::write(home.join("token"), "right\n").unwrap();
    let (done, text) = run("lab/gated", &[]);
    assert!(done, "{text}");
    assert!(heard.lock().unwrap().iter().any(|line| line.contains("model.safetensors") && line.ends_with("|right")));
    assert!(home.join("hub/models--lab--gated").is_dir());
    let before = heard.lock().unwrap().len();
    let (done, text) = run("lab/gated", &[("HF_HUB_OFFLINE", "1")]);
    assert!(done, "{text}");
    assert_eq!(heard.lock().unwrap().len(), before, "offline asks nothing");
    let (done, text) = run("lab/gated", &[]);
    assert!(done, "{text}");
    assert_eq!(heard.lock().unwrap()[before..], [] as [String; 0], "what is cached whole is not asked for, nor what the repository lacks");
    // A cache that another program filled does not say what the repository lacks: asked, but not needed.
    std::fs::remove_dir_all(home.join("hub/models--lab--gated/.no_exist")).unwrap();
    let (done, text) = run("lab/gated", &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert!(done, "{text}");
}

/// Datasets lie at an address of their own, and in a folder of their own in the cache.
#[test]
fn a_file_of_a_dataset() {
    let (folder, cache) = (content(), support::scratch("hub-dataset-cache"));
    std::fs::create_dir_all(folder.join("data")).unwrap();
    std::fs::write(folder.join("data/a.jsonl"), "{\"story\": \"One.\"}\n{\"story\": \"Two.\"}\n").unwrap();
    let (address, heard) = serve(folder);
    let path = HubRepo::dataset("lab/texts@v1", &config(&address, &cache)).unwrap().file("data/a.jsonl").unwrap();
    assert!(heard.lock().unwrap().iter().any(|line| line.contains("/datasets/lab/texts/resolve/v1/data/a.jsonl")));
    assert!(path.to_string_lossy().contains("datasets--lab--texts"), "{}", path.display());
    let config = cltlab::text::TextConfig { field: "story".into(), ..Default::default() };
    assert_eq!(cltlab::Corpus::load(&path, &config).unwrap().texts(), ["One.", "Two."]);
    for (name, kind) in [("texts", ErrorKind::MissingFile), ("lab/texts@refs/convert", ErrorKind::BadInput)] {
        let error = cltlab::Corpus::load(name, &config).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains("owner/name/path"), "{error}");
    }
    let error = HubRepo::dataset("lab/../texts", &Default::default()).err().unwrap();
    assert!(error.kind() == ErrorKind::BadInput && error.to_string().contains("dataset"), "{error}");
}

/// A dataset of several files: all of them, those of one split, as much as is wanted; also from the cache.
#[test]
fn files_of_a_dataset() {
    let (folder, cache) = (content(), support::scratch("hub-datasets-cache"));
    std::fs::create_dir_all(folder.join("data")).unwrap();
    for (name, words) in [("train-00000", ["One.", "Two."]), ("train-00001", ["Three.", "Four."]), ("test-00000", ["Five.", "Six."])] {
        let lines: String = words.iter().map(|word| format!("{{\"text\": \"{word}\"}}\n")).collect();
        std::fs::write(folder.join(format!("data/{name}.jsonl")), lines).unwrap();
    }
    std::fs::write(folder.join("data.tokens"), "Seven.").unwrap();
    let (address, heard) = serve(folder);
    let repo = HubRepo::dataset("lab/texts", &config(&address, &cache)).unwrap();
    let texts = |repo: &HubRepo, path: &str, most: Option<u64>| {
        let config = cltlab::text::TextConfig { max_bytes: most, ..Default::default() };
        cltlab::Corpus::from_hub(repo, path, &config).map(|corpus| corpus.texts().to_vec())
    };
    let asked = |name: &str| heard.lock().unwrap().iter().any(|line| line.contains(name));
    assert_eq!(texts(&repo, "data/train", Some(4)).unwrap(), ["One."]);
    assert!(!asked("train-00001"), "more was fetched than wanted");
    assert_eq!(texts(&repo, "data/train", None).unwrap(), ["One.", "Two.", "Three.", "Four."]);
    assert!(!asked("test-00000"));
    assert_eq!(texts(&repo, "", None).unwrap(), ["Five.", "Six.", "One.", "Two.", "Three.", "Four."]);
    assert_eq!(texts(&repo, "data.tokens", None).unwrap(), ["Seven."]);
    let error = texts(&repo, "data/validation", None).unwrap_err();
    assert!(error.kind() == ErrorKind::MissingFile && error.to_string().contains("data/test-00000.jsonl") && error.to_string().contains("lab/texts"), "{error}");
    let error = texts(&HubRepo::dataset("lab/nothing", &config(&address, &cache)).unwrap(), "", None).unwrap_err();
    assert!(error.kind() == ErrorKind::MissingFile && error.to_string().contains("lab/nothing"), "{error}");
    // Offline: what lies in the cache.
    let offline = |name: &str| HubRepo::dataset(name, &HubConfig { offline: true, ..config(&address, &cache) }).unwrap();
    let before = heard.lock().unwrap().len();
    assert_eq!(texts(&offline("lab/texts"), "data/train", None).unwrap(), ["One.", "Two.", "Three.", "Four."]);
    let error = texts(&offline("lab/other"), "", None).unwrap_err();
    assert!(error.kind() == ErrorKind::MissingFile && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(heard.lock().unwrap().len(), before);
}
