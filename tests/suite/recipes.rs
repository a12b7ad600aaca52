//! What a recipe may not say, what a resumed run cannot take, two trainings in one folder, signals; and
//! rows at rest in what is exported.

use crate::checkpoints::{start, wait};
use crate::support::{says, scratch};
use crate::train_command::{cltlab, recipe, said};
use crate::training::planted;
use cltlab::candle::Device;
use cltlab::internal::files::lock::FolderLock;
use cltlab::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

fn train(folder: &Path, more: &[&str]) -> Output {
    cltlab(&[&["train", folder.join("train.toml").to_str().unwrap()], more].concat())
}

fn refused(output: &Output, words: &[&str]) {
    let text = said(output);
    assert!(output.status.code() == Some(1) && words.iter().all(|word| text.contains(word)), "{words:?}: {:?} {text}", output.status);
}

#[test]
fn a_resumed_run_refuses_what_it_cannot_take() {
    let folder = recipe("resume-keys", "");
    assert!(train(&folder, &[]).status.success());
    let config = || std::fs::read(folder.join("run/config.toml")).unwrap();
    let before = config();
    for (set, key) in [
        ("clt.features=32", "[clt] features"),
        ("clt.activation={top_k={k=2}}", "[clt] activation"),
        ("clt.skip=true", "[clt] skip"),
        ("clt.tied=\"per_source\"", "[clt] tied"),
        ("train.lr=0.5", "TrainConfig::lr"),
        ("train.eps=0.001", "TrainConfig::eps"),
        ("train.steps=3", "TrainConfig::steps"),
        ("stream.passes=7", "[stream] passes"),
        ("clt.init=run/clt", "[clt] init"),
    ] {
        refused(&train(&folder, &["--resume", "--set", set]), &[key]);
        assert!(config() == before, "{set}: config.toml was written anew");
    }
    // A key that is taken away is a change too.
    let text = std::fs::read_to_string(folder.join("train.toml")).unwrap();
    std::fs::write(folder.join("train.toml"), text.replace("activation = { top_k = { k = 4 } }\n", "")).unwrap();
    refused(&train(&folder, &["--resume"]), &["[clt] activation"]);
    std::fs::write(folder.join("train.toml"), text).unwrap();
    let more = train(&folder, &["--resume", "--set", "train.steps=14", "--set", "train.checkpoint_keep=3"]);
    assert!(more.status.success(), "{}", said(&more));
    assert!(String::from_utf8(config()).unwrap().contains("steps = 14"));
    // The run's own recipe goes on with the run.
    let own = cltlab(&["train", folder.join("run/config.toml").to_str().unwrap(), "--resume", "--set", "train.steps=15"]);
    assert!(own.status.success(), "{}", said(&own));
}

#[test]
fn recipes_that_would_be_taken_for_others_are_refused() {
    let folder = recipe("recipe-refused", "");
    for (set, place) in [("train.clip=nan", "train.clip"), ("train.target_l0=-nan", "train.target_l0"), ("train.lr=inf", "train.lr"), ("clt.activation={jump_relu={threshold=nan,bandwidth=1}}", "threshold"), ("train.betas=[0.9,nan]", "betas[1]")] {
        refused(&train(&folder, &["--set", set]), &[place, "finite number"]);
    }
    let file = folder.join("train.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("batch_tokens = 100", "batch_tokens = 100\nclip = nan")).unwrap();
    refused(&train(&folder, &[]), &["train.clip", "train.toml"]);
    std::fs::write(&file, [text.replace("\"run\"", "\"r").as_bytes(), &b"\xffun\"\n"[..]].concat()).unwrap();
    refused(&train(&folder, &[]), &["UTF-8", "train.toml"]);
    std::fs::write(&file, format!("\u{feff}{text}")).unwrap();
    assert!(train(&folder, &[]).status.success(), "a byte order mark is no part of the text");
    // Over its own recipe.
    let own = scratch("recipe-own");
    for entry in ["activations.safetensors", "train.toml"] {
        std::fs::copy(folder.join(entry), own.join(if entry == "train.toml" { "config.toml" } else { entry })).unwrap();
    }
    let path = own.join("config.toml");
    for place in [".", ""] {
        let mine = format!("# mine\n{}", text.replace("\"run\"", &format!("\"{place}\"")));
        std::fs::write(&path, &mine).unwrap();
        refused(&cltlab(&["train", path.to_str().unwrap()]), &["[output] folder", "another folder"]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), mine);
    }
    std::fs::write(&path, &text).unwrap();
    refused(&cltlab(&["train", path.to_str().unwrap(), "--set", &format!("train.metrics={}", own.join("activations.safetensors").display())]), &["replace an input"]);
    let mut names: Vec<_> = std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["activations.safetensors", "config.toml"]);
}

