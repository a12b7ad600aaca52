//! The process in which cells run.
//!
//! evcxr starts this program again as its runtime. That process is the keeper ([`crate::keeper`]), and
//! it starts this program a third time, as the runner below. The runner holds none of evcxr's pipes, so
//! neither what a cell prints nor a process that a cell leaves behind can stand between evcxr and
//! the end of a cell.
//!
//! The runner loads each cell's shared object and calls it. A cell's stdin is empty: commands come by
//! a descriptor that no process started by a cell inherits. Only where the front end can answer, or for a cell
//! that asks by the crate `evcxr_input`, is stdin a pipe in which the answers come ([`crate::stdin`]).
//!
//! SIGINT must not end the runner: the library's handler turns it into the stop flag, and before the
//! library is there it is ignored.

use crate::environment;
use crate::marks::{MAGIC, Seal, can_ask, is_listening};
use crate::stdin::{CLOSE, can_answer};
use serde_json::json;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex};

/// A cell's function: takes and returns the store of variables.
type Cell = extern "C" fn(*mut c_void) -> *mut c_void;

/// Takes the role of keeper, runner or compiler wrapper when this process was started for it; then it
/// does not return.
pub fn become_child_if_asked() {
    if environment::is_set(environment::RUNNER) {
        run();
    }
    if environment::is_set(environment::RUNTIME) {
        crate::keeper::keep();
    }
    evcxr::runtime_hook();
}

/// Runs cells until the commands end.
fn run() -> ! {
    let seal = Seal::of_environment();
    // SAFETY: plain system calls at the start of a process that has no other thread.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGUSR1, libc::SIG_IGN);
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGBUS] {
            libc::signal(signal, on_crash as extern "C" fn(c_int) as libc::sighandler_t);
        }
        environment::remove(environment::RUNNER);
        environment::remove(environment::SEAL);
    }
    crate::tools::give_back_cargo_home();
    let streams = own(0).and_then(|commands| Ok((commands, own(1)?, own(2)?))).and_then(|streams| empty_stdin().map(|()| streams));
    let (commands, mut out, mut error) = streams.unwrap_or_else(|error| give_up(&format!("its streams cannot be set up: {error}")));
    let answers: Arc<Mutex<Option<PipeWriter>>> = Arc::default();
    let (sender, jobs) = std::sync::mpsc::channel::<String>();
    let to_stdin = answers.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(commands).lines().map_while(Result::ok) {
            let mut answers = to_stdin.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if line.starts_with("LOAD_AND_RUN ") {
                let _ = sender.send(line);
            } else if line == CLOSE {
                *answers = None;
            } else if let Some(answers) = answers.as_mut() {
                // An answer that comes when the cell is over is dropped.
                let _ = writeln!(answers, "{line}");
            }
        }
        // The kernel is gone, whatever a cell still does.
        std::process::exit(0);
    });
    let mut store = std::ptr::null_mut();
    for job in jobs {
        let words: Vec<&str> = job.split(' ').collect();
        let ["LOAD_AND_RUN", path, function] = words[..] else { give_up(&format!("unrecognised line: {job}")) };
        let cell = load(path, function).unwrap_or_else(|why| give_up(&format!("the cell cannot be loaded: {why}")));
        if can_answer() || can_ask(path) {
            let opened = std::io::pipe().and_then(|(reader, writer)| give_stdin(reader.as_raw_fd()).map(|()| writer));
            *answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = opened.ok();
        }
        note_panics(&out);
        if is_listening() {
            let _ = out.write_all(format!("{MAGIC}{}\n", json!({"kind": "began"})).as_bytes());
        }
        store = cell(store);
        let _ = std::io::stdout().flush();
        answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let _ = empty_stdin();
        // The keeper waits for the end of stderr before it reports the end of stdout.
        if error.write_all(seal.end().as_bytes()).and_then(|()| out.write_all(seal.end().as_bytes())).is_err() {
            std::process::exit(0);
        }
    }
    std::process::exit(0);
}

/// A copy of a descriptor that processes started by cells do not inherit.
fn own(descriptor: c_int) -> std::io::Result<std::fs::File> {
    // SAFETY: the new descriptor has one owner, the returned file.
    unsafe {
        match libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) {
            copy if copy >= 0 => Ok(std::fs::File::from_raw_fd(copy)),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

fn empty_stdin() -> std::io::Result<()> {
    give_stdin(std::fs::File::open("/dev/null")?.as_raw_fd())
}

fn give_stdin(descriptor: c_int) -> std::io::Result<()> {
    // SAFETY: both descriptors are open.
    match unsafe { libc::dup2(descriptor, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn give_up(why: &str) -> ! {
    eprintln!("cltlab-kernel: the process that runs the cells: {why}");
    std::process::exit(99)
}

/// The function of a cell's shared object, which is never unloaded.
fn load(path: &str, function: &str) -> Result<Cell, String> {
    // SAFETY: the strings end with zero; evcxr compiled the object and named the function, whose type is Cell.
    unsafe {
        let (path, name) = (CString::new(path).map_err(|error| error.to_string())?, CString::new(function).map_err(|error| error.to_string())?);
        let object = libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        let symbol = if object.is_null() { object } else { libc::dlsym(object, name.as_ptr()) };
        if symbol.is_null() {
            let why: *const c_char = libc::dlerror();
            return Err(if why.is_null() { "dlopen failed".to_string() } else { CStr::from_ptr(why).to_string_lossy().into_owned() });
        }
        Ok(std::mem::transmute::<*mut c_void, Cell>(symbol))
    }
}

extern "C" fn on_crash(signal: c_int) {
    let what = match signal {
        libc::SIGSEGV => "Segmentation fault.",
        libc::SIGILL => "Illegal instruction.",
        _ => "Bus error.",
    };
    eprintln!("{what}\n{}", std::backtrace::Backtrace::force_capture());
    std::process::abort();
}

/// Puts a hook before the panic hook that is installed now, which tells the kernel a panic's place.
fn note_panics(out: &std::fs::File) {
    static OURS: Mutex<usize> = Mutex::new(0);
    let mut ours = OURS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let address = |hook: &(dyn Fn(&std::panic::PanicHookInfo<'_>) + Send + Sync)| std::ptr::from_ref(hook).cast::<u8>() as usize;
    let hook = std::panic::take_hook();
    if address(&*hook) == *ours {
        return std::panic::set_hook(hook);
    }
    let Ok(out) = out.try_clone() else { return std::panic::set_hook(hook) };
    let noting = Box::new(move |panic: &std::panic::PanicHookInfo<'_>| {
        if let Some(place) = panic.location().filter(|place| place.file().len() < 1000) {
            let note = json!({"kind": "at", "file": place.file(), "line": place.line()});
            // One write, which the pipe does not tear apart.
            let _ = (&out).write_all(format!("{MAGIC}{note}\n").as_bytes());
        }
        hook(panic);
    });
    *ours = address(&*noting);
    std::panic::set_hook(noting);
}
