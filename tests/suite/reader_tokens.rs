//! Which tokens a prompt has: as transformers' AutoTokenizer gives them to folders and llama.cpp to GGUF files, and
//! in an attribution a special token in front, as circuit-tracer puts it. Tokenizers that contradict themselves are
//! refused.

use crate::reader_gguf::rewritten;
use crate::reader_models::load;
use crate::support::{fixture, says, scratch};
use cltlab::candle::quantized::gguf_file::Value as Field;
use cltlab::clt::{Activation, CltConfig};
use cltlab::selftest::random_clt;
use cltlab::{ErrorKind, Replacement, Tokenizer};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// A copy of a tiny Llama with fields of its tokenizer.json changed, and a tokenizer_config.json if there is one.
fn changed(name: &str, tokenizer: Value, config: Option<Value>) -> PathBuf {
    let (from, to) = (fixture("attribution/llama/model"), scratch(name));
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let mut json: serde_json::Map<String, Value> = cltlab::internal::files::read_json(from.join("tokenizer.json")).unwrap();
    json.extend(tokenizer.as_object().unwrap().clone());
    std::fs::write(to.join("tokenizer.json"), Value::from(json).to_string()).unwrap();
    if let Some(config) = config {
        std::fs::write(to.join("tokenizer_config.json"), config.to_string()).unwrap();
    }
    to
}

/// Ids of `run`, and of `attribute`.
fn both(folder: &Path, text: &str) -> (Vec<u32>, Vec<u32>) {
    let model = load(folder).unwrap();
    let clt = random_clt(&CltConfig { features: 8, activation: Activation::Relu, ..CltConfig::for_model(&model) }, 1).unwrap();
    let replacement = Replacement::new(&model, &clt).unwrap();
    assert_eq!(model.run(text, &Default::default()).unwrap().tokens, model.tokens(text).unwrap());
    (model.tokens(text).unwrap(), replacement.tokens(text).unwrap())
}

