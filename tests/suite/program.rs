//! The program: `cltlab run` and `cltlab generate` as a shell calls them.

use crate::support::{self, assert_close, values};
use cltlab::candle as candle_core;
use cltlab::model::{GenerateConfig, LoadConfig};
use cltlab::Model;
use std::path::Path;
use std::process::{Command, Output};

fn cltlab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cltlab")).args(arguments).output().unwrap()
}

fn done(arguments: &[&str]) -> String {
    let output = cltlab(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn joined(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// `--raw` holds what transformers computed: every name, shape and value.
#[test]
fn run_writes_logits_and_mlp_sites() {
    for family in ["gpt2", "llama"] {
        let folder = support::fixture(&format!("parity/{family}"));
        let expected = support::tensors(&folder.join("expected.safetensors"));
        let prompt = expected["input_ids"].to_dtype(candle_core::DType::U32).unwrap().to_vec2::<u32>().unwrap()[0].clone();
        let raw = support::scratch(&format!("raw-{family}")).join("out.safetensors");
        let model = folder.to_string_lossy();
        let printed = done(&["run", "--model", &model, "--tokens", &joined(&prompt), "--top", "3", "--raw", &raw.to_string_lossy()]);
        let got = support::tensors(&raw);
        let wanted = |name: &str| expected[name].get(0).unwrap();
        let logits = values(&wanted("logits"));
        let tolerance = 2e-4 * logits.iter().fold(0.0_f32, |top, logit| top.max(logit.abs()));
        let layers = expected.keys().filter(|name| name.starts_with("mlp_in.")).count();
        let mut names = vec!["logits".to_string()];
        names.extend((0..layers).flat_map(|layer| ["mlp_norm_in", "mlp_in", "mlp_out"].map(|site| format!("{site}.{layer}"))));
        assert_eq!(got.len(), names.len(), "{:?}", got.keys());
        for name in &names {
            assert_eq!(got[name].dims(), wanted(name).dims(), "{family} {name}");
            assert_close(&format!("{family} {name}"), &values(&got[name]), &values(&wanted(name)), tolerance);
        }
        // The three lines are the likeliest ids, likeliest first.
        let last = &logits[logits.len() - logits.len() / prompt.len()..];
        let mut order: Vec<usize> = (0..last.len()).collect();
        order.sort_by(|a, b| last[*b].total_cmp(&last[*a]));
        let ids: Vec<usize> = printed.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
        assert_eq!(ids, order[..3], "{printed}");
    }
}

#[test]
fn generate_prints_and_writes_what_the_library_makes() {
    let folder = support::fixture("attribution/llama/model");
    let name = folder.to_string_lossy();
    let model = Model::load(&*name, &LoadConfig::on(&candle_core::Device::Cpu)).unwrap();
    let raw = support::scratch("generate").join("ids.json");
    let config = GenerateConfig { max_tokens: 9, temperature: 0.9, top_k: 20, top_p: 0.9, seed: 4, ..GenerateConfig::default() };
    let made = model.stream(&[5, 17, 3], &config, &mut |_| true).unwrap();
    let settings = ["--max-tokens", "9", "--temperature", "0.9", "--top-k", "20", "--top-p", "0.9", "--seed", "4"];
    let arguments: Vec<&str> = ["generate", "--model", &name, "--tokens", "5,17,3", "--raw"].into_iter().chain([raw.to_str().unwrap()]).chain(settings).collect();
    let printed = done(&arguments);
    let written: serde_json::Value = cltlab::internal::files::read_json(&raw).unwrap();
    assert_eq!(written["tokens"], serde_json::json!(made.tokens));
    assert_eq!(written["prompt"], serde_json::json!([5, 17, 3]));
    assert_eq!(written["text"], serde_json::json!(made.text));
    assert_eq!(printed, format!("{}\n", made.text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect::<String>()));
}

#[test]
fn arguments_that_do_not_fit() {
    let folder = support::fixture("attribution/llama/model");
    let name = folder.to_string_lossy();
    let refused = |arguments: &[&str], word: &str| {
        let output = cltlab(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(word), "{arguments:?}: {text}");
    };
    refused(&["run", "--model", &name], "--prompt");
    refused(&["run", "--model", &name, "--prompt", "a", "--tokens", "1"], "cannot be used with");
    refused(&["run", "--model", &name, "--tokens", "1,x"], "invalid");
    refused(&["run", "--model", &name, "--tokens", "1,999999"], "below the vocabulary");
    refused(&["generate", "--model", &name, "--tokens", "1", "--chat"], "--chat");
    refused(&["generate", "--model", &name, "--prompt", "a", "--chat"], "chat template");
    refused(&["generate", "--model", &name, "--tokens", "1", "--top-p", "2"], "top_p");
    let folder = Path::new("/nonexistent-folder/out.safetensors").to_string_lossy();
    refused(&["run", "--model", &name, "--tokens", "1", "--raw", &folder], "nonexistent-folder");
}
