//! Every family on tiny random models: outputs of Hugging Face transformers (`tests/make_parity.py`),
//! and what must hold whatever the family.

use crate::support::{assert_close, fixture, lively_clt, max_difference, shared, tensors, values, worse};
use cltlab::candle::{DType, Device, Tensor};
use cltlab::clt::InputSite;
use cltlab::graph::AttributeConfig;
use cltlab::intervene::{InterveneConfig, Intervention, Mode};
use cltlab::model::{Capture, Freeze, GenerateConfig, LoadConfig, OutputSite, Padding, Run};
use cltlab::replacement::Replacement;
use cltlab::{ErrorKind, Model, Prompt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};

/// The tiny models that are committed: every kind of block.
pub const FAMILIES: [&str; 17] = [
    "gpt2", "gpt_neo", "gpt_neox", "gpt_neox_serial", "llama", "mistral", "qwen2_sliding", "qwen3", "gemma", "gemma2_sliding", "gemma3_text", "phi", "phi3",
    "phi3_longrope", "olmo2", "qwen3_yarn", "llama_yarn",
];

pub fn tiny(family: &str) -> Model {
    load(&fixture(&format!("parity/{family}")))
}

fn load(folder: &Path) -> Model {
    Model::load(folder, &LoadConfig::on(&Device::Cpu)).unwrap_or_else(|error| panic!("{error}"))
}

pub use crate::support::largest;

#[test]
fn equal_to_transformers() {
    equal(FAMILIES.map(|family| fixture(&format!("parity/{family}"))));
}

/// Other weights, made elsewhere.
#[test]
#[ignore = "needs ../shared/fixtures/parity"]
fn others_equal_to_transformers() {
    equal(["gemma2", "gpt2", "gpt_neox", "llama", "qwen2", "qwen3"].map(|family| shared("fixtures/parity").join(family)));
}

