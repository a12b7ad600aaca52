//! Every reader against mutated files: a few hundred mutations each of committed files, always the same, and minutes
//! of others by hand. A reader gives a value or an error: it does not panic, end the process, take minutes or gigabytes.
//!
//! ```text
//! CLTLAB_FUZZ_SECONDS=600 [CLTLAB_FUZZ_TARGET=gguf] [CLTLAB_FUZZ_SEED=7] \
//!     cargo nextest run -p cltlab -p cltlab-cli --test suite --run-ignored only mutations::by_hand
//! ```
//!
//! An input that shows a fault is written to the temporary folder, by name; made small, it belongs into
//! `tests/fixtures/mutations/TARGET/`, whose files are read as they are before any mutation.

use crate::reader_models::load;
use crate::support::{copy_all, fixture, root, scratch};
use cltlab::candle::Device;
use cltlab::graph::Supernode;
use cltlab::model::Capture;
use cltlab::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One reader and a file that it reads.
pub struct Target {
    pub name: String,
    /// A folder in which everything but `file` is in order.
    pub folder: PathBuf,
    pub file: PathBuf,
    pub read: fn(&Path, &Path) -> Result<()>,
}

/// A target on a copy of a fixture's folder.
fn of(name: &str, from: &Path, file: &str, read: fn(&Path, &Path) -> Result<()>) -> Target {
    let label = file.replace('/', "-");
    let folder = scratch(&format!("mutations-{name}-{}-{label}", from.file_name().unwrap().to_string_lossy()));
    copy_all(from, &folder);
    Target { name: name.into(), folder, file: file.into(), read }
}

/// A target on a file of these bytes alone.
fn alone(name: &str, file: &str, bytes: &[u8], read: fn(&Path, &Path) -> Result<()>) -> Target {
    let folder = scratch(&format!("mutations-{name}-{file}"));
    std::fs::write(folder.join(file), bytes).unwrap();
    Target { name: name.into(), folder, file: file.into(), read }
}

/// Numbers that sizes and offsets are tried with.
const NOTED: [u64; 10] = [0, 1, 2, 0x7F, 0xFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 62, u64::MAX / 2, u64::MAX];

/// One to eight changes: bits, numbers of note, cuts, repeats, moves, characters that formats are made of. Half of them lie in the first
/// 600 bytes, where headers are.
fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..[1, 1, 1, 2, 4, 8][random.random_range(0..6)] {
        let end = if random.random() { bytes.len().min(600) } else { bytes.len() };
        let at = random.random_range(0..=end);
        let some = at..(at + random.random_range(1..40)).min(bytes.len());
        match random.random_range(0..8) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.random_range(0..8);
                }
            }
            2 => {
                let number = NOTED[random.random_range(0..NOTED.len())].to_le_bytes();
                let count = [1, 2, 4, 8][random.random_range(0..4)].min(bytes.len() - at);
                bytes[at..at + count].copy_from_slice(&number[..count]);
            }
            3 => bytes.truncate(if random.random_range(0..4) == 0 { at } else { bytes.len() }),
            4 => {
                let part = bytes[some].repeat([1, 3, 50][random.random_range(0..3)]);
                bytes.splice(at..at, part);
            }
            5 => drop(bytes.drain(some)),
            6 => {
                let made = [&b"\0"[..], b"\xFF", b"\"", b"{", b"[", b"]", b"\n", b"-", b"99999999999999999999", b"e999", b"\\u", b"null", b": ", b"&a", b"*a", b"\x1b["];
                let part = made[random.random_range(0..made.len())];
                let gone = at..(at + random.random_range(0..4)).min(bytes.len());
                bytes.splice(gone, part.iter().copied());
            }
            _ => {
                let to = random.random_range(0..=bytes.len());
                let part = bytes[some].to_vec();
                bytes.splice(to..to, part);
            }
        }
    }
}

