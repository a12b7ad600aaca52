//! Bad input gives a typed error that says what was read, what was found and what to do.

use crate::support::{self, says};
use cltlab::candle::{self as candle_core, Device, Tensor};
use cltlab::model::LoadConfig;
use cltlab::{Corpus, Error, ErrorKind, Model};
use std::collections::HashMap;

const ENOSPC: i32 = 28;

fn refused(source: &str) -> Error {
    Model::load(source, &LoadConfig::on(&Device::Cpu)).expect_err("must be refused")
}

#[test]
fn missing_and_foreign_files() {
    says(&refused("/nowhere/model.gguf"), ErrorKind::MissingFile, &["/nowhere/model.gguf"]);
    says(&refused("./nowhere"), ErrorKind::MissingFile, &["./nowhere", "hub name"]);
    let folder = support::scratch("foreign");
    std::fs::write(folder.join("x.gguf"), b"this is a text").unwrap();
    says(&refused(&folder.join("x.gguf").to_string_lossy()), ErrorKind::BadFile, &["x.gguf", "GGUF"]);
    std::fs::write(folder.join("x.bin"), [0; 100]).unwrap();
    says(&refused(&folder.join("x.bin").to_string_lossy()), ErrorKind::BadFile, &["x.bin"]);
    says(&refused(&folder.to_string_lossy()), ErrorKind::MissingFile, &["config.json", "give the file itself", "x.gguf"]);
    says(&refused(&support::scratch("empty").to_string_lossy()), ErrorKind::MissingFile, &["config.json", "hub name"]);
    // None of these is a name of the hub, so nothing is asked of it.
    for path in ["/nowhere.txt", "nowhere.txt", "nowhere", "./no/where", "nowhere/stories.jsonl.gz", "no//where"] {
        says(&Corpus::load(path, &Default::default()).unwrap_err(), ErrorKind::MissingFile, &[path]);
    }
    std::fs::write(folder.join("bad.jsonl"), "{\"text\": \"a\"}\n{\"words\": 1}\n").unwrap();
    says(&Corpus::load(folder.join("bad.jsonl"), &Default::default()).unwrap_err(), ErrorKind::BadFile, &["line 2", "text"]);
    says(&Corpus::from_texts(vec![" \n".to_string()]).unwrap_err(), ErrorKind::BadInput, &["no text"]);
}

