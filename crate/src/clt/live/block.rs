//! What a block of features does in a step: the terms of its entries' gradient, and gradient rows
//! formed in cache and spent at once in Adam.

use super::param::Piece;
use super::scratch::{tiles, Code, FeatureBlock};
use super::StepOptions;
use crate::clt::kernels::{self, AdamStep, Columns, Gradient, Matrix, Slab};
use crate::clt::{Activation, CltConfig};
use std::ops::Range;

/// What the work on one block reads.
pub(super) struct Context<'a> {
    pub config: &'a CltConfig,
    pub options: &'a StepOptions,
    pub code: Code<'a>,
    /// Inputs `[tokens, d]`.
    pub input: &'a [f32],
    /// Gradients at the targets `[tokens, stride]`, of which a decoder row meets columns from `offset` on.
    pub slab: &'a [f32],
    pub stride: usize,
    pub offset: usize,
    /// Targets that a decoder row is repeated for, when it is tied.
    pub copies: f64,
    pub tokens: usize,
    pub adam: AdamStep,
}

/// A block's buffers and the rows of the parameters that are its own.
pub(super) struct Work<'a> {
    pub block: &'a mut FeatureBlock,
    pub encoder: Piece<'a>,
    pub decoder: Piece<'a>,
    pub bias: Piece<'a>,
    pub threshold: Option<Piece<'a>>,
    pub squares: &'a mut [f32],
    pub idle: &'a mut [u32],
    pub last: &'a mut [u32],
}

/// What a pass over the decoder rows does.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pass {
    /// Their products with the gradients at the targets, for the entries.
    Products,
    /// The update.
    Spend,
    /// Both, each row read once.
    Both,
}

/// Which gradient rows are formed: `Σ_p a e` or `Σ_p ∂h x`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    Decoder,
    Encoder,
}

