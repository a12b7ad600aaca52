//! Plan: what a training will take and how long it will last, before anything of it is allocated.
//!
//! In: configurations, and where the activations come from. Out: bytes part by part for the CPU and for a GPU, and predicted seconds
//! a step for the device here and for the cards of [`CARDS`]. A part's time is its floor over the share of it that is reached
//! ([`SHARES`]); the floor is the longer of its flops at the card's rate of products and its bytes at the card's bandwidth. Cost: 0.2 s,
//! once a process, in which this machine's rates are measured.

use super::cards::{Card, Share, CARDS, CPU_MODEL_SHARE, CPU_SHARES, LAUNCH, RESERVE, SHARES};
use super::supply::PlanSource;
use super::work::{self, Work};
use super::{rates, MemoryNeed, Moments, TrainConfig, TrainDevice, Trainer, Weights};
use crate::clt::live::room;
use crate::clt::{CltConfig, Tied};
use crate::device::{self, auto_device, format_bytes};
use crate::error::{Error, ErrorKind, Result};
use candle_core::Device;

/// What a training takes and how long it is predicted to last; [`Trainer::plan`] and `cltlab train --dry-run` make it.
///
/// Left out of the time: evaluations, checkpoints, reading a store from its disk, making one, and copies from main memory to a GPU.
///
/// ```
/// use cltlab::prelude::*;
/// // GPT-2 small's shape with openCLT's features: 640 million weights.
/// let shape = CltConfig { layers: 12, width: 768, features: 9_216, activation: Activation::TopK { k: 184 }, ..CltConfig::default() };
/// let plan = Plan::new(&shape, &TrainConfig::default(), &PlanSource::Memory { tokens: None })?;
/// assert!(plan.cpu.weights > 7_600_000_000);
/// assert!(plan.cards.iter().all(|card| card.seconds_per_step.is_some_and(f64::is_finite)));
/// println!("{plan}");
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    /// Steps in all, as [`TrainConfig::steps`] has them.
    pub steps: usize,
    /// Tokens of a step.
    pub batch_tokens: usize,
    /// Tokens of all steps.
    pub tokens: u64,
    /// Different tokens of the text, where they are known.
    pub text_tokens: Option<u64>,
    /// What is trained, in words.
    pub clt: String,
    /// Weights that are trained.
    pub weights: u64,
    /// Bytes of one of them on a GPU, moments included.
    pub bytes_per_weight: f64,
    /// Active features of a token and layer that the times assume.
    pub active: f64,
    /// Where that number comes from.
    pub active_from: String,
    /// Main memory, for a training on the CPU.
    pub cpu: PlanNeed,
    /// A GPU's memory, for a training there. (It begins in main memory, with `cpu.weights` and `cpu.step`.)
    pub gpu: PlanNeed,
    /// The device that it would run on here.
    pub here: Prediction,
    /// The cards of the table.
    pub cards: Vec<Prediction>,
}

/// Bytes of memory, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlanNeed {
    /// Weights and moments.
    pub weights: u64,
    /// What a step works in, in proportion to [`TrainConfig::batch_tokens`].
    pub step: u64,
    /// The buffer of activations.
    pub buffer: u64,
    /// The model that runs meanwhile: its weights and a run.
    pub model: u64,
    /// Kept for the driver and cuBLAS, [`RESERVE`].
    pub reserve: u64,
}

impl PlanNeed {
    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.step, self.buffer, self.model, self.reserve].into_iter().fold(0, u64::saturating_add)
    }

    /// The parts under their names, the sum last.
    pub(crate) fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("weights and moments", self.weights),
            ("a step's buffers", self.step),
            ("buffer of activations", self.buffer),
            ("model", self.model),
            ("driver and cuBLAS", self.reserve),
            ("in all", self.total()),
        ]
    }
}

/// A prediction for one device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Prediction {
    /// Its name.
    pub device: String,
    /// Bytes of memory: what is free here, or what the card has.
    pub memory: Option<u64>,
    /// Whether the need fits; `None` where the system does not say how much is free.
    pub fits: Option<bool>,
    /// Bytes a second of its memory: measured on the CPU here, published for a card.
    pub bandwidth: Option<f64>,
    /// Flops a second of the CLT's products, likewise.
    pub products: Option<f64>,
    /// Each part of a step.
    pub parts: Vec<PlanPart>,
    /// Predicted seconds of a step; `None` where the training cannot run or the device's rates are not known.
    pub seconds_per_step: Option<f64>,
    /// Predicted hours of all steps.
    pub hours: Option<f64>,
    /// What else is to be known about it.
    pub notes: Vec<String>,
}

/// One part of a step, predicted.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PlanPart {
    /// Its name.
    pub name: &'static str,
    /// Floating-point operations of its products.
    pub flops: f64,
    /// Bytes that move between memory and the processor.
    pub bytes: f64,
    /// Share of the floor that it is taken to reach.
    pub share: f64,
    /// Where that share was measured; `None` for one that is expected only.
    pub measured: Option<&'static str>,
    /// Predicted seconds.
    pub seconds: f64,
}

