//! Backward: the gradient of every entry that matters, of biases and thresholds, and the norm of
//! the whole gradient. Gradient rows of the matrices are formed here only to be measured.

use super::scratch::{tiles, Code, FeatureBlock, Scratch, Side};
use super::{LiveClt, LiveLayer, StepOptions, StepReport};
use crate::activations::Batch;
use crate::clt::kernels::{self, Columns, Matrix, Slab};
use crate::clt::{Activation, CltConfig};
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;

/// What the work on one layer reads.
struct Context<'a> {
    config: &'a CltConfig,
    options: &'a StepOptions,
    layer: &'a LiveLayer,
    index: usize,
    input: &'a [f32],
    /// Gradients at the targets, `[tokens, d]` each.
    slabs: &'a [Vec<f32>],
    tokens: usize,
}

impl LiveClt {
    pub(super) fn backward(&self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions, report: &mut StepReport) -> Result<()> {
        let Scratch { layers, outputs, output_sums, .. } = scratch;
        let slabs: &[Vec<f32>] = outputs;
        layers.par_iter_mut().enumerate().for_each(|(index, work)| {
            let context =
                Context { config: &self.config, options, layer: &self.layers[index], index, input: &batch.inputs[index], slabs, tokens: batch.tokens };
            let (code, blocks) = work.split();
            blocks.par_iter_mut().for_each(|block| {
                context.terms(&code, block);
                context.entries(&code, block);
                context.pre_activations(&code, block);
                context.measure(&code, block);
            });
        });
        let blocks = || layers.iter().flat_map(|work| &work.features);
        report.sparsity = blocks().map(|block| block.sparsity).sum();
        report.dead_term = blocks().map(|block| block.dead_term).sum();
        let biases: f64 = output_sums.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum();
        report.grad_norm = (biases + blocks().map(|block| block.square).sum::<f64>()).sqrt();
        let broken = |block: &&FeatureBlock| !(block.square + block.sparsity + block.dead_term).is_finite();
        match layers.iter().position(|work| work.features.iter().find(broken).is_some()) {
            Some(layer) => Err(Error::new(ErrorKind::NotFinite, format!("gradient of layer {layer}: NaN or infinity"))),
            None if report.grad_norm.is_finite() => Ok(()),
            None => Err(Error::new(ErrorKind::NotFinite, "gradient of the decoder biases: NaN or infinity")),
        }
    }
}

