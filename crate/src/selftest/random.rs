//! Models and CLTs of random numbers, of any shape: for measurements and self-tests that need no file.

use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::Result;
use crate::model::{LoadConfig, Model};
use candle_core::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use std::collections::HashMap;

/// The shape of a Llama-like model whose weights are random.
///
/// ```
/// use cltlab::model::LoadConfig;
/// use cltlab::selftest::RandomModel;
/// let model = RandomModel { layers: 2, width: 32, ..RandomModel::default() }.load(&LoadConfig::default())?;
/// let run = model.run([1, 2, 3], &Default::default())?;
/// assert_eq!(run.layers.len(), 2);
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomModel {
    /// Blocks, L.
    pub layers: usize,
    /// Width of the residual stream, d.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width inside the MLPs.
    pub inner: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Longest context.
    pub context: usize,
    /// Seed of all numbers.
    pub seed: u64,
}

impl Default for RandomModel {
    /// Small enough to run anywhere.
    fn default() -> Self {
        RandomModel { layers: 3, width: 64, heads: 4, kv_heads: 2, inner: 96, vocab: 50, context: 64, seed: 5 }
    }
}

impl RandomModel {
    /// SmolLM2-135M's.
    #[doc(hidden)]
    pub fn smollm2_135m() -> Self {
        RandomModel { layers: 30, width: 576, heads: 9, kv_heads: 3, inner: 1536, vocab: 49_152, context: 8192, seed: 5 }
    }

    /// GPT-2 small's layers, width and heads, with few words.
    #[doc(hidden)]
    pub fn gpt2_small() -> Self {
        RandomModel { layers: 12, width: 768, heads: 12, kv_heads: 12, inner: 2048, vocab: 5000, context: 1024, seed: 5 }
    }

    /// The model, with lively norms and attention; it has no tokenizer.
    ///
    /// # Errors
    /// As [`Model::from_tensors`].
    pub fn load(&self, load: &LoadConfig) -> Result<Model> {
        let (d, inner) = (self.width, self.inner);
        let config = serde_json::json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": d, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "intermediate_size": inner, "vocab_size": self.vocab,
            "max_position_embeddings": self.context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        });
        let (mut tensors, mut seed) = (HashMap::new(), self.seed);
        let mut put = |name: String, shape: &[usize], centre: f32, size: f32| -> Result<()> {
            seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
            tensors.insert(name, random(seed, shape, centre, size)?);
            Ok(())
        };
        let of_fan = |fan: usize| 1.5 / (fan as f32).sqrt();
        put("model.embed_tokens.weight".into(), &[self.vocab, d], 0.0, 1.0)?;
        put("model.norm.weight".into(), &[d], 1.0, 0.2)?;
        let keys = d / self.heads * self.kv_heads;
        for l in 0..self.layers {
            let attention = [("self_attn.q_proj", d, d), ("self_attn.k_proj", keys, d), ("self_attn.v_proj", keys, d), ("self_attn.o_proj", d, d)];
            for (name, rows, columns) in attention.into_iter().chain([("mlp.gate_proj", inner, d), ("mlp.up_proj", inner, d), ("mlp.down_proj", d, inner)]) {
                put(format!("model.layers.{l}.{name}.weight"), &[rows, columns], 0.0, of_fan(columns))?;
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                put(format!("model.layers.{l}.{name}.weight"), &[d], 1.0, 0.2)?;
            }
        }
        Model::from_tensors("random", &config, tensors, load)
    }
}

/// A CLT of random numbers on the CPU. With TopK every token has its k; with ReLU and JumpReLU some features in ten are active
/// on inputs of norm √d or thereabouts.
///
/// # Errors
/// `BadConfig` naming the field.
///
/// ```
/// use cltlab::clt::{Activation, CltConfig};
/// let shape = CltConfig { layers: 2, width: 32, features: 64, activation: Activation::TopK { k: 4 }, ..CltConfig::default() };
/// let clt = cltlab::selftest::random_clt(&shape, 1)?;
/// assert_eq!(clt.features(), 64);
/// # Ok::<(), cltlab::Error>(())
/// ```
pub fn random_clt(config: &CltConfig, seed: u64) -> Result<Clt> {
    config.validate()?;
    let (f, d) = (config.features, config.width);
    let size = 2.0 / (d as f32).sqrt();
    let layer = |l: usize| {
        let seed = |part: u64| seed.wrapping_mul(31).wrapping_add(7 * l as u64 + part);
        let threshold = match config.activation {
            Activation::JumpRelu { threshold, .. } => Some(random(seed(0), &[f], threshold as f32, 0.5 * threshold as f32)?),
            _ => None,
        };
        Ok(LayerWeights {
            encoder: random(seed(1), &[f, d], 0.0, size)?,
            encoder_bias: random(seed(2), &[f], -1.0, 0.3)?,
            threshold,
            decoder: random(seed(3), &[f, config.slots(l), d], 0.0, 0.3 * size)?,
            decoder_bias: random(seed(4), &[d], 0.0, 0.1)?,
            skip: if config.skip { Some(random(seed(5), &[d, d], 0.0, 0.1 * size)?) } else { None },
        })
    };
    Clt::new(config.clone(), (0..config.layers).map(layer).collect::<Result<_>>()?)
}

/// Numbers within `size` of `centre`, the same on any number of threads.
pub(super) fn random(seed: u64, shape: &[usize], centre: f32, size: f32) -> Result<Tensor> {
    const PART: usize = 1 << 16;
    let mut values = vec![0f32; shape.iter().product()];
    values.par_chunks_mut(PART).enumerate().for_each(|(part, values)| {
        let mut rng = StdRng::seed_from_u64(seed ^ (part as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        values.iter_mut().for_each(|value| *value = centre + rng.random_range(-size..size));
    });
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(DType::F32)?)
}
