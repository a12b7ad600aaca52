//! Calibration: from a k to thresholds.
//!
//! In: a CLT and activations. Out: the same weights as a JumpReLU, which looks at each token and layer
//! by itself and has the L0 that was asked for on those activations.
//!
//! *BatchTopK* (Bussmann, Leask and Nanda 2024) takes the mean over batches of the least value kept;
//! [`Trainer::clt`](crate::train::Trainer::clt) does so from the last batches of the training. That mean
//! drifts from the weights it was taken with, and crosslayer-coding therefore corrects it afterwards
//! by searching a factor for each layer until L0 is right. Here the same end is reached at once: a
//! threshold is the quantile of the pre-activations that leaves the wanted number above it. Cost: one
//! encoding of the tokens, and a pass over the pre-activations.

use crate::activations::{Activations, Batch, Position, Reader, Scale};
use crate::clt::activation::CutOff;
use crate::clt::{Activation, Clt, CltConfig};
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor};

/// Over what a threshold is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scope {
    /// One threshold a layer: every layer has the L0.
    #[default]
    Layer,
    /// One threshold for all layers: they have it on average.
    AllLayers,
}

/// What [`Clt::calibrate`] aims at.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// Active features per token and layer, on average. Default `None`: the activation's k.
    pub l0: Option<f64>,
    /// Over what a threshold is shared. Default `None`: all layers where the activation ranks them
    /// together, else each layer has its own.
    pub scope: Option<Scope>,
    /// Tokens that are looked at. Default 8,192.
    pub tokens: usize,
}

impl Default for Calibration {
    fn default() -> Self {
        Calibration { l0: None, scope: None, tokens: 8_192 }
    }
}

impl Clt {
    /// The same weights with thresholds such that L0 on the first `tokens` tokens of `activations` is the
    /// one asked for (to ties), as a JumpReLU. The weights are shared, not copied.
    ///
    /// # Errors
    /// `BadConfig` naming the field; `Mismatch` when the activations are of another shape;
    /// `BadInput` when fewer pre-activations than asked for are above 0; those of the model.
    ///
    /// ```no_run
    /// use cltlab::prelude::*;
    /// use cltlab::clt::Calibration;
    /// let activations = Activations::load("activations.safetensors", &Default::default())?;
    /// let clt = Clt::load("runs/top-k", &CltLoadConfig::on(&Device::Cpu))?;
    /// let jump = clt.calibrate(&activations, &Calibration { l0: Some(24.0), ..Calibration::default() })?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn calibrate(&self, activations: &Activations, config: &Calibration) -> Result<Clt> {
        let (l0, scope) = self.wanted(config)?;
        let (layers, d) = (self.layers(), self.config().width);
        for (field, got, expected) in [("layers", activations.layers(), layers), ("width", activations.width(), d)] {
            if got != expected {
                return Err(Error::expected(ErrorKind::Mismatch, format_args!("Clt::calibrate: activations: {field}"), got, expected).help("use the activations of the model that the CLT is for"));
            }
        }
        let rows = 1024.min(config.tokens);
        let mut reader = Reader::new(activations, Position::default())?;
        let mut batch = Batch::default();
        let pools = if scope == Scope::AllLayers { 1 } else { layers };
        let wanted = ((l0 * (config.tokens * layers / pools) as f64).round() as usize).max(1);
        // Twice as many are held before the least of them are dropped.
        require_memory("Calibration::tokens", (wanted as u64).saturating_mul(8 * pools as u64), "look at fewer tokens, or ask for a lower l0")?;
        let mut largest: Vec<Largest> = (0..pools).map(|_| Largest { wanted, ..Largest::default() }).collect();
        let mut done = 0;
        while done < config.tokens {
            let count = rows.min(config.tokens - done);
            reader.next(count, &Scale::none(layers, d), &mut batch)?;
            for (l, values) in batch.inputs.iter().enumerate() {
                let x = Tensor::from_slice(values, (count, d), &Device::Cpu)?.to_device(self.device())?;
                self.each_block(l, &x, |h| largest[l % pools].see(h))?;
            }
            done += count;
        }
        let found = largest.iter_mut().enumerate().map(|(pool, largest)| largest.threshold(pool, pools, config.tokens)).collect::<Result<Vec<f32>>>()?;
        let mean = f64::from(found.iter().sum::<f32>()) / pools as f64;
        let activation = Activation::JumpRelu { threshold: mean, bandwidth: mean };
        self.with_thresholds(CltConfig { activation, ..self.config().clone() }, (0..layers).map(|l| found[l % pools]))
    }

    fn wanted(&self, config: &Calibration) -> Result<(f64, Scope)> {
        let activation = &self.config().activation;
        let bad = |field: &str, got: String, expected: String| Err(Error::expected(ErrorKind::BadConfig, format_args!("Calibration::{field}"), got, expected));
        let k = match *activation {
            Activation::TopK { k } | Activation::GlobalTopK { k } => Some(k as f64),
            _ => None,
        };
        let Some(l0) = config.l0.or(k) else {
            return bad("l0", "none".into(), format!("a number, because {} has no k", activation.label()));
        };
        if !(l0 > 0.0 && l0 <= self.features() as f64) {
            return bad("l0", l0.to_string(), format!("above 0, at most {}, the features per layer", self.features()));
        }
        if config.tokens == 0 {
            return bad("tokens", "0".into(), "at least 1".into());
        }
        Error::at_most(ErrorKind::BadConfig, "Calibration::tokens", config.tokens, 1 << 30)?;
        let usual = if activation.ranks_layers() { Scope::AllLayers } else { Scope::Layer };
        Ok((l0, config.scope.unwrap_or(usual)))
    }
}

/// The largest of the values seen so far.
#[derive(Default)]
struct Largest {
    wanted: usize,
    values: Vec<f32>,
    /// What a value must exceed to matter.
    floor: f32,
}

impl Largest {
    fn see(&mut self, values: &[f32]) {
        for &value in values {
            if value > self.floor {
                self.values.push(value);
            }
        }
        // One more than wanted is kept: the threshold lies between the last two.
        let keep = self.wanted + 1;
        if self.values.len() > 2 * keep {
            self.floor = CutOff::of(&mut self.values, keep).value;
            self.values.truncate(keep);
        }
    }

    /// Halfway between the least that stays and the largest that goes.
    fn threshold(&mut self, pool: usize, pools: usize, tokens: usize) -> Result<f32> {
        if self.values.len() < self.wanted {
            let place = if pools == 1 { "all layers".to_string() } else { format!("layer {pool}") };
            let per_token = |count: usize| format!("{:.2} a token", count as f64 / tokens as f64);
            return Err(Error::expected(ErrorKind::BadInput, format_args!("Clt::calibrate: pre-activations above 0 in {place}"), per_token(self.values.len()), format_args!("at least {}", per_token(self.wanted)))
                .help("ask for a lower Calibration::l0, or share one threshold: Scope::AllLayers"));
        }
        let least = CutOff::of(&mut self.values, self.wanted).value;
        let next = self.values[self.wanted..].iter().copied().fold(0.0, f32::max);
        // Two neighbouring numbers have no middle: the upper one would drop what is to stay.
        let middle = 0.5 * (least + next);
        Ok(if middle < least { middle } else { next }.max(f32::MIN_POSITIVE))
    }
}
