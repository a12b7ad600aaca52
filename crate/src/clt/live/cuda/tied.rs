//! Decoders that all sources of a target share: `ŷ_t = b_t + W_tᵀ Σ_{s ≤ t} a_s`, see `per_target.rs` for the CPU's.
//!
//! Layer t's decoder is that of target t. A source's entries have products with the rows of every later target, and a target's row has a
//! gradient from the lists of every source up to it ([`super::rows`]). Always lists: such CLTs have many features, of which few are active.

use super::step::threads;
use super::{CudaClt, DeviceBatch};
use crate::clt::kernels::cuda::{Argument, At, Kernels};
use crate::error::Result;

impl CudaClt {
    /// Reconstructs one target, as [`CudaClt::reconstruct`].
    pub(super) fn decode_shared(&self, target: usize, group: usize, batch: &DeviceBatch, [base, running]: [At; 2]) -> Result<()> {
        let (d, tokens, shared, stride) = (self.config.width, batch.tokens, &self.shared, self.config.layers * self.config.width);
        let (t32, d32, s32, count) = (tokens as u32, d as u32, stride as u32, target as u32 + 1);
        let [base, running] = [base, running].map(|at| if at == 0 { 0 } else { shared.base.from(target * d) });
        let bias = if group == 0 { self.decoder_bias.w.from(target * d) } else { 0 };
        let arguments: [&dyn Argument; 12] = [
            &self.sources_of(group, target), &count, &base, &bias, &batch.targets.from(target * tokens * d), &t32, &d32, &s32, &shared.scales.from(target),
            &shared.slab.from(group * self.rows(tokens) * stride + target * d), &shared.errors.from(target * tokens), &running,
        ];
        // SAFETY: a block a token; all of these have a target's part there, [T, d] with rows as far apart as those of all.
        unsafe { self.gpu.launch(Kernels::DECODE.of(self.stored), (tokens, 1), threads(d), &arguments) }
    }
}
