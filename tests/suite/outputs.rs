//! Where outputs go: pipes, links, `-`, planted files, modes; and a standard output that is closed or full.

use crate::irregular::pipe;
use crate::support::{fixture, scratch};
use crate::train_command::said;
use std::io::Read;
use std::os::unix::fs::{symlink, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const CLTLAB: &str = env!("CARGO_BIN_EXE_cltlab");

/// The commands that print, with what they need; their outputs to files are left out.
fn commands() -> Vec<Vec<String>> {
    let at = |path: &str| fixture(&format!("attribution/gpt2/{path}")).to_string_lossy().into_owned();
    let (model, clt) = (at("model"), at("clt"));
    let both = ["--model", &model, "--clt", &clt, "--tokens", "1,2,3,4"].map(str::to_string);
    let with = |first: &[&str], more: &[&str]| first.iter().map(ToString::to_string).chain(both.clone()).chain(more.iter().map(ToString::to_string)).collect::<Vec<_>>();
    vec![
        ["run", "--model", &model, "--tokens", "1,2,3"].map(str::to_string).to_vec(),
        ["generate", "--model", &model, "--tokens", "1,2,3"].map(str::to_string).to_vec(),
        ["clt", "check", &clt].map(str::to_string).to_vec(),
        ["clt", "encode", &clt, "--model", &model, "--tokens", "1,2,3,4"].map(str::to_string).to_vec(),
        with(&["check"], &["--supernodes", "3"]),
        ["doctor"].map(str::to_string).to_vec(),
        ["--help"].map(str::to_string).to_vec(),
    ]
}

fn attribute(more: &[&str]) -> Command {
    let mut command = Command::new(CLTLAB);
    command.args(["attribute", "--tokens", "1,2,3,4", "--model"]).arg(fixture("attribution/gpt2/model")).arg("--clt").arg(fixture("attribution/gpt2/clt")).args(more);
    command
}

fn done(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_pipe_is_written_to_and_stays() {
    let folder = scratch("output-pipe");
    let plain = folder.join("plain.json");
    done(&attribute(&["-o", plain.to_str().unwrap()]).output().unwrap());
    let raw = folder.join("plain.safetensors");
    let run = |path: &Path| Command::new(CLTLAB).args(["run", "--tokens", "1,2,3", "--model"]).arg(fixture("attribution/gpt2/model")).arg("--raw").arg(path).output().unwrap();
    done(&run(&raw));
    let fifo = folder.join("fifo");
    pipe(&fifo);
    for writes_raw in [false, true] {
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::read(fifo).unwrap()
        });
        done(&if writes_raw { run(&fifo) } else { attribute(&["-o", fifo.to_str().unwrap()]).output().unwrap() });
        let (got, file) = (reader.join().unwrap(), std::fs::read(if writes_raw { &raw } else { &plain }).unwrap());
        if writes_raw {
            assert!(got == file);
        } else {
            // The graph says when it was made.
            let count = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["links"].as_array().unwrap().len();
            assert_eq!(count(&got), count(&file));
        }
        assert!(std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
    }
    assert_eq!(names(&folder), ["fifo", "graph-metadata.json", "plain.json", "plain.safetensors"]);
}

#[test]
fn a_link_is_followed() {
    let folder = scratch("output-link");
    let (target, link, dangling, twice) = (folder.join("target.json"), folder.join("link"), folder.join("dangling"), folder.join("twice"));
    std::fs::write(&target, "old").unwrap();
    symlink("target.json", &link).unwrap();
    symlink(folder.join("new.json"), &dangling).unwrap();
    symlink("link", &twice).unwrap();
    for (path, file) in [(&link, &target), (&twice, &target), (&dangling, &folder.join("new.json"))] {
        cltlab::internal::files::write_atomic(path, path.to_str().unwrap().as_bytes()).unwrap();
        assert!(std::fs::symlink_metadata(path).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(file).unwrap(), path.to_str().unwrap());
        cltlab::internal::files::replace(path, |at| Ok(std::fs::write(at, "by path").unwrap())).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "by path");
    }
    symlink("round", folder.join("round")).unwrap();
    assert!(cltlab::internal::files::write_atomic(folder.join("round"), b"x").is_err());
    let error = cltlab::internal::files::write_atomic(&folder, b"x").unwrap_err();
    assert!(error.to_string().contains("a folder"), "{error}");
}

/// A folder of files is filled file by file where it is there already.
#[test]
fn links_in_a_folder_are_followed() {
    let folder = scratch("output-folder-link");
    let (clt, elsewhere) = (folder.join("clt"), folder.join("elsewhere"));
    std::fs::create_dir(&clt).unwrap();
    std::fs::write(&elsewhere, "old").unwrap();
    symlink(&elsewhere, clt.join("W_enc_0.safetensors")).unwrap();
    done(&Command::new(CLTLAB).args(["clt", "convert"]).arg(fixture("attribution/gpt2/clt")).arg(&clt).output().unwrap());
    assert!(std::fs::symlink_metadata(clt.join("W_enc_0.safetensors")).unwrap().is_symlink() && std::fs::metadata(&elsewhere).unwrap().len() > 100);
    done(&Command::new(CLTLAB).args(["clt", "check"]).arg(&clt).output().unwrap());
    assert_eq!(names(&folder), ["clt", "elsewhere"]);
}

