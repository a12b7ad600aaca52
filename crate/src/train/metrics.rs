//! Metrics: one line of JSON a step, in a file that other programs may read meanwhile.
//!
//! A line is the step's [`TrainSample`](crate::progress::TrainSample), with `held_out` where an
//! evaluation followed. Each line goes out with one write, so that a killed process leaves whole
//! lines. A resumed training first writes the file anew from its history: steps after the checkpoint
//! go, none is there twice.
//!
//! Why no TensorBoard event files: see [`TrainConfig::metrics`](super::TrainConfig::metrics).

use super::{History, Trainer};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::progress::{EvalSample, TrainSample};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Makes the file say what `history` says, and opens it for more.
    fn open(path: &Path, history: &History) -> Result<Self> {
        if !path.exists() {
            files::create_folder(files::write::folder_of(path))?;
        }
        let mut text = Vec::new();
        let mut evals = history.evals.iter().peekable();
        for sample in &history.samples {
            let held_out = evals.next_if(|eval| eval.step == sample.step);
            append(&mut text, path, &Line { sample, held_out })?;
        }
        let fault = |error: std::io::Error| Error::io(path, error);
        let file = match files::stream(path)? {
            Some(mut pipe) => pipe.write_all(&text).map(|()| pipe).map_err(fault)?,
            None => {
                files::write_atomic(path, &text)?;
                File::options().append(true).open(path).map_err(fault)?
            }
        };
        Ok(Metrics { path: path.to_path_buf(), file })
    }

    fn push(&mut self, line: &Line<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        append(&mut bytes, &self.path, line)?;
        self.file.write_all(&bytes).map_err(|error| Error::io(&self.path, error))
    }
}

#[derive(serde::Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    sample: &'a TrainSample,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<&'a EvalSample>,
}

/// A line as it is read.
#[derive(serde::Deserialize)]
struct Read {
    #[serde(flatten)]
    sample: TrainSample,
    held_out: Option<EvalSample>,
}

/// The history that a file of metrics holds. A last line without its end was being written when the process ended.
pub(super) fn read(path: &Path) -> Result<History> {
    let text = crate::files::read_text(path)?;
    let mut history = History::default();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let read: Read = match serde_json::from_str(line) {
            Ok(read) => read,
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => return Err(Error::new(ErrorKind::BadFile, format!("{}: line {}: {error}", path.display(), number + 1))),
        };
        history.samples.push(read.sample);
        history.evals.extend(read.held_out);
    }
    if history.samples.is_empty() {
        return Err(Error::expected(ErrorKind::BadFile, path.display(), "no whole line", "one line of JSON for each step"));
    }
    Ok(history)
}

fn append(text: &mut Vec<u8>, path: &Path, line: &Line<'_>) -> Result<()> {
    serde_json::to_writer(&mut *text, line).map_err(|error| Error::wrap(ErrorKind::NotFinite, path.display(), error))?;
    text.push(b'\n');
    Ok(())
}

impl Trainer {
    /// Adds the last step to the file of metrics, when there is one. After an error the file is
    /// written anew at the next step.
    pub(super) fn record(&mut self) -> Result<()> {
        let (Some(path), Some(sample)) = (&self.config.metrics, self.history.last()) else { return Ok(()) };
        let recorded = match &mut self.metrics {
            Some(metrics) => {
                let held_out = self.history.evals.last().filter(|eval| eval.step == sample.step);
                metrics.push(&Line { sample, held_out })
            }
            None => Metrics::open(path, &self.history).map(|metrics| self.metrics = Some(metrics)),
        };
        if recorded.is_err() {
            self.metrics = None;
        }
        recorded
    }
}
