//! Forward: pre-activations, sparse codes, reconstructions, residuals.

use super::entries::sort_entries;
use super::scratch::{LayerScratch, Part, Scratch, TOKEN_BLOCK};
use super::{LiveClt, LiveLayer, StepReport, DENSE};
use crate::activations::Batch;
use crate::clt::activation::Rule;
use crate::clt::kernels::{self, ColumnSums, Columns, Matrix, Residual, Shared, TILE};
use crate::clt::Activation;
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;

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
        layers.par_iter_mut().zip(&self.layers).zip(&batch.inputs).for_each(|((work, layer), x)| {
            work.dense = layer.density > DENSE && starts_dense(activation);
            column_sums(x, d, &mut work.input_sum);
            let guess = 0.7 * layer.cut.last;
            encode_layer(activation, layer, work, x, (tokens, d, f), guess, scratch);
            if let Activation::BatchTopK { k } = *activation {
                let wanted = k * tokens;
                let found: usize = work.parts.iter().map(|part| part.values.len()).sum();
                if found < wanted && guess > 0.0 {
                    encode_layer(activation, layer, work, x, (tokens, d, f), 0.0, scratch);
                }
                let cut = cut_batch(work, wanted);
                work.cuts.fill(cut);
            }
            sort_entries(activation, layer, work, tokens, f);
        });
        scratch.layers = layers;
        match scratch.layers.iter().position(|work| work.input_sum.iter().any(|sum| !sum.is_finite())) {
            Some(layer) => Err(Error::new(ErrorKind::NotFinite, format!("input of layer {layer}: NaN or infinity in the batch"))),
            None => Ok(()),
        }
    }

    /// Reconstructs every target and turns it into the loss's gradient.
    pub(super) fn decode(&self, batch: &Batch, scratch: &mut Scratch, report: &mut StepReport) -> Result<()> {
        let (d, f, tokens, count) = (self.config.width, self.config.features, batch.tokens, self.config.layers);
        let slabs: Vec<(Shared, Shared)> =
            scratch.outputs.iter_mut().zip(&mut scratch.output_sums).map(|(o, s)| (Shared(o.as_mut_ptr()), Shared(s.as_mut_ptr()))).collect();
        let layers = &scratch.layers;
        let tasks: Vec<(usize, usize)> = (0..count).rev().flat_map(|t| (0..d).step_by(TILE).map(move |c| (t, c))).collect();
        let sums: Vec<Residual> = tasks
            .par_iter()
            .map_init(Vec::new, |cursors, &(target, column)| {
                let width = TILE.min(d - column);
                // SAFETY: each task has columns [column, column + width) of one target to itself.
                let out = Shared(unsafe { slabs[target].0 .0.add(column) });
                let row = |p: usize| unsafe { std::slice::from_raw_parts_mut(out.0.add(p * d), width) };
                let bias = &self.layers[target].decoder_bias.w[column..column + width];
                (0..tokens).for_each(|p| row(p).copy_from_slice(bias));
                let tile = |source: usize| {
                    let columns = Columns { stride: self.config.slots(source) * d, at: (target - source) * d + column, d: width };
                    (self.layers[source].decoder.w.as_slice(), columns)
                };
                for (source, work) in layers[..=target].iter().enumerate() {
                    let (weights, columns) = tile(source);
                    if work.dense {
                        // SAFETY: as above.
                        unsafe {
                            kernels::gemm(tokens, f, width, out.0, Matrix::rows(0, d), true, &work.activations, Matrix::rows(0, f), weights, Matrix::rows(columns.at, columns.stride));
                        }
                    } else {
                        let next = (source < target).then(|| tile(source + 1));
                        kernels::decode_tile(&work.code, f, weights, columns, next, out, d, cursors);
                    }
                }
                let sums = unsafe { std::slice::from_raw_parts_mut(slabs[target].1 .0.add(column), width) };
                finish(tokens, width, row, &batch.targets[target][column..], d, sums)
            })
            .collect();
        let mut totals = vec![Residual::default(); count];
        for (&(target, _), part) in tasks.iter().zip(sums) {
            totals[target] += part;
        }
        report.layers = totals.iter().map(|r| (r.error / tokens as f64, r.variance / tokens as f64)).collect();
        report.l0 = layers.iter().map(|work| work.active as f64 / tokens as f64).collect();
        match totals.iter().position(|r| !r.error.is_finite()) {
            Some(layer) => Err(Error::new(ErrorKind::NotFinite, format!("reconstruction loss of layer {layer}: NaN or infinity"))),
            None => Ok(()),
        }
    }
}

