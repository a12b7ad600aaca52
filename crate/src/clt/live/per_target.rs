//! Decoders tied over sources: one matrix `[F, d]` for each target, which all layers up to it share.
//!
//! `ŷ_t = b_t + W_tᵀ Σ_{s ≤ t} a_s`, so a feature number means one direction at a target, whichever layer
//! it fired in: `per_target` in crosslayer-coding, `coalesce_topk=concat` without `topk_coalesced` (the
//! tied CLTs) in clt-training, without their scales and offsets for each feature.
//!
//! Layer t's decoder is that of target t here. Its gradient row is `Σ_{s ≤ t} Σ_p a_s e_t` and what the
//! sources' sparsity terms add, `W_t,f Σ_{s ≤ t} own_s`: a source's ‖W_dec,f‖ runs over the rows of its
//! targets. Two passes over the decoders, as the norm of the whole may be limited; no row rests.

use super::block::{Context, Work};
use super::param::{cut, Param, Piece};
use super::scratch::{stride, tiles, LayerScratch, Scratch};
use super::{LiveClt, StepOptions, StepReport};
use crate::activations::Batch;
use crate::clt::kernels::{self, AdamStep, Columns, Gradient, Shared, Slab};
use crate::clt::Tied;
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Rows formed together, so that they stay in the first-level cache.
const GROUP: usize = 8;

/// Buffers of a block of one target's rows.
#[derive(Default)]
pub(crate) struct TargetBlock {
    range: Range<usize>,
    group: usize,
    rows: Vec<f32>,
    more: Vec<f32>,
    own: Vec<f32>,
    squares: Vec<f32>,
    /// Squared norm of the block's gradient.
    pub square: f64,
}

/// What the work on target rows reads.
struct Targets<'a> {
    works: &'a [LayerScratch],
    slabs: &'a [Vec<f32>],
    stride: usize,
    d: usize,
    tokens: usize,
}

impl LiveClt {
    /// Whether decoders are shared so.
    pub(super) fn shares_targets(&self) -> bool {
        self.config.tied == Tied::PerTarget
    }

    /// Adds what `features` write, to every target through its own matrix.
    pub(super) fn decode_shared(&self, works: &[LayerScratch], features: Range<u32>, slab: &mut [f32]) {
        let (d, stride) = (self.config.width, stride(&self.config));
        let tokens = slab.len() / stride;
        let out = Shared(slab.as_mut_ptr());
        let width = 64.min(d);
        let tasks: Vec<(usize, usize)> = (0..self.config.layers).rev().flat_map(|t| (0..d).step_by(width).map(move |column| (t, column))).collect();
        tasks.par_iter().with_max_len(1).for_each_init(Default::default, |buffers, &(target, column)| {
            let columns = Columns { stride: d, at: column, d: width.min(d - column) };
            // SAFETY: each task has its own columns.
            let out = Shared(unsafe { out.at(target * d + column) });
            for work in &works[..=target] {
                let part = kernels::Part { code: &work.code, tokens: 0..tokens, features: features.clone(), round: self.config.features as u32 };
                kernels::decode_tile(&part, &self.layers[target].decoder.w, columns, out, stride, buffers);
            }
        });
    }

    /// As [`LiveClt::learn`].
    pub(super) fn learn_shared(&mut self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions, report: &mut StepReport) -> Result<(f64, f64)> {
        let start = std::time::Instant::now();
        let mut adam = AdamStep::new(options.lr, options.betas, options.eps, options.weight_decay, self.steps + 1);
        // Every source reads all later targets' rows.
        let mut decoders: Vec<Param> = self.layers.iter_mut().map(|layer| std::mem::take(&mut layer.decoder)).collect();
        let mut norms = std::mem::take(&mut scratch.norms);
        norms.resize_with(self.layers.len(), Vec::new);
        norms.iter_mut().zip(&self.layers).for_each(|(norms, layer)| norms.clone_from(&layer.squares));
        for source in (1..norms.len()).rev() {
            let (before, after) = norms.split_at_mut(source);
            before[source - 1].iter_mut().zip(&after[0]).for_each(|(sum, square)| *sum += square);
        }
        self.layers.iter_mut().zip(&mut norms).for_each(|(layer, norms)| std::mem::swap(&mut layer.squares, norms));
        self.each_block(batch, scratch, options, adam, false, |work, context, _| {
            work.terms(context);
            work.shared_products(context, &decoders);
            work.pre_activations(context);
            work.measure(context, None, &[]);
        });
        self.layers.iter_mut().zip(&mut norms).for_each(|(layer, norms)| std::mem::swap(&mut layer.squares, norms));
        scratch.norms = norms;
        self.each_target(batch, scratch, &mut decoders, None);
        if let Err(error) = self.report(scratch, report) {
            self.give_back(decoders);
            return Err(error);
        }
        if let Some(limit) = options.clip {
            adam.clip = (limit / (report.grad_norm + 1e-6)).min(1.0) as f32;
        }
        let backward = start.elapsed().as_secs_f64();
        self.each_target(batch, scratch, &mut decoders, Some(&adam));
        self.each_block(batch, scratch, options, adam, false, |work, context, _| work.rest(context));
        self.give_back(decoders);
        self.finish(batch, scratch, options, &adam, report);
        Ok((backward, start.elapsed().as_secs_f64() - backward))
    }

