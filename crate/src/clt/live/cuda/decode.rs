//! Forward, second half: reconstructions, and what is wrong with them.

use super::path::Side;
use super::step::threads;
use super::{CudaClt, DeviceBatch};
use crate::clt::kernels::cuda::{Argument, At, Kernel, Kernels, Product};
use crate::clt::live::StepOptions;
use crate::clt::Tied;
use crate::error::Result;

impl CudaClt {
    /// Reconstructs every target, group after group of features, and turns what is wrong into the gradient there.
    pub(super) fn decode(&mut self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (l, d, tokens, groups) = (self.config.layers, self.config.width, batch.tokens, self.groups.len());
        let stride = l * d;
        let dense: Vec<bool> = (0..l).map(|layer| self.is_dense(layer, tokens, Side::Forward)).collect();
        let any = self.constants(batch, &dense)?;
        self.cut(tokens)?;
        self.tell_sources(&dense, tokens)?;
        let (shared, gpu) = (&self.shared, &self.gpu);
        let (t32, d32, l32, s32, fvu) = (tokens as u32, d as u32, l as u32, stride as u32, u32::from(options.fvu));
        let (variances, scales) = (shared.variances.at(), shared.scales.at());
        // SAFETY: all of these are [G, T, L·d], [L, T, d], [L·d] or [L], as their kernels read them.
        unsafe {
            gpu.launch(Kernels::COLUMN_SUMS.of(self.stored), (d.div_ceil(64), l), 256, &[&batch.targets.at(), &t32, &d32, &d32, &shared.target_sums.at(), &shared.target_squares.at()])?;
            gpu.launch(Kernel::TARGET_SCALES, (l, 1), 256, &[&shared.target_sums.at(), &shared.target_squares.at(), &t32, &d32, &fvu, &(groups as u32), &variances, &scales])?;
            for group in 0..groups {
                let base = if any || group > 0 { shared.base.at() } else { 0 };
                let running = if group + 1 < groups { shared.base.at() } else { 0 };
                self.reconstruct(group, batch, [base, running])?;
            }
            gpu.launch(Kernel::REPORT_ERRORS, (l, 1), 256, &[&shared.errors.at(), &variances, &t32, &self.line(0), &shared.go.at(), &shared.broken.at(), &(options.step as u32)])?;
        }
        self.decode_dead(batch)?;
        let (shared, gpu) = (&self.shared, &self.gpu);
        // SAFETY: as above.
        unsafe {
            if groups > 1 {
                let (n, apart) = (tokens * stride, self.rows(tokens) * stride);
                gpu.launch(Kernels::SUM_GROUPS.of(self.stored), (n.div_ceil(8 * 256), 1), 256, &[&shared.slab.at(), &(groups as u32), &(n as u64), &(apart as u64)])?;
            }
            gpu.launch(Kernels::COLUMN_SUMS.of(self.stored), (stride.div_ceil(64), 1), 256, &[&shared.slab.at(), &t32, &s32, &s32, &self.decoder_bias.gradient.at(), &0u64])?;
            (0..l).try_for_each(|layer| self.skip_gradient(layer, batch))?;
            if self.config.tied == Tied::PerSource {
                gpu.launch(Kernels::SUM_LATER.of(self.stored), (groups * self.rows(tokens), 1), threads(d), &[&shared.slab.at(), &l32, &d32, &s32])?;
            }
            if options.dead > 0.0 {
                gpu.launch(Kernels::COLUMN_SUMS.of(self.stored), (d.div_ceil(64), l), 256, &[&batch.inputs.at(), &t32, &d32, &d32, &shared.input_sums.at(), &0u64])?;
            }
        }
        Ok(())
    }

    /// What skip connections and dense products give, into `shared.base`; whether there is any.
    fn constants(&mut self, batch: &DeviceBatch, dense: &[bool]) -> Result<bool> {
        let (l, d, f, tokens) = (self.config.layers, self.config.width, self.config.features, batch.tokens);
        let stride = l * d;
        let any = self.config.skip || dense.contains(&true);
        if any || self.groups.len() > 1 {
            self.shared.base.fit(tokens * stride)?;
        }
        if any {
            self.shared.base.clear()?;
        }
        for layer in 0..l {
            self.add_skip(layer, batch)?;
        }
        for layer in (0..l).filter(|&layer| dense[layer]) {
            self.scatter(layer, tokens, self.layers[layer].entries.list_values.at())?;
            let decoder = &self.layers[layer].decoder;
            let product = Product { rows: tokens, depth: f, columns: decoder.row, left: self.code(false), right: decoder.factor(0, false), out: self.shared.base.from(layer * d), stride, add: true };
            // SAFETY: the code is [T, F], decoder rows write to columns from l·d on, of L·d.
            unsafe { self.gpu.product(&product)? };
        }
        Ok(any)
    }

    /// Which entries belong to each group of features, where there are several.
    fn cut(&mut self, tokens: usize) -> Result<()> {
        let (l, groups) = (self.config.layers, self.groups.len());
        if groups == 1 {
            return Ok(());
        }
        self.shared.group_starts.fit(groups * l * tokens)?;
        self.shared.group_counts.fit(groups * l * tokens)?;
        let shared = &self.shared;
        let arguments: [&dyn Argument; 6] = [&self.tables.layers.at(), &(tokens as u32), &shared.ends.at(), &(groups as u32), &shared.group_starts.at(), &shared.group_counts.at()];
        // SAFETY: a start and a count for each group, layer and token.
        unsafe { self.gpu.launch(Kernel::CUT_GROUPS, (tokens.div_ceil(256), l), 256, &arguments) }
    }

    /// Adds one group's features to what `base` holds (0 for nothing), writes that to `running` (0 for nowhere), and its gradient
    /// to the group's slab.
    fn reconstruct(&self, group: usize, batch: &DeviceBatch, [base, running]: [At; 2]) -> Result<()> {
        let (l, d, tokens, shared) = (self.config.layers, self.config.width, batch.tokens, &self.shared);
        let stride = l * d;
        let (t32, d32, l32, s32) = (tokens as u32, d as u32, l as u32, stride as u32);
        let bias = if group == 0 { self.decoder_bias.w.at() } else { 0 };
        let slab = shared.slab.from(group * self.rows(tokens) * stride);
        let arguments: [&dyn Argument; 12] =
            [&self.sources_of(group, 0), &l32, &base, &bias, &batch.targets.at(), &t32, &d32, &s32, &shared.scales.at(), &slab, &shared.errors.at(), &running];
        // SAFETY: a block a token and target, or a token; slab, base and running are [T, L·d].
        unsafe {
            match self.config.tied {
                Tied::No => self.gpu.launch(Kernels::DECODE.of(self.stored), (tokens, l), threads(d), &arguments),
                Tied::PerSource => self.gpu.launch(Kernels::DECODE_TIED.of(self.stored), (tokens, 1), threads(d), &arguments),
                Tied::PerTarget => (0..l).try_for_each(|target| self.decode_shared(target, group, batch, [base, running])),
            }
        }
    }
}
