//! The base models against reference results: numpy float32 for SmolLM2 and stories260K, TransformerLens for a
//! llama2.c file, the trainer's own activations for gpt-nano-sort.

use crate::support::{self, assert_close, values};
use base64::Engine;
use cltlab::candle::{self as candle_core, Device, Tensor};
use cltlab::model::{Capture, Freeze, GenerateConfig, LoadConfig};
use cltlab::Model;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn numbers(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn greedy(max_tokens: usize) -> GenerateConfig {
    GenerateConfig { max_tokens, ..GenerateConfig::default() }
}

/// Checks top-5 logits, and greedy ids, of every reference prompt.
fn check_prompts(model: &Model, prompts: &serde_json::Value, tolerance: f32) {
    for prompt in prompts.as_array().unwrap() {
        let ids = numbers(&prompt["ids"]);
        let text = prompt["prompt"].as_str().unwrap();
        if !text.is_empty() {
            assert_eq!(model.tokens(text).unwrap(), ids, "ids of {text:?}");
        }
        let run = model.run(&ids, &Capture::default()).unwrap();
        let last = values(&run.logits.unwrap().get(ids.len() - 1).unwrap());
        let top = prompt["top5"].as_array().unwrap();
        let got: Vec<f32> = top.iter().map(|entry| last[entry["id"].as_u64().unwrap() as usize]).collect();
        let expected: Vec<f32> = top.iter().map(|entry| entry["logit"].as_f64().unwrap() as f32).collect();
        assert_close(&format!("top-5 logits of {text:?}"), &got, &expected, tolerance);
        let wanted = numbers(&prompt["greedy_ids"]);
        assert_eq!(model.generate(&ids, &greedy(wanted.len())).unwrap().tokens, wanted, "greedy ids of {text:?}");
    }
}

#[test]
#[ignore = "needs .cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
fn smollm2_equals_numpy() {
    let model = Model::load(&support::smollm2(), &LoadConfig::on(&Device::Cpu)).unwrap();
    let reference: serde_json::Value = cltlab::internal::files::read_json(support::fixture("smollm2/reference.json")).unwrap();
    check_prompts(&model, &reference["prompts"], 2e-3);
}

#[test]
#[ignore = "needs ../shared/data/stories260k"]
fn stories260k_equals_numpy() {
    let folder = support::shared("data/stories260k");
    let model = Model::load(&folder.join("model.bin"), &LoadConfig::on(&Device::Cpu)).unwrap();
    let reference: serde_json::Value = cltlab::internal::files::read_json(folder.join("reference.json")).unwrap();
    check_prompts(&model, &reference, 1e-3);
    let first = &reference[0];
    let ids = model.generate(&[1], &greedy(first["greedy_ids"].as_array().unwrap().len())).unwrap().tokens;
    let all: Vec<u32> = [1].into_iter().chain(ids).collect();
    let text = model.tokenizer().unwrap().decode(&all[1..]).unwrap();
    assert_eq!(text.trim_start(), first["text"].as_str().unwrap().trim_start());
}

/// The committed Llama as a llama2.c checkpoint, whose heads rotate neighbours: TransformerLens's logits.
#[test]
fn a_llama2c_file_equals_transformer_lens() {
    let tensors = support::tensors(&support::small_folder().join("model.safetensors"));
    let rows = |name: &str| -> Vec<f32> { values(&tensors[name]) };
    let (d, head) = (32, 8);
    // Row 2i of a head is the i-th of its first half, row 2i + 1 that of its second.
    let rotated = |all: Vec<f32>| -> Vec<f32> {
        let of = |at: usize| at / head * head + at % head / 2 + at % 2 * (head / 2);
        (0..all.len() / d).flat_map(|at| all[of(at) * d..][..d].to_vec()).collect()
    };
    let mut numbers = rows("model.embed_tokens.weight");
    for name in ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"] {
        for layer in 0..3 {
            let all = rows(&format!("model.layers.{layer}.{name}.weight"));
            numbers.extend(if name.ends_with("q_proj") || name.ends_with("k_proj") { rotated(all) } else { all });
        }
    }
    numbers.extend(rows("model.norm.weight"));
    numbers.extend(vec![0.0; 64 * head]);
    numbers.extend(rows("lm_head.weight"));
    // A negative vocabulary: the unembedding is not the embedding.
    let words = [d as i32, 96, 3, 4, 2, -128, 64];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).chain(numbers.iter().flat_map(|number| number.to_le_bytes())).collect();
    let path = support::scratch("llama2c-lens").join("model.bin");
    std::fs::write(&path, bytes).unwrap();
    let expected = support::tensors(&support::fixture("attribution/llama/expected.safetensors"));
    let prompt: Vec<u32> = expected["input_tokens"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect();
    let run = Model::load(path.to_str().unwrap(), &LoadConfig::on(&Device::Cpu)).unwrap().run(&prompt, &Capture::default()).unwrap();
    assert_close("logits", &values(&run.logits.unwrap()), &values(&expected["tl_logits"]), 1e-4);
}

