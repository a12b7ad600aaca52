//! Backward and update. Without a limit on the gradient's norm each block of features goes through
//! both at once, and a decoder row is read once; with one, the norm of the whole comes in between.

use super::block::{Context, Pass, Work};
use super::norm::{pairs_pay, Pairs};
use super::param::cut;
use super::scratch::{stride, FeatureBlock, LayerScratch, Scratch};
use super::{LiveClt, LiveLayer, StepOptions, StepReport};
use crate::activations::Batch;
use crate::clt::kernels::{adam_rows, AdamStep, Gradient};
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;

impl LiveClt {
    /// Everything after the gradients at the targets; returns seconds of backward and of update.
    /// When the gradient is not finite nothing has been changed.
    pub(super) fn learn(&mut self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions, report: &mut StepReport) -> Result<(f64, f64)> {
        if self.shares_targets() {
            return self.learn_shared(batch, scratch, options, report);
        }
        let start = std::time::Instant::now();
        let mut adam = AdamStep::new(options.lr, options.betas, options.eps, options.weight_decay, self.steps + 1);
        let at_once = options.clip.is_none() && self.bounded(scratch);
        if !at_once {
            let entries: usize = scratch.layers.iter().map(|work| work.kept).sum::<usize>() / scratch.layers.len();
            let pay = options.aux == 0.0 && pairs_pay(batch.tokens, scratch.layers.len(), entries);
            self.each_block(batch, scratch, options, adam, pay, |work, context, pairs| {
                work.terms(context);
                work.decoder(context, Pass::Products);
                let products = work.products(&context.code);
                work.pre_activations(context);
                work.measure(context, pairs, &products);
            });
            self.report(scratch, report)?;
            if let Some(limit) = options.clip {
                adam.clip = (limit / (report.grad_norm + 1e-6)).min(1.0) as f32;
            }
        }
        let backward = start.elapsed().as_secs_f64();
        self.each_block(batch, scratch, options, adam, false, |work, context, _| {
            if at_once {
                work.terms(context);
                work.decoder(context, Pass::Both);
                work.pre_activations(context);
            } else {
                work.decoder(context, Pass::Spend);
            }
            work.rest(context);
        });
        if at_once {
            self.report(scratch, report)?;
        }
        self.finish(batch, scratch, options, &adam, report);
        Ok((backward, start.elapsed().as_secs_f64() - backward))
    }

    /// Runs `work` on every block of features of every layer, in parallel.
    pub(super) fn each_block(&mut self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions, adam: AdamStep, pairs: bool, work: impl Fn(&mut Work<'_>, &Context<'_>, Option<&Pairs>) + Sync) {
        let LiveClt { config, layers, .. } = self;
        let (stride, d) = (stride(config), config.width);
        let Scratch { layers: works, slabs, .. } = scratch;
        let (config, slabs) = (&*config, &*slabs);
        works.par_iter_mut().zip(layers).enumerate().for_each(|(index, (buffers, layer))| {
            let columns = layer.decoder.row;
            let pairs = (pairs && !buffers.dense && slabs.len() == 1).then(|| Pairs::of(&slabs[0], (stride, index * d, columns), &batch.inputs[index], d));
            let (code, blocks) = buffers.split();
            let input = if options.aux > 0.0 { code.twice } else { &batch.inputs[index] };
            pieces(layer, blocks).into_par_iter().for_each(|mut one| {
                let slab = &slabs[one.block.group];
                let context = Context { config, options, code, input, slab, stride, offset: index * d, copies: config.copies(index), tokens: batch.tokens, adam };
                work(&mut one, &context, pairs.as_ref());
            });
        });
    }

