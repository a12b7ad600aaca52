//! Tokenizers from GGUF fields, chat templates and streamed text against other implementations:
//! transformers, sentencepiece, and a BPE by brute force (`tests/fixtures/make/text_fixtures.py`).

use crate::support;
use cltlab::candle::quantized::gguf_file::{self, Value};
use cltlab::text::{ChatConfig, Incremental};
use cltlab::{ErrorKind, Tokenizer};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> Json {
    cltlab::internal::files::read_json(support::fixture(&format!("text/{name}"))).unwrap()
}

fn strings(list: &Json) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string()).collect()
}

fn ids(list: &Json) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn array(list: &Json, value: impl Fn(&Json) -> Value) -> Value {
    Value::Array(list.as_array().unwrap().iter().map(value).collect())
}

fn texts(list: &Json) -> Value {
    array(list, |text| Value::String(text.as_str().unwrap().to_string()))
}

fn types(list: &Json) -> Value {
    array(list, |kind| Value::I32(kind.as_i64().unwrap() as i32))
}

fn word(text: &str) -> Value {
    Value::String(text.to_string())
}

/// A GGUF file of metadata alone.
fn write(path: &Path, fields: &[(&str, Value)]) -> PathBuf {
    let named: Vec<(String, &Value)> = fields.iter().map(|(name, value)| (format!("tokenizer.{name}"), value)).collect();
    let named: Vec<(&str, &Value)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &named, &[]).unwrap();
    path.to_path_buf()
}

fn byte_level(bpe: &Json, pre: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("ggml.model", word("gpt2")),
        ("ggml.pre", word(pre)),
        ("ggml.tokens", texts(&bpe["tokens"])),
        ("ggml.merges", texts(&bpe["merges"])),
        ("ggml.token_type", types(&bpe["types"])),
        ("ggml.bos_token_id", Value::U32(bpe["tokens"].as_array().unwrap().len() as u32 - 4)),
    ]
}

#[test]
fn byte_level_bpe_equals_transformers_and_brute_force() {
    let (bpe, folder) = (fixture("bpe.json"), support::scratch("bpe"));
    let mut compared = 0;
    for (pre, expected) in bpe["cases"].as_object().unwrap() {
        let tokenizer = Tokenizer::from_gguf(write(&folder.join("x.gguf"), &byte_level(&bpe, pre))).unwrap();
        for (text, expected) in strings(&bpe["texts"]).iter().zip(expected.as_array().unwrap()) {
            let got = tokenizer.encode(text).unwrap();
            assert_eq!(got, ids(expected), "{pre}: {text:?}");
            if !["qwen2", "qwen35"].contains(&pre.as_str()) {
                assert_eq!(&tokenizer.decode(&got).unwrap(), text, "{pre}");
            }
            compared += 1;
        }
    }
    println!("{compared} texts equal");
    assert!(compared >= 11 * 15);
}

fn scored(case: &Json) -> Vec<(&'static str, Value)> {
    vec![
        ("ggml.model", word("llama")),
        ("ggml.tokens", texts(&case["tokens"])),
        ("ggml.scores", array(&case["scores"], |score| Value::F32(score.as_f64().unwrap() as f32))),
        ("ggml.token_type", types(&case["types"])),
        ("ggml.add_space_prefix", Value::Bool(case["add_space_prefix"].as_bool().unwrap())),
        ("ggml.unknown_token_id", Value::U32(case["unknown"].as_u64().unwrap() as u32)),
    ]
}

#[test]
fn sentence_pieces_equal_sentencepiece() {
    let folder = support::scratch("pieces");
    for case in fixture("sentencepiece.json").as_array().unwrap() {
        let prefix = case["add_space_prefix"].as_bool().unwrap();
        let tokenizer = Tokenizer::from_gguf(write(&folder.join("x.gguf"), &scored(case))).unwrap();
        for ((text, expected), plain) in strings(&case["texts"]).iter().zip(case["ids"].as_array().unwrap()).zip(case["decoded"].as_array().unwrap()) {
            let got = tokenizer.encode(text).unwrap();
            assert_eq!(got, ids(expected), "prefix {prefix}: {text:?}");
            if let Some(plain) = plain.as_str() {
                let decoded = tokenizer.decode(&got).unwrap();
                assert_eq!(decoded.strip_prefix(if prefix { " " } else { "" }).unwrap_or(&decoded), plain, "prefix {prefix}");
            }
        }
        println!("prefix {prefix}: {} texts equal", case["texts"].as_array().unwrap().len());
    }
}

