//! `cltlab train` and `cltlab eval`: the library's training from one file, and what is refused.

use crate::support::{scratch, small_folder, words};
use crate::training::planted;
use candle_core::{Device, Tensor};
use cltlab::candle as candle_core;
use cltlab::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const WIDTH: usize = 32;

pub fn cltlab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cltlab")).args(arguments).output().unwrap()
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with planted activations and `train.toml`, which writes to `run`.
pub fn recipe(name: &str, more: &str) -> PathBuf {
    let folder = scratch(name);
    let (x, y) = planted(300, 1);
    let mut tensors = HashMap::new();
    for (side, layers) in [("input", &x), ("target", &y)] {
        for (l, values) in layers.iter().enumerate() {
            tensors.insert(format!("{side}.{l}"), Tensor::from_slice(values, (300, WIDTH), &Device::Cpu).unwrap());
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("activations.safetensors")).unwrap();
    let text = format!(
        "[activations]\nfile = \"activations.safetensors\"\n[clt]\nfeatures = 64\nactivation = {{ top_k = {{ k = 4 }} }}\n[train]\nsteps = 12\nbatch_tokens = 100\n{more}\n[output]\nfolder = \"run\"\n"
    );
    std::fs::write(folder.join("train.toml"), text).unwrap();
    folder
}

fn run(folder: &Path, more: &[&str]) -> Output {
    let file = folder.join("train.toml");
    cltlab(&[&["train", file.to_str().unwrap()], more].concat())
}

pub fn lines(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn decoder(clt: &Clt) -> Vec<f32> {
    (0..clt.layers()).flat_map(|l| clt.decoder(l).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[test]
fn the_program_trains_as_the_library_does() {
    let folder = recipe("train-command", "lr = 0.0012345678901234567");
    let output = run(&folder, &["--set", "train.seed=7"]);
    assert!(output.status.success(), "{}", said(&output));
    let activations = Activations::load(folder.join("activations.safetensors"), &Default::default()).unwrap();
    let shape = CltConfig { layers: 2, width: WIDTH, features: 64, activation: Activation::TopK { k: 4 }, ..CltConfig::default() };
    let config = TrainConfig { steps: 12, batch_tokens: 100, lr: 0.0012345678901234567, seed: 7, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations, &shape, &config).unwrap();
    let history = trainer.run().unwrap();
    let clt = Clt::load(folder.join("run/clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    assert!(decoder(&clt) == decoder(&trainer.clt().unwrap()), "other weights than the library's");
    let lines = lines(&folder);
    assert_eq!(lines.len(), 12);
    for (line, sample) in lines.iter().zip(&history.samples) {
        assert_eq!(line["step"], sample.step);
        assert!((line["reconstruction"].as_f64().unwrap() / sample.reconstruction - 1.0).abs() < 1e-12);
    }
    let report: serde_json::Value = cltlab::internal::files::read_json(folder.join("run/report.json")).unwrap();
    assert_eq!((report["stopped"].as_bool(), report["steps"].as_u64()), (Some(false), Some(12)));
    // A second run into the same folder would mix two trainings.
    let again = run(&folder, &[]);
    assert!(!again.status.success() && said(&again).contains("--resume"), "{}", said(&again));
    // More steps go on from the last checkpoint; another rate is another training.
    let more = run(&folder, &["--resume", "--set", "train.steps=15", "--set", "train.seed=7"]);
    assert!(more.status.success(), "{}", said(&more));
    assert_eq!(self::lines(&folder).iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=15).collect::<Vec<_>>());
    let other = run(&folder, &["--resume", "--set", "train.lr=1"]);
    assert!(!other.status.success() && said(&other).contains("TrainConfig::lr") && said(&other).contains("checkpoint"), "{}", said(&other));
}

/// From a given CLT, in raw units: the first step's loss is that of this CLT, summed by hand.
#[test]
fn training_begins_with_a_given_clt() {
    let folder = recipe("train-init", "");
    assert!(run(&folder, &[]).status.success());
    let clt = Clt::load(folder.join("run/clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    let (x, y) = planted(300, 1);
    let tensor = |v: &Vec<f32>| Tensor::from_slice(v, (300, WIDTH), &Device::Cpu).unwrap();
    let code = cltlab::clt::SparseCode { layers: x.iter().enumerate().map(|(l, x)| clt.encode_layer(l, &tensor(x)).unwrap()).collect() };
    let decoded = clt.decode(&code, &[]).unwrap();
    let loss: f64 = decoded
        .iter()
        .zip(&y)
        .map(|(decoded, y)| {
            let decoded = decoded.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            decoded.iter().zip(y).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / 300.0
        })
        .sum();
    for normalise in ["false", "true"] {
        let normalised = format!("train.normalise={normalise}");
        let out = format!("output.folder={}", folder.join(normalise).display());
        let output = run(&folder, &["--set", "clt.init=none-here", "--set", &out]);
        assert!(!output.status.success() && said(&output).contains("none-here"), "{}", said(&output));
        let init = format!("clt.init={}", folder.join("run/clt").display());
        let output = run(&folder, &["--set", &init, "--set", &normalised, "--set", "train.batch_tokens=300", "--set", "train.steps=3", "--set", &out]);
        assert!(output.status.success(), "{}", said(&output));
        let text = std::fs::read_to_string(folder.join(normalise).join("metrics.jsonl")).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let fvu: f64 = first["fvu"].as_f64().unwrap();
        if normalise == "false" {
            let got = first["reconstruction"].as_f64().unwrap();
            println!("first step: {got}, by hand {loss}");
            assert!((got / loss - 1.0).abs() < 1e-5, "{got} against {loss}");
            continue;
        }
        // In normalised units the loss is another number; the fraction of variance is the same.
        let raw = std::fs::read_to_string(folder.join("false/metrics.jsonl")).unwrap();
        let raw: serde_json::Value = serde_json::from_str(raw.lines().next().unwrap()).unwrap();
        assert!((raw["fvu"].as_f64().unwrap() / fvu - 1.0).abs() < 1e-5, "{} against {fvu}", raw["fvu"]);
    }
}

#[test]
fn files_that_cannot_be_followed() {
    let folder = recipe("train-refused", "");
    let refused = |more: &[&str], words: &[&str]| {
        let output = run(&folder, more);
        let text = said(&output);
        assert!(!output.status.success() && !text.contains("panicked"), "{more:?}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{more:?}: '{text}' does not say '{word}'"));
        assert!(!folder.join("run").exists(), "{more:?} wrote something");
    };
    refused(&["--set", "train.stepps=3"], &["train.toml", "[train] stepps", "'steps'"]);
    refused(&["--set", "train.zzzzzzzzz=3"], &["[train] zzzzzzzzz", "known are", "batch_tokens"]);
    refused(&["--set", "trian.steps=3"], &["[trian]", "'train'"]);
    refused(&["--set", "train.steps=many"], &["[train] steps", "many"]);
    refused(&["--set", "train.steps=0"], &["TrainConfig::steps", "at least 1"]);
    refused(&["--set", "train.steps"], &["--set", "table.key=value"]);
    refused(&["--set", "clt.feature=3"], &["[clt] feature", "'features'"]);
    refused(&["--set", "clt.features=3"], &["Activation::k", "1 to 3"]);
    refused(&["--set", "clt.features=0"], &["CltConfig::features", "at least 1"]);
    refused(&["--set", "clt.activation=gelu"], &["[clt] activation", "gelu", "relu"]);
    refused(&["--set", "activations.file=nowhere.safetensors"], &["nowhere.safetensors", "no such file"]);
    refused(&["--set", "stream.contxt=8"], &["[stream] contxt", "'context'"]);
    refused(&["--set", "store.formt=int8"], &["[store] formt", "'format'"]);
    refused(&["--set", "store.format=int4"], &["[store] format", "int4", "int8"]);
    refused(&["--set", "store.format=int8"], &["[store]", "[activations] store"]);
    refused(&["--set", "activations.store=there"], &["[activations]", "a file and a store", "one of them"]);
    refused(&["--set", "text.sorce=a/b"], &["[text] sorce", "'source'"]);
    for (old, words) in [("text.file", "[text] source"), ("text.dataset", "[text] source"), ("text.held_out_file", "[text] held_out_source"), ("model.name", "[model] source"), ("clt.width", "[clt] features"), ("clt.layers", "the model's")] {
        refused(&["--set", &format!("{old}=3")], &["unknown key", words]);
    }
    refused(&["--set", "clt.features=100000000"], &["free", "fewer features"]);
    std::fs::write(folder.join("train.toml"), "[train]\nsteps = = 3\n").unwrap();
    refused(&[], &["train.toml", "line 2"]);
    std::fs::write(folder.join("train.toml"), "[train]\nsteps = 3\n").unwrap();
    refused(&[], &["[output] folder"]);
    std::fs::write(folder.join("train.toml"), "[output]\nfolder = \"run\"\n").unwrap();
    refused(&[], &["[model] source", "[activations] file"]);
    let bad: HashMap<String, Tensor> = [("input.0", (4, 3)), ("target.0", (4, 2))].map(|(name, shape)| (name.to_string(), Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap())).into();
    candle_core::safetensors::save(&bad, folder.join("bad.safetensors")).unwrap();
    refused(&["--set", &format!("activations.file={}", folder.join("bad.safetensors").display())], &["target.0", "[4, 2]", "[4, 3]"]);
    assert!(said(&cltlab(&["train", "/nowhere.toml"])).contains("/nowhere.toml"));
}

/// The way from a text file to a report, relative paths from the file's folder.
#[test]
fn a_model_and_a_text() {
    let folder = scratch("train-text");
    std::fs::write(folder.join("words.txt"), words(1500, 1)).unwrap();
    let text = format!(
        "[model]\nsource = {:?}\n[text]\nsource = \"words.txt\"\nheld_out = 0.2\n[stream]\ncontext = 32\nbuffer_tokens = 400\n[clt]\nfeatures = 32\nactivation = {{ batch_top_k = {{ k = 4 }} }}\n[train]\nsteps = 5\nbatch_tokens = 64\n[eval]\ntokens = 128\nfidelity_tokens = 64\n[output]\nfolder = \"run\"\n",
        small_folder().to_str().unwrap()
    );
    std::fs::write(folder.join("train.toml"), text).unwrap();
    let output = run(&folder, &[]);
    assert!(output.status.success(), "{}", said(&output));
    let report: serde_json::Value = cltlab::internal::files::read_json(folder.join("run/report.json")).unwrap();
    // Four contexts as long as the training's, without their first positions.
    assert_eq!(report["evaluation"]["tokens"], 124);
    let file = folder.join("train.toml");
    let report_file = folder.join("again.json");
    let output = cltlab(&["eval", file.to_str().unwrap(), "-o", report_file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let again: serde_json::Value = cltlab::internal::files::read_json(&report_file).unwrap();
    for field in ["kl", "cross_entropy", "tokens"] {
        let (a, b) = (report["evaluation"][field].as_f64().unwrap(), again[field].as_f64().unwrap());
        assert!((a - b).abs() < 1e-9, "{field}: {a} and {b}");
    }
    assert!(String::from_utf8_lossy(&output.stdout).contains("cross-entropy"));
}