#[test]
fn saved_truncation_and_padding_are_left_out() {
    for (case, saved) in [
        ("truncation", json!({"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}})),
        ("padding", json!({"padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}})),
        ("endless", json!({"padding": {"strategy": {"Fixed": 1_000_000_000_000_u64}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}})),
    ] {
        let (run, attribute) = both(&changed(&format!("saved-{case}"), saved, None), "w1 w2 w3 w4 w5 w6 w7");
        assert_eq!(run, [1, 2, 3, 4, 5, 6, 7], "{case}");
        assert_eq!(attribute, [0, 1, 2, 3, 4, 5, 6, 7], "{case}");
    }
}

fn template(before: bool, after: bool) -> Value {
    let special = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    let own = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = before.then(|| special.clone()).into_iter().chain([own.clone()]).chain(after.then_some(special)).collect();
    let pair = json!([own, {"Sequence": {"id": "B", "type_id": 1}}]);
    json!({"post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}})
}

#[test]
fn run_and_attribute_see_what_autotokenizer_gives() {
    let bos = |add_bos: Value, add_eos: Value| Some(json!({"bos_token": {"content": "<|endoftext|>"}, "eos_token": "w9", "add_bos_token": add_bos, "add_eos_token": add_eos}));
    let cases: [(&str, Value, Option<Value>, &[u32], &[u32]); 8] = [
        ("plain", json!({}), None, &[1, 2], &[0, 1, 2]),
        ("template", template(true, false), None, &[0, 1, 2], &[0, 1, 2]),
        ("template-end", template(false, true), None, &[1, 2, 0], &[0, 1, 2, 0]),
        ("config", json!({}), bos(json!(true), json!(false)), &[0, 1, 2], &[0, 1, 2]),
        ("config-end", json!({}), bos(json!(true), json!(true)), &[0, 1, 2, 9], &[0, 1, 2, 9]),
        ("config-off", template(true, false), bos(json!(false), Value::Null), &[1, 2], &[0, 1, 2]),
        ("config-none", template(true, false), bos(Value::Null, Value::Null), &[0, 1, 2], &[0, 1, 2]),
        ("pad", json!({}), Some(json!({"bos_token": null, "pad_token": "w7", "eos_token": "w9"})), &[1, 2], &[7, 1, 2]),
    ];
    for (case, tokenizer, config, run, attribute) in cases {
        assert_eq!(both(&changed(&format!("tokens-{case}"), tokenizer, config), "w1 w2"), (run.to_vec(), attribute.to_vec()), "{case}");
    }
    let folder = changed("tokens-more", template(true, false), Some(json!({"eos_token": "w9", "additional_special_tokens": ["w8"]})));
    assert_eq!(both(&folder, "<|endoftext|> w1"), (vec![0, 1], vec![0, 1]), "not twice");
    let folder = changed("tokens-special", json!({}), Some(json!({"eos_token": "w9", "additional_special_tokens": ["w8"]})));
    assert_eq!(both(&folder, "w8 w1"), (vec![8, 1], vec![8, 1]), "begins with a special token");
    assert_eq!(both(&folder, "w1"), (vec![1], vec![9, 1]));
    let model = load(&folder).unwrap();
    says(&model.tokens("").unwrap_err(), ErrorKind::BadInput, &["no tokens"]);
    let wrong = changed("tokens-wrong", json!({}), Some(json!({"add_bos_token": "yes"})));
    says(&load(&wrong).unwrap_err(), ErrorKind::BadFile, &["tokens-wrong", "add_bos_token", "true or false"]);
}

#[test]
fn a_prefix_space_is_added_as_the_configuration_says() {
    let bytes = |add: bool| {
        json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": add, "trim_offsets": true, "use_regex": true},
            "model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "a": 1, "\u{120}a": 2}, "unk_token": "<|endoftext|>"}})
    };
    for (case, file, config, id) in [
        ("file", true, None, 2),
        ("config", true, Some(json!({"add_prefix_space": false})), 1),
        ("config-on", false, Some(json!({"add_prefix_space": true})), 2),
        ("gpt2", true, Some(json!({"tokenizer_class": "GPT2Tokenizer"})), 1),
    ] {
        let folder = changed(&format!("space-{case}"), bytes(file), config);
        assert_eq!(Tokenizer::from_file(folder.join("tokenizer.json")).unwrap().encode("a").unwrap(), [id], "{case}");
    }
}

#[test]
fn a_gguf_model_has_the_same_token_in_front() {
    let path = scratch("gguf-front").join("model.gguf");
    let texts = |list: &[&str]| Field::Array(list.iter().map(|text| Field::String(text.to_string())).collect());
    let kinds = |list: &[i32]| Field::Array(list.iter().map(|kind| Field::I32(*kind)).collect());
    let fields = |pre: &str, more: &[(&'static str, Field)]| {
        let mut all = vec![
            ("tokenizer.ggml.model", Field::String("gpt2".into())),
            ("tokenizer.ggml.pre", Field::String(pre.into())),
            ("tokenizer.ggml.tokens", texts(&["<s>", "a", "b", "ab", "<im>", "</s>"])),
            ("tokenizer.ggml.token_type", kinds(&[3, 1, 1, 1, 3, 3])),
            ("tokenizer.ggml.merges", texts(&["a b"])),
        ];
        all.extend(more.iter().cloned());
        rewritten(&path, &all, |_| true);
        (both(&path, "ab"), both(&path, "<im>ab").1)
    };
    let id = |key: &'static str, id: u32| (key, Field::U32(id));
    let (bos, eos) = (id("tokenizer.ggml.bos_token_id", 0), id("tokenizer.ggml.eos_token_id", 5));
    let off = ("tokenizer.ggml.add_bos_token", Field::Bool(false));
    assert_eq!(fields("gpt-2", &[bos.clone(), off.clone()]), ((vec![3], vec![0, 3]), vec![4, 3]));
    assert_eq!(fields("gpt-2", &[bos.clone()]), ((vec![3], vec![0, 3]), vec![4, 3]));
    assert_eq!(fields("gpt-2", &[eos.clone()]), ((vec![3], vec![5, 3]), vec![4, 3]));
    assert_eq!(fields("llama-bpe", &[bos.clone(), eos.clone()]), ((vec![0, 3], vec![0, 3]), vec![0, 4, 3]));
    assert_eq!(fields("gpt-2", &[bos, eos, ("tokenizer.ggml.add_eos_token", Field::Bool(true))]), ((vec![3, 5], vec![0, 3, 5]), vec![4, 3, 5]));
    rewritten(&path, &[("tokenizer.ggml.model", Field::String("gpt2".into())), ("tokenizer.ggml.pre", Field::String("gpt-2".into())), ("tokenizer.ggml.tokens", texts(&["a", "b", "a"])), ("tokenizer.ggml.merges", texts(&["a b"]))], |_| true);
    says(&load(&path).unwrap_err(), ErrorKind::BadFile, &["model.gguf", "'a' twice", "0 and 2"]);
    let pieces = |tokens: &[&str], types: &[i32]| {
        let scores = Field::Array(tokens.iter().map(|_| Field::F32(0.0)).collect());
        rewritten(&path, &[("tokenizer.ggml.model", Field::String("llama".into())), ("tokenizer.ggml.tokens", texts(tokens)), ("tokenizer.ggml.token_type", kinds(types)), ("tokenizer.ggml.scores", scores)], |_| true);
        load(&path).unwrap_err()
    };
    says(&pieces(&["a", ""], &[1, 6]), ErrorKind::BadFile, &["model.gguf", "a byte", "<0x0A>"]);
    says(&pieces(&["a", "<0x+1>"], &[1, 6]), ErrorKind::BadFile, &["model.gguf", "a byte"]);
}

/// Its file says that no token is put in front of a text.
#[test]
#[ignore = "needs .cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
fn smollm2_is_attributed_with_a_token_in_front() {
    let (run, attribute) = both(&crate::support::smollm2(), "The capital of France is");
    assert_eq!((run.len(), attribute.len(), attribute[0], &attribute[1..]), (5, 6, 1, &run[..]));
}

#[test]
fn a_tokenizer_of_another_model_is_named() {
    let model = json!({"model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "w1": 5000}, "unk_token": "<|endoftext|>"}});
    let folder = changed("tokens-foreign", model, None);
    says(&load(&folder).unwrap().tokens("w1").unwrap_err(), ErrorKind::Mismatch, &["tokens-foreign/tokenizer.json", "5000", "vocabulary of 128"]);
    let unknown = json!({"model": {"type": "WordLevel", "vocab": {"w1": 1}, "unk_token": "[UNK]"}, "added_tokens": []});
    let folder = changed("tokens-unknown", unknown, None);
    says(&load(&folder).unwrap().tokens("w2").unwrap_err(), ErrorKind::BadInput, &["tokens-unknown/tokenizer.json", "UNK"]);
}

#[test]
fn tokenizers_that_fail_inside_their_library() {
    let file = |name: &str, change: Value| changed(name, change, None).join("tokenizer.json");
    let refused = |name: &str, change: Value| says(&Tokenizer::from_file(file(name, change)).unwrap_err(), ErrorKind::BadFile, &["tokenizer.json"]);
    refused("bad-precompiled", json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}));
    refused("bad-merge", json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 1}, "merges": ["a b", "a c"]}}));
    let strip = file("bad-strip", json!({"decoder": {"type": "Strip", "content": "w", "start": 2, "stop": 2}}));
    let tokenizer = Tokenizer::from_file(strip).unwrap();
    // An error or a text, and no panic.
    let _ = tokenizer.decode(&[1, 2]);
    let _ = tokenizer.token_text(1);
    let many = json!({"type": "Replace", "pattern": {"String": "w"}, "content": "wwwwwwwwwwwwwwww"});
    let bomb = Tokenizer::from_file(file("bad-replace", json!({"normalizer": {"type": "Sequence", "normalizers": vec![many; 8]}}))).unwrap();
    says(&bomb.encode("w1 w2").unwrap_err(), ErrorKind::BadInput, &["Replace", "bytes"]);
    says(&bomb.encode_published("w1 w2").unwrap_err(), ErrorKind::BadInput, &["Replace", "bytes"]);
    let usual = json!({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]}});
    Tokenizer::from_file(file("usual", usual)).unwrap().encode(&"w1 ".repeat(100_000)).unwrap();
}

/// One model as a folder and as a GGUF file, neither of which puts a token in front of a text: contexts of a training
/// and attribution's prompts begin with the same special token, and the graphs are one.
#[test]
fn a_folder_and_a_gguf_file_of_one_model_give_one_graph() {
    let (folder, file) = (scratch("one-graph-folder"), scratch("one-graph-gguf").join("model.gguf"));
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("parity/llama").join(name), folder.join(name)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> = (0..96).map(|n| (format!("w{n}"), json!(n))).collect();
    let special = json!({"id": 0, "content": "w0", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    let tokenizer = json!({"version": "1.0", "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [special]});
    for beside in [folder.join("model.safetensors"), file.clone()] {
        std::fs::write(beside.with_file_name("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(beside.with_file_name("tokenizer_config.json"), json!({"bos_token": "w0", "add_bos_token": false}).to_string()).unwrap();
    }
    rewritten(&file, &[("tokenizer.ggml.add_bos_token", Field::Bool(false)), ("tokenizer.ggml.bos_token_id", Field::U32(0))], |_| true);
    let (one, two) = (load(&folder).unwrap(), load(&file).unwrap());
    let clt = crate::support::lively_clt(&one, false, |_| {});
    let text = cltlab::Corpus::from_texts(vec![(1..90).map(|n| format!("w{n} ")).collect()]).unwrap();
    let mut graphs = Vec::new();
    for model in [&one, &two] {
        assert_eq!(model.tokens("w3 w4 w5").unwrap(), [3, 4, 5]);
        assert_eq!(cltlab::Replacement::new(model, &clt).unwrap().tokens("w3 w4 w5").unwrap(), [0, 3, 4, 5]);
        let blocks = text.blocks(model.tokenizer().unwrap(), model.special_token(), 8, None).unwrap();
        assert!(blocks.len() > 10 && (0..blocks.len()).all(|at| blocks.block(at).unwrap()[0] == 0));
        let replacement = cltlab::Replacement::new(model, &clt).unwrap();
        graphs.push(replacement.attribute("w3 w4 w5", &cltlab::graph::AttributeConfig::default()).unwrap());
    }
    let features = |graph: &cltlab::Graph| graph.nodes.iter().filter_map(|node| node.feature()).collect::<Vec<_>>();
    assert!(!features(&graphs[0]).is_empty() && features(&graphs[0]) == features(&graphs[1]));
    assert!(features(&graphs[0]).iter().all(|feature| feature.position > 0), "the special token has no features");
    crate::support::assert_close("edges", &crate::attribution::dense(&graphs[1]), &crate::attribution::dense(&graphs[0]), 1e-4);
}
