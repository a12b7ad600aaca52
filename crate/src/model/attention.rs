//! Attention: forward with its pattern, and the frozen backward with the pattern held constant.
//!
//! Shapes: batch B, tokens T, query heads H, key heads K (H = K·G), head width h. With the pattern
//! P frozen, head i writes `W_O,i P_i x W_V,i`, which is linear in x; its transpose sends a gradient
//! at query q back to every key with weight `P_i[q, key]` (*Circuit Tracing*, local replacement
//! model: gradients flow through values and outputs only).

use super::back::Heads;
use super::config::{ModelConfig, QkNorm};
use super::device_pass;
use super::fast;
use super::flow::{self, Flow};
use super::parts::{Layer, Linear, Norm};
use super::rotary::{Places, Rotary};
use super::softmax::{softmax, Hidden, Mask};
use crate::error::{Error, Result};
use candle_core::{Tensor, D};
use std::ops::Range;

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

/// Attention's output and, when asked for, its pattern `[B, H, T, past + T]`.
pub(crate) struct Attended {
    pub output: Tensor,
    pub pattern: Option<Tensor>,
}

/// What one layer's attention needs beside its weights.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub rotary: Option<&'a Rotary>,
    pub places: Places<'a>,
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
    /// Tokens on the left of each batch row that are padding; empty for none.
    pub pads: &'a [usize],
    /// Patterns `[H, T, T]` that are used instead of those that queries and keys would make.
    pub pattern: Option<&'a Tensor>,
    pub keep_pattern: bool,
    /// What this run's layers hide of their scores.
    pub hidden: &'a Hidden,
}

/// `x [B, T, d]` (already normed) to the attention output `[B, T, d]`.
pub(crate) fn forward(config: &ModelConfig, layer: &Layer, view: View<'_>, x: &Tensor, past: Option<&mut Past>) -> Result<Attended> {
    let (batch, tokens, _) = x.dims3()?;
    let (heads, groups, width) = (config.heads, config.kv_heads, config.head_dim);
    let share = heads / groups;
    let split = |y: Tensor, count: usize| fast::by_head(&y, count);
    let start = view.places.start;
    // On a GPU whole contexts take one kernel, where no pattern is asked for or given.
    let whole = past.is_none() && start == 0 && view.pads.is_empty() && view.places.ids.is_none();
    let plain = view.window.is_none_or(|window| window >= tokens) && config.attention_cap.is_none() && config.qk_norm.is_none();
    if whole && plain && view.pattern.is_none() && !view.keep_pattern && device_pass::has_attention(config, x) {
        let [q, k, v] = [&layer.query, &layer.key, &layer.value].map(|map| Ok::<_, Error>(map.forward(x)?.contiguous()?));
        let mixed = device_pass::attention(config, view.rotary, [&q?, &k?, &v?])?;
        return Ok(Attended { output: layer.output.forward(&mixed)?, pattern: None });
    }
    // [B, count, T, h], normed before or after the split into heads, then turned.
    let placed = |map: &Linear, norm: &Option<Norm>, count: usize| -> Result<Tensor> {
        let mut y = map.forward(x)?;
        if let Some(norm) = norm.as_ref().filter(|_| config.qk_norm == Some(QkNorm::Whole)) {
            y = norm.forward(&y)?;
        }
        let mut y = split(y, count)?;
        if let Some(norm) = norm.as_ref().filter(|_| config.qk_norm == Some(QkNorm::PerHead)) {
            y = norm.forward(&y)?;
        }
        view.rotary.map_or(Ok(y.clone()), |rotary| rotary.apply(&y, view.places))
    };
    let mut values = split(layer.value.forward(x)?, groups)?; // [B, K, T, h]
    let held = |pattern: &Tensor| -> Result<Tensor> { Ok(pattern.unsqueeze(0)?.broadcast_as((batch, heads, tokens, tokens))?.contiguous()?) };
    let mix = |pattern: &Tensor, values: &Tensor| -> Result<Tensor> {
        let keys = pattern.dim(D::Minus1)?;
        let mixed = pattern.reshape((batch, groups, share * tokens, keys))?.matmul(values)?; // [B, K, G·T, h]
        let mixed = mixed.reshape((batch, heads, tokens, width))?.transpose(1, 2)?.reshape((batch, tokens, heads * width))?;
        layer.output.forward(&mixed)
    };
    // A held pattern needs no keys; but what comes after through a cache does.
    if let (Some(pattern), None) = (view.pattern, &past) {
        let pattern = held(pattern)?;
        return Ok(Attended { output: mix(&pattern, &values)?, pattern: view.keep_pattern.then_some(pattern) });
    }
    let mut keys = placed(&layer.key, &layer.key_norm, groups)?;
    if let Some(past) = past {
        if let (Some(old_keys), Some(old_values)) = (&past.keys, &past.values) {
            keys = Tensor::cat(&[old_keys, &keys], 2)?;
            values = Tensor::cat(&[old_values, &values], 2)?;
        }
        past.keys = Some(keys.clone());
        past.values = Some(values.clone());
    }
    let pattern = match view.pattern {
        Some(pattern) => held(pattern)?,
        None => {
            let queries = placed(&layer.query, &layer.query_norm, heads)?;
            let plain = view.window.is_none() && view.pads.is_empty() && config.attention_cap.is_none();
            if plain && !view.keep_pattern {
                if let Some(mixed) = fast::attention(&queries, &keys, &values, config.attention_scale)? {
                    return Ok(Attended { output: layer.output.forward(&mixed)?, pattern: None });
                }
            }
            let queries = (queries * config.attention_scale)?.reshape((batch, groups, share * tokens, width))?;
            let scores = queries.matmul(&keys.transpose(2, 3)?)?.reshape((batch, heads, tokens, start + tokens))?;
            softmax(scores, &Mask { start, window: view.window, pads: view.pads, cap: config.attention_cap, hidden: view.hidden })?
        }
    };
    Ok(Attended { output: mix(&pattern, &values)?, pattern: view.keep_pattern.then_some(pattern) })
}

