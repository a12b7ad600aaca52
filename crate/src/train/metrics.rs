//! Metrics: one line of JSON a step, in a file that other programs may read meanwhile.
//!
//! Each line goes out with one write, so that a killed process leaves whole lines. A resumed training
//! first writes the file anew from its history: steps after the checkpoint go, none is there twice.

use super::{History, Trainer};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::progress::TrainSample;
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
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            files::create_folder(folder)?;
        }
        let mut text = Vec::new();
        history.samples.iter().try_for_each(|sample| append(&mut text, path, sample))?;
        files::write_atomic(path, &text)?;
        let file = File::options().append(true).open(path).map_err(|error| Error::io(path, &error))?;
        Ok(Metrics { path: path.to_path_buf(), file })
    }

    fn push(&mut self, sample: &TrainSample) -> Result<()> {
        let mut line = Vec::new();
        append(&mut line, &self.path, sample)?;
        self.file.write_all(&line).map_err(|error| Error::io(&self.path, &error))
    }
}

fn append(text: &mut Vec<u8>, path: &Path, sample: &TrainSample) -> Result<()> {
    serde_json::to_writer(&mut *text, sample).map_err(|error| Error::new(ErrorKind::NotFinite, format!("{}: {error}", path.display())))?;
    text.push(b'\n');
    Ok(())
}

impl Trainer {
    /// Adds the last step to the file of metrics, when there is one. After an error the file is
    /// written anew at the next step.
    pub(super) fn record(&mut self) -> Result<()> {
        let (Some(path), Some(sample)) = (&self.config.metrics, self.history.last()) else { return Ok(()) };
        let recorded = match &mut self.metrics {
            Some(metrics) => metrics.push(sample),
            None => Metrics::open(path, &self.history).map(|metrics| self.metrics = Some(metrics)),
        };
        if recorded.is_err() {
            self.metrics = None;
        }
        recorded
    }
}
