//! A CLT while it is trained: flat weights and moments, and the step written by hand.
//!
//! In: a batch of normalised inputs and targets. Out: weights one Adam step further, and the terms
//! of the loss. No autograd: [`forward`] encodes ([`near`]
//! looks for what is kept in rounded numbers first), decodes and takes the residual, [`block`] finds the
//! gradient of every active entry, forms each gradient row in cache and spends it at once in Adam,
//! so that no gradient is ever stored ([`update`] puts this in order, [`norm`] knows the norm of the
//! whole before any of it is spent, [`lazy`] leaves rows alone that got none). 12 bytes a weight in
//! all, or 6 with moments in eight bits. A layer whose code is dense (ReLU in its first steps) goes
//! through dense products instead.
//!
//! Loss per token, from *Circuit Tracing* (Anthropic 2025) with the dead-feature term in the form
//! of SAELens and CLT-Forge:
//! `Σ_l ‖ŷ_l − y_l‖² + λ Σ tanh(c ‖W_dec,f‖ a_f) + λ_P Σ_{f dead} ReLU(θ_f − h_f) ‖W_dec,f‖`,
//! ‖W_dec,f‖ over the concatenation of all targets, with its gradient. θ is what a feature had to
//! exceed: 0, its threshold, or the least value kept (a constant then). Variants: the first term
//! over each target's variance (FVU), or its mean over nested groups of features (Matryoshka); a term
//! that asks dead features for what is left over ([`auxiliary`]).

mod auxiliary;
mod block;
#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
pub(crate) mod cuda;
mod cuts;
mod entries;
mod fold;
mod forward;
mod lazy;
#[cfg(target_arch = "x86_64")]
mod near;
mod norm;
mod param;
mod per_target;
pub(crate) mod room;
mod scratch;
mod update;

use crate::activations::Batch;
use crate::clt::{Activation, CltConfig, Tied};
use crate::error::Result;
use lazy::Pending;
use param::Param;
use rand::rngs::StdRng;
use rand::SeedableRng;
use rayon::prelude::*;
pub(crate) use scratch::Scratch;

/// Whether a step on a GPU multiplies codes as dense matrices or walks along their lists. Results differ by rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GpuPath {
    /// The cheaper of the two by bytes moved and operations, per layer, for forward and backward separately.
    #[default]
    Auto,
    /// Dense products, forward and backward.
    Dense,
    /// Lists, forward and backward.
    Lists,
    /// Dense products forward, lists backward.
    DenseForward,
}

/// One layer of a CLT in training.
#[derive(Clone, Debug, Default)]
pub(crate) struct LiveLayer {
    /// `[F, d]`.
    pub encoder: Param,
    /// `[F]`.
    pub encoder_bias: Param,
    /// `[F]`, JumpReLU only, logarithms.
    pub log_threshold: Option<Param>,
    /// `[F, L - l, d]`; in a PLT, or tied, `[F, d]` (per target: that of target l).
    pub decoder: Param,
    /// `[d]`.
    pub decoder_bias: Param,
    /// `[d, d]` (input, output), if the CLT has skip connections.
    pub skip: Option<Param>,
    /// Squared norm of each decoder row, `[F]`.
    pub squares: Vec<f32>,
    /// The step after which each decoder row was last up to date, `[F]`.
    pub last: Vec<u32>,
    /// Tokens since each feature last fired, `[F]`.
    pub idle: Vec<u32>,
    /// BatchTopK: the last batch's least kept value, and its running mean with its weight.
    pub cut: Cut,
    /// Share of entries that were kept in the last step: above [`DENSE`] the next step is dense.
    pub density: f32,
}

/// The value at which BatchTopK cuts a layer, batch after batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Cut {
    pub last: f32,
    sum: f32,
    weight: f32,
}

impl Cut {
    /// Takes in one batch; the mean forgets with a half-life of some 70 batches.
    fn see(&mut self, value: f32) {
        self.last = value;
        self.sum = 0.99 * self.sum + value;
        self.weight = 0.99 * self.weight + 1.0;
    }

    /// The running mean, 0 before the first batch.
    pub fn mean(&self) -> f32 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }
}

/// Kept share above which a layer's products are dense.
pub(crate) const DENSE: f32 = 0.12;

/// A CLT in training.
#[derive(Clone, Debug)]
pub(crate) struct LiveClt {
    pub config: CltConfig,
    pub layers: Vec<LiveLayer>,
    /// Adam steps taken.
    pub steps: u64,
    /// What rests on rows without a gradient.
    pub pending: Pending,
}

/// What one step is told.
#[derive(Clone, Debug)]
pub(crate) struct StepOptions {
    /// This step's number, from 1.
    pub step: u64,
    pub lr: f64,
    pub betas: (f64, f64),
    pub eps: f64,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient.
    pub clip: Option<f64>,
    /// Decoder rows without a gradient are left for later.
    pub lazy: bool,
    /// Squared errors are divided by the target's variance.
    pub fvu: bool,
    /// Where nested groups of features end; the last is F.
    pub groups: Vec<usize>,
    /// λ at this step.
    pub sparsity: f64,
    /// c.
    pub tanh_scale: f64,
    /// λ_P.
    pub dead: f64,
    /// Tokens without firing after which a feature is dead.
    pub dead_window: u32,
    /// α of the auxiliary loss, and how many dead features of a token and layer it takes.
    pub aux: f64,
    pub aux_k: usize,
}

