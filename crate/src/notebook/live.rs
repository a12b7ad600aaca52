//! Live: what is seen while a cell or a command works.
//!
//! Two sinks for [`Event`]s. In a notebook whose kernel speaks the side channel: training curves in
//! one place, redrawn at most once a second, and a slim bar for tasks longer than half a second, which goes when
//! the task ends.
//! Elsewhere: a line on stderr, refreshed in place on a terminal, else one every ten seconds. Cost:
//! a few milliseconds a redraw, nothing between.

use super::channel::{self, Display};
use super::interrupt::cell;
use crate::picture::words::{count, duration};
use crate::picture::{training, Html, Show};
use crate::progress::{set_sink, Event, Sink, TrainSample};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Samples kept at most; beyond, every second one is let go.
const KEPT: usize = 2048;
const DRAW_EVERY: Duration = Duration::from_secs(1);
const BAR_AFTER: Duration = Duration::from_millis(500);
const BAR_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(10);
const REFRESH_EVERY: Duration = Duration::from_millis(200);

/// Installs the sink that fits: live displays under our kernel, else lines on stderr.
pub fn install() {
    set_sink(Some(if channel::available() { Arc::new(Live::default()) } else { terminal() }));
}

/// A sink that writes lines to stderr, for programs and for kernels without the side channel.
pub fn terminal() -> Arc<dyn Sink> {
    Arc::new(Terminal { refreshes: std::io::stderr().is_terminal(), state: Mutex::default() })
}

/// One line about a training step: how far, how good, how fast, how long.
pub(crate) fn line(s: &TrainSample) -> String {
    let sparsity = if s.sparsity == 0.0 { String::new() } else { format!("  sparsity {:.4}", s.sparsity) };
    format!(
        "step {}/{}  reconstruction {:.4}{sparsity}  FVU {:.3}  L0 {:.1} per layer  dead {:.1} %  {} tokens/s  {} left",
        s.step, s.steps, s.reconstruction, s.fvu, s.l0, 100.0 * s.dead, count(s.tokens_per_second), duration(s.seconds_left)
    )
}

/// The course of a training in bounded memory: evenly spaced samples, and always the first and last.
#[derive(Debug, Default)]
pub struct Course {
    samples: Vec<TrainSample>,
    /// Every how many steps one is kept.
    stride: usize,
    /// The newest, when it does not fall on the stride.
    newest: Option<TrainSample>,
    seen: usize,
}

impl Course {
    /// Adds a sample. One that does not follow the last step begins a new course.
    pub fn push(&mut self, sample: &TrainSample) {
        let last = self.newest.as_ref().or(self.samples.last());
        if last.is_some_and(|last| sample.step != last.step + 1) {
            *self = Course::default();
        }
        self.stride = self.stride.max(1);
        self.newest = None;
        if self.seen % self.stride == 0 {
            self.samples.push(sample.clone());
        } else {
            self.newest = Some(sample.clone());
        }
        self.seen += 1;
        if self.samples.len() > KEPT {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// The samples kept, first to last.
    pub fn samples(&self) -> Vec<TrainSample> {
        self.samples.iter().chain(&self.newest).cloned().collect()
    }
}

/// A task that is under way.
struct Working {
    name: String,
    total: u64,
    unit: &'static str,
    begun: Instant,
    written: Option<Instant>,
    display: Option<Display>,
    /// What the task has written, when it writes text.
    text: Option<String>,
}

impl Working {
    fn new(name: &str, total: u64, unit: &'static str) -> Self {
        Working { name: name.to_string(), total, unit, begun: Instant::now(), written: None, display: None, text: None }
    }

    /// True, once for each `every`, after the task has lasted `after`.
    fn due(&mut self, after: Duration, every: Duration) -> bool {
        let due = self.begun.elapsed() > after && self.written.is_none_or(|written| written.elapsed() >= every);
        if due {
            self.written = Some(Instant::now());
        }
        due
    }

    fn share(&self, done: u64) -> Option<f64> {
        (self.total > 0).then(|| done as f64 / self.total as f64)
    }

    fn line(&self, done: u64) -> String {
        let (name, unit) = (&self.name, self.unit);
        match self.share(done) {
            None => format!("{name}: {} {unit}", count(done as f64)),
            Some(share) => {
                let left = if share > 0.0 { self.begun.elapsed().as_secs_f64() * (1.0 / share - 1.0) } else { f64::INFINITY };
                format!("{name}: {:.0} %, {} of {} {unit}, {} left", 100.0 * share, count(done as f64), count(self.total as f64), duration(left))
            }
        }
    }

    fn closing(&self, note: &str) -> String {
        format!("{}: {:.1} s{}{note}", self.name, self.begun.elapsed().as_secs_f64(), if note.is_empty() { "" } else { ", " })
    }
}

/// Takes the task of this name out of the list, the youngest of them.
fn take(tasks: &mut Vec<Working>, name: &str) -> Option<Working> {
    tasks.iter().rposition(|task| task.name == name).map(|at| tasks.remove(at))
}

/// A poisoned lock means that another thread panicked while drawing; progress goes on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Live(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    course: Course,
    curves: Option<Display>,
    /// What is trained on what.
    head: String,
    /// The last evaluation on held-out text, as a line.
    held_out: Option<String>,
    drawn: Option<Instant>,
    tasks: Vec<Working>,
}

impl Shown {
    fn draw(&mut self, sample: &TrainSample, title: &str) {
        self.drawn = Some(Instant::now());
        let text = [Some(line(sample)), self.held_out.clone()].into_iter().flatten().collect::<Vec<_>>().join("  ·  ");
        let share = if sample.steps > 0 { Some(sample.step as f64 / sample.steps as f64) } else { None };
        let title = if self.head.is_empty() { title.to_string() } else { format!("{title}: {}", self.head) };
        let html = Html::join([training(&self.course.samples(), &title).html(), Html::bar(share, &text)]).block();
        let text = if self.head.is_empty() { text } else { format!("{}\n{text}", self.head) };
        match &self.curves {
            Some(display) => display.update(html.as_str(), &text),
            None => self.curves = Some(Display::new(html.as_str(), &text)),
        }
    }
}

impl Sink for Live {
    fn event(&self, event: &Event) {
        let mut shown = lock(&self.0);
        match event {
            Event::Train(sample) => {
                shown.course.push(sample);
                if shown.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
                    shown.draw(sample, "Training");
                }
            }
            Event::TrainBegin(head) => shown.head.clone_from(head),
            Event::Eval(sample) => shown.held_out = Some(sample.to_string()),
            Event::TrainEnd(sample) => {
                // A run that ended before its first step has nothing new to show.
                if shown.drawn.is_some() {
                    shown.draw(sample, if sample.step < sample.steps { "Training (stopped)" } else { "Training" });
                }
                if let Some(display) = shown.curves.take() {
                    *lock(&ENDED) = Some(Ended { cell: cell(), last: sample.clone(), display });
                }
                // The next run has a place of its own.
                (shown.held_out, shown.drawn) = (None, None);
            }
            Event::Begin { task, total, unit } => shown.tasks.push(Working::new(task, *total, unit)),
            Event::Advance { task, done } => {
                let Some(task) = shown.tasks.iter_mut().rev().find(|working| working.name == *task) else { return };
                if task.due(BAR_AFTER, BAR_EVERY) {
                    let text = task.line(*done);
                    let written = task.text.as_deref().map(Html::passage);
                    let html = Html::join(written.into_iter().chain([Html::bar(task.share(*done), &text)]));
                    match &task.display {
                        Some(display) => display.update(html.as_str(), &text),
                        None => task.display = Some(Display::new(html.as_str(), &text)),
                    }
                }
            }
            Event::Text { task, text } => {
                if let Some(task) = shown.tasks.iter_mut().rev().find(|working| working.name == *task) {
                    task.text = Some(text.clone());
                }
            }
            Event::End { task, .. } => {
                if let Some(display) = take(&mut shown.tasks, task).and_then(|task| task.display) {
                    display.update("", "");
                }
            }
        }
    }
}

