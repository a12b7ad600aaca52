//! What a recipe may say, in the user's words: the example, short forms, wrong values, missing keys.

use crate::support::{fixture, scratch};
use crate::train_command::{cltlab, recipe, said};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Output;

fn train(folder: &Path, more: &[&str]) -> Output {
    cltlab(&[&["train", folder.join("train.toml").to_str().unwrap()], more].concat())
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let text = said(output);
    assert!(output.status.code() == Some(1), "{words:?}: {:?} {text}", output.status);
    words.iter().for_each(|word| assert!(text.contains(word), "'{text}' does not say '{word}'"));
    // serde's words.
    for word in ["invalid type", "invalid value", "unit variant", "struct variant", "expected usize", "expected u64", "expected f64", "unknown variant", "missing field"] {
        assert!(!text.contains(word), "'{text}' says '{word}'");
    }
}

fn example() -> String {
    let output = cltlab(&["train", "--example"]);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Table and line of each key of the example, marked as a remark or not.
fn entries(text: &str) -> Vec<(String, String, String)> {
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = bare.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = name.to_string();
        } else if let Some((key, _)) = bare.split_once(" = ").filter(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())) {
            found.push((table.clone(), key.to_string(), bare.to_string()));
        }
    }
    found
}

/// The keys that the program knows in a table, as it lists them for one that it does not know.
fn known(folder: &Path, table: &str) -> BTreeSet<String> {
    let text = said(&train(folder, &["--set", &format!("{table}.zzzzzzzzzzzz=1")]));
    let list = text.split("known are ").nth(1).unwrap_or_else(|| panic!("{table}: {text}"));
    list.trim().split(", ").map(str::to_string).collect()
}

#[test]
fn the_example_holds_every_key() {
    let folder = recipe("example-keys", "");
    let mut by_table: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (table, key, _) in entries(&example()).into_iter().filter(|(table, ..)| !table.is_empty()) {
        assert!(by_table.entry(table.clone()).or_default().insert(key.clone()), "[{table}] {key} twice");
    }
    for table in ["model", "text", "activations", "store", "stream", "clt", "train", "eval", "output"] {
        assert_eq!(by_table.get(table), Some(&known(&folder, table)), "[{table}]");
    }
    assert_eq!(by_table.len(), 9);
}

/// Each key that stands in a remark is taken as its line says, alone.
#[test]
fn every_line_of_the_example_parses() {
    let folder = recipe("example-lines", "");
    let whole = example();
    // The plan needs neither text nor model to refuse a key.
    for (table, key, line) in entries(&whole).into_iter().filter(|(table, ..)| !table.is_empty()) {
        let text = format!("[activations]\nfile = \"activations.safetensors\"\n[output]\nfolder = \"run\"\n");
        let more = match (table.as_str(), key.as_str()) {
            // What they belong to, or what they take the place of.
            ("activations" | "output", _) | ("model", "source") => continue,
            ("clt", "threshold" | "bandwidth") => "[clt]\nactivation = \"jump_relu\"\nthreshold = 0.03\nbandwidth = 1.0\n".to_string(),
            ("clt", "activation" | "k") => "[clt]\nactivation = \"batch_top_k\"\nk = 32\n".to_string(),
            ("clt", "init" | "model_fingerprint" | "features") => continue,
            ("store", _) => continue,
            ("train", "target_l0") => format!("[clt]\nactivation = \"relu\"\n[train]\n{line}\n"),
            _ => format!("[{table}]\n{line}\n"),
        };
        std::fs::write(folder.join("train.toml"), text + &more).unwrap();
        let output = train(&folder, &["--dry-run"]);
        assert!(output.status.success(), "[{table}] {line}: {}", said(&output));
    }
}

