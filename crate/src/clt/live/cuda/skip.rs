//! Skip connections: `ŷ[l] += x[l] W_skip[l]`, and their gradient `xᵀ e`, both dense products.

use super::{CudaClt, DeviceBatch};
use crate::clt::kernels::cuda::{Kernel, Operand, Product, Stored};
use crate::error::Result;

impl CudaClt {
    /// What the encoders of `layer` read, `[T, d]`.
    fn input(&self, layer: usize, batch: &DeviceBatch, turned: bool) -> Operand {
        let d = self.config.width;
        Operand { at: batch.inputs.from(layer * batch.tokens * d), stored: self.stored, stride: d, turned }
    }

    /// Adds what the skip connection of `layer`, if it has one, writes to its target.
    pub(super) fn add_skip(&mut self, layer: usize, batch: &DeviceBatch) -> Result<()> {
        let (d, stride) = (self.config.width, self.config.layers * self.config.width);
        let Some(skip) = &self.layers[layer].skip else { return Ok(()) };
        let at = match self.stored {
            Stored::F32 => skip.w.at(),
            Stored::Bf16 => {
                let n = (d * d) as u32;
                // SAFETY: both have d·d numbers.
                unsafe { self.gpu.launch(Kernel::NARROW_ALL, ((d * d).div_ceil(256), 1), 256, &[&skip.w.at(), &n, &self.shared.skip.at()])? };
                self.shared.skip.at()
            }
        };
        let right = Operand { at, stored: self.stored, stride: d, turned: false };
        let product = Product { rows: batch.tokens, depth: d, columns: d, left: self.input(layer, batch, false), right, out: self.shared.base.from(layer * d), stride, add: true };
        // SAFETY: inputs are [T, d], `base` is [T, L·d].
        unsafe { self.gpu.product(&product) }
    }

    /// The gradient of the skip connection of `layer`, if it has one, from that at its target.
    pub(super) fn skip_gradient(&self, layer: usize, batch: &DeviceBatch) -> Result<()> {
        let (d, stride) = (self.config.width, self.config.layers * self.config.width);
        let Some(skip) = &self.layers[layer].skip else { return Ok(()) };
        let slab = Operand { at: self.shared.slab.from(layer * d), stored: self.stored, stride, turned: false };
        let product = Product { rows: d, depth: batch.tokens, columns: d, left: self.input(layer, batch, true), right: slab, out: skip.gradient.at(), stride: d, add: false };
        // SAFETY: inputs are [T, d], gradients at the targets [T, L·d], that of the connection has d·d numbers.
        unsafe { self.gpu.product(&product) }
    }
}
