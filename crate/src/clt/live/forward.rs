//! Forward: pre-activations, sparse codes, reconstructions, residuals.

use super::cuts::{cut_batch, cut_tokens};
use super::entries::sort_entries;
#[cfg(target_arch = "x86_64")]
use super::near;
use super::scratch::{stride, token_block, Block, LayerScratch, Part, Scratch};
use super::{LiveClt, LiveLayer, StepOptions, StepReport, DENSE};
use crate::activations::Batch;
use crate::clt::activation::Rule;
use crate::clt::kernels::{self, ColumnSums, Columns, Matrix, Residual, Shared, TILE};
use crate::clt::{Activation, Tied};
use crate::error::{Error, ErrorKind, Result};
use crate::model::fast;
use rayon::prelude::*;
use std::ops::Range;

/// Whether a fresh CLT has so many active entries that its first step is dense.
pub(crate) fn starts_dense(activation: &Activation) -> bool {
    matches!(activation, Activation::Relu | Activation::JumpRelu { .. })
}

impl LiveClt {
    /// Fills codes and entry lists of all layers.
    pub(super) fn encode(&self, batch: &Batch, scratch: &mut Scratch) -> Result<()> {
        let (d, f, tokens) = (self.config.width, self.config.features, batch.tokens);
        let activation = &self.config.activation;
        let mut layers = std::mem::take(&mut scratch.layers);
        let most = match *activation {
            Activation::TopK { k } => k,
            Activation::GlobalTopK { k } => self.config.most_of_layers(k),
            _ => 0,
        };
        let pre_activations = |work: &mut LayerScratch, layer: &LiveLayer, x: &[f32], guess: f32| encode_layer(activation, layer, work, x, (tokens, d, f), (most, guess), scratch);
        let found = |work: &LayerScratch| work.parts.iter().map(|part| part.values.len()).sum::<usize>();
        layers.par_iter_mut().zip(&self.layers).zip(&batch.inputs).for_each(|((work, layer), x)| {
            work.dense = layer.density > DENSE && starts_dense(activation) && !self.shares_targets();
            column_sums(x, d, &mut work.input_sum);
            let guess = 0.7 * layer.cut.last;
            pre_activations(work, layer, x, guess);
            if let Activation::BatchTopK { k } = *activation {
                if found(work) < k * tokens && guess > 0.0 {
                    pre_activations(work, layer, x, 0.0);
                }
                let cut = cut_batch(std::slice::from_mut(work), k * tokens);
                work.cuts.fill(cut);
            }
            if !activation.ranks_layers() {
                sort_entries(activation, layer, work, tokens, f);
            }
        });
        if activation.ranks_layers() {
            match *activation {
                Activation::GlobalBatchTopK { k } => {
                    let wanted = k * tokens * layers.len();
                    if layers.iter().map(found).sum::<usize>() < wanted {
                        layers.par_iter_mut().zip(&self.layers).zip(&batch.inputs).for_each(|((work, layer), x)| pre_activations(work, layer, x, 0.0));
                    }
                    let cut = cut_batch(&mut layers, wanted);
                    layers.iter_mut().for_each(|work| work.cuts.fill(cut));
                }
                Activation::GlobalTopK { k } => cut_tokens(&mut layers, k * self.layers.len()),
                _ => {}
            }
            layers.par_iter_mut().zip(&self.layers).for_each(|(work, layer)| sort_entries(activation, layer, work, tokens, f));
        }
        scratch.layers = layers;
        match scratch.layers.iter().position(|work| work.input_sum.iter().any(|sum| !sum.is_finite())) {
            Some(layer) => Err(Error::new(ErrorKind::NotFinite, format!("input of layer {layer}: NaN or infinity in the batch"))),
            None => Ok(()),
        }
    }