/// Streamed piece by piece, a text is what it is at once, whatever its characters are made of.
#[test]
fn streamed_text_is_the_whole_text() {
    let (bpe, folder) = (fixture("bpe.json"), support::scratch("streamed"));
    let pieces = fixture("sentencepiece.json");
    let mut tokenizers = vec![Tokenizer::from_gguf(write(&folder.join("a.gguf"), &byte_level(&bpe, "llama-bpe"))).unwrap()];
    tokenizers.extend(pieces.as_array().unwrap().iter().map(|case| Tokenizer::from_gguf(write(&folder.join("b.gguf"), &scored(case))).unwrap()));
    for tokenizer in &tokenizers {
        for text in strings(&bpe["texts"]) {
            let all = tokenizer.encode(&text).unwrap();
            let whole = tokenizer.decode(&all).unwrap();
            for cut in [0, 1, all.len() / 2].into_iter().filter(|cut| *cut <= all.len()) {
                let before = tokenizer.decode(&all[..cut]).unwrap();
                if before.ends_with('\u{fffd}') {
                    continue;
                }
                let mut stream = Incremental::new(tokenizer, &all[..cut]);
                let mut joined = before;
                for id in &all[cut..] {
                    let piece = stream.push(*id).unwrap();
                    assert!(!piece.contains('\u{fffd}'), "{piece:?} in {text:?}");
                    joined += &piece;
                }
                joined += &stream.finish().unwrap();
                assert_eq!(joined, whole);
            }
        }
    }
    // An incomplete character is shown as such in the end, once.
    let tokenizer = &tokenizers[0];
    let all = tokenizer.encode("灯").unwrap();
    assert!(all.len() > 1, "the fixture's vocabulary has no such character");
    let mut stream = Incremental::new(tokenizer, &[]);
    for id in &all[..all.len() - 1] {
        assert_eq!(stream.push(*id).unwrap(), "");
    }
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn chats_equal_transformers() {
    let (chat, folder) = (fixture("chat.json"), support::scratch("chats"));
    std::fs::write(folder.join("tokenizer.json"), chat["tokenizer"].to_string()).unwrap();
    let named: Vec<Json> = chat["templates"].as_object().unwrap().iter().map(|(name, template)| serde_json::json!({"name": name, "template": template})).collect();
    let mut config = chat["tokens"].clone();
    config["bos_token"] = serde_json::json!({"content": config["bos_token"], "lstrip": false});
    config["chat_template"] = named.into();
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.chat_templates(), ["chatml", "gemma", "llama3"]);
    let (mut equal, mut refused) = (0, 0);
    for case in chat["cases"].as_array().unwrap() {
        let messages: Vec<(&str, &str)> = case["messages"].as_array().unwrap().iter().map(|m| (m[0].as_str().unwrap(), m[1].as_str().unwrap())).collect();
        let options = ChatConfig {
            template: case["template"].as_str().unwrap().to_string(),
            variables: case["variables"].as_str().unwrap().to_string(),
            generation_prompt: case["prompt"].as_bool().unwrap(),
        };
        match (tokenizer.chat(&messages, &options), case["text"].as_str(), case["refused"].as_str()) {
            (Ok(got), Some(text), _) => {
                assert_eq!(got, text, "{}: {messages:?} {}", options.template, options.variables);
                equal += 1;
            }
            (Err(error), None, Some(words)) => {
                assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
                assert!(error.to_string().contains(words), "{error}");
                refused += 1;
            }
            (got, ..) => panic!("{messages:?}: got {got:?}, expected {case}"),
        }
    }
    println!("{equal} chats equal, {refused} refused alike");
    assert!(equal > 60 && refused > 0);
}

