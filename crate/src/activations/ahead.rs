//! Filling ahead: a thread makes the next filling of the buffer while the present one is used.
//!
//! One filling at most is under way, so memory holds two. What it holds follows from its number, so
//! the tokens are the same with and without it. It pays where the step runs elsewhere than the model
//! does, or with activations read from disk, and on a GPU: there both share one stream, and this thread has the model's
//! kernels asked for while the step's run. On the CPU both share the cores.

use super::held::Filling;
use super::Activations;
use crate::error::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A filling that is being made.
pub(crate) struct Ahead {
    filling: u64,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Filling>>>,
}

impl Ahead {
    /// Begins filling number `filling`; the room of `spare` is used again. `None` when the system
    /// gives no thread: the filling is then made when it is needed.
    pub fn begin(activations: &Activations, filling: u64, mut spare: Filling) -> Option<Self> {
        let cancel = Arc::new(AtomicBool::new(false));
        let (source, stop) = (activations.clone(), cancel.clone());
        let work = move || source.fill(filling, &mut spare, Some(&stop)).map(|()| spare);
        let thread = std::thread::Builder::new().name("activations".into()).spawn(work).ok()?;
        Some(Ahead { filling, cancel, thread: Some(thread) })
    }

    /// Waits for filling number `filling`; `None` when it is another, or was stopped: it is then to be
    /// made anew.
    ///
    /// # Errors
    /// What the thread met.
    pub fn take(mut self, filling: u64) -> Result<Option<Filling>> {
        if self.filling != filling {
            return Ok(None);
        }
        let Some(thread) = self.thread.take() else { return Ok(None) };
        match thread.join() {
            Ok(Ok(filling)) => Ok(Some(filling)),
            // The user's stop reached the thread as well; whoever goes on begins it again.
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(ErrorKind::Tensor, "the thread that fills the buffer of activations panicked")),
        }
    }
}

impl Drop for Ahead {
    /// Ends the thread: it holds the model and memory.
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
