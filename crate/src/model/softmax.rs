//! Softmax over the keys that a query may see, zero elsewhere.
//!
//! A query at position q sees keys up to q; of those, with a window w, the last w; never padding. A
//! cap c bends scores to `c · tanh(s / c)` first (Gemma 2). On the CPU one pass in place reads and
//! exponentiates the visible part only.

use crate::error::Result;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What a run's layers hide of their scores on a GPU, by window: each is made on the host and copied once a run, not once a layer.
#[derive(Default)]
pub(crate) struct Hidden(Mutex<Vec<(Option<usize>, Tensor)>>);

impl Hidden {
    /// The one of `window`, made by `make` where no layer asked for it before.
    fn of(&self, window: Option<usize>, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tensor)) = made.iter().find(|(of, _)| *of == window) {
            return Ok(tensor.clone());
        }
        let tensor = make()?;
        made.push((window, tensor.clone()));
        Ok(tensor)
    }
}

/// Which keys are seen.
pub(super) struct Mask<'a> {
    /// Keys before the first query's.
    pub start: usize,
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
    /// Padding on the left of each batch row; empty for none.
    pub pads: &'a [usize],
    /// Cap of the scores.
    pub cap: Option<f64>,
    /// Masks of this run's layers before.
    pub hidden: &'a Hidden,
}

impl Mask<'_> {
    /// The keys that the query in place `query` of batch row `row` sees; none for padding.
    fn seen(&self, row: usize, query: usize) -> Range<usize> {
        let end = self.start + query + 1;
        let first = self.window.map_or(0, |window| end.saturating_sub(window));
        first.max(self.pads.get(row).copied().unwrap_or(0)).min(end)..end
    }
}

/// `scores [B, H, T, start + T]` to patterns of the same shape.
pub(super) fn softmax(scores: Tensor, mask: &Mask<'_>) -> Result<Tensor> {
    if scores.device().is_cpu() {
        scores.inplace_op1(&OnCpu(mask))?;
        return Ok(scores);
    }
    let (batch, _, tokens, keys) = scores.dims4()?;
    let rows = if mask.pads.is_empty() { 1 } else { batch };
    let hidden = |row: usize, query: usize| {
        let seen = mask.seen(row, query);
        // A padded query sees everything: a softmax of nothing would be NaN.
        (0..keys).map(move |key| if seen.is_empty() || seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY })
    };
    let hidden = mask.hidden.of(mask.window, || {
        let hidden: Vec<f32> = (0..rows).flat_map(|row| (0..tokens).flat_map(move |query| hidden(row, query))).collect();
        Ok(Tensor::from_vec(hidden, (rows, 1, tokens, keys), scores.device())?)
    })?;
    let scores = match mask.cap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    Ok(candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&hidden)?)?)
}

struct OnCpu<'a>(&'a Mask<'a>);

impl InplaceOp1 for OnCpu<'_> {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (_, heads, tokens, keys) = layout.shape().dims4()?;
        let Some((from, to)) = layout.contiguous_offsets() else { candle_core::bail!("causal-softmax needs contiguous scores") };
        let CpuStorage::F32(values) = storage else { candle_core::bail!("causal-softmax is f32 on the CPU") };
        let cap = self.0.cap.map(|cap| cap as f32);
        values[from..to].par_chunks_mut(keys).enumerate().for_each(|(row, scores)| {
            let range = self.0.seen(row / (heads * tokens), row % tokens);
            scores[..range.start].fill(0.0);
            scores[range.end..].fill(0.0);
            let seen = &mut scores[range];
            if let Some(cap) = cap {
                seen.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
            }
            let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for score in seen.iter_mut() {
                *score = (*score - top).exp();
                sum += *score;
            }
            let factor = 1.0 / sum;
            seen.iter_mut().for_each(|score| *score *= factor);
        });
        Ok(())
    }
}
