//! Work: flops and bytes of one training step, part by part, from configurations alone.
//!
//! On a GPU as `clt::live::cuda` does it: pre-activations are written and read in f32; codes are multiplied as dense matrices or
//! gathered along lists, as `dense_pays` decides; each weight is read by the passes that need it, and read and written with its
//! moments by the one that updates. Symbols: L, d, F, T, and k for the active features of a token and layer.

use super::cards::{Share, Shares};
use super::supply::Forward;
use super::{Moments, TrainConfig, Weights};
use crate::clt::live::room::{dense_pays, Side, CACHE, MEMORY};
use crate::clt::live::DENSE;
use crate::clt::{CltConfig, Tied};
use candle_core::DType;

/// One part of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub name: &'static str,
    pub flops: f64,
    /// Bytes that move between memory and the processor.
    pub bytes: f64,
    /// Its factors have 16 bits.
    pub half: bool,
    pub share: Share,
}

/// A step's sizes as numbers.
struct Step<'a> {
    clt: &'a CltConfig,
    config: &'a TrainConfig,
    l: f64,
    d: f64,
    f: f64,
    t: f64,
    /// Active features of a token and layer.
    active: f64,
    /// Numbers of all encoders, and of all decoders as they are trained.
    encoders: f64,
    decoders: f64,
    /// Bytes of a weight, and of its moments.
    weight: f64,
    moments: f64,
    /// Entries that take part: dead features of an auxiliary loss too.
    entries: f64,
    /// Products are dense, forward and backward.
    dense: [bool; 2],
}

/// The active features of a token and layer that a prediction assumes, and why: k, or the L0 that is aimed at, or half of all, as at
/// random weights, which is an upper bound.
pub(super) fn active(clt: &CltConfig, config: &TrainConfig) -> (f64, &'static str) {
    match (clt.activation.k(), config.target_l0) {
        (Some(k), _) => (k as f64, "k"),
        (None, Some(l0)) => (l0, "TrainConfig::target_l0; at first there are more, and the run ends when it is reached and the rate has fallen"),
        (None, None) => (clt.features as f64 / 2.0, "half of all, as at random weights: an upper bound"),
    }
}

impl<'a> Step<'a> {
    fn new(clt: &'a CltConfig, config: &'a TrainConfig) -> Self {
        let columns: f64 = (0..clt.layers).map(|layer| clt.columns(layer) as f64).sum();
        let [l, d, f, t] = [clt.layers, clt.width, clt.features, config.batch_tokens].map(|value| value as f64);
        let weight = if config.weights == Weights::Bf16 { 2.0 } else { 4.0 };
        let (active, aux) = (active(clt, config).0, config.aux_k_for(clt.width) as f64);
        // As `CudaClt::is_dense` has it.
        let lists = !config.matryoshka.is_empty() || aux > 0.0 || clt.tied == Tied::PerTarget;
        let dense = [Side::Forward, Side::Backward].map(|side| !lists && !(clt.tied == Tied::PerSource && side == Side::Forward) && dense_pays(side, config.batch_tokens, clt.features, active, weight));
        let moments = if config.moments == Moments::EightBit { 2.0 + 1.0 / 32.0 } else { 8.0 };
        Step { clt, config, l, d, f, t, active, encoders: l * f * d, decoders: f * columns, weight, moments, entries: active + aux, dense }
    }

    /// Rows of d numbers that one token's entries gather from decoders, or from gradients at the targets.
    fn gathered(&self) -> f64 {
        let rows = |layer| if self.clt.tied == Tied::PerSource { 1 } else { self.clt.slots(layer) };
        self.entries * (0..self.clt.layers).map(|layer| rows(layer) as f64).sum::<f64>()
    }

    /// How often rows are gone over before and with the update, decoders' and encoders': once, and once more for a limit on the
    /// gradient's norm; decoders' also for products by themselves where one pass cannot do both.
    fn passes(&self) -> [f64; 2] {
        let clip = if self.config.clip.is_some() { 1.0 } else { 0.0 };
        let apart = if self.config.clip.is_some() || self.clt.tied == Tied::PerTarget { 1.0 } else { 0.0 };
        [1.0 + clip + apart, 1.0 + clip]
    }

    /// Bytes of passes over `numbers` weights whose lists gather `gathered` numbers each time. What is gathered comes from the
    /// second-level cache; the longer of both counts.
    fn pass(&self, numbers: f64, passes: f64, gathered: f64) -> f64 {
        let moved = numbers * (self.weight * passes + self.weight + 2.0 * self.moments);
        moved.max(passes * gathered * self.weight * MEMORY / CACHE)
    }
}

