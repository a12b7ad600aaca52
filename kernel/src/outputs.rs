//! What a running cell prints, sorted: text goes on as streams, side-channel lines become displays.
//!
//! A side-channel line is [`MAGIC`](crate::marks::MAGIC) and one line of JSON:
//!
//! ```text
//! {"kind": "display", "id": ID, "data": {MIME: ...}}   -> display_data with this display_id
//! {"kind": "update",  "id": ID, "data": {MIME: ...}}   -> update_display_data
//! {"kind": "clear",   "wait": true}                     -> clear_output
//! {"kind": "stopping"}     the library saw the stop flag and is finishing its step
//! {"kind": "began"}        the cell is compiled and runs
//! {"kind": "text", "text": ...}     text that evcxr would take for a mark of its own -> stream
//! {"kind": "result", "data": {MIME: ...}}                the last display of the cell
//! {"kind": "at", "file": ..., "line": ...}              a panic's place
//! {"kind": "panic"}, {"kind": "failed"}                 the cell panicked, or a `?` failed
//! ```

use crate::marks::MAGIC;
use crossbeam_channel::Receiver;
use jupyter_protocol::{JupyterMessage, JupyterMessageContent};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// The cell that runs now, as its outputs see it.
#[derive(Default)]
pub struct Cell {
    parent: Option<JupyterMessage>,
    /// Lines of stderr not yet sent: if the cell fails they are its traceback.
    held: Vec<(Instant, String)>,
    /// The cell panicked or a `?` failed.
    pub failed: Option<&'static str>,
    /// The library said that it is stopping.
    pub stopping: bool,
    /// The cell is compiled and runs.
    pub began: bool,
    /// Interrupts that the cell has had.
    pub interrupts: usize,
    /// The last display, by MIME type.
    pub result: Option<Value>,
    /// Where the last panic was: file and line.
    pub place: Option<(String, usize)>,
}

/// Sends messages about the running cell to the notebook.
#[derive(Clone)]
pub struct Outputs {
    cell: Arc<Mutex<Cell>>,
    iopub: UnboundedSender<JupyterMessage>,
}

/// How long a line of stderr waits for the word that the cell failed.
const HOLD: Duration = Duration::from_millis(150);

impl Outputs {
    pub fn new(iopub: UnboundedSender<JupyterMessage>) -> Self {
        Outputs { cell: Arc::default(), iopub }
    }

    /// The state of the running cell.
    pub fn cell(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Begins a cell: later output belongs to `parent`.
    pub fn begin(&self, parent: Option<&JupyterMessage>) {
        let mut cell = self.cell();
        // An interrupt may come before the cell begins.
        *cell = Cell { parent: parent.cloned(), interrupts: cell.interrupts, ..Cell::default() };
    }

    /// The request that the running cell belongs to.
    pub fn parent(&self) -> Option<JupyterMessage> {
        self.cell().parent.clone()
    }

    /// Sends one message about the running cell; without a cell it is dropped.
    pub fn send(&self, kind: &str, content: Value) {
        let parent = self.parent();
        self.send_about(parent.as_ref(), kind, content);
    }

    /// Sends one message about `parent`.
    pub fn send_about(&self, parent: Option<&JupyterMessage>, kind: &str, content: Value) {
        let Some(parent) = parent else { return };
        match JupyterMessageContent::from_type_and_content(kind, content) {
            Ok(content) => drop(self.iopub.send(JupyterMessage::new(content, Some(parent)))),
            Err(error) => eprintln!("cltlab-kernel: a {kind} message could not be made: {error}"),
        }
    }

    fn stream(&self, name: &str, text: &str) {
        self.send("stream", json!({"name": name, "text": text}));
    }

    /// Takes whatever the child printed so far.
    pub fn drain_stdout(&self, lines: &Receiver<String>) {
        while let Ok(line) = lines.try_recv() {
            self.line(&line);
        }
    }

    fn line(&self, line: &str) {
        let Some((before, message)) = line.split_once(MAGIC) else { return self.stream("stdout", &format!("{line}\n")) };
        if !before.is_empty() {
            self.stream("stdout", before);
        }
        let Ok(message) = serde_json::from_str::<Value>(message) else {
            return self.stream("stderr", "cltlab-kernel: a display message was not JSON and is dropped\n");
        };
        let shown = || {
            let transient = message["id"].as_str().map_or_else(|| json!({}), |id| json!({"display_id": id}));
            json!({"data": media(&message["data"]), "metadata": {}, "transient": transient})
        };
        match message["kind"].as_str() {
            Some("display") => self.send("display_data", shown()),
            Some("update") => self.send("update_display_data", shown()),
            Some("clear") => self.send("clear_output", json!({"wait": message["wait"].as_bool().unwrap_or(false)})),
            Some("text") => self.stream("stdout", message["text"].as_str().unwrap_or_default()),
            Some("began") => self.cell().began = true,
            Some("result") => self.cell().result = Some(media(&message["data"])),
            Some("at") => self.cell().place = message["file"].as_str().map(|file| (file.to_string(), message["line"].as_u64().unwrap_or(0) as usize)),
            Some("stopping") => self.cell().stopping = true,
            Some("panic") => self.cell().failed = Some("panic"),
            Some("failed") => self.cell().failed = Some("error"),
            _ => {}
        }
    }

    /// Holds lines of stderr, and sends those that waited long enough.
    pub fn drain_stderr(&self, lines: &Receiver<String>) {
        let now = Instant::now();
        let ripe: Vec<String> = {
            let mut cell = self.cell();
            cell.held.extend(lines.try_iter().map(|line| (now, line)));
            if cell.failed.is_some() {
                return;
            }
            let count = cell.held.iter().take_while(|(since, _)| now.duration_since(*since) >= HOLD).count();
            cell.held.drain(..count).map(|(_, line)| line).collect()
        };
        self.send_lines(&ripe);
    }

    /// Ends a cell that went well: what was held is plain stderr.
    pub fn release_stderr(&self) {
        let held = self.take_held();
        self.send_lines(&held);
    }

    /// Ends a cell that failed: what was held is its traceback.
    pub fn take_held(&self) -> Vec<String> {
        self.cell().held.drain(..).map(|(_, line)| line).collect()
    }

    fn send_lines(&self, lines: &[String]) {
        if !lines.is_empty() {
            self.stream("stderr", &format!("{}\n", lines.join("\n")));
        }
    }
}

/// Content by MIME type as Jupyter wants it: JSON types as JSON, others as text.
pub fn media(data: &Value) -> Value {
    let entries = data.as_object().into_iter().flatten().map(|(mime, content)| {
        let parsed = content.as_str().filter(|_| mime.contains("json")).and_then(|text| serde_json::from_str(text).ok());
        (mime.clone(), parsed.unwrap_or_else(|| content.clone()))
    });
    Value::Object(entries.collect())
}