impl Work<'_> {
    /// Begins each entry's gradient with the sparsity term's, and finds what a feature's weights
    /// get whatever the token: the gradient through ‖W_dec‖ and the dead-feature term.
    pub fn terms(&mut self, context: &Context<'_>) {
        let (code, options, block) = (&context.code, context.options, &mut *self.block);
        let n = block.range.len();
        let count = if code.dense { context.tokens * n } else { entries_of(code, block).len() };
        block.entries.clear();
        block.entries.resize(count, 0.0);
        (block.sparsity, block.dead_term, block.square) = (0.0, 0.0, 0.0);
        let per_token = options.sparsity / context.tokens as f64;
        let (mut column, mut slopes) = (std::mem::take(&mut block.rows), Vec::new());
        for i in 0..n {
            let f = block.range.start + i;
            let norm = (context.copies * f64::from(self.squares[i])).sqrt();
            (block.own[i], block.drift[i], block.common[i], block.bias[i], block.threshold[i]) = (0.0, 0.0, 0.0, 0.0, 0.0);
            if per_token > 0.0 {
                let scale = options.tanh_scale * norm;
                let gain = (per_token * scale) as f32;
                let (total, moment) = if code.dense {
                    column.clear();
                    column.extend((0..context.tokens).map(|p| code.activations[p * context.config.features + f]));
                    slopes.resize(context.tokens, 0.0);
                    let sums = kernels::tanh_terms(&column, scale as f32, &mut slopes);
                    slopes.iter().enumerate().for_each(|(p, slope)| block.entries[p * n + i] = gain * slope);
                    sums
                } else {
                    let base = code.lists.offsets[block.range.start] as usize;
                    let range = code.own(f, options);
                    let slopes = &mut block.entries[range.start - base..range.end - base];
                    let sums = kernels::tanh_terms(&code.lists.values[range], scale as f32, slopes);
                    slopes.iter_mut().for_each(|slope| *slope *= gain);
                    sums
                };
                block.sparsity += per_token * total;
                block.drift[i] = (f64::from(gain) * moment) as f32;
                if norm > 0.0 {
                    block.own[i] = (per_token * options.tanh_scale * moment * context.copies / norm) as f32;
                }
            }
            if options.dead > 0.0 && self.idle[i] >= options.dead_window {
                let theta = self.threshold.as_ref().map(|log| log.w[i].exp());
                let row = &self.encoder.w[i * context.config.width..(i + 1) * context.config.width];
                dead_feature(context, block, i, norm, theta, row, self.bias.w[i]);
            }
            block.touched[i] = !options.lazy || code.dense || block.own[i] != 0.0 || !code.lists.range(f).is_empty();
        }
        block.rows = column;
    }

    /// One pass over the decoder rows, tile by tile.
    pub fn decoder(&mut self, context: &Context<'_>, pass: Pass) {
        let Work { block, decoder, squares, .. } = self;
        let (code, row, range) = (&context.code, decoder.row, block.range.clone());
        if code.dense && pass != Pass::Spend {
            for (at, width) in tiles(context.tokens, row) {
                let (left, right) = (Matrix::rows(context.offset + at, context.stride), Matrix::rows(at, row).t());
                let n = range.len();
                // SAFETY: `entries` is ours and has a row of n for each token.
                unsafe { kernels::gemm(context.tokens, width, n, block.entries.as_mut_ptr(), Matrix::rows(0, n), true, context.slab, left, decoder.w, right) };
            }
        }
        if pass != Pass::Products {
            squares.iter_mut().zip(&block.touched).filter(|(_, &touched)| touched).for_each(|(square, _)| *square = 0.0);
        } else if code.dense {
            return;
        }
        let group = group(code);
        for (at, width) in tiles(context.tokens, row) {
            let slab = Slab { values: context.slab, stride: context.stride, at: context.offset + at };
            for begin in range.clone().step_by(group) {
                let (i, features) = (begin - range.start, begin..(begin + group).min(range.end));
                let columns = Columns { stride: row, at, d: width };
                if pass == Pass::Spend || code.dense {
                    block.gradient_rows(code, Side::Decoder, features.clone(), slab, width);
                } else {
                    let first = (code.lists.offsets[begin] - code.lists.offsets[range.start]) as usize;
                    let (products, weights) = (&mut block.entries[first..], &decoder.w[i * row..]);
                    if pass == Pass::Products {
                        kernels::dots(code.lists, features, weights, columns, slab, products);
                        continue;
                    }
                    block.rows.resize(features.len() * width, 0.0);
                    kernels::meet(code.lists, features.clone(), weights, columns, slab, products, &mut block.rows);
                }
                let gradient = Gradient { rows: &block.rows, own: &block.own[i..], touched: &block.touched[i..] };
                block.square += kernels::adam_rows(&mut decoder.rows(i, at, width), gradient, &mut squares[i..], &context.adam);
            }
        }
    }

    /// From gradients of activations to those of pre-activations, biases and thresholds.
    ///
    /// JumpReLU's straight-through estimator: `∂a/∂θ = −(θ/ε) 1[|h − θ| < ε/2]`, `∂a/∂h = 1[h > θ]`.
    pub fn pre_activations(&mut self, context: &Context<'_>) {
        let code = &context.code;
        let (start, n, features) = (self.block.range.start, self.block.range.len(), context.config.features);
        let jump = match (&context.config.activation, &self.threshold) {
            (Activation::JumpRelu { bandwidth, .. }, Some(log)) => Some((*bandwidth as f32, &log.w)),
            _ => None,
        };
        let FeatureBlock { entries, common, bias, threshold, .. } = &mut *self.block;
        let mut entry = |i: usize, g: &mut f32, a: f32, h: f32| {
            let fires = match jump {
                None => a > 0.0,
                Some((bandwidth, log)) => {
                    let theta = log[i].exp();
                    if (h - theta).abs() < 0.5 * bandwidth {
                        threshold[i] -= theta * (theta / bandwidth) * *g;
                    }
                    h > theta
                }
            };
            *g = if fires { *g - common[i] } else { 0.0 };
            bias[i] += *g;
        };
        if code.dense {
            for (p, row) in entries.chunks_exact_mut(n).enumerate() {
                let at = p * features + start;
                for (i, g) in row.iter_mut().enumerate() {
                    entry(i, g, code.activations[at + i], if jump.is_some() { code.pre_dense[at + i] } else { 0.0 });
                }
            }
        } else {
            let base = code.lists.offsets[start] as usize;
            for i in 0..n {
                for at in code.lists.range(start + i) {
                    entry(i, &mut entries[at - base], code.lists.values[at], if jump.is_some() { code.pre[at] } else { 0.0 });
                }
            }
        }
        if context.options.aux > 0.0 {
            // The dead term knows nothing of an auxiliary loss's entries.
            let base = code.lists.offsets[start] as usize;
            for (i, common) in common.iter().enumerate().filter(|(_, &common)| common != 0.0) {
                let lent = code.own(start + i, context.options).end..code.lists.range(start + i).end;
                entries[lent.start - base..lent.end - base].iter_mut().for_each(|g| *g += common);
                bias[i] += common * lent.len() as f32;
            }
        }
        bias.iter_mut().zip(common).for_each(|(bias, common)| *bias += *common * context.tokens as f32);
    }

    /// Updates encoder rows, biases and thresholds, and counts who rested.
    pub fn rest(&mut self, context: &Context<'_>) {
        let Work { block, encoder, bias, threshold, idle, last, .. } = self;
        let (code, adam, d, range, group) = (&context.code, &context.adam, encoder.row, block.range.clone(), group(&context.code));
        for (at, width) in tiles(context.tokens, d) {
            for begin in range.clone().step_by(group) {
                let slab = Slab { values: context.input, stride: d, at };
                block.gradient_rows(code, Side::Encoder, begin..(begin + group).min(range.end), slab, width);
                let gradient = Gradient { rows: &block.rows, own: &[], touched: &[] };
                block.square += kernels::adam_rows(&mut encoder.rows(begin - range.start, at, width), gradient, &mut [], adam);
            }
        }
        let whole = |rows| Gradient { rows, own: &[], touched: &[] };
        block.square += kernels::adam_rows(&mut bias.vector(), whole(&block.bias), &mut [], adam);
        if let Some(threshold) = threshold {
            block.square += kernels::adam_rows(&mut threshold.vector(), whole(&block.threshold), &mut [], adam);
        }
        for (idle, &fired) in idle.iter_mut().zip(&code.fired[range]) {
            *idle = if fired > 0 { 0 } else { idle.saturating_add(context.tokens as u32) };
        }
        last.iter_mut().zip(&block.touched).filter(|(_, &touched)| touched).for_each(|(last, _)| *last = context.options.step as u32);
    }
}