    /// Reconstructs every target, group after group of features, and turns each reconstruction into
    /// the gradient that these features get from it.
    pub(super) fn decode(&self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions, report: &mut StepReport) -> Result<()> {
        let (d, tokens, layers, stride) = (self.config.width, batch.tokens, self.config.layers, stride(&self.config));
        let tied = self.config.tied == Tied::PerSource;
        let Scratch { layers: works, slabs, sums, .. } = scratch;
        // What lies behind is for the auxiliary loss.
        let main = tokens * stride;
        let mut start = 0;
        for (group, &end) in options.groups.iter().enumerate() {
            let (before, slab) = slabs.split_at_mut(group);
            let slab = &mut slab[0][..main];
            match before.last() {
                Some(before) => slab.copy_from_slice(&before[..main]),
                None if tied => slab.fill(0.0),
                None => self.constants(batch, slab),
            }
            self.decode_group(works, start as u32..end as u32, slab);
            start = end;
        }
        let variances = if options.fvu { batch.targets.par_iter().map(|y| variance(y, d)).collect() } else { Vec::new() };
        let mut constants = Vec::new();
        if tied {
            constants = vec![0.0; tokens * stride];
            self.constants(batch, &mut constants);
        }
        let mut totals = vec![Residual::default(); layers];
        sums.fill(0.0);
        let scales: Vec<f32> = (0..layers)
            .map(|target| {
                let whole = 2.0 / (tokens * options.groups.len()) as f64;
                let variance = variances.get(target).map_or(1.0, |&variance: &f64| if variance > 0.0 { variance / tokens as f64 } else { 1.0 });
                (whole / variance) as f32
            })
            .collect();
        for slab in slabs.iter_mut().map(|slab| &mut slab[..main]) {
            if tied {
                slab.par_chunks_exact_mut(stride).zip(constants.par_chunks_exact(stride)).for_each(|(row, constants)| {
                    (d..layers * d).for_each(|i| row[i] += row[i - d]);
                    row.iter_mut().zip(constants).for_each(|(value, constant)| *value += constant);
                });
            }
            totals = residuals(slab, stride, &batch.targets, d, |target| scales[target], sums);
        }
        for group in (1..slabs.len()).rev() {
            let (before, after) = slabs.split_at_mut(group);
            before[group - 1][..main].par_iter_mut().zip(after[0][..main].par_iter()).for_each(|(sum, value)| *sum += value);
        }
        if options.aux > 0.0 {
            report.aux = self.decode_dead(works, slabs, options, &scales, tied);
        }
        if self.config.skip {
            skip_gradients(works, &slabs[0][..main], stride, batch, d);
        }
        if tied {
            // A row that stands for all targets gets the sum of their gradients.
            for slab in slabs.iter_mut() {
                slab.par_chunks_exact_mut(stride).for_each(|row| (0..(layers - 1) * d).rev().for_each(|i| row[i] += row[i + d]));
            }
        }
        report.layers = totals.iter().map(|r| (r.error / tokens as f64, r.variance / tokens as f64)).collect();
        report.l0 = works.iter().map(|work| work.active as f64 / tokens as f64).collect();
        match totals.iter().position(|r| !r.error.is_finite()) {
            Some(layer) => Err(Error::new(ErrorKind::NotFinite, format!("reconstruction loss of layer {layer}: NaN or infinity"))),
            None => Ok(()),
        }
    }

    /// What every token's reconstruction has whatever its code: biases, and skip connections.
    fn constants(&self, batch: &Batch, slab: &mut [f32]) {
        let (d, stride) = (self.config.width, stride(&self.config));
        let bias: Vec<f32> = self.layers.iter().flat_map(|layer| &layer.decoder_bias.w).copied().collect();
        slab.par_chunks_exact_mut(stride).for_each(|row| row[..bias.len()].copy_from_slice(&bias));
        let out = Shared(slab.as_mut_ptr());
        self.layers.par_iter().enumerate().for_each(|(l, layer)| {
            if let Some(skip) = &layer.skip {
                // SAFETY: each layer has its own columns of `slab`.
                unsafe { kernels::gemm(batch.tokens, d, d, out.at(l * d), Matrix::rows(0, stride), true, &batch.inputs[l], Matrix::rows(0, d), &skip.w, Matrix::rows(0, d)) };
            }
        });
    }

