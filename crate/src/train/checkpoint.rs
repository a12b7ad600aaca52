//! Checkpoints: all that a training needs to go on as if it had not stopped.
//!
//! One safetensors file a checkpoint, `step-00000100.safetensors`, written whole or not at all, with a
//! checksum over every byte: weights, moments, counters, normalisation and history as tensors; the
//! configurations and the place in the data as JSON in the header. The random order of the data follows from seed and
//! place, and so does the rounding of compact moments from the step, so there is no generator to save.

use super::checkpoints::{self, name_of};
use super::target::Reached;
use super::{check, device, History, Moments, TrainConfig, Trainer};
use crate::activations::{Activations, Affine, Course, LayerScale, Position, Scale};
use crate::clt::live::{Cut, LiveClt};
use crate::clt::CltConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::files::sealed::{self, Array, ArrayMut, Entry, Sealed};
use crate::progress::Task;
use std::path::Path;

const NOTE: &str = "cltlab_training";
const HISTORY: &str = "history";
const VERSION: u32 = 2;

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    clt: CltConfig,
    train: TrainConfig,
    steps: u64,
    target: usize,
    tokens: u64,
    pace: f64,
    #[serde(default)]
    reached: Option<Reached>,
    position: Position,
    cuts: Vec<Cut>,
    densities: Vec<f32>,
    #[serde(default)]
    course: Course,
}

