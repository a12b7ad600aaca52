//! The process between evcxr and the process that runs the cells.
//!
//! It passes commands on, reads what the cells print, and alone holds evcxr's pipes: when the runner
//! ends, it ends too, whatever processes of cells still hold the runner's stdout. Bytes that are no
//! UTF-8 are shown as U+FFFD here, because evcxr would give up reading in the middle of a cell.

use crate::environment::{RUNNER, SEAL};
use crate::marks::{ASKS, BEGIN, CHANGED, COMPLETE, END, FAILED, MAGIC, PANICKED, Seal, can_ask, is_listening};
use crate::stdin::{CLOSE, Stdin};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The runner's process id, for signals.
static RUNNER_ID: AtomicI32 = AtomicI32::new(0);

/// How long the last words of a runner that ended are waited for, and its stderr at the end of a cell.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long a reader has for an answer before it is taken to ask again.
const ANSWERED: Duration = Duration::from_millis(100);

/// Set by an interrupt, for the cell's stdin.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn pass_on(signal: i32) {
    if signal == libc::SIGINT {
        INTERRUPTED.store(true, Ordering::SeqCst);
    }
    let runner = RUNNER_ID.load(Ordering::SeqCst);
    if runner > 0 {
        // SAFETY: a system call that is allowed in a handler, on the child of this process.
        unsafe { libc::kill(runner, signal) };
    }
}

/// Starts the runner and stands between it and evcxr until it ends.
pub fn keep() -> ! {
    let seal = Seal::of_environment();
    // SAFETY: plain system calls at the start of a process that has no other thread.
    unsafe {
        for signal in [libc::SIGINT, libc::SIGUSR1] {
            libc::signal(signal, pass_on as extern "C" fn(i32) as libc::sighandler_t);
        }
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    let started = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).env(RUNNER, "1").env(SEAL, seal.text());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    });
    let mut runner = started.unwrap_or_else(|error| {
        eprintln!("cltlab-kernel: the process that runs the cells could not be started: {error}");
        std::process::exit(99);
    });
    RUNNER_ID.store(runner.id() as i32, Ordering::SeqCst);
    let cell = Arc::new(Running::default());
    let (commands, out, error) = (runner.stdin.take(), runner.stdout.take(), runner.stderr.take());
    let (ended, both_ended) = channel::<()>();
    let (said, all_said) = channel::<()>();
    if let (Some(out), Some(error)) = (out, error) {
        let (filter, seal, done) = (Filter::new(seal.clone(), cell.clone()), seal, ended.clone());
        std::thread::spawn(move || pass_stdout(out, filter, &all_said, &done));
        std::thread::spawn(move || pass_stderr(error, &seal, &said, &ended));
    }
    let commands = Arc::new(Mutex::new(commands));
    let pass = |commands: &Mutex<Option<ChildStdin>>, line: &str| {
        let mut commands = commands.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        commands.as_mut().is_some_and(|commands| writeln!(commands, "{line}").is_ok())
    };
    let (id, asking, closing) = (runner.id() as i32, cell.clone(), commands.clone());
    std::thread::spawn(move || asking.stdin.serve(id, &INTERRUPTED, || _ = pass(&closing, CLOSE)));
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let job = line.strip_prefix("LOAD_AND_RUN ").and_then(|rest| rest.split_once(' '));
            if let Some((path, _)) = job {
                cell.asks.store(can_ask(path), Ordering::SeqCst);
                cell.unheard.store(!is_listening(), Ordering::SeqCst);
                INTERRUPTED.store(false, Ordering::SeqCst);
                cell.stdin.begin();
            }
            if !pass(&commands, &line) {
                break;
            }
            if job.is_none() {
                // The next question is asked when the reader had time to take this answer.
                std::thread::sleep(ANSWERED);
                cell.stdin.asked.store(false, Ordering::SeqCst);
            }
        }
        // The end of the commands ends the runner.
        commands.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    });
    let status = runner.wait();
    RUNNER_ID.store(0, Ordering::SeqCst);
    // Processes of cells may hold the runner's stdout open for ever.
    for _ in 0..2 {
        let _ = both_ended.recv_timeout(LAST_WORDS);
    }
    let Ok(status) = status else { std::process::exit(99) };
    if let Some(signal) = status.signal() {
        // SAFETY: this process ends as the runner did, so that evcxr reports the cause.
        unsafe {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    std::process::exit(status.code().unwrap_or(99))
}

fn pass_stdout(out: impl Read, mut filter: Filter, all_said: &Receiver<()>, ended: &Sender<()>) {
    let (mut reader, mut real, mut line) = (BufReader::new(out), std::io::stdout(), Vec::new());
    let cell = filter.cell.clone();
    while next_line(&mut reader, &cell.stdin, &mut line).is_ok_and(|count| count > 0) {
        let is_end = filter.line(&line);
        line.clear();
        if is_end {
            cell.stdin.end();
        }
        let mut out = std::mem::take(&mut filter.out);
        if is_end {
            let _ = all_said.recv_timeout(LAST_WORDS);
            out.push_str(COMPLETE);
            out.push('\n');
        }
        if real.write_all(out.as_bytes()).and_then(|()| real.flush()).is_err() {
            break;
        }
    }
    let _ = ended.send(());
}

/// Reads a line; its part that is there already is the stdin's to show as a question, and then no part of the line.
fn next_line(reader: &mut impl BufRead, stdin: &Stdin, line: &mut Vec<u8>) -> std::io::Result<usize> {
    loop {
        let some = match reader.fill_buf() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            some => some?,
        };
        let end = some.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let count = end.unwrap_or(some.len());
        let mut partial = stdin.partial.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        partial.extend_from_slice(&some[..count]);
        reader.consume(count);
        if end.is_some() || count == 0 {
            line.append(&mut partial);
            return Ok(line.len());
        }
    }
}

