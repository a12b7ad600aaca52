//! Targets: which outputs a graph explains.
//!
//! In: the logits of the last position. Out: at most `max_logits` tokens that hold `logit_mass` of
//! the probability, or the tokens asked for; and for each the direction whose product with the
//! final normed residual is its logit less the mean logit, `u = W_U[token] − mean(W_U)`, `[K, d]`
//! (circuit-tracer's demeaned unembedding; the unembedding's bias is left out).

use super::attribute::AttributeConfig;
use super::LogitTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Model;
use candle_core::Tensor;

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

/// The outputs to explain.
pub(crate) fn choose(model: &Model, logits: &[f32], config: &AttributeConfig) -> Result<Vec<LogitTarget>> {
    let probabilities = softmax(logits);
    let tokens = match &config.target_tokens {
        Some(tokens) => {
            if let Some(token) = tokens.iter().find(|token| **token as usize >= model.vocab()) {
                return Err(Error::expected(ErrorKind::BadInput, "AttributeConfig::target_tokens", token, format_args!("below the vocabulary of {}", model.vocab())));
            }
            tokens.clone()
        }
        None => {
            let mut tokens = top_tokens(&probabilities, config.max_logits);
            let mut mass = 0.0;
            let enough = tokens.iter().position(|token| {
                mass += probabilities[*token as usize];
                mass >= config.logit_mass
            });
            tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
            tokens
        }
    };
    Ok(tokens.into_iter().map(|token| LogitTarget { token, text: model.token_text(token), probability: probabilities[token as usize] as f32 }).collect())
}

/// Demeaned unembedding rows of `tokens`, `[K, d]`.
pub(crate) fn directions(model: &Model, tokens: &[u32]) -> Result<Tensor> {
    let unembedding = model.unembedding();
    let index = Tensor::from_slice(tokens, tokens.len(), model.device())?;
    Ok(unembedding.index_select(&index, 0)?.broadcast_sub(&unembedding.mean_keepdim(0)?)?)
}
