//! The words by which a cell's process and the kernel understand each other on a cell's stdout.
//!
//! evcxr compiles its own marks ("the cell panicked", "a `?` failed") into every cell as fixed text, so
//! a cell that prints such a text would be taken for one that failed. The kernel therefore draws a
//! seal at its start, the cargo in front of cargo ([`crate::cargo`]) puts sealed marks of the same
//! length into a cell's source, and the keeper ([`crate::keeper`]) translates these and passes everything
//! else as text.

use crate::environment;
use std::hash::{BuildHasher, RandomState};

/// What begins a side-channel line; the rest of the line is JSON. The library's
/// `notebook::channel` writes the same.
pub const MAGIC: &str = "\u{1}cltlab ";

/// evcxr's marks on the stdout of the process that runs the cells.
pub const PANICKED: &str = "EVCXR_PANIC_NOTIFICATION";
pub const FAILED: &str = "EVCXR_ERROR_OCCURRED";
pub const CHANGED: &str = "EVCXR_VARIABLE_CHANGED_TYPE:";
pub const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";
pub const ASKS: &str = "EVCXR_INPUT_REQUEST";
/// The marks around one content of a display; any library may print them.
pub const BEGIN: &str = "EVCXR_BEGIN_CONTENT";
pub const END: &str = "EVCXR_END_CONTENT";

/// 24 hexadecimal digits that no cell knows.
#[derive(Clone)]
pub struct Seal(String);

impl Seal {
    /// A new one, from the operating system's randomness.
    pub fn draw() -> Self {
        let part = || format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        Seal(format!("{}{}", part(), part())[..24].to_string())
    }

    /// That of the kernel which started this process.
    pub fn of_environment() -> Self {
        let seal = environment::text(environment::SEAL).filter(|seal| seal.len() == 24 && seal.bytes().all(|byte| byte.is_ascii_hexdigit()));
        seal.map_or_else(Self::draw, Seal)
    }

    /// The seal's text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// A mark of evcxr's with the seal in it, of the same length.
    pub fn mark(&self, mark: &str) -> String {
        let colon = if mark.ends_with(':') { ":" } else { "" };
        format!("EVCXR_{}{colon}", &self.0[..mark.len() - "EVCXR_".len() - colon.len()])
    }

    /// The line that ends a cell.
    pub fn end(&self) -> String {
        format!("\u{1}cltlab-end:{}\n", self.0)
    }

    /// A cell's source with sealed marks; line and column of everything else stay the same.
    pub fn seal_source(&self, source: &str) -> String {
        let quoted = |before: &str, mark: &str, after: &str| (format!("{before}{mark}{after}"), format!("{before}{}{after}", self.mark(mark)));
        let places = [
            quoted("  Err(_) => {\n    println!(\"", PANICKED, "\");"),
            quoted("}).is_err() {\n    println!(\"", PANICKED, "\");"),
            quoted("USER_ERROR_OCCURRED: &str = \"", FAILED, "\""),
            quoted("VARIABLE_CHANGED_TYPE: &str = \"", CHANGED, "\""),
            quoted("write_all(b\"", BEGIN, " text/plain\\n\")"),
        ];
        places.iter().fold(source.to_string(), |source, (from, to)| source.replace(from, to))
    }
}

/// The file in the kernel's folder that says that the kernel takes what cells print.
pub const LISTENING: &str = "listening";

/// Whether the kernel that started this process takes what cells print.
pub fn is_listening() -> bool {
    environment::path(environment::FOLDER).is_some_and(|folder| folder.join(LISTENING).exists())
}

/// Whether a cell's shared object can ask the front end for a line: the crate `evcxr_input` is in it.
pub fn can_ask(path: &str) -> bool {
    let holds = |object: &[u8], text: &[u8]| object.windows(text.len()).any(|bytes| bytes == text);
    std::fs::read(path).is_ok_and(|object| holds(&object, b"11evcxr_input") && holds(&object, ASKS.as_bytes()))
}
