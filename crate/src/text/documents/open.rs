//! A file of text as UTF-8, unpacked: what it unpacks to is bounded, and what is no text is refused by its first bytes.

use crate::error::{Error, ErrorKind, Result};
use crate::files::decode::{self, Utf8};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// Bytes that any file may unpack to, and that a document may have beyond [`TextConfig::max_bytes`](super::TextConfig::max_bytes).
pub(super) const SLACK: u64 = 64 << 20;
/// How many times as long as the file its content may be. Text packs to a third or a tenth.
pub(super) const RATIO: u64 = 100;

/// What files begin with that are no text.
const KINDS: [(&[u8], &str); 20] = [
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"FEA1", "a Feather file"),
    (b"PAR1", "a parquet file under another name than *.parquet"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x1f\x8b", "a gzip file under another name than *.gz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file under another name than *.zst"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
    (b"PK\x03\x04", "a zip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"%PDF-", "a PDF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy file"),
    (b"SQLite format 3", "an SQLite file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a picture"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer instead of the file (fetch it with git lfs pull)"),
];

/// What these first bytes say a file is; `None` where it may be text.
pub(super) fn binary(start: &[u8]) -> Option<&'static str> {
    KINDS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, what)| *what)
}

pub(super) fn no_text(path: &Path, got: &str) -> Error {
    Error::expected(ErrorKind::BadFile, path.display(), got, "text, JSONL, CSV or parquet").help("convert it: datasets.Dataset.to_json or to_parquet write what is read here")
}

/// The text of a file. It fails once there is more than `room` bytes, or more than a packed text can hold.
pub(super) fn open(path: &Path, room: u64) -> Result<BufReader<Utf8<Box<dyn BufRead>>>> {
    let fault = |error: io::Error| unreadable(path, error);
    let file = crate::files::open(path)?;
    let length = file.metadata().map_err(fault)?.len();
    let file = BufReader::new(file);
    let packed = length.saturating_mul(RATIO).max(SLACK);
    let unpacked = |reader: Box<dyn BufRead>| Box::new(BufReader::new(Bounded { reader, left: room.min(packed), memory: room < packed }));
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    let reader: Box<dyn BufRead> = match ending.as_str() {
        "gz" => unpacked(Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file)))),
        "zst" => unpacked(Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(file).map_err(fault)?))),
        _ => Box::new(BufReader::new(Bounded { reader: Box::new(file), left: room, memory: true })),
    };
    let text = decode::utf8(reader).map_err(fault)?;
    if let Some(what) = binary(text.start()) {
        return Err(no_text(path, what));
    }
    if text.is_utf8() && text.start().contains(&0) {
        return Err(no_text(path, "bytes that are no text (zeros among the first)"));
    }
    Ok(BufReader::new(text))
}

/// A reader that fails after so many bytes.
struct Bounded {
    reader: Box<dyn BufRead>,
    left: u64,
    /// Whether it is memory that gives the bound.
    memory: bool,
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        match (self.left.checked_sub(count as u64), self.memory) {
            (Some(left), _) => self.left = left,
            (None, true) => return Err(io::Error::new(io::ErrorKind::OutOfMemory, "more text than there is memory for")),
            (None, false) => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it unpacks to more than {RATIO} times its length, which text does not; if it is meant, unpack it to a file first"))),
        }
        Ok(count)
    }
}

/// A fault of the disk, or of what lies on it.
pub(super) fn unreadable(path: &Path, error: io::Error) -> Error {
    match (error.raw_os_error(), error.kind()) {
        (Some(_), _) => Error::io(path, error),
        (None, io::ErrorKind::OutOfMemory) => Error::io(path, error).help("read a part of it: TextConfig::max_bytes"),
        _ => Error::wrap(ErrorKind::BadFile, path.display(), error),
    }
}