fn pass_stderr(error: impl Read, seal: &Seal, said: &Sender<()>, ended: &Sender<()>) {
    let (mut reader, mut real, mut line) = (BufReader::new(error), std::io::stderr(), Vec::new());
    let end = seal.end();
    while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let before = line.strip_suffix(end.as_bytes());
        let text = String::from_utf8_lossy(before.unwrap_or(&line));
        if before.is_none_or(|before| !before.is_empty()) {
            let newline = if text.ends_with('\n') { "" } else { "\n" };
            let _ = real.write_all(format!("{text}{newline}").as_bytes());
        }
        if before.is_some() {
            let _ = said.send(());
        }
        line.clear();
    }
    let _ = ended.send(());
}

/// What is known of the running cell.
#[derive(Default)]
struct Running {
    /// It can ask the front end for a line.
    asks: AtomicBool,
    /// It is one of those with which evcxr tries itself; its output is read by no one but must be drained, since evcxr waits until it is.
    unheard: AtomicBool,
    /// Its stdin.
    stdin: Stdin,
}

/// Sorts the lines of a cell's stdout: marks that are evcxr's, displays, text.
struct Filter {
    seal: Seal,
    cell: Arc<Running>,
    /// What goes to evcxr.
    out: String,
    /// The content that is being read: its type, its lines, whether it is the closing expression's text.
    open: Option<(String, Vec<String>, bool)>,
    /// The last display's contents by type, not yet sent: if nothing follows, it is the cell's result.
    shown: Map<String, Value>,
}

impl Filter {
    fn new(seal: Seal, cell: Arc<Running>) -> Self {
        Filter { seal, cell, out: String::new(), open: None, shown: Map::new() }
    }

    /// Takes one line; true when it ends the cell.
    fn line(&mut self, line: &[u8]) -> bool {
        let (end, line) = (self.seal.end(), String::from_utf8_lossy(line));
        if let Some(before) = line.strip_suffix(&end) {
            if !before.is_empty() {
                self.inner(before);
            }
            self.close_as_text();
            self.send_shown("result");
            return true;
        }
        self.inner(line.strip_suffix('\n').unwrap_or(&line));
        false
    }