impl Trainer {
    /// Writes a checkpoint into `folder`, then removes all but the newest there
    /// ([`TrainConfig::checkpoint_keep`]). Those of later steps, which a training that went on from an
    /// earlier one leaves behind, are kept under the ending `.aside`.
    ///
    /// # Errors
    /// `DiskFull` or `Io` with the path, `BadInput` when another training writes there now; earlier checkpoints are untouched then.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let _lock = self.lock(folder)?;
        self.write(folder)
    }

    /// As [`Trainer::save`], into a folder that is locked for this training.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        files::create_folder(folder)?;
        let live = self.host()?;
        let layers = &live.layers;
        let state = State {
            version: VERSION,
            clt: live.config.clone(),
            train: self.config.clone(),
            steps: live.steps,
            target: self.target,
            tokens: self.tokens,
            pace: self.pace,
            reached: self.reached,
            position: self.reader.position(),
            cuts: layers.iter().map(|layer| layer.cut).collect(),
            densities: layers.iter().map(|layer| layer.density).collect(),
            course: self.activations.course(),
        };
        let fault = |error: serde_json::Error| Error::wrap(ErrorKind::NotFinite, "checkpoint", error);
        let note = serde_json::to_string(&state).map_err(fault)?;
        let history = serde_json::to_vec(&self.history).map_err(fault)?;
        let scales: Vec<Vec<f32>> = self.scale.layers.iter().flat_map(|layer| [packed(&layer.input), packed(&layer.target)]).collect();
        let mut arrays = live.arrays();
        arrays.extend(layers.iter().enumerate().map(|(l, layer)| (format!("{l}.idle"), Array::U32(&layer.idle))));
        arrays.extend(scales.iter().enumerate().map(|(at, scale)| (scale_name(at / 2, at % 2), Array::F32(scale))));
        arrays.push((HISTORY.to_string(), Array::U8(&history)));
        let arrays: Vec<Entry<'_>> = arrays.into_iter().map(|(name, values)| (name, vec![values.len()], values)).collect();
        let path = folder.join(name_of(self.steps()));
        let task = Task::new(format!("save {}", path.display()), 0, "bytes");
        sealed::write(&path, &arrays, [(NOTE.to_string(), note)].into())?;
        task.finish("");
        checkpoints::tidy(folder, self.steps(), self.config.checkpoint_keep)
    }

    /// Goes on from the newest checkpoint in `folder` (or from one checkpoint file), with the same
    /// activations as before. On the CPU with the same number of threads the result is bit for bit
    /// that of a training that never stopped.
    ///
    /// # Errors
    /// `MissingFile`; `BadFile` when the checkpoint is cut off or a byte of it changed: the newest
    /// earlier one that is whole is named then; `Mismatch` when the activations are others, naming what differs;
    /// `OutOfMemory`; errors of the model.
    pub fn resume(folder: impl AsRef<Path>, activations: &Activations) -> Result<Self> {
        let path = checkpoints::newest(folder.as_ref())?;
        Trainer::resume_from(&path, activations).map_err(|error| match error.kind() {
            ErrorKind::BadFile | ErrorKind::BadTensor => checkpoints::with_earlier(error, &path),
            _ => error,
        })
    }

    /// As [`Trainer::resume`]; where the newest checkpoint is damaged, from the newest that is whole.
    /// The second value says what was wrong with those passed over; the next
    /// [`save`](Trainer::save) into the folder sets them aside.
    ///
    /// # Errors
    /// As [`Trainer::resume`]; the newest checkpoint's error when none is whole.
    ///
    /// ```no_run
    /// use cltlab::prelude::*;
    /// let activations = Activations::load("activations.safetensors", &Default::default())?;
    /// let (mut trainer, damaged) = Trainer::resume_or_earlier("runs/first/checkpoints", &activations)?;
    /// for error in damaged { println!("{error}"); }
    /// trainer.run()?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn resume_or_earlier(folder: impl AsRef<Path>, activations: &Activations) -> Result<(Self, Vec<Error>)> {
        let mut damaged = Vec::new();
        for path in checkpoints::all(folder.as_ref())?.iter().rev() {
            match Trainer::resume_from(path, activations) {
                Ok(trainer) => return Ok((trainer, damaged)),
                Err(error) if matches!(error.kind(), ErrorKind::BadFile | ErrorKind::BadTensor) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Err(if damaged.is_empty() { checkpoints::none(folder.as_ref()) } else { damaged.swap_remove(0) })
    }

    fn resume_from(path: &Path, activations: &Activations) -> Result<Self> {
        let file = Sealed::open(path)?;
        let bad = |what: String| Error::new(ErrorKind::BadFile, format!("{}: {what}", path.display()));
        let note = file.note(NOTE).ok_or_else(|| bad("not a checkpoint of a training".into()))?;
        // As YAML, of which JSON is a part: its numbers are exact, serde_json's may miss the last bit,
        // and a rate that differs in that would not give the same weights.
        let value: serde_json::Value = serde_yaml_ng::from_str(note).map_err(|error| bad(error.to_string()).caused_by(error))?;
        if value.get("version").and_then(serde_json::Value::as_u64) != Some(u64::from(VERSION)) {
            return Err(bad(format!("version: got {}, expected {VERSION}", value.get("version").unwrap_or(&serde_json::Value::Null))));
        }
        let state: State = serde_json::from_value(value).map_err(|error| bad(error.to_string()).caused_by(error))?;
        check(activations, &state.clt, &state.train)?;
        same_data(path, &state.course, &activations.course())?;
        let l = state.clt.layers;
        if state.cuts.len() != l || state.densities.len() != l {
            return Err(bad("counters of another shape than the configuration".into()));
        }
        // A step leaves four bytes at least.
        let length = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
        if state.steps > length / 4 {
            return Err(bad(format!("steps: got {}, expected at most {}, for which the file has room", state.steps, length / 4)));
        }
        // It was set by runs of as many steps at most, the last of which is not done.
        Error::at_most(ErrorKind::BadFile, format_args!("{}: target", path.display()), state.target, state.steps as usize + TrainConfig::MOST_STEPS)?;
        let mut live = LiveClt::empty(&state.clt, state.train.moments == Moments::EightBit)?;
        live.steps = state.steps;
        for (name, values) in live.arrays_mut() {
            file.fill(&name, values)?;
        }
        for (l, (layer, (cut, density))) in live.layers.iter_mut().zip(state.cuts.into_iter().zip(state.densities)).enumerate() {
            (layer.cut, layer.density) = (cut, density);
            for log in layer.log_threshold.iter_mut().flat_map(|log| log.w.iter_mut()) {
                match *log {
                    // Of a threshold of 0. Finite, its gradient is no product of 0 and infinity; exp(-200) is 0 in f32 as well.
                    f32::NEG_INFINITY => *log = -200.0,
                    log if log.exp().is_finite() => {}
                    log => return Err(bad(format!("{l}.log_threshold.w: got {log}, expected the logarithm of a threshold"))),
                }
            }
            file.fill(&format!("{l}.idle"), ArrayMut::U32(&mut layer.idle))?;
        }
        let unpack = |l: usize, side: usize| -> Result<Affine> {
            let mut values = vec![0f32; state.clt.width + 1];
            file.fill(&scale_name(l, side), ArrayMut::F32(&mut values))?;
            let factor = values.pop().unwrap_or(1.0);
            if !(factor > 0.0 && factor.is_finite() && values.iter().all(|value| value.is_finite())) {
                return Err(bad(format!("{}: got the scale {factor}, expected a finite number above 0 and finite means", scale_name(l, side))));
            }
            Ok(Affine { mean: values, factor })
        };
        let layers = (0..l).map(|l| Ok(LayerScale { input: unpack(l, 0)?, target: unpack(l, 1)? })).collect::<Result<_>>()?;
        let history: History = serde_json::from_slice(file.bytes(HISTORY)?).map_err(|error| bad(format!("{HISTORY}: {error}")).caused_by(error))?;
        let reader = device::read(activations, &state.train, state.position).map_err(|error| match error.kind() {
            ErrorKind::BadFile => error.context(path.display()),
            _ => error,
        })?;
        let mut trainer = Trainer::assemble(live, state.train, activations, reader, Scale { layers })?;
        (trainer.history, trainer.tokens, trainer.target, trainer.pace) = (history, state.tokens, state.target, state.pace);
        trainer.reached = state.reached;
        Ok(trainer)
    }

    /// Goes on as `config` says, for a training that is described elsewhere: it must be this
    /// trainer's configuration but for `steps`, which may be more now, and for what does not touch the
    /// weights (where and how often checkpoints, metrics and evaluations are made).
    ///
    /// # Errors
    /// `BadConfig`; `Mismatch` naming the first field that differs.
    pub fn set_config(&mut self, config: &TrainConfig) -> Result<()> {
        config.validate()?;
        same_course(&self.config, config)?;
        let refuse = |field: &str, got: String, expected: String| {
            Err(Error::expected(ErrorKind::Mismatch, format_args!("TrainConfig::{field}"), got, expected).help("go on with the same value, or begin anew in another folder"))
        };
        // Where it is trained was settled when the checkpoint was read.
        if config.device != self.config.device && device::wanted(&self.activations, config)?.is_cuda() != self.on_gpu.is_some() {
            return refuse("device", format!("{:?}", config.device).to_lowercase(), format!("{:?}, as in the checkpoint", self.config.device).to_lowercase());
        }
        if config.steps != self.config.steps && config.steps < self.steps() {
            return refuse("steps", config.steps.to_string(), format!("at least {}, which are done", self.steps()));
        }
        if config.steps != self.config.steps && self.reached.is_none() {
            self.target = config.steps;
        }
        self.config = config.clone();
        Ok(())
    }
}

