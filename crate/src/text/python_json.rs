//! JSON as Python writes it: `", "` and `": "`, with an indent one entry a line. Chat templates
//! put tools into prompts this way, and a model was tuned on exactly that spacing.

use serde_json::ser::{Formatter, Serializer};
use std::io::{Result, Write};

/// Levels of lists and objects, as many as are read.
const DEPTH: usize = 128;
/// Blanks of an indent.
const INDENT: usize = 64;

/// `json.dumps(value, indent=indent, ensure_ascii=False)`, of `most` bytes at most.
pub(super) fn text(value: &impl serde::Serialize, indent: Option<usize>, most: usize) -> serde_json::Result<String> {
    if indent.is_some_and(|indent| indent > INDENT) {
        return Err(serde::ser::Error::custom(format_args!("indent: more than {INDENT}")));
    }
    let mut out = Bounded { bytes: Vec::new(), most };
    value.serialize(&mut Serializer::with_formatter(&mut out, Python { indent, depth: 0, filled: false }))?;
    String::from_utf8(out.bytes).map_err(serde::ser::Error::custom)
}

/// Bytes that are written, up to a number; more is an error.
pub(super) struct Bounded {
    pub bytes: Vec<u8>,
    pub most: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            return Err(std::io::Error::other(format!("more than {} bytes of text", self.most)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Python {
    indent: Option<usize>,
    depth: usize,
    /// The array or object that ends next has an entry; an empty one stays on its line.
    filled: bool,
}

impl Python {
    fn open<W: ?Sized + Write>(&mut self, out: &mut W, sign: &[u8]) -> Result<()> {
        self.depth += 1;
        self.filled = false;
        if self.depth > DEPTH {
            return Err(std::io::Error::other(format!("more than {DEPTH} levels, one within the other")));
        }
        out.write_all(sign)
    }

    fn close<W: ?Sized + Write>(&mut self, out: &mut W, sign: &[u8]) -> Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        out.write_all(sign)
    }

    fn entry<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        let between: &[u8] = match (first, self.indent) {
            (true, _) => b"",
            (false, Some(_)) => b",",
            (false, None) => b", ",
        };
        out.write_all(between)?;
        self.line(out)
    }

    fn line<W: ?Sized + Write>(&self, out: &mut W) -> Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{}", " ".repeat(indent * self.depth)),
            None => Ok(()),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.entry(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.entry(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        out.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Result<()> {
        self.filled = true;
        Ok(())
    }
}
