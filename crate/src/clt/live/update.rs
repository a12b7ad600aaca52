//! Update: gradient rows formed again in cache and spent at once in Adam.

use super::scratch::{tiles, Code, FeatureBlock, Scratch, Side};
use super::{LiveClt, LiveLayer, Param, StepOptions, StepReport};
use crate::activations::Batch;
use crate::clt::Activation;
use crate::clt::kernels::{adam_rows, AdamStep, Rows, Slab};
use rayon::prelude::*;

/// The rows of a parameter that belong to one block of features.
struct Piece<'a> {
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Param {
    fn pieces(&mut self, size: usize) -> impl Iterator<Item = Piece<'_>> {
        let moments = self.m.chunks_mut(size).zip(self.v.chunks_mut(size));
        self.w.chunks_mut(size).zip(moments).map(|(w, (m, v))| Piece { w, m, v })
    }

    fn step(&mut self, gradient: &[f32], adam: &AdamStep) {
        self.pieces(gradient.len()).for_each(|mut piece| piece.step(gradient, adam));
    }
}

impl Piece<'_> {
    /// One step on a vector with its whole gradient.
    fn step(&mut self, gradient: &[f32], adam: &AdamStep) {
        let n = gradient.len();
        adam_rows(&mut self.rows(0, n, 0, n), gradient, &[], &mut [], adam);
    }

    /// Rows `first..` as the optimiser's kernel takes them.
    fn rows(&mut self, first: usize, stride: usize, at: usize, d: usize) -> Rows<'_> {
        let begin = first * stride;
        Rows { w: &mut self.w[begin..], m: &mut self.m[begin..], v: &mut self.v[begin..], stride, at, d }
    }
}

/// Everything of one block of features that a step changes.
struct Target<'a> {
    block: &'a mut FeatureBlock,
    encoder: Piece<'a>,
    decoder: Piece<'a>,
    bias: Piece<'a>,
    threshold: Option<Piece<'a>>,
    squares: &'a mut [f32],
    idle: &'a mut [u32],
}

impl LiveClt {
    pub(super) fn update(&mut self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions, report: &mut StepReport) {
        self.steps += 1;
        let mut adam = AdamStep::new(options.lr, options.betas, options.eps, self.steps);
        if let Some(limit) = options.clip {
            adam.clip = (limit / (report.grad_norm + 1e-6)).min(1.0) as f32;
        }
        let (d, layers) = (self.config.width, self.config.layers);
        let Scratch { layers: works, outputs, output_sums, .. } = scratch;
        let slabs: &[Vec<f32>] = outputs;
        let batch_wide = matches!(self.config.activation, Activation::BatchTopK { .. });
        works.par_iter_mut().zip(&mut self.layers).enumerate().for_each(|(index, (work, layer))| {
            layer.density = work.kept as f32 / (batch.tokens * layer.idle.len()) as f32;
            if batch_wide {
                layer.cut.see(work.cuts[0]);
            }
            let (code, blocks) = work.split();
            let targets = targets(layer, blocks, d, layers - index);
            targets.into_par_iter().for_each(|mut target| target.step(&code, &batch.inputs[index], &slabs[index..], d, batch.tokens, &adam));
        });
        for (layer, gradient) in self.layers.iter_mut().zip(output_sums) {
            layer.decoder_bias.step(gradient, &adam);
        }
        report.dead = self.layers.iter().map(|layer| layer.idle.iter().filter(|&&idle| idle >= options.dead_window).count()).sum();
    }
}

fn targets<'a>(layer: &'a mut LiveLayer, blocks: &'a mut [FeatureBlock], d: usize, slots: usize) -> Vec<Target<'a>> {
    let size = blocks.first().map_or(1, |block| block.range.len());
    let mut thresholds = layer.log_threshold.as_mut().map(|log| log.pieces(size));
    let weights = layer.encoder.pieces(size * d).zip(layer.decoder.pieces(size * slots * d));
    let vectors = layer.encoder_bias.pieces(size).zip(layer.squares.chunks_mut(size)).zip(layer.idle.chunks_mut(size));
    blocks
        .iter_mut()
        .zip(weights)
        .zip(vectors)
        .map(|((block, (encoder, decoder)), ((bias, squares), idle))| {
            let threshold = thresholds.as_mut().and_then(Iterator::next);
            Target { block, encoder, decoder, bias, threshold, squares, idle }
        })
        .collect()
}

impl Target<'_> {
    fn step(&mut self, code: &Code<'_>, input: &[f32], slabs: &[Vec<f32>], d: usize, tokens: usize, adam: &AdamStep) {
        let Target { block, encoder, decoder, bias, threshold, squares, idle } = self;
        let (range, stride, group) = (block.range.clone(), slabs.len() * d, FeatureBlock::group(code));
        squares.fill(0.0);
        for (slot, values) in slabs.iter().enumerate() {
            for (at, width) in tiles(tokens, d) {
                for begin in range.clone().step_by(group) {
                    let i = begin - range.start;
                    block.gradient_rows(code, Side::Decoder, begin..(begin + group).min(range.end), Slab { values, stride: d, at }, width);
                    adam_rows(&mut decoder.rows(i, stride, slot * d + at, width), &block.rows, &block.own[i..], &mut squares[i..], adam);
                }
            }
        }
        for (at, width) in tiles(tokens, d) {
            for begin in range.clone().step_by(group) {
                block.gradient_rows(code, Side::Encoder, begin..(begin + group).min(range.end), Slab { values: input, stride: d, at }, width);
                adam_rows(&mut encoder.rows(begin - range.start, d, at, width), &block.rows, &[], &mut [], adam);
            }
        }
        bias.step(&block.bias, adam);
        if let Some(threshold) = threshold {
            threshold.step(&block.threshold, adam);
        }
        for (idle, &fired) in idle.iter_mut().zip(&code.fired[range]) {
            *idle = if fired > 0 { 0 } else { idle.saturating_add(tokens as u32) };
        }
    }
}