fn scale_name(layer: usize, side: usize) -> String {
    format!("{layer}.scale.{}", ["input", "target"][side])
}

/// Mean, then factor.
fn packed(affine: &Affine) -> Vec<f32> {
    affine.mean.iter().copied().chain([affine.factor]).collect()
}

/// Fields of [`TrainConfig`] that do not touch the weights, and `steps`.
const FREE: [&str; 7] = ["device", "steps", "checkpoint_every", "checkpoint_dir", "checkpoint_keep", "metrics", "eval_every"];

/// The place in the data that was reached means something in the same data only.
fn same_data(path: &Path, saved: &Course, given: &Course) -> Result<()> {
    match saved.iter().find(|(name, value)| given.get(*name) != Some(value)) {
        None => Ok(()),
        Some((name, before)) => {
            let now = given.get(name).map_or("none", String::as_str);
            let what = match name.as_str() {
                "blocks of text" => "contexts of the text",
                "blocks of a filling (buffer_tokens)" => "contexts in the shuffled buffer",
                other => other,
            };
            Err(Error::expected(ErrorKind::Mismatch, format_args!("{}: activations: {what}", path.display()), now, format_args!("{before}, as when it was saved"))
                .help("the text, the context length or buffer_tokens is not that of the checkpoint: go on with the same ones, or begin anew with these weights: Trainer::from_clt"))
        }
    }
}

fn same_course(saved: &TrainConfig, given: &TrainConfig) -> Result<()> {
    let fields = |config: &TrainConfig| {
        serde_json::to_value(config).map_err(|error| Error::wrap(ErrorKind::BadConfig, "TrainConfig", error))
    };
    let (saved, given) = (fields(saved)?, fields(given)?);
    let differing = given.as_object().into_iter().flatten().find(|(name, value)| !FREE.contains(&name.as_str()) && saved.get(name) != Some(value));
    match differing {
        None => Ok(()),
        Some((name, value)) => {
            let before = saved.get(name).map_or_else(String::new, ToString::to_string);
            Err(Error::expected(ErrorKind::Mismatch, format_args!("TrainConfig::{name}"), value, format_args!("{before}, as in the checkpoint"))
                .help("go on with the same value, or begin anew in another folder"))
        }
    }
}
