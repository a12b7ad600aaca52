//! The server: Jupyter's protocol on five sockets.
//!
//! Shell requests are taken one by one, so cells queue; kernel_info is answered while the engine
//! still warms up. Interrupts come on the control socket or as SIGINT: the first asks the child
//! gently, the second, or 5 s without an answer, ends it.

use crate::engine::{self, ChildHandle, Job};
use crate::errors::Failure;
use crate::folders::{self, OwnFolder};
use crate::messages::{as_json, code_and_offset, content, is_complete, kernel_info};
use crate::outputs::Outputs;
use crate::tools;
use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender};
use jupyter_protocol::{ConnectionInfo, JupyterMessage};
use jupyter_zmq_client as zmq;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a cell may take to answer a first interrupt.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one notebook until it shuts the kernel down.
pub fn serve(connection_file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(connection_file).with_context(|| connection_file.display().to_string())?;
    let connection: ConnectionInfo = serde_json::from_str(&text).with_context(|| connection_file.display().to_string())?;
    // Without a folder no cell can run, but the first one can say why.
    let folder = folders::root().and_then(|root| OwnFolder::make(&root)).and_then(|folder| {
        let config = folder.path.join("config");
        std::fs::create_dir_all(&config)?;
        std::fs::write(config.join("evcxr.toml"), "[evcxr]\noffline_mode = true\nopt_level = \"2\"\n")?;
        // SAFETY: no other thread runs yet.
        unsafe {
            std::env::set_var("PATH", &folder.tools);
            // rust-analyzer looks for cargo there first.
            if let Some(home) = std::env::var_os("CARGO_HOME") {
                std::env::set_var(tools::CARGO_HOME_BEFORE, home);
            }
            std::env::set_var("CARGO_HOME", &folder.path);
            std::env::set_var("EVCXR_TMPDIR", &folder.path);
            std::env::set_var("EVCXR_CONFIG_DIR", &config);
            std::env::set_var("CLTLAB_KERNEL", "1");
        }
        Ok(folder)
    });
    let own_path = folder.as_ref().ok().map(|folder| folder.path.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(run(connection, folder.map_err(|error| format!("the kernel could not prepare itself: {error:#}"))));
    // The engine's thread may still hold evcxr's child; the folder must go all the same.
    if let Some(path) = own_path {
        let _ = std::fs::remove_dir_all(path);
    }
    served
}

/// What the running cell can be interrupted through.
struct Interrupts {
    child: Mutex<Option<ChildHandle>>,
    outputs: Outputs,
    /// Number of the running cell, 0 when none runs.
    running: AtomicUsize,
    /// Interrupts that this cell has had.
    count: AtomicUsize,
}

impl Interrupts {
    fn begin(&self, cell: usize) {
        self.count.store(0, Ordering::SeqCst);
        self.running.store(cell, Ordering::SeqCst);
    }

    fn end(&self) {
        self.running.store(0, Ordering::SeqCst);
    }

    fn interrupt(self: &Arc<Self>) {
        let cell = self.running.load(Ordering::SeqCst);
        if cell == 0 {
            return;
        }
        if self.count.fetch_add(1, Ordering::SeqCst) > 0 {
            return self.signal(libc::SIGKILL);
        }
        self.signal(libc::SIGINT);
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            if this.running.load(Ordering::SeqCst) == cell && !this.outputs.cell().stopping {
                this.signal(libc::SIGKILL);
            }
        });
    }

    fn signal(&self, signal: i32) {
        let child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some(child) = child.as_ref().and_then(|child| child.lock().ok()) {
            // SAFETY: the child is ours and not yet waited for while its handle is locked.
            unsafe { libc::kill(child.id() as i32, signal) };
        }
    }
}

