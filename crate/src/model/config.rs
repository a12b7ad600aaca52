//! What a model is made of: one description for every architecture.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// More layers than any model has.
pub(crate) const MOST_LAYERS: usize = 1 << 16;

/// Kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`.
    Layer,
    /// `x / sqrt(mean(x²) + eps) * weight`.
    Rms,
}

/// Where a block's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NormPlaces {
    /// Before attention and before the MLP: `x + f(norm(x))`.
    Pre,
    /// After them, within the branch (OLMo 2): `x + norm(f(x))`.
    Post,
    /// Before and after (Gemma 2 and 3): `x + norm(f(norm(x)))`.
    Sandwich,
}

/// How positions enter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Positions {
    /// Not at all.
    None,
    /// A learned vector per position, added to the embedding.
    Learned,
    /// Rotary embedding of queries and keys.
    Rotary {
        /// Base of the frequencies.
        base: f64,
        /// Pairs are neighbours (2i, 2i+1) as in Llama's GGUF and llama2.c files, not halves
        /// (i, i + d/2) as in Hugging Face files.
        interleaved: bool,
        /// How many of a head's numbers are rotated, the first ones; the rest have no position. An
        /// odd number n rotates one more, with the frequencies of n, as transformers does.
        rotated: usize,
        /// Stretching of the low frequencies.
        scaling: Option<RotaryScaling>,
    },
}

/// A rule for contexts longer than the one trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// Every wavelength is stretched by this factor.
    Linear(f64),
    /// Llama 3: wavelengths above `original_context / low` are stretched by `factor`, those below
    /// `original_context / high` are kept, those between are blended.
    Llama3 {
        /// How much the longest wavelengths are stretched.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// The context trained on, in tokens.
        original_context: f64,
    },
    /// Phi-3's for long contexts (LongRoPE), as it is within the context trained on, to which the
    /// model is held here: beyond it transformers changes the divisors, and with them all that came
    /// before.
    LongRope {
        /// Each frequency's (`short_factor`).
        divisors: Vec<f64>,
        /// Queries and keys are multiplied by this as they are turned.
        magnitude: f64,
    },
    /// YaRN: pairs up to `first` are kept, from `last` on stretched by `factor`, blended between.
    Yarn {
        /// How much the longest wavelengths are stretched.
        factor: f64,
        /// The last pair that is kept: it turns `beta_fast` times in the context trained on.
        first: f64,
        /// The first pair that is stretched in full: it turns `beta_slow` times.
        last: f64,
        /// Queries and keys are multiplied by this as they are turned.
        magnitude: f64,
    },
}

fn above_0(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

impl RotaryScaling {
    /// The frequency that replaces the `pair`-th, in radians a token.
    pub(crate) fn apply(&self, pair: usize, frequency: f64) -> f64 {
        match *self {
            RotaryScaling::Linear(factor) => frequency / factor,
            RotaryScaling::Llama3 { factor, low, high, original_context } => {
                let turns = original_context * frequency / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
            RotaryScaling::Yarn { factor, first, last, .. } => {
                let kept = 1.0 - ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
            RotaryScaling::LongRope { ref divisors, .. } => frequency / divisors.get(pair).copied().unwrap_or(1.0),
        }
    }

    /// Whether its numbers are such that frequencies stay above 0.
    fn is_possible(&self) -> bool {
        match *self {
            RotaryScaling::Linear(factor) => above_0(factor),
            RotaryScaling::Llama3 { factor, low, high, original_context } => [factor, low, high, original_context].into_iter().all(above_0) && high > low,
            RotaryScaling::LongRope { ref divisors, magnitude } => above_0(magnitude) && divisors.iter().copied().all(above_0),
            RotaryScaling::Yarn { factor, first, last, magnitude } => above_0(factor) && above_0(magnitude) && first.is_finite() && last.is_finite() && first != last,
        }
    }

    /// What turned queries and keys are multiplied by.
    pub(crate) fn magnitude(&self) -> f64 {
        match self {
            RotaryScaling::LongRope { magnitude, .. } | RotaryScaling::Yarn { magnitude, .. } => *magnitude,
            _ => 1.0,
        }
    }
}

/// Layers whose queries see only the nearest keys (sliding windows).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalAttention {
    /// Keys that a query sees, itself included.
    pub window: usize,
    /// Which layers, `[L]`.
    pub layers: Vec<bool>,
    /// Rotary base of these layers where it is not the others' (Gemma 3); it is not scaled.
    pub base: Option<f64>,
}

/// How queries and keys are normed before they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum QkNorm {
    /// Each head by itself, one weight for all (Qwen 3, Gemma 3).
    PerHead,
    /// All heads together (OLMo 2).
    Whole,
}

/// Which linear maps have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// Attention's output.
    pub output: bool,
    /// The MLP's maps.
    pub mlp: bool,
    /// The unembedding.
    pub unembedding: bool,
}