/// λ_P Σ_p ReLU(θ − h) ‖W_dec‖ of one dead feature. Wherever it is not active h lies below θ,
/// so sums over all tokens less those over its active ones do: no product over the batch.
fn dead_feature(context: &Context<'_>, block: &mut FeatureBlock, i: usize, norm: f64, threshold: Option<f32>, row: &[f32], bias: f32) {
    let (code, f, tokens) = (&context.code, block.range.start + i, context.tokens as f64);
    let theta = |p: usize| match threshold {
        Some(theta) => f64::from(theta),
        None if matches!(context.config.activation, Activation::Relu) => 0.0,
        None => f64::from(code.cuts[p]),
    };
    let mut gap: f64 = (0..context.tokens).map(theta).sum();
    gap -= row.iter().zip(code.input_sum).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
    gap -= tokens * f64::from(bias);
    for (p, a) in code.active(f).take_while(|&(p, _)| p < context.tokens) {
        gap += f64::from(a) - theta(p);
    }
    let weight = context.options.dead / tokens;
    block.dead_term += weight * norm * gap;
    block.common[i] = -(weight * norm) as f32;
    if norm > 0.0 {
        block.own[i] += (weight * gap * context.copies / norm) as f32;
    }
    if threshold.is_some() {
        block.threshold[i] = (weight * norm * (tokens - f64::from(code.fired[f])) * theta(0)) as f32;
    }
}

impl FeatureBlock {
    /// Forms the gradient rows of `features` (of this block) over `d` columns of `slab` in `self.rows`.
    pub(super) fn gradient_rows(&mut self, code: &Code<'_>, side: Side, features: Range<usize>, slab: Slab<'_>, d: usize) {
        let n = features.len();
        self.rows.resize(n * d, 0.0);
        let tokens = slab.values.len() / slab.stride;
        let first = features.start - self.range.start;
        if code.dense {
            let f = code.fired.len();
            let (left, view) = match side {
                Side::Decoder => (code.activations, Matrix { at: features.start, row: f, column: 1 }),
                Side::Encoder => (&self.entries[..], Matrix { at: first, row: self.range.len(), column: 1 }),
            };
            // SAFETY: `rows` is ours and has n rows of d.
            unsafe { kernels::gemm(n, tokens, d, self.rows.as_mut_ptr(), Matrix::rows(0, d), false, left, view.t(), slab.values, Matrix::rows(slab.at, slab.stride)) };
        } else {
            let begin = code.lists.offsets[features.start] as usize;
            let coefficients = match side {
                Side::Decoder => &code.lists.values[begin..],
                Side::Encoder => &self.entries[begin - code.lists.offsets[self.range.start] as usize..],
            };
            kernels::gather_rows(code.lists, coefficients, features, slab, d, &mut self.rows);
        }
        if side == Side::Encoder {
            for (row, &common) in self.rows.chunks_exact_mut(d).zip(&self.common[first..]).filter(|(_, &common)| common != 0.0) {
                row.iter_mut().zip(&code.input_sum[slab.at..]).for_each(|(g, &sum)| *g += common * sum);
            }
        }
    }
}

/// Features whose gradient rows are formed together: few when they come from lists, so that
/// they stay in the first-level cache; more for a dense product.
pub(super) fn group(code: &Code<'_>) -> usize {
    if code.dense { 64 } else { 8 }
}

/// The entries of the block's features in the lists.
pub(super) fn entries_of(code: &Code<'_>, block: &FeatureBlock) -> Range<usize> {
    code.lists.offsets[block.range.start] as usize..code.lists.offsets[block.range.end] as usize
}
