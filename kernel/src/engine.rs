//! The engine: evcxr on a thread of its own, one job after another.
//!
//! evcxr's context is not `Send` and its calls block, so the server talks to it through a channel.
//! The engine warms itself up before the first cell: it adds the library, runs the prelude with a
//! typed `let` and a `?`, so that rust-analyzer's first inference and evcxr's first failed compile
//! are paid before the user's first cell.

use crate::errors::{Failure, Place};
use crate::folders::{self, OwnFolder};
use crate::interrupts::PATIENCE;
use crate::marks::LISTENING;
use crate::outputs::{Outputs, media};
use crate::stdin::{ANSWERING, question};
use crate::tools;
use crossbeam_channel::{Receiver, Sender};
use evcxr::{CommandContext, Error, EvalCallbacks, EvalContextOutputs};
use jupyter_protocol::JupyterMessage;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// What the server asks for.
pub enum Job {
    /// Run a cell, the `count`th; its outputs go out under `parent`.
    Execute { parent: JupyterMessage, code: String, count: usize, silent: bool, reply: oneshot::Sender<Result<Option<Value>, Failure>> },
    /// Completions at a byte offset: the texts, and the byte range they replace.
    Complete { code: String, offset: usize, reply: oneshot::Sender<(Vec<String>, usize, usize)> },
    /// Documentation of the expression that ends at a byte offset, by MIME type.
    Inspect { code: String, offset: usize, reply: oneshot::Sender<Option<Value>> },
}

/// The child that runs cells, for interrupts.
pub type ChildHandle = Arc<Mutex<std::process::Child>>;

/// Asks the user for a line: the prompt, and whether it is a password.
pub type Ask = Arc<dyn Fn(String, bool) -> String + Send + Sync>;

/// What every cell finds: names, and the live side channel with the panic message and stop flag.
const PRELUDE: &str = "use cltlab::prelude::*;\nlet notebook = cltlab::notebook::attach()?;";
/// After a new child: the imports are still there, the side channel is not.
const REATTACH: &str = "let notebook = cltlab::notebook::attach()?;";

/// How many cells' sources are kept.
const HISTORY: usize = 1000;

struct Engine {
    context: CommandContext,
    outputs: Outputs,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    draining: Arc<Mutex<()>>,
    ask: Ask,
    root: PathBuf,
    prepared: SystemTime,
    /// The kernel's own folder, in which the source of the running cell lies.
    folder: PathBuf,
    /// The cells that ran, newest last, with their numbers, for the places of panics.
    history: VecDeque<(usize, String)>,
}

/// Starts the engine; `ready` gets the child's handle, or why the engine could not start.
pub fn start(folder: Result<OwnFolder, String>, outputs: Outputs, ask: Ask, ready: Sender<Result<ChildHandle, String>>) -> Sender<Job> {
    let (sender, jobs) = crossbeam_channel::unbounded::<Job>();
    let spawned = std::thread::Builder::new().name("cltlab-engine".to_string()).stack_size(64 << 20).spawn(move || {
        // Moved in whole: the folder must live as long as the engine.
        let folder = folder;
        let engine = folder.as_ref().map_err(String::clone).and_then(|folder| Engine::warm_up(outputs, ask, folder));
        match engine {
            Ok(mut engine) => {
                let _ = ready.send(Ok(engine.context.process_handle()));
                for job in jobs {
                    engine.run(job);
                }
            }
            Err(error) => {
                eprintln!("cltlab-kernel: {error}");
                let _ = ready.send(Err(error));
            }
        }
    });
    if let Err(error) = spawned {
        eprintln!("cltlab-kernel: the engine's thread could not be started: {error}");
    }
    sender
}

