//! Pages of a parquet column before they are unpacked: the lengths that their headers give are held to what text can be packed
//! to, and what gzip and Brotli unpack to is counted, because the library unpacks them without a bound. It holds the other
//! codecs to the length that the header gives.

use super::open::{RATIO, SLACK};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Bytes of a page's header: as many as are looked at first, and as many as it may have with the statistics in it.
const HEADER: [u64; 2] = [1 << 12, 1 << 20];
/// Structures in structures, of which a page's header has two.
const DEPTH: usize = 8;

/// How the pages of a column are packed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Codec {
    Gzip,
    Brotli,
    Other,
}

/// What a page's header says, in bytes.
#[derive(Default)]
struct Header {
    unpacked: i64,
    packed: i64,
    /// Of the levels before the values, which a page of version 2 does not pack.
    levels: i64,
    /// A page of version 2 may leave its values as they are.
    plain: bool,
}

/// Thrift's compact encoding, as far as a page's header needs it.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let value = self.number()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn pass(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    /// Calls `take` with the number and type of each field of a structure; it reads the value.
    fn fields(&mut self, mut take: impl FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut id = 0;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                return Some(());
            }
            id = if byte >> 4 == 0 { self.signed()? } else { id + i64::from(byte >> 4) };
            take(self, id, byte & 15)?;
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            1 | 2 => Some(()),
            3 => self.pass(1),
            4..=6 => self.number().map(drop),
            7 => self.pass(8),
            8 => self.number().and_then(|count| self.pass(count)),
            9 | 10 if depth > 0 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.number()? } else { u64::from(byte >> 4) };
                (0..count).try_for_each(|_| if matches!(byte & 15, 1 | 2) { self.pass(1) } else { self.skip(byte & 15, depth - 1) })
            }
            12 if depth > 0 => self.fields(|source, _, kind| source.skip(kind, depth - 1)),
            _ => None,
        }
    }

    fn header(&mut self) -> Option<Header> {
        let mut header = Header::default();
        self.fields(|source, id, kind| match (id, kind) {
            (2, 5) => source.signed().map(|value| header.unpacked = value),
            (3, 5) => source.signed().map(|value| header.packed = value),
            // Version 2: the levels' lengths, and whether the values are packed.
            (8, 12) => source.fields(|source, id, kind| match (id, kind) {
                (5 | 6, 5) => source.signed().map(|value| header.levels += value),
                (7, 1 | 2) => Some(header.plain = kind == 2),
                _ => source.skip(kind, DEPTH),
            }),
            _ => source.skip(kind, DEPTH),
        })?;
        Some(header)
    }
}

/// The header of the page at byte `at`, and its length.
fn header_at(file: &File, at: u64, end: u64) -> io::Result<(Header, u64)> {
    for most in HEADER {
        let mut bytes = Vec::new();
        Part { file, at, end }.take(most).read_to_end(&mut bytes)?;
        let mut source = Compact(&bytes);
        if let Some(header) = source.header() {
            let used = bytes.len() - source.0.len();
            return Ok((header, used as u64));
        }
    }
    Err(bad("a page without a whole header"))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// Looks at the pages of a column from byte `start` to `end`, and fails where one unpacks to more than text can, or to another
/// length than its header gives.
pub(super) fn check(file: &File, start: u64, end: u64, codec: Codec) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let (header, used) = header_at(file, at, end)?;
        let sizes = (u64::try_from(header.packed), u64::try_from(header.unpacked), u64::try_from(header.levels));
        let (Ok(packed), Ok(unpacked), Ok(levels)) = sizes else { return Err(bad("a page of negative length")) };
        let from = at + used;
        at = from.saturating_add(packed);
        if at > end || levels > packed || levels > unpacked {
            return Err(bad("a page beyond its column"));
        }
        if unpacked > packed.saturating_mul(RATIO).max(SLACK) {
            return Err(bad(&format!("a page of {packed} bytes that unpacks to {unpacked}")));
        }
        if header.plain || packed == levels {
            continue;
        }
        let (part, most) = (Part { file, at: from + levels, end: at }, unpacked - levels + 1);
        let counted = match codec {
            Codec::Gzip => io::copy(&mut flate2::read::MultiGzDecoder::new(part).take(most), &mut io::sink())?,
            Codec::Brotli => io::copy(&mut brotli_decompressor::Decompressor::new(part, 1 << 16).take(most), &mut io::sink())?,
            Codec::Other => continue,
        };
        if counted != unpacked - levels {
            return Err(bad("a page that unpacks to another length than its header gives"));
        }
    }
    Ok(())
}

/// Some bytes of a file.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = (self.end - self.at).min(into.len() as u64) as usize;
        let count = self.file.read_at(&mut into[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
