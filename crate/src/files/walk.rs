//! Folders with what is in them, where links may lead in circles.

use crate::error::{Error, Result};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Calls `visit` with everything but folders below `folder`, `depth` folders down at most; hidden ones too. Files of a folder come in the
/// order of their names, before those of its folders. A folder that several links lead to is read once, by its own name if
/// that is below `folder`.
///
/// # Errors
/// `MissingFile` or `Io` for a folder that cannot be read; those of `visit`.
pub(crate) fn walk(folder: &Path, depth: usize, visit: &mut dyn FnMut(PathBuf) -> Result<()>) -> Result<()> {
    let mut seen = HashSet::new();
    enter(folder, &mut seen);
    let mut links = Vec::new();
    below(folder, depth, &mut seen, &mut links, visit)?;
    // Links to folders come last, so that a folder's own name is the one that counts.
    while let Some((link, depth)) = links.pop() {
        if enter(&link, &mut seen) {
            below(&link, depth, &mut seen, &mut links, visit)?;
        }
    }
    Ok(())
}

/// Whether the folder is a new one.
fn enter(folder: &Path, seen: &mut HashSet<(u64, u64)>) -> bool {
    std::fs::metadata(folder).is_ok_and(|found| seen.insert((found.dev(), found.ino())))
}

fn below(folder: &Path, depth: usize, seen: &mut HashSet<(u64, u64)>, links: &mut Vec<(PathBuf, usize)>, visit: &mut dyn FnMut(PathBuf) -> Result<()>) -> Result<()> {
    let unreadable = |error: std::io::Error| Error::io(folder, error);
    let mut inside = std::fs::read_dir(folder).map_err(unreadable)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    inside.sort();
    let (folders, files): (Vec<_>, Vec<_>) = inside.into_iter().partition(|path| path.is_dir());
    files.into_iter().filter(|path| path.exists()).try_for_each(&mut *visit)?;
    if depth == 0 {
        return Ok(());
    }
    for path in folders {
        if path.is_symlink() {
            links.push((path, depth - 1));
        } else if enter(&path, seen) {
            below(&path, depth - 1, seen, links, visit)?;
        }
    }
    Ok(())
}
