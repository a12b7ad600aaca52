//! Notebook: the only room that knows it is inside one.
//!
//! [`attach`] joins a cell's process to the kernel: the live side channel ([`Display`]), the stop
//! flag on an interrupt, live progress, and a panic message of one line. [`display()`] shows
//! values, [`param`] hands parameters in. Without the kernel of this project (stock
//! evcxr, a terminal) everything still works, only not live.

mod channel;
mod display;
mod interrupt;
pub(crate) mod live;
mod param;

pub use channel::{clear, Display};
pub use display::display;
pub use param::param;

use crate::error::Result;

/// What [`attach`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notebook {
    /// Displays are updated while a cell runs.
    pub live: bool,
}

/// Joins this process to the notebook. The kernel's prelude calls it; on a stock evcxr kernel call
/// it once, to get short panic messages.
///
/// ```
/// let notebook = cltlab::notebook::attach()?;
/// assert!(!notebook.live, "a test is not a notebook");
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `Unsupported` when the system refuses signal handlers.
pub fn attach() -> Result<Notebook> {
    interrupt::shorten_panics();
    if channel::available() {
        interrupt::listen()?;
    }
    live::install();
    Ok(Notebook { live: channel::available() })
}
