//! How to train: one plain struct, saved in each checkpoint.

use crate::clt::Activation;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use std::path::{Path, PathBuf};

/// How a CLT is trained. The loss is that of *Circuit Tracing* (Anthropic 2025), per token
/// `Σ_l ‖ŷ_l − y_l‖² + λ Σ tanh(c ‖W_dec,f‖ a_f) + λ_P Σ_{f dead} ReLU(θ_f − h_f) ‖W_dec,f‖`, with
/// inputs and targets centred and scaled to a mean squared norm of d.
///
/// ```
/// use cltlab::train::TrainConfig;
/// let config = TrainConfig { steps: 500, lr: 1e-3, ..TrainConfig::default() };
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimiser steps of one `run`, 10⁹ at most. Default 2,000.
    pub steps: usize,
    /// Tokens in a step, 2³⁰ at most. Default 1,024.
    pub batch_tokens: usize,
    /// Largest learning rate. Default 1e-3; for wide CLTs and long runs 1e-4 to 4e-4.
    pub lr: f64,
    /// Adam's β₁ and β₂. Default 0.9, 0.999.
    pub betas: (f64, f64),
    /// Adam's ε. Default 1e-8.
    pub eps: f64,
    /// Share of the steps over which the rate rises linearly from 0. Default 0.02.
    pub warmup: f64,
    /// Share of the steps at the end over which it falls linearly to 0. Default 0.2.
    pub decay: f64,
    /// Largest norm of the gradient; `None` for no limit. Default 1.
    pub clip: Option<f64>,
    /// λ of the tanh sparsity term. `None`: 2 for ReLU and JumpReLU, 0 for TopK and BatchTopK,
    /// whose k holds the sparsity. Default `None`.
    pub sparsity: Option<f64>,
    /// Share of the steps over which λ rises linearly from 0. Default 0.7.
    pub sparsity_ramp: f64,
    /// L0 (active features per token and layer) at which sparsity is enough. Once the mean of the last 20
    /// steps has come down to it, λ is steered to keep it there, and the run ends `decay` of `steps` later,
    /// the rate falling before this end (at once when `decay` is 0, as CLT-Forge's `optimal_l0` does). Not
    /// for activations with a k. Default `None`.
    pub target_l0: Option<f64>,
    /// c in `tanh(c ‖W_dec‖ a)`. Default 1.
    pub tanh_scale: f64,
    /// Coefficient of the dead features' term. Default 1e-5.
    pub dead: f64,
    /// Tokens without firing after which a feature counts as dead. Default 65,536.
    pub dead_window: u32,
    /// α of the auxiliary loss (aux-k): dead features reconstruct what the living leave over. Gao et al. 2024
    /// take 1/32; sparsify's default is 0, which turns it off. For activations with a k. Default 0.
    pub aux: f64,
    /// Dead features of each token and layer that take part in it, at most. Default `None`: d / 2, as both do.
    pub aux_k: Option<usize>,
    /// Seed of the first weights. Default 0.
    pub seed: u64,
    /// Steps between checkpoints; 0 for none. Default 0.
    pub checkpoint_every: usize,
    /// Folder of the checkpoints; needed when `checkpoint_every` is above 0.
    pub checkpoint_dir: Option<PathBuf>,
    /// What the squared errors are measured in. Default: as they are.
    pub loss: Loss,
    /// Matryoshka: the first so many features of each layer must reconstruct on their own, for each
    /// number given, rising and below F. The loss is the mean over these and the whole. Default: none.
    pub matryoshka: Vec<usize>,
    /// AdamW's decay of weights, biases and thresholds, times the rate. Default 0.
    pub weight_decay: f64,
    /// How Adam's moments are held. Default f32.
    pub moments: Moments,
    /// Where it is trained. Default: where the activations' model runs.
    pub device: TrainDevice,
    /// How encoder and decoder weights are held while they are trained on a GPU. Default f32, as on the CPU always.
    pub weights: Weights,
    /// Leave decoder rows alone while their feature does not fire, and make up for it when it does:
    /// the same weights to rounding, in less time where features are rare. The steps that are made up for
    /// add `eps` to √v as it was when the feature last fired, so an `eps` that is not far below √v gives
    /// other weights than `false` does. Default `true`; without effect when weights decay.
    pub lazy: bool,
    /// Checkpoints that are kept, the newest ones; at least 1. Default 2, so that there is one to fall
    /// back on.
    pub checkpoint_keep: usize,
    /// A file that gets one line of JSON a step, a [`TrainSample`](crate::progress::TrainSample), with
    /// `held_out` where an evaluation followed. Resumed, it holds each step once. Default `None`.
    ///
    /// Not TensorBoard event files: of the crates that write them none is both light and kept
    /// (`tensorboard-rs` 0.5.9, of 2022, calls itself not active and brings an image library;
    /// `tfrecord` 0.15 and `tboard` 0.1 bring an old prost, and the second needs protobuf's compiler to
    /// build). Pandas, trackers of experiments and `jq` read lines of JSON; for TensorBoard, in Python:
    ///
    /// ```python
    /// import json; from torch.utils.tensorboard import SummaryWriter; log = SummaryWriter("logs")
    /// for row in map(json.loads, open("metrics.jsonl")):
    ///     for name in ("reconstruction", "l0", "fvu", "dead"): log.add_scalar(name, row[name], row["step"])
    /// ```
    pub metrics: Option<PathBuf>,
    /// Whether inputs and targets are centred and scaled. Off, the loss is in the activations' own
    /// units, for comparison with a trainer that does not normalise. Default on.
    pub normalise: bool,
    /// Steps between evaluations on the text of [`Trainer::held_out`](crate::Trainer::held_out); 0
    /// for none. Default 0.
    pub eval_every: usize,
}

