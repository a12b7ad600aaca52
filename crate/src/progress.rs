//! Progress: events out, and the stop flag in.
//!
//! A training loop or a long attribution must not know notebooks. It sends [`Event`]s to the
//! one sink that the notebook or the program installed, and asks [`stop_requested`] between
//! steps: an interrupt sets that flag, the loop finishes its step and returns what it has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

/// One step of training, as the loop saw it. Losses are per token, summed over layers.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainSample {
    /// Optimiser steps done, counted from 1.
    pub step: usize,
    /// Steps that this run aims at.
    pub steps: usize,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Sum over layers of the squared error, after normalisation.
    pub reconstruction: f64,
    /// The sparsity term, with its coefficient.
    pub sparsity: f64,
    /// The pre-activation (dead-feature) term, with its coefficient.
    pub dead_term: f64,
    /// The auxiliary loss (dead features on the error), with its coefficient.
    #[serde(default)]
    pub aux: f64,
    /// Active features per token and layer.
    pub l0: f64,
    /// Fraction of variance unexplained, mean over layers, on the training batch.
    pub fvu: f64,
    /// Fraction of features that have not fired within the dead window, 0 to 1.
    pub dead: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens per second, smoothed.
    pub tokens_per_second: f64,
    /// Estimated seconds to the end.
    pub seconds_left: f64,
}

/// What an evaluation on held-out text found, between two steps of a training.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EvalSample {
    /// Optimiser steps done.
    pub step: usize,
    /// Tokens behind `fvu`, `l0` and `dead`.
    pub tokens: usize,
    /// Fraction of variance unexplained, mean over layers.
    pub fvu: f64,
    /// Active features per token and layer.
    pub l0: f64,
    /// Share of features that did not fire on this text, 0 to 1.
    pub dead: f64,
    /// The replacement model's predictions; `None` where they were left out or are not finite.
    pub fidelity: Option<FidelitySample>,
}

/// How the model predicts with every MLP replaced by the CLT.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FidelitySample {
    /// Cross-entropy of the model, nats per token.
    pub cross_entropy: f64,
    /// Cross-entropy of the replacement model.
    pub replacement_cross_entropy: f64,
    /// KL divergence of the replacement's next-token distribution from the model's, nats.
    pub kl: f64,
    /// Share of positions where both have the same likeliest next token.
    pub top1: f64,
}

impl std::fmt::Display for EvalSample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "held out at step {}: FVU {:.3}, L0 {:.1} per layer, dead {:.1} %", self.step, self.fvu, self.l0, 100.0 * self.dead)?;
        match &self.fidelity {
            Some(found) => write!(f, ", KL {:.3} nats, CE {:.3} against {:.3}", found.kl, found.replacement_cross_entropy, found.cross_entropy),
            None => Ok(()),
        }
    }
}

/// What a long task tells the outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A task begins; `total` in units of `unit`, 0 when unknown.
    Begin {
        /// What is done, for people: "download model.safetensors".
        task: String,
        /// How many units there are.
        total: u64,
        /// The unit's name: "bytes", "rows", "tokens".
        unit: &'static str,
    },
    /// `done` of the task's units are done.
    Advance {
        /// The task's name, as in `Begin`.
        task: String,
        /// Units done.
        done: u64,
    },
    /// Text that the task has written so far, all of it.
    Text {
        /// The task's name, as in `Begin`.
        task: String,
        /// The text.
        text: String,
    },
    /// The task ended, with a short closing line.
    End {
        /// The task's name, as in `Begin`.
        task: String,
        /// Closing line, may be empty.
        note: String,
    },
    /// A training begins or goes on: what is trained, on how many tokens, how often, with how much memory.
    TrainBegin(String),
    /// A training step was taken.
    Train(TrainSample),
    /// The CLT in training was evaluated on held-out text.
    Eval(EvalSample),
    /// Training ended or was stopped; the sample is the last one.
    TrainEnd(TrainSample),
}

/// Receives events. Must be quick: it runs on the thread that works.
pub trait Sink: Send + Sync {
    /// Called for each event, in order.
    fn event(&self, event: &Event);
}

