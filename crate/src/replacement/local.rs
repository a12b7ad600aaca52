//! The local replacement model: one prompt's run, its active features, and the error terms that
//! make the reconstruction exact.
//!
//! `e[l, p] = y[l, p] − ŷ[l, p]` with y the MLP's output and ŷ the reconstruction, each `[T, d]`. A skip
//! connection is part of ŷ and stays linear in what the encoder reads, at zero positions too.
//! Positions in `zero_positions` (the special first token) have neither features nor errors: what
//! they contribute is a constant (*Circuit Tracing*, local replacement model; circuit-tracer's
//! `setup_attribution`).

use super::{FeatureNode, FrozenModel, Replacement};
use crate::clt::SparseCode;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Capture, Logits, MlpSite, Run};
use crate::text::Prompt;
use candle_core::Tensor;
use std::sync::Arc;

/// A prompt as the local replacement model sees it. Cheap to clone.
#[derive(Clone)]
pub struct LocalReplacement {
    replacement: Replacement,
    run: Arc<Run>,
    code: Arc<SparseCode>,
    errors: Vec<Tensor>,
    embeddings: Tensor,
}

/// Which positions of a prompt the CLT does not explain.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalConfig {
    /// Positions without features and errors: the special first token. Default `[0]`.
    pub zero_positions: Vec<usize>,
}

impl Default for LocalConfig {
    fn default() -> Self {
        LocalConfig { zero_positions: vec![0] }
    }
}

impl Replacement {
    /// The local replacement model of a prompt.
    ///
    /// # Errors
    /// As [`Replacement::tokens`]; `BadInput` for fewer than two tokens, or a zero position beyond them; `NotFinite`
    /// when the model's weights or logits hold NaN or infinity.
    pub fn local(&self, prompt: impl Into<Prompt>, config: &LocalConfig) -> Result<LocalReplacement> {
        self.local_at(&self.tokens(prompt)?, &config.zero_positions)
    }

    pub(crate) fn local_at(&self, tokens: &[u32], zero_positions: &[usize]) -> Result<LocalReplacement> {
        if tokens.len() < 2 {
            return Err(Error::expected(ErrorKind::BadInput, "prompt", "one token", "at least two")
                .help("the first position is the special token, which has no features: give a longer prompt"));
        }
        if let Some(beyond) = zero_positions.iter().find(|position| **position >= tokens.len()) {
            return Err(Error::expected(ErrorKind::BadInput, "zero_positions", beyond, format_args!("less than {}", tokens.len())));
        }
        let run = self.model().run(tokens, &Capture { logits: Logits::Last, ..Capture::default() })?;
        last_logits(&run)?;
        let mut code = self.clt().encode(&run)?;
        zero_positions.iter().for_each(|position| code.zero_position(*position));
        let keep: Vec<f32> = (0..tokens.len()).map(|p| if zero_positions.contains(&p) { 0.0 } else { 1.0 }).collect();
        let keep = Tensor::from_vec(keep, (tokens.len(), 1), self.model().device())?;
        let inputs = run.layers.iter().map(|layer| Ok(self.clt().input(layer)?.clone())).collect::<Result<Vec<_>>>()?;
        let errors = self.clt().decode(&code, &inputs)?.into_iter().zip(&run.layers).map(|(reconstruction, layer)| {
            let written = layer.mlp_out.as_ref().ok_or_else(|| Error::new(ErrorKind::BadInput, "run: mlp_out was not captured"))?;
            Ok((written - reconstruction)?.broadcast_mul(&keep)?)
        });
        let errors = errors.collect::<Result<_>>()?;
        let embeddings = self.model().embedding(tokens)?;
        Ok(LocalReplacement { replacement: self.clone(), run: Arc::new(run), code: Arc::new(code), errors, embeddings })
    }
}

