//! Activation functions of a CLT, and which entries of a pre-activation row they keep.
//!
//! In: pre-activations `[tokens, features]`. Out: a sparse [`LayerCode`]. Sources: ReLU and
//! JumpReLU as in *Circuit Tracing* (Anthropic 2025) and circuit-tracer (strict `>`); TopK with a
//! ReLU in front of it, so that a kept value is never negative (circuit-tracer's PLT keeps
//! negative ones). Cost: one pass over the row, about 0.3 ns an entry.

use crate::clt::kernels;
use crate::clt::sparse::LayerCode;
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;

/// How a pre-activation `h` becomes an activation `a`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `a = max(h, 0)`.
    Relu,
    /// `a = h` where `h > θ`, else 0; one learned θ a feature, kept as its logarithm while training. A saved logarithm of
    /// -infinity, of a checkpoint or another format, is a θ of 0, and stays that in further training.
    JumpRelu {
        /// θ before the first step, above 0, in units of the normalised pre-activation.
        threshold: f64,
        /// Width of the window around θ in which the straight-through estimator sees a gradient.
        bandwidth: f64,
    },
    /// The `k` largest positive `h` of each token and layer.
    #[serde(rename = "top_k")]
    TopK {
        /// Active features per token and layer, at most.
        k: usize,
    },
    /// The `k · tokens` largest positive `h` of a batch, per layer. A training activation:
    /// [`Trainer::clt`](crate::train::Trainer::clt) turns it into a JumpReLU with one threshold a layer.
    #[serde(rename = "batch_top_k")]
    BatchTopK {
        /// Active features per token and layer, on average.
        k: usize,
    },
    /// The `k · L` largest positive `h` of each token over all layers together, so that a token spends
    /// its features where they are needed. crosslayer-coding's `topk` with `topk_mode` global, whose k
    /// counts all layers and which ranks by z-score; ours ranks by `h` itself and counts as OpenMOSS'
    /// `layertopk`. A layer alone cannot be encoded: [`Clt::calibrate`](crate::Clt::calibrate) makes a
    /// JumpReLU of it for the replacement model.
    #[serde(rename = "global_top_k")]
    GlobalTopK {
        /// Active features per token and layer, on average over the layers.
        k: usize,
    },
    /// The `k · L · tokens` largest positive `h` of a batch over all layers together: crosslayer-transcoder's
    /// `BatchTopK`, and crosslayer-coding's but for its z-scores. A training activation:
    /// [`Trainer::clt`](crate::train::Trainer::clt) turns it into a JumpReLU with one threshold for all.
    #[serde(rename = "global_batch_top_k")]
    GlobalBatchTopK {
        /// Active features per token and layer, on average over both.
        k: usize,
    },
}

