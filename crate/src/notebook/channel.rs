//! The side channel: displays that arrive while a cell runs.
//!
//! evcxr hands the kernel every line of the child's stdout. A line that holds the magic prefix and
//! one line of JSON is a message to the kernel, never shown as text:
//!
//! ```text
//! \u{1}cltlab {"kind": "display", "id": ID, "data": {MIME: content}}   display_data
//! \u{1}cltlab {"kind": "update",  "id": ID, "data": {MIME: content}}   update_display_data
//! \u{1}cltlab {"kind": "display", "data": {MIME: content}}              display_data that is not changed later
//! \u{1}cltlab {"kind": "clear", "wait": true}                          clear_output
//! \u{1}cltlab {"kind": "stopping"}      the stop flag was seen; the step is being finished
//! ```
//!
//! Content is text, or base64 for binary types; a type whose name holds "json" may be JSON text.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// What begins a message; the kernel knows the same.
const MAGIC: &str = "\u{1}cltlab ";

/// True when this process runs under the kernel that understands the messages.
pub fn available() -> bool {
    crate::environment::in_kernel()
}

/// One place in a cell's output, shown at once and changed later. Dropped without effect.
#[derive(Debug)]
pub struct Display {
    id: String,
}

impl Display {
    /// Shows `html` (with `text` for those who cannot show it) below the running cell. Without the
    /// kernel nothing is shown: [`attach`](super::attach) says whether it is there.
    pub fn new(html: &str, text: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let id = format!("cltlab-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        send("display", &id, html, text);
        Display { id }
    }

    /// Shows something else in the same place.
    pub fn update(&self, html: &str, text: &str) {
        send("update", &self.id, html, text);
    }
}

/// Shows `html` below the running cell, for good.
pub fn show(html: &str, text: &str) {
    write(&serde_json::json!({"kind": "display", "data": {"text/html": html, "text/plain": text}}));
}

/// Clears the running cell's output; with `wait`, only when the next output comes.
pub fn clear(wait: bool) {
    write(&serde_json::json!({"kind": "clear", "wait": wait}));
}

/// Tells the kernel that the stop flag was seen, so that it waits for the step to end.
pub fn say_stopping() {
    write(&serde_json::json!({"kind": "stopping"}));
}

fn send(kind: &str, id: &str, html: &str, text: &str) {
    write(&serde_json::json!({"kind": kind, "id": id, "data": {"text/html": html, "text/plain": text}}));
}

fn write(message: &serde_json::Value) {
    if !available() {
        return;
    }
    let mut out = std::io::stdout().lock();
    // A closed stdout means that the kernel is gone; there is nobody left to tell.
    let _ = writeln!(out, "{MAGIC}{message}").and_then(|()| out.flush());
}
