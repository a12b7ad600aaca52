//! A folder that one process writes at a time.
//!
//! The lock is a file that its holder keeps locked (`flock`); it says who holds it. The system gives it
//! back when the process ends, however it ends, so that the lock of a process that has ended blocks nothing.
//! Where the file system has no locks, the holder's number decides, when it is of this machine.

use super::write::{is_over, own_mark};
use crate::error::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file in the folder.
const FILE: &str = ".cltlab.lock";

/// Held until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// The folder was not there before.
    made: bool,
    _file: File,
}

impl FolderLock {
    /// Takes `folder`, which is made when it is not there.
    ///
    /// # Errors
    /// `BadInput` when another process, or another lock of this one, holds it; `Io` or `DiskFull` with the path.
    pub fn take(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let made = !folder.exists();
        super::create_folder(folder)?;
        let path = folder.join(FILE);
        let fault = |error: std::io::Error| Error::io(&path, error);
        let held = |by: &str| {
            let own = if by == own_mark().0.to_string() { ", this one" } else { "" };
            Error::new(ErrorKind::BadInput, format!("{}: another training writes here (process {by}{own})", folder.display()))
                .help(format!("wait for it, or choose another folder; if it is surely over, remove {}", path.display()))
        };
        loop {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW).open(&path).map_err(fault)?;
            let mut text = String::new();
            let known = Read::by_ref(&mut file).take(200).read_to_string(&mut text).is_ok();
            let mut words = text.split_whitespace();
            let (pid, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held(if known && !pid.is_empty() { pid } else { "unknown" })),
                // Without locks: only a process of this machine that is over leaves the folder free.
                Err(TryLockError::Error(_)) if pid.is_empty() || is_over(pid, key) => {}
                Err(TryLockError::Error(_)) => return Err(held(pid)),
            }
            // Its last holder may have removed it between opening and locking.
            use std::os::unix::fs::MetadataExt;
            let same = std::fs::symlink_metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|own| (own.ino(), own.dev()) == (there.ino(), there.dev())));
            if !same {
                continue;
            }
            let (pid, key) = own_mark();
            let said = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{pid} {key}"));
            said.map_err(fault)?;
            return Ok(FolderLock { path, made, _file: file });
        }
    }

    /// Whether it is the lock of `folder`, by whatever path.
    pub(crate) fn is_of(&self, folder: &Path) -> bool {
        let real = |folder: &Path| folder.canonicalize().ok();
        self.path.parent().and_then(real).is_some_and(|own| real(folder) == Some(own))
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        if let Some(folder) = self.path.parent().filter(|_| self.made) {
            // It goes only when nothing was written there.
            let _ = std::fs::remove_dir(folder);
        }
    }
}