fn equal(folders: impl IntoIterator<Item = PathBuf>) {
    for folder in folders {
        let model = load(&folder);
        let expected = tensors(&folder.join("expected.safetensors"));
        let ids = expected["input_ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let top = largest(&values(&expected["logits"]));
        let after_norm = Model::load(&folder, &LoadConfig { output: Some(OutputSite::AfterNorm), ..LoadConfig::on(&Device::Cpu) }).unwrap();
        let mut worst = (0.0, String::new());
        for (row, prompt) in ids.iter().enumerate() {
            let run = model.run(prompt, &Capture::default()).unwrap();
            let mut see = |name: String, got: &Tensor| {
                let off = max_difference(&values(got), &values(&expected[&name].get(row).unwrap())) / top;
                if off.is_nan() || off >= worst.0 {
                    worst = (off, name);
                }
            };
            for (l, site) in run.layers.iter().enumerate() {
                for (name, got) in [("mlp_norm_in", &site.resid_mid), ("mlp_in", &site.mlp_in), ("mlp_out", &site.mlp_out)] {
                    see(format!("{name}.{l}"), got.as_ref().unwrap());
                }
            }
            see("logits".to_string(), run.logits.as_ref().unwrap());
            let after = after_norm.run(prompt, &Capture::mlp()).unwrap();
            for (l, site) in after.layers.iter().enumerate() {
                let name = if expected.contains_key("mlp_out_postnorm.0") { "mlp_out_postnorm" } else { "mlp_out" };
                see(format!("{name}.{l}"), site.mlp_out.as_ref().unwrap());
            }
        }
        println!("{}: largest error {:.1e} of the largest logit, at {}", folder.display(), worst.0, worst.1);
        assert!(worst.0 <= 1e-5, "{}: {worst:?}", folder.display());
    }
}

const PROMPT: [u32; 12] = [0, 17, 5, 90, 42, 17, 63, 8, 71, 5, 77, 31];

/// Doubling a feature or an error, or exchanging a token, with the rest held moves each later
/// pre-activation and each demeaned logit (before the cap) by exactly its edge: the frozen backward
/// is right whatever the blocks are made of.
#[test]
fn edges_are_effects_in_every_family() {
    for family in FAMILIES {
        let model = tiny(family);
        for (input, output, skip) in [
            (InputSite::ResidMid, OutputSite::AfterNorm, false),
            (InputSite::ResidMid, OutputSite::BeforeNorm, true),
            (InputSite::MlpIn, OutputSite::BeforeNorm, false),
            (InputSite::MlpIn, OutputSite::AfterNorm, true),
            (InputSite::Normalized, OutputSite::AfterNorm, false),
            (InputSite::Normalized, OutputSite::BeforeNorm, true),
        ] {
            let replacement = Replacement::new(&model, &lively_clt(&model, false, |config| (config.input, config.output, config.skip) = (input, output, skip))).unwrap();
            let graph = replacement.attribute(&PROMPT, &AttributeConfig::default()).unwrap();
            let check = replacement.verify_edges(&graph, 60, 7).unwrap();
            println!("{family} {input:?} skip {skip}: {check}");
            assert!(check.holds(2e-5) && check.features.effects > 5_000 && check.features.largest > 1e-2, "{family}: {check}");
            let edges: Vec<_> = graph.edges().iter().collect();
            for edge in edges.iter().step_by(edges.len() / 12) {
                let split = replacement.split_edge(&graph, edge.source, edge.target).unwrap();
                assert_close(&format!("{family} {input:?}: {split}"), &[split.sum() as f32], &[edge.weight], 2e-5 * edge.weight.abs().max(0.1));
            }
            let config = InterveneConfig { mode: Mode::Direct, ..InterveneConfig::default() };
            let top = graph.top_features(2);
            let both = [Intervention::scale(top[0], -2.0), Intervention::ablate(top[1])];
            let effect = replacement.intervene(&PROMPT, &both, &config).unwrap();
            let (predicted, measured): (Vec<f32>, Vec<f32>) = effect.outputs.iter().map(|o| (o.predicted as f32, o.measured as f32)).unzip();
            assert_close(&format!("{family}: predicted against measured"), &predicted, &measured, 2e-5);
        }
    }
}

/// TransformerLens' `ln2.hook_normalized` is after weight and bias for LayerNorm, before the weight
/// for RMSNorm, where times the weight (in Gemma's files 1 + w) it is what the MLP reads.
#[test]
fn the_normalized_hook_is_what_the_field_means() {
    for (family, norm) in [
        ("gpt2", None), ("phi", None), ("gpt_neox", None), ("olmo2", None), ("llama", Some("post_attention_layernorm")),
        ("gemma", Some("post_attention_layernorm")), ("gemma2_sliding", Some("pre_feedforward_layernorm")),
    ] {
        let (model, folder) = (tiny(family), fixture(&format!("parity/{family}")));
        let (expected, weights) = (tensors(&folder.join("expected.safetensors")), tensors(&folder.join("model.safetensors")));
        let prompt: Vec<u32> = expected["input_ids"].to_dtype(DType::U32).unwrap().get(0).unwrap().to_vec1().unwrap();
        let mut seen = Vec::new();
        let mut look = |_: usize, site: &cltlab::model::MlpSite<'_>| {
            seen.push(values(&InputSite::Normalized.of(site)?));
            Ok(None)
        };
        let run = model.run_spliced(&prompt, &Capture::default(), Freeze::none(), &mut look).unwrap();
        for (l, site) in run.layers.iter().enumerate() {
            let kept = values(site.mlp_normalized.as_ref().unwrap());
            assert!(max_difference(&kept, &seen[l]) <= 1e-5, "{family}: kept and shown differ");
            let offset = if family.starts_with("gemma") { 1.0 } else { 0.0 };
            let weight = norm.map(|norm| values(&weights[&format!("model.layers.{l}.{norm}.weight")]));
            let weighted: Vec<f32> = kept.iter().enumerate().map(|(i, x)| x * weight.as_ref().map_or(1.0, |w| offset + w[i % w.len()])).collect();
            assert_close(&format!("{family} {l}"), &weighted, &values(&expected[&format!("mlp_in.{l}")].get(0).unwrap()), 2e-5);
        }
    }
}