    /// Adds what `features` of each layer write. Where a decoder row is used by several tokens, tile of
    /// columns by tile of columns, with the tile of the decoder in cache; where it is used once at
    /// most, token by token, whole rows streaming by.
    fn decode_group(&self, works: &[LayerScratch], features: Range<u32>, slab: &mut [f32]) {
        const CACHE: usize = 384 << 10;
        if self.shares_targets() {
            return self.decode_shared(works, features, slab);
        }
        let (d, f, layers) = (self.config.width, self.config.features, self.config.layers);
        let stride = stride(&self.config);
        let tokens = slab.len() / stride;
        let out = Shared(slab.as_mut_ptr());
        let entries: usize = works.iter().map(|work| work.active).sum();
        let part = |source: usize, tokens: Range<usize>, round: usize| kernels::Part { code: &works[source].code, tokens, features: features.clone(), round: round as u32 };
        if works.iter().all(|work| !work.dense) && 2 * entries < 3 * layers * f {
            (0..tokens).into_par_iter().step_by(8).for_each_init(Default::default, |buffers, first| {
                for (source, layer) in self.layers.iter().enumerate() {
                    let row = layer.decoder.row;
                    // SAFETY: each task has its own tokens.
                    let out = Shared(unsafe { out.at(source * d) });
                    kernels::decode_tile(&part(source, first..(first + 8).min(tokens), f), &layer.decoder.w, Columns { stride: row, at: 0, d: row }, out, stride, buffers);
                }
            });
            return;
        }
        let width = d.div_ceil(d.div_ceil(256)).next_multiple_of(16).min(d);
        let tasks: Vec<(usize, usize)> = (0..layers).rev().flat_map(|t| (0..d).step_by(width).map(move |c| (t, c))).collect();
        tasks.par_iter().with_max_len(1).for_each_init(Default::default, |buffers, &(target, column)| {
            let width = width.min(d - column);
            // SAFETY: each task has its own columns.
            let out = Shared(unsafe { out.at(target * d + column) });
            for (source, layer) in self.layers.iter().enumerate() {
                let row = layer.decoder.row;
                let Some(at) = (target * d).checked_sub(source * d).filter(|at| at + d <= row) else { continue };
                let columns = Columns { stride: row, at: at + column, d: width };
                let work = &works[source];
                if work.dense {
                    let (from, count) = (features.start as usize, features.len());
                    // SAFETY: as above.
                    unsafe {
                        kernels::gemm(tokens, count, width, out.at(0), Matrix::rows(0, stride), true, &work.activations, Matrix::rows(from, f), &layer.decoder.w, Matrix::rows(from * row + columns.at, row));
                    }
                } else {
                    kernels::decode_tile(&part(source, 0..tokens, CACHE / 4 / width), &layer.decoder.w, columns, out, stride, buffers);
                }
            }
        });
    }
}

/// Turns reconstructions `[tokens, L · d]` into `scale (ŷ − y)` and adds that to `sums`, column by
/// column. Returns squared error and variance of each target.
fn residuals(slab: &mut [f32], stride: usize, targets: &[Vec<f32>], d: usize, scale: impl Fn(usize) -> f32 + Sync, sums: &mut [f32]) -> Vec<Residual> {
    let tokens = slab.len() / stride;
    let out = Shared(slab.as_mut_ptr());
    let tasks: Vec<(usize, usize)> = (0..targets.len()).flat_map(|t| (0..d).step_by(TILE).map(move |c| (t, c))).collect();
    let shared = Shared(sums.as_mut_ptr());
    let parts: Vec<Residual> = tasks
        .par_iter()
        .map(|&(target, column)| {
            let (width, scale) = (TILE.min(d - column), scale(target));
            let mut columns = ColumnSums::ZERO;
            for p in 0..tokens {
                let at = p * d + column;
                // SAFETY: each task has its own columns, of `slab` and of `sums`.
                let row = unsafe { std::slice::from_raw_parts_mut(out.at(p * stride + target * d + column), width) };
                kernels::residual(row, &targets[target][at..at + width], scale, &mut columns);
            }
            let sums = unsafe { std::slice::from_raw_parts_mut(shared.at(target * d + column), width) };
            sums.iter_mut().zip(&columns.gradient).for_each(|(sum, value)| *sum += value);
            columns.total(tokens)
        })
        .collect();
    let mut totals = vec![Residual::default(); targets.len()];
    for (&(target, _), part) in tasks.iter().zip(parts) {
        totals[target] += part;
    }
    totals
}

