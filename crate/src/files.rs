//! Files: written whole or not at all, read with the path in every error.

pub(crate) mod decode;
pub(crate) mod names;
pub(crate) mod sealed;
pub(crate) mod walk;

use crate::error::{Error, ErrorKind, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes `bytes` to a sibling temporary file, flushes it to disk, then renames it onto `path`.
/// A full disk or a crash leaves what was there before.
///
/// # Errors
/// `DiskFull`, `MissingFile` (the folder) or `Io`, with the path.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for content that is streamed out by `fill`.
///
/// # Errors
/// `DiskFull`, `MissingFile` (the folder) or `Io`, with the path.
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut std::io::BufWriter<std::fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    replace(path, |temporary| {
        let written = (|| {
            let mut out = std::io::BufWriter::new(std::fs::File::create(temporary)?);
            fill(&mut out)?;
            out.flush()
        })();
        written.map_err(|error| Error::io(path, &error))
    })
}

/// Lets `write` make a temporary sibling of `path`, flushes that to disk, then renames it onto
/// `path`; for writers that need a path of their own. On error the sibling is removed.
///
/// # Errors
/// What `write` returns; `DiskFull` or `Io` with the path.
pub fn replace(path: impl AsRef<Path>, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let temporary = sibling(path);
    let renamed = write(&temporary).and_then(|()| {
        let moved = std::fs::File::open(&temporary).and_then(|file| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
        // The new name reaches the disk with its folder. A system that cannot flush folders keeps order itself.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        moved.map_err(|error| Error::io(path, &error))
    });
    if renamed.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    renamed
}

fn sibling(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// Removes temporary files that [`replace`] left in `folder` when its process was killed. What cannot
/// be read or removed stays.
pub fn sweep(folder: impl AsRef<Path>) {
    let alive = |pid: i32| {
        // SAFETY: signal 0 is not sent; it asks whether the process is there.
        pid > 0 && (unsafe { libc::kill(pid, 0) } == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH))
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")?.rsplit('.').next()?.parse().ok());
        if pid.is_some_and(|pid| !alive(pid)) {
            let path = entry.path();
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
    }
}

/// Makes a folder and its parents.
///
/// # Errors
/// `Io` or `DiskFull` with the path.
pub fn create_folder(path: impl AsRef<Path>) -> Result<()> {
    std::fs::create_dir_all(path.as_ref()).map_err(|error| Error::io(path, &error))
}

/// Reads a whole file.
///
/// # Errors
/// `MissingFile` or `Io`, with the path.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    std::fs::read(path.as_ref()).map_err(|error| Error::io(path, &error))
}

/// Reads a JSON file into `T`; the error names the file, line and field.
///
/// # Errors
/// `MissingFile`, `Io`, or `BadFile` when the content is not such JSON.
pub fn read_json<T: serde::de::DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    serde_json::from_slice(&decode::bytes(path, read(path)?)?).map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {error}", path.display())))
}

/// As [`read_json`], for a file that holds an object: a list is not taken for the object's fields in their order.
///
/// # Errors
/// As [`read_json`].
pub fn read_json_object<T: serde::de::DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let bytes = decode::bytes(path, read(path)?)?;
    match bytes.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(&bytes).map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {error}", path.display()))),
        Some(b'[') => Err(Error::expected(ErrorKind::BadFile, path.display(), "a JSON list", "a JSON object")),
        Some(_) => Err(Error::expected(ErrorKind::BadFile, path.display(), "something else", "a JSON object")),
    }
}

/// Reads a text file in UTF-8 or UTF-16; a byte order mark is left out.
///
/// # Errors
/// `MissingFile`, `Io`, or `BadFile` for bytes that are no text.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    decode::text(path, read(path)?)
}

/// Writes `value` as indented JSON, whole or not at all; the folder is made.
///
/// # Errors
/// `DiskFull` or `Io`, with the path; `NotFinite` when the value does not serialise.
pub fn write_json<T: serde::Serialize>(path: impl AsRef<Path>, value: &T) -> Result<()> {
    let path = path.as_ref();
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_folder(folder)?;
    }
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new(ErrorKind::NotFinite, format!("{}: {error}", path.display())))?;
    write_atomic(path, &bytes)
}
