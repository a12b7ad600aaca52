//! GGUF files whose header is not in order, and models split into parts: what llama.cpp refuses is refused, with
//! the name of the field or tensor.

use crate::reader_models::load;
use crate::support::{fixture, says, scratch, values};
use cltlab::candle::quantized::gguf_file::{self, Content, Value};
use cltlab::candle::Device;
use cltlab::model::Capture;
use cltlab::{ErrorKind, Tokenizer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A metadata entry: key, type and bytes of the value.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

/// A tensor's entry.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|size| size.to_le_bytes()).collect();
    [&text(name)[..], &(dims.len() as u32).to_le_bytes(), &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn file(folder: &Path, fields: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> PathBuf {
    let path = folder.join("made.gguf");
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((fields.len() as u64).to_le_bytes());
    fields.iter().chain(tensors).for_each(|part| bytes.extend(part));
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn headers_that_contradict_themselves() {
    let folder = scratch("gguf-headers");
    let own = entry("general.architecture", 8, &text("llama"));
    let one = tensor("a", &[32, 2], 0, 0);
    let refused = |fields: &[Vec<u8>], tensors: &[Vec<u8>], data: usize, words: &[&str]| {
        let error = load(&file(&folder, fields, tensors, data)).unwrap_err();
        says(&error, error.kind(), &[words, &["made.gguf"]].concat());
        assert!([ErrorKind::BadFile, ErrorKind::Unsupported].contains(&error.kind()), "{error}");
    };
    let u32s = |value: u32| value.to_le_bytes();
    refused(&[own.clone(), own.clone()], &[], 0, &["general.architecture", "twice"]);
    refused(&[own.clone()], &[one.clone(), one.clone()], 512, &["tensor a", "twice"]);
    refused(&[own.clone()], &[one.clone(), tensor("b", &[32, 2], 0, 128)], 512, &["tensor b", "inside tensor a"]);
    refused(&[own.clone()], &[tensor("a", &[32, 2], 0, 8)], 512, &["tensor a: offset", "multiple of the alignment"]);
    refused(&[own.clone()], &[one.clone()], 200, &["length", "tensor a", "truncated"]);
    for alignment in [0, 3, 24] {
        refused(&[own.clone(), entry("general.alignment", 4, &u32s(alignment))], &[one.clone()], 512, &["general.alignment", "power of two"]);
    }
    refused(&[own.clone(), entry("general.alignment", 10, &64_u64.to_le_bytes())], &[one.clone()], 512, &["general.alignment", "u32"]);
    refused(&[own.clone()], &[tensor("a", &[65_536, 1 << 48], 0, 0)], 512, &["tensor a", "shape"]);
    refused(&[own.clone()], &[tensor("a", &[32, 0], 0, 0)], 512, &["tensor a", "shape"]);
    refused(&[own.clone()], &[tensor("a", &[33, 2], 2, 0)], 512, &["tensor a", "block of 32"]);
    for (kind, name) in [(16, "IQ2_XXS"), (20, "IQ4_NL"), (39, "MXFP4"), (77, "type 77")] {
        refused(&[own.clone()], &[tensor("a", &[32, 2], kind, 0)], 512, &["tensor a", name, "Q4_K"]);
    }
    let endless = [&u32s(8)[..], &u64::MAX.to_le_bytes()].concat();
    refused(&[entry("x", 9, &endless)], &[], 0, &["truncated"]);
    refused(&[entry("x", 99, &[])], &[], 0, &["metadata key x", "type 99"]);
    let whole = std::fs::read(fixture("gguf/llama.gguf")).unwrap();
    for cut in [3, 7, 20, 300, whole.len() - 40] {
        std::fs::write(folder.join("made.gguf"), &whole[..cut]).unwrap();
        says(&load(&folder.join("made.gguf")).unwrap_err(), ErrorKind::BadFile, &["made.gguf"]);
    }
    let mut big = whole.clone();
    big[4..8].reverse();
    std::fs::write(folder.join("made.gguf"), big).unwrap();
    says(&load(&folder.join("made.gguf")).unwrap_err(), ErrorKind::Unsupported, &["a big-endian GGUF file"]);
    for (start, word) in [("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"), ("<!doctype html>", "HTML page"), ("{}", "not a GGUF file")] {
        std::fs::write(folder.join("made.gguf"), start).unwrap();
        says(&load(&folder.join("made.gguf")).unwrap_err(), ErrorKind::BadFile, &["made.gguf", word]);
        says(&Tokenizer::from_gguf(folder.join("made.gguf")).unwrap_err(), ErrorKind::BadFile, &["made.gguf", word]);
    }
}

/// Writes the fixture again with more metadata, and of the tensors those for which `keep` holds.
pub fn rewritten(path: &Path, more: &[(&str, Value)], keep: impl Fn(&str) -> bool) {
    let mut from = std::fs::File::open(fixture("gguf/llama.gguf")).unwrap();
    let content = Content::read(&mut from).unwrap();
    let mut metadata: HashMap<&str, &Value> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    metadata.extend(more.iter().map(|(key, value)| (*key, value)));
    let mut names: Vec<&String> = content.tensor_infos.keys().filter(|name| keep(name)).collect();
    names.sort();
    let tensors: Vec<_> = names.iter().map(|name| (name.as_str(), content.tensor(&mut from, name, &Device::Cpu).unwrap())).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let metadata: Vec<(&str, &Value)> = metadata.into_iter().collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

#[test]
fn numbers_in_metadata_are_finite_and_single() {
    let path = scratch("gguf-numbers").join("made.gguf");
    for (key, value, kind) in [
        ("llama.rope.freq_base", Value::F32(f32::NAN), ErrorKind::BadFile),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::INFINITY), ErrorKind::BadFile),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(-1e-5), ErrorKind::BadConfig),
        ("llama.attention.head_count_kv", Value::Array(vec![Value::U32(1), Value::U32(2)]), ErrorKind::BadFile),
        ("llama.block_count", Value::U32(u32::MAX), ErrorKind::BadConfig),
        ("llama.block_count", Value::U64(1 << 63), ErrorKind::BadFile),
        ("llama.block_count", Value::U32(50_000), ErrorKind::BadTensor),
    ] {
        rewritten(&path, &[(key, value)], |_| true);
        let error = load(&path).unwrap_err();
        says(&error, kind, &["made.gguf"]);
        assert!(error.to_string().len() < 1_000, "{error}");
    }
}

#[test]
fn a_split_model_is_read_from_its_first_part() {
    let folder = scratch("gguf-split");
    let part = |number: usize| folder.join(format!("model-{number:05}-of-00003.gguf"));
    let write = |number: usize, keep: &dyn Fn(&str) -> bool| {
        let more = [("split.no", Value::U16(number as u16 - 1)), ("split.count", Value::U16(3)), ("split.tensors.count", Value::I32(30))];
        rewritten(&part(number), &more, keep);
    };
    let of = |name: &str| if name.starts_with("blk.0") { 2 } else if name.starts_with("blk.1") { 3 } else { 1 };
    let mut count = 0;
    rewritten(&folder.join("whole.gguf"), &[], |_| true);
    let content = Content::read(&mut std::fs::File::open(folder.join("whole.gguf")).unwrap()).unwrap();
    count += content.tensor_infos.len();
    for number in 1..=3 {
        let more = [("split.no", Value::U16(number as u16 - 1)), ("split.count", Value::U16(3)), ("split.tensors.count", Value::I32(count as i32))];
        rewritten(&part(number), &more, |name| of(name) == number);
    }
    let logits = |path: &Path| values(&load(path).unwrap().run(&[0, 17, 5, 20], &Capture::logits()).unwrap().logits.unwrap());
    assert_eq!(logits(&part(1)), logits(&folder.join("whole.gguf")));
    says(&load(&part(2)).unwrap_err(), ErrorKind::BadFile, &["part 2", "give the first part", "model-00001-of-00003.gguf"]);
    std::fs::rename(part(1), folder.join("other.gguf")).unwrap();
    says(&load(&folder.join("other.gguf")).unwrap_err(), ErrorKind::BadFile, &["other.gguf", "-00001-of-00003.gguf"]);
    std::fs::rename(folder.join("other.gguf"), part(1)).unwrap();
    write(3, &|name| of(name) == 2);
    says(&load(&part(1)).unwrap_err(), ErrorKind::BadFile, &["model-00003-of-00003.gguf", "in an earlier part too"]);
    write(3, &|name| name == "blk.1.ffn_up.weight");
    says(&load(&part(1)).unwrap_err(), ErrorKind::BadFile, &["split.tensors.count"]);
    std::fs::remove_file(part(3)).unwrap();
    says(&load(&part(1)).unwrap_err(), ErrorKind::MissingFile, &["model-00003-of-00003.gguf", "all 3 parts"]);
}