/// Reads `bytes` in the target's folder. What goes wrong is said with the place where the input is kept.
fn attempt(target: &Target, bytes: &[u8], what: &str) {
    let path = target.folder.join(&target.file);
    std::fs::write(&path, bytes).unwrap();
    let started = Instant::now();
    let done = std::panic::catch_unwind(|| (target.read)(&target.folder, &path));
    let took = started.elapsed();
    let fault = match done {
        Err(_) => "a panic".to_string(),
        Ok(Err(error)) if error.to_string().len() > 30_000 => format!("an error of {} bytes", error.to_string().len()),
        Ok(_) if took > Duration::from_secs(40) => format!("{took:.0?}"),
        Ok(_) => return,
    };
    let kept = std::env::temp_dir().join(format!("cltlab-mutation-{}-{}", target.name, what.replace(' ', "-")));
    std::fs::write(&kept, bytes).unwrap();
    panic!("{} {}, {what}: {fault}; the input: {}", target.name, target.file.display(), kept.display());
}

/// Bytes of memory that this process held at most.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn tried(targets: &[Target], seed: u64, count: usize, limit: Duration) {
    for target in targets {
        let whole = std::fs::read(target.folder.join(&target.file)).unwrap();
        (target.read)(&target.folder, &target.folder.join(&target.file)).unwrap_or_else(|error| panic!("{} {} as it is: {error}", target.name, target.file.display()));
        let kept = root().join("tests/fixtures/mutations").join(&target.name);
        for entry in std::fs::read_dir(kept).into_iter().flatten() {
            let path = entry.unwrap().path();
            attempt(target, &std::fs::read(&path).unwrap(), &path.file_name().unwrap().to_string_lossy());
        }
        let (started, mut runs) = (Instant::now(), 0);
        while runs < count && started.elapsed() < limit {
            let mut bytes = whole.clone();
            mutate(&mut bytes, &mut StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(runs as u64)));
            attempt(target, &bytes, &format!("seed {seed} run {runs}"));
            runs += 1;
        }
        println!("{} {}: {runs} mutations in {:.1?}", target.name, target.file.display(), started.elapsed());
    }
    assert!(peak() < 2 << 30, "{} MiB of memory", peak() >> 20);
    println!("peak {} MiB", peak() >> 20);
}

fn model(folder: &Path, _: &Path) -> Result<()> {
    load(folder)?.run([1, 2, 3], &Capture::logits()).map(|_| ())
}

fn model_file(_: &Path, path: &Path) -> Result<()> {
    let tokens = Tokenizer::from_gguf(path).and_then(|tokenizer| tokenizer.encode("a b"));
    load(path)?.run([1, 2, 3], &Capture::logits())?;
    // A fixture without a vocabulary is a model all the same.
    drop(tokens);
    Ok(())
}

fn checkpoint_file(_: &Path, path: &Path) -> Result<()> {
    load(path)?.run([1, 2, 3], &Capture::logits()).map(|_| ())
}

