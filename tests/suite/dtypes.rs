//! Weights held in bf16 and f16: against the f32 results of transformers with the error that
//! rounding allows, against transformers' own passes in halves, and against f32 weights that were
//! rounded beforehand, where nothing but the order of sums may differ.

use crate::families::{largest, FAMILIES};
use crate::support::{fixture, lively_clt, max_difference, scratch, smollm2, tensors, values};
use cltlab::candle::{safetensors, DType, Device, Tensor};
use cltlab::graph::{AttributeConfig, QkConfig};
use cltlab::model::{Capture, GenerateConfig, LoadConfig, Run, Summary};
use cltlab::replacement::Replacement;
use cltlab::{ErrorKind, Model};
use std::path::Path;

/// Each type and its unit roundoff.
const HALVES: [(DType, f32); 2] = [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)];

fn load(folder: &Path, dtype: DType) -> Model {
    let config = LoadConfig { dtype: Some(dtype), device: Some(Device::Cpu), ..LoadConfig::default() };
    Model::load(&folder, &config).unwrap_or_else(|error| panic!("{error}"))
}

fn prompts(expected: &std::collections::HashMap<String, Tensor>) -> Vec<Vec<u32>> {
    expected["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

/// Logits of all prompts, flattened.
fn logits(model: &Model, prompts: &[Vec<u32>]) -> Vec<f32> {
    let run = |prompt: &Vec<u32>| values(&model.run(prompt, &Capture::logits()).unwrap().logits.unwrap());
    prompts.iter().flat_map(run).collect()
}

/// Each of the maps in series, four a layer beside embedding and unembedding, adds at most the
/// rounding of its weights; a pass of transformers in the same type, which rounds all that lies
/// between too, is further away.
#[test]
fn halves_are_as_near_as_rounding_allows() {
    for family in FAMILIES {
        let folder = fixture(&format!("parity/{family}"));
        let (expected, theirs) = (tensors(&folder.join("expected.safetensors")), tensors(&folder.join("halves.safetensors")));
        let (prompts, whole) = (prompts(&expected), values(&expected["logits"]));
        let top = largest(&whole);
        for (dtype, unit) in HALVES {
            let model = load(&folder, dtype);
            let allowed = (4 * model.layers() + 2) as f32 * unit;
            let off = max_difference(&logits(&model, &prompts), &whole) / top;
            let peer = max_difference(&values(&theirs[dtype.as_str()]), &whole) / top;
            println!("{family} {}: {off:.1e} of the largest logit (allowed {allowed:.1e}; transformers {peer:.1e})", dtype.as_str());
            assert!(off > 0.0 && off <= allowed, "{family} {dtype:?}: {off}, allowed {allowed}");
            assert!(off <= peer, "{family} {dtype:?}: {off}, transformers {peer}");
        }
    }
}

/// A copy of a model's folder whose matrices are rounded to `dtype` and written as f32.
fn rounded(folder: &Path, dtype: DType, name: &str) -> std::path::PathBuf {
    let copy = scratch(name);
    std::fs::copy(folder.join("config.json"), copy.join("config.json")).unwrap();
    let held = |name: &str, tensor: &Tensor| tensor.rank() == 2 && !name.contains("wpe");
    let all = tensors(&folder.join("model.safetensors")).into_iter().map(|(name, tensor)| {
        let tensor = if held(&name, &tensor) { tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap() } else { tensor };
        (name, tensor)
    });
    safetensors::save(&all.collect(), copy.join("model.safetensors")).unwrap();
    copy
}

fn sites(run: &Run) -> Vec<(String, Vec<f32>)> {
    let mut all = vec![("logits".to_string(), run.logits.clone())];
    for (l, layer) in run.layers.iter().enumerate() {
        all.extend([(format!("resid_mid.{l}"), layer.resid_mid.clone()), (format!("mlp_in.{l}"), layer.mlp_in.clone())]);
        all.extend([(format!("mlp_out.{l}"), layer.mlp_out.clone()), (format!("attn_pattern.{l}"), layer.attn_pattern.clone())]);
    }
    all.into_iter()
        .map(|(name, site)| {
            let site = site.unwrap();
            assert_eq!(site.dtype(), DType::F32, "{name}");
            (name, values(&site))
        })
        .collect()
}

/// With rounded weights the arithmetic is that of f32, in long prompts, short ones and generation.
#[test]
fn halves_are_f32_arithmetic_on_rounded_weights() {
    for family in FAMILIES {
        for (dtype, _) in HALVES {
            let folder = fixture(&format!("parity/{family}"));
            let copy = rounded(&folder, dtype, &format!("{family}-{}", dtype.as_str()));
            let (half, single) = (load(&folder, dtype), load(&copy, DType::F32));
            assert_eq!((half.dtype(), half.fingerprint()), (dtype, load(&folder, DType::F32).fingerprint()), "one model whatever its dtype");
            let all = prompts(&tensors(&folder.join("expected.safetensors")));
            for prompt in [&all[0][..], &all[0][..5], &all[0][..1]] {
                let (got, expected) = [&half, &single].map(|model| sites(&model.run(prompt, &Capture::default()).unwrap())).into();
                for ((name, got), (_, expected)) in got.iter().zip(&expected) {
                    let off = max_difference(got, expected) / largest(expected).max(1.0);
                    assert!(off <= 1e-5, "{family} {dtype:?}, {} tokens: {name} differs by {off}", prompt.len());
                }
            }
            let config = GenerateConfig { max_tokens: 8, ..GenerateConfig::default() };
            let made = [&half, &single].map(|model| model.generate(&all[0][..6], &config).unwrap().tokens);
            assert_eq!(made[0], made[1], "{family} {dtype:?}");
        }
    }
}

/// Edges of a model in bf16 are its effects: the backward pass widens the same weights.
#[test]
fn edges_are_effects_in_bf16() {
    for family in ["gpt2", "gpt_neox", "llama", "gemma2_sliding"] {
        let model = load(&fixture(&format!("parity/{family}")), DType::BF16);
        let replacement = Replacement::new(&model, &lively_clt(&model, false, |_| ())).unwrap();
        let graph = replacement.attribute(&[0, 17, 5, 90, 42, 17, 63, 8, 71], &AttributeConfig::default()).unwrap();
        let check = replacement.verify_edges(&graph, 40, 7).unwrap();
        let which = QkConfig { layer: 1, head: 1, query: 7, key: 3, ..QkConfig::default() };
        let split = replacement.attribute_attention(&[0, 17, 5, 90, 42, 17, 63, 8, 71], &which).unwrap();
        println!("{family}: {check}; an attention score {:.4}, its parts {:.4}", split.score, split.sum());
        assert!((split.sum() - split.score).abs() <= 1e-4 * split.score.abs().max(1.0), "{family}: {split}");
        assert!(check.holds(2e-5) && check.features.effects > 1_000, "{family}: {check}");
    }
}

/// Half the bytes, by the summary and by its words; SmolLM2's next tokens stay what they are.
#[test]
#[ignore = "needs .cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
fn smollm2_in_bf16() {
    let model = load(&smollm2(), DType::BF16);
    let summary = model.summary();
    let (half, single) = (summary.memory(DType::BF16) as f64, summary.memory(DType::F32) as f64);
    assert!((0.5..0.501).contains(&(half / single)), "{half} of {single}");
    assert!(summary.to_string().contains("held in bf16") && model.to_string().ends_with("in bf16"), "{summary}");
    let reference: serde_json::Value = cltlab::internal::files::read_json(fixture("smollm2/reference.json")).unwrap();
    for prompt in reference["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
        let top = &prompt["top5"].as_array().unwrap()[0];
        let run = model.run(&ids, &Capture::last_logits()).unwrap();
        let last = values(&run.logits.unwrap());
        let (got, expected) = (last[top["id"].as_u64().unwrap() as usize], top["logit"].as_f64().unwrap() as f32);
        println!("{:?}: top logit {got:.3}, in f32 {expected:.3}", prompt["prompt"]);
        // 30 layers of four maps, whose independent roundings add up as their root.
        assert!((got - expected).abs() <= 122_f32.sqrt() / 256.0 * expected.abs(), "{prompt}");
    }
}

#[test]
fn what_cannot_be_held_is_refused() {
    let folder = fixture("parity/gpt2");
    let config = |dtype| LoadConfig { dtype: Some(dtype), device: Some(Device::Cpu), ..LoadConfig::default() };
    let error = Model::load(&folder, &config(DType::F64)).unwrap_err();
    assert!(error.kind() == ErrorKind::BadConfig && error.to_string().contains("LoadConfig::dtype") && error.to_string().contains("f64"), "{error}");
    let copy = scratch("too-large");
    std::fs::copy(folder.join("config.json"), copy.join("config.json")).unwrap();
    let mut all = tensors(&folder.join("model.safetensors"));
    let name = all.keys().find(|name| name.ends_with("mlp.c_fc.weight")).unwrap().clone();
    // In f32, where the file has f16.
    let large = (all[&name].to_dtype(DType::F32).unwrap() * 1e7).unwrap();
    all.insert(name, large);
    safetensors::save(&all, copy.join("model.safetensors")).unwrap();
    let error = Model::load(&copy, &config(DType::F16)).unwrap_err();
    assert!(error.kind() == ErrorKind::BadConfig && error.to_string().contains("bf16"), "{error}");
    assert!(Model::load(&copy, &config(DType::BF16)).is_ok());
    assert_eq!(Summary::read(&folder.to_string_lossy()).unwrap().dtype, None);
}