#[test]
fn planted_temporary_names_are_not_followed() {
    let folder = scratch("output-planted");
    let victim = folder.join("victim");
    std::fs::write(&victim, "mine").unwrap();
    for planted in [format!(".out.{}.tmp", std::process::id()), ".out.tmp".into()] {
        symlink(&victim, folder.join(planted)).unwrap();
    }
    let path = folder.join("out");
    std::thread::scope(|scope| {
        for n in 0..8u8 {
            let path = &path;
            scope.spawn(move || cltlab::internal::files::write_atomic(path, &vec![n; 100_000]).unwrap());
        }
    });
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == bytes[0]), "two writers on one path");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
    assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!(names(&folder).len(), 4);
    // What another system's process left, and what only looks like it, is not ours to remove.
    let foreign = [".out.999999999.tmp", ".out.999999999.0123456789abcdef.0123456789abcdef.tmp", ".out.1.tmp"];
    foreign.iter().for_each(|name| std::fs::write(folder.join(name), "theirs").unwrap());
    cltlab::internal::files::sweep(&folder);
    cltlab::internal::files::write_atomic(&path, b"again").unwrap();
    assert!(foreign.iter().all(|name| folder.join(name).exists()));
}

#[test]
fn modes_follow_the_umask() {
    let folder = scratch("output-modes");
    let (model, clt) = (fixture("attribution/gpt2/model"), fixture("attribution/gpt2/clt"));
    let (model, clt) = (model.display(), clt.display());
    for (mask, mode) in [("022", 0o644), ("027", 0o640), ("077", 0o600)] {
        let at = |name: &str| folder.join(format!("{name}-{mask}"));
        let both = format!("--model {model} --clt {clt} --tokens 1,2,3,4");
        for (command, path) in [
            (format!("run --model {model} --tokens 1,2 --raw"), at("run")),
            (format!("clt encode {clt} --model {model} --tokens 1,2,3,4 --raw"), at("encode")),
            (format!("intervene {both} --set 0_3_1=2 --raw"), at("intervene")),
            (format!("attribute {both} --raw {} -o", at("raw").display()), at("attribute")),
            (format!("clt convert {clt}"), at("convert")),
        ] {
            let output = Command::new("sh").args(["-c", &format!("umask {mask}; exec {CLTLAB} {command} {}", path.display())]).output().unwrap();
            done(&output);
            let file = if path.is_dir() { path.join("W_enc_0.safetensors") } else { path };
            assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, mode, "{command}");
        }
        assert_eq!(std::fs::metadata(at("raw")).unwrap().mode() & 0o777, mode);
    }
}

#[test]
fn standard_output_by_its_name() {
    let folder = scratch("output-dash");
    for name in ["-", "/dev/stdout"] {
        let output = attribute(&["-o", name]).current_dir(&folder).output().unwrap();
        done(&output);
        let graph: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(graph["nodes"].is_array() && !output.stderr.is_empty());
    }
    assert!(names(&folder).is_empty());
}

/// A reader that is gone before the first line ends the text, not the command.
#[test]
fn a_closed_standard_output_is_no_panic() {
    let folder = scratch("output-closed");
    let graph = folder.join("graph.json");
    let attribute: Vec<String> = attribute(&["-o", graph.to_str().unwrap()]).get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    for arguments in commands().into_iter().chain([attribute]) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(CLTLAB).args(&arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.code() == Some(0) || arguments[0] == "doctor", "{arguments:?}: {:?} {}", output.status, said(&output));
        assert!(!said(&output).contains("panicked") && !said(&output).contains("Broken pipe"), "{arguments:?}: {}", said(&output));
    }
    assert!(graph.is_file(), "files are written whoever reads the text");
}

/// A limit on the size of files stands for a full disk, behind standard output and behind files.
#[test]
fn a_full_disk_is_an_error_in_every_command() {
    let folder = scratch("output-full");
    let quoted = |arguments: &[String]| arguments.iter().map(|argument| format!("'{argument}'")).collect::<Vec<_>>().join(" ");
    let run = |command: String| {
        let output = Command::new("sh").args(["-c", &command]).current_dir(&folder).output().unwrap();
        (output.status.code(), said(&output))
    };
    for arguments in commands() {
        let (code, text) = run(format!("ulimit -f 0; exec {CLTLAB} {} > text", quoted(&arguments)));
        assert!(code == Some(1) && text.contains("standard output") && text.contains("too large"), "{arguments:?}: {code:?} {text}");
    }
    std::fs::remove_file(folder.join("text")).unwrap();
    let (model, clt) = (fixture("attribution/gpt2/model"), fixture("attribution/gpt2/clt"));
    let (model, clt) = (model.display(), clt.display());
    let both = format!("--model {model} --clt {clt} --tokens 1,2,3,4");
    for command in [
        format!("attribute {both} -o out"),
        format!("clt convert {clt} out"),
        format!("clt encode {clt} --model {model} --tokens 1,2,3,4 --raw out"),
        format!("run --model {model} --tokens 1,2 --raw out"),
        format!("check {both} --supernodes 3 -o out"),
    ] {
        let (code, text) = run(format!("ulimit -f 1; exec {CLTLAB} {command}"));
        assert!(code == Some(1) && text.contains("free some space"), "{command}: {code:?} {text}");
        assert!(names(&folder).is_empty(), "{command}: {:?}", names(&folder));
    }
}

#[test]
fn text_of_files_does_not_steer_the_terminal() {
    let folder: PathBuf = scratch("output-escapes");
    let path = folder.join("train.toml");
    std::fs::write(&path, "[clt]\n\"a\\u001b]0;x\\u0007\\u202e\" = 1\n").unwrap();
    let mut text = String::new();
    let output = Command::new(CLTLAB).arg("train").arg(&path).output().unwrap();
    output.stderr.as_slice().read_to_string(&mut text).unwrap();
    assert!(!output.status.success() && !text.contains('\u{1b}') && !text.contains('\u{202e}') && text.contains("\\u{1b}"), "{text:?}");
}