async fn run(connection: ConnectionInfo, folder: Result<OwnFolder, String>) -> Result<()> {
    let session = format!("cltlab-{}", std::process::id());
    let mut heartbeat = zmq::create_kernel_heartbeat_connection(&connection).await?;
    let mut control = zmq::create_kernel_control_connection(&connection, &session).await?;
    let shell = zmq::create_kernel_shell_connection(&connection, &session).await?;
    let mut stdin = zmq::create_kernel_stdin_connection(&connection, &session).await?;
    let mut iopub = zmq::create_kernel_iopub_connection(&connection, &session).await?;

    let (iopub_sender, mut iopub_messages) = mpsc::unbounded_channel::<JupyterMessage>();
    tokio::spawn(async move {
        while let Some(message) = iopub_messages.recv().await {
            if let Err(error) = iopub.send(message).await {
                eprintln!("cltlab-kernel: iopub: {error}");
            }
        }
    });
    tokio::spawn(async move { while heartbeat.single_heartbeat().await.is_ok() {} });

    let outputs = Outputs::new(iopub_sender);
    let (questions, mut asked) = mpsc::unbounded_channel::<(Option<JupyterMessage>, String, bool, Sender<String>)>();
    tokio::spawn(async move {
        while let Some((parent, prompt, password, answer)) = asked.recv().await {
            let content = content("input_request", json!({"prompt": prompt, "password": password}));
            let sent = stdin.send(JupyterMessage::new(content, parent.as_ref())).await;
            let reply = if sent.is_ok() { stdin.read().await.ok() } else { None };
            let value = reply.and_then(|reply| as_json(&reply)["value"].as_str().map(str::to_string));
            let _ = answer.send(value.unwrap_or_default());
        }
    });

    let (ready_sender, ready) = crossbeam_channel::bounded(1);
    let ask_outputs = outputs.clone();
    let ask = Arc::new(move |prompt: String, password: bool| {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let _ = questions.send((ask_outputs.parent(), prompt, password, answer));
        answered.recv().unwrap_or_default()
    });
    let jobs = engine::start(folder, outputs.clone(), ask, ready_sender);
    let interrupts = Arc::new(Interrupts {
        child: Mutex::new(None),
        outputs: outputs.clone(),
        running: AtomicUsize::new(0),
        count: AtomicUsize::new(0),
    });

    let (stop, mut stopped) = mpsc::unbounded_channel::<()>();
    let (for_control, for_signals) = (interrupts.clone(), interrupts.clone());
    let control_outputs = outputs.clone();
    tokio::spawn(async move {
        let mut faults = 0;
        loop {
            let Some(request) = good(control.read().await, "control", &mut faults) else {
                if faults > FAULTS { break } else { continue }
            };
            let reply = match request.message_type() {
                "interrupt_request" => {
                    for_control.interrupt();
                    ("interrupt_reply", json!({"status": "ok"}))
                }
                "shutdown_request" => ("shutdown_reply", json!({"status": "ok", "restart": as_json(&request)["restart"]})),
                "kernel_info_request" => ("kernel_info_reply", kernel_info()),
                _ => continue,
            };
            status(&control_outputs, &request, "busy");
            let sent = control.send(JupyterMessage::new(content(reply.0, reply.1), Some(&request))).await;
            status(&control_outputs, &request, "idle");
            if reply.0 == "shutdown_reply" || sent.is_err() {
                for_control.signal(libc::SIGKILL);
                let _ = stop.send(());
                break;
            }
        }
    });
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            for_signals.interrupt();
        }
    });
    let (mut replies, mut requests) = shell.split();
    let (queue, mut queued) = mpsc::unbounded_channel::<JupyterMessage>();
    let shell_outputs = outputs.clone();
    let (reply_sender, mut to_send) = mpsc::unbounded_channel::<JupyterMessage>();
    tokio::spawn(async move {
        while let Some(message) = to_send.recv().await {
            let _ = replies.send(message).await;
        }
    });
    let early = reply_sender.clone();
    tokio::spawn(async move {
        let mut faults = 0;
        loop {
            let Some(request) = good(requests.read().await, "shell", &mut faults) else {
                if faults > FAULTS { break } else { continue }
            };
            // What needs no engine is answered at once, even while a cell runs or the engine starts.
            let answer = match request.message_type() {
                "kernel_info_request" => Some(("kernel_info_reply", kernel_info())),
                "comm_info_request" => Some(("comm_info_reply", json!({"status": "ok", "comms": {}}))),
                "history_request" => Some(("history_reply", json!({"status": "ok", "history": []}))),
                "is_complete_request" => Some(("is_complete_reply", is_complete(as_json(&request)["code"].as_str().unwrap_or("")))),
                _ => None,
            };
            match answer {
                Some((kind, value)) => {
                    status(&shell_outputs, &request, "busy");
                    let _ = early.send(JupyterMessage::new(content(kind, value), Some(&request)));
                    status(&shell_outputs, &request, "idle");
                }
                None => drop(queue.send(request)),
            }
        }
    });
    let mut cells = Cells { count: 0, executions: 0, jobs, ready: Some(ready), outputs, interrupts, abort_queued: false, broken: None };
    loop {
        tokio::select! {
            _ = stopped.recv() => return Ok(()),
            request = queued.recv() => {
                let Some(request) = request else { return Ok(()) };
                let answered = tokio::select! {
                    answered = cells.answer(&request) => answered,
                    _ = stopped.recv() => return Ok(()),
                };
                if let Some((kind, value)) = answered {
                    let _ = reply_sender.send(JupyterMessage::new(content(kind, value), Some(&request)));
                }
                status(&cells.outputs, &request, "idle");
                if std::mem::take(&mut cells.abort_queued) {
                    while let Ok(waiting) = queued.try_recv() {
                        let aborted = json!({"status": "aborted", "execution_count": cells.count});
                        let kind = waiting.message_type().replace("_request", "_reply");
                        let _ = reply_sender.send(JupyterMessage::new(content(&kind, aborted), Some(&waiting)));
                        status(&cells.outputs, &waiting, "idle");
                    }
                }
            }
        }
    }
}

