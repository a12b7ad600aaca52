//! The forward pass: embedding, blocks, final norm, unembedding, with what is asked for kept.
//!
//! One pass serves runs, training activations, replacement, interventions and generation: a
//! caller may hold patterns and norm scales of an earlier run, replace each MLP's output, keep
//! sites, or go on from a cache of keys and values. Cost: 2 flops a parameter and token, plus
//! `2·T²·H·h` a layer for attention.

use super::attention::{self, Past};
use super::fast;
use super::parts::Linear;
use super::run::{Capture, LayerRun, Logits, Run};
use super::Model;
use crate::error::{Error, ErrorKind, Result};
use candle_core::Tensor;

/// What an MLP read and wrote at one layer; each `[rows, d]`.
pub struct MlpSite<'a> {
    /// Residual stream before the MLP's norm.
    pub resid_mid: &'a Tensor,
    /// What the MLP reads, after its norm.
    pub mlp_in: &'a Tensor,
    /// What the MLP writes.
    pub mlp_out: &'a Tensor,
}

/// Which parts of an earlier run are held constant in a forward pass.
#[derive(Clone, Copy, Default)]
pub struct Freeze<'a> {
    /// The run whose parts are held; `None` holds nothing.
    pub run: Option<&'a Run>,
    /// Hold the attention patterns.
    pub patterns: bool,
    /// Hold the norms' scales.
    pub scales: bool,
}

impl<'a> Freeze<'a> {
    /// Holds patterns and norm scales of `run`: what makes the rest linear.
    pub fn all(run: &'a Run) -> Self {
        Freeze { run: Some(run), patterns: true, scales: true }
    }

    /// Holds nothing.
    pub fn none() -> Self {
        Freeze::default()
    }
}

/// Called at each layer with what the MLP read and wrote; may return what it should have written.
pub(crate) type Splice<'a> = dyn FnMut(usize, &MlpSite<'_>) -> Result<Option<Tensor>> + 'a;

/// The result of a batched pass.
pub(crate) struct Passed {
    pub layers: Vec<LayerRun>,
    pub final_scale: Option<Tensor>,
    /// `[B, T, V]`, or `[B, 1, V]` when only the last position was asked for.
    pub logits: Option<Tensor>,
}

impl Model {
    /// `tokens [B, T]` u32. Sites are kept with batch and token as one dimension of rows, patterns
    /// of the first batch row only, as a [`Run`] needs them.
    pub(crate) fn pass(
        &self,
        tokens: &Tensor,
        capture: Capture,
        freeze: Freeze<'_>,
        splice: &mut Splice<'_>,
        mut cache: Option<&mut Vec<Past>>,
    ) -> Result<Passed> {
        let parts = self.parts();
        let (batch, count) = tokens.dims2()?;
        let start = cache.as_ref().and_then(|cache| cache.first()).map_or(0, Past::len);
        let held = |layer: usize, pattern: bool| -> Result<Option<&LayerRun>> {
            let wanted = if pattern { freeze.patterns } else { freeze.scales };
            match freeze.run {
                Some(run) if wanted => run.layers.get(layer).map(Some).ok_or_else(|| wrong_run(run.layers.len(), self.layers())),
                _ => Ok(None),
            }
        };
        let mut x = parts.embedding.index_select(&tokens.flatten_all()?, 0)?.reshape((batch, count, self.width()))?;
        if let Some(positions) = &parts.positions {
            x = x.broadcast_add(&positions.narrow(0, start, count)?)?;
        }
        let rows = |x: &Tensor| -> Result<Tensor> { Ok(x.reshape((batch * count, self.width()))?) };
        let mut layers = Vec::with_capacity(self.layers());
        for (index, layer) in parts.layers.iter().enumerate() {
            let mut kept = LayerRun::default();
            let resid_pre = x;
            let scales = held(index, false)?;
            let normed = match scales {
                Some(run) => layer.attn_norm.forward_frozen(&resid_pre, needed(&run.attn_scale, "attn_scale")?)?,
                None => layer.attn_norm.forward(&resid_pre)?,
            };
            let pattern = held(index, true)?.map(|run| needed(&run.attn_pattern, "attn_pattern")).transpose()?;
            let past = cache.as_deref_mut().map(|cache| &mut cache[index]);
            let attended = attention::forward(self.config(), layer, self.rotary(), &normed, past, pattern, capture.patterns)?;
            let resid_mid = fast::add(&resid_pre, &attended.output)?;
            let mlp_in = match scales {
                Some(run) => layer.mlp_norm.forward_frozen(&resid_mid, needed(&run.mlp_scale, "mlp_scale")?)?,
                None => layer.mlp_norm.forward(&resid_mid)?,
            };
            let mlp_out = layer.mlp.forward(&mlp_in)?;
            let site = MlpSite { resid_mid: &rows(&resid_mid)?, mlp_in: &rows(&mlp_in)?, mlp_out: &rows(&mlp_out)? };
            let written = splice(index, &site)?;
            if capture.residuals {
                kept.attn_scale = Some(scales.map_or_else(|| layer.attn_norm.scale(&rows(&resid_pre)?), |run| Ok(needed(&run.attn_scale, "attn_scale")?.clone()))?);
                kept.mlp_scale = Some(scales.map_or_else(|| layer.mlp_norm.scale(site.resid_mid), |run| Ok(needed(&run.mlp_scale, "mlp_scale")?.clone()))?);
                kept.resid_pre = Some(rows(&resid_pre)?);
                kept.mlp_in = Some(site.mlp_in.clone());
            }
            if capture.mlp {
                kept.resid_mid = Some(site.resid_mid.clone());
                kept.mlp_out = Some(written.clone().unwrap_or_else(|| site.mlp_out.clone()));
            }
            kept.attn_pattern = attended.pattern.map(|pattern| pattern.get(0)).transpose()?;
            x = match written {
                Some(written) => fast::add(&resid_mid, &written.reshape((batch, count, self.width()))?)?,
                None => fast::add(&resid_mid, &mlp_out)?,
            };
            layers.push(kept);
        }
        let final_run = freeze.run.filter(|_| freeze.scales);
        let final_scale = match (final_run, capture.residuals) {
            (Some(run), _) => Some(needed(&run.final_scale, "final_scale")?.clone()),
            (None, true) => Some(parts.final_norm.scale(&rows(&x)?)?),
            (None, false) => None,
        };
        let shown = match capture.logits {
            Logits::None => None,
            Logits::Last => Some(x.narrow(1, count - 1, 1)?),
            Logits::All => Some(x),
        };
        let logits = shown.map(|x| -> Result<Tensor> {
            let normed = match final_scale.as_ref().filter(|_| final_run.is_some()) {
                Some(scale) => {
                    let from = count - x.dim(1)?;
                    parts.final_norm.forward_frozen(&x, &scale.narrow(0, from, count - from)?)?
                }
                None => parts.final_norm.forward(&x)?,
            };
            Linear { weight: parts.unembedding.clone(), bias: None }.forward(&normed)
        });
        let logits = logits.transpose()?;
        Ok(Passed { layers, final_scale, logits })
    }
}

pub(super) fn needed<'a>(site: &'a Option<Tensor>, name: &str) -> Result<&'a Tensor> {
    site.as_ref().ok_or_else(|| {
        Error::expected(ErrorKind::BadInput, format_args!("run: site {name}"), "nothing captured", "a tensor")
            .help("make the run with Capture::default()")
    })
}

pub(super) fn wrong_run(got: usize, expected: usize) -> Error {
    Error::expected(ErrorKind::Mismatch, "run: layers", got, expected).help("the run was made with another model")
}