/// What the squared errors of a target layer are measured in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Loss {
    /// In the units of the normalised targets, whose mean squared norm is d.
    #[default]
    SquaredError,
    /// In units of the target's variance over the batch, as clt-training does.
    Fvu,
}

/// How Adam's two moments are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Moments {
    /// 8 bytes a weight.
    #[default]
    F32,
    /// 2 bytes a weight: small floating-point numbers with a common exponent for 64 neighbours,
    /// rounded at random so that their mean is right. For encoders and decoders.
    EightBit,
}

/// Where a CLT is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainDevice {
    /// Where the activations' model runs; on the CPU for activations from memory or disk.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On the first CUDA device.
    Cuda,
}

/// How weights are held while they are trained on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Weights {
    /// 4 bytes a weight.
    #[default]
    F32,
    /// 2 bytes a weight, rounded at random so that the mean of many small steps is right; inputs, targets and
    /// products of dense codes in bf16 too, sums in f32.
    Bf16,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            steps: 2_000,
            batch_tokens: 1_024,
            lr: 1e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            warmup: 0.02,
            decay: 0.2,
            clip: Some(1.0),
            sparsity: None,
            sparsity_ramp: 0.7,
            target_l0: None,
            tanh_scale: 1.0,
            dead: 1e-5,
            dead_window: 65_536,
            aux: 0.0,
            aux_k: None,
            seed: 0,
            checkpoint_every: 0,
            checkpoint_dir: None,
            loss: Loss::SquaredError,
            matryoshka: Vec::new(),
            weight_decay: 0.0,
            moments: Moments::F32,
            device: TrainDevice::Auto,
            weights: Weights::F32,
            lazy: true,
            checkpoint_keep: 2,
            metrics: None,
            normalise: true,
            eval_every: 0,
        }
    }
}

impl TrainConfig {
    pub(super) const MOST_STEPS: usize = 1_000_000_000;