fn models() -> Vec<Target> {
    let mut all = Vec::new();
    for family in ["gpt2", "llama", "gemma3_text", "qwen3_yarn", "phi3_longrope", "gpt_neo"] {
        all.push(of("config", &fixture(&format!("parity/{family}")), "config.json", model));
    }
    all.push(of("safetensors", &fixture("parity/llama"), "model.safetensors", model));
    let split = of("index", &fixture("parity/llama"), "model.safetensors.index.json", model);
    std::fs::rename(split.folder.join("model.safetensors"), split.folder.join("model-00001-of-00001.safetensors")).unwrap();
    let names = crate::support::tensors(&split.folder.join("model-00001-of-00001.safetensors"));
    let map: serde_json::Map<String, serde_json::Value> = names.keys().map(|name| (name.clone(), "model-00001-of-00001.safetensors".into())).collect();
    std::fs::write(split.folder.join(&split.file), serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    all.push(split);
    let small = crate::reader_models::llama2c("mutations-llama2c", &[], 0);
    all.push(alone("llama2c", "model.bin", &std::fs::read(small).unwrap(), checkpoint_file));
    all
}

fn ggufs() -> Vec<Target> {
    ["llama", "gpt2", "gemma3", "qwen3_yarn"].iter().map(|family| alone("gguf", &format!("{family}.gguf"), &std::fs::read(fixture(&format!("gguf/{family}.gguf"))).unwrap(), model_file)).collect()
}

fn clt(folder: &Path, _: &Path) -> Result<()> {
    let clt = Clt::load(folder, &CltLoadConfig::on(&Device::Cpu))?;
    for l in 0..clt.layers() {
        let inputs = cltlab::candle::Tensor::ones((2, clt.config().width), DType::F32, &Device::Cpu)?;
        clt.encode_layer(l, &inputs)?;
        clt.decoder(l)?.sum_all()?;
    }
    Ok(())
}

fn clts() -> Vec<Target> {
    let formats = [
        ("clt_forge_clt", "clt_cfg.json"),
        ("clt_forge_shards", "rank1_clt_weights.safetensors"),
        ("crosslayer_coding_jumprelu", "cfg.json"),
        ("crosslayer_coding_jumprelu", "norm_stats.json"),
        ("crosslayer_coding_per_source", "clt_checkpoint_latest.safetensors"),
        ("crosslayer_transcoder_plt", "config.yaml"),
        ("crosslayer_transcoder_unfolded", "checkpoint.safetensors"),
        ("gemma_scope", "layer_1/width_12/average_l0_4/params.npz"),
        ("gemma_scope_2_clt", "params_layer_1.safetensors"),
        ("gemma_scope_2_plt", "layer_1_width_12_l0_small_affine/config.json"),
        ("saelens_jumprelu_skip", "number_6/cfg.json"),
        ("saelens_jumprelu_skip", "number_6/sae_weights.safetensors"),
        ("sparsify_untied", "h.1.mlp/cfg.json"),
        ("sparsify_window", "h.1.mlp/sae.safetensors"),
        ("sparsify_plt", "config.json"),
    ];
    let mut all: Vec<Target> = formats.iter().map(|(case, file)| of("clt", &fixture(&format!("formats/{case}")), file, clt)).collect();
    for target in &all {
        let _ = std::fs::remove_file(target.folder.join("expected.safetensors"));
    }
    all.push(of("yaml", &fixture("attribution/llama/clt"), "config.yaml", clt));
    all.push(of("yaml", &fixture("per_layer/llama_skip"), "config.yaml", clt));
    all.push(of("clt", &fixture("attribution/llama/clt"), "W_dec_1.safetensors", clt));
    all
}

fn tokenizer(_: &Path, path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_file(path)?;
    let ids = tokenizer.encode("w1 w2 café <|endoftext|> \u{1F980}")?;
    tokenizer.decode(&ids).map(|_| ())
}

fn template(_: &Path, path: &Path) -> Result<()> {
    let text = cltlab::internal::files::read_text(path)?;
    let tokenizer = Tokenizer::from_file(fixture("attribution/llama/model/tokenizer.json"))?;
    tokenizer.chat_template(&text).chat(&[("system", "short"), ("user", "hello"), ("assistant", "a \"b\"")], &Default::default()).map(|_| ())
}

fn tokenizers() -> Vec<Target> {
    let words: serde_json::Value = cltlab::internal::files::read_json(fixture("attribution/llama/model/tokenizer.json")).unwrap();
    let mut bpe = words.clone();
    bpe["pre_tokenizer"] = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    bpe["decoder"] = bpe["pre_tokenizer"].clone();
    bpe["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]});
    bpe["model"] = serde_json::json!({"type": "BPE", "vocab": {"<|endoftext|>": 0, "1": 1, "2": 2, "w1": 3, "\u{120}": 4, "c": 5, "a": 6, "f": 7, "w": 8}, "merges": [["w", "1"]], "byte_fallback": false});
    let mut unigram = words.clone();
    unigram["pre_tokenizer"] = serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    unigram["model"] = serde_json::json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["<|endoftext|>", 0.0], ["\u{2581}w", -1.0], ["1", -2.0], ["w", -2.5]]});
    let mut all: Vec<Target> = [("words", words), ("bpe", bpe), ("unigram", unigram)].iter().map(|(file, value)| alone("tokenizer", &format!("{file}.json"), value.to_string().as_bytes(), tokenizer)).collect();
    let chat: serde_json::Value = cltlab::internal::files::read_json(fixture("text/chat.json")).unwrap();
    for (name, text) in chat["templates"].as_object().unwrap() {
        all.push(alone("template", &format!("{name}.jinja"), text.as_str().unwrap().as_bytes(), |folder, path| {
            // A template may refuse these messages.
            let _ = template(folder, path);
            Ok(())
        }));
    }
    all
}