/// llm-viz's JSON of tensors: base64 of little-endian f32.
fn json_tensors(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let json: serde_json::Map<String, serde_json::Value> = cltlab::internal::files::read_json(path).unwrap();
    json.into_iter()
        .filter_map(|(name, entry)| {
            let raw = base64::engine::general_purpose::STANDARD.decode(entry.get("data")?.as_str()?).unwrap();
            let numbers = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Some((name, (numbers_of(&entry["shape"]), numbers)))
        })
        .collect()
}

fn numbers_of(value: &serde_json::Value) -> Vec<usize> {
    numbers(value).into_iter().map(|n| n as usize).collect()
}

/// Writes gpt-nano-sort as a Hugging Face GPT-2 folder (its linear maps are stored `[out, in]`).
fn nano_sort_folder(json: &Path) -> PathBuf {
    let folder = support::scratch("nano-sort");
    let tensors: HashMap<String, Tensor> = json_tensors(json)
        .into_iter()
        .filter(|(name, _)| !name.ends_with(".attn.bias"))
        .map(|(name, (shape, numbers))| {
            let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
            let conv = name.contains(".c_") && name.ends_with(".weight");
            (name, if conv { tensor.t().unwrap().contiguous().unwrap() } else { tensor })
        })
        .collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({"model_type": "gpt2", "n_layer": 3, "n_head": 3, "n_embd": 48, "vocab_size": 3, "n_positions": 11, "tie_word_embeddings": false});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
#[ignore = "needs ../shared/data/gpt-nano-sort"]
fn nano_sort_equals_its_trainer() {
    let data = support::shared("data/gpt-nano-sort");
    let model = Model::load(&nano_sort_folder(&data.join("gpt-nano-sort-model.json")), &LoadConfig::on(&Device::Cpu)).unwrap();
    let partials = json_tensors(&data.join("gpt-nano-sort-t0-partials.json"));
    let (shape, ids) = &partials["idx"];
    let (batch, tokens) = (shape[0], shape[1]);
    for row in 0..batch {
        let prompt: Vec<u32> = ids[row * tokens..(row + 1) * tokens].iter().map(|id| *id as u32).collect();
        let run = model.run(&prompt, &Capture::default()).unwrap();
        let expected = |name: &str| {
            let (shape, numbers) = &partials[name];
            let size = shape[1..].iter().product::<usize>();
            numbers[row * size..(row + 1) * size].to_vec()
        };
        let first = &run.layers[0];
        for (name, got) in [("x", &first.resid_pre), ("attSm", &first.attn_pattern), ("attnResid", &first.resid_mid), ("ln2", &first.mlp_in), ("mlp", &first.mlp_out)] {
            assert_close(name, &values(got.as_ref().unwrap()), &expected(name), 1e-5);
        }
        for layer in [1, 2] {
            assert_close("block", &values(run.layers[layer].resid_pre.as_ref().unwrap()), &expected(&format!("block{}", layer - 1)), 1e-5);
        }
        assert_close("lm_head", &values(run.logits.as_ref().unwrap()), &expected("lm_head"), 1e-5);
    }
}

/// With everything frozen the model is linear: the closed-form transpose must equal differences of
/// the frozen forward pass, `<g, f(x + v) - f(x)> = <back(g), v>`.
#[test]
fn frozen_backward_is_the_transpose_of_the_frozen_forward() {
    for family in ["gpt2", "llama"] {
        let folder = support::fixture(&format!("parity/{family}"));
        let model = Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap();
        let prompt = [1_u32, 5, 9, 2, 7, 3];
        let run = model.run(&prompt, &Capture::default()).unwrap();
        let (tokens, width) = (prompt.len(), model.width());
        let push = Tensor::randn(0.0_f32, 1.0, (tokens, width), &Device::Cpu).unwrap();
        let probe = Tensor::randn(0.0_f32, 1.0, (tokens, width), &Device::Cpu).unwrap();
        // Adding `push` to what layer 0's MLP writes, all MLPs held, moves the stream before layer 1.
        let moved = |scale: f64| {
            let mut hold = |layer: usize, _: &cltlab::model::MlpSite<'_>| {
                let out = run.layers[layer].mlp_out.clone().unwrap();
                Ok(Some(if layer == 0 { (out + (&push * scale)?)? } else { out }))
            };
            let pushed = model.run_spliced(&prompt, &Capture::default(), Freeze::all(&run), &mut hold).unwrap();
            pushed.layers[1].resid_mid.clone().unwrap()
        };
        let difference = (moved(1.0) - moved(0.0)).unwrap();
        let forward: f32 = (&difference * &probe).unwrap().sum_all().unwrap().to_scalar().unwrap();
        let g = probe.unsqueeze(0).unwrap();
        let through = model.back_attention(1, &run, &g).unwrap();
        let back = (g + through).unwrap().squeeze(0).unwrap();
        let backward: f32 = (back * &push).unwrap().sum_all().unwrap().to_scalar().unwrap();
        println!("{family}: forward {forward}, backward {backward}");
        assert!((forward - backward).abs() <= 1e-3 * forward.abs().max(1.0), "{family}: {forward} against {backward}");
    }
}
