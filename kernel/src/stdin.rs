//! A cell's stdin: empty, or a pipe in which the front end's answers come.
//!
//! A pipe does not say whether anything reads from it, so the keeper looks: a process whose descriptor 0 is the
//! runner's pipe and that stands in `read` on it waits for a line (Linux; elsewhere stdin is empty). The keeper then
//! prints the line by which evcxr asks the kernel, and passes the answer on. After an interrupt the pipe is closed:
//! what reads from it finds the end.

use crate::marks::ASKS;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The file in the kernel's folder that says that the front end of the running cell can answer.
pub const ANSWERING: &str = "answering";
/// The line that closes a cell's stdin.
pub const CLOSE: &str = "\u{1}cltlab-close-stdin";
/// How often the keeper looks; a reader is asked for when it is seen twice.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a line without an end that are taken for the question.
const LONGEST: usize = 200;
/// Stands for a colon, at which evcxr would cut the question.
const COLON: char = '\u{1f}';

/// Whether the front end of the running cell can answer.
pub fn can_answer() -> bool {
    cfg!(target_os = "linux") && crate::environment::path(crate::environment::FOLDER).is_some_and(|folder| folder.join(ANSWERING).exists())
}

/// The question as it was, of one that came through evcxr.
pub fn question(prompt: &str) -> String {
    prompt.replace(COLON, ":")
}

/// What the keeper knows of the running cell's stdin.
#[derive(Default)]
pub struct Stdin {
    /// A cell runs whose stdin is a pipe. Held while a question is printed, so that none comes after the cell's end.
    open: Mutex<bool>,
    /// A question is under way.
    pub asked: AtomicBool,
    /// The pipe was closed after an interrupt.
    closed: AtomicBool,
    /// What the cell printed since the last line's end.
    pub partial: Mutex<Vec<u8>>,
}

impl Stdin {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A cell begins.
    pub fn begin(&self) {
        self.asked.store(false, Ordering::SeqCst);
        self.closed.store(false, Ordering::SeqCst);
        *self.lock() = can_answer();
    }

    /// The cell ended: no question after this.
    pub fn end(&self) {
        *self.lock() = false;
    }

    /// Asks whenever something waits for a line of the runner's stdin; after an interrupt `close` is called once instead.
    pub fn serve(&self, runner: i32, interrupted: &AtomicBool, close: impl Fn()) -> ! {
        let mut seen = false;
        loop {
            std::thread::sleep(PAUSE);
            let open = self.lock();
            if *open && interrupted.swap(false, Ordering::SeqCst) {
                close();
                self.closed.store(true, Ordering::SeqCst);
            }
            if !*open || self.closed.load(Ordering::SeqCst) || self.asked.load(Ordering::SeqCst) {
                seen = false;
                continue;
            }
            let reads = is_read(runner);
            if reads && seen {
                self.asked.store(true, Ordering::SeqCst);
                let prompt = self.prompt();
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(format!("{ASKS}:{prompt}\n").as_bytes()).and_then(|()| out.flush());
            }
            seen = reads;
        }
    }

    /// What was printed without an end of line, if it is a short text.
    fn prompt(&self) -> String {
        let mut partial = self.partial.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let text = String::from_utf8_lossy(&partial).into_owned();
        if text.len() > LONGEST || text.contains(char::is_control) || text.contains("EVCXR_") {
            return String::new();
        }
        partial.clear();
        text.replace(':', &COLON.to_string())
    }
}

/// Whether a process stands in a read of the stdin that is `runner`'s.
#[cfg(target_os = "linux")]
fn is_read(runner: i32) -> bool {
    let stdin = |process: &Path| std::fs::read_link(process.join("fd/0"));
    let Ok(ours) = stdin(&Path::new("/proc").join(runner.to_string())) else { return false };
    let waits = |task: &Path| {
        let call = std::fs::read_to_string(task.join("syscall")).unwrap_or_default();
        let mut words = call.split(' ');
        let number = words.next().and_then(|word| word.parse::<libc::c_long>().ok());
        number.is_some_and(|number| [libc::SYS_read, libc::SYS_readv].contains(&number)) && words.next() == Some("0x0")
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut readers = processes.filter(|process| stdin(process).is_ok_and(|theirs| theirs == ours));
    readers.any(|process| std::fs::read_dir(process.join("task")).into_iter().flatten().flatten().any(|task| waits(&task.path())))
}

#[cfg(not(target_os = "linux"))]
fn is_read(_: i32) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_that_reads_is_found_and_one_that_does_not_is_not() {
        for (program, expected) in [("read line", true), ("exec sleep 60", false), ("cat >/dev/null & wait", false), ("(read line) ; :", true)] {
            let mut shell = Command::new("sh").args(["-c", program]).stdin(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(300));
            assert_eq!(super::is_read(shell.id() as i32), expected, "{program}");
            shell.kill().unwrap();
            shell.wait().unwrap();
        }
    }
}
