//! Errors: one opaque type for the whole library.
//!
//! An [`Error`] has a [kind](Error::kind) for programs and one sentence for people, built as
//! *what was read or done: field: got X, expected Y; what to do*. `Debug` prints the same text
//! as `Display`, because a notebook cell shows a failed `?` through `Debug`.

use std::fmt;
use std::path::Path;

/// The result of every fallible call. The second parameter has a default, so that a notebook
/// cell may still write `Result<i32, String>` with the prelude in scope.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for programs that decide by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or folder that was asked for is not there.
    MissingFile,
    /// A file is there but cannot be read as what it should be (truncated, wrong magic, not JSON).
    BadFile,
    /// A tensor is missing or has another shape than the configuration says.
    BadTensor,
    /// A model architecture that this library does not know.
    UnknownArchitecture,
    /// A value from the caller is unusable (empty prompt, token outside the vocabulary).
    BadInput,
    /// A field of a configuration is out of range.
    BadConfig,
    /// Two things that do not belong together, such as a CLT and another model.
    Mismatch,
    /// NaN or infinity where a number was needed.
    NotFinite,
    /// Not enough memory, by prediction or by the allocator's word.
    OutOfMemory,
    /// The disk is full.
    DiskFull,
    /// The network or the hub could not be reached.
    Network,
    /// The hub refused: the repository is private or gated, and the token is missing or not enough.
    AccessDenied,
    /// The user asked to stop before there was a result.
    Interrupted,
    /// The system refused to read or write.
    Io,
    /// Asked for something that this build or device cannot do.
    Unsupported,
    /// A fault inside the tensor library; the cause is in the text.
    Tensor,
}

/// The error type of every function here.
///
/// ```
/// use cltlab::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::BadConfig, "TrainConfig::lr: got 0, expected a number above 0");
/// assert_eq!(format!("{error:?}"), "TrainConfig::lr: got 0, expected a number above 0");
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

const FREE_SPACE: &str = "free some space and save again; what was saved before is untouched";

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    help: Option<String>,
}

impl Error {
    /// An error of this kind with this sentence.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: message.into(), help: None }))
    }

    /// *`place`: got `got`, expected `expected`*: the usual form.
    pub fn expected(kind: ErrorKind, place: impl fmt::Display, got: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Error::new(kind, format!("{place}: got {got}, expected {expected}"))
    }

    /// A system error on a path; a missing file and a full disk get kinds of their own.
    pub fn io(path: impl AsRef<Path>, error: &std::io::Error) -> Self {
        let path = path.as_ref().display();
        match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(ErrorKind::MissingFile, format!("{path}: no such file or folder")),
            // The last is a limit on the size of files, as `ulimit -f` sets.
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge => {
                Error::new(ErrorKind::DiskFull, format!("{path}: {error}")).help(FREE_SPACE)
            }
            std::io::ErrorKind::AlreadyExists => Error::new(ErrorKind::Io, format!("{path}: a file of this name is there, where a folder is to be made")).help("give another name, or move the file away"),
            std::io::ErrorKind::NotADirectory => Error::new(ErrorKind::Io, format!("{path}: a part of this path is a file, not a folder")).help("give a path below a folder"),
            std::io::ErrorKind::OutOfMemory => Error::new(ErrorKind::OutOfMemory, format!("{path}: {error}")),
            _ => Error::new(ErrorKind::Io, format!("{path}: {error}")),
        }
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Puts the outer action or path before the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do about it, when the error knows.
    pub fn advice(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// True when memory ran out or was predicted to.
    pub fn is_out_of_memory(&self) -> bool {
        self.kind() == ErrorKind::OutOfMemory
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // Where a panic's backtrace is wanted, an error's is not.
        if let candle_core::Error::WithBacktrace { inner, .. } = error {
            return Error::from(*inner);
        }
        let message = error.to_string();
        let lower = message.to_lowercase();
        let no_room = ["out of memory", "out_of_memory", "cublas_status_alloc_failed"];
        if no_room.iter().any(|words| lower.contains(words)) {
            let message = if lower.contains("cuda_error") { "out of memory on the GPU (CUDA_ERROR_OUT_OF_MEMORY)".into() } else { message };
            return Error::new(ErrorKind::OutOfMemory, message).help("use a smaller batch, fewer features or a shorter prompt");
        }
        // The tensor library's writers pass on the system's words for a full disk, a quota and a limit on the size of files.
        if ["no space left", "quota exceeded", "file too large"].iter().any(|words| lower.contains(words)) {
            return Error::new(ErrorKind::DiskFull, message).help(FREE_SPACE);
        }
        Error::new(ErrorKind::Tensor, message)
    }
}
