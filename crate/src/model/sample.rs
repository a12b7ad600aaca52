//! Sampling: logits to the distribution that the next token is drawn from.

use crate::error::{Error, ErrorKind, Result};
use rand::rngs::StdRng;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How a text goes on, and where it ends.
///
/// ```
/// use cltlab::model::GenerateConfig;
/// let config = GenerateConfig { temperature: 0.7, top_p: 0.9, stop: vec!["\n".to_string()], ..GenerateConfig::default() };
/// assert!(config.seed == GenerateConfig::default().seed);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Most tokens to add. Default 32.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; above 0 samples with logits divided by it. Default 0.
    pub temperature: f64,
    /// Sample among the k likeliest tokens only; 0 among all. Default 0.
    pub top_k: usize,
    /// Sample among the fewest, likeliest tokens that together reach this probability (after
    /// `top_k`), above 0, at most 1. Default 1.
    pub top_p: f64,
    /// Seed of the sampling: the same seed gives the same text. Default 0.
    pub seed: u64,
    /// Texts that end the generation; the text ends before the first of them. Default none.
    pub stop: Vec<String>,
    /// Tokens that end the generation, besides the model's own. Default none.
    pub stop_tokens: Vec<u32>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        GenerateConfig { max_tokens: 32, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0, stop: Vec::new(), stop_tokens: Vec::new() }
    }
}

impl GenerateConfig {
    /// Refuses values out of range.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    #[doc(hidden)]
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::expected(ErrorKind::BadConfig, "GenerateConfig::temperature", self.temperature, "0 or more"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::expected(ErrorKind::BadConfig, "GenerateConfig::top_p", self.top_p, "above 0 and at most 1"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::expected(ErrorKind::BadConfig, "GenerateConfig::stop", "an empty text", "texts of at least one character"));
        }
        Ok(())
    }

    /// The tokens that may come next with their probabilities, likeliest first (the lower id of
    /// equals): the softmax of `logits / temperature` over the `top_k` likeliest, cut after the
    /// fewest that reach `top_p`, and scaled to a sum of 1. At temperature 0 one token.
    ///
    /// Agrees with the order of Hugging Face's warpers: temperature, top-k, top-p. Cost: one pass
    /// over the vocabulary, and a sort of what `top_k` leaves.
    ///
    /// # Shapes
    /// `logits` `[V]`.
    ///
    /// # Errors
    /// `BadConfig`; `NotFinite` for NaN logits, or when none is finite.
    #[doc(hidden)]
    pub fn distribution(&self, logits: &[f32]) -> Result<Vec<(u32, f64)>> {
        self.validate()?;
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !top.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::new(ErrorKind::NotFinite, "generate: got logits with NaN or infinity, expected numbers").help("the weights are damaged"));
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let kept = match self.top_k {
            _ if self.temperature == 0.0 => 1,
            0 => order.len(),
            k => k.min(order.len()),
        };
        if kept < order.len() {
            order.select_nth_unstable_by(kept, rank);
            order.truncate(kept);
        }
        order.sort_unstable_by(rank);
        if self.temperature == 0.0 {
            return Ok(order.into_iter().map(|id| (id, 1.0)).collect());
        }
        let weights: Vec<f64> = order.iter().map(|id| (f64::from(logits[*id as usize] - top) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let enough = weights.iter().position(|weight| {
            reached += weight / total;
            reached >= self.top_p
        });
        let kept = enough.map_or(weights.len(), |last| last + 1);
        let total: f64 = weights[..kept].iter().sum();
        Ok(order.into_iter().zip(weights).take(kept).map(|(id, weight)| (id, weight / total)).collect())
    }

    /// Draws the next token.
    pub(super) fn choose(&self, logits: &[f32], random: &mut StdRng) -> Result<u32> {
        let candidates = self.distribution(logits)?;
        let mut rest = if candidates.len() > 1 { random.random::<f64>() } else { 0.0 };
        let drawn = candidates.iter().find(|(_, probability)| {
            rest -= probability;
            rest <= 0.0
        });
        // Rounding may leave a little when the last is reached.
        let drawn = drawn.or(candidates.last()).map(|(id, _)| *id);
        drawn.ok_or_else(|| Error::new(ErrorKind::NotFinite, "generate: got no logits, expected one for each token"))
    }
}
