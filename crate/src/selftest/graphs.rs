//! Checks of codes, reconstructions and attribution graphs on a GPU, against the CPU's: a model and CLTs of random numbers.

use super::{deviation, Check};
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{AttributeConfig, Graph};
use crate::model::{LoadConfig, Model};
use crate::replacement::Replacement;
use candle_core::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const LAYERS: usize = 3;
const WIDTH: usize = 64;
const FEATURES: usize = 200;
const VOCABULARY: usize = 50;

fn random(rng: &mut StdRng, shape: &[usize], size: f32) -> Result<Tensor> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-size..size)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// A CLT on the CPU whose features are active about one time in ten, or k of them.
fn clt(activation: Activation, per_layer: bool, rng: &mut StdRng) -> Result<Clt> {
    let config = CltConfig { layers: LAYERS, width: WIDTH, features: FEATURES, activation, per_layer, ..CltConfig::default() };
    let jumps = matches!(config.activation, Activation::JumpRelu { .. });
    let layer = |l: usize| {
        Ok(LayerWeights {
            encoder: random(rng, &[FEATURES, WIDTH], 0.3)?,
            encoder_bias: (random(rng, &[FEATURES], 0.3)? - 1.0)?,
            threshold: if jumps { Some((random(rng, &[FEATURES], 0.2)? + 0.4)?) } else { None },
            decoder: random(rng, &[FEATURES, config.slots(l), WIDTH], 0.1)?,
            decoder_bias: random(rng, &[WIDTH], 0.1)?,
            skip: None,
        })
    };
    let layers = (0..LAYERS).map(layer).collect::<Result<_>>()?;
    Clt::new(config, layers)
}

/// A folder that goes when this does.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A model of random numbers, in a folder.
fn write_model(rng: &mut StdRng) -> Result<Folder> {
    let folder = Folder(std::env::temp_dir().join(format!("cltlab-selftest-{}", std::process::id())));
    let failed = |error: std::io::Error| Error::new(ErrorKind::Io, format!("{}: {error}", folder.0.display()));
    std::fs::create_dir_all(&folder.0).map_err(failed)?;
    let config = format!(
        r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": {WIDTH}, "num_hidden_layers": {LAYERS}, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "vocab_size": {VOCABULARY}, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true}}"#
    );
    std::fs::write(folder.0.join("config.json"), config).map_err(failed)?;
    let mut tensors = HashMap::new();
    let mut put = |name: String, tensor: Tensor| tensors.insert(name, tensor);
    put("model.embed_tokens.weight".into(), random(rng, &[VOCABULARY, WIDTH], 1.0)?);
    put("model.norm.weight".into(), Tensor::ones(WIDTH, DType::F32, &Device::Cpu)?);
    for l in 0..LAYERS {
        let (half, mlp) = (WIDTH / 2, 96);
        let maps = [("self_attn.q_proj", WIDTH, WIDTH), ("self_attn.k_proj", half, WIDTH), ("self_attn.v_proj", half, WIDTH), ("self_attn.o_proj", WIDTH, WIDTH)];
        for (name, rows, columns) in maps.into_iter().chain([("mlp.gate_proj", mlp, WIDTH), ("mlp.up_proj", mlp, WIDTH), ("mlp.down_proj", WIDTH, mlp)]) {
            put(format!("model.layers.{l}.{name}.weight"), random(rng, &[rows, columns], 0.25)?);
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("model.layers.{l}.{name}.weight"), (random(rng, &[WIDTH], 0.2)? + 1.0)?);
        }
    }
    candle_core::safetensors::save(&tensors, folder.0.join("model.safetensors"))?;
    Ok(folder)
}

fn numbers(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let values = tensors.iter().map(|tensor| Ok(tensor.flatten_all()?.to_vec1::<f32>()?)).collect::<Result<Vec<_>>>()?;
    Ok(values.concat().into_iter().map(f64::from).collect())
}

/// What a GPU makes of inputs, codes and prompts, against what the CPU does.
pub(super) fn checks(device: &Device) -> Result<Vec<Check>> {
    let mut rng = StdRng::seed_from_u64(5);
    let mut checks = Vec::new();
    let inputs = (0..LAYERS).map(|_| random(&mut rng, &[37, WIDTH], 1.0)).collect::<Result<Vec<_>>>()?;
    let jump = Activation::JumpRelu { threshold: 0.4, bandwidth: 1.0 };
    for (name, activation, per_layer) in [("relu", Activation::Relu, false), ("jump_relu", jump.clone(), false), ("top_k 8, per layer", Activation::TopK { k: 8 }, true)] {
        let here = clt(activation, per_layer, &mut rng)?;
        let there = here.to_device(device)?;
        let moved = inputs.iter().map(|x| Ok(x.to_device(device)?)).collect::<Result<Vec<_>>>()?;
        let (expected, got) = (here.encode_inputs(&inputs)?, there.encode_inputs(&moved)?);
        let same = expected.layers.iter().zip(&got.layers).all(|(a, b)| a.features == b.features && a.offsets == b.offsets);
        let values = |code: &crate::clt::SparseCode| code.layers.iter().flat_map(|layer| layer.values.clone()).map(f64::from).collect::<Vec<_>>();
        let apart = if same { deviation(values(&got), values(&expected)) } else { f64::INFINITY };
        checks.push(Check { name: format!("{name}: code of {} entries", expected.active()), deviation: apart, bound: 1e-5 });
        let apart = deviation(numbers(&there.decode(&expected)?)?, numbers(&here.decode(&expected)?)?);
        checks.push(Check { name: format!("{name}: reconstruction"), deviation: apart, bound: 1e-5 });
    }
    let folder = write_model(&mut rng)?;
    for (name, per_layer) in [("CLT", false), ("PLT", true)] {
        let clt = clt(jump.clone(), per_layer, &mut rng)?;
        let (expected, got) = (graph(&folder.0, &clt, &Device::Cpu)?, graph(&folder.0, &clt, device)?);
        let ends = |graph: &Graph| graph.edges().iter().map(|edge| (edge.source, edge.target)).collect::<Vec<_>>();
        let weights = |graph: &Graph| graph.edges().iter().map(|edge| f64::from(edge.weight)).collect::<Vec<_>>();
        let apart = if ends(&expected) == ends(&got) { deviation(weights(&got), weights(&expected)) } else { f64::INFINITY };
        checks.push(Check { name: format!("{name}: graph of {} edges", expected.edges().len()), deviation: apart, bound: 1e-4 });
    }
    Ok(checks)
}

fn graph(folder: &Path, clt: &Clt, device: &Device) -> Result<Graph> {
    let model = Model::load_with(&folder.to_string_lossy(), &LoadConfig { device: Some(device.clone()), dtype: Some(DType::F32), ..LoadConfig::default() })?;
    let tokens: Vec<u32> = (0..11).map(|i| (i * 17 + 3) % VOCABULARY as u32).collect();
    let config = AttributeConfig { max_features: None, max_logits: 4, ..AttributeConfig::default() };
    Replacement::new(&model, &clt.to_device(device)?)?.attribute_tokens(&tokens, &config)
}
