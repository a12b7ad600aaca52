//! JSONL, and a JSON array of the same: one object or string at a time, of which the text alone is kept.

use super::open::{open, unreadable};
use super::{missing, Documents};
use crate::error::{Error, ErrorKind, Result};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::io::{BufRead, Read};
use std::path::Path;

/// What a JSON value gives.
enum Entry {
    Text(String),
    /// `null`, as the value or as its field: no text, as in a parquet column.
    Null,
    /// No such field; those that are there.
    Missing(Vec<String>),
    /// Something else than text.
    Other(&'static str),
}

/// Reads an [`Entry`]: a string, or what an object has in `field`. Within an object there is no further `field`.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    field: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for Wanted<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> std::result::Result<Entry, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object or a string")
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Entry, E> {
        Ok(Entry::Text(text.to_string()))
    }

    fn visit_string<E>(self, text: String) -> std::result::Result<Entry, E> {
        Ok(Entry::Text(text))
    }

    fn visit_unit<E>(self) -> std::result::Result<Entry, E> {
        Ok(Entry::Null)
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Entry, E> {
        Ok(Entry::Other("true or false"))
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Entry, E> {
        Ok(Entry::Other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Entry, E> {
        Ok(Entry::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Entry, E> {
        Ok(Entry::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Entry, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Entry::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entry, A::Error> {
        let (mut found, mut names) = (None, Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if self.field == Some(name.as_str()) {
                found = Some(map.next_value_seed(Wanted { field: None })?);
            } else {
                map.next_value::<IgnoredAny>()?;
                names.push(name);
            }
        }
        Ok(match (self.field, found) {
            (None, _) => Entry::Other("an object"),
            (_, Some(entry)) => entry,
            (_, None) => Entry::Missing(names),
        })
    }
}

/// Calls `visit` with each item of an array and its number, until it says no.
struct Items<'a, F>(Wanted<'a>, F);

impl<'de, F: FnMut(usize, Entry) -> bool> Visitor<'de> for Items<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<(), A::Error> {
        let mut index = 0;
        while let Some(entry) = list.next_element_seed(self.0)? {
            if !(self.1)(index, entry) {
                return Err(A::Error::custom("enough"));
            }
            index += 1;
        }
        Ok(())
    }
}

impl Documents<'_> {
    pub(super) fn read_lines(&mut self, path: &Path) -> Result<()> {
        let mut reader = open(path, self.room)?;
        // Where an array begins, the file is one; lines that are objects or strings begin otherwise.
        if reader.fill_buf().map_err(|error| unreadable(path, error))?.trim_ascii_start().starts_with(b"[") {
            return self.read_array(path, reader);
        }
        let (mut line, mut number) = (Vec::new(), 0);
        while !self.enough() {
            line.clear();
            number += 1;
            let place = || format!("{} line {number}", path.display());
            let most = self.longest();
            let count = reader.by_ref().take(most).read_until(b'\n', &mut line).map_err(|error| unreadable(path, error).context(format_args!("line {number}")))?;
            if count == 0 {
                break;
            }
            if count as u64 == most && line.last() != Some(&b'\n') {
                return Err(Error::expected(ErrorKind::BadFile, place(), format_args!("more than {most} bytes"), "a JSON object or string a line"));
            }
            let text = std::str::from_utf8(&line).map_err(|error| Error::wrap(ErrorKind::BadFile, place(), error))?;
            // A mark stands within a file that was joined from several.
            let text = text.trim().trim_start_matches('\u{feff}').trim_start();
            if text.is_empty() {
                continue;
            }
            let mut source = serde_json::Deserializer::from_str(text);
            let entry = Wanted { field: Some(&self.config.field) }.deserialize(&mut source).and_then(|entry| source.end().map(|()| entry));
            let entry = entry.map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {}", place(), error.to_string().replace(" at line 1 column ", ", column "))).caused_by(error))?;
            self.push_entry(path, entry, place)?;
        }
        Ok(())
    }

    /// One JSON array of objects or strings.
    fn read_array(&mut self, path: &Path, reader: impl BufRead) -> Result<()> {
        let mut source = serde_json::Deserializer::from_reader(reader);
        let (mut stopped, mut fault) = (false, None);
        let wanted = Wanted { field: Some(&self.config.field) };
        let read = source.deserialize_seq(Items(wanted, |index, entry| {
            stopped = self.enough();
            if !stopped {
                fault = self.push_entry(path, entry, || format!("{} [{index}]", path.display())).err();
            }
            !stopped && fault.is_none()
        }));
        if let Some(fault) = fault {
            return Err(fault);
        }
        match read.and_then(|()| source.end()) {
            Err(error) if !stopped && error.is_io() => Err(unreadable(path, error.into())),
            Err(error) if !stopped => Err(Error::wrap(ErrorKind::BadFile, path.display(), error)),
            _ => Ok(()),
        }
    }

    fn push_entry(&mut self, path: &Path, entry: Entry, place: impl Fn() -> String) -> Result<()> {
        let field = &self.config.field;
        match entry {
            Entry::Text(text) => self.push(path, text),
            Entry::Null => Ok(()),
            Entry::Missing(names) => Err(missing(place(), &names, field)),
            Entry::Other(got) => Err(Error::expected(ErrorKind::BadFile, format_args!("{}: '{field}'", place()), got, "text").help("name another field with TextConfig::field")),
        }
    }
}