impl Engine {
    fn warm_up(outputs: Outputs, ask: Ask, own: &OwnFolder) -> Result<Engine, String> {
        let root = folders::root().map_err(|error| format!("{error:#}"))?;
        let (context, EvalContextOutputs { stdout, stderr }) = CommandContext::new().map_err(|error| error.to_string())?;
        let draining = Arc::new(Mutex::new(()));
        let mut engine = Engine { context, outputs, stdout, stderr, draining, ask, root, prepared: own.prepared, folder: own.path.clone(), history: VecDeque::new() };
        engine.pump();
        std::fs::write(engine.folder.join(LISTENING), "").map_err(|error| format!("{}: {error}", engine.folder.display()))?;
        // With lld evcxr changes the compiler's flags, and every dependency would be built anew.
        let linker = if tools::find("mold").is_some() { "" } else { ":linker system\n" };
        let dependency = format!("{linker}:dep {}\n{PRELUDE}", folders::dependency(&engine.root));
        engine.evaluate(&dependency).map_err(|failure| format!("the prelude failed:\n{}", failure.traceback.join("\n")))?;
        Ok(engine)
    }

    /// Passes on what the child prints, while cells run.
    fn pump(&self) {
        let (outputs, stdout, stderr, draining) = (self.outputs.clone(), self.stdout.clone(), self.stderr.clone(), self.draining.clone());
        std::thread::spawn(move || {
            loop {
                let mut select = crossbeam_channel::Select::new();
                select.recv(&stdout);
                let _ = select.ready_timeout(Duration::from_millis(50));
                let _guard = draining.lock();
                outputs.drain_stdout(&stdout);
                outputs.drain_stderr(&stderr);
            }
        });
    }

    fn run(&mut self, job: Job) {
        match job {
            Job::Execute { parent, code, count, silent, reply } => {
                self.outputs.begin(if silent { None } else { Some(&parent) });
                if self.history.len() >= HISTORY {
                    self.history.pop_front();
                }
                self.history.push_back((count, code.clone()));
                self.answering(&parent, silent);
                let result = self.evaluate(&code);
                // A late line of stderr still belongs to this cell.
                self.outputs.cell().failed = None;
                let _ = reply.send(result);
            }
            Job::Complete { code, offset, reply } => {
                let found = self.context.completions(&code, offset).ok();
                let _ = reply.send(found.map_or_else(
                    || (Vec::new(), offset, offset),
                    |found| (found.completions.into_iter().map(|one| one.code).collect(), found.start_offset, found.end_offset),
                ));
            }
            Job::Inspect { code, offset, reply } => {
                let _ = reply.send(self.inspect(&code, offset));
            }
        }
    }

    /// Says to the process that runs the cells whether this cell's front end can answer.
    fn answering(&self, parent: &JupyterMessage, silent: bool) {
        let (can, file) = (!silent && crate::messages::as_json(parent)["allow_stdin"].as_bool() == Some(true), self.folder.join(ANSWERING));
        let _ = if can { std::fs::write(file, "") } else { std::fs::remove_file(file) };
    }

