//! A training's side of the device: its data, its steps, and when figures are read.

use super::{check, CudaClt, DeviceBatch, Wanted};
use crate::activations::{Reader, Scale};
use crate::clt::kernels::cuda::{Buffer, Gpu, Numbers, Stored};
use crate::clt::live::{LiveClt, StepOptions, StepReport};
use crate::device::format_bytes;
use crate::error::{Error, ErrorKind, Result};
use candle_core::Device;
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// How long figures may stay on the device.
const PATIENCE: Duration = Duration::from_millis(200);

/// The filling of activations that is in use, normalised, on the device: batches are picked there.
struct Feed {
    inputs: Numbers,
    targets: Numbers,
    filling: Option<u64>,
    rows: Buffer<u32>,
}

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
    /// Moves `live` to `device`. Weights in bf16 where `half` says so, else in f32.
    ///
    /// # Errors
    /// `Unsupported` for what is trained on the CPU only, `OutOfMemory` by prediction, before anything is
    /// allocated, with what would fit.
    pub fn begin(mut live: LiveClt, device: &Device, half: bool, wanted: Wanted, tokens: usize, betas: (f64, f64), eps: f64) -> Result<Self> {
        let eight = live.has_small_moments();
        check(&live.config, wanted, eight)?;
        let gpu = Gpu::of(device, false)?;
        let stored = if half { Stored::Bf16 } else { Stored::F32 };
        let (need, (free, _)) = (CudaClt::bytes(&live.config, stored, eight, tokens), gpu.memory()?);
        if need > free {
            return Err(Error::expected(ErrorKind::OutOfMemory, "training on CUDA", format_args!("a need of {}", format_bytes(need)), format_args!("at most the {} that are free on the device", format_bytes(free)))
                .help("take TrainConfig::weights bf16 and moments eight_bit (4 bytes a weight instead of 12), fewer features, or fewer tokens in a step"));
        }
        live.settle_all(betas, eps);
        let feed = Feed { inputs: Numbers::zeros(&gpu, stored, 0)?, targets: Numbers::zeros(&gpu, stored, 0)?, filling: None, rows: gpu.zeros(0)? };
        Ok(CudaTraining { clt: CudaClt::upload(&live, &gpu, stored)?, feed, batch: DeviceBatch::new(&gpu, stored)?, read: Instant::now(), fault: None })
    }

    /// The next batch, picked on the device; a filling is copied there once.
    pub fn next(&mut self, reader: &mut Reader, tokens: usize, scale: &Scale) -> Result<()> {
        let (l, d) = (self.clt.config.layers, self.clt.config.width);
        let (feed, batch, gpu, stored) = (&mut self.feed, &mut self.batch, self.clt.gpu(), self.clt.stored());
        batch.inputs.fit(l * tokens * d)?;
        batch.targets.fit(l * tokens * d)?;
        batch.tokens = tokens;
        reader.visit(tokens, |done, part| {
            let held = part.buffer.tokens;
            if feed.filling != Some(part.filling) {
                feed.filling = None;
                let scales = |input: bool| scale.layers.iter().map(move |layer| if input { &layer.input } else { &layer.target });
                for (into, from, input) in [(&mut feed.inputs, &part.buffer.inputs, true), (&mut feed.targets, &part.buffer.targets, false)] {
                    into.fit(l * held * d)?;
                    let mut normal = Vec::new();
                    for (layer, (values, scale)) in from.iter().zip(scales(input)).enumerate() {
                        normal.resize(held * d, 0f32);
                        normal.par_chunks_exact_mut(d).zip(values.par_chunks_exact(d)).for_each(|(to, from)| scale.apply(from, to));
                        into.write_at(layer * held * d, &normal)?;
                    }
                }
                feed.filling = Some(part.filling);
            }
            feed.rows.fit(part.rows.len())?;
            feed.rows.write(part.rows)?;
            let (rows, held, all, first, width) = (feed.rows.at(), held as u32, tokens as u32, done as u32, d as u32);
            for (from, into) in [(&feed.inputs, &batch.inputs), (&feed.targets, &batch.targets)] {
                let name = format!("pick_rows_{}", stored.name());
                // SAFETY: rows are below those held, and `done` and they together at most `tokens`.
                unsafe { gpu.launch(&name, (part.rows.len(), l), d.div_ceil(8).next_multiple_of(32), &[&from.at(), &rows, &held, &all, &first, &width, &into.at()])? };
            }
            Ok(())
        })
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

    /// Bytes of the device that are in use, by everyone.
    pub fn used(&self) -> Result<u64> {
        let (free, total) = self.clt.gpu().memory()?;
        Ok(total - free)
    }
}