#[test]
fn two_trainings_do_not_share_a_folder() {
    let folder = recipe("two-trainings", "");
    let long = ["--set", "train.steps=100000"];
    let mut first = start(&folder, &long);
    wait(&mut first, || folder.join("run/metrics.jsonl").exists());
    let config = std::fs::read(folder.join("run/config.toml")).unwrap();
    for more in [&["--set", "train.seed=9"][..], &["--resume", "--set", "train.steps=100000"]] {
        refused(&train(&folder, more), &["another training writes here", &first.id().to_string()]);
    }
    refused(&train(&folder, &["--set", "output.folder=run2", "--set", &format!("train.checkpoint_dir={}", folder.join("run").display())]), &["another training"]);
    assert!(std::fs::read(folder.join("run/config.toml")).unwrap() == config);
    // The library sees the program's training, and the program the library's.
    let activations = Activations::load(folder.join("activations.safetensors"), &Default::default()).unwrap();
    let config = TrainConfig { steps: 2, batch_tokens: 8, checkpoint_every: 1, checkpoint_dir: Some(folder.join("run/checkpoints")), ..TrainConfig::default() };
    let shape = CltConfig { layers: activations.layers(), width: activations.width(), features: 32, ..CltConfig::default() };
    let error = Trainer::new(&activations, &shape, &config).unwrap().run().unwrap_err();
    says(&error, cltlab::ErrorKind::BadInput, &["another training writes here", &first.id().to_string()]);
    // Killed, it holds nobody up.
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(folder.join("run/.cltlab.lock").exists());
    let next = train(&folder, &["--resume"]);
    assert!(next.status.success() || said(&next).contains("TrainConfig::steps"), "{}", said(&next));
    assert!(!folder.join("run/.cltlab.lock").exists() && !folder.join("run/checkpoints/.cltlab.lock").exists());
    let held = FolderLock::take(folder.join("run/checkpoints")).unwrap();
    refused(&train(&folder, &["--resume"]), &["another training writes here", &std::process::id().to_string()]);
    drop(held);
    let _ = std::fs::remove_dir_all("run2");
}

#[test]
fn signals_of_schedulers_and_terminals_end_a_training_politely() {
    for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGINT, libc::SIGTERM] {
        let folder = recipe("signals", "");
        let mut child = start(&folder, &["--set", "train.steps=100000"]);
        wait(&mut child, || folder.join("run/metrics.jsonl").exists());
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(child.wait().unwrap().code(), Some(75), "signal {signal}");
        let report: serde_json::Value = cltlab::internal::files::read_json(folder.join("run/report.json")).unwrap();
        assert_eq!(report["stopped"], true, "{report}");
        assert!(folder.join("run/clt/config.yaml").exists() && std::fs::read_dir(folder.join("run/checkpoints")).unwrap().count() == 1);
    }
}

#[test]
fn negative_numbers_are_values() {
    let at = |path: &str| crate::support::fixture(&format!("attribution/gpt2/{path}")).to_string_lossy().into_owned();
    let check = |factors: &[&str]| cltlab(&[&["check", "--model", &at("model"), "--clt", &at("clt"), "--tokens", "1,2,3,4", "--supernodes", "2", "--factors"], factors].concat());
    for factors in [&["0", "-2"][..], &["-2"], &["0,-2"], &["-1.5", "2"]] {
        let output = check(factors);
        assert!(output.status.success(), "{factors:?}: {}", said(&output));
    }
    let output = cltlab(&["run", "--model", &at("model"), "--tokens", "1", "--top", "-1"]);
    assert!(output.status.code() == Some(2) && said(&output).contains("invalid value '-1'"), "{}", said(&output));
}

/// Rows that rest are brought up to date with the configured epsilon, bit for bit as the arrays of the
/// checkpoint say.
#[test]
fn rows_at_rest_are_exported_with_the_configured_epsilon() {
    let folder = scratch("rest-eps");
    let (x, y) = planted(300, 1);
    let width = x[0].len() / 300;
    let activations = Activations::from_memory(x, y, width).unwrap();
    for eps in [1e-3, 1e-8] {
        let shape = CltConfig { layers: 2, width, features: 64, activation: Activation::TopK { k: 2 }, ..CltConfig::default() };
        let config = TrainConfig { steps: 30, batch_tokens: 20, eps, normalise: false, dead: 0.0, ..TrainConfig::default() };
        let mut trainer = Trainer::new(&activations, &shape, &config).unwrap();
        trainer.run().unwrap();
        trainer.save(&folder).unwrap();
        let resumed = Trainer::resume(&folder, &activations).unwrap();
        let decoder = |clt: &Clt, l: usize| clt.decoder(l).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (own, again) = (trainer.clt().unwrap(), resumed.clt().unwrap());
        let file = cltlab::candle::safetensors::load(folder.join("step-00000030.safetensors"), &Device::Cpu).unwrap();
        let floats: BTreeMap<&String, Vec<f32>> = file.iter().filter_map(|(name, tensor)| Some((name, tensor.to_vec1::<f32>().ok()?))).collect();
        let of = |name: String| floats[&name].clone();
        let mut rested = 0;
        for l in 0..2 {
            let (mut w, m, v, pending) = (of(format!("{l}.decoder.w")), of(format!("{l}.decoder.m")), of(format!("{l}.decoder.v")), of("pending".into()));
            let last = file[&format!("{l}.last")].to_vec1::<u32>().unwrap();
            let row = w.len() / 64;
            for (f, &last) in last.iter().enumerate().filter(|(_, last)| **last < 30) {
                rested += 1;
                for at in f * row..(f + 1) * row {
                    w[at] -= pending[last as usize] * m[at] / (v[at].sqrt() + eps as f32);
                }
            }
            assert!(decoder(&own, l) == w, "eps {eps}, layer {l}: rows at rest are not those of the training");
            assert!(decoder(&again, l) == w, "eps {eps}, layer {l}: another CLT after a resume");
        }
        assert!(rested > 10, "{rested} rows rested");
    }
    says(&Trainer::resume(folder.join("none"), &activations).unwrap_err(), cltlab::ErrorKind::MissingFile, &[]);
}
