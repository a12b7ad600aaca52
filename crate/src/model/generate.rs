//! Generation: token after token through a cache of keys and values.

use super::attention::Past;
use super::{Capture, Freeze, Model};
use crate::error::{Error, ErrorKind, Result};
use crate::progress;
use candle_core::Tensor;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// How to choose the next token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Most tokens to add.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; above 0 samples with logits divided by it.
    pub temperature: f64,
    /// Sample among the k likeliest tokens only; 0 among all.
    pub top_k: usize,
    /// Sample among the likeliest tokens that together reach this probability, 0 to 1.
    pub top_p: f64,
    /// Seed of the sampling.
    pub seed: u64,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        GenerateConfig { max_tokens: 32, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl GenerateConfig {
    /// Refuses values out of range.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::expected(ErrorKind::BadConfig, "GenerateConfig::temperature", self.temperature, "0 or more"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::expected(ErrorKind::BadConfig, "GenerateConfig::top_p", self.top_p, "above 0 and at most 1"));
        }
        Ok(())
    }
}

impl Model {
    /// The prompt's greedy continuation by at most `n` tokens, without the prompt.
    ///
    /// ```no_run
    /// # use cltlab::{auto_device, Model};
    /// let model = Model::load("gpt2", &auto_device()?)?;
    /// println!("{}", model.generate("The capital of France is", 8)?);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::tokens`].
    pub fn generate(&self, prompt: &str, n: usize) -> Result<String> {
        self.generate_with(prompt, &GenerateConfig { max_tokens: n, ..GenerateConfig::default() })
    }

    /// The prompt's continuation, without the prompt.
    ///
    /// # Errors
    /// As [`Model::tokens`]; `BadConfig`.
    pub fn generate_with(&self, prompt: &str, config: &GenerateConfig) -> Result<String> {
        let ids = self.generate_tokens(&self.tokens(prompt)?, config)?;
        self.tokenizer()?.decode(&ids)
    }

    /// Ids that continue `tokens`; ends after a stop token (included), at the context's end, or
    /// when a stop is requested.
    ///
    /// # Errors
    /// `BadInput` for ids that cannot be run; `BadConfig`.
    pub fn generate_tokens(&self, tokens: &[u32], config: &GenerateConfig) -> Result<Vec<u32>> {
        config.validate()?;
        self.check_tokens(tokens)?;
        let mut random = StdRng::seed_from_u64(config.seed);
        let mut cache = vec![Past::default(); self.layers()];
        let (mut input, mut made) = (tokens.to_vec(), Vec::new());
        while made.len() < config.max_tokens && tokens.len() + made.len() < self.context() && !progress::stop_requested() {
            let ids = Tensor::from_slice(&input, (1, input.len()), self.device())?;
            let passed = self.pass(&ids, Capture::last_logits(), Freeze::none(), &mut |_, _| Ok(None), Some(&mut cache))?;
            let Some(logits) = passed.logits else { break };
            let next = choose(&logits.flatten_all()?.to_vec1()?, config, &mut random)?;
            made.push(next);
            if self.config().stop_tokens.contains(&next) {
                break;
            }
            input = vec![next];
        }
        Ok(made)
    }
}

fn choose(logits: &[f32], config: &GenerateConfig, random: &mut StdRng) -> Result<u32> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return Err(Error::new(ErrorKind::NotFinite, "generate: got NaN logits, expected numbers").help("the weights are damaged"));
    }
    let likeliest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32);
    if config.temperature == 0.0 {
        return Ok(likeliest);
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    if config.top_k > 0 {
        order.truncate(config.top_k);
    }
    let top = f64::from(logits[likeliest as usize]);
    let weights: Vec<f64> = order.iter().map(|id| ((f64::from(logits[*id as usize]) - top) / config.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut reached = 0.0;
    let kept = weights.iter().position(|weight| {
        reached += weight / total;
        reached >= config.top_p
    });
    let kept = kept.map_or(weights.len(), |last| last + 1);
    let mut rest = random.random::<f64>() * weights[..kept].iter().sum::<f64>();
    for (id, weight) in order.iter().zip(&weights[..kept]) {
        rest -= weight;
        if rest <= 0.0 {
            return Ok(*id);
        }
    }
    Ok(order[kept - 1])
}
