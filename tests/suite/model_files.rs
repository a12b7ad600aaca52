//! Files of models: GGUF as llama.cpp's own converter writes it (`tests/make_gguf.py`), and what is
//! said about files that do not fit.

use crate::families::{largest, FAMILIES};
use crate::support::{fixture, max_difference, says, scratch, tensors, values};
use cltlab::candle::{safetensors, DType, Device, Tensor};
use cltlab::model::{ARCHITECTURES, Capture, LoadConfig};
use cltlab::text::ChatConfig;
use cltlab::{Error, ErrorKind, Model};
use std::collections::HashMap;
use std::path::PathBuf;

#[test]
fn gguf_files_equal_transformers() {
    for name in [
        "gpt2", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "gptneox", "gptneox_serial", "phi2", "olmo2", "qwen3_yarn",
    ] {
        let model = Model::load(fixture(&format!("gguf/{name}.gguf")), &LoadConfig::on(&Device::Cpu)).unwrap();
        let expected = tensors(&fixture(&format!("gguf/{name}.safetensors")));
        let ids = expected["input_ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let top = largest(&values(&expected["logits"]));
        for (row, prompt) in ids.iter().enumerate() {
            let logits = model.run(prompt, &Capture::logits()).unwrap().logits.unwrap();
            let off = max_difference(&values(&logits), &values(&expected["logits"].get(row).unwrap())) / top;
            println!("{name}.gguf: largest error {off:.1e} of the largest logit");
            assert!(off <= 1e-5, "{name}: {off}");
        }
        assert_eq!(model.run("text", &Default::default()).unwrap_err().kind(), ErrorKind::MissingFile);
    }
}

/// A copy of a tiny model with its tensors and configuration changed.
fn spoilt(family: &str, change: impl Fn(&mut HashMap<String, Tensor>), config: serde_json::Value) -> PathBuf {
    let (from, to) = (fixture(&format!("parity/{family}")), scratch(&format!("spoilt-{family}")));
    let mut all = tensors(&from.join("model.safetensors"));
    change(&mut all);
    safetensors::save(&all, to.join("model.safetensors")).unwrap();
    let mut json: serde_json::Map<String, serde_json::Value> = cltlab::internal::files::read_json(from.join("config.json")).unwrap();
    json.extend(config.as_object().unwrap().clone());
    std::fs::write(to.join("config.json"), serde_json::Value::from(json).to_string()).unwrap();
    to
}

fn load(folder: &std::path::Path) -> Result<Model, Error> {
    Model::load(&folder, &LoadConfig::on(&Device::Cpu))
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
        let kind = family.trim_end_matches("_sliding").trim_end_matches("_serial").trim_end_matches("_longrope").trim_end_matches("_yarn");
        assert!(ARCHITECTURES.contains(&kind), "{kind}");
    }
    let scaling = serde_json::json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}});
    says(&refused("qwen3", scaling), ErrorKind::Unsupported, &["rope_scaling", "dynamic", "llama3"]);
    says(&refused("phi", serde_json::json!({"qk_layernorm": true})), ErrorKind::Unsupported, &["qk_layernorm"]);
    says(&refused("llama", serde_json::json!({"hidden_act": "mish"})), ErrorKind::Unsupported, &["hidden_act", "mish", "silu"]);
    says(&refused("llama", serde_json::json!({"num_key_value_heads": 3})), ErrorKind::BadConfig, &["kv_heads", "3", "4"]);
    says(&refused("gpt_neo", serde_json::json!({"attention_types": "local"})), ErrorKind::BadFile, &["attention_types", "global"]);
    says(&refused("gpt_neo", serde_json::json!({"attention_types": [[["local"], 2]]})), ErrorKind::BadConfig, &["local attention", "2 layers", "3 layers"]);
    says(&refused("gemma3_text", serde_json::json!({"layer_types": ["chunked"]})), ErrorKind::BadFile, &["layer_types", "sliding_attention"]);
    says(&refused("gemma2_sliding", serde_json::json!({"final_logit_softcapping": -1.0})), ErrorKind::BadConfig, &["logit_cap", "-1"]);
    says(&refused("olmo2", serde_json::json!({"intermediate_size": 40})), ErrorKind::BadTensor, &["of another shape", "model.layers.2.mlp.down_proj.weight: got [32, 48], expected [32, 40]"]);
}