    /// Checks every field.
    ///
    /// # Errors
    /// `BadConfig` naming the field; `Io` where a file is in the place of `checkpoint_dir` or of the folder of `metrics`.
    #[doc(hidden)]
    pub fn validate(&self) -> Result<()> {
        for folder in self.checkpoint_dir.as_deref().into_iter().chain(self.metrics.as_deref().and_then(Path::parent)) {
            files::not_a_file(folder)?;
        }
        let bad = |field: &str, got: String, expected: &str| Err(Error::expected(ErrorKind::BadConfig, format_args!("TrainConfig::{field}"), got, expected));
        for (field, value) in [("steps", self.steps), ("batch_tokens", self.batch_tokens), ("checkpoint_keep", self.checkpoint_keep)] {
            if value == 0 {
                return bad(field, "0".into(), "at least 1");
            }
        }
        // Steps are counted in 32 bits and leave a line of history each; so are the tokens of a batch and features.
        for (field, value, most) in [("steps", self.steps, Self::MOST_STEPS), ("batch_tokens", self.batch_tokens, 1 << 30), ("aux_k", self.aux_k.unwrap_or(1), 1 << 31)] {
            Error::at_most(ErrorKind::BadConfig, format_args!("TrainConfig::{field}"), value, most)?;
        }
        for (field, value) in [("lr", self.lr), ("eps", self.eps), ("tanh_scale", self.tanh_scale), ("target_l0", self.target_l0.unwrap_or(1.0)), ("clip", self.clip.unwrap_or(1.0))] {
            if !(value > 0.0 && value.is_finite()) {
                return bad(field, value.to_string(), "a number above 0");
            }
        }
        for (field, value) in [("sparsity", self.sparsity.unwrap_or(0.0)), ("dead", self.dead), ("aux", self.aux), ("weight_decay", self.weight_decay)] {
            if !(value >= 0.0 && value.is_finite()) {
                return bad(field, value.to_string(), "0 or a number above");
            }
        }
        for (field, value) in [("warmup", self.warmup), ("decay", self.decay), ("sparsity_ramp", self.sparsity_ramp)] {
            if !(0.0..=1.0).contains(&value) {
                return bad(field, value.to_string(), "a share between 0 and 1");
            }
        }
        for (field, value) in [("betas.0", self.betas.0), ("betas.1", self.betas.1)] {
            if !(0.0..1.0).contains(&value) {
                return bad(field, value.to_string(), "0 or more, below 1");
            }
        }
        if self.aux_k == Some(0) {
            return bad("aux_k", "0".into(), "at least 1");
        }
        if self.matryoshka.first() == Some(&0) || self.matryoshka.windows(2).any(|pair| pair[0] >= pair[1]) {
            return bad("matryoshka", format!("{:?}", self.matryoshka), "numbers above 0 that rise");
        }
        if self.checkpoint_every > 0 && self.checkpoint_dir.is_none() {
            return bad("checkpoint_dir", "none".into(), "a folder, because checkpoint_every is above 0");
        }
        Ok(())
    }

    /// λ after the ramp, for this activation.
    pub(crate) fn sparsity_for(&self, activation: &Activation) -> f64 {
        let usual = if matches!(activation, Activation::Relu | Activation::JumpRelu { .. }) { 2.0 } else { 0.0 };
        self.sparsity.unwrap_or(usual)
    }

    /// Dead features of a token and layer in the auxiliary loss, at most, for a model `width` wide; 0 without it.
    #[doc(hidden)]
    pub fn aux_k_for(&self, width: usize) -> usize {
        if self.aux > 0.0 { self.aux_k.unwrap_or(width / 2).max(1) } else { 0 }
    }

    /// The learning rate of step `step` (counted from 1) when `total` steps are aimed at.
    pub(crate) fn lr_at(&self, step: usize, total: usize) -> f64 {
        let (step, total) = (step as f64, total as f64);
        let rise = if self.warmup > 0.0 { step / (self.warmup * total).max(1.0) } else { 1.0 };
        let fall = if self.decay > 0.0 { (total - step + 1.0) / (self.decay * total).max(1.0) } else { 1.0 };
        self.lr * rise.min(fall).clamp(0.0, 1.0)
    }

    /// The share of λ that applies at step `step`; it stays 1 when training goes on after `steps`.
    pub(crate) fn ramp_at(&self, step: usize) -> f64 {
        let length = self.sparsity_ramp * self.steps as f64;
        if length > 0.0 { (step as f64 / length).min(1.0) } else { 1.0 }
    }
}