/// A training that ended, whose curves are still shown.
struct Ended {
    cell: u64,
    last: TrainSample,
    display: Display,
}

static ENDED: Mutex<Option<Ended>> = Mutex::new(None);

/// Takes away the live curves of a training that `value`, shown in the same cell, shows too.
pub(super) fn give_way(value: &(impl Show + ?Sized)) {
    let Some(last) = value.curves_until() else { return };
    let mut ended = lock(&ENDED);
    if let Some(ended) = ended.take_if(|ended| ended.cell == cell() && ended.last == *last) {
        ended.display.update("", "");
    }
}

struct Terminal {
    /// The line is written over; else lines follow each other, fewer of them.
    refreshes: bool,
    state: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    tasks: Vec<Working>,
    trained: Option<Instant>,
    /// A refreshed line stands on the terminal without an end.
    open: bool,
}

impl Terminal {
    /// Writes a line; the last of a task stays.
    fn write(&self, lines: &mut Lines, text: &str, last: bool) {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let mut err = std::io::stderr().lock();
        // Progress that cannot be written is not worth an error.
        let _ = if self.refreshes {
            write!(err, "\r\x1b[K{text}{}", if last { "\n" } else { "" })
        } else {
            writeln!(err, "{text}")
        };
        let _ = err.flush();
        lines.open = self.refreshes && !last;
    }

    fn every(&self) -> Duration {
        if self.refreshes { REFRESH_EVERY } else { LINE_EVERY }
    }
}

impl Sink for Terminal {
    fn event(&self, event: &Event) {
        let mut lines = lock(&self.state);
        match event {
            Event::Train(sample) => {
                if lines.trained.is_none_or(|written| written.elapsed() >= self.every()) {
                    lines.trained = Some(Instant::now());
                    self.write(&mut lines, &line(sample), false);
                }
            }
            Event::TrainBegin(head) => self.write(&mut lines, head, true),
            Event::Eval(sample) => self.write(&mut lines, &sample.to_string(), true),
            Event::TrainEnd(sample) => {
                lines.trained = None;
                self.write(&mut lines, &line(sample), true);
            }
            Event::Begin { task, total, unit } => lines.tasks.push(Working::new(task, *total, unit)),
            Event::Advance { task, done } => {
                let (after, every) = if self.refreshes { (BAR_AFTER, REFRESH_EVERY) } else { (LINE_EVERY, LINE_EVERY) };
                // Text goes to the terminal by the program that asked for it; a line would cut it.
                let task = lines.tasks.iter_mut().rev().find(|working| working.name == *task && working.text.is_none());
                if let Some(text) = task.and_then(|task| task.due(after, every).then(|| task.line(*done))) {
                    self.write(&mut lines, &text, false);
                }
            }
            Event::Text { task, text } => {
                if let Some(task) = lines.tasks.iter_mut().rev().find(|working| working.name == *task) {
                    task.text = Some(text.clone());
                }
            }
            Event::End { task, note } => {
                let ended = take(&mut lines.tasks, task);
                if let Some(task) = ended.filter(|task| task.written.is_some()) {
                    self.write(&mut lines, &task.closing(note), true);
                }
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if lock(&self.state).open {
            let _ = writeln!(std::io::stderr());
        }
    }
}
