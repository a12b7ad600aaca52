//! Files of models that are not what they seem: each is read as transformers or llama.cpp reads it, or refused
//! with its cause, and never read as another model.

use crate::support::{fixture, max_difference, says, scratch, tensors, values};
use cltlab::activations::ReadConfig;
use cltlab::candle::{safetensors, DType, Device, Tensor};
use cltlab::model::{Capture, LoadConfig};
use cltlab::{Activations, Error, ErrorKind, Model};
use serde_json::{json, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub fn load(path: &Path) -> Result<Model, Error> {
    Model::load(&path, &LoadConfig::on(&Device::Cpu))
}

fn refused(path: &Path, kind: ErrorKind, words: &[&str]) {
    says(&load(path).expect_err("must be refused"), kind, words);
}

const LLAMA: &str = "parity/llama";

/// A copy of a model's folder with fields of its configuration changed; null takes one away.
fn changed(name: &str, from: &str, config: Value) -> PathBuf {
    let (from, to) = (fixture(from), scratch(name));
    for file in ["model.safetensors", "tokenizer.json"].iter().filter(|file| from.join(file).exists()) {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let mut json: serde_json::Map<String, Value> = cltlab::internal::files::read_json(from.join("config.json")).unwrap();
    json.extend(config.as_object().unwrap().clone());
    json.retain(|_, value| !value.is_null());
    std::fs::write(to.join("config.json"), Value::from(json).to_string()).unwrap();
    to
}

fn logits(folder: &Path) -> Vec<f32> {
    values(&load(folder).unwrap().run(&[0, 17, 5, 20, 42, 17, 63, 8], &Capture::logits()).unwrap().logits.unwrap())
}

fn llama_tensors() -> HashMap<String, Tensor> {
    tensors(&fixture(LLAMA).join("model.safetensors"))
}

#[test]
fn rotary_tables_go_before_fields_left_over() {
    let right = logits(&fixture(LLAMA));
    let table = json!({"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 32, "rope_type": "llama3", "rope_theta": 500000.0});
    for (case, config) in [
        ("conflict", json!({"rope_scaling": null, "rope_parameters": table, "rope_theta": 10000.0})),
        ("nested", json!({"rope_scaling": null, "rope_parameters": {"full_attention": table, "sliding_attention": {"rope_type": "default", "rope_theta": 7.0}}, "rope_theta": 10000.0})),
        ("empty", json!({"rope_scaling": {}, "rope_parameters": table, "rope_theta": null})),
        ("beside", json!({"rope_parameters": {"rope_type": "default"}})),
    ] {
        assert_eq!(logits(&changed(&format!("rope-{case}"), LLAMA, config)), right, "{case}");
    }
    let stale = changed("rope-stale", LLAMA, json!({"rope_theta": 10000.0}));
    assert!(max_difference(&logits(&stale), &right) > 1e-3, "the base is of no effect");
    let gemma = "parity/gemma3_text";
    let local = |name: &str, config: Value| logits(&changed(name, gemma, config));
    let per_layer = |base: f64| json!({"rope_scaling": null, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": base}}, "rope_local_base_freq": 3.0, "rope_theta": 9.0});
    let plain = json!({"rope_scaling": null, "rope_parameters": null, "rope_theta": 5000.0, "rope_local_base_freq": 700.0});
    assert_eq!(local("rope-local", per_layer(700.0)), local("rope-local-old", plain));
    for wrong in [json!([1]), json!("linear"), json!(2)] {
        refused(&changed("rope-type", LLAMA, json!({"rope_scaling": wrong})), ErrorKind::BadFile, &["rope_scaling", "an object"]);
    }
}

#[test]
fn a_tied_model_keeps_an_unembedding_of_its_own() {
    let right = logits(&fixture(LLAMA));
    let folder = changed("own-head", LLAMA, json!({"tie_word_embeddings": true}));
    assert_eq!(logits(&folder), right);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cltlab")).args(["run", "--tokens", "0,1", "--model"]).arg(&folder).output().unwrap();
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && warning.contains("tie_word_embeddings") && warning.contains("own-head"), "{warning}");
    let mut all = llama_tensors();
    all.insert("lm_head.weight".into(), all["model.embed_tokens.weight"].clone());
    safetensors::save(&all, folder.join("model.safetensors")).unwrap();
    assert!(load(&folder).unwrap().config().tied);
}

/// The language model of one that reads images may have its head within.
#[test]
fn an_unembedding_within_a_model_of_images_is_kept_too() {
    let gemma = fixture("parity/gemma3_text");
    let config: Value = cltlab::internal::files::read_json(gemma.join("config.json")).unwrap();
    let inner: HashMap<String, Tensor> = tensors(&gemma.join("model.safetensors")).into_iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor)).collect();
    let embedding = inner["language_model.model.embed_tokens.weight"].clone();
    let made = |name: &str, tied: bool, head: Option<Tensor>| {
        let folder = scratch(name);
        let mut text = config.clone();
        text["tie_word_embeddings"] = json!(tied);
        std::fs::write(folder.join("config.json"), json!({"model_type": "gemma3", "text_config": text}).to_string()).unwrap();
        let mut all = inner.clone();
        all.retain(|name, _| !name.contains("lm_head"));
        head.map(|head| all.insert("language_model.lm_head.weight".into(), head));
        safetensors::save(&all, folder.join("model.safetensors")).unwrap();
        folder
    };
    let right = logits(&made("image-tied", true, None));
    assert_eq!(logits(&made("image-same", true, Some(embedding.clone()))), right);
    // Twice the head, twice the logits: Gemma 3 has no cap on them.
    let twice = (embedding.to_dtype(DType::F32).unwrap() * 2.0).unwrap();
    let expected: Vec<f32> = right.iter().map(|logit| 2.0 * logit).collect();
    for tied in [true, false] {
        crate::support::assert_close("twice the head", &logits(&made("image-own", tied, Some(twice.clone()))), &expected, 1e-4);
    }
}

/// A list or a value where an object is expected is named, in every JSON file of a model's folder.
#[test]
fn lists_are_no_objects_in_a_models_folder() {
    for file in ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"] {
        for (text, word) in [("[]", "a JSON list"), (" [{}]", "a JSON list"), ("3", "a JSON value"), ("\"x\"", "a JSON value"), ("null", "a JSON value")] {
            let folder = changed("no-object", "attribution/llama/model", json!({}));
            std::fs::write(folder.join(file), text).unwrap();
            refused(&folder, ErrorKind::BadFile, &[file, word, "a JSON object"]);
        }
    }
    let shards = changed("no-object-shards", LLAMA, json!({}));
    std::fs::remove_file(shards.join("model.safetensors")).unwrap();
    std::fs::write(shards.join("model.safetensors.index.json"), "[]").unwrap();
    refused(&shards, ErrorKind::BadFile, &["model.safetensors.index.json", "a JSON list"]);
    for (file, field, value) in [
        ("tokenizer_config.json", "bos_token", json!([])),
        ("special_tokens_map.json", "eos_token", json!(3)),
        ("tokenizer_config.json", "pad_token", json!({"text": "x"})),
        ("generation_config.json", "eos_token_id", json!("x")),
        ("generation_config.json", "eos_token_id", json!([1, []])),
        ("config.json", "eos_token_id", json!({})),
        ("config.json", "quantization_config", json!([])),
        ("config.json", "rope_scaling", json!([])),
        ("config.json", "rope_parameters", json!([1])),
    ] {
        let folder = changed("no-object", "attribution/llama/model", json!({}));
        let mut json: Value = cltlab::internal::files::read_json(folder.join(file)).unwrap_or_else(|_| json!({}));
        json[field] = value;
        std::fs::write(folder.join(file), json.to_string()).unwrap();
        refused(&folder, ErrorKind::BadFile, &[file, field]);
    }
    let folder = scratch("no-object-text");
    std::fs::write(folder.join("config.json"), json!({"model_type": "gemma3", "text_config": []}).to_string()).unwrap();
    refused(&folder, ErrorKind::BadFile, &["config.json", "text_config", "an object"]);
}

#[test]
fn shards_are_read_as_their_index_says() {
    let folder = changed("shards", LLAMA, json!({}));
    let right = logits(&folder);
    let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
    let all = llama_tensors();
    let other: HashMap<String, Tensor> = all.iter().map(|(name, tensor)| (name.clone(), (tensor.to_dtype(DType::F32).unwrap() * 2.0).unwrap())).collect();
    safetensors::save(&other, folder.join("b.safetensors")).unwrap();
    let map = |shard: &str| json!({"weight_map": all.keys().map(|name| (name.clone(), json!(shard))).collect::<serde_json::Map<_, _>>()});
    std::fs::write(&index, map("b.safetensors").to_string()).unwrap();
    assert_eq!(logits(&folder), right, "the single file first");
    std::fs::rename(&single, folder.join("a.safetensors")).unwrap();
    let mut one = map("a.safetensors");
    one["weight_map"]["model.norm.weight"] = json!("b.safetensors");
    safetensors::save(&HashMap::from([("model.norm.weight", all["model.norm.weight"].clone()), ("lm_head.weight", other["lm_head.weight"].clone())]), folder.join("b.safetensors")).unwrap();
    std::fs::write(&index, one.to_string()).unwrap();
    assert_eq!(logits(&folder), right, "each tensor from the shard that is named");
    one["weight_map"]["model.layers.0.mlp.up_proj.weight"] = json!("b.safetensors");
    std::fs::write(&index, one.to_string()).unwrap();
    refused(&folder, ErrorKind::BadTensor, &["index.json", "model.layers.0.mlp.up_proj.weight in", "b.safetensors"]);
    for name in ["../a.safetensors", "/etc/passwd", "a?b", "", "x/../../a"] {
        one["weight_map"]["model.norm.weight"] = json!(name);
        std::fs::write(&index, one.to_string()).unwrap();
        refused(&folder, ErrorKind::BadFile, &["index.json", "model.norm.weight"]);
    }
    one["weight_map"]["model.norm.weight"] = json!("c.safetensors");
    std::fs::write(&index, one.to_string()).unwrap();
    refused(&folder, ErrorKind::MissingFile, &["c.safetensors", "index.json"]);
}

#[test]
fn the_first_line_names_the_cause() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 269060552\n";
    let page = "\n<!DOCTYPE html>\n<html><title>Sign in</title></html>";
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        for (text, word) in [(pointer, "Git LFS pointer"), (page, "HTML page")] {
            let folder = changed("placeholder", "attribution/llama/model", json!({}));
            std::fs::write(folder.join(file), text).unwrap();
            refused(&folder, ErrorKind::BadFile, &[file, word]);
        }
    }
    let folder = changed("pickle", LLAMA, json!({}));
    std::fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    refused(&folder, ErrorKind::Unsupported, &["only pickle weights", "pytorch_model.bin"]);
    std::fs::rename(folder.join("pytorch_model.bin"), folder.join("weights.gguf")).unwrap();
    refused(&folder, ErrorKind::MissingFile, &["model.safetensors: no such file", "weights.gguf"]);
    for method in ["fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors"] {
        refused(&changed("quantised", LLAMA, json!({"quantization_config": {"quant_method": method}})), ErrorKind::Unsupported, &["quantised by", method]);
    }
    refused(&changed("quantised", LLAMA, json!({"quantization_config": {"load_in_8bit": true}})), ErrorKind::Unsupported, &["bitsandbytes"]);
    std::fs::write(folder.join("x.bin"), b"PK\x03\x04pickle").unwrap();
    refused(&folder.join("x.bin"), ErrorKind::Unsupported, &["x.bin", "pickled weights"]);
}

