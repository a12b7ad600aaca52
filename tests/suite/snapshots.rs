//! Texts that people and programs read, as they were last agreed on: the help of every command, errors, a graph's
//! JSON and SVG. They lie in `tests/fixtures/snapshots`; a change that is meant renews them:
//!
//! ```text
//! CLTLAB_SNAPSHOTS=renew cargo nextest run -p cltlab -p cltlab-cli --test suite snapshots
//! ```

use crate::support::{fixture, root, scratch};
use crate::train_command::cltlab;
use std::path::{Path, PathBuf};

/// Compares `text` with the file `name`, or writes it there.
#[track_caller]
fn same(name: &str, text: &str) {
    let path = fixture("snapshots").join(name);
    if std::env::var("CLTLAB_SNAPSHOTS").is_ok_and(|value| value == "renew") {
        cltlab::files::write_atomic(&path, text.as_bytes()).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    if kept == text {
        return;
    }
    let (mut old, mut new) = (kept.lines(), text.lines());
    for line in 1.. {
        match (old.next(), new.next()) {
            (a, b) if a == b && a.is_some() => {}
            (a, b) => panic!("{name} line {line}:\n  was {}\n  is  {}\nif that is meant: CLTLAB_SNAPSHOTS=renew cargo nextest run -p cltlab -p cltlab-cli --test suite snapshots", a.unwrap_or("(the end)"), b.unwrap_or("(the end)")),
        }
    }
}

/// The help of `verbs`, and of every command below it.
fn helps(verbs: &[&str], all: &mut String) {
    let output = cltlab(&[verbs, &["--help"]].concat());
    assert!(output.status.success() && output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    all.push_str(&format!("# cltlab {}\n{}\n\n", verbs.join(" "), lines.join("\n")));
    let mut commands = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    for line in &mut commands {
        // A longer description goes on further to the right.
        let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')).and_then(|rest| rest.split_whitespace().next()) else { continue };
        if name != "help" {
            helps(&[verbs, &[name]].concat(), all);
        }
    }
}

#[test]
fn help_of_every_command() {
    let mut all = String::new();
    helps(&[], &mut all);
    assert!(all.matches("# cltlab").count() > 14, "{all}");
    same("help.txt", &all);
}

/// Paths of this machine are left out.
fn general(text: &str, places: &[(&Path, &str)]) -> String {
    places.iter().fold(text.to_string(), |text, (path, name)| text.replace(&path.to_string_lossy().into_owned(), name))
}

#[test]
fn errors_as_they_are_printed() {
    let folder = scratch("snapshot-errors");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let made = |name: &str, change: &dyn Fn(&Path)| -> PathBuf {
        let to = folder.join(name);
        crate::support::copy_all(&fixture(if name.starts_with("clt") { "attribution/llama/clt" } else { "attribution/llama/model" }), &to);
        change(&to);
        to
    };
    let put = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    made("model-family", &|to| put(&to.join("config.json"), "{\"model_type\": \"mamba\"}"));
    made("model-field", &|to| {
        let text = std::fs::read_to_string(to.join("config.json")).unwrap();
        put(&to.join("config.json"), &text.replace("\"hidden_size\": 32", "\"hidden_size\": 48"));
    });
    made("model-json", &|to| put(&to.join("config.json"), "{\"model_type\": "));
    made("model-lfs", &|to| put(&to.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"));
    made("model-cut", &|to| {
        let bytes = std::fs::read(to.join("model.safetensors")).unwrap();
        std::fs::write(to.join("model.safetensors"), &bytes[..bytes.len() - 40]).unwrap();
    });
    made("clt-hook", &|to| {
        let text = std::fs::read_to_string(to.join("config.yaml")).unwrap();
        put(&to.join("config.yaml"), &text.replace("hook_resid_mid", "hook_q"));
    });
    made("clt-gap", &|to| std::fs::remove_file(to.join("W_enc_1.safetensors")).unwrap());
    made("clt-empty", &|to| std::fs::read_dir(to).unwrap().for_each(|entry| std::fs::remove_file(entry.unwrap().path()).unwrap()));
    write("a.jsonl", "{\"words\": 1}\n");
    write("a.csv", "id,content\n1,One\n");
    write("a.txt", " \n");
    write("model.gguf", "<!doctype html>");
    write("groups.json", "[[\"a\", \"0_1\"]]");
    write("key.toml", "[train]\nstep = 3\n");
    write("value.toml", "[train]\nsteps = \"many\"\n");
    write("table.toml", "[trian]\nsteps = 3\n");
    write("none.toml", "[train]\nsteps = 3\n");
    write("syntax.toml", "[train\n");
    let (model, clt) = (fixture("attribution/llama/model"), fixture("attribution/llama/clt"));
    let at = |path: &Path| path.to_string_lossy().into_owned();
    let here = |name: &str| at(&folder.join(name));
    let both = format!("--model {} --clt {} --tokens 1,2,3", at(&model), at(&clt));
    let run = |more: &str| format!("run --model {} {more}", at(&model));
    let cases = [
        format!("run --model {} --tokens 1", here("model-family")),
        format!("run --model {} --tokens 1", here("model-field")),
        format!("run --model {} --tokens 1", here("model-json")),
        format!("run --model {} --tokens 1", here("model-lfs")),
        format!("run --model {} --tokens 1", here("model-cut")),
        format!("run --model {} --tokens 1", here("model.gguf")),
        format!("run --model {} --tokens 1", here("nowhere")),
        format!("run --model {} --tokens 1", at(&clt)),
        run(""),
        run("--tokens 1,500"),
        run("--tokens 1,x"),
        run("--tokens 1 --top -1"),
        run("--tokens 1 --dtype f8"),
        run("--promt a"),
        format!("generate --model {} --prompt w1 --chat", at(&model)),
        format!("generate --model {} --prompt w1 --top-p 2", at(&model)),
        format!("clt check {}", here("clt-hook")),
        format!("clt check {}", here("clt-gap")),
        format!("clt check {}", here("clt-empty")),
        format!("clt check {}", at(&model)),
        format!("clt convert {} {} --format sparsify2", at(&clt), here("converted")),
        format!("attribute {both} --difference 1,1 -o {}", here("g.json")),
        format!("intervene {both} --set 9,0,0=1"),
        format!("intervene {both} --set 0,0=1"),
        format!("check {both} --groups {}", here("groups.json")),
        format!("attention {both} --layer 0 --head 9 --query 2 --key 1"),
        format!("eval --model {} --clt {} --text {}", at(&model), at(&clt), here("a.jsonl")),
        format!("eval --model {} --clt {} --text {}", at(&model), at(&clt), here("a.csv")),
        format!("eval --model {} --clt {} --text {}", at(&model), at(&clt), here("a.txt")),
        format!("train {}", here("key.toml")),
        format!("train {}", here("value.toml")),
        format!("train {}", here("table.toml")),
        format!("train {}", here("none.toml")),
        format!("train {}", here("syntax.toml")),
        format!("train {}", here("nowhere.toml")),
    ];
    let mut all = String::new();
    for case in &cases {
        let words: Vec<&str> = case.split_whitespace().collect();
        let output = cltlab(&words);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{case}: {:?}", output.status);
        let text = String::from_utf8(output.stderr).unwrap();
        // Progress before it has times in it.
        let error = text.find("error:").unwrap_or_else(|| panic!("{case}: {text}"));
        all.push_str(&format!("$ cltlab {case}\n{}\n\n", text[error..].trim_end()));
    }
    same("errors.txt", &general(&all, &[(&folder, "TMP"), (&fixture(""), "FIXTURES/"), (root(), "ROOT")]));
}

#[test]
fn a_graph_as_json_and_as_a_picture() {
    let graph = crate::pictures::hostile_graph();
    let path = scratch("snapshot-graph").join("graph.json");
    graph.save(&path, &Default::default()).unwrap();
    let json: serde_json::Value = cltlab::files::read_json(&path).unwrap();
    same("graph.json", &format!("{}\n", serde_json::to_string_pretty(&json).unwrap()));
    same("graph.svg", &format!("{}\n", graph.picture().svg().replace("><", ">\n<")));
}
