//! The auxiliary loss for dead features, as on the CPU (`live/auxiliary.rs`): of each token and layer the largest pre-activations of
//! features that rested too long reconstruct what the others leave over.
//!
//! Their entries lie behind the others' and stand for tokens T to 2T: the slabs have rows for these, and the inputs are read
//! once more. So lists, products and updates need to know nothing of them.

use super::tables::{pair, Table};
use super::{CudaClt, DeviceBatch};
use crate::clt::kernels::cuda::{Argument, Buffer, Gpu, Kernel, Kernels};
use crate::clt::live::StepOptions;
use crate::clt::{CltConfig, Tied};
use crate::error::Result;

/// What the loss needs of all layers.
pub(super) struct Aux {
    /// Dead features of a token and layer that are taken at most; 0 without the loss.
    pub k: usize,
    /// Where each layer's counters of rest lie, and how many features are dead, `[L]`.
    idle: Table,
    dead: Buffer<u32>,
    factor: Buffer<f32>,
    /// Each layer's runs of tokens, `[L, T]`.
    starts: Buffer<u32>,
    counts: Buffer<u32>,
    sources: Table,
    /// `[L, T]`.
    errors: Buffer<f32>,
}

impl Aux {
    pub fn new(gpu: &Gpu, config: &CltConfig) -> Result<Self> {
        let l = config.layers;
        Ok(Aux { k: 0, idle: Table::new(gpu)?, dead: gpu.zeros(l)?, factor: gpu.zeros(1)?, starts: gpu.zeros(0)?, counts: gpu.zeros(0)?, sources: Table::new(gpu)?, errors: gpu.zeros(0)? })
    }
}

impl CudaClt {
    /// Rows of a slab, and tokens that entries name.
    pub(super) fn rows(&self, tokens: usize) -> usize {
        if self.aux.k > 0 { 2 * tokens } else { tokens }
    }

    /// Where a layer's entries of this loss begin among its entries.
    pub(super) fn lent_from(&self, tokens: usize) -> usize {
        self.places(tokens).unwrap_or(0)
    }

    /// Counts who is dead, and says what the loss weighs.
    pub(super) fn begin_aux(&mut self, tokens: usize, options: &StepOptions) -> Result<()> {
        let (l, f, k) = (self.config.layers, self.config.features as u32, self.aux.k as u32);
        if k == 0 {
            return Ok(());
        }
        self.aux.idle.tell(self.layers.iter().map(|layer| layer.idle.at()).collect())?;
        for buffer in [&mut self.aux.starts, &mut self.aux.counts] {
            buffer.fit(l * tokens)?;
        }
        self.aux.errors.fit(l * tokens)?;
        let aux = &self.aux;
        // SAFETY: L counters of F numbers; single numbers.
        unsafe {
            self.gpu.launch(Kernel::COUNT_DEAD, (1, l), 1024, &[&aux.idle.at(), &f, &options.dead_window, &aux.dead.at()])?;
            self.gpu.launch(Kernel::AUX_FACTOR, (1, 1), 1, &[&aux.dead.at(), &(l as u32), &k, &(options.aux as f32), &(self.groups.len() as u32), &aux.factor.at()])
        }
    }

    /// Entries of dead features of one layer, whose pre-activations are at hand.
    pub(super) fn lend(&self, index: usize, tokens: usize, options: &StepOptions) -> Result<()> {
        if self.aux.k == 0 {
            return Ok(());
        }
        let (f, k, t, aux, layer, from) = (self.config.features as u32, self.aux.k as u32, tokens as u32, &self.aux, &self.layers[index], self.lent_from(tokens));
        let (e, lengths) = (&layer.entries, self.shared.lengths.from(index * self.config.features));
        let arguments: [&dyn Argument; 14] = [
            &self.shared.h.at(), &layer.encoder_bias.w.at(), &f, &k, &layer.idle.at(), &options.dead_window, &aux.dead.from(index), &t, &e.features.from(from), &e.values.from(from),
            &e.tokens.from(from), &aux.starts.from(index * tokens), &aux.counts.from(index * tokens), &lengths,
        ];
        // SAFETY: one block a token; runs of k entries each have room behind the others.
        unsafe { self.gpu.launch(Kernel::TOP_DEAD, (tokens, 1), 256, &arguments) }
    }

    /// The loss, and its gradient at the targets; the last slab holds the errors.
    pub(super) fn decode_dead(&mut self, batch: &DeviceBatch) -> Result<()> {
        if self.aux.k == 0 {
            return Ok(());
        }
        let (l, d, tokens) = (self.config.layers, self.config.width, batch.tokens);
        let mut words = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let (e, from, at) = (&layer.entries, self.lent_from(tokens), index * tokens);
            words.extend([e.features.from(from), e.values.from(from), self.aux.starts.from(at), self.aux.counts.from(at)]);
            words.extend([layer.decoder.w.at(), pair(layer.decoder.row, index), pair(self.config.slots(index), 0)]);
        }
        self.aux.sources.tell(words)?;
        let (aux, shared, stride) = (&self.aux, &self.shared, l * d);
        let (l32, t32, d32, s32, groups) = (l as u32, tokens as u32, d as u32, stride as u32, self.groups.len() as u32);
        let (tied, apart) = (u32::from(self.config.tied == Tied::PerSource), (self.rows(tokens) * stride) as u64);
        let arguments: [&dyn Argument; 12] =
            [&aux.sources.at(), &l32, &tied, &t32, &d32, &s32, &shared.scales.at(), &aux.factor.at(), &shared.slab.at(), &groups, &apart, &aux.errors.at()];
        // SAFETY: a block a token; slabs have 2T rows of L·d, errors are [L, T].
        unsafe {
            self.gpu.launch(Kernels::DECODE_DEAD.of(self.stored), (tokens, 1), super::step::threads(d), &arguments)?;
            self.gpu.launch(Kernel::REPORT_AUX, (l, 1), 256, &[&aux.errors.at(), &t32, &self.line(0)])
        }
    }
}
