//! Norms: forward, and the frozen backward with the scale held constant.
//!
//! `y = center(x) · s · weight + bias`, where `center` subtracts the mean for LayerNorm and is the
//! identity for RMSNorm, and `s = 1/σ`. In the local replacement model (*Circuit Tracing*, section
//! on the local replacement model) `s` is a constant, so `y` is linear in `x`.

use super::config::NormKind;
use super::flow::Flow;
use crate::error::Result;
use candle_core::{Tensor, D};

/// A norm and its weights; the files' `weight − 1` of some families is made whole when it is read.
#[derive(Clone)]
pub(crate) struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    /// `[d]`.
    pub weight: Tensor,
    /// `[d]`, LayerNorm only.
    pub bias: Option<Tensor>,
}

impl Norm {
    /// `x [..., d]` to `[..., d]`, by candle's fused kernels.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let centre = self.kind == NormKind::Layer;
        if let Some(y) = super::fast::norm(&x, &self.weight, self.bias.as_ref().filter(|_| centre), self.eps, centre)? {
            return Ok(y);
        }
        Ok(match (&self.kind, &self.bias) {
            (NormKind::Layer, Some(bias)) => candle_nn::ops::layer_norm(&x, &self.weight, bias, self.eps as f32)?,
            (NormKind::Layer, None) => self.forward_frozen(&x, &self.scale(&x)?)?,
            (NormKind::Rms, _) => candle_nn::ops::rms_norm(&x, &self.weight, self.eps as f32)?,
        })
    }

    /// `s = 1/σ`, `[..., 1]`.
    pub(crate) fn scale(&self, x: &Tensor) -> Result<Tensor> {
        let centred = self.centre(x)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        Ok((variance + self.eps)?.sqrt()?.recip()?)
    }

    /// The norm with its scale given, `scale [..., 1]`.
    pub(crate) fn forward_frozen(&self, x: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let y = self.centre(x)?.broadcast_mul(scale)?.broadcast_mul(&self.weight)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// The transpose of [`Norm::forward_frozen`] without its bias: `g` at the output to the gradient
    /// at the input, given the run's `scale [T, 1]`.
    pub(crate) fn back_frozen(&self, g: &Flow, scale: &Tensor) -> Result<Flow> {
        if g.rows.device().is_cpu() {
            return super::back::norm(g, &self.weight, scale, self.kind == NormKind::Layer);
        }
        let rows = g.rows.broadcast_mul(&self.weight)?;
        Ok(g.with(self.centre(&rows)?.broadcast_mul(&g.each_row(scale)?)?))
    }

    fn centre(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.kind {
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => x.clone(),
        })
    }
}
