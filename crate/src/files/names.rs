//! Names that come from files: of shards, members and layers.
//!
//! A file that others made must not choose what is read or written beside it. Such a name is a
//! relative path of plain components, or it is refused before anything is asked, read or written.

use crate::error::{Error, ErrorKind, Result};
use std::path::Path;

/// Characters of a name that an error shows.
const SHOWN: usize = 200;

/// `name` as a path below the folder that it is joined to. `field` says where the name was found.
///
/// # Errors
/// `BadFile` for what is absolute, empty, or has a component that is empty, `.`, `..` or begins with a
/// drive's letter and `:`; for `?`, `#`, `%`, `\` and control characters, NUL among them.
pub(crate) fn plain_relative<'a>(name: &'a str, field: &str) -> Result<&'a Path> {
    let plain = |part: &str| {
        let drive = part.len() >= 2 && part.as_bytes()[0].is_ascii_alphabetic() && part.as_bytes()[1] == b':';
        !part.is_empty() && part != "." && part != ".." && !drive
    };
    if name.split('/').all(plain) && !name.chars().any(|c| c.is_control() || matches!(c, '?' | '#' | '%' | '\\')) {
        return Ok(Path::new(name));
    }
    Err(Error::expected(
        ErrorKind::BadFile,
        field,
        format_args!("'{}'", shown(name)),
        "a relative path of plain names: no '..', no leading '/', none of ? # % \\ and no control characters",
    ))
}

/// A source, a path or a name of the hub, as text.
///
/// # Errors
/// `BadInput` for a path that is not UTF-8.
pub(crate) fn source(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::expected(ErrorKind::BadInput, "source", format_args!("{path:?}"), "a path or a name of the hub, in UTF-8"))
}

/// `text` for an error: without control characters, cut when it is long.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push_str("...");
    }
    short
}
