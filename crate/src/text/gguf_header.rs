//! A GGUF file's header, checked before candle reads it: what llama.cpp refuses is refused here, with the
//! name of the field or tensor. Cost: one pass over the header.

use super::placeholder::{refused, shown};
use crate::error::{Error, ErrorKind, Result};
use candle_core::quantized::gguf_file::Content;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// ggml's types by number: name, numbers in a block, bytes of a block; 0 bytes where the type is not read.
const TYPES: [(u32, &str, u64, u64); 40] = [
    (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (4, "Q4_2", 0, 0), (5, "Q4_3", 0, 0), (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292), (16, "IQ2_XXS", 0, 0), (17, "IQ2_XS", 0, 0), (18, "IQ3_XXS", 0, 0),
    (19, "IQ1_S", 0, 0), (20, "IQ4_NL", 0, 0), (21, "IQ3_S", 0, 0), (22, "IQ2_S", 0, 0), (23, "IQ4_XS", 0, 0), (24, "I8", 0, 0), (25, "I16", 0, 0),
    (26, "I32", 0, 0), (27, "I64", 0, 0), (28, "F64", 0, 0), (29, "IQ1_M", 0, 0), (30, "BF16", 1, 2), (31, "Q4_0_4_4", 0, 0), (32, "Q4_0_4_8", 0, 0),
    (33, "Q4_0_8_8", 0, 0), (34, "TQ1_0", 0, 0), (35, "TQ2_0", 0, 0), (36, "IQ4_NL_4_4", 0, 0), (37, "IQ4_NL_4_8", 0, 0), (38, "IQ4_NL_8_8", 0, 0),
    (39, "MXFP4", 0, 0),
];

/// Opens a GGUF file, checks its header and reads it.
///
/// # Errors
/// `MissingFile`; `BadFile` naming what is wrong; `Unsupported` for a tensor type that is not read, by its name.
pub(crate) fn read(path: &Path) -> Result<(Content, BufReader<File>)> {
    let file = crate::files::open(path)?;
    let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
    let mut scan = Scan { reader: BufReader::new(file), at: 0, length, narrow: false, path };
    scan.check()?;
    let mut reader = scan.reader;
    reader.seek(SeekFrom::Start(0)).map_err(|error| Error::io(path, error))?;
    let content = Content::read(&mut reader)
        .map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: not a readable GGUF file: {}", path.display(), shown(&error))).caused_by(error).help("check that the download is complete"))?;
    Ok((content, reader))
}

struct Scan<'a> {
    reader: BufReader<File>,
    at: u64,
    length: u64,
    /// Version 1: lengths of 4 bytes.
    narrow: bool,
    path: &'a Path,
}

/// A tensor as the header has it.
struct Entry {
    name: String,
    bytes: u64,
    offset: u64,
}

