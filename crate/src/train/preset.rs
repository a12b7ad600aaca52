//! Presets: how others train, as our configurations.
//!
//! A preset sets the CLT's shape ([`Preset::shape`]), the training ([`Preset::train`]) and what the
//! encoders read ([`Preset::stream`]). Each value stands in the source named; where a source gives none,
//! ours stays, and where ours has no such thing, the variant's documentation says so. Common to all: our
//! normalisation and first weights, and a loss that is summed over d where some take the mean.

use super::{Loss, TrainConfig};
use crate::activations::{InputSite, StreamConfig};
use crate::clt::{Activation, CltConfig, Tied};
use crate::error::{Error, ErrorKind, Result};
use crate::model::Model;

/// A published way to train CLTs.
///
/// ```no_run
/// use cltlab::prelude::*;
/// let model = Model::load("gpt2", &Default::default())?;
/// let preset = Preset::named("clt_forge_gpt2")?;
/// let activations = Activations::stream(&model, &Corpus::load("stories.txt", &Default::default())?, &preset.stream())?;
/// let config = TrainConfig { steps: 2_000, ..preset.train() };
/// let mut trainer = Trainer::new(&activations, &preset.clt(&model), &config)?;
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preset {
    /// *Circuit Tracing* (Anthropic 2025) and the *January 2025 update* before it, as crosslayer-coding,
    /// CLT-Forge and SAELens repeat them: JumpReLU with θ 0.03 and bandwidth 1, reading the residual stream;
    /// tanh sparsity with c = 4, λ rising linearly over all steps; a dead-feature term of 3e-6; the rate
    /// falls to 0 over the last 20 %. λ is ours; the rate 2e-4 and F 32·d lie within what those use on GPT-2.
    Anthropic,
    /// CLT-Forge, `runners/training/gpt2/config.py` at dcf4cc8: F 32·d, contexts of 16 tokens, 300,000
    /// steps of 1,024 tokens, λ 2 rising over 70 %, c = 4, until L0 is 10. Reads `ln2.hook_normalized`. Its
    /// rate falls over 5 % of the steps from where λ stops rising and is 0 afterwards; ours falls at the
    /// end. Its dead window is 250 steps: 256,000 tokens.
    CltForgeGpt2,
    /// EleutherAI's clt-training, `scripts/training/gpt2-sweep` without arguments: TopK 16 of 128·d features,
    /// decoders tied per target, skip connections, FVU, 8 contexts of 128 tokens a step (of which the
    /// first is left out), Adam at 2e-4 without limit on the gradient, falling linearly from the start.
    /// Reads `mlp.hook_in`. Its scale and offset of each feature at each target are not ours; its 50 steps
    /// of warm-up are 2.5 % of 2,000.
    EleutherTopK,
    /// openCLT's loop at the shape of this project's benchmarks, GPT-2's with F = 12·d: TopK of 2 % (its ReLU and JumpReLU
    /// fail in training), Adam at 1e-4 throughout, limit 1, no sparsity or dead-feature term. Reads
    /// `mlp.hook_in`, which it normalises once more. Its batches are 4 texts; ours are 240 tokens.
    OpenClt,
}

impl Preset {
    /// All of them.
    #[doc(hidden)]
    pub const ALL: [Preset; 4] = [Preset::Anthropic, Preset::CltForgeGpt2, Preset::EleutherTopK, Preset::OpenClt];

    /// The name in files: `anthropic`, `clt_forge_gpt2`, `eleuther_topk`, `openclt`.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Anthropic => "anthropic",
            Preset::CltForgeGpt2 => "clt_forge_gpt2",
            Preset::EleutherTopK => "eleuther_topk",
            Preset::OpenClt => "openclt",
        }
    }

    /// The preset of this name.
    ///
    /// # Errors
    /// `BadConfig` with the nearest name.
    #[doc(hidden)]
    pub fn named(name: &str) -> Result<Self> {
        let far = |preset: &Preset| strsim::damerau_levenshtein(preset.name(), name);
        Preset::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let nearest = Preset::ALL.iter().min_by_key(|preset| far(preset)).filter(|preset| far(preset) <= 1 + name.len() / 3);
            let names = Preset::ALL.map(Preset::name).join(", ");
            let error = Error::expected(ErrorKind::BadConfig, "preset", format_args!("'{name}'"), format_args!("one of {names}"));
            match nearest {
                Some(nearest) => error.help(format!("did you mean '{}'?", nearest.name())),
                None => error,
            }
        })
    }

    /// The CLT that it trains for `model`.
    pub fn clt(self, model: &Model) -> CltConfig {
        self.shape(&CltConfig::for_model(model))
    }

    /// `base`, which says layers, width and model, as the preset shapes it.
    #[doc(hidden)]
    pub fn shape(self, base: &CltConfig) -> CltConfig {
        let d = base.width;
        let jump = Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 };
        let base = CltConfig { input: self.input(), ..base.clone() };
        match self {
            Preset::Anthropic | Preset::CltForgeGpt2 => CltConfig { features: 32 * d, activation: jump, ..base },
            Preset::EleutherTopK => CltConfig { features: 128 * d, activation: Activation::TopK { k: 16 }, tied: Tied::PerTarget, skip: true, ..base },
            Preset::OpenClt => CltConfig { features: 12 * d, activation: Activation::TopK { k: (12 * d / 50).max(1) }, ..base },
        }
    }

    /// What the encoders read.
    fn input(self) -> InputSite {
        match self {
            Preset::Anthropic => InputSite::ResidMid,
            Preset::CltForgeGpt2 => InputSite::Normalized,
            Preset::EleutherTopK | Preset::OpenClt => InputSite::MlpIn,
        }
    }

    /// How it trains.
    pub fn train(self) -> TrainConfig {
        let ours = TrainConfig::default();
        match self {
            Preset::Anthropic => TrainConfig { lr: 2e-4, decay: 0.2, sparsity_ramp: 1.0, tanh_scale: 4.0, dead: 3e-6, ..ours },
            Preset::CltForgeGpt2 => TrainConfig {
                steps: 300_000,
                batch_tokens: 1_024,
                lr: 4e-4,
                warmup: 1_000.0 / 300_000.0,
                decay: 0.05,
                sparsity: Some(2.0),
                sparsity_ramp: 0.7,
                tanh_scale: 4.0,
                dead: 1e-5,
                dead_window: 250 * 1_024,
                target_l0: Some(10.0),
                ..ours
            },
            Preset::EleutherTopK => TrainConfig { batch_tokens: 8 * 127, lr: 2e-4, warmup: 0.025, decay: 1.0, clip: None, dead: 0.0, loss: Loss::Fvu, ..ours },
            Preset::OpenClt => TrainConfig { batch_tokens: 240, lr: 1e-4, warmup: 0.0, decay: 0.0, dead: 0.0, ..ours },
        }
    }

    /// How its activations are made.
    pub fn stream(self) -> StreamConfig {
        let ours = StreamConfig { input: self.input(), ..StreamConfig::default() };
        match self {
            Preset::CltForgeGpt2 => StreamConfig { context: 16, ..ours },
            Preset::EleutherTopK => StreamConfig { context: 128, ..ours },
            Preset::Anthropic | Preset::OpenClt => ours,
        }
    }
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