/// `generation_config.json` names the tokens that end a text and how the makers sample; defaults are
/// transformers' (`GenerationConfig().top_k` is 50).
#[test]
fn generation_configs_are_read() {
    let folder = spoilt("llama", |_| {}, serde_json::json!({"eos_token_id": 3}));
    let write = |json: serde_json::Value| std::fs::write(folder.join("generation_config.json"), json.to_string()).unwrap();
    assert_eq!(load(&folder).unwrap().config().stop_tokens, [3]);
    write(serde_json::json!({"eos_token_id": [5, 7], "do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 9}));
    let model = load(&folder).unwrap();
    let own = model.generate_config();
    assert_eq!((own.temperature, own.top_k, own.top_p, own.max_tokens), (0.6, 50, 0.9, 9));
    assert_eq!(model.config().stop_tokens, [5, 7]);
    let ids = model.generate(&[1, 2, 3], &cltlab::model::GenerateConfig { max_tokens: 60, temperature: 5.0, ..own }).unwrap().tokens;
    assert!(ids.iter().rev().skip(1).all(|id| ![5, 7].contains(id)), "{ids:?}");
    write(serde_json::json!({"temperature": 0.6, "do_sample": false}));
    let model = load(&folder).unwrap();
    assert_eq!((model.generate_config().temperature, &model.config().stop_tokens[..]), (0.0, &[3][..]), "greedy unless it says so");
    write(serde_json::json!({"do_sample": true, "top_p": 1.5}));
    says(&load(&folder).unwrap_err(), ErrorKind::BadConfig, &["generation_config.json", "top_p", "1.5"]);
    write(serde_json::json!({"do_sample": "yes"}));
    says(&load(&folder).unwrap_err(), ErrorKind::BadFile, &["generation_config.json", "do_sample", "true or false"]);
}

/// A `tokenizer.json` beside a GGUF file takes its place where its own is of no known kind; the chat
/// template is still the file's, and a vocabulary that cannot be read is said, not passed over.
#[test]
fn a_tokenizer_beside_a_gguf_file_takes_the_chat_template_from_it() {
    use cltlab::candle::quantized::gguf_file::{write, Content, Value};
    let folder = scratch("gguf-beside");
    std::fs::copy(fixture("attribution/llama/model/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let path = folder.join("model.gguf");
    let with = |tokens: Value| {
        let mut file = std::fs::File::open(fixture("gguf/llama.gguf")).unwrap();
        let content = Content::read(&mut file).unwrap();
        let texts = [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "nobody-knows"), ("tokenizer.chat_template", "{{ messages[0].content }}!")];
        let more: Vec<(String, Value)> = texts.iter().map(|(key, text)| (key.to_string(), Value::String(text.to_string()))).collect();
        let metadata: HashMap<String, Value> = content.metadata.clone().into_iter().chain(more).chain([("tokenizer.ggml.tokens".to_string(), tokens)]).collect();
        let tensors: Vec<_> = content.tensor_infos.keys().map(|name| (name.clone(), content.tensor(&mut file, name, &Device::Cpu).unwrap())).collect();
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write(&mut std::fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        load(&path)
    };
    let model = with(Value::Array(vec![Value::String("a".to_string())])).unwrap();
    assert_eq!(model.tokenizer().unwrap().chat(&[("user", "Hello")], &ChatConfig::default()).unwrap(), "Hello!");
    says(&with(Value::Array(vec![Value::U32(7)])).unwrap_err(), ErrorKind::BadFile, &["model.gguf", "tokenizer.ggml.tokens"]);
}
