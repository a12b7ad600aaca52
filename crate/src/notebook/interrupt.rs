//! Interrupts and panics inside the process that runs the cells.
//!
//! The kernel sends SIGINT for an interrupt and SIGUSR1 before each cell. The first raises the stop
//! flag, which loops ask between steps; the second lowers it. The first
//! loop that asks and sees the flag tells the kernel, which then waits for the step to end.

use crate::error::{Error, ErrorKind, Result};
use crate::progress;
use std::sync::atomic::{AtomicU64, Ordering};

extern "C" fn on_interrupt(_signal: i32) {
    progress::request_stop();
}

/// Cells that have begun.
static CELLS: AtomicU64 = AtomicU64::new(0);

/// The number of the running cell.
pub(super) fn cell() -> u64 {
    CELLS.load(Ordering::SeqCst)
}

extern "C" fn on_cell(_signal: i32) {
    CELLS.fetch_add(1, Ordering::SeqCst);
    progress::clear_stop();
}

/// Installs the two handlers. They only store to atomics, which is allowed in a handler.
pub(super) fn listen() -> Result<()> {
    progress::set_stop_listener(super::channel::say_stopping);
    for (signal, handler) in [(libc::SIGINT, on_interrupt as extern "C" fn(i32)), (libc::SIGUSR1, on_cell as extern "C" fn(i32))] {
        // SAFETY: the handlers do nothing but atomic stores; SA_RESTART keeps reads going.
        let refused = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut()) != 0
        };
        if refused {
            return Err(Error::new(ErrorKind::Unsupported, format!("signal handler: {}", std::io::Error::last_os_error())));
        }
    }
    Ok(())
}

/// One line for a panic, with its place, instead of a backtrace through the notebook's machinery.
pub(super) fn shorten_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no message");
        match panic.location() {
            Some(place) if !place.file().ends_with("src/lib.rs") => say(&format!("{text} ({}:{})", place.file(), place.line())),
            _ => say(text),
        }
    }));
}

/// A line on standard error, without characters that steer a terminal. One that is closed is no reason for a second panic.
fn say(text: &str) {
    use std::io::Write;
    let plain: String = text.chars().flat_map(|c| if c.is_control() && c != '\n' && c != '\t' { c.escape_default().collect() } else { vec![c] }).collect();
    let _ = writeln!(std::io::stderr(), "{plain}");
}
