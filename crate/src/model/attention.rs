//! Attention: forward with its pattern, and the frozen backward with the pattern held constant.
//!
//! Shapes: batch B, tokens T, query heads H, key heads K (H = K·G), head width h. With the pattern
//! P frozen, head i writes `W_O,i P_i x W_V,i`, which is linear in x; its transpose sends a gradient
//! at query q back to every key with weight `P_i[q, key]` (*Circuit Tracing*, local replacement
//! model: gradients flow through values and outputs only).

use super::config::{ModelConfig, Positions};
use super::fast;
use super::parts::Layer;
use crate::error::Result;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor, D};
use rayon::prelude::*;

/// Keys and values of the tokens before, for generation: `[B, K, past, h]`.
#[derive(Clone, Default)]
pub(crate) struct Past {
    keys: Option<Tensor>,
    values: Option<Tensor>,
}

impl Past {
    /// Tokens held.
    pub(crate) fn len(&self) -> usize {
        self.keys.as_ref().and_then(|keys| keys.dim(2).ok()).unwrap_or(0)
    }
}

/// Cosines and sines of the rotary positions, `[context, h/2]`.
#[derive(Clone)]
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
}

impl Rotary {
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Result<Option<Self>> {
        let Positions::Rotary { base, interleaved, scaling } = config.positions else { return Ok(None) };
        let half = config.head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|pair| base.powf(-(pair as f64) / half as f64))
            .map(|frequency| scaling.map_or(frequency, |scaling| scaling.apply(frequency)))
            .collect();
        let angles: Vec<f64> =
            (0..config.context).flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency)).collect();
        let table = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = angles.iter().map(|angle| f(*angle) as f32).collect();
            Ok(Tensor::from_vec(values, (config.context, half), device)?)
        };
        Ok(Some(Rotary { cos: table(f64::cos)?, sin: table(f64::sin)?, interleaved }))
    }

    fn apply(&self, x: &Tensor, start: usize) -> Result<Tensor> {
        let tokens = x.dim(2)?;
        let (cos, sin) = (self.cos.narrow(0, start, tokens)?, self.sin.narrow(0, start, tokens)?);
        fast::rotate(x, &cos, &sin, self.interleaved)
    }
}

/// Attention's output and, when asked for, its pattern `[B, H, T, past + T]`.
pub(crate) struct Attended {
    pub output: Tensor,
    pub pattern: Option<Tensor>,
}

/// `x [B, T, d]` (already normed) to the attention output `[B, T, d]`. A given `pattern`
/// `[H, T, T]` is used instead of the one that queries and keys would make.
pub(crate) fn forward(
    config: &ModelConfig,
    layer: &Layer,
    rotary: Option<&Rotary>,
    x: &Tensor,
    past: Option<&mut Past>,
    pattern: Option<&Tensor>,
    keep_pattern: bool,
) -> Result<Attended> {
    let (batch, tokens, _) = x.dims3()?;
    let (heads, groups, width) = (config.heads, config.kv_heads, config.head_dim);
    let share = heads / groups;
    let split = |y: Tensor, count: usize| fast::by_head(&y, count);
    let start = past.as_ref().map_or(0, |past| past.len());
    let mut values = split(layer.value.forward(x)?, groups)?; // [B, K, T, h]
    let pattern = match pattern {
        Some(pattern) => pattern.unsqueeze(0)?.broadcast_as((batch, heads, tokens, tokens))?.contiguous()?,
        None => {
            let mut queries = split(layer.query.forward(x)?, heads)?; // [B, H, T, h]
            let mut keys = split(layer.key.forward(x)?, groups)?; // [B, K, T, h]
            if let Some(rotary) = rotary {
                queries = rotary.apply(&queries, start)?;
                keys = rotary.apply(&keys, start)?;
            }
            if let Some(past) = past {
                if let (Some(old_keys), Some(old_values)) = (&past.keys, &past.values) {
                    keys = Tensor::cat(&[old_keys, &keys], 2)?;
                    values = Tensor::cat(&[old_values, &values], 2)?;
                }
                past.keys = Some(keys.clone());
                past.values = Some(values.clone());
            }
            let scale = (width as f64).powf(-0.5);
            if !keep_pattern {
                if let Some(mixed) = fast::attention(&queries, &keys, &values, scale)? {
                    return Ok(Attended { output: layer.output.forward(&mixed)?, pattern: None });
                }
            }
            let queries = (queries * scale)?.reshape((batch, groups, share * tokens, width))?;
            let scores = queries.matmul(&keys.transpose(2, 3)?)?.reshape((batch, heads, tokens, start + tokens))?;
            causal_softmax(scores, start)?
        }
    };
    let keys = pattern.dim(D::Minus1)?;
    let mixed = pattern.reshape((batch, groups, share * tokens, keys))?.matmul(&values)?; // [B, K, G·T, h]
    let mixed = mixed.reshape((batch, heads, tokens, width))?.transpose(1, 2)?.reshape((batch, tokens, heads * width))?;
    let output = layer.output.forward(&mixed)?;
    Ok(Attended { output, pattern: keep_pattern.then_some(pattern) })
}

