//! No test is skipped in silence: what the harness ignores is listed in `tests/skips.txt` with its reason, and no test
//! returns before its end.

use crate::support::root;
use std::collections::BTreeMap;

/// The source of each module of the suite.
fn modules() -> Vec<(String, String)> {
    let files = std::fs::read_dir(root().join("tests/suite")).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Names of the tests that this binary has, or only of those that it ignores.
fn names(more: &[&str]) -> Vec<String> {
    let output = std::process::Command::new(std::env::current_exe().unwrap()).args(["--list", "--format", "terse"]).args(more).output().unwrap();
    assert!(output.status.success());
    let mut names: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_string())).collect();
    names.sort();
    names
}

#[test]
fn ignored_tests_are_listed_with_their_reasons() {
    let text = std::fs::read_to_string(root().join("tests/skips.txt")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let listed: BTreeMap<String, String> = lines.iter().map(|line| line.split_once(": ").unwrap_or((line, ""))).map(|(name, reason)| (name.into(), reason.into())).collect();
    let mut reasons = BTreeMap::new();
    for (module, source) in modules() {
        for part in source.split("#[ignore = \"").skip(1) {
            // Not where it is named in a comment or a text.
            if let Some((reason, rest)) = part.split_once("\"]\nfn ").filter(|(reason, _)| !reason.contains('"')) {
                reasons.insert(format!("{module}::{}", rest.split('(').next().unwrap()), reason.to_string());
            }
        }
    }
    assert_eq!(listed.keys().collect::<Vec<_>>(), names(&["--ignored"]).iter().collect::<Vec<_>>(), "tests/skips.txt lists other tests than those that are ignored");
    assert_eq!(listed, reasons, "tests/skips.txt gives other reasons than the attributes");
}

#[test]
fn no_test_returns_before_its_end() {
    let mut tests = 0;
    for (module, source) in modules() {
        let parts: Vec<&str> = source.split("\n#[test]\n").collect();
        for (before, part) in parts.iter().zip(&parts[1..]) {
            let body = part.split("\n}\n").next().unwrap();
            let name = body.split_once("fn ").map_or("", |(_, rest)| rest.split('(').next().unwrap());
            let early = body.match_indices("return").any(|(at, word)| body[at + word.len()..].trim_start().starts_with([';', '}']));
            assert!(!early, "{module}::{name} returns before its end: a test that needs what may be absent is #[ignore = \"needs ...\"] and stands in tests/skips.txt");
            // Those of a feature are not in this binary.
            tests += usize::from(!before.lines().last().is_some_and(|line| line.starts_with("#[cfg(")));
        }
    }
    assert_eq!(tests, names(&[]).len(), "the reader of tests finds others than the harness has");
}