impl Replacement {
    /// As [`LocalReplacement::held_output`], held at `run`.
    pub(crate) fn held_output(&self, run: &Run, layer: usize, site: &MlpSite<'_>) -> Result<Tensor> {
        let (clt, held) = (self.clt(), &run.layers[layer]);
        let kept = held.mlp_out.as_ref().unwrap_or(site.mlp_out);
        if clt.skip(layer)?.is_none() {
            return Ok(kept.clone());
        }
        let moved = (self.read(site)? - clt.input(held)?)?;
        Ok(clt.skip_output(layer, &moved)?.map_or_else(|| Ok(kept.clone()), |skip| kept + skip)?)
    }
}

impl LocalReplacement {
    /// Model and CLT.
    pub fn replacement(&self) -> &Replacement {
        &self.replacement
    }

    /// The model's own run, last logits only.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Activations, without the zero positions.
    pub fn code(&self) -> &SparseCode {
        &self.code
    }

    /// Error vectors of a layer, `[T, d]`, zero at the zero positions.
    ///
    /// # Errors
    /// `BadInput` for a missing layer.
    pub fn errors(&self, layer: usize) -> Result<&Tensor> {
        self.errors.get(layer).ok_or_else(|| Error::expected(ErrorKind::BadInput, "LocalReplacement::errors: layer", layer, format_args!("less than {}", self.errors.len())))
    }

    /// Token embeddings as they enter the stream, without positions, `[T, d]`.
    pub fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }

    /// What the model adds to them for the position, `[T, d]`; `None` where it adds nothing.
    ///
    /// # Errors
    /// None for a prompt that was run.
    pub(crate) fn position_embeddings(&self) -> Result<Option<Tensor>> {
        self.replacement.model().position_embeddings(self.code.tokens())
    }

    /// The active features by (layer, position, feature).
    #[doc(hidden)]
    pub fn active(&self) -> Vec<FeatureNode> {
        let mut active = Vec::with_capacity(self.code.active());
        for (layer, code) in self.code.layers.iter().enumerate() {
            for position in 0..code.tokens {
                active.extend(code.token(position).0.iter().map(|feature| FeatureNode { layer, position, feature: *feature as usize }));
            }
        }
        active
    }

    /// Activations of [`LocalReplacement::active`], in the same order.
    #[doc(hidden)]
    pub fn activations(&self) -> Vec<f32> {
        self.code.layers.iter().flat_map(|code| code.values.iter().copied()).collect()
    }

    /// The frozen linear model of this prompt.
    #[doc(hidden)]
    pub fn frozen(&self) -> FrozenModel {
        FrozenModel::new(self.replacement.model(), &self.run).skips(self.replacement.clt())
    }

    /// The MLP output of `layer` with features and error held, in a pass that shows `site` there: the
    /// run's own, moved by what the skip connection makes of the change of its input.
    pub(crate) fn held_output(&self, layer: usize, site: &MlpSite<'_>) -> Result<Tensor> {
        self.replacement.held_output(&self.run, layer, site)
    }

    /// Logits of the last position, `[V]`.
    ///
    /// # Errors
    /// `NotFinite` when one is NaN or infinite.
    pub(crate) fn last_logits(&self) -> Result<Vec<f32>> {
        last_logits(&self.run)
    }
}

/// Logits of the last position of a run.
pub(crate) fn last_logits(run: &Run) -> Result<Vec<f32>> {
    last(run.logits.as_ref())
}

/// The same before the cap, in models that cap their logits: what is linear in the last residual.
pub(crate) fn last_uncapped(run: &Run) -> Result<Vec<f32>> {
    last(run.uncapped.as_ref().or(run.logits.as_ref()))
}

fn last(logits: Option<&Tensor>) -> Result<Vec<f32>> {
    let logits = logits.ok_or_else(|| Error::new(ErrorKind::BadInput, "run: logits were not captured"))?;
    let logits = logits.get(logits.dim(0)? - 1)?.to_vec1::<f32>()?;
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(token) => Err(Error::new(ErrorKind::NotFinite, format!("logit of token {token} at the last position: {}", logits[token]))
            .help("the weights hold NaN, infinity or overflow")),
        None => Ok(logits),
    }
}

impl std::fmt::Debug for LocalReplacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalReplacement of {} tokens: {} active features, l0 {:.1}", self.run.tokens.len(), self.code.active(), self.code.l0())
    }
}