/// Prompts up to this length are mixed by a plain loop: a matrix product would spend more on moving
/// heads about than on arithmetic.
const SHORT: usize = 96;

/// The transpose of frozen attention: `g [B, T', d]` at its output to the gradient at its (normed)
/// input, for the first T' tokens of a pattern `[H, T, T]`.
///
/// Cost: two GEMMs of `B·T'` rows with the output and value maps, and `H` of `[T', T'] × [T', B·h]`.
pub(crate) fn back(config: &ModelConfig, layer: &Layer, pattern: &Tensor, g: &Tensor) -> Result<Tensor> {
    let (batch, tokens, _) = g.dims3()?;
    let (heads, groups, width) = (config.heads, config.kv_heads, config.head_dim);
    let mixed = layer.output.back(g)?;
    if g.device().is_cpu() && tokens <= SHORT {
        return layer.value.back(&super::back::values(&mixed, pattern, heads, groups)?);
    }
    let mixed = mixed.reshape((batch, tokens, heads, width))?;
    let by_head = mixed.permute((2, 1, 0, 3))?.reshape((heads, tokens, batch * width))?; // [H, T', B·h]
    let held = pattern.narrow(1, 0, tokens)?.narrow(2, 0, tokens)?.transpose(1, 2)?.contiguous()?; // [H, key, query]
    let at_values = held.matmul(&by_head)?; // [H, key, B·h]
    let at_values = if heads == groups {
        at_values
    } else {
        at_values.reshape((groups, heads / groups, tokens, batch * width))?.sum(1)?
    };
    let at_values = at_values.reshape((groups, tokens, batch, width))?.permute((2, 1, 0, 3))?;
    layer.value.back(&at_values.reshape((batch, tokens, groups * width))?)
}

/// Softmax over the keys that a query may see: key ≤ start + query; zero elsewhere.
/// `scores [B, H, T, start + T]`.
fn causal_softmax(scores: Tensor, start: usize) -> Result<Tensor> {
    if scores.device().is_cpu() {
        scores.inplace_op1(&CausalSoftmax { start })?;
        return Ok(scores);
    }
    let (_, _, tokens, keys) = scores.dims4()?;
    let mask: Vec<f32> = (0..tokens)
        .flat_map(|query| (0..keys).map(move |key| if key <= start + query { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    let mask = Tensor::from_vec(mask, (tokens, keys), scores.device())?;
    Ok(candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&mask)?)?)
}

/// In place on the CPU: only the visible half is read and exponentiated.
struct CausalSoftmax {
    start: usize,
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let dims = layout.shape().dims();
        let (tokens, keys) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        let Some((from, to)) = layout.contiguous_offsets() else { candle_core::bail!("causal-softmax needs contiguous scores") };
        let CpuStorage::F32(values) = storage else { candle_core::bail!("causal-softmax is f32 on the CPU") };
        values[from..to].par_chunks_mut(keys).enumerate().for_each(|(row, scores)| {
            let (seen, hidden) = scores.split_at_mut(self.start + row % tokens + 1);
            let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for score in seen.iter_mut() {
                *score = (*score - top).exp();
                sum += *score;
            }
            let factor = 1.0 / sum;
            seen.iter_mut().for_each(|score| *score *= factor);
            hidden.fill(0.0);
        });
        Ok(())
    }
}