/// `∂loss/∂W_skip = xᵀ e`.
fn skip_gradients(works: &mut [LayerScratch], slab: &[f32], stride: usize, batch: &Batch, d: usize) {
    works.par_iter_mut().zip(&batch.inputs).enumerate().for_each(|(index, (work, input))| {
        work.skip.resize(d * d, 0.0);
        let input_t = Matrix::rows(0, d).t();
        // SAFETY: `skip` is ours, d rows of d.
        unsafe { kernels::gemm(d, batch.tokens, d, work.skip.as_mut_ptr(), Matrix::rows(0, d), false, input, input_t, slab, Matrix::rows(index * d, stride)) };
    });
}

/// `Σ (y − ȳ)²` of `[tokens, d]`.
fn variance(values: &[f32], d: usize) -> f64 {
    let (mut sums, mut squares) = (vec![0f64; d], 0f64);
    for row in values.chunks_exact(d) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value);
            squares += f64::from(value) * f64::from(value);
        }
    }
    squares - sums.iter().map(|sum| sum * sum).sum::<f64>() / (values.len() / d) as f64
}

/// Pre-activations block by block, and the entries that each block keeps.
fn encode_layer(
    activation: &Activation,
    layer: &LiveLayer,
    work: &mut LayerScratch,
    x: &[f32],
    (tokens, d, f): (usize, usize, usize),
    (most, guess): (usize, f32),
    scratch: &Scratch,
) {
    let near = near_thresholds(activation, layer);
    let rule = match *activation {
        Activation::Relu => Rule::Above(0.0),
        Activation::JumpRelu { .. } => Rule::AboveEach(&near),
        Activation::TopK { .. } | Activation::GlobalTopK { .. } => Rule::Top(most),
        Activation::BatchTopK { .. } | Activation::GlobalBatchTopK { .. } => Rule::Above(guess),
    };
    let jumps = layer.log_threshold.is_some();
    if work.dense {
        work.activations.resize(tokens * f, 0.0);
        work.pre_dense.resize(if jumps { tokens * f } else { 0 }, 0.0);
    }
    let size = token_block(d);
    let product = |block: usize, rows: usize, h: &mut [f32], packed: &mut Vec<f32>| {
        if fast::panel_rows(d).is_some_and(|most| rows <= most) {
            let x = &x[block * size * d..][..rows * d];
            return fast::panel_times(x, d, &layer.encoder.w, &layer.encoder_bias.w, h, packed);
        }
        h.chunks_exact_mut(f).for_each(|row| row.copy_from_slice(&layer.encoder_bias.w));
        let input = Matrix::rows(block * size * d, d);
        // SAFETY: `h` is borrowed mutably and has `rows` rows of F.
        unsafe { kernels::gemm(rows, d, f, h.as_mut_ptr(), Matrix::rows(0, f), true, x, input, &layer.encoder.w, Matrix::rows(0, d).t()) };
    };
    if work.dense {
        let into = if jumps { &mut work.pre_dense } else { &mut work.activations };
        into.par_chunks_mut(size * f).enumerate().for_each_init(Vec::new, |packed, (block, h)| product(block, h.len() / f, h, packed));
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if near::pays(rule, layer.density, d, f) {
        return near::keep(rule, layer, work, x, (tokens, d, f), scratch);
    }
    work.parts.par_iter_mut().enumerate().for_each(|(block, part)| {
        let rows = size.min(tokens - block * size);
        let mut held = scratch.block();
        let Block { h, packed, .. } = &mut *held;
        h.resize(size * f, 0.0);
        product(block, rows, &mut h[..rows * f], packed);
        let Part { features, values, ends, select, .. } = part;
        features.clear();
        values.clear();
        ends.clear();
        for row in h[..rows * f].chunks_exact(f) {
            rule.keep(row, features, values, select);
            ends.push(features.len() as u32);
        }
    });
}

/// JumpReLU: the lower end of the window in which an entry matters, θ − bandwidth/2.
fn near_thresholds(activation: &Activation, layer: &LiveLayer) -> Vec<f32> {
    match (activation, &layer.log_threshold) {
        (Activation::JumpRelu { bandwidth, .. }, Some(log)) => log.w.iter().map(|t| t.exp() - 0.5 * *bandwidth as f32).collect(),
        _ => Vec::new(),
    }
}

fn column_sums(x: &[f32], d: usize, sums: &mut [f32]) {
    sums.fill(0.0);
    for row in x.chunks_exact(d) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value);
    }
}
