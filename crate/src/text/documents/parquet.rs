//! Parquet: one column of text.

use super::open::{binary, no_text, RATIO, SLACK};
use super::pages::{self, Codec};
use super::{missing, Documents};
use crate::error::{Error, ErrorKind, Result};
use crate::files::names::shown;
use parquet::basic::{Compression, ConvertedType, Repetition};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Whether a column's values are text.
fn is_text(column: &Type) -> bool {
    let info = column.get_basic_info();
    let repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
    column.is_primitive() && !repeated && matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON)
}

impl Documents<'_> {
    pub(super) fn read_parquet(&mut self, path: &Path) -> Result<()> {
        let bad = |error: parquet::errors::ParquetError| Error::new(ErrorKind::BadFile, format!("{}: {}", path.display(), shown(&error.to_string()))).caused_by(error);
        let file = crate::files::open(path)?;
        let mut start = [0; 64];
        let count = file.read_at(&mut start, 0).map_err(|error| Error::io(path, error))?;
        if let Some(what) = binary(&start[..count]).filter(|_| !start.starts_with(b"PAR1")) {
            return Err(no_text(path, what));
        }
        let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
        let own = file.try_clone().map_err(|error| Error::io(path, error))?;
        let reader = SerializedFileReader::new(file).map_err(bad)?;
        let schema = reader.metadata().file_metadata().schema();
        let field = &self.config.field;
        let column = schema.get_fields().iter().find(|column| column.name() == field).cloned().ok_or_else(|| {
            let names: Vec<_> = schema.get_fields().iter().map(|column| column.name().to_string()).collect();
            missing(path.display(), &names, field)
        })?;
        let place = format!("{}: column '{field}'", path.display());
        if !is_text(&column) {
            let got = match column.is_primitive() {
                true => format!("values of type {} that are not declared as text", column.get_physical_type()),
                false => "lists or groups".to_string(),
            };
            return Err(Error::expected(ErrorKind::BadFile, place, got, "text (a byte array declared as UTF8)").help("name another column with TextConfig::field, or cast it to string"));
        }
        for group in reader.metadata().row_groups() {
            for chunk in group.columns().iter().filter(|chunk| chunk.column_path().parts().first() == Some(field)) {
                let wrong = |what: &str| Error::new(ErrorKind::BadFile, format!("{place}: {what}"));
                let size = |value: i64| u64::try_from(value).ok().filter(|value| *value <= length);
                let offsets = (size(chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset())), size(chunk.data_page_offset()), size(chunk.compressed_size()));
                let (Some(start), Some(_), Some(count)) = offsets else { return Err(wrong("pages beyond the end of the file")) };
                let codec = match chunk.compression() {
                    Compression::UNCOMPRESSED => continue,
                    Compression::GZIP(_) => Codec::Gzip,
                    Compression::BROTLI(_) => Codec::Brotli,
                    _ => Codec::Other,
                };
                pages::check(&own, start, (start + count).min(length), codec).map_err(|error| wrong(&error.to_string()).caused_by(error))?;
            }
        }
        // Many rows may be one text of the file's dictionary. What the user bounds is not bounded here.
        let most = if self.config.max_bytes.is_some() { u64::MAX } else { length.saturating_mul(RATIO).max(SLACK).saturating_add(self.bytes) };
        // Only this column is decoded.
        let narrow = Type::group_type_builder(schema.name()).with_fields(vec![Arc::clone(&column)]).build().map_err(bad)?;
        for row in reader.get_row_iter(Some(narrow)).map_err(bad)? {
            if self.enough() {
                break;
            }
            match row.map_err(bad)?.into_columns().pop() {
                Some((_, Field::Str(text))) => self.push(path, text)?,
                Some((_, Field::Null)) | None => {}
                Some(_) => return Err(Error::expected(ErrorKind::BadFile, place, "a value of another type", "text")),
            }
            if self.bytes > most {
                return Err(Error::expected(ErrorKind::BadFile, place, format_args!("more than {RATIO} times the file's length"), "less: the same texts over and over")
                    .help("if it is meant, say how much of it is read: TextConfig::max_bytes"));
            }
        }
        Ok(())
    }
}
