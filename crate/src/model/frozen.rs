//! The frozen backward of a block: gradients through attention and norms whose patterns and scales
//! are those of a run.
//!
//! With patterns and scales constant each part is linear, and these are its transposes (*Circuit
//! Tracing*, local replacement model). [`FrozenModel`](crate::replacement::FrozenModel) strings them
//! together and knows no family: a norm that a block lacks passes gradients on.

use super::back::add_to;
use super::flow::Flow;
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
    #[doc(hidden)]
    pub fn back_attention(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        self.attention_back(layer, run, &Flow::rectangular(g)?)?.rectangle(g.dim(1)?)
    }

    /// As [`Model::back_attention`]; rows come out from position 0 on.
    pub(crate) fn attention_back(&self, layer: usize, run: &Run, g: &Flow) -> Result<Flow> {
        let pattern = forward::needed(&self.layer_run(layer, run)?.attn_pattern, "attn_pattern")?;
        let g = self.norm_back(Place::AttnPost, layer, run, g)?;
        let at_normed = attention::back(self.config(), &self.parts().layers[layer], pattern, &g)?;
        self.norm_back(Place::Attn, layer, run, &at_normed)
    }

    /// Both ways around an attention: `at` through it and `past` it.
    pub(crate) fn around_attention(&self, layer: usize, run: &Run, at: &Flow, past: &Flow) -> Result<Flow> {
        let through = self.attention_back(layer, run, at)?;
        if past.rows.device().is_cpu() {
            add_to(&through, past)?;
            return Ok(through);
        }
        Ok(through.with((&through.rows + past.full()?.rows)?))
    }

    /// Gradient at `resid_mid` given the gradient `g [batch, T', d]` at what the MLP reads, through
    /// the norm before the MLP with its scale held, if there is one.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub(crate) fn mlp_norm_back(&self, layer: usize, run: &Run, g: &Flow) -> Result<Flow> {
        self.norm_back(Place::Mlp, layer, run, g)
    }

    /// Gradient at `resid_mid` given the gradient `g [batch, T', d]` at
    /// [`mlp_normalized`](crate::model::LayerRun::mlp_normalized), the norm's scale held.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub(crate) fn mlp_normalized_back(&self, layer: usize, run: &Run, g: &Flow) -> Result<Flow> {
        let site = self.layer_run(layer, run)?;
        match self.config().norm {
            NormKind::Rms if self.parts().layers[layer].norm(Place::Mlp).is_some() => {
                Ok(g.with(g.rows.broadcast_mul(&g.each_row(site.scale(Place::Mlp)?)?)?))
            }
            _ => self.mlp_norm_back(layer, run, g),
        }
    }

    /// Gradient at `mlp_out` given the gradient `g [batch, T', d]` at the end of the block: through
    /// the norm after it, its scale held, if there is one; else `g` itself.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub(crate) fn back_mlp_out(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        self.mlp_out_back(layer, run, &Flow::rectangular(g)?)?.rectangle(g.dim(1)?)
    }

    pub(crate) fn mlp_out_back(&self, layer: usize, run: &Run, g: &Flow) -> Result<Flow> {
        self.layer_run(layer, run)?;
        if self.output() == OutputSite::AfterNorm {
            return Ok(g.clone());
        }
        self.norm_back(Place::MlpPost, layer, run, g)
    }

    /// Gradient at the last residual stream given the gradient `g [batch, T', d]` after the final
    /// norm, its scale held.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub(crate) fn final_norm_back(&self, run: &Run, g: &Flow) -> Result<Flow> {
        self.parts().final_norm.back_frozen(g, forward::needed(&run.final_scale, "final_scale")?)
    }

    /// Through a norm of a block with its scale held; `g` itself where there is none.
    fn norm_back(&self, place: Place, layer: usize, run: &Run, g: &Flow) -> Result<Flow> {
        let site = self.layer_run(layer, run)?;
        match self.parts().layers[layer].norm(place) {
            Some(norm) => norm.back_frozen(g, site.scale(place)?),
            None => Ok(g.clone()),
        }
    }
}
