//! Dense products or lists: which way is faster, by what each must move and multiply.
//!
//! For each column of a layer's decoder rows (k of F features active, T tokens, b bytes a number):
//!
//! | | dense | lists |
//! |---|---|---|
//! | forward | 2·T·F flops, at least F·b bytes | T·k·b bytes of rows |
//! | backward | 4·T·F flops (products and gradient), F·8 bytes of gradient written and read | T·k·b bytes of the targets' gradients, most from the second-level cache |
//!
//! So lists at 0.2 % density always; at 2 % (openCLT's TopK 184 of 9,216) dense products forward, and backward
//! where many tokens share a step. `CLTLAB_CUDA_PATH=dense` or `lists` decides for all, to measure.

use super::CudaClt;
use crate::clt::live::room::dense_pays;
pub(super) use crate::clt::live::room::Side;
use crate::clt::live::GpuPath;
use crate::clt::Tied;
use crate::environment::{self, CudaPath};
use crate::error::Result;

/// As the environment says.
///
/// # Errors
/// `BadConfig` for another word than `dense` or `lists`.
pub(super) fn wanted() -> Result<GpuPath> {
    Ok(match environment::cuda_path()? {
        Some(CudaPath::Dense) => GpuPath::Dense,
        Some(CudaPath::Lists) => GpuPath::Lists,
        None => GpuPath::Auto,
    })
}

impl CudaClt {
    /// Whether this layer's half of the step goes through dense products.
    pub(super) fn is_dense(&self, layer: usize, tokens: usize, side: Side) -> bool {
        // Tied rows are walked along once for all targets forward; shared ones belong to several sources' lists, and groups of
        // features, and entries lent to dead ones, meet gradients of their own.
        if self.groups.len() > 1 || self.aux.k > 0 || self.config.tied == Tied::PerTarget || (self.config.tied == Tied::PerSource && side == Side::Forward) {
            return false;
        }
        let features = self.config.features;
        let kept = self.config.activation.k().map_or(self.layers[layer].density * features as f64, |k| k as f64);
        match self.path {
            GpuPath::Auto => dense_pays(side, tokens, features, kept, self.stored.bytes() as f64),
            GpuPath::Dense => true,
            GpuPath::Lists => false,
            GpuPath::DenseForward => side == Side::Forward,
        }
    }
}
