//! Documents from files: plain text, JSONL and parquet, the first two also compressed (`.gz`, `.zst`).

use super::corpus::TextConfig;
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// What was read so far.
pub(super) struct Documents<'a> {
    config: &'a TextConfig,
    pub texts: Vec<String>,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Lines,
    Parquet,
}

/// What a file is, by its name; `None` for what a folder may hold besides text.
fn kind(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "txt" | "md" => Some(Kind::Text),
        "jsonl" | "json" | "ndjson" => Some(Kind::Lines),
        "parquet" => Some(Kind::Parquet),
        _ => None,
    }
}

/// Whether a file of a dataset holds its text, by its name: descriptions of the dataset do not.
pub(super) fn holds_text(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let about = name.starts_with('.') || name.ends_with(".md") || ["dataset_info.json", "dataset_infos.json", "state.json"].contains(&name.as_str());
    !about && kind(Path::new(path)).is_some()
}

impl<'a> Documents<'a> {
    pub fn new(config: &'a TextConfig) -> Self {
        Documents { config, texts: Vec::new(), bytes: 0 }
    }

    /// True when as much text as is wanted was read.
    pub fn enough(&self) -> bool {
        self.config.max_bytes.is_some_and(|most| self.bytes >= most)
    }

    fn push(&mut self, text: &str) {
        self.bytes += text.len() as u64;
        self.texts.push(text.to_string());
    }

    /// Reads a file, or the files of a folder in the order of their names.
    pub fn read(&mut self, path: &Path) -> Result<()> {
        if !path.is_dir() {
            return self.read_file(path);
        }
        let listing = std::fs::read_dir(path).map_err(|error| Error::io(path, &error))?;
        let mut inside: Vec<_> = listing.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(|file| kind(file).is_some()).collect();
        inside.sort();
        inside.iter().filter(|file| file.is_file()).try_for_each(|file| if self.enough() { Ok(()) } else { self.read_file(file) })
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let length = std::fs::metadata(path).map_err(|error| Error::io(path, &error))?.len();
        let wanted = self.config.max_bytes.map_or(length, |most| most.saturating_sub(self.bytes).min(length));
        require_memory(&format!("text of {}", path.display()), wanted, "read a part of it: TextConfig::max_bytes")?;
        match kind(path) {
            Some(Kind::Lines) => self.read_lines(path),
            Some(Kind::Parquet) => self.read_parquet(path),
            Some(Kind::Text) | None => self.read_text(path),
        }
    }

    fn read_text(&mut self, path: &Path) -> Result<()> {
        let mut bytes = Vec::new();
        open(path)?.read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
        // Old e-texts are Latin-1; each of its bytes is the code point of the same number.
        let text = String::from_utf8(bytes).unwrap_or_else(|error| error.into_bytes().iter().map(|b| char::from(*b)).collect());
        for document in text.replace("\r\n", "\n").split("\n\n\n") {
            if !self.enough() {
                self.push(document);
            }
        }
        Ok(())
    }

    fn read_lines(&mut self, path: &Path) -> Result<()> {
        let mut reader = open(path)?;
        // Where an array begins, the file is one; lines that are objects or strings begin otherwise.
        if reader.fill_buf().map_err(|error| unreadable(path, &error))?.trim_ascii_start().starts_with(b"[") {
            return self.read_array(path, reader);
        }
        for (number, line) in reader.lines().enumerate() {
            if self.enough() {
                break;
            }
            let place = || format!("{} line {}", path.display(), number + 1);
            let line = line.map_err(|error| unreadable(path, &error).context(format_args!("line {}", number + 1)))?;
            if line.trim().is_empty() {
                continue;
            }
            let value: Value = serde_json::from_str(&line).map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {error}", place())))?;
            self.push_value(&value, place)?;
        }
        Ok(())
    }

    /// One JSON array of objects or strings.
    fn read_array(&mut self, path: &Path, reader: impl BufRead) -> Result<()> {
        let values: Vec<Value> = serde_json::from_reader(reader).map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {error}", path.display())))?;
        for (index, value) in values.iter().enumerate() {
            if self.enough() {
                break;
            }
            self.push_value(value, || format!("{} [{index}]", path.display()))?;
        }
        Ok(())
    }

    fn push_value(&mut self, value: &Value, place: impl Fn() -> String) -> Result<()> {
        let field = &self.config.field;
        match value.as_str().or_else(|| value.get(field).and_then(|text| text.as_str())) {
            Some(text) => self.push(text),
            None => {
                let names = value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>().join(", ")).unwrap_or_default();
                return Err(missing(place(), &names, field));
            }
        }
        Ok(())
    }

    fn read_parquet(&mut self, path: &Path) -> Result<()> {
        let bad = |error: parquet::errors::ParquetError| Error::new(ErrorKind::BadFile, format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(|error| Error::io(path, &error))?;
        let reader = SerializedFileReader::new(file).map_err(bad)?;
        let schema = reader.metadata().file_metadata().schema();
        let field = &self.config.field;
        let column = schema.get_fields().iter().find(|column| column.name() == field).cloned().ok_or_else(|| {
            let names: Vec<_> = schema.get_fields().iter().map(|column| column.name()).collect();
            missing(path.display().to_string(), &names.join(", "), field)
        })?;
        // Only this column is decoded.
        let narrow = Type::group_type_builder(schema.name()).with_fields(vec![Arc::clone(&column)]).build().map_err(bad)?;
        for row in reader.get_row_iter(Some(narrow)).map_err(bad)? {
            if self.enough() {
                break;
            }
            match row.map_err(bad)?.into_columns().pop() {
                Some((_, Field::Str(text))) => self.push(&text),
                Some((_, Field::Null)) | None => {}
                Some((_, other)) => {
                    return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: column '{field}'", path.display()), other, "text"));
                }
            }
        }
        Ok(())
    }
}

fn missing(place: String, names: &str, field: &str) -> Error {
    Error::expected(ErrorKind::BadFile, place, if names.is_empty() { "no fields" } else { names }, format_args!("a text field '{field}'")).help("name another with TextConfig::field")
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = BufReader::new(File::open(path).map_err(|error| Error::io(path, &error))?);
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        Some("zst") => Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(file).map_err(|error| unreadable(path, &error))?)),
        _ => Box::new(file),
    })
}

/// A fault of the disk, or of what lies on it.
fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::io(path, error),
        None => Error::new(ErrorKind::BadFile, format!("{}: {error}", path.display())),
    }
}