/// A folder of a tiny GPT-2 that can be spoilt.
fn tiny_gpt2(name: &str) -> std::path::PathBuf {
    let folder = support::scratch(name);
    let config = serde_json::json!({"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 10, "n_positions": 16});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let shapes: [(&str, &[usize]); 16] = [
        ("wte.weight", &[10, 8]), ("wpe.weight", &[16, 8]), ("h.0.ln_1.weight", &[8]), ("h.0.ln_1.bias", &[8]),
        ("h.0.attn.c_attn.weight", &[8, 24]), ("h.0.attn.c_attn.bias", &[24]), ("h.0.attn.c_proj.weight", &[8, 8]), ("h.0.attn.c_proj.bias", &[8]),
        ("h.0.ln_2.weight", &[8]), ("h.0.ln_2.bias", &[8]), ("h.0.mlp.c_fc.weight", &[8, 32]), ("h.0.mlp.c_fc.bias", &[32]),
        ("h.0.mlp.c_proj.weight", &[32, 8]), ("h.0.mlp.c_proj.bias", &[8]), ("ln_f.weight", &[8]), ("ln_f.bias", &[8]),
    ];
    let tensors: HashMap<String, Tensor> =
        shapes.iter().map(|(name, shape)| (name.to_string(), Tensor::randn(0.0_f32, 0.3, *shape, &Device::Cpu).unwrap())).collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    folder
}

#[test]
fn spoilt_weights() {
    let folder = tiny_gpt2("spoilt");
    let source = folder.to_string_lossy().into_owned();
    let file = folder.join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    Model::load(&source, &LoadConfig::on(&Device::Cpu)).unwrap();
    for cut in [4, 60, whole.len() - 10] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        says(&refused(&source), ErrorKind::BadFile, &["model.safetensors", "truncated"]);
    }
    let mut tensors = candle_core::safetensors::load_buffer(&whole, &Device::Cpu).unwrap();
    tensors.insert("wte.weight".to_string(), Tensor::zeros((10, 7), candle_core::DType::F32, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, &file).unwrap();
    says(&refused(&source), ErrorKind::BadTensor, &["wte.weight", "[10, 7]", "[10, 8]"]);
    tensors.remove("wte.weight");
    candle_core::safetensors::save(&tensors, &file).unwrap();
    says(&refused(&source), ErrorKind::BadTensor, &["wte.weight"]);
    std::fs::write(folder.join("config.json"), "{\"model_type\": \"mamba\"}").unwrap();
    says(&refused(&source), ErrorKind::UnknownArchitecture, &["'mamba'", "gpt2", "llama"]);
    std::fs::write(folder.join("config.json"), "{\"model_type\": \"gpt2\", \"n_embd\": \"wide\"}").unwrap();
    says(&refused(&source), ErrorKind::BadFile, &["n_embd", "wide"]);
}

#[test]
fn prompts_that_cannot_be_run() {
    let model = Model::load(tiny_gpt2("prompts"), &LoadConfig::on(&Device::Cpu)).unwrap();
    let run = |ids: &[u32]| model.run(ids, &Default::default()).unwrap_err();
    says(&run(&[]), ErrorKind::BadInput, &["none"]);
    says(&run(&[1; 17]), ErrorKind::BadInput, &["17 tokens", "16"]);
    says(&run(&[3, 10]), ErrorKind::BadInput, &["10"]);
    says(&model.run("text", &Default::default()).unwrap_err(), ErrorKind::MissingFile, &["tokenizer.json"]);
    says(&support::small_model().run("", &Default::default()).unwrap_err(), ErrorKind::BadInput, &["no tokens"]);
}

/// `/dev/full` gives the system's own "no space left" to whoever writes to it; where a container has
/// none, the same error number stands for it.
#[test]
fn a_full_disk_leaves_what_was_there() {
    use std::io::Write;
    let folder = support::scratch("full-disk");
    let path = folder.join("weights.bin");
    cltlab::internal::files::write_atomic(&path, b"before").unwrap();
    let error = cltlab::internal::files::fill_atomic(&path, |file| {
        file.write_all(b"half of it")?;
        match std::fs::OpenOptions::new().write(true).open("/dev/full") {
            Ok(mut full) => full.write_all(b"the rest"),
            Err(_) => Err(std::io::Error::from_raw_os_error(ENOSPC)),
        }
    })
    .unwrap_err();
    says(&error, ErrorKind::DiskFull, &["weights.bin", "free some space"]);
    let tensors = HashMap::from([("x".to_string(), Tensor::zeros(100_000, candle_core::DType::F32, &Device::Cpu).unwrap())]);
    // Not to /dev/full: safetensors puts its own file in the place of whatever it is given.
    let error = cltlab::internal::files::replace(&path, |temporary| {
        candle_core::safetensors::save(&tensors, temporary)?;
        Err(candle_core::Error::from(std::io::Error::from_raw_os_error(ENOSPC)).into())
    })
    .unwrap_err();
    says(&error, ErrorKind::DiskFull, &["free some space"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "a temporary file was left");
}

/// Binder ignores the root's environment file, so its own must name the same parts.
#[test]
fn environments_name_the_same_parts() {
    let parts = |path: &str| {
        let text = std::fs::read_to_string(support::root().join(path)).unwrap();
        text.lines().filter(|line| line.trim_start().starts_with("- ")).map(|line| line.trim().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(parts("environment.yml"), parts("binder/environment.yml"));
    assert!(parts("environment.yml").len() > 3);
}

#[test]
fn no_network_for_the_hub() {
    // A hub that refuses at once stands for no network; the test must not depend on one.
    let folder = support::scratch("hub");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cltlab"))
        .args(["run", "--model", "nobody/nothing", "--prompt", "x"])
        .env("HF_HOME", &folder)
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("nobody/nothing") && text.contains("check the network"), "{text}");
}
