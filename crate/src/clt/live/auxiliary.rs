//! The auxiliary loss (aux-k): dead features are asked to reconstruct what the living leave over.
//!
//! Source: Gao et al. 2024 (*Scaling and evaluating sparse autoencoders*), section 2.4 and appendix A.2,
//! in the form of EleutherAI's sparsify: of each token and layer the `aux_k` largest positive
//! pre-activations of dead features make a code â, its reconstruction ê (without biases, as in the
//! paper; sparsify adds its decoder's) is compared with the error e = y − ŷ, which is held constant, and
//! `α s Σ_l ‖ê_l − e_l‖²` joins the loss in the units of its first term, with s the share of
//! `L · aux_k` features that are dead, 1 at most.
//!
//! In the step an entry of â is an entry of its feature like any other, on a token of its own: tokens
//! T to 2T repeat the inputs, and their rows of the slabs hold the gradient of this loss. Whatever
//! reads the lists then needs to know nothing of it, except what counts firing (tanh, dead term).
//! Cost, only when it is on: a product with the dead features' encoders, and `aux_k` entries a token.

use super::scratch::{stride, LayerScratch, Part, Scratch};
use super::{LiveClt, LiveLayer, StepOptions};
use crate::activations::Batch;
use crate::clt::activation::Rule;
use crate::clt::kernels::{self, Columns, Matrix, Shared};
use crate::clt::sparse::{FeatureLists, LayerCode};
use rayon::prelude::*;

/// Tokens whose pre-activations are computed together.
const BLOCK: usize = 128;

/// One layer's buffers.
#[derive(Default)]
pub(crate) struct Aux {
    /// The dead features, ascending, and their encoder rows and biases.
    dead: Vec<u32>,
    rows: Vec<f32>,
    biases: Vec<f32>,
    /// Pre-activations of each block of tokens, and what it keeps.
    blocks: Vec<(Vec<f32>, Part)>,
    /// â, token by token.
    pub code: LayerCode,
    /// The last step's lists, whose room the next ones use, and a cursor for each feature.
    spare: FeatureLists,
    cursors: Vec<u32>,
    /// The inputs, twice.
    pub input: Vec<f32>,
}

impl LiveClt {
    /// Finds each layer's â and adds it to the lists, with tokens from `batch.tokens` on.
    pub(super) fn encode_dead(&self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions) {
        let d = self.config.width;
        scratch.layers.par_iter_mut().zip(&self.layers).zip(&batch.inputs).for_each(|((work, layer), x)| {
            let LayerScratch { aux, lists, .. } = work;
            aux.input.clear();
            aux.input.extend_from_slice(x);
            aux.input.extend_from_slice(x);
            aux.select(layer, options, x, d);
            aux.join(lists, batch.tokens as u32);
        });
    }

    /// Writes the gradient of the auxiliary loss at the targets into the second half of the slabs;
    /// the first half of the last one holds `scales[t] (ŷ − y)`. Returns the loss.
    pub(super) fn decode_dead(&self, works: &[LayerScratch], slabs: &mut [Vec<f32>], options: &StepOptions, scales: &[f32], tied: bool) -> f64 {
        let (d, layers, stride) = (self.config.width, self.config.layers, stride(&self.config));
        let dead: usize = works.iter().map(|work| work.aux.dead.len()).sum();
        let share = (dead as f64 / (layers * options.aux_k) as f64).min(1.0);
        let factor = options.aux * share * options.groups.len() as f64;
        let Some((slab, others)) = slabs.split_last_mut() else { return 0.0 };
        let half = slab.len() / 2;
        let (errors, out) = slab.split_at_mut(half);
        let tokens = out.len() / stride;
        let rows = Shared(out.as_mut_ptr());
        let loss = (0..tokens)
            .into_par_iter()
            .map_init(Default::default, |buffers, p| {
                // SAFETY: each task has its own token, and this slice ends before the sums are written.
                unsafe { std::slice::from_raw_parts_mut(rows.at(p * stride), layers * d) }.fill(0.0);
                for (source, (work, layer)) in works.iter().zip(&self.layers).enumerate() {
                    let width = layer.decoder.row;
                    let part = kernels::Part { code: &work.aux.code, tokens: p..p + 1, features: 0..self.config.features as u32, round: self.config.features as u32 };
                    // SAFETY: as above; no slice of this token is alive here.
                    let out = Shared(unsafe { rows.at(source * d) });
                    kernels::decode_tile(&part, &layer.decoder.w, Columns { stride: width, at: 0, d: width }, out, stride, buffers);
                }
                // SAFETY: as above; nothing else writes to this token any more.
                let row = unsafe { std::slice::from_raw_parts_mut(rows.at(p * stride), layers * d) };
                if tied {
                    (d..layers * d).for_each(|i| row[i] += row[i - d]);
                }
                let errors = &errors[p * stride..][..layers * d];
                let mut loss = 0f64;
                for ((row, errors), &scale) in row.chunks_exact_mut(d).zip(errors.chunks_exact(d)).zip(scales) {
                    let squares: f64 = row.iter_mut().zip(errors).map(|(value, error)| {
                        *value = factor as f32 * (scale * *value + error);
                        f64::from(*value) * f64::from(*value)
                    }).sum();
                    if factor > 0.0 {
                        loss += squares / (2.0 * factor * f64::from(scale));
                    }
                }
                loss
            })
            .collect::<Vec<f64>>();
        for other in others {
            other[half..].copy_from_slice(out);
        }
        // In order, so that the figure does not depend on the threads.
        loss.iter().sum()
    }
}