    fn give_back(&mut self, decoders: Vec<Param>) {
        self.layers.iter_mut().zip(decoders).for_each(|(layer, decoder)| layer.decoder = decoder);
    }

    /// Forms the gradient rows of every target; measures them, or spends them in Adam.
    fn each_target(&mut self, batch: &Batch, scratch: &mut Scratch, decoders: &mut [Param], adam: Option<&AdamStep>) {
        let (d, stride) = (self.config.width, stride(&self.config));
        let Scratch { layers: works, slabs, targets, .. } = scratch;
        targets.resize_with(works.len(), Vec::new);
        for (blocks, work) in targets.iter_mut().zip(works.iter()) {
            blocks.resize_with(work.features.len(), TargetBlock::default);
            blocks.iter_mut().zip(&work.features).for_each(|(block, from)| (block.range, block.group) = (from.range.clone(), from.group));
        }
        let from = Targets { works, slabs, stride, d, tokens: batch.tokens };
        targets.par_iter_mut().zip(decoders).zip(&mut self.layers).enumerate().for_each(|(target, ((blocks, decoder), layer))| {
            let (mut decoder, mut squares) = (decoder.cutter(), layer.squares.as_mut_slice());
            let pieces: Vec<_> = blocks.iter_mut().map(|block| (decoder.take(block.range.len()), cut(&mut squares, block.range.len()), block)).collect();
            pieces.into_par_iter().for_each(|(mut rows, squares, block)| block.learn(&from, target, &mut rows, squares, adam));
        });
    }
}

impl TargetBlock {
    fn learn(&mut self, from: &Targets<'_>, target: usize, decoder: &mut Piece<'_>, squares: &mut [f32], adam: Option<&AdamStep>) {
        let n = self.range.len();
        self.own.clear();
        self.own.resize(n, 0.0);
        for work in &from.works[..=target] {
            let blocks = work.features.iter().filter(|block| block.range == self.range);
            blocks.for_each(|block| self.own.iter_mut().zip(&block.own).for_each(|(sum, own)| *sum += own));
        }
        self.squares.clear();
        self.squares.resize(n, 0.0);
        if adam.is_some() {
            squares.fill(0.0);
        }
        for (at, width) in tiles(from.tokens, from.d) {
            let slab = Slab { values: &from.slabs[self.group], stride: from.stride, at: target * from.d + at };
            for begin in self.range.clone().step_by(GROUP) {
                let features = begin..(begin + GROUP).min(self.range.end);
                let i = begin - self.range.start;
                self.form(&from.works[..=target], features, slab, width);
                match adam {
                    None => kernels::square_rows(&self.rows, &decoder.w[i * from.d..], from.d, at, width, &self.own[i..], &mut self.squares[i..]),
                    Some(adam) => {
                        let gradient = Gradient { rows: &self.rows, own: &self.own[i..], touched: &[] };
                        kernels::adam_rows(&mut decoder.rows(i, at, width), gradient, &mut squares[i..], adam);
                    }
                }
            }
        }
        self.square = self.squares.iter().map(|&square| f64::from(square)).sum();
    }

    /// `Σ_s Σ_p a_s e` of some features, over `d` columns.
    fn form(&mut self, works: &[LayerScratch], features: Range<usize>, slab: Slab<'_>, d: usize) {
        let TargetBlock { rows, more, .. } = self;
        rows.clear();
        rows.resize(features.len() * d, 0.0);
        more.resize(features.len() * d, 0.0);
        for lists in works.iter().map(|work| &work.lists) {
            let entries = lists.range(features.start).start..lists.range(features.end - 1).end;
            if !entries.is_empty() {
                kernels::gather_rows(lists, &lists.values[entries.start..], features.clone(), slab, d, more);
                rows.iter_mut().zip(more.iter()).for_each(|(sum, value)| *sum += value);
            }
        }
    }
}

impl Work<'_> {
    /// Adds to each entry its products with the gradients at all targets.
    fn shared_products(&mut self, context: &Context<'_>, decoders: &[Param]) {
        let (lists, range, d) = (context.code.lists, self.block.range.clone(), context.config.width);
        for (target, decoder) in decoders.iter().enumerate().skip(context.offset / d) {
            for (at, width) in tiles(context.tokens, d) {
                let slab = Slab { values: context.slab, stride: context.stride, at: target * d + at };
                for begin in range.clone().step_by(GROUP) {
                    let first = (lists.offsets[begin] - lists.offsets[range.start]) as usize;
                    let columns = Columns { stride: d, at, d: width };
                    kernels::dots(lists, begin..(begin + GROUP).min(range.end), &decoder.w[begin * d..], columns, slab, &mut self.block.entries[first..]);
                }
            }
        }
    }
}