#[test]
fn chat_templates_come_from_everywhere_and_errors_say_what() {
    let (bpe, folder) = (fixture("bpe.json"), support::scratch("templates"));
    let mut fields = byte_level(&bpe, "gpt-2");
    let bare = Tokenizer::from_gguf(write(&folder.join("bare.gguf"), &fields)).unwrap();
    let error = bare.chat(&[("user", "a")], &ChatConfig::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingFile);
    assert!(error.to_string().contains("chat template") && error.to_string().contains("Tokenizer::chat_template"), "{error}");
    fields.push(("chat_template", word("{{ bos_token }}{{ messages[0].content }}")));
    fields.push(("chat_template.tool_use", word("tools")));
    let inside = Tokenizer::from_gguf(write(&folder.join("with.gguf"), &fields)).unwrap();
    assert_eq!(inside.chat(&[("user", "hi")], &ChatConfig::default()).unwrap(), "<|begin|>hi");
    assert_eq!(inside.chat_templates(), ["default", "tool_use"]);
    // A template's special tokens are single ids when the text is encoded.
    assert_eq!(inside.encode("<|begin|>hi").unwrap()[0], inside.id("<|begin|>").unwrap());
    let own = bare.chat_template("{% for m in messages %}{{ m.content.upper() }}{% endfor %}{{ strftime_now('%Y') | length }}");
    assert_eq!(own.chat(&[("user", "a"), ("user", "b")], &ChatConfig { generation_prompt: false, ..ChatConfig::default() }).unwrap(), "AB4");
    for (template, kind, words) in [
        ("{% if %}", ErrorKind::BadFile, "line 1"),
        ("{{ messages[0].content.nosuch() }}", ErrorKind::BadFile, "nosuch"),
        ("{{ raise_exception('no system role') }}", ErrorKind::BadInput, "no system role"),
    ] {
        let error = bare.chat_template(template).chat(&[("user", "a")], &ChatConfig::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let named = ChatConfig { template: "rag".to_string(), ..ChatConfig::default() };
    assert!(inside.chat(&[("user", "a")], &named).unwrap_err().to_string().contains("default, tool_use"));
    let variables = ChatConfig { variables: "[1]".to_string(), ..ChatConfig::default() };
    assert_eq!(inside.chat(&[("user", "a")], &variables).unwrap_err().kind(), ErrorKind::BadConfig);
    std::fs::write(folder.join("tokenizer.json"), fixture("chat.json")["tokenizer"].to_string()).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), "alone").unwrap();
    assert_eq!(Tokenizer::from_file(folder.join("tokenizer.json")).unwrap().chat(&[], &ChatConfig::default()).unwrap(), "alone");
    std::fs::write(folder.join("tokenizer_config.json"), "{\"chat_template\": 3}").unwrap();
    let error = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap_err();
    assert!(error.kind() == ErrorKind::BadFile && error.to_string().contains("tokenizer_config.json: chat_template: got 3"), "{error}");
}

#[test]
fn spoilt_vocabularies() {
    let (bpe, folder) = (fixture("bpe.json"), support::scratch("vocabularies"));
    let refused = |fields: &[(&'static str, Value)], kind: ErrorKind, words: &[&str]| {
        let error = Tokenizer::from_gguf(write(&folder.join("bad.gguf"), fields)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "'{error}' does not say '{word}'");
        }
    };
    refused(&byte_level(&bpe, "martian"), ErrorKind::Unsupported, &["bad.gguf", "tokenizer.ggml.pre", "'martian'", "llama-bpe", "qwen2", "tokenizer.json"]);
    let without = |fields: Vec<(&'static str, Value)>, name: &str| fields.into_iter().filter(|(field, _)| *field != name).collect::<Vec<_>>();
    refused(&without(byte_level(&bpe, "gpt-2"), "ggml.merges"), ErrorKind::BadFile, &["merges"]);
    refused(&without(byte_level(&bpe, "gpt-2"), "ggml.tokens"), ErrorKind::BadFile, &["tokens"]);
    let mut short = without(byte_level(&bpe, "gpt-2"), "ggml.token_type");
    short.push(("ggml.token_type", Value::Array(vec![Value::I32(1); 3])));
    refused(&short, ErrorKind::BadFile, &["token_type", "3 types"]);
    let mut odd = without(byte_level(&bpe, "gpt-2"), "ggml.merges");
    odd.push(("ggml.merges", Value::Array(vec![word("ab")])));
    refused(&odd, ErrorKind::BadFile, &["merges", "'ab'"]);
    let pieces = fixture("sentencepiece.json");
    refused(&without(scored(&pieces[0]), "ggml.scores"), ErrorKind::BadFile, &["scores", "0 numbers"]);
    refused(&[("ggml.model", word("bert")), ("ggml.tokens", texts(&bpe["tokens"]))], ErrorKind::Unsupported, &["'bert'", "gpt2 or llama"]);
    assert_eq!(Tokenizer::from_gguf("/nowhere.gguf").unwrap_err().kind(), ErrorKind::MissingFile);
}
