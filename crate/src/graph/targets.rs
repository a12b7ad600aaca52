//! Targets: which outputs a graph explains.
//!
//! In: the logits of the last position. Out: at most `max_logits` tokens that hold `logit_mass` of
//! the probability, or the tokens asked for; and for each the direction whose product with the
//! final normed residual is its logit less the mean logit, `u = W_U[token] − mean(W_U)`, `[K, d]`
//! (circuit-tracer's demeaned unembedding; the unembedding's bias is left out). Or differences of
//! logits, features, directions in the residual stream: any [`Target`].

use super::attribute::AttributeConfig;
use super::LogitTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Model;
use crate::replacement::{FeatureNode, LocalReplacement};
use crate::text::Token;
use candle_core::{DType, Tensor};

/// Probabilities of logits.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|logit| f64::from(logit - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The `n` most probable tokens, most probable first.
pub(crate) fn top_tokens(probabilities: &[f64], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
    let better = |a: &u32, b: &u32| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]).then(a.cmp(b));
    let n = n.min(order.len());
    if n < order.len() {
        order.select_nth_unstable_by(n, better);
    }
    order.truncate(n);
    order.sort_unstable_by(better);
    order
}

/// An output that a graph explains. Tokens are given by their id or by their text, see [`Token`].
///
/// ```
/// use cltlab::graph::{AttributeConfig, Target};
/// let why_austin = AttributeConfig { targets: Some(vec![Target::logit(" Austin")]), ..AttributeConfig::default() };
/// let rather_than = AttributeConfig { targets: Some(vec![Target::difference(" Austin", " Dallas")]), ..AttributeConfig::default() };
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Target {
    /// A token's logit, less the mean logit.
    Logit(Token),
    /// The logit of the first token less that of the second.
    Difference(Token, Token),
    /// The pre-activation of a feature, active or not, less its bias.
    Feature(FeatureNode),
    /// The product of a direction with the residual stream.
    Residual {
        /// Block that the stream enters, 0 to L; L is what the final norm reads.
        layer: usize,
        /// Position in the prompt.
        position: usize,
        /// The direction, `[d]`.
        direction: Vec<f32>,
    },
}

impl Target {
    /// A token's logit.
    pub fn logit(token: impl Into<Token>) -> Self {
        Target::Logit(token.into())
    }

    /// The logit of `more` less that of `less`.
    pub fn difference(more: impl Into<Token>, less: impl Into<Token>) -> Self {
        Target::Difference(more.into(), less.into())
    }

    /// The pre-activation of a feature at a position.
    pub fn feature(node: impl Into<FeatureNode>) -> Self {
        Target::Feature(node.into())
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Logit(token) => write!(f, "logit of {token}"),
            Target::Difference(more, less) => write!(f, "logit of {more} less that of {less}"),
            Target::Feature(place) => write!(f, "feature {place}"),
            Target::Residual { layer, position, .. } => write!(f, "direction before block {layer} at {position}"),
        }
    }
}

/// A target whose tokens are ids of the model's vocabulary.
enum Aim<'a> {
    Logit(u32),
    Difference(u32, u32),
    Other(&'a Target),
}

/// Where a target's direction starts on its way down.
pub(crate) enum Start {
    /// After the final norm at the last position.
    Output(Vec<f32>),
    /// Where the encoders of a layer read.
    Encoder(FeatureNode, Vec<f32>),
    /// In the residual stream that enters a block.
    Stream { layer: usize, position: usize, direction: Vec<f32> },
}

/// The outputs to explain, and where their directions start.
pub(crate) fn choose(local: &LocalReplacement, config: &AttributeConfig) -> Result<(Vec<LogitTarget>, Vec<Start>)> {
    let model = local.replacement().model();
    let probabilities = softmax(&local.last_logits()?);
    let aims: Vec<Aim<'_>> = match &config.targets {
        Some(targets) => targets.iter().map(|target| aim(target, local)).collect::<Result<_>>()?,
        None => likely(&probabilities, config).into_iter().map(Aim::Logit).collect(),
    };
    let plain = aims.iter().all(|aim| matches!(aim, Aim::Logit(_)));
    let mut shown: Vec<LogitTarget> = Vec::with_capacity(aims.len());
    for (i, aim) in aims.iter().enumerate() {
        // Others than tokens get ids beyond the vocabulary, as in circuit-tracer, and equal weights.
        let weight = 1.0 / aims.len() as f32;
        shown.push(match *aim {
            Aim::Logit(token) => {
                if shown.iter().any(|other| other.token == token) {
                    return Err(Error::expected(ErrorKind::BadConfig, "AttributeConfig::targets", format_args!("the logit of {token} twice"), "each once"));
                }
                let probability = if plain { probabilities[token as usize] as f32 } else { weight };
                LogitTarget { token, text: model.token_text(token), probability }
            }
            Aim::Difference(more, less) => {
                let text = format!("{} − {}", model.token_text(more), model.token_text(less));
                LogitTarget { token: (model.vocab() + i) as u32, text, probability: weight }
            }
            Aim::Other(target) => LogitTarget { token: (model.vocab() + i) as u32, text: target.to_string(), probability: weight },
        });
    }
    Ok((shown, starts(local, &aims)?))
}

