//! The house's rule: a module imports only from modules above it in the walk.

use crate::support::root;
use std::path::{Path, PathBuf};

/// Import order is reading order is data flow.
const WALK: &[&str] = &[
    "error", "environment", "device", "files", "included", "progress", "hub", "text", "model", "activations", "clt", "train", "replacement", "eval", "graph",
    "intervene", "states", "features", "picture", "selftest", "notebook", "prelude", "guide",
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

/// Each part of the project has one file that reads the environment.
#[test]
fn one_file_reads_the_environment() {
    let reads = ["env::var", "env::vars", "env::set_var", "env::remove_var", "env::home_dir", "env::temp_dir", "use std::env", "getenv"];
    for (folder, own) in [("crate/src", "crate/src/environment.rs"), ("cli/src", "cli/src/environment.rs"), ("kernel/src", "kernel/src/environment.rs")] {
        let mut files = Vec::new();
        sources(&root().join(folder), &mut files);
        let mut found = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let count = text.lines().filter(|line| !line.trim_start().starts_with("//") && reads.iter().any(|read| line.contains(read))).count();
            let is_own = file == root().join(own);
            assert!(is_own || count == 0, "{}: reads the environment {count} times; {own} is the place", file.display());
            found += count;
        }
        assert!(found > 0, "{folder}: {own} reads nothing: the reader of sources is broken");
    }
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

/// The version that a manifest gives its package.
fn version(manifest: &str) -> String {
    let text = std::fs::read_to_string(root().join(manifest)).unwrap();
    let line = text.lines().find(|line| line.starts_with("version = ")).unwrap_or_else(|| panic!("{manifest} has no version"));
    line.split('"').nth(1).unwrap().to_string()
}

#[test]
fn all_packages_have_one_version_and_the_library_of_cells_is_named_by_it() {
    let library = version("Cargo.toml");
    for manifest in ["cli/Cargo.toml", "kernel/Cargo.toml", "kernel/cells/Cargo.toml"] {
        assert_eq!(version(manifest), library, "{manifest}");
    }
    let cells = std::fs::read_to_string(root().join("kernel/cells/Cargo.toml")).unwrap();
    let name = format!("name = \"cltlab_{}\"", library.replace('.', "_"));
    assert!(cells.contains(&name), "kernel/cells/Cargo.toml has no {name}");
}