/// The parts of a step on a GPU; `forward` is the model's for each token, where one runs.
pub(super) fn gpu(clt: &CltConfig, config: &TrainConfig, forward: Option<Forward>, shares: &Shares) -> Vec<Work> {
    let step = Step::new(clt, config);
    let Step { l, d, f, t, encoders, decoders, weight, .. } = step;
    let (half, groups) = (config.weights == Weights::Bf16, config.matryoshka.len() as f64 + 1.0);
    let work = |name, share, flops, bytes| Work { name, flops, bytes, half, share };
    let (rows, pre) = (l * t * d * weight, 4.0 * l * t * f);
    let skip = if clt.skip { 4.0 * l * t * d * d } else { 0.0 };
    let [dense_forward, dense_backward] = step.dense;
    // Rankings keep what they find; without a k rows are counted first and read again.
    let reads = if clt.activation.is_ranked() { 1.0 } else { 2.0 };
    let gathered = t * step.gathered() * d;
    let [decoder_passes, encoder_passes] = step.passes();
    let mut parts = vec![
        work("encoder products", shares.encoder, 2.0 * t * encoders + skip, weight * encoders + rows + pre),
        work("selection", shares.selection, 0.0, reads * pre),
        // Targets read, gradients at them written.
        work("decoding", shares.decoding, 0.0, if dense_forward { 0.0 } else { gathered * weight } + (1.0 + groups) * rows),
    ];
    if dense_forward || dense_backward {
        let (mut flops, mut bytes) = (0.0, 0.0);
        if dense_forward {
            flops += 2.0 * t * decoders;
            // Codes cleared, written and read; decoders; sums in f32 read and written.
            bytes += 3.0 * l * t * f * weight + weight * decoders + 8.0 * l * t * d;
        }
        if dense_backward {
            // Products with gradients at the targets; the gradients of decoders and encoders, formed anew for each pass that uses them.
            flops += 2.0 * t * decoders + encoder_passes * 2.0 * t * (decoders + encoders);
            bytes += weight * decoders + 2.0 * pre + encoder_passes * (8.0 * (decoders + encoders) + 6.0 * l * t * f * weight);
        }
        parts.push(work("products of dense codes", shares.dense, flops, bytes));
    }
    // A product that was dense is no pass over rows.
    let passes = if dense_backward { encoder_passes } else { decoder_passes };
    let lists = |numbers: f64| if dense_backward { 0.0 } else { numbers };
    parts.push(work("decoder gradients and Adam", shares.decoder_pass, 0.0, step.pass(decoders, passes, lists(gathered))));
    parts.push(work("encoder gradients and Adam", shares.encoder_pass, 0.0, step.pass(encoders, encoder_passes, lists(t * step.entries * l * d))));
    // Entries by token and by feature, products with each part of their rows, norms and sums of each feature, column sums.
    let columns = decoders / (f * d);
    let entries = t * (step.entries * l * 56.0 + 8.0 * step.gathered());
    parts.push(work("lists, terms and figures", shares.lists, 0.0, entries + f * (16.0 * columns + 96.0 * l) + 4.0 * rows));
    parts.extend(forward.map(|forward| Work { half: forward.dtype != DType::F32, ..work("model", shares.model, t * forward.flops, t * forward.bytes) }));
    parts
}

/// Kernels that a step on a GPU launches, the model's not counted.
pub(super) fn launches(clt: &CltConfig, config: &TrainConfig) -> f64 {
    let step = Step::new(clt, config);
    let [decoder_passes, encoder_passes] = step.passes();
    // Encoding goes layer by layer; passes over all layers at once where none is dense.
    let turns = if step.dense[1] { step.l } else { 1.0 };
    2.0 * step.l + turns * (decoder_passes + encoder_passes + 1.0) + 20.0
}

/// The parts of a step on the CPU, as `benches/train.py` counts its floor: decoder rows rest while their feature does not fire, and a
/// weight moves its gradient once, itself and its moments twice.
pub(super) fn cpu(clt: &CltConfig, config: &TrainConfig, forward: Option<Forward>, [share, model]: [Share; 2]) -> Vec<Work> {
    let step = Step::new(clt, config);
    let Step { l, d, f, t, encoders, decoders, .. } = step;
    let full = if step.active / f > f64::from(DENSE) { f } else { step.active };
    let targets: f64 = (0..clt.layers).map(|layer| clt.slots(layer) as f64).sum();
    let skip = if clt.skip { 4.0 * l * t * d * d } else { 0.0 };
    let rows = 2.0 * l * full * d + 6.0 * targets * full * d;
    let aux = 2.0 * (step.entries - step.active) * d * (l + 3.0 * targets);
    let fires = if config.lazy && config.weight_decay == 0.0 && clt.tied != Tied::PerTarget { 1.0 - (1.0 - (step.active / f).min(1.0)).powf(t) } else { 1.0 };
    let bytes = 4.0 + 8.0 + 2.0 * step.moments;
    let work = |name, share, flops, bytes| Work { name, flops, bytes, half: false, share };
    let mut parts = vec![
        work("products", share, 2.0 * t * encoders + t * (rows + aux) + skip, 0.0),
        work("weights and moments", share, 0.0, bytes * (encoders + fires * decoders)),
    ];
    parts.extend(forward.map(|forward| work("model", model, t * forward.flops, t * forward.bytes)));
    parts
}
