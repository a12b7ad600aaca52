//! Forward, first half: pre-activations, which of them are kept, and the lists of both orders.

use super::{CudaClt, DeviceBatch, Matrix};
use crate::clt::live::room::{most_kept, FOUND, WARPS};
use crate::clt::kernels::cuda::{Argument, At, Kernel, Operand, Product, Sent};
use crate::clt::live::StepOptions;
use crate::clt::Activation;
use crate::error::Result;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;

/// Threads of kernels that walk along a row.
pub(super) const ROW: usize = 256;
/// As in `ranking.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Found([At; 4]);
// SAFETY: plain numbers, as the kernels have them.
unsafe impl DeviceRepr for Found {}

/// Blocks a layer of kernels that walk along all entries.
pub(super) const WIDE: usize = 128;

impl Matrix {
    /// As a factor of a product, its rows from `column` on.
    pub(super) fn factor(&self, column: usize, turned: bool) -> Operand {
        Operand { at: self.w.from(column), stored: self.w.stored(), stride: self.row, turned }
    }
}

impl CudaClt {
    /// How many places a layer's entries need before they are counted; `None` where only counting tells.
    pub(super) fn places(&self, tokens: usize) -> Option<usize> {
        most_kept(&self.config).map(|most| most * tokens)
    }

    /// Where a layer's entries are counted by feature as they are written; nowhere where some of them go again.
    fn lengths(&self, index: usize) -> At {
        if self.config.activation.ranks_layers() { 0 } else { self.shared.lengths.from(index * self.config.features) }
    }

    /// Room for what lies above the hint.
    pub(super) fn found(&self) -> Found {
        let shared = &self.shared;
        Found([shared.found_features.at(), shared.found_values.at(), shared.found_counts.at(), shared.spilled.at()])
    }

    /// Makes room for batches of `tokens`.
    pub(super) fn fit(&mut self, tokens: usize) -> Result<()> {
        let (l, d, f) = (self.config.layers, self.config.width, self.config.features);
        let (places, rows) = (self.places(tokens).map(|places| places + self.aux.k * tokens), self.rows(tokens));
        let shared = &mut self.shared;
        shared.h.fit(tokens * f)?;
        if self.config.activation.ranks_batch() {
            shared.found_features.fit(tokens * FOUND)?;
            shared.found_values.fit(tokens * FOUND)?;
            shared.found_counts.fit(tokens * WARPS)?;
        }
        if places.is_none() {
            shared.second.fit(tokens * f)?;
        }
        shared.slab.fit(self.groups.len() * rows * l * d)?;
        shared.errors.fit(l * tokens)?;
        shared.above.fit(tokens)?;
        shared.equal.fit(tokens)?;
        for layer in &mut self.layers {
            let entries = &mut layer.entries;
            entries.starts.fit(tokens)?;
            entries.counts.fit(tokens)?;
            entries.cuts.fit(tokens)?;
        }
        self.fit_across(tokens)?;
        if let Some(places) = places {
            (0..l).try_for_each(|layer| self.fit_entries(layer, places))?;
        }
        Ok(())
    }

    fn fit_entries(&mut self, layer: usize, places: usize) -> Result<()> {
        let jumps = self.layers[layer].log_threshold.is_some();
        let entries = &mut self.layers[layer].entries;
        entries.features.fit(places)?;
        entries.values.fit(places)?;
        entries.tokens.fit(places)?;
        entries.list.fit(places)?;
        // Lists are read four entries at a time.
        entries.list_tokens.fit(places + 3)?;
        entries.list_values.fit(places + 3)?;
        entries.gradients.fit(places + 3)?;
        if jumps {
            entries.pre.fit(places)?;
            entries.list_pre.fit(places)?;
        }
        Ok(())
    }

