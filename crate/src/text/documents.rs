//! Documents from files: plain text, JSONL, CSV and parquet, all but the last also compressed (`.gz`, `.zst`).

mod csv;
mod json;
mod open;
#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod parquet;

use super::corpus::TextConfig;
use crate::device::{format_bytes, free_memory, require_memory};
use crate::error::{Error, ErrorKind, Result};
use crate::files::names::shown;
use crate::files::walk::walk;
use open::{unreadable, SLACK};
use std::io::Read;
use std::path::Path;

/// Folders within folders that are searched.
const DEPTH: usize = 32;

/// What was read so far.
pub(super) struct Documents<'a> {
    config: &'a TextConfig,
    pub texts: Vec<String>,
    bytes: u64,
    /// Bytes of text that memory has room for.
    room: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Lines,
    /// What stands between two fields.
    Table(u8),
    Parquet,
}

/// What a file is, by its name; `None` for what a folder may hold besides text.
fn kind(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "txt" | "md" => Some(Kind::Text),
        "jsonl" | "json" | "ndjson" => Some(Kind::Lines),
        "csv" => Some(Kind::Table(b',')),
        "tsv" => Some(Kind::Table(b'\t')),
        "parquet" => Some(Kind::Parquet),
        _ => None,
    }
}

/// Whether a file of a dataset holds its text, by its path there: descriptions of the dataset and hidden files do not.
pub(super) fn holds_text(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let about = name.ends_with(".md") || ["dataset_info.json", "dataset_infos.json", "state.json"].contains(&name.as_str());
    !about && !path.split('/').any(|part| part.starts_with('.')) && kind(Path::new(path)).is_some()
}

impl<'a> Documents<'a> {
    pub fn new(config: &'a TextConfig) -> Self {
        Documents { config, texts: Vec::new(), bytes: 0, room: free_memory().map_or(u64::MAX, |free| free / 4 * 3) }
    }

    /// True when as much text as is wanted was read.
    pub fn enough(&self) -> bool {
        self.config.max_bytes.is_some_and(|most| self.bytes >= most)
    }

    /// Bytes that one more document may have: what is wanted still, and [`SLACK`] for the document that goes beyond.
    fn longest(&self) -> u64 {
        self.config.max_bytes.map_or(u64::MAX, |most| most.saturating_sub(self.bytes).saturating_add(SLACK))
    }

    fn push(&mut self, path: &Path, text: String) -> Result<()> {
        self.bytes += text.len() as u64;
        if self.bytes > self.room {
            return Err(Error::expected(ErrorKind::OutOfMemory, path.display(), format_args!("{} of text so far", format_bytes(self.bytes)), format_args!("at most {}, for which there is memory", format_bytes(self.room)))
                .help("read a part of it: TextConfig::max_bytes"));
        }
        self.texts.push(text);
        Ok(())
    }

    /// Reads a file, or the files of text below a folder in the order of their paths, the ones that [`holds_text`] names.
    pub fn read(&mut self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            return self.read_file(path);
        }
        let (mut inside, mut others) = (Vec::new(), Vec::new());
        walk(path, DEPTH, &mut |file| {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
            if holds_text(&name) { inside.push((name, file)) } else { others.push(name) }
            Ok(())
        })?;
        inside.sort();
        if inside.is_empty() && !others.is_empty() {
            others.sort();
            let more = if others.len() > 10 { ", ..." } else { "" };
            let got = others.iter().take(10).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
            return Err(Error::expected(ErrorKind::BadInput, path.display(), format_args!("{got}{more}"), "files of text: .txt, .jsonl, .json, .csv, .tsv or .parquet")
                .help("README.md and the like are left out of a folder; give a file by itself to read it"));
        }
        inside.iter().try_for_each(|(_, file)| if self.enough() { Ok(()) } else { self.read_file(file) })
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let length = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
        let wanted = self.config.max_bytes.map_or(length, |most| most.saturating_sub(self.bytes).min(length));
        require_memory(&format!("text of {}", path.display()), wanted, "read a part of it: TextConfig::max_bytes")?;
        match kind(path) {
            Some(Kind::Lines) => self.read_lines(path),
            Some(Kind::Table(between)) => self.read_table(path, between),
            Some(Kind::Parquet) => self.read_parquet(path),
            Some(Kind::Text) | None => self.read_text(path),
        }
    }

    #[cfg(not(feature = "parquet"))]
    fn read_parquet(&mut self, path: &Path) -> Result<()> {
        let error = Error::new(ErrorKind::Unsupported, format!("{}: this build reads no parquet: it lacks the feature `parquet`", path.display()));
        Err(error.help("build cltlab with the feature `parquet` (on by default), or convert the file: datasets.Dataset.to_json writes what is read"))
    }

    fn read_text(&mut self, path: &Path) -> Result<()> {
        let most = self.longest();
        let mut bytes = Vec::new();
        open::open(path, self.room)?.take(most).read_to_end(&mut bytes).map_err(|error| unreadable(path, error))?;
        // What is not wanted any more is not read; the last document then ends with a line.
        if bytes.len() as u64 == most {
            let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
            bytes.truncate(end);
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => latin(path, &error.into_bytes())?,
        };
        let text = if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text };
        for document in text.split("\n\n\n") {
            if !self.enough() {
                self.push(path, document.to_string())?;
            }
        }
        Ok(())
    }
}

/// Old e-texts are Latin-1; each of its bytes is the code point of the same number. Control characters are no text.
fn latin(path: &Path, bytes: &[u8]) -> Result<String> {
    match bytes.iter().position(|byte| *byte < 0x20 && !b"\t\n\x0b\x0c\r\x1a\x1b".contains(byte)) {
        None => Ok(bytes.iter().map(|byte| char::from(*byte)).collect()),
        Some(at) => Err(open::no_text(path, &format!("bytes that are no text (byte {at} is {:#04x})", bytes[at]))),
    }
}

/// `names` are the fields that are there.
fn missing(place: impl std::fmt::Display, names: &[String], field: &str) -> Error {
    let mut got = names.iter().take(10).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    if names.len() > 10 {
        got += &format!(" and {} more", names.len() - 10);
    }
    Error::expected(ErrorKind::BadFile, place, if names.is_empty() { "no fields" } else { &got }, format_args!("a text field '{field}'")).help("name another with TextConfig::field")
}
