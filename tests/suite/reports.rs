//! `cltlab compare reports`: evaluations of several CLTs as one table.

use crate::support::scratch;
use crate::train_command::{cltlab, said};
use cltlab::eval::{LayerReport, Report};
use std::path::Path;

fn report(fvu: [f64; 2], l0: f64, measured: usize, kl: f64) -> Report {
    let layers = fvu.map(|fvu| LayerReport { fvu, l0, dead: 0.25 }).to_vec();
    Report { layers, tokens: 1000, fidelity_tokens: measured, cross_entropy: 3.0, replacement_cross_entropy: 3.5, zero_ablation_ce: 8.0, kl, top1: 0.75 }
}

fn table(folder: &Path, more: &[&str]) -> String {
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let output = cltlab(&[&["compare", "reports", &at("wide.json"), &at("run"), &at("bare.json")], more].concat());
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn order(text: &str) -> Vec<usize> {
    let line = |name: &str| text.lines().position(|line| line.contains(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    let mut names = [(line("wide.json"), 0), (line("/run"), 1), (line("bare.json"), 2)];
    names.sort();
    names.map(|(_, which)| which).to_vec()
}

#[test]
fn reports_are_one_sorted_table() {
    let folder = scratch("reports");
    std::fs::create_dir(folder.join("run")).unwrap();
    report([0.30, 0.50], 20.0, 500, 0.125).save(folder.join("wide.json")).unwrap();
    report([0.10, 0.20], 40.0, 0, 0.0).save(folder.join("bare.json")).unwrap();
    // As a training writes it.
    let inner = serde_json::to_value(report([0.20, 0.30], 30.0, 500, 0.5)).unwrap();
    std::fs::write(folder.join("run/report.json"), serde_json::json!({"stopped": false, "steps": 9, "evaluation": inner}).to_string()).unwrap();
    let text = table(&folder, &[]);
    assert_eq!(order(&text), [2, 1, 0], "{text}");
    let line = text.lines().find(|line| line.contains("/run")).unwrap();
    let figures: Vec<&str> = line.split_whitespace().skip(1).collect();
    // (8 - 3.5) / (8 - 3) of the loss is kept.
    assert_eq!(figures, ["0.250", "30.0", "25.0", "90.0", "0.500", "75.0", "1000"]);
    assert!(text.lines().find(|line| line.contains("bare")).unwrap().matches('–').count() == 3);
    for (column, wanted) in [("l0", [0, 1, 2]), ("kl", [0, 1, 2]), ("given", [0, 1, 2])] {
        assert_eq!(order(&table(&folder, &["--sort", column])), wanted, "{column}");
    }
    let rows: serde_json::Value = serde_json::from_str(&table(&folder, &["--json"])).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 3);
    assert!(rows[0]["kl"].is_null() && rows[1]["kl"] == 0.5 && rows[1]["report"]["layers"][1]["fvu"] == 0.3, "{rows}");
    assert!((rows[2]["fvu"].as_f64().unwrap() - 0.4).abs() < 1e-12 && rows[2]["loss_recovered"] == 0.9, "{rows}");
}

#[test]
fn what_is_no_report_is_refused() {
    let folder = scratch("reports-refused");
    let file = folder.join("r.json");
    for (text, words) in [
        ("{\"evaluation\": null}", &["no evaluation", "cltlab eval"][..]),
        ("{\"layers\": []}", &["not a report"]),
        ("[]", &["list", "object"]),
        ("{\"layers\": [], \"tokens\": 1, \"fidelity_tokens\": 0, \"cross_entropy\": 0, \"replacement_cross_entropy\": 0, \"zero_ablation_ce\": 0, \"kl\": 0, \"top1\": 0}", &["layers", "none"]),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = cltlab(&["compare", "reports", file.to_str().unwrap()]);
        let said = said(&output);
        assert!(output.status.code() == Some(1) && words.iter().all(|word| said.contains(word)) && said.contains("r.json"), "{text}: {said}");
    }
    assert_eq!(cltlab(&["compare", "reports"]).status.code(), Some(2));
    // Without reports, prompts are compared as before.
    assert_eq!(cltlab(&["compare", "--model", "m"]).status.code(), Some(2));
}
