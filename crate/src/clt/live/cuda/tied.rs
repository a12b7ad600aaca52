//! Decoders that all sources of a target share: `ŷ_t = b_t + W_tᵀ Σ_{s ≤ t} a_s`, see `per_target.rs` for the CPU's.
//!
//! Layer t's decoder is that of target t. A source's entries meet the rows of every later target, and a target's rows the
//! lists of every source up to it. Always lists: such CLTs have many features, of which few are active.

use super::step::{threads, Pass, Rows, Terms, Told};
use super::{CudaClt, DeviceBatch};
use crate::clt::kernels::cuda::{Argument, At};
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
        unsafe { self.gpu.launch(&format!("decode_{}", self.stored.name()), (tokens, 1), threads(d), &arguments) }
    }

    /// For products the entries of layer `index` with the rows of its targets, else the rows of target `index`.
    pub(super) fn shared_pass(&self, index: usize, tokens: usize, pass: Pass, told: &Told) -> Result<()> {
        let (l, d, shared) = (self.config.layers, self.config.width, &self.shared);
        let e = &self.layers[index].entries;
        let terms = self.at_targets(tokens);
        if pass == Pass::Products {
            return (index..l).try_for_each(|target| {
                let terms = Terms { offsets: e.offsets.at(), tokens: e.list_tokens.at(), coefficients: e.list_values.at(), at: (target * d) as u32, ..terms };
                let products = shared.products.from((target - index) * self.room());
                self.pass(&Rows { matrix: &self.layers[target].decoder, parts: 1, terms, products, squares: 0, norms: 0 }, pass, told)
            });
        }
        let terms = Terms { layers: self.tables.layers.at(), count: index as u32 + 1, at: (index * d) as u32, own: e.own.at(), ..terms };
        let (squares, norms) = (shared.squares.from(self.squares_from(index)), shared.norms.from(self.norms_from(index)));
        self.pass(&Rows { matrix: &self.layers[index].decoder, parts: 1, terms, products: 0, squares, norms }, pass, told)
    }
}
