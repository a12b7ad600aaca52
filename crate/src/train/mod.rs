//! Training: from activations to a CLT.
//!
//! In: [`Activations`], a [`CltConfig`], a [`TrainConfig`]. Out: a [`Clt`] and its [`History`].
//! The step itself is `clt::live`; here are the loop, the schedule, checkpoints and the stop flag.
//! Source of loss and defaults: *Circuit Tracing* (Anthropic 2025). Cost: per token 2·L·F·d
//! multiply-adds for the encoders, the rest in proportion to the active features; 12 bytes a weight.

mod cards;
mod checkpoint;
mod checkpoints;
mod config;
mod device;
mod head;
mod held_out;
mod history;
mod lock;
mod memory;
mod metrics;
mod plan;
mod plan_text;
mod preset;
mod rates;
mod start;
mod supply;
mod target;
mod work;

#[doc(hidden)]
pub use crate::clt::live::GpuPath;
pub use cards::Card;
#[doc(hidden)]
pub use cards::{CARDS, RESERVE};
pub use config::{Loss, Moments, TrainConfig, TrainDevice, Weights};
pub use history::History;
pub use memory::MemoryNeed;
pub use plan::{Plan, PlanNeed, PlanPart, Prediction};
pub use preset::Preset;
pub use supply::PlanSource;

use crate::activations::{Activations, Batch, Position, Reader, Scale};
use crate::clt::live::cuda::CudaTraining;
use crate::clt::live::{LiveClt, Scratch, StepOptions, StepReport};
use crate::clt::{Clt, CltConfig, Tied};
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::files::lock::FolderLock;
use crate::progress::{emit, stop_requested, Event, TrainSample};
use std::time::Instant;

/// Trains one CLT. A notebook calls [`run`](Trainer::run), looks, and calls it again to go on.
///
/// ```
/// use cltlab::activations::Activations;
/// use cltlab::clt::{Activation, CltConfig};
/// use cltlab::train::{TrainConfig, Trainer};
/// let wave = |phase: f32| (0..64 * 8).map(|i| (i as f32 * phase).sin()).collect::<Vec<f32>>();
/// let activations = Activations::from_memory(vec![wave(0.7)], vec![wave(0.3)], 8)?;
/// let shape = CltConfig { layers: 1, width: 8, features: 32, activation: Activation::TopK { k: 4 }, ..CltConfig::default() };
/// let config = TrainConfig { steps: 20, batch_tokens: 16, ..TrainConfig::default() };
/// let mut trainer = Trainer::new(&activations, &shape, &config)?;
/// let history = trainer.run()?;
/// assert_eq!(history.steps(), 20);
/// let clt = trainer.clt()?;
/// # Ok::<(), cltlab::Error>(())
/// ```
pub struct Trainer {
    /// Without its layers while they are on a GPU.
    live: LiveClt,
    on_gpu: Option<CudaTraining>,
    config: TrainConfig,
    activations: Activations,
    reader: Reader,
    scale: Scale,
    scratch: Scratch,
    batch: Batch,
    history: History,
    tokens: u64,
    /// Steps that `run` aims at.
    target: usize,
    /// Once the L0 aimed at was reached.
    reached: Option<target::Reached>,
    /// Smoothed seconds a step.
    pace: f64,
    phases: [f64; 4],
    /// Open once the first step of this trainer is recorded.
    metrics: Option<metrics::Metrics>,
    /// Looks at the CLT every [`TrainConfig::eval_every`] steps.
    examiner: Option<held_out::Examiner>,
    /// Of the folder of checkpoints, where it is held for longer than a run.
    lock: Option<FolderLock>,
}

impl Trainer {
    /// Prepares a training: checks the configurations and the memory that is needed, fills the
    /// buffer of activations, measures the normalisation and draws the first weights.
    ///
    /// # Errors
    /// `BadConfig` naming the field, `Mismatch` when `clt` does not fit the activations,
    /// `OutOfMemory` by prediction ([`MemoryNeed`]), `NotFinite` for activations with NaN, errors of the model.
    pub fn new(activations: &Activations, clt: &CltConfig, config: &TrainConfig) -> Result<Self> {
        check(activations, clt, config)?;
        let reader = device::read(activations, config, Position::default())?;
        let scale = start::scale(&reader, activations, config)?;
        let live = LiveClt::new(clt, config.moments == Moments::EightBit, config.seed)?;
        Trainer::assemble(live, config.clone(), activations, reader, scale)
    }

    fn assemble(live: LiveClt, config: TrainConfig, activations: &Activations, reader: Reader, scale: Scale) -> Result<Self> {
        let target = config.steps;
        let (live, on_gpu) = device::place(live, activations, &config)?;
        Ok(Trainer {
            live,
            on_gpu,
            config,
            activations: activations.clone(),
            reader,
            scale,
            scratch: Scratch::default(),
            batch: Batch::default(),
            history: History::default(),
            tokens: 0,
            target,
            reached: None,
            pace: 0.0,
            phases: [0.0; 4],
            metrics: None,
            examiner: None,
            lock: None,
        })
    }

