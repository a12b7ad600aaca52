//! The server: Jupyter's protocol on five sockets.
//!
//! Shell requests are taken one by one, so cells queue; kernel_info and comm messages are answered
//! while a cell runs or the engine still warms up. Interrupts come on the control socket or as SIGINT
//! ([`crate::interrupts`]).

use crate::activity::Activity;
use crate::engine::{self, ChildHandle, Job};
use crate::environment;
use crate::errors::Failure;
use crate::folders::{self, OwnFolder};
use crate::input;
use crate::interrupts::Interrupts;
use crate::marks;
use crate::messages::{as_json, code_and_offset, content, is_complete, kernel_info};
use crate::outputs::Outputs;
use crate::sockets::{self, Guard, Read, Seen};
use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender};
use jupyter_protocol::{ConnectionInfo, JupyterMessage};
use jupyter_zmq_client as zmq;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How long a socket that failed is left alone.
const FAULT_PAUSE: Duration = Duration::from_millis(10);

/// Serves one notebook until it shuts the kernel down.
pub fn serve(connection_file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(connection_file).with_context(|| connection_file.display().to_string())?;
    let connection: ConnectionInfo = serde_json::from_str(&text).with_context(|| connection_file.display().to_string())?;
    sockets::check(&connection).with_context(|| connection_file.display().to_string())?;
    // Without a folder no cell can run, but the first one can say why.
    let folder = folders::root().and_then(|root| OwnFolder::make(&root)).and_then(|folder| {
        let config = folder.path.join("config");
        std::fs::create_dir_all(&config)?;
        std::fs::write(config.join("evcxr.toml"), "[evcxr]\noffline_mode = true\nopt_level = \"2\"\n")?;
        // SAFETY: no other thread runs yet.
        unsafe {
            environment::set("PATH", &folder.tools);
            // rust-analyzer looks for cargo there first.
            if let Some(home) = environment::get("CARGO_HOME") {
                environment::set(environment::CARGO_HOME_BEFORE, home);
            }
            environment::set("CARGO_HOME", &folder.path);
            environment::set(environment::FOLDER, &folder.path);
            environment::set(environment::CONFIG, &config);
            environment::set(environment::KERNEL, "1");
            environment::set(environment::SEAL, marks::Seal::draw().text());
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

async fn run(connection: ConnectionInfo, folder: Result<OwnFolder, String>) -> Result<()> {
    let session = format!("cltlab-{}", std::process::id());
    let mut heartbeat = zmq::create_kernel_heartbeat_connection(&connection).await?;
    let mut control = zmq::create_kernel_control_connection(&connection, &session).await?;
    let shell = zmq::create_kernel_shell_connection(&connection, &session).await?;
    let stdin = zmq::create_kernel_stdin_connection(&connection, &session).await?;
    let mut iopub = zmq::create_kernel_iopub_connection(&connection, &session).await?;

    let (iopub_sender, mut iopub_messages) = mpsc::unbounded_channel::<JupyterMessage>();
    tokio::spawn(async move {
        while let Some(message) = iopub_messages.recv().await {
            if let Err(error) = iopub.send(message).await {
                eprintln!("cltlab-kernel: iopub: {error}");
            }
        }
    });
    tokio::spawn(async move {
        // A peer that sends something else than a beat must not end the others' beats.
        loop {
            if heartbeat.single_heartbeat().await.is_err() {
                tokio::time::sleep(FAULT_PAUSE).await;
            }
        }
    });

    let outputs = Outputs::new(iopub_sender);
    let seen = Seen::new();
    let ask = input::serve(stdin, Guard::new("stdin", &connection, &seen), outputs.clone());
    let (ready_sender, ready) = crossbeam_channel::bounded(1);
    let jobs = engine::start(folder, outputs.clone(), ask, ready_sender);
    let interrupts = Interrupts::new(outputs.clone());
    let activity = Activity::new(outputs.clone());

    // Why the kernel ends: asked to, or a socket that is lost.
    let (stop, mut stopped) = mpsc::unbounded_channel::<Result<(), &'static str>>();
    let (for_control, for_signals) = (interrupts.clone(), interrupts.clone());
    let (control_activity, control_stop) = (activity.clone(), stop.clone());
    let mut guard = Guard::new("control", &connection, &seen);
    tokio::spawn(async move {
        loop {
            let request = match guard.sort(control.read().await) {
                Read::Message(request) => request,
                Read::Dropped => continue,
                Read::Lost => {
                    let _ = control_stop.send(Err("control"));
                    break;
                }
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
            // A reply that cannot be sent concerns its client only.
            let _ = control.send(JupyterMessage::new(content(reply.0, reply.1), Some(&request))).await;
            control_activity.beside(&request, || ());
            if reply.0 == "shutdown_reply" {
                for_control.signal(libc::SIGKILL);
                let _ = control_stop.send(Ok(()));
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
    let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, JupyterMessage)>();
    let (reply_sender, mut to_send) = mpsc::unbounded_channel::<JupyterMessage>();
    tokio::spawn(async move {
        while let Some(message) = to_send.recv().await {
            let _ = replies.send(message).await;
        }
    });
    let (early, shell_activity, shell_outputs) = (reply_sender.clone(), activity.clone(), outputs.clone());
    let mut guard = Guard::new("shell", &connection, &seen);
    tokio::spawn(async move {
        loop {
            let request = match guard.sort(requests.read().await) {
                Read::Message(request) => request,
                Read::Dropped => continue,
                Read::Lost => {
                    let _ = stop.send(Err("shell"));
                    break;
                }
            };
            // What needs no engine is answered at once, even while a cell runs or the engine starts.
            let reply = |kind: &str, value| drop(early.send(JupyterMessage::new(content(kind, value), Some(&request))));
            match request.message_type() {
                "kernel_info_request" => shell_activity.beside(&request, || reply("kernel_info_reply", kernel_info())),
                "comm_info_request" => shell_activity.beside(&request, || reply("comm_info_reply", json!({"status": "ok", "comms": {}}))),
                "history_request" => shell_activity.beside(&request, || reply("history_reply", json!({"status": "ok", "history": []}))),
                "is_complete_request" => {
                    let complete = is_complete(as_json(&request)["code"].as_str().unwrap_or(""));
                    shell_activity.beside(&request, || reply("is_complete_reply", complete));
                }
                // No target is known here; the protocol asks that an unknown one is closed at once.
                "comm_open" => shell_activity.beside(&request, || {
                    let close = json!({"comm_id": as_json(&request)["comm_id"], "data": {"reason": "unknown target"}});
                    shell_outputs.send_about(Some(&request), "comm_close", close);
                }),
                "comm_msg" | "comm_close" => shell_activity.beside(&request, || ()),
                _ => drop(queue.send((Instant::now(), *request))),
            }
        }
    });
    let mut cells = Cells { count: 0, executions: 0, jobs, ready: Some(ready), outputs, interrupts, failed: None, broken: None };
    let mut waiting: VecDeque<(Instant, JupyterMessage)> = VecDeque::new();
    let why = |stopped: Option<Result<(), &'static str>>| match stopped {
        Some(Err(socket)) => bail!("the {socket} socket is lost"),
        _ => Ok(()),
    };
    loop {
        let next = match waiting.pop_front() {
            Some(next) => Some(next),
            None => tokio::select! {
                end = stopped.recv() => return why(end),
                next = queued.recv() => next,
            },
        };
        let Some((_, request)) = next else { return why(stopped.recv().await) };
        activity.begin(&request);
        let answered = tokio::select! {
            answered = cells.answer(&request) => answered,
            end = stopped.recv() => return why(end),
        };
        // Only what had come when the cell failed is aborted, and of that only cells.
        let mut aborted = Vec::new();
        if let Some(failed) = cells.failed.take() {
            waiting.extend(std::iter::from_fn(|| queued.try_recv().ok()));
            let (behind, others): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|(came, request)| *came <= failed && request.message_type() == "execute_request");
            (aborted, waiting) = (behind, others.into());
        }
        if let Some((kind, value)) = answered {
            let _ = reply_sender.send(JupyterMessage::new(content(kind, value), Some(&request)));
        }
        activity.end(&request);
        for (_, request) in aborted {
            let value = json!({"status": "aborted", "execution_count": cells.count});
            activity.beside(&request, || drop(reply_sender.send(JupyterMessage::new(content("execute_reply", value), Some(&request)))));
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
    /// When a cell failed: the cells that had come by then are not run.
    failed: Option<Instant>,
    broken: Option<String>,
}

impl Cells {
    async fn answer(&mut self, request: &JupyterMessage) -> Option<(&'static str, Value)> {
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
                let _ = self.jobs.send(Job::Execute { parent: request.clone(), code, count: self.count, silent, reply });
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
                self.failed = asked["stop_on_error"].as_bool().unwrap_or(true).then(Instant::now);
                let error = json!({"ename": failure.name, "evalue": failure.value, "traceback": failure.traceback});
                if !silent {
                    self.outputs.send_about(Some(request), "error", error.clone());
                }
                let mut reply = error;
                reply["status"] = json!("error");
                reply["execution_count"] = json!(self.count);
                reply
            }
        }
    }
}
