//! What the documents say is there: files that they name, and commands with their options.

use crate::support::root;
use crate::train_command::{cltlab, said};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn texts(folder: &Path, endings: &[&str], deep: bool, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && deep {
            texts(&path, endings, true, found);
        } else if path.is_file() && endings.iter().any(|ending| path.extension().is_some_and(|end| end == *ending)) {
            found.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Paths from the project's root that a text names.
fn paths(text: &str) -> BTreeSet<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || "_./-*{}".contains(c);
    let words = text.split(|c: char| !part(c)).map(|word| word.trim_end_matches(['.', '-']));
    let inside = |word: &&str| ["crate/", "cli/", "kernel/", "tests/", "benches/", "notebooks/", "binder/", "models/"].iter().any(|folder| word.starts_with(folder));
    words.filter(inside).filter(|word| !word.contains(['*', '{', '}'])).collect()
}

#[test]
fn files_that_documents_name_are_there() {
    let mut all = Vec::new();
    texts(root(), &["md"], false, &mut all);
    texts(&root().join("notebooks"), &["ipynb"], false, &mut all);
    for folder in ["crate/src", "cli/src", "kernel/src"] {
        texts(&root().join(folder), &["rs"], true, &mut all);
    }
    let mut named = 0;
    for (file, text) in &all {
        for path in paths(text) {
            assert!(root().join(path).exists(), "{} names {path}, which is not there", file.display());
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
    let notebooks: Vec<&(PathBuf, String)> = all.iter().filter(|(file, _)| file.extension().is_some_and(|end| end == "ipynb")).collect();
    assert!(notebooks.len() > 1 || !notebooks[0].1.contains("other notebooks"), "there is one notebook");
    assert_eq!(paths("see `tests/suite/a.rs`, crate/src/b.rs. and x/y; tests/*.py").into_iter().collect::<Vec<_>>(), ["crate/src/b.rs", "tests/suite/a.rs"]);
}

/// A command line of README.md or of a notebook's text: options that the command has.
#[test]
fn commands_that_documents_name_have_their_options() {
    let mut all = Vec::new();
    texts(root(), &["md"], false, &mut all);
    texts(&root().join("notebooks"), &["ipynb"], false, &mut all);
    let mut tried = 0;
    for (file, text) in all.iter().filter(|(file, _)| !file.ends_with("LOG.md")) {
        for line in text.split(['\n', '`']).filter_map(|line| line.split("cltlab ").nth(1).filter(|_| line.trim_start_matches([' ', '"', '$']).starts_with("cltlab "))) {
            let line = line.split("\\n").next().unwrap_or(line);
            let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_end_matches([',', '"', '\\'])).collect();
            let verbs: Vec<&str> = words.iter().take_while(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')).copied().collect();
            // Words behind the last command are values.
            let Some(help) = (1..=verbs.len().min(2)).rev().map(|count| cltlab(&[&verbs[..count], &["--help"]].concat())).find(|output| output.status.success()) else {
                assert!(verbs.is_empty(), "{}: '{line}': no such command: {}", file.display(), said(&cltlab(&[verbs[0], "--help"])));
                continue;
            };
            let help = String::from_utf8(help.stdout).unwrap();
            for option in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let name = option.split(['=', ']']).next().unwrap_or(option);
                assert!(help.contains(&format!("{name} ")) || help.contains(&format!("{name}\n")) || help.contains(&format!("{name},")), "{}: '{line}' has {name}, which its help does not", file.display());
            }
            tried += 1;
        }
    }
    assert!(tried > 10, "{tried}");
}

/// `clt encode` counts, as README.md says, and writes the activations only with `--raw`.
#[test]
fn encode_prints_a_count() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let row = readme.lines().find(|line| line.contains("`encode`")).unwrap();
    assert!(row.contains("counts the active features") && row.contains("writes their activations"), "{row}");
    let (model, clt) = (crate::support::fixture("attribution/gpt2/model"), crate::support::fixture("attribution/gpt2/clt"));
    let raw = crate::support::scratch("docs-encode").join("a.safetensors");
    let arguments = ["clt", "encode", clt.to_str().unwrap(), "--model", model.to_str().unwrap(), "--tokens", "1,2,3,4"];
    let output = cltlab(&[&arguments[..], &["--raw", raw.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let written = crate::support::tensors(&raw);
    let layers: Vec<Vec<f32>> = written.iter().filter(|(name, _)| name.starts_with("a.")).map(|(_, tensor)| crate::support::values(tensor)).collect();
    let active = layers.iter().flatten().filter(|value| **value != 0.0).count();
    let mean = active as f64 / (layers.len() * written["a.0"].dims()[0]) as f64;
    assert!(active > 0 && text.contains(&format!("{mean:.1} active features a token and layer")), "{active} active, but: {text}");
}
