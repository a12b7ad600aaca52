//! The course of a training, step by step.

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::progress::{EvalSample, TrainSample};
use std::path::Path;

/// Where a run's folder has its history.
const NAMES: [&str; 2] = ["history.json", "metrics.jsonl"];

/// Samples of every step so far, and why the last run ended.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct History {
    /// One sample a step, first to last, over all runs.
    pub samples: Vec<TrainSample>,
    /// Evaluations on held-out text, first to last, see [`Trainer::held_out`](crate::Trainer::held_out).
    #[serde(default)]
    pub evals: Vec<EvalSample>,
    /// True when the last run ended because the user asked it to.
    pub stopped: bool,
}

impl History {
    /// Writes the samples as JSON, whole or not at all; the folder is made.
    ///
    /// # Errors
    /// `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write_json(path, self)
    }

    /// Reads a training's course back: the JSON that [`History::save`] wrote, the file of metrics
    /// ([`TrainConfig::metrics`](super::TrainConfig::metrics)), or a run's folder that holds `history.json` or
    /// `metrics.jsonl`. A last line of metrics that was cut short is left out.
    ///
    /// ```no_run
    /// use cltlab::prelude::*;
    /// let runs = [("k = 8", History::load("runs/k8")?), ("k = 16", History::load("runs/k16/metrics.jsonl")?)];
    /// display(&runs);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `MissingFile`; `BadFile` for what is no history, with the line.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Some(file) = (if path.is_dir() { NAMES.iter().map(|name| path.join(name)).find(|file| file.exists()) } else { Some(path.to_path_buf()) }) else {
            return Err(Error::expected(ErrorKind::MissingFile, format_args!("{}", path.display()), "a folder without a history", NAMES.join(" or ")));
        };
        if file.extension().is_none_or(|ending| ending != "jsonl") {
            return files::read_json_object(&file);
        }
        super::metrics::read(&file)
    }

    /// The last step, `None` before the first.
    pub fn last(&self) -> Option<&TrainSample> {
        self.samples.last()
    }

    /// The first step, `None` before it.
    pub fn first(&self) -> Option<&TrainSample> {
        self.samples.first()
    }

    /// Steps done.
    pub fn steps(&self) -> usize {
        self.samples.len()
    }

    /// Whether `value` (for instance `|s| s.fvu`) is lower over the last tenth of the steps than
    /// over the first tenth. False with fewer than two steps.
    #[doc(hidden)]
    pub fn falls(&self, value: impl Fn(&TrainSample) -> f64) -> bool {
        let n = self.samples.len();
        if n < 2 {
            return false;
        }
        let window = (n / 10).max(1);
        let mean = |samples: &[TrainSample]| samples.iter().map(&value).sum::<f64>() / samples.len() as f64;
        mean(&self.samples[n - window..]) < mean(&self.samples[..window])
    }
}

impl std::fmt::Display for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.last() {
            None => write!(f, "History: no steps yet")?,
            Some(s) => write!(
                f,
                "History: {} steps, {} tokens; FVU {:.3}, L0 {:.1} per layer, dead {:.1} %, {:.0} tokens/s{}",
                s.step,
                s.tokens,
                s.fvu,
                s.l0,
                100.0 * s.dead,
                s.tokens_per_second,
                if self.stopped { " (stopped)" } else { "" }
            )?,
        }
        self.evals.last().map_or(Ok(()), |last| write!(f, "; {last}"))
    }
}
