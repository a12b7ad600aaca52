//! Attribution on random models of real shapes: edges are effects on longer prompts, whatever the width
//! of heads; and, run by hand (`cargo test -p cltlab-cli --test suite -- --ignored attribution_speed --nocapture`),
//! rows per second, which print and assert nothing. Beside circuit-tracer and for prompts of up to 4,096
//! tokens: `./x bench attribution`, with `--scaling`.

use crate::support::scratch;
use cltlab::candle::{safetensors, Device, Tensor};
use cltlab::clt::{Activation, Clt, CltConfig, LayerWeights};
use cltlab::graph::{AttributeConfig, PruneConfig};
use cltlab::model::LoadConfig;
use cltlab::replacement::Replacement;
use cltlab::Model;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn normal(std: f64, shape: &[usize]) -> Tensor {
    (Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap() * std).unwrap()
}

/// A random GPT-2 with `layers` layers of width `d`, heads of 64.
pub fn random_gpt2(layers: usize, d: usize, vocab: usize, context: usize) -> Model {
    random_heads(layers, d, d / 64, vocab, context)
}

/// The same with `heads` heads.
fn random_heads(layers: usize, d: usize, heads: usize, vocab: usize, context: usize) -> Model {
    let folder = scratch(&format!("gpt2-{layers}-{d}-{heads}"));
    save_heads(layers, d, heads, vocab, context, &folder);
    let model = Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    model
}

/// Writes a random GPT-2 with heads of 64 into a new folder, which it returns.
pub fn save_random_gpt2(layers: usize, d: usize, vocab: usize, context: usize, folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    save_heads(layers, d, d / 64, vocab, context, folder);
    folder.to_path_buf()
}

fn save_heads(layers: usize, d: usize, heads: usize, vocab: usize, context: usize, folder: &Path) {
    let config = serde_json::json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": d, "n_head": heads,
        "n_inner": 4 * d, "n_layer": layers, "n_positions": context, "n_ctx": context, "vocab_size": vocab, "layer_norm_epsilon": 1e-5,
        "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": true
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut weights: HashMap<String, Tensor> = HashMap::new();
    let one = |n: usize| Tensor::ones(n, cltlab::candle::DType::F32, &Device::Cpu).unwrap();
    weights.insert("transformer.wte.weight".into(), normal(0.4, &[vocab, d]));
    weights.insert("transformer.wpe.weight".into(), normal(0.1, &[context, d]));
    let scale = 1.0 / (d as f64).sqrt();
    for l in 0..layers {
        let mut put = |name: &str, tensor: Tensor| weights.insert(format!("transformer.h.{l}.{name}"), tensor);
        for norm in ["ln_1", "ln_2"] {
            put(&format!("{norm}.weight"), one(d));
            put(&format!("{norm}.bias"), normal(0.1, &[d]));
        }
        for (name, from, to, std) in [("attn.c_attn", d, 3 * d, scale), ("attn.c_proj", d, d, scale), ("mlp.c_fc", d, 4 * d, scale), ("mlp.c_proj", 4 * d, d, scale / 2.0)] {
            put(&format!("{name}.weight"), normal(std, &[from, to]));
            put(&format!("{name}.bias"), normal(0.1, &[to]));
        }
    }
    weights.insert("transformer.ln_f.weight".into(), one(d));
    weights.insert("transformer.ln_f.bias".into(), normal(0.1, &[d]));
    safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
}

/// A random CLT with `l0` features a token and layer.
pub fn random_clt(layers: usize, d: usize, features: usize, l0: usize) -> Clt {
    let scale = 1.0 / (d as f64).sqrt();
    let weights = (0..layers).map(|l| LayerWeights {
        encoder: normal(scale, &[features, d]),
        encoder_bias: normal(0.1, &[features]),
        threshold: None,
        decoder: normal(scale * 0.2, &[features, layers - l, d]),
        decoder_bias: normal(0.1, &[d]),
        skip: None,
    });
    let config = CltConfig { layers, width: d, features, activation: Activation::TopK { k: l0 }, ..CltConfig::default() };
    Clt::new(config, weights.collect()).unwrap()
}

fn measure(layers: usize, d: usize, features: usize, l0: usize, tokens: usize, budget: Option<usize>) {
    let replacement = Replacement::new(&random_gpt2(layers, d, 5_000, tokens.max(1_024)), &random_clt(layers, d, features, l0)).unwrap();
    let ids: Vec<u32> = (0..tokens as u32).map(|i| (i * 997) % 5_000).collect();
    for _ in 0..2 {
        let config = AttributeConfig { max_features: budget, ..AttributeConfig::default() };
        let start = Instant::now();
        let graph = replacement.attribute(&ids, &config).unwrap();
        let attributed = start.elapsed().as_secs_f64();
        let pruned = graph.prune(&PruneConfig::default()).unwrap();
        let cut = start.elapsed().as_secs_f64();
        pruned.save(scratch("speed").join("graph.json"), &Default::default()).unwrap();
        let total = start.elapsed().as_secs_f64();
        let rows = graph.nodes.iter().filter(|node| node.feature().is_some()).count() + graph.logits().len();
        println!(
            "L {layers}, d {d}, F {features}, {tokens} tokens: {rows} rows of {} features, {} edges; attribute {attributed:.2} s ({:.0} rows/s), prune {:.3} s, file {:.3} s; peak {} MB",
            graph.active_features().len(), graph.edges().len(), rows as f64 / attributed, cut - attributed, total - cut, peak()
        );
    }
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmHWM")).and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Longer than a block of the kernels, heads of all widths that they cut differently, targets of all
/// lengths, budgeted and whole: edges are effects.
#[test]
fn edges_are_effects_on_longer_prompts() {
    for (d, heads, tokens) in [(128, 2, 230), (96, 2, 210), (240, 3, 200), (224, 2, 40), (72, 3, 60)] {
        let replacement = Replacement::new(&random_heads(3, d, heads, 500, 256), &random_clt(3, d, 64, 3)).unwrap();
        let ids: Vec<u32> = (0..tokens as u32).map(|i| (i * 97) % 500).collect();
        for budget in [Some(60), None].into_iter().take(if tokens > 100 { 1 } else { 2 }) {
            let graph = replacement.attribute(&ids, &AttributeConfig { max_features: budget, ..AttributeConfig::default() }).unwrap();
            let check = replacement.verify_edges(&graph, 20, 9).unwrap();
            println!("d {d}, {heads} heads, {tokens} tokens: {check}");
            // A row at the wrong place is off by all of it; what is left is the forward passes' rounding.
            assert!(check.features.relative() <= 5e-5 && check.logits.relative() <= 5e-4, "d {d}, {heads} heads, {tokens} tokens: {check}");
        }
    }
}

#[test]
#[ignore = "a measurement, some seconds"]
fn small() {
    measure(6, 256, 2048, 32, 16, None);
    measure(6, 256, 2048, 32, 64, Some(2_048));
}

#[test]
#[ignore = "a measurement, needs 3 GB"]
fn gpt2_small() {
    measure(12, 768, 9216, 32, 16, Some(512));
    measure(12, 768, 9216, 32, 16, None);
}
