//! What is no regular file, where one is read: refused at once by every reader, and never waited for.

use crate::support::{copy_all, fixture, says, scratch};
use crate::train_command::recipe;
use cltlab::prelude::*;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub fn pipe(path: &Path) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a path of our own.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// What `work` gives; a reader that waits is a failure here and no test that never ends.
fn at_once<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("{what}: it waits"))
}

/// Pipes without a writer in the place of each file that the readers' mutations are tried on.
#[test]
fn every_reader_refuses_a_pipe() {
    let mut tried = 0;
    // The target of templates takes every error.
    for target in crate::mutations::all().into_iter().filter(|target| target.name != "template") {
        let path = target.folder.join(&target.file);
        std::fs::remove_file(&path).unwrap();
        pipe(&path);
        let what = format!("{} {}", target.name, target.file.display());
        let read = at_once(&what, move || (target.read)(&target.folder, &target.folder.join(&target.file)));
        says(&read.err().unwrap_or_else(|| panic!("{what}: it was taken")), ErrorKind::BadFile, &["a pipe", path.file_name().unwrap().to_str().unwrap()]);
        tried += 1;
    }
    assert!(tried > 40, "{tried}");
}

#[test]
fn devices_sockets_and_folders_are_no_files() {
    let folder = scratch("irregular");
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
    std::fs::create_dir(folder.join("folder")).unwrap();
    for (path, what) in [(Path::new("/dev/zero"), "a device"), (Path::new("/dev/null"), "a device"), (&folder.join("socket"), "a socket"), (&folder.join("folder"), "a folder")] {
        says(&cltlab::internal::files::read(path).unwrap_err(), ErrorKind::BadFile, &[what, "expected a file", path.to_str().unwrap()]);
    }
    std::os::unix::fs::symlink("/dev/zero", folder.join("link")).unwrap();
    says(&cltlab::internal::files::read(folder.join("link")).unwrap_err(), ErrorKind::BadFile, &["a device", "link"]);
}

fn ends(arguments: &[&str], words: &[&str]) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cltlab")).args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
            panic!("{arguments:?}: it waits");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && words.iter().all(|word| text.contains(word)), "{arguments:?}: {:?} {text}", output.status);
}

/// Files that only the program reads.
#[test]
fn so_does_every_command() {
    let folder = recipe("irregular-recipe", "");
    let fifo = folder.join("fifo");
    pipe(&fifo);
    let fifo = fifo.to_str().unwrap();
    let (model, clt) = (fixture("attribution/gpt2/model"), fixture("attribution/gpt2/clt"));
    let (model, clt) = (model.to_str().unwrap(), clt.to_str().unwrap());
    let own = folder.join("model");
    copy_all(Path::new(model), &own);
    std::fs::remove_file(own.join("config.json")).unwrap();
    pipe(&own.join("config.json"));
    for arguments in [
        vec!["train", fifo],
        vec!["train", folder.join("train.toml").to_str().unwrap(), "--dry-run", "--set", &format!("activations.file={fifo}")],
        vec!["run", "--model", own.to_str().unwrap(), "--tokens", "1,2"],
        vec!["eval", "--model", model, "--clt", clt, "--text", fifo],
        vec!["check", "--model", model, "--clt", clt, "--tokens", "1,2,3", "--groups", fifo],
        vec!["compare-reports", fifo, fifo],
    ] {
        ends(&arguments, &["a pipe"]);
    }
}
