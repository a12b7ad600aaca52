//! The forward pass's kernels against plain sums in f64: a small random Llama, whole forward, at
//! lengths around the kernels' edges (panels of 48 tokens, registers of 16, tiles of 8 outputs).

use crate::numbers::Numbers;
use crate::support::{assert_close, scratch, values};
use cltlab::candle::{Device, Tensor};
use cltlab::model::{Capture, LoadConfig};
use cltlab::Model;
use std::collections::HashMap;
use std::path::Path;

const WIDTH: usize = 64;
const HEADS: usize = 4;
const GROUPS: usize = 2;
const HEAD: usize = 16;
const HIDDEN: usize = 72;
const VOCAB: usize = 101;
const LAYERS: usize = 2;
const CONTEXT: usize = 160;
const BASE: f64 = 10_000.0;

type Weights = HashMap<String, Vec<f64>>;

/// Writes the model and returns its weights.
fn write(folder: &Path) -> Weights {
    let mut shapes = vec![("model.embed_tokens".to_string(), vec![VOCAB, WIDTH]), ("lm_head".into(), vec![VOCAB, WIDTH]), ("model.norm".into(), vec![WIDTH])];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![WIDTH]), ("post_attention_layernorm", vec![WIDTH]),
            ("self_attn.q_proj", vec![HEADS * HEAD, WIDTH]), ("self_attn.k_proj", vec![GROUPS * HEAD, WIDTH]),
            ("self_attn.v_proj", vec![GROUPS * HEAD, WIDTH]), ("self_attn.o_proj", vec![WIDTH, HEADS * HEAD]),
            ("mlp.gate_proj", vec![HIDDEN, WIDTH]), ("mlp.up_proj", vec![HIDDEN, WIDTH]), ("mlp.down_proj", vec![WIDTH, HIDDEN]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let mut numbers = Numbers::new(7);
    let (mut tensors, mut weights) = (HashMap::new(), Weights::new());
    for (name, shape) in shapes {
        let scale = if shape.len() == 1 { 1.0 } else { 2.0 / (shape[1] as f32).sqrt() };
        let drawn: Vec<f32> = numbers.take(shape.iter().product()).into_iter().map(|value| value * scale).collect();
        weights.insert(name.clone(), drawn.iter().map(|value| f64::from(*value)).collect());
        tensors.insert(format!("{name}.weight"), Tensor::from_vec(drawn, shape, &Device::Cpu).unwrap());
    }
    cltlab::candle::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": HEAD, "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": BASE, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    weights
}

/// `x wᵀ`, row by row.
fn times(x: &[Vec<f64>], w: &[f64]) -> Vec<Vec<f64>> {
    let dot = |row: &[f64], w: &[f64]| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
    x.iter().map(|row| w.chunks(row.len()).map(|w| dot(row, w)).collect()).collect()
}

fn norm(x: &[Vec<f64>], weight: &[f64]) -> Vec<Vec<f64>> {
    let scale = |row: &[f64]| (row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64 + 1e-5).sqrt();
    x.iter().map(|row| row.iter().zip(weight).map(|(value, weight)| value / scale(row) * weight).collect()).collect()
}

fn add(x: &mut [Vec<f64>], y: &[Vec<f64>]) {
    x.iter_mut().flatten().zip(y.iter().flatten()).for_each(|(x, y)| *x += y);
}

fn turn(rows: &mut [Vec<f64>]) {
    for (position, row) in rows.iter_mut().enumerate() {
        for head in row.chunks_mut(HEAD) {
            for pair in 0..HEAD / 2 {
                let (sin, cos) = (position as f64 * BASE.powf(-(2.0 * pair as f64) / HEAD as f64)).sin_cos();
                let (a, b) = (head[pair], head[pair + HEAD / 2]);
                (head[pair], head[pair + HEAD / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}

fn logits(weights: &Weights, tokens: &[u32]) -> Vec<f32> {
    let mut x: Vec<Vec<f64>> = tokens.iter().map(|id| weights["model.embed_tokens"][*id as usize * WIDTH..][..WIDTH].to_vec()).collect();
    for layer in 0..LAYERS {
        let part = |name: &str| &weights[&format!("model.layers.{layer}.{name}")];
        let normed = norm(&x, part("input_layernorm"));
        let (mut q, mut k, v) = (times(&normed, part("self_attn.q_proj")), times(&normed, part("self_attn.k_proj")), times(&normed, part("self_attn.v_proj")));
        turn(&mut q);
        turn(&mut k);
        let mut mixed = vec![vec![0.0; HEADS * HEAD]; tokens.len()];
        for (query, mixed) in mixed.iter_mut().enumerate() {
            for head in 0..HEADS {
                let (ours, theirs) = (head * HEAD, head * GROUPS / HEADS * HEAD);
                let score = |key: usize| (0..HEAD).map(|i| q[query][ours + i] * k[key][theirs + i]).sum::<f64>() / (HEAD as f64).sqrt();
                let scores: Vec<f64> = (0..=query).map(|key| score(key).exp()).collect();
                let total: f64 = scores.iter().sum();
                for (key, score) in scores.iter().enumerate() {
                    (0..HEAD).for_each(|i| mixed[ours + i] += score / total * v[key][theirs + i]);
                }
            }
        }
        add(&mut x, &times(&mixed, part("self_attn.o_proj")));
        let normed = norm(&x, part("post_attention_layernorm"));
        let (gate, mut hidden) = (times(&normed, part("mlp.gate_proj")), times(&normed, part("mlp.up_proj")));
        hidden.iter_mut().flatten().zip(gate.iter().flatten()).for_each(|(up, gate)| *up *= gate / (1.0 + (-gate).exp()));
        add(&mut x, &times(&hidden, part("mlp.down_proj")));
    }
    times(&norm(&x, &weights["model.norm"]), &weights["lm_head"]).into_iter().flatten().map(|logit| logit as f32).collect()
}

#[test]
fn forward_equals_plain_sums() {
    let folder = scratch("forward");
    let weights = write(&folder);
    let model = Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap();
    for count in [1, 7, 8, 15, 16, 17, 33, 48, 49, 97, 150] {
        let tokens: Vec<u32> = (0..count).map(|place| (place * 37 + 11) % VOCAB as u32).collect();
        let wanted = logits(&weights, &tokens);
        let tolerance = 1e-5 * wanted.iter().fold(0.0_f32, |top, logit| top.max(logit.abs()));
        // With patterns kept, attention goes another way.
        for capture in [Capture::logits(), Capture::default()] {
            let run = model.run(&tokens, &capture).unwrap();
            assert_close(&format!("{count} tokens, patterns {}", capture.patterns), &values(&run.logits.unwrap()), &wanted, tolerance);
        }
    }
}
