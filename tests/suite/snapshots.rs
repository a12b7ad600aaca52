//! What users read, word for word, against committed copies in `tests/snapshots`: help, errors, a graph's JSON, a picture.
//! A change that is meant is taken over, and seen in the review, with
//!
//! ```text
//! CLTLAB_RENEW_SNAPSHOTS=1 cargo nextest run -p cltlab-cli --test suite -- snapshots
//! ```

use crate::support::{fixture, root, scratch, small_folder, small_model};
use crate::train_command::{cltlab, recipe, said};
use cltlab::graph::{Edges, GraphParts, LogitTarget};
use cltlab::model::Capture;
use cltlab::prelude::*;
use std::fmt::Write;
use std::path::Path;

/// `got` without what differs between machines: folders, the version.
fn plain(got: &str, folders: &[(&Path, &str)]) -> String {
    let mut text = got.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    for (folder, name) in folders.iter().chain(&[(root(), "ROOT"), (&std::env::temp_dir(), "TEMPORARY")]) {
        text = text.replace(folder.to_str().unwrap(), name);
    }
    // Folders of tests carry the process's number.
    text.replace(&format!("cltlab-test-{}-", std::process::id()), "test-")
}

/// Lines that only one of two texts has, in their order, with those around that both have.
fn difference(kept: &str, got: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (kept.lines().collect(), got.lines().collect());
    // Longest common part of the rest from each pair of lines on.
    let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    let near = |at: usize| lines[at.saturating_sub(1)..(at + 2).min(lines.len())].iter().any(|(sign, _)| *sign != ' ');
    lines.iter().enumerate().filter(|(at, _)| near(*at)).fold(String::new(), |mut text, (_, (sign, line))| {
        writeln!(text, "{sign} {line}").unwrap();
        text
    })
}

#[test]
fn a_difference_shows_the_lines_that_changed() {
    assert_eq!(difference("a\nb\nc\nd\ne\n", "a\nb\nx\nd\ne\nf\n"), "  b\n- c\n+ x\n  d\n  e\n+ f\n");
    assert_eq!(difference("a\nb\n", "a\nb\n"), "");
}

/// What differs from the committed copy, and how to renew it; nothing if it is the same, or was renewed.
fn compared(name: &str, got: &str) -> String {
    let path = root().join("tests/snapshots").join(name);
    if std::env::var_os("CLTLAB_RENEW_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, got).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    if kept == got { String::new() } else { format!("tests/snapshots/{name} (- kept, + now):\n{}", difference(&kept, got)) }
}

#[track_caller]
fn assert_kept(found: &[String]) {
    let differ: String = found.concat();
    assert!(differ.is_empty(), "{differ}If this is meant, take it over with CLTLAB_RENEW_SNAPSHOTS=1 and commit the files.");
}

/// Names of the commands that a help lists.
fn listed(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or("").split("\n\n").next().unwrap_or("");
    list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_string).collect()
}

fn help(command: &[String], found: &mut Vec<String>) {
    let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
    let output = cltlab(&arguments);
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let name = if command.is_empty() { "cltlab".to_string() } else { command.join("-") };
    found.push(compared(&format!("help/{name}.txt"), &plain(&text, &[])));
    for inner in listed(&text) {
        help(&[command, &[inner]].concat(), found);
    }
}

#[test]
fn help_of_every_command() {
    let mut found = Vec::new();
    help(&[], &mut found);
    assert!(found.len() > 20, "{} commands", found.len());
    assert_kept(&found);
}