    fn inner(&mut self, line: &str) {
        for (mark, kind) in [(PANICKED, "panic"), (FAILED, "failed")] {
            if let Some(before) = line.strip_suffix(&self.seal.mark(mark)) {
                self.close_as_text();
                if !before.is_empty() {
                    self.text(before);
                }
                self.send_shown("display");
                self.send(&json!({"kind": kind}));
                return self.raw(mark);
            }
        }
        if let Some(name) = line.strip_prefix(&self.seal.mark(CHANGED)) {
            return self.raw(&format!("{CHANGED}{name}"));
        }
        if let Some((before, message)) = line.split_once(MAGIC) {
            if !before.is_empty() {
                self.text(before);
            }
            return self.raw(&format!("{MAGIC}{}", hidden(message)));
        }
        if let Some((mime, lines, closes)) = self.open.as_mut() {
            if line != END {
                return lines.push(line.to_string());
            }
            let (mime, content, closes) = (std::mem::take(mime), lines.join("\n"), *closes);
            self.open = None;
            return self.content(mime, content, closes);
        }
        for (mark, closes) in [(BEGIN.to_string(), false), (self.seal.mark(BEGIN), true)] {
            let begun = line.rsplit_once(&format!("{mark} ")).filter(|(_, mime)| mime.contains('/') && !mime.contains(char::is_whitespace));
            if let Some((before, mime)) = begun {
                if !before.is_empty() {
                    self.text(before);
                }
                self.open = Some((mime.to_string(), Vec::new(), closes));
                return;
            }
        }
        if line.starts_with(ASKS) && self.cell.asks.load(Ordering::SeqCst) {
            self.cell.stdin.asked.store(true, Ordering::SeqCst);
            return self.raw(line);
        }
        self.text(line);
    }

    /// One content of a display. A type that the display has already begins the next display, and so does the
    /// text of a closing expression; that of a closing loop is nothing.
    fn content(&mut self, mime: String, content: String, closes: bool) {
        if closes && content == "()" {
            return;
        }
        if closes || self.shown.contains_key(&mime) {
            self.send_shown("display");
        }
        self.shown.insert(mime, Value::String(content));
    }

    fn send_shown(&mut self, kind: &str) {
        if !self.shown.is_empty() {
            let data = std::mem::take(&mut self.shown);
            self.send(&json!({"kind": kind, "data": data}));
        }
    }

    /// A content that never ended is text.
    fn close_as_text(&mut self) {
        if let Some((mime, lines, _)) = self.open.take() {
            self.text(&format!("{BEGIN} {mime}"));
            lines.iter().for_each(|line| self.text(line));
        }
    }

    /// A line of text; one that evcxr could take for its own goes by the side channel.
    fn text(&mut self, line: &str) {
        self.send_shown("display");
        if line.contains("EVCXR_") {
            self.send(&json!({"kind": "text", "text": format!("{line}\n")}));
        } else {
            self.raw(line);
        }
    }

    fn send(&mut self, message: &Value) {
        if self.cell.unheard.load(Ordering::SeqCst) {
            return;
        }
        self.raw(&format!("{MAGIC}{}", hidden(&message.to_string())));
    }

    fn raw(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }
}