impl Plan {
    /// The plan of a training that does not exist; nothing of it is allocated, and no weights are read.
    ///
    /// # Errors
    /// `BadConfig` naming the field, for a configuration that [`Trainer::new`] would refuse by itself.
    pub fn new(clt: &CltConfig, config: &TrainConfig, source: &PlanSource) -> Result<Self> {
        clt.validate()?;
        config.validate()?;
        super::agree(clt, config)?;
        source.validate()?;
        let wanted = match config.device {
            TrainDevice::Cpu => Ok(Device::Cpu),
            TrainDevice::Cuda => device::cuda(0),
            TrainDevice::Auto if source.is_streamed() => auto_device(),
            TrainDevice::Auto => Ok(Device::Cpu),
        };
        let mut plan = Plan::of(clt, config, source, wanted.as_ref().unwrap_or(&Device::Cpu), false);
        if let Err(error) = wanted {
            plan.here.notes.push(format!("TrainConfig::device is not here ({}); this is the CPU's prediction", error.to_string().lines().next().unwrap_or_default()));
        }
        Ok(plan)
    }

    /// Of checked configurations, for `device` here; `begun` when the training holds its memory already.
    fn of(clt: &CltConfig, config: &TrainConfig, source: &PlanSource, device: &Device, begun: bool) -> Self {
        let (half, eight) = (config.weights == Weights::Bf16, config.moments == Moments::EightBit);
        let weight = if half { 2 } else { 4 };
        let (active, from) = work::active(clt, config);
        let host = MemoryNeed::of(clt, config);
        let supply = source.on_cpu(clt);
        let cpu = PlanNeed { weights: host.weights, step: host.step, buffer: supply.buffer, model: supply.model, reserve: 0 };
        let all = room::bytes(clt, weight, eight, config.batch_tokens, room::Wanted { groups: config.matryoshka.len() + 1, aux_k: config.aux_k_for(clt.width) });
        let supply = source.on_gpu(clt, weight);
        let weights = room::bytes_of_weights(clt, weight, eight);
        let gpu = PlanNeed { weights, step: all - weights, buffer: supply.buffer, model: supply.model, reserve: RESERVE };
        let parts = work::gpu(clt, config, source.forward(clt, true, weight), &SHARES);
        let least = LAUNCH * work::launches(clt, config);
        let refused = room::check(clt, eight).err();
        let on = |card: &Card| Prediction::card(card, &gpu, config, &parts, least, refused.as_ref());
        let mut here = match device {
            Device::Cpu => Prediction::cpu(&cpu, config, work::cpu(clt, config, source.forward(clt, false, 4), [CPU_SHARES[1], CPU_MODEL_SHARE].map(|value| Share { value, measured: Some("two cores of a Zen 4 server") }))),
            _ => Prediction::gpu(device, on, &gpu, refused.as_ref()),
        };
        if begun {
            here.fits = Some(true);
        }
        if matches!(source, PlanSource::Store { .. }) {
            here.notes.push("reading activations from disk is not in the time".into());
        }
        Plan {
            steps: config.steps,
            batch_tokens: config.batch_tokens,
            tokens: (config.steps as u64).saturating_mul(config.batch_tokens as u64),
            text_tokens: source.tokens(),
            clt: words(clt),
            weights: clt.trained_parameters(),
            bytes_per_weight: weights as f64 / clt.trained_parameters() as f64,
            active,
            active_from: from.to_string(),
            cpu,
            gpu,
            here,
            cards: CARDS.iter().map(on).collect(),
        }
    }
}

impl Trainer {
    /// What this training takes and how long all of [`TrainConfig::steps`] are predicted to last, here and on the cards of
    /// [`CARDS`]. What is free is so beside what it holds already.
    ///
    /// ```
    /// use cltlab::prelude::*;
    /// let wave = |phase: f32| (0..64 * 8).map(|i| (i as f32 * phase).sin()).collect::<Vec<f32>>();
    /// let activations = Activations::from_memory(vec![wave(0.7)], vec![wave(0.3)], 8)?;
    /// let shape = CltConfig { width: 8, features: 32, activation: Activation::TopK { k: 4 }, ..CltConfig::default() };
    /// let plan = Trainer::new(&activations, &shape, &TrainConfig::default())?.plan();
    /// assert_eq!((plan.tokens, plan.here.fits), (2_000 * 1_024, Some(true)));
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn plan(&self) -> Plan {
        let source = PlanSource::of(&self.activations);
        // A trainer that was made has its device.
        let device = if self.on_gpu.is_none() { Ok(Device::Cpu) } else { super::device::wanted(&self.activations, &self.config) };
        Plan::of(&self.live.config, &self.config, &source, &device.unwrap_or(Device::Cpu), true)
    }
}

fn words(clt: &CltConfig) -> String {
    let kind = if clt.per_layer { "PLT" } else { "CLT" };
    let tied = if clt.tied == Tied::No { String::new() } else { format!(", tied {}", clt.tied.label()) };
    format!("{kind} of L {}, d {}, F {}, {}{tied}{}", clt.layers, clt.width, clt.features, clt.activation.label(), if clt.skip { ", skip connections" } else { "" })
}

