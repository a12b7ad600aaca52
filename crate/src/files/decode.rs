//! Text of bytes: UTF-8 with or without a byte order mark, UTF-16 and UTF-32, which programs on Windows write.

use crate::error::{Error, ErrorKind, Result};
use std::io::{self, BufRead, Read};
use std::path::Path;

/// How many bytes of a file are looked at to tell its encoding.
const PROBE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Utf8,
    /// Bytes of a unit, and whether the lowest comes first.
    Wide { unit: usize, little: bool },
}

/// The encoding of a text that begins with these bytes, and how many of them are the mark.
fn encoding(start: &[u8]) -> (Encoding, usize) {
    let wide = |unit, little| Encoding::Wide { unit, little };
    match start {
        [0xEF, 0xBB, 0xBF, ..] => (Encoding::Utf8, 3),
        [0xFF, 0xFE, 0, 0, ..] => (wide(4, true), 4),
        [0, 0, 0xFE, 0xFF, ..] => (wide(4, false), 4),
        [0xFF, 0xFE, ..] => (wide(2, true), 2),
        [0xFE, 0xFF, ..] => (wide(2, false), 2),
        _ => (unmarked(start), 0),
    }
}

/// UTF-16 without a mark has zeros in one half of its units only: blanks, line ends and all of ASCII. Text in UTF-8 has none.
fn unmarked(start: &[u8]) -> Encoding {
    let zeros = |from: usize| start.iter().skip(from).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    let enough = start.len() / 16;
    let little = even == 0 && odd > enough;
    let wide = Encoding::Wide { unit: 2, little };
    let readable = |unit: u16| unit >= 0x20 || matches!(unit, 9 | 10 | 12 | 13);
    let units = start.chunks_exact(2).map(|two| if little { u16::from_le_bytes([two[0], two[1]]) } else { u16::from_be_bytes([two[0], two[1]]) });
    match little || (odd == 0 && even > enough) {
        true if units.into_iter().all(readable) => wide,
        _ => Encoding::Utf8,
    }
}

/// The bytes of a text as UTF-8, without the mark; bytes that are no UTF-16 where they should be are an error of the kind
/// `InvalidData`. Whether the rest is UTF-8 is left to the reader.
pub(crate) fn utf8<R: BufRead>(mut source: R) -> io::Result<Utf8<R>> {
    let mut start = Vec::new();
    source.by_ref().take(PROBE as u64).read_to_end(&mut start)?;
    let (encoding, mark) = encoding(&start);
    start.drain(..mark);
    Ok(Utf8 { source: io::Cursor::new(start).chain(source), encoding, held: Vec::new(), high: None })
}

/// See [`utf8`].
pub(crate) struct Utf8<R> {
    source: io::Chain<io::Cursor<Vec<u8>>, R>,
    encoding: Encoding,
    /// Encoded characters that did not fit the reader's room.
    held: Vec<u8>,
    /// The first half of a pair of UTF-16 units.
    high: Option<u16>,
}

impl<R: BufRead> Utf8<R> {
    /// The first bytes after the mark, as they lie in the source.
    pub fn start(&self) -> &[u8] {
        self.source.get_ref().0.get_ref()
    }

    /// Whether the source's bytes are passed on as they are.
    pub fn is_utf8(&self) -> bool {
        self.encoding == Encoding::Utf8
    }

    /// The next character of UTF-16 or UTF-32; `None` at the end.
    fn character(&mut self, unit: usize, little: bool) -> io::Result<Option<char>> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-{}: {what}", unit * 8));
        loop {
            let mut bytes = [0; 4];
            let mut filled = 0;
            while filled < unit {
                match self.source.read(&mut bytes[filled..unit])? {
                    0 if filled == 0 && self.high.is_none() => return Ok(None),
                    0 => return Err(bad("it ends within a character")),
                    count => filled += count,
                }
            }
            if !little {
                bytes[..unit].reverse();
            }
            let value = u32::from_le_bytes(bytes);
            let (high, low) = (self.high.take(), value & 0x3FF);
            match (unit, value, high) {
                (2, 0xDC00..=0xDFFF, Some(high)) => return Ok(char::from_u32(0x10000 + ((u32::from(high) & 0x3FF) << 10) + low)),
                (2, 0xD800..=0xDBFF, None) => self.high = Some(value as u16),
                (_, _, Some(_)) => return Err(bad("half of a surrogate pair")),
                _ => return char::from_u32(value).map(Some).ok_or_else(|| bad("a value that is no character")),
            }
        }
    }
}

impl<R: BufRead> Read for Utf8<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Encoding::Wide { unit, little } = self.encoding else { return self.source.read(into) };
        while self.held.len() < into.len().min(1 << 16) {
            let Some(character) = self.character(unit, little)? else { break };
            self.held.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
        let count = self.held.len().min(into.len());
        into[..count].copy_from_slice(&self.held[..count]);
        self.held.drain(..count);
        Ok(count)
    }
}

/// `bytes` as UTF-8 without a mark; those that are neither UTF-16 nor UTF-32 stay as they are.
///
/// # Errors
/// `BadFile` naming `path` for UTF-16 or UTF-32 that is cut off or damaged.
pub(crate) fn bytes(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if encoding(&bytes[..bytes.len().min(PROBE)]) == (Encoding::Utf8, 0) {
        return Ok(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let read = utf8(&bytes[..]).and_then(|mut reader| reader.read_to_end(&mut out));
    read.map_err(|error| Error::wrap(ErrorKind::BadFile, path.display(), error))?;
    Ok(out)
}

/// `bytes` as text, in UTF-8, UTF-16 or UTF-32, without a mark.
///
/// # Errors
/// `BadFile` naming `path` and the first byte that belongs to none of them.
pub(crate) fn text(path: &Path, given: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes(path, given)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::expected(ErrorKind::BadFile, path.display(), format_args!("byte {at}, which is not UTF-8"), "text in UTF-8 or UTF-16").help("save the file as UTF-8")
    })
}
