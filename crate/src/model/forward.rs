//! The forward pass: embedding, blocks, final norm, unembedding, with what is asked for kept.
//!
//! One pass serves runs, training activations, replacement, interventions and generation: a
//! caller may hold patterns and norm scales of an earlier run, replace each MLP's output, keep
//! sites, or go on from a cache of keys and values. Cost: 2 flops a parameter and token, plus
//! `2·T²·H·h` a layer for attention.

use super::attention::{self, Past, View};
use super::config::NormKind;
use super::fast;
use super::parts::{Linear, Norm, Place};
use super::rotary::Places;
use super::run::{Capture, LayerRun, Logits, OutputSite, Run};
use super::softmax::Hidden;
use super::Model;
use crate::error::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor};

/// What an MLP read and wrote at one layer; each `[rows, d]`.
#[non_exhaustive]
pub struct MlpSite<'a> {
    /// Residual stream before the MLP's norm.
    pub resid_mid: &'a Tensor,
    /// What the MLP reads, after its norm if it has one.
    pub mlp_in: &'a Tensor,
    /// What the MLP writes, at the model's [`OutputSite`].
    pub mlp_out: &'a Tensor,
    norm: Option<&'a Norm>,
    scale: Option<&'a Tensor>,
}

impl MlpSite<'_> {
    /// What the MLP's norm makes of the residual, as TransformerLens' `ln2.hook_normalized` has it:
    /// for LayerNorm after weight and bias, so what the MLP reads; for RMSNorm *before* its weight.
    /// Computed when it is asked for.
    ///
    /// # Errors
    /// `Tensor` when the device fails.
    pub(crate) fn normalized(&self) -> Result<Tensor> {
        normalized(self.norm, self.resid_mid, self.mlp_in, self.scale)
    }
}

/// As [`MlpSite::normalized`], with the norm's scale where it is known.
fn normalized(norm: Option<&Norm>, resid_mid: &Tensor, mlp_in: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    match (norm.filter(|norm| norm.kind == NormKind::Rms), scale) {
        (None, _) => Ok(mlp_in.clone()),
        (Some(_), Some(scale)) => Ok(resid_mid.broadcast_mul(scale)?),
        (Some(norm), None) => Ok(resid_mid.broadcast_mul(&norm.scale(resid_mid)?)?),
    }
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
    /// The same before the cap, where there is one.
    pub uncapped: Option<Tensor>,
}

/// Where the tokens of a padded batch lie; empty slices for a batch without padding.
#[derive(Clone, Copy, Default)]
pub(crate) struct Padded<'a> {
    /// Padding on the left of each row.
    pub left: &'a [usize],
    /// Where each row ends, padding on the left included.
    pub ends: &'a [usize],
}

impl Model {
    /// `tokens [B, T]` u32. Sites are kept with batch and token as one dimension of rows, patterns
    /// as `[B, H, T, T]`.
    pub(crate) fn pass(
        &self,
        tokens: &Tensor,
        capture: Capture,
        freeze: Freeze<'_>,
        splice: &mut Splice<'_>,
        cache: Option<&mut Vec<Past>>,
    ) -> Result<Passed> {
        self.pass_padded(tokens, Padded::default(), capture, freeze, splice, cache)
    }

