//! Errors say which file, which field, what was found, what was expected; long values are cut.

use crate::support::{fixture, says, scratch, tensors};
use crate::train_command::{cltlab, recipe, said};
use cltlab::candle::safetensors::save;
use cltlab::candle::{DType, Device, Tensor};
use cltlab::prelude::*;
use cltlab::ErrorKind;
use std::process::Output;

#[track_caller]
fn refused(output: &Output, words: &[&str]) -> String {
    let text = said(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "'{text}' does not say '{word}'"));
    for vague in ["os error", "panicked", "backtrace"] {
        assert!(!text.contains(vague), "'{text}' says '{vague}'");
    }
    text
}

fn clt() -> String {
    fixture("attribution/llama/clt").display().to_string()
}

fn model() -> String {
    fixture("attribution/llama/model").display().to_string()
}

#[test]
fn outputs_that_cannot_be_made_are_named() {
    let folder = scratch("message-outputs");
    let file = folder.join("file");
    std::fs::write(&file, "mine").unwrap();
    let below = file.join("deeper").display().to_string();
    let attribute = |to: &str| cltlab(&["attribute", "--model", &model(), "--clt", &clt(), "--prompt", "w1 w2", "-o", to]);
    refused(&attribute(&file.join("g.json").display().to_string()), &["file/g.json", "not a folder"]);
    refused(&attribute(&folder.join("sub/dir/g.json").display().to_string()), &["sub/dir/g.json", "make the folder"]);
    for to in [file.display().to_string(), below.clone()] {
        refused(&cltlab(&["clt", "convert", &clt(), &to, "--format", "circuit-tracer"]), &["file", "where a folder is to be made"]);
    }
    let run = recipe("message-train", "checkpoint_every = 6");
    let train = |set: String| cltlab(&["train", run.join("train.toml").to_str().unwrap(), "--set", &set]);
    refused(&train(format!("output.folder={}", file.display())), &["file", "where a folder is to be made"]);
    refused(&train(format!("train.checkpoint_dir={}", file.display())), &["file", "where a folder is to be made"]);
    refused(&train(format!("train.metrics={}", file.join("m.jsonl").display())), &["file", "where a folder is to be made"]);
    assert!(!run.join("run/config.toml").exists() && !run.join("run/metrics.jsonl").exists(), "it began to train");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn long_keys_and_values_are_cut() {
    let run = recipe("message-long", "");
    let path = run.join("train.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let long = "y".repeat(1_000_000);
    for (what, changed) in [
        ("key", text.replace("[train]", &format!("[train]\n{long} = 1"))),
        ("table", format!("{text}\n[{long}]\na = 1\n")),
        ("value", text.replace("features = 64", &format!("features = \"{long}\""))),
        ("activation", text.replace("top_k = { k", &format!("{long} = {{ k"))),
        ("syntax", format!("{text}\n{long}\n")),
        ("preset", format!("preset = \"{long}\"\n{text}")),
        ("file", text.replace("activations.safetensors", &long)),
        ("dtype", text.replace("folder =", &format!("dtype = \"{long}\"\nfolder ="))),
    ] {
        std::fs::write(&path, changed).unwrap();
        let output = cltlab(&["train", path.to_str().unwrap()]);
        let said = said(&output);
        assert!(output.status.code() == Some(1) && said.len() < 3000 && (said.contains("yyyy") || what == "syntax" && said.contains("line 13")), "{what}: {} bytes: {}", said.len(), &said[..said.len().min(300)]);
    }
    std::fs::write(&path, &text).unwrap();
    let said = refused(&cltlab(&["train", path.to_str().unwrap(), "--set", &"y".repeat(100_000)]), &["--set", "table.key=value"]);
    assert!(said.len() < 3000, "{} bytes", said.len());
}

#[test]
fn a_token_has_no_difference_to_itself() {
    refused(&cltlab(&["attribute", "--model", &model(), "--clt", &clt(), "--prompt", "w1 w2", "-o", "-", "--difference", "1,1"]), &["difference", "token 1 less itself", "two different tokens"]);
}

#[test]
fn a_text_of_special_tokens_is_no_interruption() {
    let folder = scratch("message-eval");
    let text = folder.join("t.txt");
    std::fs::write(&text, "<|endoftext|> ".repeat(300)).unwrap();
    let model = Model::load(model(), &LoadConfig::on(&Device::Cpu)).unwrap();
    let clt = Clt::load(clt(), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    let config = cltlab::eval::EvalConfig { context: 16, ..cltlab::eval::EvalConfig::default() };
    let error = evaluate(&model, &clt, &Corpus::load(&text, &Default::default()).unwrap(), &config).err().expect("it was measured");
    says(&error, ErrorKind::BadInput, &["no token to measure", "special"]);
}

#[test]
fn activations_and_stores_name_the_file_of_what_is_no_number() {
    let path = scratch("message-activations").join("mine.safetensors");
    let write = |odd: f32, dtype: DType| {
        let values = Tensor::from_vec((0..12).map(|n| if n == 7 { odd } else { n as f32 }).collect::<Vec<f32>>(), (4, 3), &Device::Cpu).unwrap();
        save(&["input.0", "target.0"].map(|name| (name.to_string(), values.to_dtype(dtype).unwrap())).into(), &path).unwrap();
        Activations::load(&path, &Default::default())
    };
    write(1.0, DType::F32).unwrap();
    says(&write(f32::NAN, DType::F32).unwrap_err(), ErrorKind::NotFinite, &["mine.safetensors", "input.0", "token 2, number 1"]);
    for dtype in [DType::U8, DType::U32, DType::I64] {
        says(&write(1.0, dtype).unwrap_err(), ErrorKind::BadTensor, &["mine.safetensors", "input.0", &dtype.as_str().to_uppercase(), "BF16"]);
    }
}

#[test]
fn files_that_stand_in_for_weights_are_named_in_clts_too() {
    let place = scratch("message-pointer");
    crate::support::copy_all(&fixture("attribution/llama/clt"), &place);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n";
    for (text, word) in [(pointer, "Git LFS pointer"), ("<!DOCTYPE html><html></html>", "HTML page")] {
        for file in ["W_enc_1.safetensors", "W_dec_1.safetensors"] {
            let kept = std::fs::read(place.join(file)).unwrap();
            std::fs::write(place.join(file), text).unwrap();
            says(&Clt::load(&place, &CltLoadConfig::on(&Device::Cpu)).err().unwrap(), ErrorKind::BadFile, &[file, word]);
            std::fs::write(place.join(file), kept).unwrap();
        }
    }
    assert!(!tensors(&place.join("W_enc_1.safetensors")).is_empty());
}