    /// Trains to the end of [`TrainConfig::steps`]; called again after that, for as many steps
    /// more (the rate then warms up no more, but falls again at the new end). Emits
    /// [`Event::Train`] each step. A stop request ends the run after the step in progress.
    ///
    /// # Errors
    /// `NotFinite` naming step and layer: the weights are then those before that step, and `clt`,
    /// `save` and `run` go on working. Errors of the model and of writing checkpoints; `BadInput` when another training
    /// writes into [`TrainConfig::checkpoint_dir`] at this time, in this process or another.
    pub fn run(&mut self) -> Result<History> {
        self.go(usize::MAX)
    }

    /// As [`run`](Trainer::run), for at most `steps` steps: the schedule stays that of the whole.
    ///
    /// # Errors
    /// As [`run`](Trainer::run).
    pub fn run_steps(&mut self, steps: usize) -> Result<History> {
        self.go(steps)
    }

    fn go(&mut self, most: usize) -> Result<History> {
        if self.steps() >= self.target {
            self.target = self.steps() + self.config.steps;
        }
        self.history.stopped = false;
        self.can_examine()?;
        let every = self.config.checkpoint_every;
        let checkpoints = self.config.checkpoint_dir.clone().filter(|_| every > 0);
        let _lock = checkpoints.as_ref().map(|folder| self.lock(folder)).transpose()?;
        let end = self.steps().saturating_add(most);
        emit(Event::TrainBegin(self.head()));
        // The target moves when an L0 is reached.
        while self.steps() < end.min(self.target) {
            if stop_requested() {
                self.history.stopped = true;
                break;
            }
            if let Err(error) = self.step().and_then(|reports| self.tell(reports)) {
                if error.kind() == ErrorKind::Interrupted {
                    self.history.stopped = true;
                    break;
                }
                self.end();
                return Err(error);
            }
            if let Some(folder) = checkpoints.as_ref().filter(|_| self.steps() % every == 0) {
                self.write(folder)?;
            }
        }
        if let Err(error) = self.catch_up() {
            self.end();
            return Err(error);
        }
        self.end();
        Ok(self.history.clone())
    }

    fn end(&self) {
        if let Some(last) = self.history.last() {
            emit(Event::TrainEnd(last.clone()));
        }
    }

    /// One optimiser step; the figures that are there, this step's last: on a GPU they come some steps at a time.
    fn step(&mut self) -> Result<Vec<StepReport>> {
        let begin = Instant::now();
        let step = self.steps() + 1;
        match &mut self.on_gpu {
            Some(gpu) => gpu.next(&mut self.reader, self.config.batch_tokens, &self.scale)?,
            None => self.reader.next(self.config.batch_tokens, &self.scale, &mut self.batch)?,
        }
        let config = &self.config;
        let options = StepOptions {
            step: step as u64,
            lr: config.lr_at(step, self.target),
            betas: config.betas,
            eps: config.eps,
            weight_decay: config.weight_decay,
            clip: config.clip,
            // Rows that layers share are used by one or the other.
            lazy: config.lazy && config.weight_decay == 0.0 && self.live.config.tied != Tied::PerTarget,
            fvu: config.loss == Loss::Fvu,
            groups: config.matryoshka.iter().copied().chain([self.live.config.features]).collect(),
            sparsity: config.sparsity_for(&self.live.config.activation) * self.share_at(step),
            tanh_scale: config.tanh_scale,
            dead: config.dead,
            dead_window: config.dead_window,
            aux: config.aux,
            aux_k: config.aux_k_for(self.live.config.width),
        };
        let done = match &mut self.on_gpu {
            Some(gpu) => gpu.step(&options),
            None => self.live.step(&self.batch, &mut self.scratch, &options).map(|report| vec![report]),
        };
        if done.is_ok() || self.on_gpu.is_some() {
            self.live.steps = step as u64;
            self.tokens += self.config.batch_tokens as u64;
            self.settle_count();
        }
        let reports = done.map_err(|error| broken(error, step))?;
        let seconds = begin.elapsed().as_secs_f64();
        self.pace = if self.pace == 0.0 { seconds } else { 0.95 * self.pace + 0.05 * seconds };
        // An evaluation, a checkpoint and the last step want all figures.
        let due = |every: usize| every > 0 && step % every == 0;
        if self.on_gpu.is_some() && (due(self.config.eval_every) || due(self.config.checkpoint_every)) {
            return self.flushed(reports);
        }
        Ok(reports)
    }

    /// Puts figures on record, those of the last step last.
    fn tell(&mut self, reports: Vec<StepReport>) -> Result<()> {
        let (count, last) = (reports.len(), self.steps());
        for (index, report) in reports.iter().enumerate() {
            let sample = self.sample(last + index + 1 - count, report);
            self.phases.iter_mut().zip(report.seconds).for_each(|(total, seconds)| *total += seconds);
            self.history.samples.push(sample.clone());
            self.look_at_l0();
            emit(Event::Train(sample));
            if index + 1 == count {
                self.examine()?;
            }
            self.record()?;
        }
        Ok(())
    }