    /// Figures of the last steps stay; this step's begin.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.shared.lengths.clear()?;
        let shared = &self.shared;
        let lines = self.line(0);
        // SAFETY: the buffers have L lines and one number each.
        unsafe { self.gpu.launch(Kernel::BEGIN_STEP, (1, 1), 32, &[&lines, &(self.config.layers as u32), &shared.go.at(), &shared.broken.at()]) }
    }

    /// Where this step's line of `layer` is.
    pub(super) fn line(&self, layer: usize) -> At {
        let step = (self.steps % super::RING) as usize;
        self.shared.lines.from((step * self.config.layers + layer) * super::LINE)
    }

    /// Half of JumpReLU's window; 0 for the others.
    pub(super) fn reach(&self) -> f32 {
        match self.config.activation {
            Activation::JumpRelu { bandwidth, .. } => 0.5 * bandwidth as f32,
            _ => 0.0,
        }
    }

    /// Entries of all layers, by token. Without `hinted` nothing is made of the last steps' cuts where layers are ranked together.
    pub(super) fn encode(&mut self, batch: &DeviceBatch, options: &StepOptions, hinted: bool) -> Result<()> {
        let tokens = batch.tokens;
        for index in 0..self.config.layers {
            match most_kept(&self.config) {
                None => self.above(index, batch)?,
                Some(most) => {
                    self.pre_activations(index, batch)?;
                    if self.config.activation.ranks_batch() { self.ranked(index, tokens, most, hinted)? } else { self.top(index, tokens, most)? }
                }
            }
            self.lend(index, tokens, options)?;
        }
        self.rank_layers(tokens, hinted)
    }

    /// Where pre-activations of a layer lie.
    fn h(&self, index: usize) -> At {
        let second = self.layers[index].entries.counted.is_some() && index % 2 == 1;
        if second { self.shared.second.at() } else { self.shared.h.at() }
    }

    /// `x W_encᵀ` of one layer, without the bias.
    fn pre_activations(&self, index: usize, batch: &DeviceBatch) -> Result<()> {
        let (d, f, tokens) = (self.config.width, self.config.features, batch.tokens);
        let x = Operand { at: batch.inputs.from(index * tokens * d), stored: self.stored, stride: d, turned: false };
        let weights = self.layers[index].encoder.factor(0, true);
        let product = Product { rows: tokens, depth: d, columns: f, left: x, right: weights, out: self.h(index), stride: f, add: false };
        // SAFETY: inputs are [T, d], weights [F, d], `h` has room for [T, F].
        unsafe { self.gpu.product(&product) }
    }

    /// The k largest of each token.
    fn top(&mut self, index: usize, tokens: usize, k: usize) -> Result<()> {
        let (f, k32) = (self.config.features as u32, k as u32);
        let hint = self.shared.hints.from(index);
        let (h, lengths, cuts) = (self.shared.h.at(), self.lengths(index), self.own_cuts(index, tokens));
        let layer = &mut self.layers[index];
        let entries = &mut layer.entries;
        if entries.given != tokens * k {
            entries.total.write(&[(tokens * k) as u32])?;
            entries.given = tokens * k;
        }
        let e = &*entries;
        // SAFETY: one block a token; runs of k entries each have room.
        unsafe {
            self.gpu.launch(Kernel::TOP_ROWS, (tokens, 1), ROW, &[&h, &layer.encoder_bias.w.at(), &f, &k32, &hint, &e.features.at(), &e.values.at(), &e.tokens.at(), &e.starts.at(), &e.counts.at(), &cuts, &lengths])
        }
    }

    /// The k · T largest of the batch; where layers are ranked together, of these what lies above the hint, if there is one.
    fn ranked(&self, index: usize, tokens: usize, k: usize, hinted: bool) -> Result<()> {
        let (f, t, wanted, part) = (self.config.features as u32, tokens as u32, (tokens * k) as u32, u32::from(self.config.activation.ranks_layers()));
        let (layer, shared) = (&self.layers[index], &self.shared);
        let (e, bias, lengths) = (&layer.entries, layer.encoder_bias.w.at(), self.lengths(index));
        let (h, histogram, ranking, hint) = (shared.h.at(), shared.histogram.at(), shared.ranking.at(), if hinted { shared.hints.from(index) } else { 0 });
        let (found, above, equal) = (self.found(), shared.above.at(), shared.equal.at());
        // SAFETY: the histogram has 2,048 bins, the ranking seven numbers; rows are [T, F]; each token has room for what is
        // found; runs begin and end where they were counted.
        unsafe {
            self.gpu.launch(Kernel::RANKING_BEGIN, (1, 1), ROW, &[&ranking, &wanted, &hint, &part, &histogram, &found])?;
            self.gpu.launch(Kernel::COLLECT_ROWS, (tokens, 1), 32 * WARPS, &[&h, &bias, &f, &ranking, &found])?;
            for round in 0..3u32 {
                // The first digit is looked for once more from 0 where the hint was too high.
                for again in 0..if round == 0 { 2u32 } else { 1 } {
                    self.gpu.launch(Kernel::RANKING_COUNT, (tokens.min(1024), 1), ROW, &[&h, &bias, &f, &t, &ranking, &round, &again, &histogram, &found])?;
                    self.gpu.launch(Kernel::RANKING_PICK, (1, 1), ROW, &[&ranking, &round, &again, &histogram])?;
                }
            }
            self.gpu.launch(Kernel::COUNT_RANKED, (tokens, 1), ROW, &[&h, &bias, &f, &ranking, &found, &above, &equal])?;
            self.scan(index, tokens, ranking)?;
            let arguments: [&dyn Argument; 12] = [&h, &bias, &f, &ranking, &found, &equal, &e.starts.at(), &e.counts.at(), &e.features.at(), &e.values.at(), &e.tokens.at(), &lengths];
            self.gpu.launch(Kernel::WRITE_RANKED, (tokens, 1), 32 * WARPS, &arguments)
        }
    }

    /// All above 0, or above their thresholds less half the window: counted first, since nobody knows how many there are.
    /// The next layer is encoded before this one's count is waited for, so that the device has work meanwhile.
    fn above(&mut self, index: usize, batch: &DeviceBatch) -> Result<()> {
        let tokens = batch.tokens;
        let first = if index == 0 { 0 } else { index + 1 };
        for next in first..(index + 2).min(self.config.layers) {
            self.pre_activations(next, batch)?;
            self.count(next, tokens)?;
            let entries = &mut self.layers[next].entries;
            if let Some(counted) = &mut entries.counted {
                counted.send(&entries.total)?;
            }
        }
        let places = self.layers[index].entries.counted.as_ref().map_or(Ok(0), Sent::wait)? as usize;
        self.fit_entries(index, places)?;
        self.layers[index].density = places as f64 / (tokens * self.config.features) as f64;
        self.write(index, tokens)
    }

    /// Where each token's run begins, once its entries are counted.
    fn scan(&self, index: usize, tokens: usize, ranking: At) -> Result<()> {
        let (t, shared, e) = (tokens as u32, &self.shared, &self.layers[index].entries);
        // SAFETY: every buffer has a number a token.
        unsafe { self.gpu.launch(Kernel::SCAN_ROWS, (1, 1), 1024, &[&shared.above.at(), &shared.equal.at(), &t, &ranking, &e.starts.at(), &e.counts.at(), &e.cuts.at(), &e.total.at()]) }
    }

    fn count(&self, index: usize, tokens: usize) -> Result<()> {
        let (f, layer, shared, reach) = (self.config.features as u32, &self.layers[index], &self.shared, self.reach());
        let log = layer.log_threshold.as_ref().map_or(0, |log| log.w.at());
        // SAFETY: one block a token; every buffer has a number a token.
        unsafe { self.gpu.launch(Kernel::COUNT_ROWS, (tokens, 1), ROW, &[&self.h(index), &layer.encoder_bias.w.at(), &f, &log, &reach, &shared.above.at(), &shared.equal.at()])? };
        self.scan(index, tokens, 0)
    }

    fn write(&self, index: usize, tokens: usize) -> Result<()> {
        let (f, layer, shared, reach) = (self.config.features as u32, &self.layers[index], &self.shared, self.reach());
        let (e, log) = (&layer.entries, layer.log_threshold.as_ref().map_or(0, |log| log.w.at()));
        let (pre, lengths) = (if log == 0 { 0 } else { e.pre.at() }, shared.lengths.from(index * self.config.features));
        let arguments: [&dyn Argument; 12] =
            [&self.h(index), &layer.encoder_bias.w.at(), &f, &log, &reach, &e.starts.at(), &e.counts.at(), &e.features.at(), &e.values.at(), &pre, &e.tokens.at(), &lengths];
        // SAFETY: one block a token; runs begin and end where they were counted.
        unsafe { self.gpu.launch(Kernel::WRITE_ROWS, (tokens, 1), ROW, &arguments) }
    }

    /// The entries of all layers by feature, tokens ascending.
    pub(super) fn list(&mut self, tokens: usize) -> Result<()> {
        self.tell_layers(tokens)?;
        let (l, f, table) = (self.config.layers, self.config.features as u32, self.tables.layers.at());
        // SAFETY: features are below F or none, tokens below T, places below the total; a row of blocks a layer.
        unsafe {
            self.gpu.launch(Kernel::SCAN_FEATURES, (1, l), 1024, &[&table, &f])?;
            self.gpu.launch(Kernel::FILL_FEATURES, (WIDE, l), ROW, &[&table])?;
            self.gpu.launch(Kernel::ORDER_FEATURES, (self.config.features.div_ceil(8), l), ROW, &[&table, &f, &(self.rows(tokens) as u32)])
        }
    }
}
