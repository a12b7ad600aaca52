//! A training's side of the device: its data, its steps, and when figures are read.

use super::feed::Feed;
use super::{check, CudaClt, DeviceBatch, Wanted};
use crate::activations::{Reader, Scale};
use crate::clt::kernels::cuda::{Gpu, Stored};
use crate::clt::CltConfig;
use crate::clt::live::{GpuPath, LiveClt, StepOptions, StepReport};
use crate::device::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use candle_core::Device;
use std::time::{Duration, Instant};

/// How long figures may stay on the device.
const PATIENCE: Duration = Duration::from_millis(200);

/// A CLT in training on a GPU, with its data.
pub(crate) struct CudaTraining {
    clt: CudaClt,
    feed: Feed,
    batch: DeviceBatch,
    read: Instant,
    /// What broke; told once the figures from before it were.
    fault: Option<Error>,
}

impl CudaTraining {
    /// Refuses a training that does not fit on `device` with `buffer` bytes for activations, with what would.
    pub fn require(config: &CltConfig, device: &Device, half: bool, eight: bool, tokens: usize, wanted: Wanted, buffer: u64) -> Result<()> {
        let stored = if half { Stored::Bf16 } else { Stored::F32 };
        let (need, (free, _)) = (CudaClt::bytes(config, stored, eight, tokens, wanted), Gpu::of(device)?.memory()?);
        if need + buffer <= free {
            return Ok(());
        }
        let remedy = if buffer > need {
            "lower StreamConfig::buffer_tokens or batch, or set StreamConfig::ahead to false"
        } else {
            "take TrainConfig::weights bf16 and moments eight_bit (4 bytes a weight instead of 12), fewer features, or fewer tokens in a step"
        };
        let got = format!("a need of {} and {} for activations", format_bytes(need), format_bytes(buffer));
        Err(Error::expected(ErrorKind::OutOfMemory, "training on CUDA", got, format_args!("at most the {} that are free on the device", format_bytes(free))).help(remedy))
    }

    /// Moves `live` to `device`. Weights in bf16 where `half` says so, else in f32.
    ///
    /// # Errors
    /// `Unsupported` for what is trained on the CPU only, `OutOfMemory` by prediction, before anything is
    /// allocated, with what would fit.
    pub fn begin(mut live: LiveClt, device: &Device, half: bool, wanted: Wanted, tokens: usize, betas: (f64, f64), eps: f64) -> Result<Self> {
        let eight = live.has_small_moments();
        check(&live.config, eight)?;
        let gpu = Gpu::of(device)?;
        let stored = if half { Stored::Bf16 } else { Stored::F32 };
        // Activations may lie there already.
        Self::require(&live.config, device, half, eight, tokens, wanted, 0)?;
        live.settle_all(betas, eps);
        let feed = Feed::new(&gpu, stored, &live.config)?;
        Ok(CudaTraining { clt: CudaClt::upload(&live, &gpu, stored)?, feed, batch: DeviceBatch::new(&gpu, stored)?, read: Instant::now(), fault: None })
    }

    /// The next batch, picked on the device.
    pub fn next(&mut self, reader: &mut Reader, tokens: usize, scale: &Scale) -> Result<()> {
        self.feed.pick(reader, tokens, scale, &mut self.batch)
    }

    /// One step on the batch that [`CudaTraining::next`] made; the figures that were read meanwhile, oldest first.
    pub fn step(&mut self, options: &StepOptions) -> Result<Vec<StepReport>> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        self.clt.step(&self.batch, options)?;
        if self.clt.is_full() || self.read.elapsed() > PATIENCE {
            return self.flush();
        }
        Ok(Vec::new())
    }

    /// The figures of all steps so far that were not given yet; waits for them.
    ///
    /// # Errors
    /// `NotFinite` naming the step, when nothing before it is left to tell: the weights are those before that step.
    pub fn flush(&mut self) -> Result<Vec<StepReport>> {
        let (reports, broken) = self.clt.reports()?;
        self.read = Instant::now();
        let fault = broken.map(|step| Error::new(ErrorKind::NotFinite, format!("step {step}: loss or gradient: NaN or infinity")));
        match (reports.is_empty(), fault.or_else(|| self.fault.take())) {
            (true, Some(fault)) => Err(fault),
            (_, fault) => {
                self.fault = fault;
                Ok(reports)
            }
        }
    }

    /// Adam steps taken.
    pub fn steps(&self) -> u64 {
        self.clt.steps
    }

    /// The CLT as it is now, on the host.
    pub fn download(&self) -> Result<LiveClt> {
        self.clt.download()
    }

    /// Lets `path` decide between dense products and lists.
    pub fn take(&mut self, path: GpuPath) {
        self.clt.take(path);
    }

    /// Bytes that are taken from the device, by everyone.
    pub fn used(&self) -> Result<u64> {
        self.clt.gpu().taken()
    }
}
