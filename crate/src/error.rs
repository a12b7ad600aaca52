//! Errors: one opaque type for the whole library.
//!
//! An [`Error`] has a [kind](Error::kind) for programs and one sentence for people, built as
//! *what was read or done: field: got X, expected Y; what to do*. `Debug` prints the same text
//! as `Display`, because a notebook cell shows a failed `?` through `Debug`. The error of another
//! library that it came from is its [source](std::error::Error::source), and the kind follows from that
//! error's type and code, never from its text.

use std::error::Error as Cause;
use std::fmt;
use std::io::{self, ErrorKind as IoKind};
use std::path::Path;
use std::sync::Arc;

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

/// Characters of a message, at most.
const LONGEST: usize = 4000;

/// `text` without its middle where it is longer than `most` characters.
fn shortened(text: String, most: usize) -> String {
    // No character is shorter than a byte.
    if text.len() <= most {
        return text;
    }
    let count = text.chars().count();
    if count <= most {
        return text;
    }
    let at = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    let (start, end) = (at(most * 3 / 4), at(count - most / 4));
    format!("{} … ({} characters left out) … {}", &text[..start], count - most * 3 / 4 - most / 4, &text[end..])
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    help: Option<String>,
    cause: Option<Arc<dyn Cause + Send + Sync>>,
}

impl Error {
    /// An error of this kind with this sentence.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: shortened(message.into(), LONGEST), help: None, cause: None }))
    }

    /// *`place`: got `got`, expected `expected`*: the usual form. Of a longer `got` than 400 characters the middle is left out, as
    /// of a longer message than 4,000 in [`Error::new`]: files hold values of any length.
    #[doc(hidden)]
    pub fn expected(kind: ErrorKind, place: impl fmt::Display, got: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Error::new(kind, format!("{place}: got {}, expected {expected}", shortened(got.to_string(), LONGEST / 10)))
    }

    /// Refuses a count above `most`, for counts from which memory or time is computed, or that are held in 32 bits later.
    pub(crate) fn at_most(kind: ErrorKind, place: impl fmt::Display, count: usize, most: usize) -> Result<()> {
        if count <= most { Ok(()) } else { Err(Error::expected(kind, place, count, format_args!("at most {most}"))) }
    }

    /// A system error on a path; a missing file and a full disk get kinds of their own.
    ///
    /// ```
    /// use std::error::Error as _;
    /// let error = std::fs::read("no/such").map_err(|error| cltlab::Error::io("no/such", error)).unwrap_err();
    /// assert_eq!(error.kind(), cltlab::ErrorKind::MissingFile);
    /// assert!(error.source().is_some_and(|cause| cause.is::<std::io::Error>()));
    /// ```
    #[doc(hidden)]
    pub fn io(path: impl AsRef<Path>, error: io::Error) -> Self {
        let path = path.as_ref().display();
        let kind = of_system(error.kind());
        let message = match error.kind() {
            IoKind::NotFound => format!("{path}: no such file or folder"),
            IoKind::AlreadyExists => format!("{path}: a file of this name is there, where a folder is to be made"),
            IoKind::NotADirectory => format!("{path}: a part of this path is a file, not a folder"),
            _ => format!("{path}: {error}"),
        };
        let advice = match error.kind() {
            IoKind::AlreadyExists => Some("give another name, or move the file away"),
            IoKind::NotADirectory => Some("give a path below a folder"),
            _ if kind == ErrorKind::DiskFull => Some(FREE_SPACE),
            _ => None,
        };
        let made = Error::new(kind, message).caused_by(error);
        match advice {
            Some(advice) => made.help(advice),
            None => made,
        }
    }

    /// *`place`: the cause's text*, with the cause kept as [source](std::error::Error::source).
    #[doc(hidden)]
    pub fn wrap(kind: ErrorKind, place: impl fmt::Display, cause: impl Into<Box<dyn Cause + Send + Sync>>) -> Self {
        let cause = cause.into();
        Error::new(kind, format!("{place}: {cause}")).caused_by(cause)
    }

    /// Keeps the error that this one came from as its [source](std::error::Error::source).
    #[must_use]
    #[doc(hidden)]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn Cause + Send + Sync>>) -> Self {
        self.0.cause = Some(Arc::from(cause.into()));
        self
    }

    /// Adds what the reader can do about it.
    #[must_use]
    #[doc(hidden)]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Puts the outer action or path before the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = shortened(format!("{context}: {}", self.0.message), LONGEST);
        self
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do about it, when the error knows.
    #[doc(hidden)]
    pub fn advice(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// True when memory ran out or was predicted to.
    #[doc(hidden)]
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

impl Cause for Error {
    fn source(&self) -> Option<&(dyn Cause + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn Cause + 'static))
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // Where a panic's backtrace is wanted, an error's is not.
        if let candle_core::Error::WithBacktrace { inner, .. } = error {
            return Error::from(*inner);
        }
        let kind = of_candle(&error);
        // The driver is not asked for the text of a code that is known.
        let message = match kind {
            ErrorKind::OutOfMemory if matches!(innermost(&error), candle_core::Error::Cuda(_)) => "out of memory on the GPU (CUDA_ERROR_OUT_OF_MEMORY)".to_string(),
            _ => error.to_string(),
        };
        let made = Error::new(kind, message).caused_by(error);
        match kind {
            ErrorKind::OutOfMemory => made.help("use a smaller batch, fewer features or a shorter prompt"),
            ErrorKind::DiskFull => made.help(FREE_SPACE),
            _ => made,
        }
    }
}

/// The kind of a system error.
fn of_system(kind: IoKind) -> ErrorKind {
    match kind {
        IoKind::NotFound => ErrorKind::MissingFile,
        // The last is a limit on the size of files, as `ulimit -f` sets.
        IoKind::StorageFull | IoKind::QuotaExceeded | IoKind::FileTooLarge => ErrorKind::DiskFull,
        IoKind::OutOfMemory => ErrorKind::OutOfMemory,
        _ => ErrorKind::Io,
    }
}

/// The error below candle's layers of context.
fn innermost(error: &candle_core::Error) -> &candle_core::Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } | candle_core::Error::Context { inner, .. } | candle_core::Error::WithPath { inner, .. } => innermost(inner),
        _ => error,
    }
}

