//! What the program prints. `println!` and `eprintln!` of this program end here (see `main.rs`): they
//! never panic.
//!
//! A reader that went away (`| head`) ends the text quietly, and the command goes on with what it writes
//! to files. Any other fault, such as a full disk behind standard output, is kept and becomes the
//! command's error when it ends. What comes from files and models cannot steer a terminal: control
//! characters are shown as Rust writes them.

use cltlab::{Error, ErrorKind, Result};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

/// Set when an output of the command is standard output: text goes to standard error then.
static ASIDE: AtomicBool = AtomicBool::new(false);
/// Set when standard output is closed.
static GONE: AtomicBool = AtomicBool::new(false);
static FAULT: Mutex<Option<Error>> = Mutex::new(None);

/// Options whose value names an output.
const OUTPUTS: [&str; 4] = ["--output", "--raw", "--picture", "-o"];

/// Looks whether an output of the command is standard output.
pub fn begin() {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let standard = |value: &str| matches!(value, "-" | "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1");
    let apart = arguments.windows(2).any(|pair| OUTPUTS.contains(&pair[0].as_str()) && standard(&pair[1]));
    let joined = arguments.iter().any(|argument| OUTPUTS.iter().any(|name| argument.strip_prefix(name).is_some_and(|value| standard(value.trim_start_matches('=')))));
    ASIDE.store(apart || joined, Ordering::SeqCst);
}

/// Prints one line.
pub fn line(text: std::fmt::Arguments<'_>) {
    write(&format!("{}\n", printable(&text.to_string())));
}

/// Prints text as it comes, without line breaks of its own; false when it does not arrive.
pub fn write(text: &str) -> bool {
    if GONE.load(Ordering::SeqCst) {
        return false;
    }
    if ASIDE.load(Ordering::SeqCst) {
        return std::io::stderr().write_all(text.as_bytes()).is_ok();
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) => {
            GONE.store(true, Ordering::SeqCst);
            keep(error);
            false
        }
    }
}

/// Keeps a fault of standard output, unless it is a closed pipe.
pub fn keep(error: std::io::Error) {
    if error.kind() != std::io::ErrorKind::BrokenPipe {
        FAULT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert_with(|| Error::io("standard output", error));
    }
}

/// Writes to standard error. A message that cannot be written is lost.
pub fn aside(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&text.to_string()));
}

/// The fault of standard output, when there was one.
///
/// # Errors
/// `DiskFull` or `Io`.
pub fn end() -> Result<()> {
    if std::io::stdout().flush().is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe) {
        keep(std::io::Error::from(std::io::ErrorKind::WriteZero));
    }
    FAULT.lock().map_err(|_| Error::new(ErrorKind::Io, "standard output: lost"))?.take().map_or(Ok(()), Err)
}

/// `text` without characters that steer a terminal or turn the direction of writing.
pub fn printable(text: &str) -> String {
    let steers = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// `text` for an error, cut after 200 characters.
pub fn cut(text: &str) -> String {
    const MOST: usize = 200;
    let mut short: String = text.chars().take(MOST).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}

/// An error's text, its words cut where they are longer than any path, and the whole where it would fill screens.
pub fn bounded(text: &str) -> String {
    const WORD: usize = 1000;
    const WHOLE: usize = 10_000;
    let words = text.split_inclusive(char::is_whitespace).map(|word| match word.char_indices().nth(WORD) {
        Some((at, _)) => format!("{}… ", &word[..at]),
        None => word.to_string(),
    });
    let mut all: String = words.collect();
    if let Some((at, _)) = all.char_indices().nth(WHOLE) {
        all.truncate(at);
        all.push('…');
    }
    all
}