impl Prediction {
    fn of(device: String, rates: [f64; 2], parts: Vec<PlanPart>, least: f64, steps: usize) -> Self {
        let seconds = parts.iter().map(|part| part.seconds).sum::<f64>();
        let mut notes = Vec::new();
        if seconds < least {
            notes.push("a step takes as long as the host needs to launch its kernels".to_string());
        }
        let seconds = seconds.max(least);
        Prediction {
            device,
            memory: None,
            fits: None,
            bandwidth: Some(rates[0]),
            products: Some(rates[1]),
            parts,
            seconds_per_step: Some(seconds),
            hours: Some(seconds * steps as f64 / 3600.0),
            notes,
        }
    }

    fn card(card: &Card, need: &PlanNeed, config: &TrainConfig, parts: &[Work], least: f64, refused: Option<&Error>) -> Self {
        let emulated = !card.bf16 && parts.iter().any(|work| work.half && work.flops > 0.0);
        let parts = parts.iter().map(|work| PlanPart::of(work, card.products(work.half), card.bandwidth)).collect();
        let mut prediction = Prediction::of(card.name.to_string(), [card.bandwidth, card.products(config.weights == Weights::Bf16)], parts, least, config.steps);
        prediction.memory = Some(card.memory);
        prediction.fits = Some(need.total() <= card.memory);
        prediction.notes.extend(card.unsupported.map(String::from));
        if emulated {
            prediction.notes.push("its tensor cores have no bf16: such products at the rate of f32, which emulation does not reach".into());
        }
        prediction.refuse(refused);
        prediction
    }

    fn cpu(need: &PlanNeed, config: &TrainConfig, parts: Vec<Work>) -> Self {
        let rates = rates::here();
        let parts = parts.iter().map(|work| PlanPart::of(work, rates.products, rates.bandwidth)).collect();
        let mut prediction = Prediction::of(format!("CPU, {} threads", rates.threads), [rates.bandwidth, rates.products], parts, 0.0, config.steps);
        prediction.memory = device::free_memory();
        prediction.fits = prediction.memory.map(|free| need.total() <= free);
        if config.weights == Weights::Bf16 {
            prediction.refuse(Some(&Error::expected(ErrorKind::Unsupported, "TrainConfig::weights on the CPU", "bf16", "f32")));
        }
        if let Some(hours) = prediction.hours {
            let [least, middle, most] = CPU_SHARES;
            prediction.notes.push(format!("between {} and {} by the shares that were measured", duration(3600.0 * hours * middle / most), duration(3600.0 * hours * middle / least)));
        }
        prediction
    }

    /// The GPU here: by the published rates of its kind, where the table has it.
    fn gpu(device: &Device, on: impl Fn(&Card) -> Prediction, need: &PlanNeed, refused: Option<&Error>) -> Self {
        let name = driver_name(device).unwrap_or_else(|| "GPU".to_string());
        let mut prediction = Card::of_driver(&name).map_or_else(
            || {
                let notes = vec!["its published rates are not in the table: no time is predicted".to_string()];
                let mut unknown = Prediction { device: String::new(), memory: None, fits: None, bandwidth: None, products: None, parts: Vec::new(), seconds_per_step: None, hours: None, notes };
                unknown.refuse(refused);
                unknown
            },
            |card| on(&card),
        );
        prediction.device = name;
        prediction.memory = device::free_on(device);
        // The driver has taken its part.
        prediction.fits = prediction.memory.map(|free| need.total() - need.reserve <= free);
        prediction
    }

    fn refuse(&mut self, refused: Option<&Error>) {
        if let Some(error) = refused {
            (self.fits, self.seconds_per_step, self.hours) = (Some(false), None, None);
            self.notes.push(error.to_string().lines().next().unwrap_or_default().to_string());
        }
    }
}

impl PlanPart {
    fn of(work: &Work, products: f64, bandwidth: f64) -> Self {
        let floor = (work.flops / products).max(work.bytes / bandwidth);
        PlanPart { name: work.name, flops: work.flops, bytes: work.bytes, share: work.share.value, measured: work.share.measured, seconds: floor / work.share.value }
    }
}

#[cfg(feature = "cuda")]
fn driver_name(device: &Device) -> Option<String> {
    let Device::Cuda(device) = device else { return None };
    device.cuda_stream().context().name().ok()
}

#[cfg(not(feature = "cuda"))]
fn driver_name(_: &Device) -> Option<String> {
    None
}

/// Seconds for people: `0.25 s`, `12.0 s`, `3.4 min`, `2.1 h`, `15 days`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6_000.0 => format!("{:.1} min", s / 60.0),
        s if s < 360_000.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// `fits`, or by how much it does not.
pub(super) fn verdict(prediction: &Prediction, need: &PlanNeed) -> String {
    match (prediction.fits, prediction.memory) {
        (Some(true), _) => "yes".into(),
        (Some(false), Some(memory)) if need.total() > memory => format!("no, {} more", format_bytes(need.total() - memory)),
        (Some(false), _) => "no".into(),
        (None, _) => "not known".into(),
    }
}
