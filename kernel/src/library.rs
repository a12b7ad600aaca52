//! The one library of a kernel: a second build of it is never loaded beside the first, whose variables and statics the
//! cells hold.

use crate::folders;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// In a cell's folder: the library's parts with their features, as they were prepared.
pub const PARTS: &str = "parts";
/// In a cell's folder: which file the first cell loaded.
const LOADED: &str = "target/loaded-library";

pub const BUILT_ANEW: &str = "this builds cltlab's library anew, with other compiler settings than the one that is loaded; variables made with that one \
    would not fit. Take back what changed them (:build_env, :linker, :toolchain and the like), or restart the kernel.";

/// Packages that the library is made of, each with its version and features; of the cell's crate in `folder`.
pub fn parts(cargo: &OsStr, folder: &Path, host: &OsStr, offline: bool) -> Option<BTreeSet<String>> {
    let mut command = Command::new(cargo);
    command.args(["tree", "--package", "cltlab-dylib", "--edges", "no-dev", "--prefix", "none", "--format", "{p} [{f}]", "--target"]).arg(host);
    if offline {
        command.arg("--offline");
    }
    let output = command.current_dir(folder).stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().map(|line| line.trim_end_matches(" (*)").to_string()).collect())
}

/// How a cell's dependencies change the library, as an error; `None` when they do not, or when cargo refuses them itself.
pub fn difference(cargo: &OsStr, host: &OsStr, offline: bool) -> Option<String> {
    let before: BTreeSet<String> = std::fs::read_to_string(PARTS).ok()?.lines().map(str::to_string).collect();
    let now = parts(cargo, Path::new("."), host, offline)?;
    let other: Vec<&str> = now.difference(&before).map(String::as_str).take(3).collect();
    if other.is_empty() && before.is_subset(&now) {
        return None;
    }
    let other = other.join(", ");
    Some(format!(
        "this dependency changes what cltlab's library is built with ({other}), and a library built anew cannot be loaded beside the one that \
         holds this kernel's variables. Ask for the version and the features that cltlab has, or use what it re-exports: cltlab::candle."
    ))
}

/// Whether the library of the build in this folder is the one that the first cell loaded; the first time it is noted.
pub fn is_the_first(host: &OsStr) -> Result<bool> {
    // evcxr's first evaluation is of a crate without dependencies.
    let Ok(library) = folders::shared_library(&Path::new("target").join(host)) else { return Ok(true) };
    let file = library.metadata().with_context(|| library.display().to_string())?;
    let mark = format!("{} {} {}", file.ino(), file.mtime(), file.mtime_nsec());
    match std::fs::read_to_string(LOADED) {
        Ok(loaded) => Ok(loaded == mark),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::fs::write(LOADED, mark).map(|()| true).context(LOADED),
        Err(error) => Err(error).context(LOADED),
    }
}
