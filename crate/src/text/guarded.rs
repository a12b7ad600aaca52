//! Calls into the tokenizers library, whose panics become errors, and the bound on what its replacing
//! steps may grow a text to.

use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call`; a panic inside is an error of `kind` with its words, and nothing is printed.
pub(super) fn guarded<T>(kind: ErrorKind, call: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.with(Cell::get) {
                before(info);
            }
        }));
    });
    QUIET.with(|quiet| quiet.set(true));
    let done = catch_unwind(AssertUnwindSafe(call));
    QUIET.with(|quiet| quiet.set(false));
    done.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        Err(Error::new(kind, format!("tokenizer: the tokenizers library failed on it: {}", super::placeholder::shown(words)))
            .help("its tokenizer.json (or the GGUF file's vocabulary) contradicts itself; take another copy"))
    })
}

/// By how much steps that replace text may grow it, at most; 1 for no such steps.
pub(super) fn growth(steps: Option<&Value>) -> f64 {
    let Some(step) = steps else { return 1.0 };
    let length = |field: &str| step.get(field).and_then(Value::as_str).map_or(0, str::len) as f64;
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let parts = ["normalizers", "decoders"].iter().filter_map(|field| step.get(field)?.as_array()).flatten();
            parts.map(|part| growth(Some(part))).product()
        }
        Some("Replace") => match step.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str) {
            Some(pattern) if !pattern.is_empty() => (length("content") / pattern.len() as f64).max(1.0),
            // A pattern may match nothing at all, between any two characters.
            _ => length("content") + 1.0,
        },
        Some("Prepend") => length("prepend") + 1.0,
        _ => 1.0,
    }
}

/// Refuses what could grow beyond reason; no tokenizer in use grows a text by more than 32.
pub(super) fn bounded(growth: f64, bytes: usize) -> Result<()> {
    const USUAL: f64 = 32.0;
    const MOST: f64 = (32_u64 << 20) as f64;
    let grown = growth * bytes as f64;
    if growth <= USUAL || grown <= MOST {
        return Ok(());
    }
    Err(Error::expected(
        ErrorKind::BadInput,
        "tokenizer: text after its Replace steps",
        format_args!("up to {grown:.1e} bytes from {bytes}"),
        format_args!("at most {MOST:.0} where a step grows it by more than {USUAL}"),
    )
    .help("its tokenizer.json multiplies text; take another copy"))
}