impl Scan<'_> {
    fn bad(&self, field: impl std::fmt::Display, got: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
        Error::expected(ErrorKind::BadFile, format_args!("{}: {field}", self.path.display()), got, expected)
    }

    fn cut(&self, needed: u64) -> Error {
        let got = format!("{} bytes", self.length);
        self.bad("length", got, format_args!("at least {} by its header", self.at.saturating_add(needed))).help("the file is truncated or its header is damaged; check that the download is complete")
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        if self.length - self.at < N as u64 {
            return Err(self.cut(N as u64));
        }
        self.reader.read_exact(&mut bytes).map_err(|error| Error::io(self.path, error))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    /// A length or count.
    fn size(&mut self) -> Result<u64> {
        if self.narrow { self.number().map(u64::from) } else { Ok(u64::from_le_bytes(self.take()?)) }
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        if bytes > self.length - self.at {
            return Err(self.cut(bytes));
        }
        self.reader.seek_relative(bytes as i64).map_err(|error| Error::io(self.path, error))?;
        self.at += bytes;
        Ok(())
    }

    fn name(&mut self, what: &str) -> Result<String> {
        const MOST: u64 = 65_535;
        let length = self.size()?;
        if length > MOST {
            return Err(self.bad(format_args!("length of {what}"), format_args!("{length} bytes"), format_args!("at most {MOST}")));
        }
        if length > self.length - self.at {
            return Err(self.cut(length));
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| Error::io(self.path, error))?;
        self.at += length;
        String::from_utf8(bytes).map_err(|_| self.bad(what, "bytes that are no UTF-8", "a text"))
    }

    fn magic(&mut self) -> Result<()> {
        let mut start = Vec::new();
        self.reader.by_ref().take(256).read_to_end(&mut start).map_err(|error| Error::io(self.path, error))?;
        self.reader.seek(SeekFrom::Start(0)).map_err(|error| Error::io(self.path, error))?;
        if let Some(error) = refused(self.path, &start) {
            return Err(error);
        }
        if !start.starts_with(b"GGUF") {
            return Err(Error::new(ErrorKind::BadFile, format!("{}: not a GGUF file: it does not begin with 'GGUF'", self.path.display())));
        }
        self.skip(4)?;
        let version = self.number()?;
        if !(1..=3).contains(&version) {
            if (1..=3).contains(&version.swap_bytes()) {
                let message = format!("{}: a big-endian GGUF file, expected a little-endian one", self.path.display());
                return Err(Error::new(ErrorKind::Unsupported, message).help("take the little-endian file, or convert it with gguf-py's gguf_convert_endian.py FILE little"));
            }
            return Err(self.bad("GGUF version", version, "1, 2 or 3"));
        }
        self.narrow = version == 1;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.magic()?;
        let (tensors, fields) = (self.size()?, self.size()?);
        // A field has at least a length, a type and a byte, a tensor two lengths' and two types' bytes.
        let least = tensors.saturating_mul(20).saturating_add(fields.saturating_mul(9));
        if least > self.length - self.at {
            return Err(self.cut(least));
        }
        let mut alignment = 32;
        let mut seen = HashSet::new();
        for _ in 0..fields {
            let key = self.name("a metadata key")?;
            let kind = self.number()?;
            if key == "general.alignment" {
                if kind != 4 {
                    return Err(self.bad("general.alignment", format_args!("a value of type {kind}"), "a u32 (type 4)"));
                }
                let value = self.number()?;
                if !value.is_power_of_two() {
                    return Err(self.bad("general.alignment", value, "a power of two"));
                }
                alignment = u64::from(value);
            } else {
                self.value(kind, &key, 0)?;
            }
            let place = shown(&key);
            if !seen.insert(key) {
                return Err(self.bad(format_args!("metadata key {place}"), "it twice", "each key once"));
            }
        }
        let mut entries = Vec::new();
        seen.clear();
        for _ in 0..tensors {
            let entry = self.tensor(alignment)?;
            if !seen.insert(entry.name.clone()) {
                return Err(self.bad(format_args!("tensor {}", shown(&entry.name)), "it twice", "each tensor once"));
            }
            entries.push(entry);
        }
        self.places(entries, alignment)
    }

    /// Passes over a value.
    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<()> {
        match kind {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => {
                let length = self.size()?;
                self.skip(length)
            }
            9 if depth < 8 => {
                let (kind, count) = (self.number()?, self.size()?);
                let width = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    10..=12 => 8,
                    _ => 0,
                };
                if width > 0 {
                    return self.skip(count.saturating_mul(width));
                }
                // Each has at least a length.
                if count.saturating_mul(4) > self.length - self.at {
                    return Err(self.cut(count.saturating_mul(4)));
                }
                (0..count).try_for_each(|_| self.value(kind, key, depth + 1))
            }
            other => Err(self.bad(format_args!("metadata key {}", shown(key)), format_args!("a value of type {other}"), "a type from 0 to 12, lists at most 8 deep")),
        }
    }

    fn tensor(&mut self, alignment: u64) -> Result<Entry> {
        let name = self.name("a tensor's name")?;
        let place = format!("tensor {}", shown(&name));
        let count = self.number()?;
        if !(1..=4).contains(&count) {
            return Err(self.bad(place, format_args!("{count} dimensions"), "1 to 4"));
        }
        let dims = (0..count).map(|_| self.size()).collect::<Result<Vec<u64>>>()?;
        let numbers = dims.iter().try_fold(1_u64, |all, size| all.checked_mul(*size)).filter(|all| (1..1 << 48).contains(all));
        let kind = self.number()?;
        let known = TYPES.iter().find(|known| known.0 == kind);
        let offset = u64::from_le_bytes(self.take()?);
        let Some(numbers) = numbers else {
            return Err(self.bad(place, format_args!("shape {dims:?}"), "sizes above 0 that fit the file"));
        };
        let Some(&(.., block, bytes)) = known.filter(|known| known.3 > 0) else {
            let what = known.map_or_else(|| format!("type {kind}"), |known| format!("type {}", known.1));
            let read: Vec<&str> = TYPES.iter().filter(|known| known.3 > 0).map(|known| known.1).collect();
            let error = Error::expected(ErrorKind::Unsupported, format_args!("{}: {place}", self.path.display()), what, format_args!("one of {}", read.join(", ")));
            return Err(error.help("take a file of the model in one of these, such as Q8_0 or F16"));
        };
        if dims[0] % block != 0 {
            return Err(self.bad(place, format_args!("rows of {}", dims[0]), format_args!("a multiple of the block of {block}")));
        }
        if offset % alignment != 0 {
            return Err(self.bad(format_args!("{place}: offset"), offset, format_args!("a multiple of the alignment of {alignment}")));
        }
        Ok(Entry { name, bytes: (numbers / block).saturating_mul(bytes), offset })
    }

    /// Each tensor lies within the file and none on another.
    fn places(&self, mut entries: Vec<Entry>, alignment: u64) -> Result<()> {
        let start = self.at.next_multiple_of(alignment);
        entries.sort_by_key(|entry| entry.offset);
        let mut end = (0, String::new());
        for entry in entries {
            let place = format!("tensor {}", shown(&entry.name));
            if entry.offset < end.0 {
                return Err(self.bad(format_args!("{place}: offset"), format_args!("{}, inside tensor {}", entry.offset, shown(&end.1)), "a place of its own"));
            }
            let last = entry.offset.saturating_add(entry.bytes);
            if start.saturating_add(last) > self.length {
                let got = format!("{} bytes", self.length);
                return Err(self.bad("length", got, format_args!("{} for {place}", start.saturating_add(last))).help("the file is truncated; check that the download is complete"));
            }
            end = (last, entry.name);
        }
        Ok(())
    }
}