/// The cap is in the model's probabilities but not in what edges explain.
#[test]
fn capped_logits_bend_only_the_outputs() {
    let model = tiny("gemma2_sliding");
    let run = model.run(&PROMPT, &Capture::default()).unwrap();
    let (capped, free) = (values(run.logits.as_ref().unwrap()), values(run.uncapped.as_ref().unwrap()));
    let last = &capped[capped.len() - free.len()..];
    let bent: Vec<f32> = free.iter().map(|logit| 8.0 * (logit / 8.0).tanh()).collect();
    assert_close("capped", last, &bent, 1e-5);
    assert!(max_difference(last, &free) > 0.1 && largest(last) < 8.0);
    assert!(tiny("gpt2").run(&PROMPT, &Capture::default()).unwrap().uncapped.is_none());
}

/// Several prompts in one pass give what each gives alone, at every site, padded on either side.
#[test]
fn batches_equal_single_prompts() {
    let mut random = StdRng::seed_from_u64(11);
    for family in FAMILIES {
        let model = tiny(family);
        let mut worst = 0.0_f32;
        for trial in 0..6 {
            let prompts: Vec<Vec<u32>> = (0..random.random_range(1..5))
                .map(|_| (0..random.random_range(1..24)).map(|_| random.random_range(0..model.vocab() as u32)).collect())
                .collect();
            let capture = if trial % 3 == 2 { Capture::last_logits() } else { Capture::default() };
            for padding in [Padding::Left, Padding::Right] {
                for (prompt, got) in prompts.iter().zip(model.run_batch(&prompts, padding, &capture).unwrap()) {
                    let alone = model.run(prompt, &capture).unwrap();
                    assert_eq!(got.tokens, alone.tokens);
                    for ((name, got), (_, alone)) in sites(&got).into_iter().zip(sites(&alone)) {
                        assert_eq!(got.as_ref().map(|t| t.dims().to_vec()), alone.as_ref().map(|t| t.dims().to_vec()), "{family}: {name}");
                        let (Some(got), Some(alone)) = (got, alone) else { continue };
                        let (got, alone) = (values(&got), values(&alone));
                        let off = max_difference(&got, &alone) / largest(&alone).max(1.0);
                        assert!(off <= 1e-5, "{family}, {padding:?} {prompts:?}: {name} differs by {off}");
                        worst = worse(worst, off);
                    }
                }
            }
        }
        println!("{family}: batches differ from single prompts by at most {worst:.1e}");
    }
    assert!(tiny("gpt2").run_batch(Vec::<Prompt>::new(), Padding::Left, &Capture::default()).unwrap().is_empty());
    assert_eq!(tiny("gpt2").run_batch(&[vec![1], vec![]], Padding::Left, &Capture::default()).unwrap_err().kind(), ErrorKind::BadInput);
}

fn sites(run: &Run) -> Vec<(&'static str, Option<Tensor>)> {
    let mut all = vec![("logits", run.logits.clone()), ("uncapped", run.uncapped.clone()), ("final_scale", run.final_scale.clone())];
    for layer in &run.layers {
        all.extend([
            ("resid_pre", layer.resid_pre.clone()),
            ("resid_mid", layer.resid_mid.clone()),
            ("mlp_in", layer.mlp_in.clone()),
            ("mlp_normalized", layer.mlp_normalized.clone()),
            ("mlp_out", layer.mlp_out.clone()),
            ("attn_pattern", layer.attn_pattern.clone()),
            ("attn_scale", layer.attn_scale.clone()),
            ("attn_post_scale", layer.attn_post_scale.clone()),
            ("mlp_scale", layer.mlp_scale.clone()),
            ("mlp_post_scale", layer.mlp_post_scale.clone()),
        ]);
    }
    all
}

/// Token by token through the cache gives the logits of the whole prompt: windows and rotation
/// count from the right place.
#[test]
fn greedy_tokens_are_the_likeliest_of_whole_passes() {
    for family in FAMILIES {
        let model = tiny(family);
        let config = GenerateConfig { max_tokens: 12, ..GenerateConfig::default() };
        let made = model.generate(&PROMPT, &config).unwrap().tokens;
        let mut tokens = PROMPT.to_vec();
        for next in made {
            let run = model.run(&tokens, &Capture::last_logits()).unwrap();
            assert_eq!(run.top_next(1).unwrap()[0].0, next, "{family} after {tokens:?}");
            tokens.push(next);
        }
    }
}
