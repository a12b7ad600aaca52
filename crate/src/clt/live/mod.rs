//! A CLT while it is trained: flat weights and moments, and the step written by hand.
//!
//! In: a batch of normalised inputs and targets. Out: weights one Adam step further, and the terms
//! of the loss. No autograd: [`forward`] encodes, decodes and takes the residual, [`backward`]
//! finds the gradient of every active entry and the norm of the whole, [`update`] forms each
//! gradient row in cache and spends it at once in Adam, so that no gradient is ever stored (12
//! bytes a weight in all: the weight and two moments). A layer whose code is dense (ReLU in its
//! first steps) goes through dense products instead.
//!
//! Loss per token, from *Circuit Tracing* (Anthropic 2025) with the dead-feature term in the form
//! of SAELens and CLT-Forge:
//! `Σ_l ‖ŷ_l − y_l‖² + λ Σ tanh(c ‖W_dec,f‖ a_f) + λ_P Σ_{f dead} ReLU(θ_f − h_f) ‖W_dec,f‖`,
//! ‖W_dec,f‖ over the concatenation of all targets, with its gradient. θ is what a feature had to
//! exceed: 0, its threshold, or the least value kept (a constant then).

mod backward;
mod entries;
mod fold;
mod forward;
mod scratch;
mod update;

use crate::activations::Batch;
use crate::clt::{Activation, CltConfig};
use crate::error::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
pub(crate) use scratch::Scratch;

/// A parameter with its two moments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Param {
    pub w: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
}

impl Param {
    fn zeros(n: usize) -> Self {
        Param { w: zeros(n), m: zeros(n), v: zeros(n) }
    }

    fn uniform(n: usize, bound: f32, rng: &mut StdRng) -> Self {
        let mut param = Param::zeros(n);
        param.w.iter_mut().for_each(|w| *w = rng.random_range(-bound..bound));
        param
    }
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
    /// `[F, L - l, d]`.
    pub decoder: Param,
    /// `[d]`.
    pub decoder_bias: Param,
    /// `‖W_dec,f‖²` over all targets, `[F]`.
    pub squares: Vec<f32>,
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
}

/// What one step is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepOptions {
    pub lr: f64,
    pub betas: (f64, f64),
    pub eps: f64,
    /// Largest norm of the whole gradient.
    pub clip: Option<f64>,
    /// λ at this step.
    pub sparsity: f64,
    /// c.
    pub tanh_scale: f64,
    /// λ_P.
    pub dead: f64,
    /// Tokens without firing after which a feature is dead.
    pub dead_window: u32,
}

/// What one step says; losses per token.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepReport {
    /// Squared error and variance of each target layer, summed over its entries, per token.
    pub layers: Vec<(f64, f64)>,
    pub sparsity: f64,
    pub dead_term: f64,
    /// Active entries per token of each layer.
    pub l0: Vec<f64>,
    pub dead: usize,
    pub grad_norm: f64,
    /// Seconds of encode, decode, backward, update.
    pub seconds: [f64; 4],
}

impl LiveClt {
    /// Bytes of weights and moments, and of the scratch for batches of `tokens`.
    pub fn bytes(config: &CltConfig, tokens: usize) -> u64 {
        let (l, d, f) = (config.layers as u64, config.width as u64, config.features as u64);
        let tokens = tokens as u64;
        let dense = if forward::starts_dense(&config.activation) { 3 } else { 0 };
        12 * config.parameters() + 4 * tokens * l * (3 * d + dense * f) + 64 * tokens * l
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
    pub fn new(config: &CltConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let (d, f) = (config.width, config.features);
        let layers = (0..config.layers)
            .into_par_iter()
            .map(|l| {
                let mut rng = StdRng::seed_from_u64(seed.wrapping_add(l as u64));
                let mut encoder = Param::uniform(f * d, 1.0, &mut rng);
                for row in encoder.w.chunks_exact_mut(d) {
                    let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
                    row.iter_mut().for_each(|w| *w /= norm);
                }
                let decoder = Param::uniform(f * config.slots(l) * d, 0.1 / ((config.layers * d) as f32).sqrt(), &mut rng);
                let log_threshold = match config.activation {
                    Activation::JumpRelu { threshold, .. } => {
                        let mut param = Param::zeros(f);
                        param.w.fill(threshold.ln() as f32);
                        Some(param)
                    }
                    _ => None,
                };
                let mut layer = LiveLayer {
                    encoder,
                    encoder_bias: Param::zeros(f),
                    log_threshold,
                    decoder,
                    decoder_bias: Param::zeros(d),
                    idle: vec![0; f],
                    density: if forward::starts_dense(&config.activation) { 1.0 } else { 0.0 },
                    ..LiveLayer::default()
                };
                layer.measure(config.slots(l) * d);
                layer
            })
            .collect();
        Ok(LiveClt { config: config.clone(), layers, steps: 0 })
    }

    /// One step: forward, backward, update. When the loss or the gradient is not finite nothing
    /// has been changed.
    ///
    /// # Errors
    /// `NotFinite` naming the layer.
    pub fn step(&mut self, batch: &Batch, scratch: &mut Scratch, options: &StepOptions) -> Result<StepReport> {
        let mut report = StepReport::default();
        scratch.fit(&self.config, batch.tokens);
        let start = std::time::Instant::now();
        self.encode(batch, scratch)?;
        let encoded = start.elapsed().as_secs_f64();
        self.decode(batch, scratch, &mut report)?;
        let decoded = start.elapsed().as_secs_f64();
        self.backward(batch, scratch, options, &mut report)?;
        let backward = start.elapsed().as_secs_f64();
        self.update(batch, scratch, options, &mut report);
        report.seconds = [encoded, decoded - encoded, backward - decoded, start.elapsed().as_secs_f64() - backward];
        Ok(report)
    }
}

impl LiveLayer {
    /// Recomputes the decoders' squared norms; `width` is slots · d.
    pub fn measure(&mut self, width: usize) {
        self.squares = self.decoder.w.par_chunks(width).map(|row| row.iter().map(|w| w * w).sum()).collect();
    }
}

/// Zeros that ask the system for large pages before they are touched: rows of a tile lie far
/// apart, and with small pages each would miss the translation buffer.
fn zeros(n: usize) -> Vec<f32> {
    let values = vec![0f32; n];
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 21;
        let (start, bytes) = (values.as_ptr() as usize, std::mem::size_of_val(values.as_slice()));
        let aligned = start.next_multiple_of(PAGE);
        if let Some(length) = (start + bytes).checked_sub(aligned).filter(|&length| length >= PAGE) {
            // SAFETY: advice on memory that is ours; it changes no content, and a refusal harms nothing.
            unsafe { libc::madvise(aligned as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
        }
    }
    values
}