/// A small graph of sums that are exact, so that it is the same on every machine.
fn graph() -> Graph {
    let (tokens, features) = (3, 2);
    let errors = 2 * tokens;
    let first_token = features + errors;
    let count = first_token + tokens + 2;
    let mut dense = vec![0.0; count * count];
    for (target, sources) in [(0, vec![(first_token + 1, 0.5)]), (1, vec![(0, 1.0), (first_token + 2, -0.25)]), (count - 2, vec![(1, 2.0), (first_token, 0.5), (2, 0.25)]), (count - 1, vec![(0, -1.0), (features, 0.125)])] {
        sources.into_iter().for_each(|(source, weight)| dense[target * count + source] = weight);
    }
    Graph::new(GraphParts {
        model_name: "example".into(),
        prompt: "The capital of".into(),
        tokens: vec![5, 6, 7],
        token_text: ["The", " capital", " of"].map(String::from).to_vec(),
        layers: 2,
        active: vec![FeatureNode { layer: 0, position: 1, feature: 3 }, FeatureNode { layer: 1, position: 2, feature: 9 }],
        activations: vec![1.0, 2.0],
        selected: vec![0, 1],
        logits: vec![LogitTarget { token: 8, text: " Texas".into(), probability: 0.5 }, LogitTarget { token: 9, text: " France".into(), probability: 0.25 }],
        position_nodes: false,
        edges: Edges::from_dense(&dense, count).unwrap(),
        zero_positions: vec![0],
        complete: true,
    })
    .unwrap()
}

#[test]
fn a_graph_as_json_and_as_a_picture() {
    let folder = scratch("snapshots");
    let graph = graph();
    graph.save(folder.join("example.json"), &Default::default()).unwrap();
    let json: serde_json::Value = cltlab::internal::files::read_json(folder.join("example.json")).unwrap();
    let json = serde_json::to_string_pretty(&json).unwrap() + "\n";
    let svg = graph.picture().svg().replace("><", ">\n<") + "\n";
    assert_kept(&[compared("graph.json", &plain(&json, &[])), compared("graph.svg", &plain(&svg, &[]))]);
}