impl Aux {
    /// `code` of this batch.
    fn select(&mut self, layer: &LiveLayer, options: &StepOptions, x: &[f32], d: usize) {
        let Aux { dead, rows, biases, blocks, code, .. } = self;
        dead.clear();
        dead.extend((0..).zip(&layer.idle).filter(|&(_, &idle)| idle >= options.dead_window).map(|(f, _): (u32, _)| f));
        rows.clear();
        biases.clear();
        for &f in dead.iter() {
            rows.extend_from_slice(&layer.encoder.w[f as usize * d..][..d]);
            biases.push(layer.encoder_bias.w[f as usize]);
        }
        let (n, tokens) = (dead.len(), x.len() / d);
        blocks.resize_with(tokens.div_ceil(BLOCK), Default::default);
        blocks.par_iter_mut().zip(x.par_chunks(BLOCK * d)).for_each(|((h, Part { features, values, ends, select, .. }), x)| {
            let count = x.len() / d;
            features.clear();
            values.clear();
            ends.clear();
            if n == 0 {
                return ends.resize(count, 0);
            }
            h.resize(count * n, 0.0);
            h.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(biases));
            // SAFETY: `h` is ours and has a row of n for each token.
            unsafe { kernels::gemm(count, d, n, h.as_mut_ptr(), Matrix::rows(0, n), true, x, Matrix::rows(0, d), rows, Matrix::rows(0, d).t()) };
            for row in h.chunks_exact(n) {
                Rule::Top(options.aux_k).keep(row, features, values, select);
                ends.push(features.len() as u32);
            }
        });
        code.tokens = tokens;
        code.offsets.clear();
        code.offsets.push(0);
        code.features.clear();
        code.values.clear();
        for (_, part) in blocks.iter() {
            let base = code.features.len() as u32;
            code.offsets.extend(part.ends.iter().map(|end| base + end));
            code.features.extend(part.features.iter().map(|&at| dead[at as usize]));
            code.values.extend_from_slice(&part.values);
        }
    }

    /// Puts the entries of `code`, their tokens raised by `shift`, behind those that `lists` has of each feature.
    fn join(&mut self, lists: &mut FeatureLists, shift: u32) {
        let Aux { code, spare, cursors, .. } = self;
        if code.features.is_empty() {
            return;
        }
        let features = lists.offsets.len() - 1;
        spare.offsets.clear();
        spare.offsets.resize(features + 1, 0);
        code.features.iter().for_each(|&f| spare.offsets[f as usize + 1] += 1);
        let count = lists.tokens.len() + code.features.len();
        spare.tokens.resize(count, 0);
        spare.values.resize(count, 0.0);
        cursors.clear();
        for f in 0..features {
            let (own, start) = (lists.range(f), spare.offsets[f] as usize);
            spare.offsets[f + 1] += (start + own.len()) as u32;
            spare.tokens[start..start + own.len()].copy_from_slice(&lists.tokens[own.clone()]);
            spare.values[start..start + own.len()].copy_from_slice(&lists.values[own.clone()]);
            cursors.push((start + own.len()) as u32);
        }
        for p in 0..code.tokens {
            let (features, values) = code.token(p);
            for (&f, &value) in features.iter().zip(values) {
                let at = cursors[f as usize] as usize;
                cursors[f as usize] += 1;
                (spare.tokens[at], spare.values[at]) = (p as u32 + shift, value);
            }
        }
        std::mem::swap(lists, spare);
    }
}