#[test]
fn the_example_trains() {
    let folder = scratch("example-trains");
    std::fs::write(folder.join("train.toml"), example()).unwrap();
    let output = train(&folder, &["--set", "stream.max_tokens=4000", "--set", "clt.features=32", "--set", "clt.k=4", "--set", "train.steps=3", "--set", "train.batch_tokens=64", "--set", "train.eval_every=2", "--set", "stream.context=16", "--set", "eval.tokens=64", "--set", "eval.fidelity_tokens=0"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(folder.join("runs/first/clt/config.yaml").exists());
}

#[test]
fn an_activation_in_its_short_form_is_the_long_one() {
    let folder = recipe("short-forms", "");
    let file = folder.join("train.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let with = |lines: &str| std::fs::write(&file, text.replace("activation = { top_k = { k = 4 } }", lines)).unwrap();
    let weights = |name: &str, more: &[&str]| {
        let output = train(&folder, &[&["--set", &format!("output.folder={}", folder.join(name).display())], more].concat());
        assert!(output.status.success(), "{name} {more:?}: {}", said(&output));
        std::fs::read(folder.join(name).join("clt/W_enc_0.safetensors")).unwrap()
    };
    let long = weights("long", &[]);
    let other = weights("other", &["--set", "clt.activation={top_k={k=2}}"]);
    assert!(long != other, "k makes no difference");
    with("activation = \"top_k\"\nk = 4");
    assert!(weights("short", &[]) == long);
    assert!(weights("short-k", &["--set", "clt.k=2"]) == other);
    assert!(weights("short-set", &["--set", "clt.activation=top_k", "--set", "clt.k=2"]) == other);
    assert!(weights("long-set", &["--set", "clt.activation={top_k={k=2}}"]) == other);
    // A run goes on from the recipe that it wrote.
    let again = cltlab(&["train", folder.join("short/config.toml").to_str().unwrap(), "--resume", "--set", "train.steps=13"]);
    assert!(again.status.success(), "{}", said(&again));
    with("activation = { top_k = { k = 4 } }");
    assert!(weights("long-k", &["--set", "clt.k=2"]) == other);
    // Other activations drop what is not theirs.
    with("activation = \"top_k\"\nk = 4");
    weights("relu", &["--set", "clt.activation=relu"]);
    weights("jump", &["--set", "clt.activation=jump_relu", "--set", "clt.threshold=0.03", "--set", "clt.bandwidth=1"]);
    with("k = 4");
    weights("usual", &[]);
}

#[test]
fn activations_that_cannot_be_are_refused_in_plain_words() {
    let folder = recipe("bad-activations", "");
    let file = folder.join("train.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    for (lines, words) in [
        ("activation = \"batch_top_k\"", &["batch_top_k needs a k", "activation = { batch_top_k = { k = 32 } }", "k = 32"][..]),
        ("activation = { batch_top_k = 8 }", &["batch_top_k", "{ batch_top_k = { k = 32 } }"]),
        ("activation = { relu = { } }", &["relu", "activation = \"relu\""]),
        ("activation = \"batch_topk\"", &["batch_topk", "did you mean \"batch_top_k\"?"]),
        ("activation = 8", &["got 8", "relu, jump_relu"]),
        ("activation = { top_k = { k = 4 } }\nk = 4", &["k: is given beside", "give one of them"]),
        ("activation = { top_k = { k = 4, threshold = 1.0 } }", &["threshold", "top_k takes k"]),
        ("activation = \"relu\"\nk = 4", &["k: relu takes nothing"]),
        ("activation = \"top_k\"\nk = -4", &["k: got -4", "whole number"]),
        ("activation = \"top_k\"\nk = 4.5", &["k: got 4.5", "whole number"]),
        ("activation = \"top_k\"\nk = \"four\"", &["k: got \"four\"", "whole number"]),
        ("activation = \"jump_relu\"\nthreshold = 0.1", &["jump_relu needs bandwidth"]),
        ("activation = { top_k = { k = 4 }, relu = { } }", &["2 keys", "one name"]),
    ] {
        std::fs::write(&file, text.replace("activation = { top_k = { k = 4 } }", lines)).unwrap();
        refused(&train(&folder, &[]), &[&["[clt]"], words].concat());
    }
    std::fs::write(&file, text).unwrap();
    for sets in [&["clt.activation={top_k={k=2}}", "clt.k=3"][..], &["clt.k=3", "clt.activation={top_k={k=2}}"]] {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        refused(&train(&folder, &sets), &["clt.k", "give one of them"]);
    }
}

/// A value of each wrong type for each key: the error names the key, the value and what it takes.
#[test]
fn wrong_types_are_refused_in_plain_words() {
    let folder = recipe("wrong-types", "");
    let (mut tried, mut refusals) = (0, 0);
    for (table, key, line) in entries(&example()).into_iter().filter(|(table, ..)| !table.is_empty()) {
        // Another name is asked for at the hub.
        if table == "store" || key == "source" || key == "init" || (table.as_str(), key.as_str()) == ("clt", "activation") {
            continue;
        }
        for value in ["\"zebra\"", "-1", "1.5", "true", "[\"a\"]", "{ a = 1 }", "1979-05-27"] {
            tried += 1;
            let output = train(&folder, &["--dry-run", "--set", &format!("{table}.{key}={value}")]);
            let text = said(&output);
            if output.status.success() {
                continue;
            }
            refusals += 1;
            assert!(text.contains(&key) && !text.contains("panicked"), "{table}.{key}={value}: {text}");
            refused(&output, &[]);
            if text.contains("got") && text.contains("for instance") {
                assert!(text.contains(line.split(" #").next().unwrap().trim()), "{table}.{key}={value}: {text}");
            }
        }
    }
    assert!(refusals > tried / 2, "{refusals} of {tried} were refused");
    for (set, words) in [
        ("train.lr=fast", &["[train] lr", "\"fast\"", "expected a number", "for instance lr = 1e-3"][..]),
        ("train.steps=1.5", &["[train] steps", "1.5", "a whole number of 0 or more"]),
        ("train.lazy=1", &["[train] lazy", "true or false"]),
        ("train.betas=[0.9]", &["[train] betas", "a list of 2"]),
        ("train.matryoshka=8", &["[train] matryoshka", "a list", "whole number"]),
        ("train.loss=mse", &["[train] loss", "\"mse\"", "\"squared_error\" or \"fvu\""]),
        ("train.clip=[]", &["[train] clip", "a number, or \"none\""]),
        ("model.source=5", &["[model] source", "a text in quotes"]),
        ("clt.width=48", &["[clt] width", "features per layer are [clt] features"]),
    ] {
        refused(&train(&folder, &["--set", set]), words);
    }
}

#[test]
fn what_is_missing_is_named_with_the_example_s_line() {
    let folder = scratch("missing-keys");
    let file = folder.join("train.toml");
    for (text, words) in [
        ("[model]\nsource = \"x\"\n", &["[output] folder is missing", "add a table [output] with: folder = \"runs/first\"", "--example"][..]),
        ("[output]\ndtype = \"f32\"\n", &["[output] folder is missing", "add to [output]: folder = \"runs/first\""]),
        ("[output]\nfolder = \"run\"\n[text]\nsource = \"train.toml\"\n", &["[model] source is missing", "source = \"states\""]),
        ("[output]\nfolder = \"run\"\n[model]\ndtype = \"f32\"\n", &["[model] source is missing", "add to [model]: source = \"states\""]),
    ] {
        std::fs::write(&file, text).unwrap();
        refused(&train(&folder, &[]), words);
        assert!(!folder.join("run").exists(), "{text}: a folder was made");
    }
    let model = fixture("attribution/gpt2/model");
    std::fs::write(&file, format!("[output]\nfolder = \"run\"\n[model]\nsource = {:?}\n", model.display().to_string())).unwrap();
    refused(&train(&folder, &[]), &["[text] source is missing", "source = \"states\""]);
    assert_eq!(cltlab(&["train"]).status.code(), Some(2));
}