    /// Whether no product of this step can leave the range of f32: then nothing needs to be looked at
    /// before it is spent.
    fn bounded(&self, scratch: &Scratch) -> bool {
        let norm = |values: &[f32]| values.par_chunks(1 << 16).map(|chunk| chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>()).sum::<f64>().sqrt();
        let errors = scratch.slabs.iter().map(|slab| norm(slab)).fold(0.0, f64::max);
        let weights = self.layers.iter().flat_map(|layer| &layer.squares).fold(0f32, |most, &square| most.max(square)).sqrt();
        let values = |work: &LayerScratch| norm(&work.code.values).max(norm(&work.aux.code.values)).max(norm(&work.activations)).max(norm(&work.input_sum));
        let codes = scratch.layers.iter().map(values).fold(1.0, f64::max);
        errors * f64::from(weights).max(1.0) * codes < 1e15
    }

    /// Sums of all blocks.
    pub(super) fn report(&self, scratch: &Scratch, report: &mut StepReport) -> Result<()> {
        let blocks = || scratch.layers.iter().flat_map(|work| &work.features);
        let square = |values: &[f32]| values.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        report.sparsity = blocks().map(|block| block.sparsity).sum();
        report.dead_term = blocks().map(|block| block.dead_term).sum();
        let skips: f64 = scratch.layers.iter().map(|work| square(&work.skip)).sum();
        let shared: f64 = scratch.targets.iter().flatten().map(|block| block.square).sum();
        report.grad_norm = (square(&scratch.sums) + skips + shared + blocks().map(|block| block.square).sum::<f64>()).sqrt();
        let broken = |block: &&FeatureBlock| !(block.square + block.sparsity + block.dead_term).is_finite();
        match scratch.layers.iter().position(|work| work.features.iter().find(broken).is_some()) {
            Some(layer) => Err(Error::new(ErrorKind::NotFinite, format!("gradient of layer {layer}: NaN or infinity"))),
            None if report.grad_norm.is_finite() => Ok(()),
            None => Err(Error::new(ErrorKind::NotFinite, "gradient of the decoder biases: NaN or infinity")),
        }
    }

    /// What is left of the update once all blocks are done.
    pub(super) fn finish(&mut self, batch: &Batch, scratch: &Scratch, options: &StepOptions, adam: &AdamStep, report: &mut StepReport) {
        self.steps += 1;
        self.pending.advance(adam);
        let batch_wide = self.config.activation.ranks_batch();
        let whole = |rows| Gradient { rows, own: &[], touched: &[] };
        self.layers.par_iter_mut().zip(&scratch.layers).zip(scratch.sums.par_chunks(self.config.width)).for_each(|((layer, work), sums)| {
            layer.density = work.kept as f32 / (batch.tokens * layer.idle.len()) as f32;
            if batch_wide {
                layer.cut.see(work.cuts[0]);
            }
            adam_rows(&mut layer.decoder_bias.cutter().vector(), whole(sums), &mut [], adam);
            if let Some(skip) = &mut layer.skip {
                adam_rows(&mut skip.cutter().vector(), whole(&work.skip), &mut [], adam);
            }
        });
        report.dead = self.layers.iter().map(|layer| layer.idle.iter().filter(|&&idle| idle >= options.dead_window).count()).sum();
    }
}

/// The rows of a layer's parameters, block by block.
fn pieces<'a>(layer: &'a mut LiveLayer, blocks: &'a mut [FeatureBlock]) -> Vec<Work<'a>> {
    let LiveLayer { encoder, encoder_bias, log_threshold, decoder, squares, idle, last, .. } = layer;
    let (mut encoder, mut decoder, mut bias) = (encoder.cutter(), decoder.cutter(), encoder_bias.cutter());
    let mut threshold = log_threshold.as_mut().map(|log| log.cutter());
    let (mut squares, mut idle, mut last) = (squares.as_mut_slice(), idle.as_mut_slice(), last.as_mut_slice());
    blocks
        .iter_mut()
        .map(|block| {
            let n = block.range.len();
            Work {
                block,
                encoder: encoder.take(n),
                decoder: decoder.take(n),
                bias: bias.take(n),
                threshold: threshold.as_mut().map(|log| log.take(n)),
                squares: cut(&mut squares, n),
                idle: cut(&mut idle, n),
                last: cut(&mut last, n),
            }
        })
        .collect()
}