/// Residual of one task's columns.
fn finish<'a>(tokens: usize, width: usize, row: impl Fn(usize) -> &'a mut [f32], target: &[f32], d: usize, gradient: &mut [f32]) -> Residual {
    let mut sums = ColumnSums::ZERO;
    for p in 0..tokens {
        kernels::residual(row(p), &target[p * d..p * d + width], 2.0 / tokens as f32, &mut sums);
    }
    gradient.copy_from_slice(&sums.gradient[..width]);
    sums.total(tokens)
}

/// Pre-activations block by block, and the entries that each block keeps.
fn encode_layer(
    activation: &Activation,
    layer: &LiveLayer,
    work: &mut LayerScratch,
    x: &[f32],
    (tokens, d, f): (usize, usize, usize),
    guess: f32,
    scratch: &Scratch,
) {
    let near = near_thresholds(activation, layer);
    let rule = match *activation {
        Activation::Relu => Rule::Above(0.0),
        Activation::JumpRelu { .. } => Rule::AboveEach(&near),
        Activation::TopK { k } => Rule::Top(k),
        Activation::BatchTopK { .. } => Rule::Above(guess),
    };
    let jumps = layer.log_threshold.is_some();
    if work.dense {
        work.activations.resize(tokens * f, 0.0);
        work.pre_dense.resize(if jumps { tokens * f } else { 0 }, 0.0);
    }
    let product = |block: usize, rows: usize, h: &mut [f32]| {
        h.chunks_exact_mut(f).for_each(|row| row.copy_from_slice(&layer.encoder_bias.w));
        let input = Matrix::rows(block * TOKEN_BLOCK * d, d);
        // SAFETY: `h` is borrowed mutably and has `rows` rows of F.
        unsafe { kernels::gemm(rows, d, f, h.as_mut_ptr(), Matrix::rows(0, f), true, x, input, &layer.encoder.w, Matrix::rows(0, d).t()) };
    };
    if work.dense {
        let into = if jumps { &mut work.pre_dense } else { &mut work.activations };
        into.par_chunks_mut(TOKEN_BLOCK * f).enumerate().for_each(|(block, h)| product(block, h.len() / f, h));
        return;
    }
    work.parts.par_iter_mut().enumerate().for_each(|(block, part)| {
        let rows = TOKEN_BLOCK.min(tokens - block * TOKEN_BLOCK);
        let mut h = scratch.block();
        h.resize(TOKEN_BLOCK * f, 0.0);
        product(block, rows, &mut h[..rows * f]);
        let Part { features, values, ends, select } = part;
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

/// BatchTopK: drops all but the `wanted` largest entries; returns the least that stays.
fn cut_batch(work: &mut LayerScratch, wanted: usize) -> f32 {
    let LayerScratch { parts, candidates, .. } = work;
    candidates.clear();
    parts.iter().for_each(|part| candidates.extend_from_slice(&part.values));
    if candidates.len() <= wanted {
        return candidates.iter().copied().reduce(f32::min).unwrap_or(0.0);
    }
    let (above, &mut cut, _) = candidates.select_nth_unstable_by(wanted - 1, |a, b| b.total_cmp(a));
    let mut ties = wanted - above.iter().filter(|&&value| value > cut).count();
    for part in parts {
        let (mut to, mut from) = (0, 0);
        for end in &mut part.ends {
            while from < *end as usize {
                let value = part.values[from];
                if value > cut || (value == cut && ties > 0) {
                    ties -= usize::from(value == cut);
                    part.features[to] = part.features[from];
                    part.values[to] = value;
                    to += 1;
                }
                from += 1;
            }
            *end = to as u32;
        }
        part.features.truncate(to);
        part.values.truncate(to);
    }
    cut
}

fn column_sums(x: &[f32], d: usize, sums: &mut [f32]) {
    sums.fill(0.0);
    for row in x.chunks_exact(d) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += value);
    }
}
