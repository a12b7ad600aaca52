//! Checkpoints: all that a training needs to go on as if it had not stopped.
//!
//! One safetensors file a checkpoint, `step-00000100.safetensors`, written whole or not at all:
//! weights and moments as tensors, everything else (configurations, counters, normalisation, place
//! in the data, history) as JSON in the header. The newest two are kept. The random order of the
//! data follows from seed and place, so there is no generator to save.

use super::{check, History, Moments, TrainConfig, Trainer};
use crate::activations::{Activations, Position, Reader, Scale};
use crate::clt::io::tensors;
use crate::clt::live::{Cut, LiveClt};
use crate::clt::CltConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::progress::Task;
use std::path::{Path, PathBuf};

const NOTE: &str = "cltlab_training";

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
    position: Position,
    scale: Scale,
    idle: Vec<Vec<u32>>,
    cuts: Vec<Cut>,
    densities: Vec<f32>,
    history: History,
}

impl Trainer {
    /// Writes a checkpoint into `folder` and removes all but the newest there
    /// ([`TrainConfig::checkpoint_keep`]).
    ///
    /// # Errors
    /// `DiskFull` or `Io` with the path; earlier checkpoints are untouched then.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        files::create_folder(folder)?;
        let layers = &self.live.layers;
        let state = State {
            version: 1,
            clt: self.live.config.clone(),
            train: self.config.clone(),
            steps: self.live.steps,
            target: self.target,
            tokens: self.tokens,
            pace: self.pace,
            position: self.reader.position(),
            scale: self.scale.clone(),
            idle: layers.iter().map(|layer| layer.idle.clone()).collect(),
            cuts: layers.iter().map(|layer| layer.cut).collect(),
            densities: layers.iter().map(|layer| layer.density).collect(),
            history: self.history.clone(),
        };
        let note = serde_json::to_string(&state).map_err(|error| Error::new(ErrorKind::NotFinite, format!("checkpoint: {error}")))?;
        let arrays: Vec<_> = self.live.arrays().into_iter().map(|(name, values)| (name, vec![values.len()], values)).collect();
        let path = folder.join(format!("step-{:08}.safetensors", self.steps()));
        let task = Task::new(format!("save {}", path.display()), 0, "bytes");
        tensors::write_arrays(&path, &arrays, [(NOTE.to_string(), note)].into())?;
        task.finish("");
        for old in checkpoints(folder)?.iter().rev().skip(self.config.checkpoint_keep) {
            std::fs::remove_file(old).map_err(|error| Error::io(old, &error))?;
        }
        Ok(())
    }

    /// Goes on from the newest checkpoint in `folder` (or from one checkpoint file), with the same
    /// activations as before. On the CPU with the same number of threads the result is bit for bit
    /// that of a training that never stopped.
    ///
    /// # Errors
    /// `MissingFile`, `BadFile` and `BadTensor` for the checkpoint; `Mismatch` when the
    /// activations are others; `OutOfMemory`; errors of the model.
    pub fn resume(folder: impl AsRef<Path>, activations: &Activations) -> Result<Self> {
        let path = newest(folder.as_ref())?;
        let file = tensors::Reader::open(&path).map_err(|error| with_earlier(error, &path))?;
        let bad = |what: String| Error::new(ErrorKind::BadFile, format!("{}: {what}", path.display()));
        let note = file.note(NOTE).ok_or_else(|| bad("not a checkpoint of a training".into()))?;
        let state: State = serde_json::from_str(note).map_err(|error| bad(error.to_string()))?;
        if state.version != 1 {
            return Err(bad(format!("version: got {}, expected 1", state.version)));
        }
        check(activations, &state.clt, &state.train)?;
        let (l, f) = (state.clt.layers, state.clt.features);
        if state.idle.len() != l || state.cuts.len() != l || state.densities.len() != l || state.idle.iter().any(|idle| idle.len() != f) || state.scale.layers.len() != l {
            return Err(bad("counters of another shape than the configuration".into()));
        }
        let mut live = LiveClt::empty(&state.clt, state.train.moments == Moments::EightBit)?;
        live.steps = state.steps;
        for (name, values) in live.arrays_mut() {
            file.fill(&name, values)?;
        }
        for (layer, ((idle, cut), density)) in live.layers.iter_mut().zip(state.idle.into_iter().zip(state.cuts).zip(state.densities)) {
            (layer.idle, layer.cut, layer.density) = (idle, cut, density);
        }
        let reader = Reader::new(activations, state.position)?;
        let mut trainer = Trainer::assemble(live, state.train, activations, reader, state.scale);
        (trainer.history, trainer.tokens, trainer.target, trainer.pace) = (state.history, state.tokens, state.target, state.pace);
        Ok(trainer)
    }
}

impl Trainer {
    /// As [`Trainer::resume`], when the training is described elsewhere: `config` must be the
    /// checkpoint's but for `steps`, which may be more now, and for what does not touch the weights
    /// (where and how often checkpoints, metrics and evaluations are made).
    ///
    /// # Errors
    /// As [`Trainer::resume`]; `Mismatch` naming the first field that differs.
    pub fn resume_with(folder: impl AsRef<Path>, activations: &Activations, config: &TrainConfig) -> Result<Self> {
        config.validate()?;
        let mut trainer = Trainer::resume(folder, activations)?;
        same_course(&trainer.config, config)?;
        if config.steps != trainer.config.steps {
            trainer.target = config.steps;
        }
        trainer.config = config.clone();
        Ok(trainer)
    }
}

/// Fields of [`TrainConfig`] that may be others after a resume.
const FREE: [&str; 6] = ["steps", "checkpoint_every", "checkpoint_dir", "checkpoint_keep", "metrics", "eval_every"];

fn same_course(saved: &TrainConfig, given: &TrainConfig) -> Result<()> {
    let fields = |config: &TrainConfig| {
        serde_json::to_value(config).map_err(|error| Error::new(ErrorKind::BadConfig, format!("TrainConfig: {error}")))
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

/// Checkpoints of a folder, oldest first.
fn checkpoints(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, &error))? {
        let path = entry.map_err(|error| Error::io(folder, &error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("step-") && name.ends_with(".safetensors") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Names the checkpoint before a broken one.
fn with_earlier(error: Error, path: &Path) -> Error {
    let earlier = path.parent().and_then(|folder| checkpoints(folder).ok()).and_then(|all| all.into_iter().rev().find(|other| other.as_path() < path));
    match earlier {
        Some(earlier) => error.help(format!("the one before it is {}: give that path", earlier.display())),
        None => error,
    }
}

fn newest(path: &Path) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_path_buf());
    }
    checkpoints(path)?.pop().ok_or_else(|| {
        Error::new(ErrorKind::MissingFile, format!("{}: no checkpoint (step-*.safetensors)", path.display())).help("give the folder that Trainer::save wrote to")
    })
}