    fn evaluate(&mut self, code: &str) -> Result<Option<Value>, Failure> {
        if folders::is_stale(&self.root, self.prepared) {
            let words = format!("the library's source changed since this kernel was prepared; run {} and restart the kernel", folders::remedy());
            return Err(Failure::new("Error", vec![words.to_string()]));
        }
        self.tell_child(libc::SIGUSR1);
        let variables: Vec<String> = self.context.variables_and_types().map(|(name, _)| name.to_string()).collect();
        let ask = self.ask.clone();
        let mut callbacks = EvalCallbacks { input_reader: &|request| ask(question(&request.prompt), request.is_password) };
        let result = self.context.execute_with_callbacks(code, &mut callbacks);
        self.drain();
        match result {
            Ok(outputs) => {
                let Some(kind) = self.outputs.cell().failed else {
                    self.outputs.release_stderr();
                    if let Some(result) = self.outputs.cell().result.take() {
                        return Ok(Some(result));
                    }
                    let data: Value = outputs.content_by_mime_type.into_iter().map(|(mime, content)| (mime, Value::String(content))).collect();
                    return Ok(data.as_object().filter(|data| !data.is_empty()).map(|_| media(&data)));
                };
                // The message comes by another pipe than the word that the cell failed.
                std::thread::sleep(Duration::from_millis(60));
                self.drain();
                let place = self.outputs.cell().place.take().filter(|_| kind == "panic");
                let place = place.and_then(|(file, line)| self.place_in_cell(&file, line));
                Err(Failure::at_run_time(kind, self.outputs.take_held(), place))
            }
            Err(_) if self.interrupted_before_it_ran() => {
                self.outputs.release_stderr();
                Err(Failure::new("Interrupted", vec!["The cell was interrupted while it was compiled: it did not run, and no variable changed.".to_string()]))
            }
            Err(Error::SubprocessTerminated(why)) => Err(self.child_lost(&why, variables)),
            Err(error) => {
                self.outputs.release_stderr();
                Err(Failure::from_evcxr(error, code))
            }
        }
    }

    fn child_lost(&mut self, why: &str, variables: Vec<String>) -> Failure {
        std::thread::sleep(Duration::from_millis(60));
        self.drain();
        let mut lines = self.outputs.take_held();
        lines.insert(0, match self.outputs.cell().interrupts {
            0 => format!("The process that runs the cells ended: {why}"),
            1 => format!("The cell did not stop within {} s of the interrupt, so the process that runs the cells was ended.", PATIENCE.as_secs()),
            _ => "The cell was interrupted twice, so the process that runs the cells was ended.".to_string(),
        });
        let names: Vec<_> = variables.into_iter().filter(|name| name != "notebook").collect();
        lines.push(match names.is_empty() {
            true => "No variables were lost.".to_string(),
            false => format!("These variables are lost: {}. Run the cells that define them again.", names.join(", ")),
        });
        if let Err(error) = self.context.execute(REATTACH) {
            lines.push(format!("A new process could not be prepared ({error}); restart the kernel."));
        }
        Failure::new("ChildLost", lines)
    }

    fn interrupted_before_it_ran(&self) -> bool {
        let cell = self.outputs.cell();
        cell.interrupts > 0 && !cell.began
    }

    /// Where a line of the source that evcxr made of a cell stands in this cell or an earlier one.
    fn place_in_cell(&self, file: &str, line: usize) -> Option<Place> {
        if file != "src/lib.rs" {
            return None;
        }
        let source = std::fs::read_to_string(self.folder.join(file)).ok()?;
        Place::find(&source, line, self.history.iter().rev().map(|(count, code)| (*count, code.as_str())))
    }

    fn drain(&self) {
        let _guard = self.draining.lock();
        self.outputs.drain_stdout(&self.stdout);
        self.outputs.drain_stderr(&self.stderr);
    }

    fn tell_child(&self, signal: i32) {
        if let Ok(child) = self.context.process_handle().lock() {
            // SAFETY: the child is ours and not yet waited for while its handle is locked.
            unsafe { libc::kill(child.id() as i32, signal) };
        }
    }

    /// evcxr's `:doc` explains one expression: the one that ends at the cursor, a name after it included.
    fn inspect(&mut self, code: &str, offset: usize) -> Option<Value> {
        let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '.');
        let before = code.get(..offset)?;
        let start = before.rfind(|c| !word(c)).map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        let end = offset + code[offset..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(code.len() - offset);
        let expression = code.get(start..end).filter(|text| !text.is_empty())?;
        let answer = self.context.execute(&format!(":doc {expression}")).ok()?;
        let text = answer.get("text/plain").filter(|text| !text.contains("No documentation found"))?.to_string();
        Some(match answer.get("text/html") {
            Some(html) => json!({"text/plain": text, "text/html": html}),
            None => json!({"text/plain": text}),
        })
    }
}