impl Biases {
    /// All inside the blocks.
    pub(crate) const BLOCKS: Biases = Biases { qkv: true, output: true, mlp: true, unembedding: false };
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MlpActivation {
    /// GELU by the error function.
    Gelu,
    /// GELU by the tanh formula (`gelu_new`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
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
    /// Where a block's norms stand.
    pub norm_places: NormPlaces,
    /// The files hold the norms' weights less 1 (Gemma).
    pub norm_offset: bool,
    /// Attention and MLP both read the block's input (GPT-NeoX, Phi-2).
    pub parallel: bool,
    /// How positions enter.
    pub positions: Positions,
    /// What products of queries and keys are multiplied by; usually `1 / sqrt(head_dim)`.
    pub attention_scale: f64,
    /// Scores s become `cap · tanh(s / cap)`.
    pub attention_cap: Option<f64>,
    /// How queries and keys are normed.
    pub qk_norm: Option<QkNorm>,
    /// Layers with a window; `None` when every query sees all keys before it.
    pub local: Option<LocalAttention>,
    /// The MLP's nonlinearity.
    pub activation: MlpActivation,
    /// The MLP has a gate: `down(act(gate(x)) · up(x))`.
    pub gated: bool,
    /// Which maps have a bias.
    pub biases: Biases,
    /// What embeddings are multiplied by (Gemma: `sqrt(d)`).
    pub embedding_scale: f64,
    /// The unembedding is the embedding.
    pub tied: bool,
    /// What logits are multiplied by.
    pub logit_scale: f64,
    /// Logits z become `cap · tanh(z / cap)`.
    pub logit_cap: Option<f64>,
    /// The special token at position 0 (beginning of text), if the family has one.
    pub special_token: Option<u32>,
    /// Whether plain text is given that token when it is run.
    pub add_special: bool,
    /// Tokens that end a generation.
    pub stop_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Parameters in all, embedding, norms and biases included.
    pub fn parameters(&self) -> u64 {
        super::summary::parts(self).iter().map(|part| part.parameters).sum()
    }

    /// Keys that a query of `layer` sees at most, itself included; `None` for all.
    #[doc(hidden)]
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.local.as_ref().filter(|local| local.layers.get(layer) == Some(&true)).map(|local| local.window)
    }

    /// Refuses shapes that cannot be run.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |field: &str, got: &dyn std::fmt::Display, expected: &str| {
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
            let most = match field {
                "layers" => MOST_LAYERS,
                "context" => 1 << 40,
                _ => 1 << 30,
            };
            if value == 0 || value > most {
                return bad(field, &value, &format!("a number above 0, at most {most}"));
            }
        }
        if self.heads % self.kv_heads != 0 {
            return bad("kv_heads", &self.kv_heads, &format!("a divisor of heads = {}", self.heads));
        }
        if let Positions::Rotary { rotated, base, ref scaling, .. } = self.positions {
            match scaling {
                Some(RotaryScaling::LongRope { divisors, .. }) if divisors.len() != rotated.div_ceil(2) => {
                    return bad("rotary divisors", &divisors.len(), &format!("{}, one a frequency", rotated.div_ceil(2)));
                }
                _ => {}
            }
            if rotated == 0 || rotated > self.head_dim || rotated.next_multiple_of(2) > self.head_dim {
                return bad("rotary dimensions", &rotated, &format!("at least 1, at most head_dim = {}, which must be even", self.head_dim));
            }
            if !above_0(base) {
                return bad("rotary base", &base, "a number above 0");
            }
            if let Some(rule) = scaling.as_ref().filter(|rule| !rule.is_possible()) {
                return bad("rotary scaling", &crate::text::placeholder::shown(format_args!("{rule:?}")), "factors above 0, high_freq_factor above low_freq_factor");
            }
        }
        if let Some(local) = self.local.as_ref().filter(|local| local.window == 0 || local.layers.len() != self.layers) {
            let (window, layers) = (local.window, local.layers.len());
            return bad("local attention", &format!("window {window}, {layers} layers"), &format!("a window above 0 and {} layers", self.layers));
        }
        if let Some(base) = self.local.as_ref().and_then(|local| local.base).filter(|base| !above_0(*base)) {
            return bad("rotary base of layers with a window", &base, "a number above 0");
        }
        if !(0.0..1.0).contains(&self.norm_eps) {
            return bad("norm_eps", &self.norm_eps, "at least 0, below 1");
        }
        for (field, scale) in [("attention_scale", self.attention_scale), ("embedding_scale", self.embedding_scale), ("logit_scale", self.logit_scale)] {
            if !above_0(scale) {
                return bad(field, &scale, "a number above 0");
            }
        }
        for (field, cap) in [("attention_cap", self.attention_cap), ("logit_cap", self.logit_cap)] {
            if let Some(cap) = cap.filter(|cap| !above_0(*cap)) {
                return bad(field, &cap, "a number above 0");
            }
        }
        Ok(())
    }
}