fn corpus(_: &Path, path: &Path) -> Result<()> {
    Corpus::load(path, &Default::default()).map(|_| ())
}

fn texts() -> Vec<Target> {
    let lines = "{\"text\": \"One caf\u{e9} \u{1F980}\"}\n{\"id\": 7, \"text\": \"Two, \\\"quoted\\\" \\u00e9\"}\n\"Three\"\n";
    let list = "[{\"text\": \"One\"}, null, \"Two\", {\"a\": [1, {\"b\": null}], \"text\": \"Three\"}]";
    let table = "id,text\r\n1,\"One, \"\"quoted\"\"\nsecond line\"\r\n2,Two\r\n";
    let packed = |text: &str| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gz, text.as_bytes()).unwrap();
        gz.finish().unwrap()
    };
    let path = scratch("mutations-parquet").join("a.parquet");
    let value = Some("One text of some length \u{e9}".as_bytes());
    let mut all = Vec::new();
    for (name, codec) in [("plain", parquet::basic::Compression::UNCOMPRESSED), ("snappy", parquet::basic::Compression::SNAPPY), ("zstd", parquet::basic::Compression::ZSTD(Default::default()))] {
        crate::text_inputs::parquet(&path, "optional binary text (UTF8)", &[value, None, value], codec);
        all.push(alone("parquet", &format!("{name}.parquet"), &std::fs::read(&path).unwrap(), corpus));
    }
    for (file, bytes) in [
        ("a.txt", "One text.\n\nAnother.".as_bytes().to_vec()),
        ("a.jsonl", lines.into()),
        ("a.json", list.into()),
        ("a.csv", table.into()),
        ("a.tsv", table.replace(',', "\t").into()),
        ("a.txt.gz", packed("One text.")),
        ("a.jsonl.gz", packed(lines)),
        ("a.jsonl.zst", zstd::bulk::compress(lines.as_bytes(), 3).unwrap()),
    ] {
        all.push(alone("text", file, &bytes, corpus));
    }
    all
}

fn activations(_: &Path, path: &Path) -> Result<()> {
    Trainer::new(&Activations::load(path, &Default::default())?, &shape(), &TrainConfig { steps: 1, batch_tokens: 8, ..TrainConfig::default() })?.run().map(|_| ())
}

fn shape() -> CltConfig {
    CltConfig { layers: 1, width: 2, features: 4, activation: Activation::TopK { k: 2 }, ..CltConfig::default() }
}

fn store(folder: &Path, _: &Path) -> Result<()> {
    let activations = Activations::load(folder, &Default::default())?;
    let shape = CltConfig { features: 24, layers: activations.layers(), width: activations.width(), model_fingerprint: activations.model_fingerprint().to_string(), activation: Activation::TopK { k: 4 }, ..CltConfig::default() };
    Trainer::new(&activations, &shape, &TrainConfig { steps: 1, batch_tokens: 8, ..TrainConfig::default() })?.run().map(|_| ())
}

fn resumed(_: &Path, path: &Path) -> Result<()> {
    Trainer::resume(path, &crate::forged::tiny()).map(|_| ())
}

fn groups(_: &Path, path: &Path) -> Result<()> {
    Supernode::load(path).map(|_| ())
}