#[test]
fn weights_are_finite_floats() {
    let folder = changed("floats", LLAMA, json!({}));
    let save = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut all = llama_tensors();
        change(&mut all);
        safetensors::save(&all, folder.join("model.safetensors")).unwrap();
    };
    save(&|all| drop(all.insert("model.norm.weight".into(), Tensor::ones(32, DType::U32, &Device::Cpu).unwrap())));
    refused(&folder, ErrorKind::BadTensor, &["model.norm.weight", "U32", "BF16"]);
    for odd in [f32::NAN, f32::INFINITY] {
        let mut norm = vec![1.0_f32; 32];
        norm[7] = odd;
        save(&|all| drop(all.insert("model.norm.weight".into(), Tensor::from_slice(&norm, 32, &Device::Cpu).unwrap())));
        refused(&folder, ErrorKind::NotFinite, &["model.norm.weight", "number 7"]);
    }
    // Finite weights whose logits overflow: no probabilities are given out.
    save(&|all| drop(all.insert("lm_head.weight".into(), Tensor::full(3e38_f32, (96, 32), &Device::Cpu).unwrap())));
    let run = load(&folder).unwrap().run(&[1, 2], &Capture::logits()).unwrap();
    says(&run.top_next(3).unwrap_err(), ErrorKind::NotFinite, &["logits"]);
    let path = folder.join("activations.safetensors");
    let write = |names: &[&str], dtype: DType| {
        let named: HashMap<String, Tensor> = names.iter().map(|name| (name.to_string(), Tensor::ones((4, 3), dtype, &Device::Cpu).unwrap())).collect();
        safetensors::save(&named, &path).unwrap();
        Activations::load(&path, &Default::default())
    };
    write(&["input.0", "target.0", "input.1", "target.1"], DType::F16).unwrap();
    let twice = ReadConfig { passes: 2, ..ReadConfig::default() };
    says(&Activations::load(&path, &twice).unwrap_err(), ErrorKind::BadConfig, &["activations.safetensors", "passes: 2", "the default"]);
    says(&write(&["input.0", "target.0", "input.2", "target.2"], DType::F32).unwrap_err(), ErrorKind::BadTensor, &["input.1: missing", "input.2"]);
    says(&write(&["input.0", "target.0", "target.1"], DType::F32).unwrap_err(), ErrorKind::BadTensor, &["input.1: missing", "target.1"]);
    for dtype in [DType::U8, DType::U32, DType::I64] {
        says(&write(&["input.0", "target.0"], dtype).unwrap_err(), ErrorKind::BadTensor, &["input.0", &dtype.as_str().to_uppercase()]);
    }
}

