//! The child process in which cells run.
//!
//! evcxr starts this program again as its runtime and keeps for itself the lines that say "the cell
//! panicked" or "a `?` failed". So the child's stdout goes through a pipe first, and a thread puts
//! a notice for the kernel before such a line. SIGINT must not end the child: the library's handler
//! turns it into the stop flag, and before the library is there it is ignored.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;

/// What begins a side-channel line; the rest of the line is JSON. The library's
/// `notebook::channel` writes the same.
pub const MAGIC: &str = "\u{1}cltlab ";

/// evcxr's own markers on the child's stdout.
const PANICKED: &str = "EVCXR_PANIC_NOTIFICATION";
const FAILED: &str = "EVCXR_ERROR_OCCURRED";
const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";

/// Takes the child's or the compiler wrapper's role when evcxr started this process for it; then it
/// does not return.
pub fn become_child_if_asked() {
    if std::env::var_os("EVCXR_IS_RUNTIME").is_some() {
        // SAFETY: plain system calls at the start of a process that has no other thread.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_IGN);
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            #[cfg(target_os = "linux")]
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        crate::tools::give_back_cargo_home();
        if let Err(error) = put_pipe_before_stdout() {
            eprintln!("cltlab-kernel: the child's stdout cannot be watched ({error}): errors of cells will look like success");
        }
    }
    evcxr::runtime_hook();
}

fn put_pipe_before_stdout() -> std::io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: the descriptors are this process's own, and each is given to one owner.
    let (reader, mut real) = unsafe {
        let real = libc::dup(1);
        if real < 0 || libc::pipe(ends.as_mut_ptr()) < 0 || libc::dup2(ends[1], 1) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        libc::close(ends[1]);
        (std::fs::File::from_raw_fd(ends[0]), std::fs::File::from_raw_fd(real))
    };
    std::thread::Builder::new().name("cltlab-stdout".to_string()).spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            if real.write_all(&with_notices(&line)).is_err() {
                break;
            }
            line.clear();
        }
    })?;
    Ok(())
}

/// Puts a notice before evcxr's markers, and a marker on a line of its own when the cell printed
/// text without a newline before it.
fn with_notices(line: &[u8]) -> Vec<u8> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    for (marker, notice) in [(PANICKED, "panic"), (FAILED, "failed"), (COMPLETE, "")] {
        if let Some(before) = text.strip_suffix(marker.as_bytes()) {
            let mut out = before.to_vec();
            if !before.is_empty() {
                out.push(b'\n');
            }
            if !notice.is_empty() {
                out.extend_from_slice(format!("{MAGIC}{{\"kind\": \"{notice}\"}}\n").as_bytes());
            }
            out.extend_from_slice(marker.as_bytes());
            out.push(b'\n');
            return out;
        }
    }
    line.to_vec()
}

#[cfg(test)]
mod tests {
    use super::{MAGIC, with_notices};

    #[test]
    fn markers_get_lines_of_their_own() {
        assert_eq!(with_notices(b"text\n"), b"text\n");
        assert_eq!(with_notices(b"half EVCXR_EXECUTION_COMPLETE\n"), b"half \nEVCXR_EXECUTION_COMPLETE\n");
        let noticed = String::from_utf8(with_notices(b"EVCXR_PANIC_NOTIFICATION\n")).unwrap();
        assert_eq!(noticed, format!("{MAGIC}{{\"kind\": \"panic\"}}\nEVCXR_PANIC_NOTIFICATION\n"));
    }
}
