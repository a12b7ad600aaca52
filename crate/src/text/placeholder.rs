//! What a file holds in place of what its name says: a Git LFS pointer, a web page; and how values and names of
//! files are shown in errors.

use crate::error::{Error, ErrorKind};
use std::io::Read;
use std::path::Path;

/// How many bytes are enough to tell.
const START: usize = 256;

/// What content that begins so is, where it is no file of a model but stands in a file's place.
pub(crate) fn placeholder(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let lower: Vec<u8> = text.iter().take(START).map(u8::to_ascii_lowercase).collect();
    if lower.starts_with(b"version https://git-lfs") || lower.starts_with(b"version http://git-media") {
        return Some(("a Git LFS pointer, not the file itself", "run `git lfs pull` in the repository's folder, or download the file again"));
    }
    let page = [b"<!doctype".as_slice(), b"<html", b"<head", b"<?xml"].iter().any(|tag| lower.starts_with(tag));
    page.then_some(("an HTML page, not the file itself", "the download saved the site's page (a log-in, an error); download the file again"))
}

/// The error for a file at `path` that begins like a placeholder; `None` for any other, and for one that cannot be read.
pub(crate) fn stands_in(path: &Path) -> Option<Error> {
    let mut start = Vec::with_capacity(START);
    crate::files::open(path).ok()?.take(START as u64).read_to_end(&mut start).ok()?;
    refused(path, &start)
}

/// As [`stands_in`], for content that was read.
pub(crate) fn refused(path: &Path, start: &[u8]) -> Option<Error> {
    let (what, help) = placeholder(start)?;
    Some(Error::new(ErrorKind::BadFile, format!("{}: {what}", path.display())).help(help))
}

/// A value of a file for an error: control characters escaped, cut at 200 characters.
pub(crate) fn shown(value: impl std::fmt::Display) -> String {
    const MOST: usize = 200;
    let text = value.to_string();
    let mut short: String = text.chars().take(MOST).flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}

/// The first ten of a list, and how many more there are.
pub(crate) fn first_ten(list: &[String], all: usize) -> String {
    const MOST: usize = 10;
    let names: Vec<String> = list.iter().take(MOST).map(shown).collect();
    let more = all.saturating_sub(names.len());
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}

/// Writes a line to standard error; one that is closed or full is no reason to stop.
pub(crate) fn warn(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}