#[test]
fn numbers_that_no_model_has_are_refused() {
    let llama3 = |field: &str, value: f64| {
        let mut rule = json!({"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 32, "rope_type": "llama3"});
        rule[field] = json!(value);
        json!({"rope_scaling": rule})
    };
    for (config, word) in [
        (json!({"rms_norm_eps": -1e-5}), "norm_eps"),
        (json!({"rms_norm_eps": 1e19}), "norm_eps"),
        (llama3("factor", 0.0), "rotary scaling"),
        (llama3("factor", -2.0), "rotary scaling"),
        (llama3("low_freq_factor", 4.0), "rotary scaling"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}), "rotary scaling"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": -4.0}}), "rotary scaling"),
        (json!({"rope_theta": 0.0}), "rotary base"),
        (json!({"partial_rotary_factor": 1e30}), "part of a head"),
        (json!({"partial_rotary_factor": -0.5}), "part of a head"),
    ] {
        refused(&changed("impossible", LLAMA, config), ErrorKind::BadConfig, &[word]);
    }
    for (field, value) in [("query_pre_attn_scalar", 0.0), ("query_pre_attn_scalar", -4.0), ("rope_local_base_freq", 0.0), ("final_logit_softcapping", 0.0)] {
        let config = json!({field: value, "rope_parameters": null});
        assert_eq!(load(&changed("impossible", "parity/gemma3_text", config)).unwrap_err().kind(), ErrorKind::BadConfig, "{field}");
    }
}

#[test]
fn sizes_are_checked_before_anything_is_made() {
    let begun = std::time::Instant::now();
    for (family, field, value) in [
        (LLAMA, "hidden_size", json!(1_000_000)),
        (LLAMA, "num_hidden_layers", json!(1_000_000)),
        (LLAMA, "num_hidden_layers", json!(40_000)),
        (LLAMA, "num_hidden_layers", json!(1_u64 << 63)),
        (LLAMA, "vocab_size", json!(1_u64 << 33)),
        (LLAMA, "head_dim", json!(1 << 29)),
        (LLAMA, "intermediate_size", json!(1_000_000_000)),
        ("parity/gpt2", "n_embd", json!(1_000_000)),
        ("parity/gpt2", "n_layer", json!(1_000_000)),
        ("parity/gemma3_text", "num_hidden_layers", json!(1_u64 << 40)),
        ("parity/gpt_neo", "attention_types", json!([[["global"], 1_u64 << 62]])),
    ] {
        let error = load(&changed("sizes", family, json!({field: value}))).unwrap_err().to_string();
        assert!(error.len() < 2_000 && error.contains("sizes"), "{field}: {} bytes: {error}", error.len());
    }
    let folder = changed("long-context", LLAMA, json!({"max_position_embeddings": 8_589_934_592_u64}));
    assert_eq!(logits(&folder), logits(&fixture(LLAMA)));
    let mut all = llama_tensors();
    all.extend((0..300).map(|n| (format!("stranger.{n}"), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap())));
    let folder = changed("strangers", LLAMA, json!({}));
    safetensors::save(&all, folder.join("model.safetensors")).unwrap();
    refused(&folder, ErrorKind::BadTensor, &["unexpected", "and 290 more"]);
    println!("{:.1?}", begun.elapsed());
}

/// A llama2.c checkpoint of 2 layers, width 8, 2 heads, 5 tokens; `header` replaces words.
pub fn llama2c(name: &str, header: &[(usize, i32)], extra: usize) -> PathBuf {
    let (words, path) = ([8_i32, 12, 2, 2, 2, 5, 16], scratch(name).join("model.bin"));
    let numbers = 5 * 8 + 2 * (2 * 8 + 4 * 64 + 3 * 96) + 8 + 2 * 16 * 2;
    let mut words = words;
    header.iter().for_each(|(index, word)| words[*index] = *word);
    let head = words.iter().flat_map(|word| word.to_le_bytes());
    let body = (0..numbers + extra).flat_map(|n| ((n as f32 * 0.7).sin() * 0.2).to_le_bytes());
    std::fs::write(&path, head.chain(body).collect::<Vec<u8>>()).unwrap();
    path
}

#[test]
fn llama2c_checkpoints_have_the_length_of_their_header() {
    load(&llama2c("llama2c", &[], 0)).unwrap();
    load(&llama2c("llama2c", &[(5, -5)], 5 * 8)).unwrap();
    for (index, word) in [(0, 4), (1, 11), (2, 1), (3, 1), (3, 4), (4, 1), (5, 4), (6, 8), (6, 15)] {
        refused(&llama2c("llama2c", &[(index, word)], 0), if (index, word) == (3, 1) { ErrorKind::BadConfig } else { ErrorKind::BadFile }, &["model.bin"]);
    }
    for index in [0, 1, 2, 3, 4, 6] {
        refused(&llama2c("llama2c", &[(index, -2)], 0), ErrorKind::BadFile, &["model.bin", "header"]);
        refused(&llama2c("llama2c", &[(index, 0)], 0), ErrorKind::BadFile, &["model.bin", "header"]);
    }
    refused(&llama2c("llama2c", &[], 1), ErrorKind::BadFile, &["longer than its header says"]);
    let path = llama2c("llama2c", &[], 0);
    let tokenizer = |byte: &[u8], more: &[u8]| {
        let mut bytes = 9_u32.to_le_bytes().to_vec();
        for piece in [b"<unk>".as_slice(), byte, b"</s>", b"a", b"b"] {
            bytes.extend(0.5_f32.to_le_bytes());
            bytes.extend((piece.len() as u32).to_le_bytes());
            bytes.extend(piece);
        }
        bytes.extend(more);
        std::fs::write(path.with_file_name("tokenizer.bin"), bytes).unwrap();
        load(&path)
    };
    tokenizer(b"<s>", b"").unwrap();
    says(&tokenizer(b"<s>", b"more").unwrap_err(), ErrorKind::BadFile, &["tokenizer.bin", "bytes after"]);
    says(&tokenizer(b"\xa9", b"").unwrap_err(), ErrorKind::BadFile, &["tokenizer.bin", "special token 1", "UTF-8"]);
}