#[test]
fn texts_of_errors() {
    let folder = scratch("snapshots-errors");
    let at = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.join(name), bytes).unwrap();
        folder.join(name)
    };
    let cpu = LoadConfig::on(&Device::Cpu);
    let load = |path: &Path| Model::load(path, &cpu).map(|_| ());
    let model = small_model();
    let clt = |name: &str| Clt::load(folder.join(name), &CltLoadConfig::on(&Device::Cpu)).map(|_| ());
    let own = crate::clt::random_clt(Activation::TopK { k: 2 }, 3, 32, 16, 1);
    let copy = |name: &str, change: &dyn Fn(&Path)| {
        let to = folder.join(name);
        crate::support::copy_all(&fixture("attribution/gpt2/model"), &to);
        change(&to);
        to
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let cut = copy("cut", &|to| std::fs::File::options().write(true).open(to.join("model.safetensors")).unwrap().set_len(5000).unwrap());
    let lfs = copy("lfs", &|to| std::fs::write(to.join("model.safetensors"), pointer).unwrap());
    let unknown = copy("unknown", &|to| std::fs::write(to.join("config.json"), r#"{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}"#).unwrap());
    let broken = copy("broken", &|to| std::fs::write(to.join("config.json"), "{\"n_embd\": }").unwrap());
    let config = |change: TrainConfig| change.validate();
    let text = |bytes: &[u8], name: &str| Corpus::load(at(name, bytes), &Default::default()).map(|_| ());
    let activations = crate::forged::tiny();
    std::fs::create_dir(folder.join("empty")).unwrap();
    let library: Vec<(&str, Result<()>)> = vec![
        ("a model that is not there", load(Path::new("./nowhere/model"))),
        ("a file of another kind", load(&at("a.onnx", b"x"))),
        ("a folder without a model", load(&folder.join("empty"))),
        ("weights cut off", load(&cut)),
        ("a Git LFS pointer", load(&lfs)),
        ("an architecture that is not known", load(&unknown)),
        ("a configuration that is no JSON", load(&broken)),
        ("no GGUF", load(&at("a.gguf", b"GGML0000"))),
        ("an empty prompt", model.run("", &Capture::default()).map(|_| ())),
        ("a token beyond the vocabulary", model.run([1, 99_999], &Capture::default()).map(|_| ())),
        ("a CLT's folder that is not there", clt("nowhere")),
        ("a folder without a CLT", clt("empty")),
        ("a layer that is not there", own.encoder_bias(7).map(|_| ())),
        ("a feature that is not there", own.decoder_rows(0, &[16]).map(|_| ())),
        ("a CLT of another shape", Replacement::new(&model, &crate::clt::random_clt(Activation::Relu, 2, 8, 16, 1)).map(|_| ())),
        ("a name of a feature", "3-5".parse::<FeatureId>().map(|_| ())),
        ("a learning rate of 0", config(TrainConfig { lr: 0.0, ..Default::default() })),
        ("too many steps", config(TrainConfig { steps: usize::MAX, ..Default::default() })),
        ("a share above 1", config(TrainConfig { warmup: 1.5, ..Default::default() })),
        ("checkpoints without a folder", config(TrainConfig { checkpoint_every: 5, ..Default::default() })),
        ("a k of 0", CltConfig { layers: 1, width: 2, features: 4, activation: Activation::TopK { k: 0 }, ..Default::default() }.validate()),
        ("a CLT for other activations", Trainer::new(&activations, own.config(), &Default::default()).map(|_| ())),
        ("no checkpoint", Trainer::resume(folder.join("empty"), &activations).map(|_| ())),
        ("activations of other lengths", Activations::from_memory(vec![vec![0.0; 4]], vec![vec![0.0; 3]], 2).map(|_| ())),
        ("a text that is a picture", text(b"\x89PNG\r\n\x1a\n0000", "a.txt")),
        ("half a pair in UTF-16", text(b"\xff\xfea\0\0\xd8b\0", "b.txt")),
        ("JSON lines that are none", text(b"{\"text\": \"a\"}\n{\"text\": 7}\n", "a.jsonl")),
        ("a file in a folder's place", clt("a.txt")),
        ("a folder in a file's place", cltlab::internal::files::read(folder.join("empty")).map(|_| ())),
        ("a graph's ending", graph().save(folder.join("graph.txt"), &Default::default())),
    ];
    let mut found = String::new();
    for (what, result) in library {
        let error = result.err().unwrap_or_else(|| panic!("{what}: no error"));
        writeln!(found, "# {what}\n{error}\n").unwrap();
    }
    let train = recipe("snapshots-recipe", "");
    let source = small_folder();
    let source = source.to_str().unwrap();
    for (what, arguments) in [
        ("a key that is not known", vec!["train", "RECIPE", "--set", "train.stepps=3"]),
        ("a table that is not known", vec!["train", "RECIPE", "--set", "trian.steps=3"]),
        ("a value of another type", vec!["train", "RECIPE", "--set", "train.steps=\"many\""]),
        ("a recipe that is not there", vec!["train", "nowhere.toml"]),
        ("a model and no prompt", vec!["run", "--model", source]),
        ("an option that is not known", vec!["run", "--model", source, "--promt", "a"]),
        ("a temperature below 0", vec!["generate", "--model", source, "--prompt", "a", "--temperature", "-1"]),
        ("a format that is not known", vec!["clt", "convert", "a", "b", "--format", "pickle"]),
    ] {
        let file = train.join("train.toml");
        let arguments: Vec<&str> = arguments.into_iter().map(|word| if word == "RECIPE" { file.to_str().unwrap() } else { word }).collect();
        let output = cltlab(&arguments);
        assert!(!output.status.success(), "{what}: no error");
        writeln!(found, "# {what}\n{}\n", said(&output).trim_end()).unwrap();
    }
    assert_kept(&[compared("errors.txt", &plain(&found, &[(&folder, "FOLDER"), (&train, "RECIPE")]))]);
}
