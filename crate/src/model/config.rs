//! What a model is made of: one description for every architecture.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`.
    Layer,
    /// `x / sqrt(mean(x²) + eps) * weight`.
    Rms,
}

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Positions {
    /// A learned vector per position, added to the embedding.
    Learned,
    /// Rotary embedding of queries and keys.
    Rotary {
        /// Base of the frequencies.
        base: f64,
        /// Pairs are neighbours (2i, 2i+1) as in GGUF and llama2.c files, not halves (i, i + d/2)
        /// as in Hugging Face files.
        interleaved: bool,
        /// Llama 3's stretching of the low frequencies.
        scaling: Option<RotaryScaling>,
    },
}

/// Llama 3's rule for contexts longer than the one trained on: wavelengths above
/// `original_context / low` are stretched by `factor`, those below `original_context / high` are
/// kept, those between are blended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RotaryScaling {
    /// How much the longest wavelengths are stretched.
    pub factor: f64,
    /// `low_freq_factor`.
    pub low: f64,
    /// `high_freq_factor`.
    pub high: f64,
    /// The context trained on, in tokens.
    pub original_context: f64,
}

impl RotaryScaling {
    /// The frequency that replaces `frequency`, in radians a token.
    pub fn apply(&self, frequency: f64) -> f64 {
        let turns = self.original_context * frequency / std::f64::consts::TAU;
        let kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        frequency * (kept + (1.0 - kept) / self.factor)
    }
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MlpActivation {
    /// GELU by the error function.
    Gelu,
    /// GELU by the tanh formula (`gelu_new`).
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
}

/// The shape and the parts of a decoder-only transformer. Families are data: each one fills this
/// from its own configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The family's name as its files give it: `gpt2`, `llama`.
    pub architecture: String,
    /// Number of layers L.
    pub layers: usize,
    /// Width of the residual stream d.
    pub width: usize,
    /// Width of the MLP.
    pub mlp_width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; equal to `heads` without grouping.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Vocabulary V.
    pub vocab: usize,
    /// Longest context in tokens.
    pub context: usize,
    /// Kind of norm.
    pub norm: NormKind,
    /// The norms' epsilon.
    pub norm_eps: f64,
    /// How positions enter.
    pub positions: Positions,
    /// The MLP's nonlinearity.
    pub activation: MlpActivation,
    /// The MLP has a gate: `down(act(gate(x)) · up(x))`.
    pub gated: bool,
    /// The unembedding is the embedding.
    pub tied: bool,
    /// The special token at position 0 (beginning of text), if the family has one.
    pub special_token: Option<u32>,
    /// Whether plain text is given that token when it is run.
    pub add_special: bool,
    /// Tokens that end a generation.
    pub stop_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Parameters, embedding included, in numbers.
    pub fn parameters(&self) -> u64 {
        let (d, kv) = (self.width as u64, (self.kv_heads * self.head_dim) as u64);
        let attention = 2 * d * (self.heads * self.head_dim) as u64 + 2 * d * kv;
        let mlp = if self.gated { 3 } else { 2 } * d * self.mlp_width as u64;
        let embedding = self.vocab as u64 * d * if self.tied { 1 } else { 2 };
        let positions = if self.positions == Positions::Learned { self.context as u64 * d } else { 0 };
        embedding + positions + self.layers as u64 * (attention + mlp)
    }

    /// Refuses shapes that cannot be run.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, got: usize, expected: &str| {
            Err(Error::expected(ErrorKind::BadConfig, format_args!("model configuration: {field}"), got, expected))
        };
        for (field, value) in [
            ("layers", self.layers),
            ("width", self.width),
            ("mlp_width", self.mlp_width),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("vocab", self.vocab),
            ("context", self.context),
        ] {
            if value == 0 {
                return bad(field, value, "a number above 0");
            }
        }
        if self.heads % self.kv_heads != 0 {
            return bad("kv_heads", self.kv_heads, &format!("a divisor of heads = {}", self.heads));
        }
        if self.positions != Positions::Learned && self.head_dim % 2 != 0 {
            return bad("head_dim", self.head_dim, "an even number, for rotary positions");
        }
        Ok(())
    }
}