/// JSON in which evcxr finds no mark: it looks for some anywhere in a line.
fn hidden(json: &str) -> String {
    json.replace("EVCXR_", "EVCXR\\u005f")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes to evcxr for a whole cell, and whether it ended.
    fn filtered(printed: &[u8]) -> (String, usize) {
        let seal = Seal::draw();
        let mut filter = Filter::new(seal.clone(), Arc::default());
        let text = printed.to_vec();
        let lines = text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut ends = lines.iter().filter(|line| filter.line(line)).count();
        ends += usize::from(filter.line(seal.end().as_bytes()));
        (filter.out, ends)
    }

    #[test]
    fn what_equals_a_mark_of_evcxr_is_text() {
        for mark in [COMPLETE, PANICKED, FAILED, "EVCXR_VARIABLE_CHANGED_TYPE:x", "EVCXR_INPUT_REQUEST:name", "EVCXR_BEGIN_CONTENT", END] {
            for line in [mark.to_string(), format!("before {mark}")] {
                let (out, ends) = filtered(format!("{line}\nafter\n").as_bytes());
                assert_eq!(out, format!("{MAGIC}{}\nafter\n", hidden(&json!({"kind": "text", "text": format!("{line}\n")}).to_string())));
                assert!(!out.contains("EVCXR_"));
                assert_eq!(ends, 1);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced() {
        assert_eq!(filtered(b"a\xff\xfeb\n\xc3").0, "a\u{fffd}\u{fffd}b\n\u{fffd}\n");
    }

    #[test]
    fn sealed_marks_are_translated_and_a_cell_ends_in_the_middle_of_a_line() {
        let seal = Seal::draw();
        let mut filter = Filter::new(seal.clone(), Arc::default());
        assert!(!filter.line(format!("half {}\n", seal.mark(PANICKED)).as_bytes()));
        assert!(filter.line(format!("more{}", seal.end()).as_bytes()));
        assert_eq!(filter.out, format!("half \n{MAGIC}{{\"kind\":\"panic\"}}\n{PANICKED}\nmore\n"));
    }

    #[test]
    fn each_display_is_sent_and_the_last_is_the_result() {
        let one = |text: &str| format!("{BEGIN} text/html\n<b>{text}</b>\n{END}\n{BEGIN} text/plain\n{text}\n{END}\n");
        let (out, _) = filtered(format!("{}{}", one("a"), one("b")).as_bytes());
        let messages: Vec<Value> = out.lines().map(|line| serde_json::from_str(line.strip_prefix(MAGIC).unwrap()).unwrap()).collect();
        let data = |text: &str| json!({"text/html": format!("<b>{text}</b>"), "text/plain": text});
        assert_eq!(messages, [json!({"kind": "display", "data": data("a")}), json!({"kind": "result", "data": data("b")})]);
    }

    #[test]
    fn the_text_of_a_closing_loop_is_nothing() {
        let seal = Seal::draw();
        let mut filter = Filter::new(seal.clone(), Arc::default());
        let printed = format!("{BEGIN} text/html\n<b>1</b>\n{END}\n{} text/plain\n()\n{END}\n{}", seal.mark(BEGIN), seal.end());
        printed.split_inclusive('\n').for_each(|line| {
            filter.line(line.as_bytes());
        });
        assert_eq!(filter.out, format!("{MAGIC}{}\n", json!({"kind": "result", "data": {"text/html": "<b>1</b>"}})));
    }

    #[test]
    fn a_content_without_an_end_is_text_and_ends_with_its_cell() {
        let (out, ends) = filtered(format!("{BEGIN} text/html\n<b>\n").as_bytes());
        assert_eq!((out.lines().count(), ends), (2, 1));
        assert!(out.ends_with("<b>\n") && !out.contains(BEGIN));
        // The library's own messages are looked through as well.
        let (out, _) = filtered(format!("{MAGIC}{{\"kind\": \"display\", \"data\": \"{BEGIN} text/html\"}}\n").as_bytes());
        assert!(out.starts_with(MAGIC) && !out.contains(BEGIN));
    }

    #[test]
    fn sealing_keeps_places() {
        let seal = Seal::draw();
        let source = format!("  Err(_) => {{\n    println!(\"{PANICKED}\");\n}}\nx(b\"{BEGIN} text/plain\\n\")\npub const USER_ERROR_OCCURRED: &str = \"{FAILED}\";\nprintln!(\"{PANICKED}\")");
        let sealed = seal.seal_source(&source);
        assert_eq!(sealed.len(), source.len());
        assert!(sealed.contains(&seal.mark(PANICKED)) && sealed.contains(&seal.mark(FAILED)) && sealed.ends_with(&format!("println!(\"{PANICKED}\")")));
    }
}