/// What one step says; losses per token.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepReport {
    /// Squared error and variance of each target layer, summed over its entries, per token.
    pub layers: Vec<(f64, f64)>,
    pub sparsity: f64,
    pub dead_term: f64,
    pub aux: f64,
    /// Active entries per token of each layer.
    pub l0: Vec<f64>,
    pub dead: usize,
    pub grad_norm: f64,
    /// Seconds of encode, decode, backward, update.
    pub seconds: [f64; 4],
}

impl LiveClt {
    /// Whether matrices have moments in eight bits.
    #[cfg(feature = "cuda")]
    pub fn has_small_moments(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.encoder.moments, param::Moments::Eight { .. }))
    }

    /// The same without its layers: for a CLT whose weights are elsewhere.
    pub fn shell(&self) -> Self {
        LiveClt { config: self.config.clone(), layers: Vec::new(), steps: self.steps, pending: Pending::default() }
    }

    /// Bytes of weights and moments.
    pub fn weight_bytes(config: &CltConfig, eight: bool) -> u64 {
        // In eight bits: two codes, and two exponents for 64 neighbours.
        config.trained_parameters().saturating_mul(if eight { 49 } else { 96 }) / 8
    }

    /// Bytes of the batch and of the scratch for batches of `tokens` with `groups` groups and `aux_k` dead
    /// features of a token and layer in an auxiliary loss.
    pub fn step_bytes(config: &CltConfig, tokens: usize, groups: usize, aux_k: usize) -> u64 {
        let (l, d, f) = (config.layers as u64, config.width as u64, config.features as u64);
        let (tokens, groups) = (tokens as u64, groups as u64);
        // A layer's values of one token: dense, or kept entries, which stand in candidates, parts, code,
        // lists and gradients (60 bytes by measurement).
        let code = match config.activation {
            Activation::TopK { k } | Activation::BatchTopK { k } | Activation::GlobalBatchTopK { k } => 60 * k as u64,
            // A token's may all lie in one layer: that many are candidates.
            Activation::GlobalTopK { k } => 60 * k as u64 + 16 * (k as u64 * l).min(f),
            // Never dense.
            _ if config.tied == Tied::PerTarget => 60 * f,
            Activation::Relu => 4 * 2 * f,
            Activation::JumpRelu { .. } => 4 * 3 * f,
        };
        let slabs = 4 * groups * scratch::stride(config) as u64;
        // As many rows again in slabs and inputs, the dead features' entries, and their encoders.
        let (lent, rows) = match aux_k as u64 {
            0 => (0, 0),
            k => (slabs + l * (8 * d + 60 * k.min(f)), 4 * l * f * d),
        };
        tokens.saturating_mul((l * (8 * d + code + 64)).saturating_add(slabs).saturating_add(lent)).saturating_add(rows)
    }

    /// Random weights. Encoder rows have norm 1, so that pre-activations of normalised inputs have
    /// variance 1; decoder rows are uniform within a tenth of ±1/√(L·d), so that the first steps
    /// need not unlearn noise; biases 0 (the decoder's because targets are centred).
    ///
    /// Differs from the field's usual ±1/√F and ±1/√(L·d). On stories260K (F 256, k 16, 300 steps,
    /// one seed) held-out FVU was 0.398 with the usual weights, 0.384 with unit encoder rows and the
    /// usual decoder, 0.375 with unit encoder rows and a decoder of zeros; BatchTopK's threshold
    /// drifts less too (L0 16.4 against 18.8 for k 16). A tenth keeps the decoder's rows apart.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub fn new(config: &CltConfig, eight: bool, seed: u64) -> Result<Self> {
        let mut live = LiveClt::empty(config, eight)?;
        let bound = 0.1 / ((config.layers * config.width) as f32).sqrt();
        live.layers.par_iter_mut().enumerate().for_each(|(l, layer)| {
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(l as u64));
            layer.encoder = std::mem::take(&mut layer.encoder).uniform(1.0, &mut rng);
            for row in layer.encoder.w.chunks_exact_mut(config.width) {
                let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
                row.iter_mut().for_each(|w| *w /= norm);
            }
            layer.decoder = std::mem::take(&mut layer.decoder).uniform(bound, &mut rng);
            if let (Activation::JumpRelu { threshold, .. }, Some(log)) = (&config.activation, &mut layer.log_threshold) {
                log.w.fill(threshold.ln() as f32);
            }
            layer.measure();
        });
        Ok(live)
    }

    /// One step: forward, backward, update. When the loss or the gradient is not finite nothing
    /// has been changed.
    ///
    /// # Errors
    /// `NotFinite` naming the layer.
    pub fn step(&mut self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions) -> Result<StepReport> {
        let mut report = StepReport::default();
        scratch.fit(self, options, batch.tokens);
        let start = std::time::Instant::now();
        self.encode(batch, scratch)?;
        if options.aux > 0.0 {
            self.encode_dead(batch, scratch, options);
        }
        let encoded = start.elapsed().as_secs_f64();
        self.settle(scratch, options);
        self.decode(batch, scratch, options, &mut report)?;
        let decoded = start.elapsed().as_secs_f64();
        let (backward, update) = self.learn(batch, scratch, options, &mut report)?;
        report.seconds = [encoded, decoded - encoded, backward, update];
        Ok(report)
    }
}

impl LiveLayer {
    /// Recomputes the decoder rows' squared norms.
    pub fn measure(&mut self) {
        self.squares = self.decoder.w.par_chunks(self.decoder.row).map(|row| row.iter().map(|w| w * w).sum()).collect();
    }
}
