//! The frozen backward of a block: gradients through attention and norms whose patterns and scales
//! are those of a run.
//!
//! With patterns and scales constant each part is linear, and these are its transposes (*Circuit
//! Tracing*, local replacement model). [`FrozenModel`](crate::replacement::FrozenModel) strings them
//! together and knows no family: a norm that a block lacks passes gradients on.

use super::parts::Place;
use super::{attention, forward, Model, NormKind, OutputSite, Run};
use crate::error::Result;
use candle_core::Tensor;

impl Model {
    /// Gradient at `resid_pre` of a layer that comes *through* its attention, given the gradient
    /// `g [batch, T', d]` at what the attention's branch adds to the stream, with the pattern and norm scale of `run` held.
    /// The residual path around the attention is the caller's. T' may be a prefix of the run.
    ///
    /// Source: *Circuit Tracing*, local replacement model; agrees with circuit-tracer's detached
    /// backward (adjacency, 1e-4 of its largest entry).
    ///
    /// # Errors
    /// `BadInput` when the run lacks patterns or scales.
    pub fn back_attention(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        let pattern = forward::needed(&self.layer_run(layer, run)?.attn_pattern, "attn_pattern")?;
        let g = self.back_norm(Place::AttnPost, layer, run, g)?;
        let at_normed = attention::back(self.config(), &self.parts().layers[layer], pattern, &g)?;
        self.back_norm(Place::Attn, layer, run, &at_normed)
    }

    /// Gradient at `resid_mid` given the gradient `g [batch, T', d]` at what the MLP reads, through
    /// the norm before the MLP with its scale held, if there is one.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub fn back_mlp_norm(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        self.back_norm(Place::Mlp, layer, run, g)
    }

    /// Gradient at `resid_mid` given the gradient `g [batch, T', d]` at
    /// [`mlp_normalized`](crate::model::LayerRun::mlp_normalized), the norm's scale held.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub fn back_mlp_normalized(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        match self.config().norm {
            NormKind::Rms if self.parts().layers[layer].norm(Place::Mlp).is_some() => {
                Ok(g.broadcast_mul(&prefix(self.layer_run(layer, run)?.scale(Place::Mlp)?, g)?)?)
            }
            _ => self.back_mlp_norm(layer, run, g),
        }
    }

    /// Gradient at `mlp_out` given the gradient `g [batch, T', d]` at the end of the block: through
    /// the norm after it, its scale held, if there is one; else `g` itself.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub fn back_mlp_out(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        if self.output() == OutputSite::AfterNorm {
            return Ok(g.clone());
        }
        self.back_norm(Place::MlpPost, layer, run, g)
    }

    /// Gradient at the last residual stream given the gradient `g [batch, T', d]` after the final
    /// norm, its scale held.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub fn back_final_norm(&self, run: &Run, g: &Tensor) -> Result<Tensor> {
        self.parts().final_norm.back_frozen(g, &prefix(forward::needed(&run.final_scale, "final_scale")?, g)?)
    }

    /// Through a norm of a block with its scale held; `g` itself where there is none.
    fn back_norm(&self, place: Place, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        let site = self.layer_run(layer, run)?;
        match self.parts().layers[layer].norm(place) {
            Some(norm) => norm.back_frozen(g, &prefix(site.scale(place)?, g)?),
            None => Ok(g.clone()),
        }
    }
}

/// The scales of the first T' tokens, where `g` is `[batch, T', d]`.
fn prefix(scale: &Tensor, g: &Tensor) -> Result<Tensor> {
    Ok(scale.narrow(0, 0, g.dim(1)?)?)
}