/// The transpose of frozen attention: `g` at its output to the gradient at its (normed) input, for a
/// pattern `[H, T, T]`. Rows come out from position 0 on.
///
/// Cost: two GEMMs of a row a position with the output and value maps, and `H·h` products a pair of
/// query and key. A target that stands at one position takes the maps once, and `H·d` products a key.
pub(crate) fn back(config: &ModelConfig, layer: &Layer, pattern: &Tensor, g: &Flow) -> Result<Flow> {
    let (heads, groups, width) = (config.heads, config.kv_heads, config.head_dim);
    let cpu = g.rows.device().is_cpu();
    if g.is_points() {
        let mixed = layer.output.back(&g.rows)?; // [B, H·h]
        let through = (0..heads).map(|head| {
            let value = Linear { weight: layer.value.weight.narrow(0, head * groups / heads * width, width)?, bias: None };
            Ok(value.back(&mixed.narrow(1, head * width, width)?)?.unsqueeze(1)?)
        });
        let through = Tensor::cat(&through.collect::<Result<Vec<_>>>()?, 1)?; // [B, H, d]
        return if cpu { super::back::spread(g, &through, pattern) } else { spread(g, &through, pattern) };
    }
    let g = g.full()?;
    let mixed = g.with(layer.output.back(&g.rows)?);
    let at_values = if cpu { super::back::values(&mixed, pattern, Heads { heads, groups })? } else { unmixed(config, &mixed, pattern)? };
    Ok(at_values.with(layer.value.back(&at_values.rows)?))
}

/// As [`super::back::values`], by matrix products over neighbours of about one length.
fn unmixed(config: &ModelConfig, mixed: &Flow, pattern: &Tensor) -> Result<Flow> {
    let (heads, groups, width) = (config.heads, config.kv_heads, config.head_dim);
    let parts = mixed.alike()?.into_iter().map(|part| -> Result<Flow> {
        let (batch, tokens) = (part.spans.len(), flow::reach(&part.spans));
        let rows = part.rectangle(tokens)?.reshape((batch, tokens, heads, width))?;
        let by_head = rows.permute((2, 1, 0, 3))?.reshape((heads, tokens, batch * width))?; // [H, T', B·h]
        let held = pattern.narrow(1, 0, tokens)?.narrow(2, 0, tokens)?.transpose(1, 2)?.contiguous()?; // [H, key, query]
        let at_values = held.matmul(&by_head)?.reshape((groups, heads / groups, tokens, batch * width))?.sum(1)?;
        Flow::of_rectangle(&at_values.reshape((groups, tokens, batch, width))?.permute((2, 1, 0, 3))?.reshape((batch, tokens, groups * width))?, part.spans)
    });
    Flow::cat(parts.collect::<Result<Vec<_>>>()?)
}

/// As [`super::back::spread`], in the same way.
fn spread(points: &Flow, through: &Tensor, pattern: &Tensor) -> Result<Flow> {
    let spans: Vec<Range<usize>> = points.spans.iter().map(|span| 0..span.end).collect();
    let mut first = 0;
    let parts = flow::alike(&spans).into_iter().map(|part| -> Result<Flow> {
        let spans = &spans[part];
        let (batch, tokens) = (spans.len(), flow::reach(spans));
        let queries: Vec<u32> = spans.iter().map(|span| span.end as u32 - 1).collect();
        let seen = pattern.index_select(&Tensor::new(queries, pattern.device())?, 1)?.narrow(2, 0, tokens)?.permute((1, 2, 0))?.contiguous()?; // [B, key, H]
        let rows = seen.matmul(&through.narrow(0, first, batch)?)?;
        first += batch;
        Flow::of_rectangle(&rows, spans.into())
    });
    Flow::cat(parts.collect::<Result<Vec<_>>>()?)
}