impl Activation {
    /// Checks the parameters against `features` per layer.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub(crate) fn validate(&self, features: usize) -> Result<()> {
        let bad = |field: &str, got: String, expected: String| Err(Error::expected(ErrorKind::BadConfig, field, got, expected));
        match *self {
            Activation::Relu => Ok(()),
            Activation::JumpRelu { threshold, .. } if !(threshold > 0.0 && threshold.is_finite()) => {
                bad("Activation::JumpRelu::threshold", threshold.to_string(), "a number above 0".into())
            }
            Activation::JumpRelu { bandwidth, .. } if !(bandwidth > 0.0 && bandwidth.is_finite()) => {
                bad("Activation::JumpRelu::bandwidth", bandwidth.to_string(), "a number above 0".into())
            }
            Activation::JumpRelu { .. } => Ok(()),
            Activation::TopK { k } | Activation::BatchTopK { k } | Activation::GlobalTopK { k } | Activation::GlobalBatchTopK { k } => {
                if k == 0 || k > features {
                    return bad("Activation::k", k.to_string(), format!("1 to {features}, the features per layer"));
                }
                Ok(())
            }
        }
    }

    /// Whether the number of active features is fixed by a k instead of a threshold.
    pub(crate) fn is_ranked(&self) -> bool {
        self.k().is_some()
    }

    /// Active features of a token and layer, on average or at most; `None` where thresholds decide.
    pub(crate) fn k(&self) -> Option<usize> {
        match *self {
            Activation::TopK { k } | Activation::BatchTopK { k } | Activation::GlobalTopK { k } | Activation::GlobalBatchTopK { k } => Some(k),
            Activation::Relu | Activation::JumpRelu { .. } => None,
        }
    }

    /// Whether a whole batch is ranked, so that it is for training only.
    pub(crate) fn ranks_batch(&self) -> bool {
        matches!(self, Activation::BatchTopK { .. } | Activation::GlobalBatchTopK { .. })
    }

    /// Whether all layers are ranked together.
    pub(crate) fn ranks_layers(&self) -> bool {
        matches!(self, Activation::GlobalTopK { .. } | Activation::GlobalBatchTopK { .. })
    }

    /// The name used in reports: `relu`, `jump_relu`, `top_k 32`, `batch_top_k 32`, `global_top_k 32`, ...
    #[doc(hidden)]
    pub fn label(&self) -> String {
        match self {
            Activation::Relu => "relu".into(),
            Activation::JumpRelu { .. } => "jump_relu".into(),
            Activation::TopK { k } => format!("top_k {k}"),
            Activation::BatchTopK { k } => format!("batch_top_k {k}"),
            Activation::GlobalTopK { k } => format!("global_top_k {k}"),
            Activation::GlobalBatchTopK { k } => format!("global_batch_top_k {k}"),
        }
    }
}

/// The `n`-th largest of some values, and how many of its equals are among the largest `n`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CutOff {
    pub value: f32,
    ties: usize,
}

impl CutOff {
    /// Of at least `n` values, which it reorders; `n` above 0.
    pub fn of(values: &mut [f32], n: usize) -> Self {
        let (above, &mut value, _) = values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
        CutOff { value, ties: n - above.iter().filter(|&&other| other > value).count() }
    }

    /// Keeps every value above 0.
    pub const NONE: CutOff = CutOff { value: 0.0, ties: 0 };

    /// Whether `value` stays; to be asked once for each, in the order in which equals are preferred.
    pub fn keeps(&mut self, value: f32) -> bool {
        let tie = value == self.value && self.ties > 0;
        self.ties -= usize::from(tie);
        tie || value > self.value
    }
}

/// The rule that keeps entries of one row of pre-activations.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule<'a> {
    /// Entries above one number.
    Above(f32),
    /// Entries above each feature's threshold.
    AboveEach(&'a [f32]),
    /// The `k` largest positive entries.
    Top(usize),
}

impl Rule<'_> {
    /// Appends the kept entries of `row`, features ascending. `scratch` is reused between rows.
    pub(crate) fn keep(&self, row: &[f32], features: &mut Vec<u32>, values: &mut Vec<f32>, scratch: &mut Vec<f32>) {
        match *self {
            Rule::Above(floor) => kernels::keep_above(row, floor, features, values),
            Rule::AboveEach(thresholds) => kernels::keep_above_each(row, thresholds, features, values),
            Rule::Top(k) => kernels::keep_top(row, k, features, values, scratch),
        }
    }
}

/// Keeps entries of `h` `[tokens, features]` by `rule`; rows in parallel.
pub(crate) fn keep(rule: Rule<'_>, h: &[f32], features: usize) -> LayerCode {
    const ROWS: usize = 16;
    let parts: Vec<LayerCode> = h
        .par_chunks(ROWS * features)
        .map(|block| {
            let mut part = LayerCode::empty(0);
            let mut scratch = Vec::new();
            for row in block.chunks_exact(features) {
                rule.keep(row, &mut part.features, &mut part.values, &mut scratch);
                part.close_token();
            }
            part
        })
        .collect();
    LayerCode::concat(&parts)
}