/// At most `max_logits` tokens that hold `logit_mass` of the probability.
fn likely(probabilities: &[f64], config: &AttributeConfig) -> Vec<u32> {
    let mut tokens = top_tokens(probabilities, config.max_logits);
    let mut mass = 0.0;
    let enough = tokens.iter().position(|token| {
        mass += probabilities[*token as usize];
        mass >= config.logit_mass
    });
    tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
    tokens
}

/// A target's tokens as ids; refuses what the model and the CLT do not have.
fn aim<'a>(target: &'a Target, local: &LocalReplacement) -> Result<Aim<'a>> {
    let (model, clt, length) = (local.replacement().model(), local.replacement().clt(), local.run().tokens.len());
    let below = |what: &str, got: usize, limit: usize| match got < limit {
        true => Ok(()),
        false => Err(Error::expected(ErrorKind::BadInput, format_args!("AttributeConfig::targets: {what}"), got, format_args!("less than {limit}"))),
    };
    let id = |token: &Token| model.token_id(token).map_err(|error| error.context("AttributeConfig::targets"));
    match target {
        Target::Logit(token) => return Ok(Aim::Logit(id(token)?)),
        Target::Difference(more, less) => {
            let (more, less) = (id(more)?, id(less)?);
            if more == less {
                return Err(Error::expected(ErrorKind::BadInput, "AttributeConfig::targets: difference", format_args!("token {more} less itself"), "two different tokens"));
            }
            return Ok(Aim::Difference(more, less));
        }
        Target::Feature(place) => {
            below("layer", place.layer, clt.layers())?;
            below("feature", place.feature, clt.features())?;
            below("position", place.position, length)?;
        }
        Target::Residual { layer, position, direction } => {
            below("layer", *layer, model.layers() + 1)?;
            below("position", *position, length)?;
            if direction.len() != model.width() || direction.iter().any(|value| !value.is_finite()) {
                let got = format!("{} values", direction.len());
                return Err(Error::expected(ErrorKind::BadInput, "AttributeConfig::targets: direction", got, format_args!("{} finite ones", model.width())));
            }
        }
    }
    Ok(Aim::Other(target))
}

fn starts(local: &LocalReplacement, aims: &[Aim<'_>]) -> Result<Vec<Start>> {
    let (model, clt) = (local.replacement().model(), local.replacement().clt());
    let mut tokens: Vec<u32> = Vec::new();
    for aim in aims {
        match aim {
            Aim::Logit(token) => tokens.push(*token),
            Aim::Difference(more, less) => tokens.extend([more, less]),
            Aim::Other(_) => {}
        }
    }
    let mut rows = if tokens.is_empty() { Vec::new() } else { directions(model, &tokens)?.to_vec2::<f32>()? }.into_iter();
    let mut next = || rows.next().unwrap_or_default();
    let starts = aims.iter().map(|aim| {
        Ok(match aim {
            Aim::Logit(_) | Aim::Other(Target::Logit(_)) => Start::Output(next()),
            Aim::Difference(..) | Aim::Other(Target::Difference(..)) => Start::Output(next().iter().zip(next()).map(|(more, less)| more - less).collect()),
            Aim::Other(Target::Feature(place)) => Start::Encoder(*place, clt.encoder_rows(place.layer, &[place.feature as u32])?.flatten_all()?.to_vec1()?),
            Aim::Other(Target::Residual { layer, position, direction }) => Start::Stream { layer: *layer, position: *position, direction: direction.clone() },
        })
    });
    starts.collect()
}

/// Demeaned unembedding rows of `tokens`, `[K, d]`.
pub(crate) fn directions(model: &Model, tokens: &[u32]) -> Result<Tensor> {
    let unembedding = model.unembedding();
    let index = Tensor::from_slice(tokens, tokens.len(), model.device())?;
    let rows = unembedding.index_select(&index, 0)?.to_dtype(DType::F32)?;
    let mean = match unembedding.dtype() {
        DType::F32 => unembedding.mean_keepdim(0)?,
        _ => widened_mean(unembedding)?,
    };
    Ok(rows.broadcast_sub(&mean)?)
}

/// The mean over the rows of a half-precision matrix, `[1, d]` in f32; widened part by part, so that
/// it is never whole in f32.
fn widened_mean(matrix: &Tensor) -> Result<Tensor> {
    const ROWS: usize = 4096;
    let (rows, width) = matrix.dims2()?;
    let mut sum = Tensor::zeros((1, width), DType::F32, matrix.device())?;
    for first in (0..rows).step_by(ROWS) {
        let part = matrix.narrow(0, first, ROWS.min(rows - first))?.to_dtype(DType::F32)?;
        sum = (sum + part.sum_keepdim(0)?)?;
    }
    Ok((sum / rows as f64)?)
}