/// The requests that need the engine, in order.
struct Cells {
    count: usize,
    /// All executions, silent ones too; the number by which an interrupt knows its cell.
    executions: usize,
    jobs: Sender<Job>,
    ready: Option<Receiver<Result<ChildHandle, String>>>,
    outputs: Outputs,
    interrupts: Arc<Interrupts>,
    /// A cell failed: the cells that wait behind it are not run.
    abort_queued: bool,
    broken: Option<String>,
}

impl Cells {
    async fn answer(&mut self, request: &JupyterMessage) -> Option<(&'static str, Value)> {
        status(&self.outputs, request, "busy");
        let asked = as_json(request);
        match request.message_type() {
            "execute_request" => Some(("execute_reply", self.execute(request, &asked).await)),
            "complete_request" => {
                self.wait_until_ready().await;
                let (code, offset) = code_and_offset(&asked);
                let (reply, done) = oneshot::channel();
                let _ = self.jobs.send(Job::Complete { code: code.clone(), offset, reply });
                let (matches, start, end) = done.await.unwrap_or((Vec::new(), offset, offset));
                let characters = |bytes: usize| code.get(..bytes).map_or(0, |text| text.chars().count());
                Some(("complete_reply", json!({"status": "ok", "matches": matches, "cursor_start": characters(start), "cursor_end": characters(end), "metadata": {}})))
            }
            "inspect_request" => {
                self.wait_until_ready().await;
                let (code, offset) = code_and_offset(&asked);
                let (reply, done) = oneshot::channel();
                let _ = self.jobs.send(Job::Inspect { code, offset, reply });
                let found = done.await.ok().flatten();
                Some(("inspect_reply", json!({"status": "ok", "found": found.is_some(), "data": found.unwrap_or_else(|| json!({})), "metadata": {}})))
            }
            "shutdown_request" => Some(("shutdown_reply", json!({"status": "ok", "restart": asked["restart"]}))),
            _ => None,
        }
    }

    async fn wait_until_ready(&mut self) {
        let Some(ready) = self.ready.take() else { return };
        match tokio::task::spawn_blocking(move || ready.recv()).await {
            Ok(Ok(Ok(child))) => *self.interrupts.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(child),
            Ok(Ok(Err(error))) => self.broken = Some(error),
            _ => self.broken = Some("the engine did not start; its messages are in the terminal that started Jupyter".to_string()),
        }
    }

    async fn execute(&mut self, request: &JupyterMessage, asked: &Value) -> Value {
        let silent = asked["silent"].as_bool().unwrap_or(false);
        let code = asked["code"].as_str().unwrap_or("").to_string();
        if !silent {
            self.count += 1;
            self.outputs.send_about(Some(request), "execute_input", json!({"code": code, "execution_count": self.count}));
        }
        self.wait_until_ready().await;
        let result = match &self.broken {
            Some(error) => Err(Failure::new("Error", error.lines().map(str::to_string).collect())),
            None => {
                let (reply, done) = oneshot::channel();
                self.executions += 1;
                self.interrupts.begin(self.executions);
                let _ = self.jobs.send(Job::Execute { parent: request.clone(), code, silent, reply });
                let result = done.await.unwrap_or_else(|_| Err(Failure::new("Error", vec!["the engine ended; restart the kernel".to_string()])));
                self.interrupts.end();
                result
            }
        };
        match result {
            Ok(data) => {
                if let Some(data) = data.filter(|_| !silent) {
                    let content = json!({"execution_count": self.count, "data": data, "metadata": {}});
                    self.outputs.send_about(Some(request), "execute_result", content);
                }
                json!({"status": "ok", "execution_count": self.count, "payload": [], "user_expressions": {}})
            }
            Err(failure) => {
                let error = json!({"ename": failure.name, "evalue": failure.value, "traceback": failure.traceback});
                if !silent {
                    self.outputs.send_about(Some(request), "error", error.clone());
                }
                self.abort_queued = asked["stop_on_error"].as_bool().unwrap_or(true);
                let mut reply = error;
                reply["status"] = json!("error");
                reply["execution_count"] = json!(self.count);
                reply
            }
        }
    }
}

/// Messages in a row that cannot be read before a socket is given up.
const FAULTS: usize = 100;

/// A message, or `None` with a word on stderr for one that is malformed or badly signed.
fn good(read: zmq::Result<JupyterMessage>, socket: &str, faults: &mut usize) -> Option<JupyterMessage> {
    match read {
        Ok(message) => {
            *faults = 0;
            Some(message)
        }
        Err(error) => {
            *faults += 1;
            eprintln!("cltlab-kernel: {socket}: {error}");
            None
        }
    }
}

fn status(outputs: &Outputs, parent: &JupyterMessage, state: &str) {
    outputs.send_about(Some(parent), "status", json!({"execution_state": state}));
}