impl Context<'_> {
    /// Begins each entry's gradient with the sparsity term's, and finds what a feature's weights
    /// get whatever the token: the gradient through ‖W_dec‖ and the dead-feature term.
    fn terms(&self, code: &Code<'_>, block: &mut FeatureBlock) {
        let n = block.range.len();
        let count = if code.dense { self.tokens * n } else { entries_of(code, block).len() };
        block.entries.resize(count, 0.0);
        block.entries.fill(0.0);
        (block.sparsity, block.dead_term) = (0.0, 0.0);
        let per_token = self.options.sparsity / self.tokens as f64;
        let (mut column, mut slopes) = (std::mem::take(&mut block.rows), Vec::new());
        for i in 0..n {
            let f = block.range.start + i;
            let norm = f64::from(self.layer.squares[f]).sqrt();
            (block.own[i], block.common[i], block.bias[i], block.threshold[i]) = (0.0, 0.0, 0.0, 0.0);
            if per_token > 0.0 {
                let scale = self.options.tanh_scale * norm;
                let gain = (per_token * scale) as f32;
                let (total, moment) = if code.dense {
                    column.clear();
                    column.extend((0..self.tokens).map(|p| code.activations[p * self.config.features + f]));
                    slopes.resize(self.tokens, 0.0);
                    let sums = kernels::tanh_terms(&column, scale as f32, &mut slopes);
                    slopes.iter().enumerate().for_each(|(p, slope)| block.entries[p * n + i] = gain * slope);
                    sums
                } else {
                    let base = code.lists.offsets[block.range.start] as usize;
                    let range = code.lists.range(f);
                    let slopes = &mut block.entries[range.start - base..range.end - base];
                    let sums = kernels::tanh_terms(&code.lists.values[range], scale as f32, slopes);
                    slopes.iter_mut().for_each(|slope| *slope *= gain);
                    sums
                };
                block.sparsity += per_token * total;
                if norm > 0.0 {
                    block.own[i] = (per_token * self.options.tanh_scale * moment / norm) as f32;
                }
            }
            if self.options.dead > 0.0 && self.layer.idle[f] >= self.options.dead_window {
                self.dead_feature(code, block, i, norm);
            }
        }
        block.rows = column;
    }

    /// λ_P Σ_p ReLU(θ − h) ‖W_dec‖ of one dead feature. Wherever it is not active h lies below θ,
    /// so sums over all tokens less those over its active ones do: no product over the batch.
    fn dead_feature(&self, code: &Code<'_>, block: &mut FeatureBlock, i: usize, norm: f64) {
        let (f, d) = (block.range.start + i, self.config.width);
        let theta = |p: usize| match &self.layer.log_threshold {
            Some(log) => f64::from(log.w[f].exp()),
            None if matches!(self.config.activation, Activation::Relu) => 0.0,
            None => f64::from(code.cuts[p]),
        };
        let mut gap: f64 = (0..self.tokens).map(theta).sum();
        let row = &self.layer.encoder.w[f * d..(f + 1) * d];
        gap -= row.iter().zip(code.input_sum).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
        gap -= self.tokens as f64 * f64::from(self.layer.encoder_bias.w[f]);
        for (p, a) in self.active(code, f) {
            gap += f64::from(a) - theta(p);
        }
        let weight = self.options.dead / self.tokens as f64;
        block.dead_term += weight * norm * gap;
        block.common[i] = -(weight * norm) as f32;
        if norm > 0.0 {
            block.own[i] += (weight * gap / norm) as f32;
        }
        if self.layer.log_threshold.is_some() {
            block.threshold[i] = (weight * norm * (self.tokens as f64 - f64::from(code.fired[f])) * theta(0)) as f32;
        }
    }

    /// Tokens on which feature `f` is active, with its activation.
    fn active<'a>(&self, code: &'a Code<'a>, f: usize) -> Box<dyn Iterator<Item = (usize, f32)> + 'a> {
        if code.dense {
            let features = self.config.features;
            return Box::new((0..self.tokens).map(move |p| (p, code.activations[p * features + f])).filter(|&(_, a)| a > 0.0));
        }
        let range = code.lists.range(f);
        Box::new(code.lists.tokens[range.clone()].iter().zip(&code.lists.values[range]).map(|(&p, &a)| (p as usize, a)).filter(|&(_, a)| a != 0.0))
    }

    /// Adds `∂loss/∂a = Σ_t e[t] · W_dec[f, t]` to each entry.
    fn entries(&self, code: &Code<'_>, block: &mut FeatureBlock) {
        let d = self.config.width;
        let stride = self.config.slots(self.index) * d;
        let weights = &self.layer.decoder.w[block.range.start * stride..block.range.end * stride];
        for (slot, slab) in self.slabs[self.index..].iter().enumerate() {
            if code.dense {
                let n = block.range.len();
                let right = Matrix::rows(slot * d, stride).t();
                // SAFETY: `entries` is ours and has a row of n for each token.
                unsafe { kernels::gemm(self.tokens, d, n, block.entries.as_mut_ptr(), Matrix::rows(0, n), true, slab, Matrix::rows(0, d), weights, right) };
                continue;
            }
            for (at, width) in tiles(self.tokens, d) {
                let columns = Columns { stride, at: slot * d + at, d: width };
                kernels::dots(code.lists, block.range.clone(), weights, columns, Slab { values: slab, stride: d, at }, &mut block.entries);
            }
        }
    }

    /// From gradients of activations to those of pre-activations, biases and thresholds.
    ///
    /// JumpReLU's straight-through estimator: `∂a/∂θ = −(θ/ε) 1[|h − θ| < ε/2]`, `∂a/∂h = 1[h > θ]`.
    fn pre_activations(&self, code: &Code<'_>, block: &mut FeatureBlock) {
        let (start, n, features) = (block.range.start, block.range.len(), self.config.features);
        let jump = match (&self.config.activation, &self.layer.log_threshold) {
            (Activation::JumpRelu { bandwidth, .. }, Some(log)) => Some((*bandwidth as f32, &log.w)),
            _ => None,
        };
        let FeatureBlock { entries, common, bias, threshold, .. } = block;
        let mut entry = |i: usize, g: &mut f32, a: f32, h: f32| {
            let fires = match jump {
                None => a > 0.0,
                Some((bandwidth, log)) => {
                    let theta = log[start + i].exp();
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
        bias.iter_mut().zip(common).for_each(|(bias, common)| *bias += *common * self.tokens as f32);
    }

    /// The squared norm of the gradient of the block's weights.
    fn measure(&self, code: &Code<'_>, block: &mut FeatureBlock) {
        let d = self.config.width;
        let stride = self.config.slots(self.index) * d;
        let group = FeatureBlock::group(code);
        let mut squares = vec![0f32; block.range.len()];
        let targets = self.slabs[self.index..].iter().enumerate().map(|(slot, slab)| (Some(slot), slab.as_slice()));
        for (slot, values) in targets.chain([(None, self.input)]) {
            let (side, weights, from, row) = match slot {
                Some(slot) => (Side::Decoder, &self.layer.decoder.w, slot * d, stride),
                None => (Side::Encoder, &self.layer.encoder.w, 0, d),
            };
            for (at, width) in tiles(self.tokens, d) {
                for begin in block.range.clone().step_by(group) {
                    let i = begin - block.range.start;
                    block.gradient_rows(code, side, begin..(begin + group).min(block.range.end), Slab { values, stride: d, at }, width);
                    let own = if slot.is_some() { &block.own[i..] } else { &[] };
                    kernels::square_rows(&block.rows, &weights[begin * row + from + at..], row, 0, width, own, &mut squares[i..]);
                }
            }
        }
        let small = block.bias.iter().chain(&block.threshold).map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        block.square = small + squares.iter().map(|&s| f64::from(s)).sum::<f64>();
    }
}

/// The entries of the block's features in the lists.
fn entries_of(code: &Code<'_>, block: &FeatureBlock) -> std::ops::Range<usize> {
    code.lists.offsets[block.range.start] as usize..code.lists.offsets[block.range.end] as usize
}