    /// As [`Model::pass`], with padding that no token sees. What stands at padding means nothing.
    pub(crate) fn pass_padded(
        &self,
        tokens: &Tensor,
        padded: Padded<'_>,
        capture: Capture,
        freeze: Freeze<'_>,
        splice: &mut Splice<'_>,
        mut cache: Option<&mut Vec<Past>>,
    ) -> Result<Passed> {
        let (parts, config) = (self.parts(), self.config());
        let (batch, count) = tokens.dims2()?;
        let ids = positions(padded.left, count, self.device())?;
        let start = cache.as_ref().and_then(|cache| cache.first()).map_or(0, Past::len);
        let places = Places { start, ids: ids.as_ref() };
        let held = |layer: usize, wanted: bool| -> Result<Option<&LayerRun>> {
            match freeze.run {
                Some(run) if wanted => run.layers.get(layer).map(Some).ok_or_else(|| wrong_run(run.layers.len(), self.layers())),
                _ => Ok(None),
            }
        };
        let mut x = self.embedded(&tokens.flatten_all()?)?.reshape((batch, count, self.width()))?;
        if let Some(positions) = &parts.positions {
            x = x.broadcast_add(&places.rows(positions, count)?)?;
        }
        let rows = |x: &Tensor| -> Result<Tensor> { Ok(x.reshape((batch * count, self.width()))?) };
        let mut layers = Vec::with_capacity(self.layers());
        let hidden = Hidden::default();
        for (index, layer) in parts.layers.iter().enumerate() {
            let resid_pre = x;
            let scales = held(index, freeze.scales)?;
            let mut kept = LayerRun::default();
            let mut normed = |place: Place, x: &Tensor| -> Result<Tensor> {
                let Some(norm) = layer.norm(place) else { return Ok(x.clone()) };
                let scale = scales.map(|run| run.scale(place)).transpose()?;
                if capture.residuals {
                    kept.set_scale(place, scale.map_or_else(|| norm.scale(&rows(x)?), |scale| Ok(scale.clone()))?);
                }
                scale.map_or_else(|| norm.forward(x), |scale| norm.forward_frozen(x, scale))
            };
            let view = View {
                rotary: self.rotaries().of(config.window(index).is_some()),
                places,
                window: config.window(index),
                pads: padded.left,
                pattern: held(index, freeze.patterns)?.map(|run| needed(&run.attn_pattern, "attn_pattern")).transpose()?,
                keep_pattern: capture.patterns,
                hidden: &hidden,
            };
            let past = cache.as_deref_mut().map(|cache| &mut cache[index]);
            let attended = attention::forward(config, layer, view, &normed(Place::Attn, &resid_pre)?, past)?;
            let after_attn = fast::add(&resid_pre, &normed(Place::AttnPost, &attended.output)?)?;
            let resid_mid = if config.parallel { &resid_pre } else { &after_attn };
            let mlp_in = normed(Place::Mlp, resid_mid)?;
            let after_norm = self.output() == OutputSite::AfterNorm;
            let mut mlp_out = layer.mlp.forward(&mlp_in)?;
            if after_norm {
                mlp_out = normed(Place::MlpPost, &mlp_out)?;
            }
            let norm = layer.norm(Place::Mlp);
            let held_scale = scales.filter(|_| norm.is_some()).map(|run| run.scale(Place::Mlp)).transpose()?;
            let site = MlpSite { resid_mid: &rows(resid_mid)?, mlp_in: &rows(&mlp_in)?, mlp_out: &rows(&mlp_out)?, norm, scale: held_scale };
            let written = splice(index, &site)?;
            let mlp_out = match &written {
                Some(written) => written.reshape((batch, count, self.width()))?,
                None => mlp_out,
            };
            let branch = if after_norm { mlp_out } else { normed(Place::MlpPost, &mlp_out)? };
            if capture.residuals {
                kept.resid_pre = Some(rows(&resid_pre)?);
                kept.mlp_in = Some(site.mlp_in.clone());
                kept.mlp_normalized = Some(normalized(norm, site.resid_mid, site.mlp_in, kept.mlp_scale.as_ref())?);
            }
            if capture.mlp {
                kept.resid_mid = Some(site.resid_mid.clone());
                kept.mlp_out = Some(written.unwrap_or_else(|| site.mlp_out.clone()));
            }
            kept.attn_pattern = attended.pattern;
            x = fast::add(&after_attn, &branch)?;
            layers.push(kept);
        }
        let final_run = freeze.run.filter(|_| freeze.scales);
        let final_scale = match (final_run, capture.residuals) {
            (Some(run), _) => Some(needed(&run.final_scale, "final_scale")?.clone()),
            (None, true) => Some(parts.final_norm.scale(&rows(&x)?)?),
            (None, false) => None,
        };
        let shown = match capture.logits {
            Logits::None => return Ok(Passed { layers, final_scale, logits: None, uncapped: None }),
            Logits::Last => last(&x, padded.ends)?,
            Logits::All => x,
        };
        let normed = match final_scale.as_ref().filter(|_| final_run.is_some()) {
            Some(scale) => {
                let from = count - shown.dim(1)?;
                parts.final_norm.forward_frozen(&shown, &scale.narrow(0, from, count - from)?)?
            }
            None => parts.final_norm.forward(&shown)?,
        };
        let logits = Linear { weight: parts.unembedding.clone(), bias: parts.unembedding_bias.clone() }.forward(&normed)?;
        Ok(match config.logit_cap {
            None => Passed { layers, final_scale, logits: Some(logits), uncapped: None },
            Some(cap) => Passed { layers, final_scale, logits: Some(((&logits / cap)?.tanh()? * cap)?), uncapped: Some(logits) },
        })
    }
}

/// Position ids `[B, T]` of rows with padding on the left; the padding's are 0.
fn positions(left: &[usize], count: usize, device: &Device) -> Result<Option<Tensor>> {
    if left.iter().all(|pads| *pads == 0) {
        return Ok(None);
    }
    let ids: Vec<u32> = left.iter().flat_map(|pads| (0..count).map(move |place| place.saturating_sub(*pads) as u32)).collect();
    Ok(Some(Tensor::from_vec(ids, (left.len(), count), device)?))
}

/// The last token of each row, `[B, 1, d]`.
fn last(x: &Tensor, ends: &[usize]) -> Result<Tensor> {
    let count = x.dim(1)?;
    if ends.iter().all(|end| *end == count) {
        return Ok(x.narrow(1, count - 1, 1)?);
    }
    let rows: Vec<Tensor> = ends.iter().enumerate().map(|(row, end)| Ok(x.narrow(0, row, 1)?.narrow(1, end - 1, 1)?)).collect::<Result<_>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

impl LayerRun {
    /// The scale of a norm that the layer has.
    pub(super) fn scale(&self, place: Place) -> Result<&Tensor> {
        match place {
            Place::Attn => needed(&self.attn_scale, "attn_scale"),
            Place::AttnPost => needed(&self.attn_post_scale, "attn_post_scale"),
            Place::Mlp => needed(&self.mlp_scale, "mlp_scale"),
            Place::MlpPost => needed(&self.mlp_post_scale, "mlp_post_scale"),
        }
    }

    fn set_scale(&mut self, place: Place, scale: Tensor) {
        let slot = match place {
            Place::Attn => &mut self.attn_scale,
            Place::AttnPost => &mut self.attn_post_scale,
            Place::Mlp => &mut self.mlp_scale,
            Place::MlpPost => &mut self.mlp_post_scale,
        };
        *slot = Some(scale);
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
