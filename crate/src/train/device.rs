//! Where a training runs: what moves to a GPU, and what comes back from it.

use super::{broken, MemoryNeed, Moments, TrainConfig, TrainDevice, Trainer, Weights};
use crate::activations::{Activations, Position, Reader};
use crate::clt::CltConfig;
use crate::clt::live::cuda::{CudaTraining, Wanted};
use crate::clt::live::{GpuPath, LiveClt, StepReport};
use crate::device;
use crate::error::{Error, ErrorKind, Result};
use candle_core::Device;
use std::borrow::Cow;

/// The device that `config` asks for.
pub(super) fn wanted(activations: &Activations, config: &TrainConfig) -> Result<Device> {
    match config.device {
        TrainDevice::Auto => Ok(activations.device()),
        TrainDevice::Cpu => Ok(Device::Cpu),
        TrainDevice::Cuda if activations.device().is_cuda() => Ok(activations.device()),
        TrainDevice::Cuda => device::cuda(0),
    }
}

/// Begins to read the activations, where they are made if the training is there too.
pub(super) fn read(activations: &Activations, config: &TrainConfig, position: Position) -> Result<Reader> {
    if activations.stay_on(&wanted(activations, config)?) { Reader::in_place(activations, position) } else { Reader::new(activations, position) }
}

/// What of the loss a GPU needs room for.
fn asked(clt: &CltConfig, config: &TrainConfig) -> Wanted {
    Wanted { groups: config.matryoshka.len() + 1, aux_k: config.aux_k_for(clt.width) }
}

/// Refuses what does not fit, before anything is allocated.
pub(super) fn require(activations: &Activations, clt: &CltConfig, config: &TrainConfig) -> Result<()> {
    let (device, need) = (wanted(activations, config)?, MemoryNeed::of(clt, config));
    let held = activations.stay_on(&device);
    // A training on a GPU begins on the host.
    if held { need } else { need.buffered(activations) }.require(clt, config)?;
    if device.is_cuda() {
        // A filling that is made elsewhere is copied to the device whole.
        let number = if config.weights == Weights::Bf16 { 2 } else { 4 };
        let copy = 2 * number * activations.filling_tokens() * (clt.layers * clt.width) as u64;
        let buffer = if held { activations.held_bytes() } else { copy };
        CudaTraining::require(clt, &device, config.weights == Weights::Bf16, config.moments == Moments::EightBit, config.batch_tokens, asked(clt, config), buffer)?;
    }
    Ok(())
}

/// Moves `live` to where it is trained.
pub(super) fn place(live: LiveClt, activations: &Activations, config: &TrainConfig) -> Result<(LiveClt, Option<CudaTraining>)> {
    let device = wanted(activations, config)?;
    if !device.is_cuda() {
        if config.weights == Weights::Bf16 {
            return Err(Error::expected(ErrorKind::Unsupported, "TrainConfig::weights on the CPU", "bf16", "f32").help("set TrainConfig::device to cuda, or keep f32; TrainConfig::moments eight_bit halves the memory"));
        }
        return Ok((live, None));
    }
    let (shell, asked) = (live.shell(), asked(&live.config, config));
    let gpu = CudaTraining::begin(live, &device, config.weights == Weights::Bf16, asked, config.batch_tokens, config.betas, config.eps)?;
    Ok((shell, Some(gpu)))
}

impl Trainer {
    /// The CLT in training with all its arrays, wherever it is.
    pub(super) fn host(&self) -> Result<Cow<'_, LiveClt>> {
        self.on_gpu.as_ref().map_or(Ok(Cow::Borrowed(&self.live)), |gpu| gpu.download().map(Cow::Owned))
    }

    /// `reports` and the figures that are still on the device.
    pub(super) fn flushed(&mut self, mut reports: Vec<StepReport>) -> Result<Vec<StepReport>> {
        let step = self.steps();
        if let Some(gpu) = &mut self.on_gpu {
            let more = gpu.flush();
            self.settle_count();
            reports.extend(more.map_err(|error| broken(error, step))?);
        }
        Ok(reports)
    }

    /// After figures were read: a step that broke was none, nor were those after it.
    pub(super) fn settle_count(&mut self) {
        let Some(steps) = self.on_gpu.as_ref().map(CudaTraining::steps) else { return };
        self.tokens -= self.live.steps.saturating_sub(steps) * self.config.batch_tokens as u64;
        self.live.steps = steps;
    }

    /// Puts everything on record that is still on the device.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        while self.on_gpu.is_some() {
            let reports = self.flushed(Vec::new())?;
            if reports.is_empty() {
                break;
            }
            self.tell(reports)?;
        }
        Ok(())
    }

    /// Whether it is trained on a GPU, and what of the device's memory is in use.
    ///
    /// # Errors
    /// A fault of the device.
    #[doc(hidden)]
    pub fn gpu_bytes(&self) -> Result<Option<u64>> {
        self.on_gpu.as_ref().map(CudaTraining::used).transpose()
    }

    /// On a GPU: lets `path` decide from the next step on how codes are multiplied, to measure one way against another (`cltlab bench
    /// --device cuda` does). On the CPU it changes nothing.
    ///
    /// ```no_run
    /// # use cltlab::prelude::*;
    /// use cltlab::train::GpuPath;
    /// # fn main() -> Result<()> {
    /// let activations = Activations::load("activations.safetensors", &Default::default())?;
    /// let mut trainer = Trainer::new(&activations, &CltConfig { layers: 12, width: 768, features: 9216, ..CltConfig::default() }, &TrainConfig::default())?;
    /// trainer.set_gpu_path(GpuPath::Lists);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(hidden)]
    pub fn set_gpu_path(&mut self, path: GpuPath) {
        if let Some(gpu) = &mut self.on_gpu {
            gpu.take(path);
        }
    }

    /// Bytes a weight of encoders and decoders takes while it is trained, moments included.
    #[doc(hidden)]
    pub fn bytes_per_weight(&self) -> f64 {
        let moments = if self.config.moments == Moments::EightBit { 2.0 + 1.0 / 32.0 } else { 8.0 };
        moments + if self.config.weights == Weights::Bf16 { 2.0 } else { 4.0 }
    }
}
