//! Files of models: GGUF as llama.cpp's own converter writes it (`tests/make_gguf.py`), and what is
//! said about files that do not fit.

use crate::families::{largest, FAMILIES};
use crate::support::{fixture, max_difference, scratch, tensors, values};
use cltlab::candle::{safetensors, DType, Device, Tensor};
use cltlab::model::{Capture, ARCHITECTURES};
use cltlab::{Error, ErrorKind, Model};
use std::collections::HashMap;
use std::path::PathBuf;

#[test]
fn gguf_files_equal_transformers() {
    for name in ["gpt2", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"] {
        let model = Model::load(&fixture(&format!("gguf/{name}.gguf")).to_string_lossy(), &Device::Cpu).unwrap();
        let expected = tensors(&fixture(&format!("gguf/{name}.safetensors")));
        let ids = expected["input_ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let top = largest(&values(&expected["logits"]));
        for (row, prompt) in ids.iter().enumerate() {
            let logits = model.run_tokens(prompt, Capture::logits()).unwrap().logits.unwrap();
            let off = max_difference(&values(&logits), &values(&expected["logits"].get(row).unwrap())) / top;
            println!("{name}.gguf: largest error {off:.1e} of the largest logit");
            assert!(off <= 1e-5, "{name}: {off}");
        }
        assert_eq!(model.run("text").unwrap_err().kind(), ErrorKind::MissingFile);
    }
}

/// A copy of a tiny model with its tensors and configuration changed.
fn spoilt(family: &str, change: impl Fn(&mut HashMap<String, Tensor>), config: serde_json::Value) -> PathBuf {
    let (from, to) = (fixture(&format!("parity/{family}")), scratch(&format!("spoilt-{family}")));
    let mut all = tensors(&from.join("model.safetensors"));
    change(&mut all);
    safetensors::save(&all, to.join("model.safetensors")).unwrap();
    let mut json: serde_json::Map<String, serde_json::Value> = cltlab::files::read_json(from.join("config.json")).unwrap();
    json.extend(config.as_object().unwrap().clone());
    std::fs::write(to.join("config.json"), serde_json::Value::from(json).to_string()).unwrap();
    to
}

fn load(folder: &std::path::Path) -> Result<Model, Error> {
    Model::load(&folder.to_string_lossy(), &Device::Cpu)
}

#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "'{error}' does not say '{word}'");
    }
}

#[test]
fn everything_amiss_is_listed() {
    let nothing = serde_json::json!({});
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let folder = spoilt(
        "gemma2_sliding",
        |all| {
            all.remove("model.layers.1.mlp.up_proj.weight").unwrap();
            all.remove("model.layers.2.post_feedforward_layernorm.weight").unwrap();
            all.insert("model.norm.weight".into(), zeros(&[31]));
            all.insert("model.layers.0.self_attn.q_proj.bias".into(), zeros(&[64]));
            all.insert("score.weight".into(), zeros(&[2, 32]));
        },
        nothing.clone(),
    );
    let words = [
        "missing: model.layers.1.mlp.up_proj.weight [48, 32], model.layers.2.post_feedforward_layernorm.weight [32]",
        "of another shape: model.norm.weight: got [31], expected [32]",
        "unexpected: model.layers.0.self_attn.q_proj.bias, score.weight",
    ];
    says(&load(&folder).unwrap_err(), ErrorKind::BadTensor, &words);
    // Buffers that older files hold are no strangers.
    for (family, names) in [
        ("gpt_neo", ["transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias"]),
        ("gpt_neox", ["gpt_neox.layers.0.attention.rotary_emb.inv_freq", "gpt_neox.layers.0.attention.masked_bias"]),
    ] {
        load(&spoilt(family, |all| names.iter().for_each(|name| drop(all.insert(name.to_string(), zeros(&[1])))), nothing.clone())).unwrap();
    }
    // A file of the bare model has no prefix.
    let bare = |all: &mut HashMap<String, Tensor>| *all = all.drain().map(|(name, tensor)| (name.trim_start_matches("model.").to_string(), tensor)).collect();
    load(&spoilt("qwen3", bare, nothing)).unwrap();
}

#[test]
fn configurations_that_cannot_be_run() {
    let refused = |family: &str, config: serde_json::Value| load(&spoilt(family, |_| {}, config)).unwrap_err();
    says(&refused("llama", serde_json::json!({"model_type": "mamba"})), ErrorKind::UnknownArchitecture, &[&format!("'mamba', expected one of {}", ARCHITECTURES.join(", "))]);
    for family in FAMILIES {
        let kind = family.trim_end_matches("_sliding").trim_end_matches("_serial").trim_end_matches("_longrope");
        assert!(ARCHITECTURES.contains(&kind), "{kind}");
    }
    let scaling = serde_json::json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}});
    says(&refused("qwen3", scaling), ErrorKind::Unsupported, &["rope_scaling", "yarn", "llama3"]);
    says(&refused("phi", serde_json::json!({"qk_layernorm": true})), ErrorKind::Unsupported, &["qk_layernorm"]);
    says(&refused("llama", serde_json::json!({"hidden_act": "mish"})), ErrorKind::Unsupported, &["hidden_act", "mish", "silu"]);
    says(&refused("llama", serde_json::json!({"num_key_value_heads": 3})), ErrorKind::BadConfig, &["kv_heads", "3", "4"]);
    says(&refused("gpt_neo", serde_json::json!({"attention_types": "local"})), ErrorKind::BadFile, &["attention_types", "global"]);
    says(&refused("gpt_neo", serde_json::json!({"attention_types": [[["local"], 2]]})), ErrorKind::BadConfig, &["local attention", "2 layers", "3 layers"]);
    says(&refused("gemma3_text", serde_json::json!({"layer_types": ["chunked"]})), ErrorKind::BadFile, &["layer_types", "sliding_attention"]);
    says(&refused("gemma2_sliding", serde_json::json!({"final_logit_softcapping": -1.0})), ErrorKind::BadConfig, &["logit_cap", "-1"]);
    says(&refused("olmo2", serde_json::json!({"intermediate_size": 40})), ErrorKind::BadTensor, &["of another shape", "model.layers.2.mlp.down_proj.weight: got [32, 48], expected [32, 40]"]);
}
