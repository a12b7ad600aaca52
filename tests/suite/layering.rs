//! The house's rule: a module imports only from modules above it in the walk.

use crate::support::root;
use std::path::{Path, PathBuf};

/// Import order is reading order is data flow.
const WALK: &[&str] = &[
    "error", "device", "files", "progress", "hub", "text", "model", "activations", "clt", "train", "replacement", "eval", "graph",
    "intervene", "features", "picture", "selftest", "notebook", "prelude", "guide",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn rank(module: &str) -> Option<usize> {
    WALK.iter().position(|name| *name == module)
}

/// Modules named after `crate::` in code lines, single or in braces.
fn imports(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        for rest in line.split("crate::").skip(1) {
            let list = rest.strip_prefix('{').map_or(rest, |inner| inner);
            let many = rest.starts_with('{');
            for part in list.split(',').take(if many { usize::MAX } else { 1 }) {
                let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                names.push(name);
            }
        }
    }
    names
}

#[test]
fn modules_import_only_from_above() {
    let base = root().join("crate/src");
    let mut files = Vec::new();
    sources(&base, &mut files);
    let mut checked = 0;
    for file in files {
        let inside = file.strip_prefix(&base).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_string();
        if module == "lib" {
            continue;
        }
        let own = rank(&module).unwrap_or_else(|| panic!("{}: module {module} has no place in the walk", inside.display()));
        for name in imports(&std::fs::read_to_string(&file).unwrap()) {
            if let Some(other) = rank(&name) {
                assert!(other <= own, "{}: {module} imports {name}, which comes later in the walk", inside.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} imports were found: the reader of imports is broken");
}

#[test]
fn files_are_read_in_one_sitting() {
    let mut files = Vec::new();
    for folder in ["crate/src", "cli/src", "kernel/src", "tests/suite"] {
        sources(&root().join(folder), &mut files);
    }
    for file in files {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 400, "{}: {lines} lines, at most 400", file.display());
    }
}
