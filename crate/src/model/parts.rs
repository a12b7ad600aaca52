//! The parts of a block: linear maps and the MLP. Weights are `[out, in]`, in the model's dtype; what
//! goes in and comes out is f32.

pub(crate) use super::norm::Norm;
use super::config::MlpActivation;
use super::fast;
use crate::error::Result;
use candle_core::{DType, Tensor, D};

/// `y = x Wᵀ + b`.
#[derive(Clone)]
pub(crate) struct Linear {
    /// `[out, in]`, f32, bf16 or f16.
    pub weight: Tensor,
    /// `[out]`, f32.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `x [..., in]` to `[..., out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(y) = fast::linear(x, self)? {
            return Ok(y);
        }
        let y = match self.weight.dtype() {
            DType::F32 => flat_matmul(x, &self.weight.t()?)?,
            // A GPU multiplies halves, and adds them up in f32.
            half if !x.device().is_cpu() => flat_matmul(&x.to_dtype(half)?, &self.weight.t()?)?.to_dtype(DType::F32)?,
            _ => flat_matmul(x, &self.weight.to_dtype(DType::F32)?.t()?)?,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// The transpose: gradient at the output `[..., out]` to gradient at the input `[..., in]`.
    pub(crate) fn back(&self, g: &Tensor) -> Result<Tensor> {
        let weight = match self.weight.dtype() {
            DType::F32 => self.weight.clone(),
            half if !g.device().is_cpu() => return Ok(flat_matmul(&g.to_dtype(half)?, &self.weight)?.to_dtype(DType::F32)?),
            _ => self.weight.to_dtype(DType::F32)?,
        };
        if let Some(y) = fast::linear_back(g, &weight)? {
            return Ok(y);
        }
        flat_matmul(g, &weight)
    }
}

/// `x [..., n]` times `m [n, k]`, as one GEMM over all leading dimensions.
pub(crate) fn flat_matmul(x: &Tensor, m: &Tensor) -> Result<Tensor> {
    let dims = x.dims();
    let inner = x.dim(D::Minus1)?;
    let rows = x.elem_count() / inner;
    let y = x.contiguous()?.reshape((rows, inner))?.matmul(m)?;
    let mut shape = dims.to_vec();
    shape[dims.len() - 1] = m.dim(1)?;
    Ok(y.reshape(shape)?)
}

/// The MLP: `down(act(up(x)))`, or `down(act(gate(x)) · up(x))`. Attribution cuts it, so it has
/// no frozen backward.
#[derive(Clone)]
pub(crate) struct Mlp {
    pub activation: MlpActivation,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

impl Mlp {
    /// `x [..., d]` to `[..., d]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(y) = fast::gated_mlp(x, self)? {
            return Ok(y);
        }
        let act = |x: &Tensor| match self.activation {
            MlpActivation::Gelu => x.gelu_erf(),
            MlpActivation::GeluTanh => x.gelu(),
            MlpActivation::Relu => x.relu(),
            MlpActivation::Silu => x.silu(),
        };
        let up = self.up.forward(x)?;
        let hidden = match &self.gate {
            Some(gate) => (act(&gate.forward(x)?)? * up)?,
            None => act(&up)?,
        };
        self.down.forward(&hidden)
    }
}

/// One layer's weights. A norm is there where the configuration puts one.
#[derive(Clone)]
pub(crate) struct Layer {
    pub attn_norm: Option<Norm>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// Norms of queries and keys, over a head or over all heads.
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    pub attn_post_norm: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    pub mlp: Mlp,
    pub mlp_post_norm: Option<Norm>,
}

/// A norm's place in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Attn,
    AttnPost,
    Mlp,
    MlpPost,
}

impl Layer {
    pub(crate) fn norm(&self, place: Place) -> Option<&Norm> {
        match place {
            Place::Attn => self.attn_norm.as_ref(),
            Place::AttnPost => self.attn_post_norm.as_ref(),
            Place::Mlp => self.mlp_norm.as_ref(),
            Place::MlpPost => self.mlp_post_norm.as_ref(),
        }
    }
}
