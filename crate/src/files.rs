//! Files: written whole or not at all, read with the path in every error.
//!
//! An output that is a regular file, or not there yet, is written beside its place and renamed onto it;
//! a link is followed, and the file that it leads to is replaced. A pipe or a device is written to and
//! never replaced; so is `-`, standard output. Modes follow the umask; a file that is replaced keeps its own.

pub(crate) mod decode;
pub mod lock;
pub(crate) mod names;
pub(crate) mod numbers;
pub(crate) mod sealed;
pub(crate) mod walk;
pub(crate) mod write;

use crate::error::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use write::Target;

/// Writes `bytes` to a sibling temporary file, flushes it to disk, then renames it onto `path`.
/// A full disk or a crash leaves what was there before. What is no regular file, and `-` for standard
/// output, is written to instead.
///
/// # Errors
/// `DiskFull`, `MissingFile` (the folder), `BadInput` (a folder of this name) or `Io`, with the path.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    fill_atomic(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for content that is streamed out by `fill`.
///
/// # Errors
/// As [`write_atomic`].
pub fn fill_atomic(path: impl AsRef<Path>, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let write = |file: File| {
        let mut out = BufWriter::new(file);
        fill(&mut out).and_then(|()| out.flush()).map_err(|error| Error::io(path, error))
    };
    match write::target(path)? {
        Target::Stream(file) => write(file),
        Target::Place(place) => write::at_place(path, &place, |_, file| write(file)),
    }
}

/// Lets `write` fill a temporary sibling of `path`, flushes that to disk, then renames it onto
/// `path`; for writers that need a path of their own. On error the sibling is removed. What is no
/// regular file gets the bytes at the end.
///
/// # Errors
/// What `write` returns; those of [`write_atomic`].
pub fn replace(path: impl AsRef<Path>, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    match write::target(path)? {
        Target::Stream(mut file) => write::through(path, &mut file, write),
        Target::Place(place) => write::at_place(path, &place, |temporary, file| {
            drop(file);
            write(temporary)
        }),
    }
}

/// Moves the finished file `from` to where `path` leads, as [`replace`] does.
pub(crate) fn move_to(from: &Path, path: &Path) -> Result<()> {
    if let Target::Place(place) = write::target(path)? {
        if std::fs::rename(from, place).is_ok() {
            return Ok(());
        }
    }
    // Elsewhere, or no regular file.
    replace(path, |at| std::fs::copy(from, at).map(|_| ()).map_err(|error| Error::io(path, error)))
}

/// The open file when `path` is no regular file: a pipe, a device, standard output.
pub(crate) fn stream(path: &Path) -> Result<Option<File>> {
    Ok(match write::target(path)? {
        Target::Stream(file) => Some(file),
        Target::Place(_) => None,
    })
}

/// Removes temporary files that outputs left in `folder` when their process was killed. What is not
/// surely left by a process of this system that is over stays, as does what cannot be removed.
pub fn sweep(folder: impl AsRef<Path>) {
    write::sweep(folder.as_ref(), None);
}

/// Makes a folder and its parents.
///
/// # Errors
/// `Io` or `DiskFull` with the path.
pub fn create_folder(path: impl AsRef<Path>) -> Result<()> {
    std::fs::create_dir_all(path.as_ref()).map_err(|error| Error::io(path, error))
}

/// Refuses a file where a folder is to be; one that is not there yet is none.
pub(crate) fn not_a_file(folder: &Path) -> Result<()> {
    if folder.exists() && !folder.is_dir() { create_folder(folder) } else { Ok(()) }
}

/// Opens a file to read it; all readers do so by this. A pipe would be waited for until someone writes to it,
/// a device may never end, and neither can be mapped or read twice.
///
/// # Errors
/// `MissingFile` or `Io`, with the path; `BadFile` for a folder, a pipe, a device or a socket.
pub fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let fault = |error| Error::io(path, error);
    // Looked at before it is opened, since that alone wakes a pipe's writer and moves some devices.
    regular(path, std::fs::metadata(path).map_err(fault)?.file_type())?;
    // What has become a pipe meanwhile is not waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fault)?;
    regular(path, file.metadata().map_err(fault)?.file_type())?;
    Ok(file)
}

fn regular(path: &Path, kind: std::fs::FileType) -> Result<()> {
    let (got, help) = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => ("a folder", "give the file in it"),
        _ if kind.is_fifo() => ("a pipe", "save what it gives to a file first"),
        _ if kind.is_socket() => ("a socket", "give a file"),
        _ => ("a device", "give a file"),
    };
    Err(Error::expected(ErrorKind::BadFile, path.display(), got, "a file").help(help))
}

/// Reads a whole file.
///
/// # Errors
/// As [`open`].
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    Ok(bytes)
}

/// Reads a JSON file into `T`; the error names the file, line and field.
///
/// # Errors
/// `MissingFile`, `Io`, or `BadFile` when the content is not such JSON.
pub fn read_json<T: serde::de::DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    serde_json::from_slice(&decode::bytes(path, read(path)?)?).map_err(|error| Error::wrap(ErrorKind::BadFile, path.display(), error))
}

/// As [`read_json`], for a file that holds an object: a list is not taken for the object's fields in their order.
///
/// # Errors
/// As [`read_json`].
pub fn read_json_object<T: serde::de::DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let bytes = decode::bytes(path, read(path)?)?;
    match bytes.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(&bytes).map_err(|error| Error::wrap(ErrorKind::BadFile, path.display(), error)),
        Some(b'[') => Err(Error::expected(ErrorKind::BadFile, path.display(), "a JSON list", "a JSON object")),
        Some(b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Err(Error::expected(ErrorKind::BadFile, path.display(), "a JSON value alone", "a JSON object")),
        Some(_) => Err(Error::expected(ErrorKind::BadFile, path.display(), "no JSON", "a JSON object")),
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

/// Brackets of a YAML file that may be open at once: the parser's time grows with their square.
const DEEPEST: usize = 100;

/// Reads a YAML file in UTF-8 or UTF-16.
///
/// # Errors
/// `MissingFile`, `Io`, or `BadFile` when the content is no YAML, or nested more than a hundred deep.
pub(crate) fn read_yaml(path: impl AsRef<Path>) -> Result<serde_yaml_ng::Value> {
    let path = path.as_ref();
    let text = read_text(path)?;
    let mut open = 0usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > DEEPEST {
            return Err(Error::expected(ErrorKind::BadFile, path.display(), format_args!("more than {DEEPEST} brackets open at once"), "YAML that is nested less deeply"));
        }
    }
    serde_yaml_ng::from_str(&text).map_err(|error| Error::wrap(ErrorKind::BadFile, path.display(), error))
}

/// Writes `value` as indented JSON, whole or not at all; the folder is made.
///
/// # Errors
/// `DiskFull` or `Io`, with the path; `NotFinite` when the value does not serialise.
pub fn write_json<T: serde::Serialize>(path: impl AsRef<Path>, value: &T) -> Result<()> {
    let path = path.as_ref();
    if !path.exists() {
        create_folder(write::folder_of(path))?;
    }
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::wrap(ErrorKind::NotFinite, path.display(), error))?;
    write_atomic(path, &bytes)
}
