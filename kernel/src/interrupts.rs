//! Interrupts of the running cell.
//!
//! While a cell is compiled, the compilers are ended and the cell does not run. Once it runs, the first
//! interrupt asks it gently (SIGINT, to its process and to the processes that it started), and the
//! second, or [`PATIENCE`] without an answer, ends all of them.

use crate::engine::ChildHandle;
use crate::outputs::Outputs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a cell may take to answer a first interrupt.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What the running cell can be interrupted through.
pub struct Interrupts {
    /// evcxr's child, once there is one.
    pub child: Mutex<Option<ChildHandle>>,
    outputs: Outputs,
    /// Number of the running cell, 0 when none runs.
    running: AtomicUsize,
    /// Interrupts that this cell has had.
    count: AtomicUsize,
    /// This cell's process was ended; its successor is not to be touched.
    ended: AtomicBool,
}

impl Interrupts {
    pub fn new(outputs: Outputs) -> Arc<Self> {
        Arc::new(Interrupts { child: Mutex::new(None), outputs, running: AtomicUsize::new(0), count: AtomicUsize::new(0), ended: AtomicBool::new(false) })
    }

    /// A cell begins; `cell` is its number.
    pub fn begin(&self, cell: usize) {
        self.count.store(0, Ordering::SeqCst);
        self.ended.store(false, Ordering::SeqCst);
        {
            let mut state = self.outputs.cell();
            (state.interrupts, state.began, state.stopping) = (0, false, false);
        }
        self.running.store(cell, Ordering::SeqCst);
    }

    pub fn end(&self) {
        self.running.store(0, Ordering::SeqCst);
    }

    /// Interrupts the running cell; without one nothing happens.
    pub fn interrupt(self: &Arc<Self>) {
        let cell = self.running.load(Ordering::SeqCst);
        if cell == 0 {
            return;
        }
        let before = self.count.fetch_add(1, Ordering::SeqCst);
        let began = {
            let mut state = self.outputs.cell();
            state.interrupts = before + 1;
            state.began
        };
        if before > 0 {
            return if began { self.end_process() };
        }
        let this = self.clone();
        tokio::spawn(async move {
            let mut asked: Option<Instant> = None;
            while this.running.load(Ordering::SeqCst) == cell && !this.ended.load(Ordering::SeqCst) {
                let (began, stopping) = {
                    let state = this.outputs.cell();
                    (state.began, state.stopping)
                };
                match asked {
                    None if !began => this.end_compilers(),
                    None => {
                        this.signal(libc::SIGINT);
                        asked = Some(Instant::now());
                    }
                    Some(since) if since.elapsed() >= PATIENCE && !stopping => return this.end_process(),
                    Some(_) => {}
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }

    /// Ends the running cell's process, once.
    fn end_process(&self) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            self.signal(libc::SIGKILL);
        }
    }

    /// Signals evcxr's child and everything that it or a cell started.
    pub fn signal(&self, signal: i32) {
        let child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let Some(child) = child.as_ref().and_then(|child| child.lock().ok()) else { return };
        let mut all = vec![child.id() as i32];
        all.extend(descendants(child.id() as i32));
        all.into_iter().for_each(|process| send(process, signal));
    }

    /// Ends whatever this process started but evcxr's child: cargo and compilers.
    fn end_compilers(&self) {
        let child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let Some(child) = child.as_ref().and_then(|child| child.lock().ok()) else { return };
        let child = child.id() as i32;
        let spared = descendants(child);
        let compilers = descendants(std::process::id() as i32);
        compilers.into_iter().filter(|process| *process != child && !spared.contains(process)).for_each(|process| send(process, libc::SIGKILL));
    }
}

fn send(process: i32, signal: i32) {
    // SAFETY: a system call; the process was this kernel's or a cell's a moment ago.
    unsafe { libc::kill(process, signal) };
}

/// The processes that a process started, and those that they started; none where there is no /proc.
fn descendants(of: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(i32, i32)> = processes
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let status = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The program's name stands in brackets and may hold anything.
            let parent = status.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((process, parent))
        })
        .collect();
    let mut found = vec![of];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        next += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn processes_of_processes_are_found() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 20 & wait"]).spawn().unwrap();
        let mut found = Vec::new();
        for _ in 0..100 {
            found = super::descendants(shell.id() as i32);
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(found.len(), 1);
        found.into_iter().for_each(|process| super::send(process, libc::SIGKILL));
        assert!(shell.wait().unwrap().code().is_some());
    }
}