fn sealed() -> Vec<Target> {
    let made = crate::forged::store("mutations-store-made");
    let checkpoint = crate::forged::checkpoint("mutations-checkpoint-made", &crate::forged::tiny(), &shape());
    let tensors: std::collections::HashMap<&str, _> = [("input.0", 0.7f32), ("target.0", 0.3)].into_iter().map(|(name, phase)| {
        let values = (0..40).map(|i| (i as f32 * phase).sin()).collect::<Vec<f32>>();
        (name, cltlab::candle::Tensor::from_vec(values, (20, 2), &Device::Cpu).unwrap())
    }).collect();
    let file = scratch("mutations-activations-made").join("a.safetensors");
    cltlab::candle::safetensors::save(&tensors, &file).unwrap();
    let graph = std::fs::read(fixture("attribution/llama/graph/fixture-llama.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&graph).unwrap();
    json["qParams"]["supernodes"] = serde_json::json!([["a", "0_1_2", "1_3_2"], ["b", "2_9_4"]]);
    vec![
        of("store", &made, "activations.json", store),
        of("store", &made, "shard-00000.safetensors", store),
        alone("checkpoint", "step-00000002.safetensors", &std::fs::read(checkpoint).unwrap(), resumed),
        alone("activations", "a.safetensors", &std::fs::read(file).unwrap(), activations),
        alone("graph", "graph.json", json.to_string().as_bytes(), groups),
        alone("groups", "groups.json", br#"[["a", "0_1_2", "1_3_2"], ["b", "2_9_4"]]"#, groups),
    ]
}

pub fn all() -> Vec<Target> {
    [models(), ggufs(), clts(), tokenizers(), texts(), sealed()].into_iter().flatten().collect()
}

const EACH: usize = 200;
const LONG: Duration = Duration::from_secs(100);

#[test]
fn models_and_index_files() {
    tried(&models(), 1, EACH, LONG);
}

#[test]
fn gguf_files() {
    tried(&ggufs(), 2, EACH, LONG);
}

#[test]
fn clts_of_every_format() {
    tried(&clts(), 3, EACH, LONG);
}

#[test]
fn tokenizers_and_templates() {
    tried(&tokenizers(), 4, EACH, LONG);
}

#[test]
fn texts_of_every_kind() {
    tried(&texts(), 5, EACH, LONG);
}

#[test]
fn stores_checkpoints_and_graphs() {
    tried(&sealed(), 6, EACH, LONG);
}

/// Recipes are read by the program: fewer, for each is a process.
#[test]
fn recipes() {
    let folder = crate::train_command::recipe("mutations-recipe", "");
    let whole = std::fs::read(folder.join("train.toml")).unwrap();
    for run in 0..40 {
        let mut bytes = whole.clone();
        mutate(&mut bytes, &mut StdRng::seed_from_u64(run));
        std::fs::write(folder.join("train.toml"), &bytes).unwrap();
        // A dry run reads and checks all and trains nothing.
        let output = crate::train_command::cltlab(&["train", folder.join("train.toml").to_str().unwrap(), "--dry-run"]);
        let said = crate::train_command::said(&output);
        assert!(matches!(output.status.code(), Some(0 | 1)) && said.len() < 30_000, "run {run}: {:?} {said}\n{}", output.status, String::from_utf8_lossy(&bytes));
    }
}

/// Minutes of other mutations, of all targets or of one: see the head of this file.
#[test]
#[ignore = "by hand: CLTLAB_FUZZ_SECONDS for each target"]
fn by_hand() {
    let setting = |name: &str| std::env::var(name).ok();
    let seconds = setting("CLTLAB_FUZZ_SECONDS").map_or(10, |text| text.parse().unwrap());
    let seed = setting("CLTLAB_FUZZ_SEED").map_or(1_000, |text| text.parse().unwrap());
    let wanted = setting("CLTLAB_FUZZ_TARGET");
    let mut all = all();
    all.retain(|target| wanted.as_ref().is_none_or(|wanted| target.name == *wanted));
    assert!(!all.is_empty(), "no target {wanted:?}");
    tried(&all, seed, usize::MAX, Duration::from_secs(seconds));
}