static STOP: AtomicBool = AtomicBool::new(false);
static QUIET: AtomicBool = AtomicBool::new(false);
static HEARD: AtomicBool = AtomicBool::new(false);
static LISTENER: OnceLock<fn()> = OnceLock::new();
static SINK: RwLock<Option<Arc<dyn Sink>>> = RwLock::new(None);

/// Installs the sink that all later events go to; `None` silences them.
pub fn set_sink(sink: Option<Arc<dyn Sink>>) {
    *SINK.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = sink;
}

/// With `true` nothing of trainings and long tasks is shown until `quiet(false)`: no bars, no live curves, no lines.
///
/// ```
/// cltlab::progress::quiet(true);
/// // A sweep of trainings, without a bar for each.
/// cltlab::progress::quiet(false);
/// ```
pub fn quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::SeqCst);
}

/// Sends an event to the installed sink, if there is one and [`quiet`] is off.
#[doc(hidden)]
pub fn emit(event: Event) {
    if QUIET.load(Ordering::SeqCst) {
        return;
    }
    let sink = SINK.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    if let Some(sink) = sink {
        sink.event(&event);
    }
}

/// Asks the running loop to finish its step and return. Safe to call from a signal handler.
pub fn request_stop() {
    STOP.store(true, Ordering::SeqCst);
}

/// True after [`request_stop`], until [`clear_stop`]. A loop that asks promises to end soon when
/// told so; the listener hears of that once for each request.
pub fn stop_requested() -> bool {
    let stop = STOP.load(Ordering::SeqCst);
    if stop && !HEARD.swap(true, Ordering::SeqCst) {
        if let Some(listener) = LISTENER.get() {
            listener();
        }
    }
    stop
}

/// Installs who hears, once for each request, that a loop saw it. The first call wins.
pub(crate) fn set_stop_listener(listener: fn()) {
    let _ = LISTENER.set(listener);
}

/// Forgets an earlier request; each cell and each command begins with this.
#[doc(hidden)]
pub fn clear_stop() {
    STOP.store(false, Ordering::SeqCst);
    HEARD.store(false, Ordering::SeqCst);
}

/// A count in short form: 950, 12.5 k, 3.1 M.
pub(crate) fn count(value: f64) -> String {
    match value {
        v if v < 1e3 => format!("{v:.0}"),
        v if v < 1e6 => format!("{:.1} k", v / 1e3),
        v if v < 1e9 => format!("{:.1} M", v / 1e6),
        v => format!("{:.2} G", v / 1e9),
    }
}

/// A counted task: emits `Begin` now, `Advance` as told (at most every 100 ms), `End` when dropped.
///
/// ```
/// let mut task = cltlab::progress::Task::new("rows", 10, "rows");
/// for row in 0..10 { task.advance(row + 1); }
/// task.finish("10 rows");
/// ```
pub struct Task {
    name: String,
    note: String,
    last: std::time::Instant,
}

impl Task {
    /// Begins a task of `total` units.
    pub fn new(name: impl Into<String>, total: u64, unit: &'static str) -> Self {
        let name = name.into();
        emit(Event::Begin { task: name.clone(), total, unit });
        Task { name, note: String::new(), last: std::time::Instant::now() }
    }

    /// Says how many units are done.
    pub fn advance(&mut self, done: u64) {
        if self.due() {
            emit(Event::Advance { task: self.name.clone(), done });
        }
    }

    /// Says how many units are done, and what text there is by now.
    pub(crate) fn write(&mut self, done: u64, text: &str) {
        if self.due() {
            emit(Event::Text { task: self.name.clone(), text: text.to_string() });
            emit(Event::Advance { task: self.name.clone(), done });
        }
    }

    fn due(&mut self) -> bool {
        let due = self.last.elapsed().as_millis() >= 100;
        if due {
            self.last = std::time::Instant::now();
        }
        due
    }

    /// Ends the task with a closing line.
    pub fn finish(mut self, note: impl Into<String>) {
        self.note = note.into();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        emit(Event::End { task: std::mem::take(&mut self.name), note: std::mem::take(&mut self.note) });
    }
}
