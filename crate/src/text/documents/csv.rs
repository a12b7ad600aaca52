//! CSV and TSV: the first row names the fields; quotes, line ends within quotes and doubled quotes as in RFC 4180.

use super::open::{open, unreadable};
use super::{missing, Documents};
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, BufRead};
use std::path::Path;

/// A row's fields, and how much of the file was read.
#[derive(Default)]
struct Row {
    fields: Vec<Vec<u8>>,
    /// Whether a field stood in quotes.
    quoted: bool,
}

impl Row {
    /// Reads the next row, of `most` bytes at most; false at the end. `line` counts line ends.
    fn read(&mut self, source: &mut impl BufRead, between: u8, most: u64, line: &mut usize) -> io::Result<bool> {
        let bad = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_string()));
        (self.fields, self.quoted) = (Vec::new(), false);
        let mut field = Vec::new();
        // Within quotes; just after a quote that may be the closing one; whether the field began.
        let (mut inside, mut closing, mut count) = (false, false, 0);
        loop {
            let Some(byte) = source.fill_buf()?.first().copied() else {
                if inside && !closing {
                    return bad("a quote that is not closed");
                }
                let any = count > 0;
                if any {
                    self.fields.push(field);
                }
                return Ok(any);
            };
            source.consume(1);
            count += 1;
            if count > most {
                return bad("a row that is longer than all text that is wanted: is a quote not closed?");
            }
            *line += usize::from(byte == b'\n');
            match byte {
                b'"' if closing => {
                    field.push(byte);
                    closing = false;
                }
                b'"' if inside => closing = true,
                b'"' if field.is_empty() && !inside => (inside, self.quoted) = (true, true),
                _ if inside && !closing => field.push(byte),
                _ if byte == between => {
                    self.fields.push(std::mem::take(&mut field));
                    (inside, closing) = (false, false);
                }
                b'\n' => {
                    if field.last() == Some(&b'\r') {
                        field.pop();
                    }
                    self.fields.push(field);
                    return Ok(true);
                }
                b'\r' => field.push(byte),
                _ if closing => return bad("text after a closing quote"),
                _ => field.push(byte),
            }
        }
    }

    /// An empty line.
    fn is_empty(&self) -> bool {
        !self.quoted && matches!(&self.fields[..], [only] if only.is_empty())
    }
}

impl Documents<'_> {
    pub(super) fn read_table(&mut self, path: &Path, between: u8) -> Result<()> {
        let mut source = open(path, self.room)?;
        let text = |bytes: Vec<u8>, line: usize| {
            String::from_utf8(bytes).map_err(|_| Error::expected(ErrorKind::BadFile, format_args!("{} line {line}", path.display()), "bytes that are not UTF-8", "text in UTF-8 or UTF-16").help("save the file as UTF-8"))
        };
        let mut line = 1;
        let mut header: Option<(usize, usize)> = None;
        let mut row = Row::default();
        while !self.enough() {
            let (first, most) = (line, self.longest());
            let place = || format!("{} line {first}", path.display());
            if !row.read(&mut source, between, most, &mut line).map_err(|error| unreadable(path, error).context(format_args!("line {first}")))? {
                break;
            }
            if row.is_empty() {
                continue;
            }
            let Some((column, columns)) = header else {
                let names = std::mem::take(&mut row.fields).into_iter().map(|name| text(name, first)).collect::<Result<Vec<_>>>()?;
                let named: Vec<usize> = names.iter().enumerate().filter(|(_, name)| name.trim() == self.config.field).map(|(at, _)| at).collect();
                header = match named[..] {
                    [column] => Some((column, names.len())),
                    [] => return Err(missing(place(), &names, &self.config.field)),
                    _ => return Err(Error::expected(ErrorKind::BadFile, place(), format_args!("several fields '{}'", self.config.field), "one")),
                };
                continue;
            };
            if row.fields.len() != columns {
                return Err(Error::expected(ErrorKind::BadFile, place(), format_args!("{} fields", row.fields.len()), format_args!("{columns}, as the first row names"))
                    .help("a field that holds a comma, a quote or a line end must stand in quotes"));
            }
            // A field that is empty is no text, as null in JSONL and parquet.
            let document = text(row.fields.swap_remove(column), first)?;
            if !document.is_empty() {
                self.push(path, document)?;
            }
        }
        Ok(())
    }
}
