//! Forward, second half: reconstructions, and what is wrong with them.

use super::path::Side;
use super::step::threads;
use super::{CudaClt, DeviceBatch};
use crate::clt::kernels::cuda::{Argument, Product};
use crate::clt::live::StepOptions;
use crate::clt::Tied;
use crate::error::Result;

impl CudaClt {
    /// Reconstructs every target and turns what is wrong into the gradient there.
    pub(super) fn decode(&mut self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (l, d, f, tokens) = (self.config.layers, self.config.width, self.config.features, batch.tokens);
        let stride = l * d;
        let dense: Vec<bool> = (0..l).map(|layer| self.is_dense(layer, tokens, Side::Forward)).collect();
        let any = self.config.skip || dense.contains(&true);
        if any {
            self.shared.base.fit(tokens * stride)?;
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
        self.tell_sources(&dense)?;
        let (shared, gpu) = (&self.shared, &self.gpu);
        let (t32, d32, l32) = (tokens as u32, d as u32, l as u32);
        let base = if any { shared.base.at() } else { 0 };
        let (variances, scales) = (shared.variances.at(), shared.scales.at());
        let name = |kernel: &str| format!("{kernel}_{}", self.stored.name());
        // SAFETY: all of these are [T, L·d], [L, T, d], [L·d] or [L], as their kernels read them.
        unsafe {
            gpu.launch(&name("column_sums"), (d.div_ceil(64), l), 256, &[&batch.targets.at(), &t32, &d32, &d32, &shared.target_sums.at(), &shared.target_squares.at()])?;
            gpu.launch("target_scales", (l, 1), 256, &[&shared.target_sums.at(), &shared.target_squares.at(), &t32, &d32, &u32::from(options.fvu), &variances, &scales])?;
            let arguments: [&dyn Argument; 11] =
                [&self.tables.sources.at(), &l32, &base, &self.decoder_bias.w.at(), &batch.targets.at(), &t32, &d32, &(stride as u32), &scales, &shared.slab.at(), &shared.errors.at()];
            match self.config.tied {
                Tied::No => gpu.launch(&name("decode"), (tokens, l), threads(d), &arguments)?,
                Tied::PerSource => gpu.launch(&name("decode_tied"), (tokens, 1), threads(d), &arguments)?,
                Tied::PerTarget => (0..l).try_for_each(|target| self.decode_shared(target, batch, base))?,
            }
            gpu.launch("report_errors", (l, 1), 256, &[&shared.errors.at(), &variances, &t32, &self.line(0), &shared.go.at(), &shared.broken.at(), &(options.step as u32)])?;
            gpu.launch(&name("column_sums"), (stride.div_ceil(64), 1), 256, &[&shared.slab.at(), &t32, &(stride as u32), &(stride as u32), &self.decoder_bias.gradient.at(), &0u64])?;
            if self.config.tied == Tied::PerSource {
                gpu.launch(&name("sum_later"), (tokens, 1), threads(d), &[&shared.slab.at(), &l32, &d32, &(stride as u32)])?;
            }
            if options.dead > 0.0 {
                gpu.launch(&name("column_sums"), (d.div_ceil(64), l), 256, &[&batch.inputs.at(), &t32, &d32, &d32, &shared.input_sums.at(), &0u64])?;
            }
        }
        Ok(())
    }
}
