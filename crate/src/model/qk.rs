//! Queries and keys: one head's, at one position, as an affine map of the residual stream.
//!
//! With the scales of the norms held at a run (of the attention's norm, and of the norms of queries and keys
//! where there are any), a query is `M_q x_q + m_q` and a key `M_k x_k + m_k`, both `[h]`, turned to their
//! positions, and the score of the pair before cap and softmax is their product: affine in either stream.
//! `graph::QkAttribution` splits it over what the streams are made of. Cost: `d² h` flops a map.

use super::config::{NormKind, QkNorm};
use super::forward::needed;
use super::parts::{Linear, Norm, Place};
use super::rotary::{Places, Rotary};
use super::{Model, Run};
use crate::error::{Error, ErrorKind, Result};
use candle_core::{DType, Tensor, D};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Times the attention's scale.
    Query,
    Key,
}

/// A head's query or key at a position.
pub(crate) struct HeadMap<'a> {
    /// With its scale, `[1, 1]`.
    norm: Option<(Norm, Tensor)>,
    /// The head's rows.
    linear: Linear,
    /// Of queries or keys, the head's weights, with its scale.
    after: Option<(Norm, Tensor)>,
    rotary: Option<&'a Rotary>,
    position: usize,
    factor: f64,
}

impl HeadMap<'_> {
    /// `x [n, d]` to `[n, h]`; without the constants only the linear part.
    pub(crate) fn apply(&self, x: &Tensor, constants: bool) -> Result<Tensor> {
        let normed = |x: &Tensor, norm: &Option<(Norm, Tensor)>| match norm {
            None => Ok(x.clone()),
            Some((norm, scale)) if constants => norm.forward_frozen(x, scale),
            Some((norm, scale)) => Norm { bias: None, ..norm.clone() }.forward_frozen(x, scale),
        };
        let linear = Linear { bias: self.linear.bias.clone().filter(|_| constants), ..self.linear.clone() };
        let y = normed(&linear.forward(&normed(x, &self.norm)?)?, &self.after)?;
        let (rows, width) = y.dims2()?;
        let places = Places { start: self.position, ids: None };
        let y = match self.rotary {
            Some(rotary) => rotary.apply(&y.contiguous()?.reshape((rows, 1, 1, width))?, places)?.reshape((rows, width))?,
            None => y,
        };
        Ok((y * self.factor)?)
    }

    /// The linear part, `[h, d]`.
    pub(crate) fn matrix(&self) -> Result<Tensor> {
        let width = self.linear.weight.dim(1)?;
        Ok(self.apply(&Tensor::eye(width, DType::F32, self.linear.weight.device())?, false)?.t()?.contiguous()?)
    }
}

impl Model {
    /// The query or key of `head` (a query head) of `layer` at `position`, norm scales held at `run`.
    pub(crate) fn head_map(&self, run: &Run, layer: usize, head: usize, position: usize, side: Side) -> Result<HeadMap<'_>> {
        let config = self.config();
        let site = self.layer_run(layer, run)?;
        for (field, got, limit) in [("head", head, config.heads), ("position", position, run.tokens.len())] {
            if got >= limit {
                return Err(Error::expected(ErrorKind::BadInput, format_args!("attention: {field}"), got, format_args!("less than {limit}")));
            }
        }
        let weights = &self.parts().layers[layer];
        let (map, after, head, factor) = match side {
            Side::Query => (&weights.query, &weights.query_norm, head, config.attention_scale),
            Side::Key => (&weights.key, &weights.key_norm, head / (config.heads / config.kv_heads), 1.0),
        };
        let rows = |tensor: &Tensor| tensor.narrow(0, head * config.head_dim, config.head_dim);
        let norm = match weights.norm(Place::Attn) {
            Some(norm) => Some((norm.clone(), site.scale(Place::Attn)?.narrow(0, position, 1)?)),
            None => None,
        };
        let linear = Linear { weight: rows(&map.weight)?.contiguous()?, bias: map.bias.as_ref().map(rows).transpose()? };
        let mut built = HeadMap { norm, linear, after: None, rotary: self.rotaries().of(config.window(layer).is_some()), position, factor };
        let Some(after) = after else { return Ok(built) };
        // The scale is that of the run's own query or key, before it is turned.
        let x = needed(&site.resid_pre, "resid_pre")?.narrow(0, position, 1)?;
        let x = built.norm.as_ref().map_or_else(|| Ok(x.clone()), |(norm, scale)| norm.forward_frozen(&x, scale))?;
        built.after = Some(match config.qk_norm {
            Some(QkNorm::Whole) if after.kind == NormKind::Layer => {
                return Err(Error::new(ErrorKind::Unsupported, "attention: a LayerNorm over all heads' queries mixes heads and cannot be split"));
            }
            Some(QkNorm::Whole) => {
                let scale = after.scale(&map.forward(&x)?)?;
                (Norm { weight: rows(&after.weight)?, bias: after.bias.as_ref().map(rows).transpose()?, ..after.clone() }, scale)
            }
            _ => (after.clone(), after.scale(&built.linear.forward(&x)?)?),
        });
        Ok(built)
    }

    /// The score of `head` of `layer` between a query at position `query.0` and a key at `key.0`, before cap
    /// and softmax, where the residual streams that enter the layer there are `query.1` and `key.1`, `[d]`; the
    /// norms' scales are those of `run`. With the run's own `resid_pre` it is the model's score (softmax over the
    /// keys gives the run's pattern to 1e-5).
    ///
    /// # Errors
    /// `BadInput` for a layer, head or position that does not exist, or a run without residuals.
    #[doc(hidden)]
    pub fn attention_score(&self, run: &Run, layer: usize, head: usize, query: (usize, &Tensor), key: (usize, &Tensor)) -> Result<f64> {
        let row = |side: Side, (position, x): (usize, &Tensor)| -> Result<Vec<f32>> {
            Ok(self.head_map(run, layer, head, position, side)?.apply(&x.reshape((1, x.dim(D::Minus1)?))?, true)?.flatten_all()?.to_vec1()?)
        };
        let (query, key) = (row(Side::Query, query)?, row(Side::Key, key)?);
        Ok(query.iter().zip(&key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum())
    }
}