    fn sample(&self, step: usize, report: &StepReport) -> TrainSample {
        let layers = report.layers.len() as f64;
        let fvu = |&(error, variance): &(f64, f64)| if variance > 0.0 { error / variance } else { 0.0 };
        TrainSample {
            step,
            steps: self.target,
            tokens: self.tokens - ((self.steps() - step) * self.config.batch_tokens) as u64,
            reconstruction: report.layers.iter().map(|(error, _)| error).sum(),
            sparsity: report.sparsity,
            dead_term: report.dead_term,
            aux: report.aux,
            l0: report.l0.iter().sum::<f64>() / layers,
            fvu: report.layers.iter().map(fvu).sum::<f64>() / layers,
            dead: report.dead as f64 / (layers * self.live.config.features as f64),
            lr: self.config.lr_at(step, self.target),
            grad_norm: report.grad_norm,
            tokens_per_second: self.config.batch_tokens as f64 / self.pace,
            seconds_left: self.pace * (self.target - step) as f64,
        }
    }

    /// Optimiser steps done.
    pub fn steps(&self) -> usize {
        self.live.steps as usize
    }

    /// Seconds spent in encoding, decoding, backward and update since this trainer was made.
    #[doc(hidden)]
    pub fn phases(&self) -> [f64; 4] {
        self.phases
    }

    /// How it is trained.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// What is trained.
    #[doc(hidden)]
    pub fn clt_config(&self) -> &CltConfig {
        &self.live.config
    }

    /// The course so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Where the activations come from.
    pub(crate) fn activations(&self) -> &Activations {
        &self.activations
    }

    /// The CLT as it is now, in the model's own units: normalisation is folded into the weights,
    /// and its reconstruction equals the one in training to 1e-5 relative. BatchTopK becomes a
    /// JumpReLU whose threshold, one a layer (one for all when they are ranked together), is the running
    /// mean over batches of the least value kept; [`Clt::calibrate`] sets it again where L0 should be
    /// met exactly. It lies where the activations' model runs. The trainer keeps its state and can go on.
    ///
    /// # Errors
    /// `OutOfMemory` when the copy of the weights does not fit.
    pub fn clt(&self) -> Result<Clt> {
        require_memory("a copy of the CLT's weights", 4 * self.live.config.parameters(), "save a checkpoint and load it in a process of its own")?;
        self.host()?.fold(&self.scale, self.config.eps)?.to_device(&self.activations.device())
    }
}

/// A step that could not be made.
fn broken(error: Error, step: usize) -> Error {
    error.context(format_args!("training step {step}")).help("the weights are those before this step; lower TrainConfig::lr or look at the data")
}

/// What must hold before anything is allocated.
fn check(activations: &Activations, clt: &CltConfig, config: &TrainConfig) -> Result<()> {
    clt.validate()?;
    config.validate()?;
    for (field, got, expected) in [("layers", clt.layers, activations.layers()), ("width", clt.width, activations.width())] {
        if got != expected {
            return Err(Error::expected(ErrorKind::Mismatch, format_args!("CltConfig::{field}"), got, format_args!("{expected}, as the activations have"))
                .help("a CLT has the layers and the width of the model that it is trained for; how many features it has is CltConfig::features"));
        }
    }
    if !activations.model_fingerprint().is_empty() {
        if clt.input != activations.input() {
            return Err(Error::expected(ErrorKind::Mismatch, "CltConfig::input", clt.input.hook(), format_args!("{}, as the activations have", activations.input().hook())));
        }
        if clt.output != activations.output() {
            return Err(Error::expected(ErrorKind::Mismatch, "CltConfig::output", clt.output.hook(), format_args!("{}, as the activations have", activations.output().hook()))
                .help("a CLT writes where its model was loaded to have its outputs: LoadConfig::output, [model] output"));
        }
        if clt.model_fingerprint != activations.model_fingerprint() {
            return Err(Error::expected(ErrorKind::Mismatch, "CltConfig::model_fingerprint", &clt.model_fingerprint, activations.model_fingerprint())
                .help("the activations come from another model"));
        }
    }
    agree(clt, config)?;
    device::require(activations, clt, config)
}

/// What must hold of the two configurations together.
fn agree(clt: &CltConfig, config: &TrainConfig) -> Result<()> {
    target::check(clt, config)?;
    if config.aux > 0.0 && !clt.activation.is_ranked() {
        return Err(Error::expected(ErrorKind::BadConfig, "TrainConfig::aux", config.aux, format_args!("0, because {} has no k", clt.activation.label()))
            .help("the dead features of ReLU and JumpReLU are revived by TrainConfig::dead"));
    }
    if config.aux > 0.0 && clt.tied == Tied::PerTarget {
        return Err(Error::expected(ErrorKind::Unsupported, "TrainConfig::aux", config.aux, "0, because CltConfig::tied is per_target"));
    }
    if let Some(&last) = config.matryoshka.last().filter(|&&last| last >= clt.features) {
        return Err(Error::expected(ErrorKind::BadConfig, "TrainConfig::matryoshka", last, format_args!("less than {}, the features per layer", clt.features)));
    }
    Ok(())
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trainer: step {} of {}, {} tokens", self.steps(), self.target, self.tokens)
    }
}