/// The kind of candle's error: memory and system errors by their codes, everything else is [`ErrorKind::Tensor`].
fn of_candle(error: &candle_core::Error) -> ErrorKind {
    match innermost(error) {
        candle_core::Error::Io(error) => of_system(error.kind()),
        // Its Display is its own; the system's error lies one deeper.
        candle_core::Error::SafeTensor(safetensors::SafeTensorError::IoError(error)) => of_system(error.kind()),
        candle_core::Error::Cuda(cause) | candle_core::Error::WrappedContext { wrapped: cause, .. } => of_cause(cause.as_ref()),
        _ => ErrorKind::Tensor,
    }
}

/// The kind of another library's error, by the first cause in its chain whose code is known.
fn of_cause(error: &(dyn Cause + 'static)) -> ErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<candle_core::Error>() {
            return of_candle(error);
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return of_system(error.kind());
        }
        #[cfg(feature = "cuda")]
        if is_out_of_gpu_memory(error) {
            return ErrorKind::OutOfMemory;
        }
        cause = error.source();
    }
    ErrorKind::Tensor
}

/// Whether the driver or cuBLAS says by its code that there is no memory left.
#[cfg(feature = "cuda")]
fn is_out_of_gpu_memory(error: &(dyn Cause + 'static)) -> bool {
    use candle_core::cuda_backend::cudarc::cublas::{result::CublasError, sys::cublasStatus_t};
    use candle_core::cuda_backend::cudarc::driver::{sys::CUresult, DriverError};
    use candle_core::cuda_backend::CudaError;
    let driver = |error: &DriverError| error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    let products = |error: &CublasError| error.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED;
    match error.downcast_ref::<CudaError>() {
        // Its transparent variants hand on their cause's source, not the cause.
        Some(CudaError::Cuda(error) | CudaError::Load { cuda: error, .. }) => driver(error),
        Some(CudaError::Cublas(error)) => products(error),
        _ => error.downcast_ref().is_some_and(driver) || error.downcast_ref().is_some_and(products),
    }
}
