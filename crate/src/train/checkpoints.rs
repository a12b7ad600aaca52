//! The folder of a training's checkpoints: which is the newest, which is whole, which may go.

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::files::sealed::Sealed;
use std::path::{Path, PathBuf};

/// The file of the checkpoint after `step`.
pub(super) fn name_of(step: usize) -> String {
    format!("step-{step:08}.safetensors")
}

fn step_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// Checkpoints of a folder, oldest first; a file stands for itself.
pub(super) fn all(path: &Path) -> Result<Vec<PathBuf>> {
    if path.exists() && !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| Error::io(path, error))? {
        let path = entry.map_err(|error| Error::io(path, error))?.path();
        if let Some(step) = step_of(&path) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The newest checkpoint of a folder.
pub(super) fn newest(path: &Path) -> Result<PathBuf> {
    all(path)?.pop().ok_or_else(|| none(path))
}

pub(super) fn none(path: &Path) -> Error {
    Error::new(ErrorKind::MissingFile, format!("{}: no checkpoint (step-*.safetensors)", path.display())).help("give the folder that Trainer::save wrote to")
}

/// Names the newest whole checkpoint before a broken one.
pub(super) fn with_earlier(error: Error, path: &Path) -> Error {
    let all = path.parent().and_then(|folder| all(folder).ok()).unwrap_or_default();
    let whole = |other: &&PathBuf| step_of(other) < step_of(path) && Sealed::open(other).and_then(|file| file.verify()).is_ok();
    match all.iter().rev().find(whole) {
        Some(earlier) => error.help(format!("the one before it is whole: {}; give that path, or Trainer::resume_or_earlier", earlier.display())),
        None => error.help("there is no earlier one that is whole"),
    }
}

/// After `step` was saved: sets later checkpoints aside, removes all but the newest `keep` of the rest,
/// and what killed processes left half-written.
pub(super) fn tidy(folder: &Path, step: usize, keep: usize) -> Result<()> {
    let mut rest = all(folder)?;
    for later in rest.extract_if(.., |path| step_of(path) > Some(step)) {
        let aside = later.with_extension("safetensors.aside");
        std::fs::rename(&later, aside).map_err(|error| Error::io(&later, error))?;
    }
    for old in rest.iter().rev().skip(keep) {
        std::fs::remove_file(old).map_err(|error| Error::io(old, error))?;
    }
    files::sweep(folder);
    Ok(())
}
