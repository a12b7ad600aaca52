//! Where an output goes, and how: a regular file is written beside its place under a name that nobody
//! can guess and then renamed; what is no regular file (a pipe, a device, `-`) is written to as it is.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Links that are followed, at most, as the system has it.
const LINKS: usize = 40;
/// Characters of a file's name that its temporary file's name repeats.
const NAME: usize = 64;

/// Where the bytes of an output go.
pub(super) enum Target {
    /// A regular file there, or nothing yet; links are followed.
    Place(PathBuf),
    /// Open: a pipe, a device, standard output.
    Stream(File),
}

/// Finds out what `path` is.
pub(super) fn target(path: &Path) -> Result<Target> {
    let fault = |error: std::io::Error| Error::io(path, error);
    let mut at = path.to_path_buf();
    for _ in 0..LINKS {
        let standard = |owned: std::io::Result<std::os::fd::OwnedFd>| owned.map(|owned| Target::Stream(File::from(owned))).map_err(fault);
        match at.to_str() {
            Some("-" | "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => {
                // What was printed before comes before.
                std::io::stdout().flush().map_err(fault)?;
                return standard(std::io::stdout().as_fd().try_clone_to_owned());
            }
            Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => return standard(std::io::stderr().as_fd().try_clone_to_owned()),
            // Somebody's open file: its name is not ours to give away.
            Some(text) if text.starts_with("/dev/fd/") || text.starts_with("/proc/") => {
                return OpenOptions::new().append(true).open(&at).map(Target::Stream).map_err(fault);
            }
            _ => {}
        }
        let kind = match std::fs::symlink_metadata(&at) {
            Ok(about) => about.file_type(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Target::Place(at)),
            Err(error) => return Err(fault(error)),
        };
        if kind.is_symlink() {
            let to = std::fs::read_link(&at).map_err(fault)?;
            at = at.parent().map_or_else(|| to.clone(), |folder| folder.join(&to));
        } else if kind.is_dir() {
            return Err(Error::expected(ErrorKind::BadInput, path.display(), "a folder", "a file's name").help("name a file in it"));
        } else if kind.is_file() {
            return Ok(Target::Place(at));
        } else if kind.is_socket() {
            return Err(Error::expected(ErrorKind::BadInput, path.display(), "a socket", "a file, a pipe or a device"));
        } else {
            return OpenOptions::new().write(true).open(&at).map(Target::Stream).map_err(fault);
        }
    }
    Err(Error::expected(ErrorKind::BadInput, path.display(), "links that lead to links", "a file's name"))
}

/// A name beside `place`: `.NAME.PID.SYSTEM.RANDOM.tmp`.
fn beside(place: &Path, folder: &Path) -> PathBuf {
    let name: String = place.file_name().unwrap_or_default().to_string_lossy().chars().take(NAME).collect();
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    folder.join(format!(".{name}.{}.{}.{random:016x}.tmp", std::process::id(), system()))
}

/// The folder that `place` lies in.
pub(crate) fn folder_of(place: &Path) -> &Path {
    place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// This machine since it started, and the set of processes whose numbers mean something here: in another
/// container, or on another machine that shares the folder, it is another.
fn system() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let numbers = std::fs::read_link("/proc/self/ns/pid");
    match (boot, numbers) {
        (Ok(boot), Ok(numbers)) => format!("{:016x}", super::sealed::checksum(format!("{boot}{}", numbers.display()).as_bytes())),
        // Nothing of it is ever taken for ours.
        _ => format!("{:016x}", std::collections::hash_map::RandomState::new().build_hasher().finish()),
    }
}

/// True when the process `pid` of the system `key` is surely over: the system is this one.
pub(crate) fn is_over(pid: &str, key: &str) -> bool {
    let Some(pid) = pid.parse::<i32>().ok().filter(|&pid| pid > 0) else { return false };
    // SAFETY: signal 0 is not sent; it asks whether the process is there.
    key == system() && unsafe { libc::kill(pid, 0) } != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// This process, as [`is_over`] reads it.
pub(crate) fn own_mark() -> (String, String) {
    (std::process::id().to_string(), system())
}

/// A temporary file or folder; removed when it is dropped, unless it was moved into place.
pub(crate) struct Temporary {
    pub path: PathBuf,
    moved: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.moved {
            let _ = std::fs::remove_dir_all(&self.path).or_else(|_| std::fs::remove_file(&self.path));
        }
    }
}

impl Temporary {
    /// A new folder beside `place`.
    pub fn folder(place: &Path) -> Result<Self> {
        let within = folder_of(place);
        sweep(within, place.file_name().map(|name| name.to_string_lossy().into_owned()));
        let path = beside(place, within);
        std::fs::create_dir(&path).map_err(|error| Error::io(place, error))?;
        Ok(Temporary { path, moved: false })
    }

    /// A new, empty file in `folder`: the call fails where the name exists, so no link is followed.
    pub(super) fn file(place: &Path, folder: &Path) -> Result<(Self, File)> {
        let path = beside(place, folder);
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound if !folder.exists() => Error::new(ErrorKind::MissingFile, format!("{}: there is no folder {}", place.display(), folder.display()))
                .help("make the folder first")
                .caused_by(error),
            _ => Error::io(place, error),
        })?;
        Ok((Temporary { path, moved: false }, file))
    }

    /// Renames it onto `place`.
    pub fn move_to(&mut self, place: &Path) -> std::io::Result<()> {
        std::fs::rename(&self.path, place)?;
        self.moved = true;
        Ok(())
    }
}

/// Lets `write` fill a temporary file, then renames it onto `place` with the mode that a new file has, or
/// that of the file which was there.
pub(super) fn at_place(path: &Path, place: &Path, write: impl FnOnce(&Path, File) -> Result<()>) -> Result<()> {
    let folder = folder_of(place);
    sweep(folder, place.file_name().map(|name| name.to_string_lossy().into_owned()));
    let fault = |error: std::io::Error| Error::io(path, error);
    let (mut temporary, file) = Temporary::file(place, folder).map_err(|error| if place == path { error } else { error.context(path.display()) })?;
    let mode = std::fs::metadata(place).or_else(|_| file.metadata()).map_err(fault)?.permissions();
    write(&temporary.path, file)?;
    // A writer that makes its file anew makes it with a mode of its own.
    let kept = File::open(&temporary.path).and_then(|file| file.set_permissions(mode).and_then(|()| file.sync_all()));
    kept.and_then(|()| temporary.move_to(place)).map_err(fault)?;
    // The new name reaches the disk with its folder. A system that cannot flush folders keeps order itself.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Lets `write` fill a file, then copies it to `stream`, for writers that need a path.
pub(super) fn through(path: &Path, stream: &mut File, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (temporary, file) = Temporary::file(Path::new("stream"), &crate::environment::temporary_folder())?;
    drop(file);
    write(&temporary.path)?;
    let copied = File::open(&temporary.path).and_then(|mut file| std::io::copy(&mut file, stream));
    copied.and_then(|_| stream.flush()).map_err(|error| Error::io(path, error))
}

/// Removes what processes of this system left when they were killed: all, or the temporary files of
/// `name` alone. What is not surely theirs stays.
pub(super) fn sweep(folder: &Path, name: Option<String>) {
    let begin = name.map_or_else(|| ".".to_string(), |name| format!(".{}.", name.chars().take(NAME).collect::<String>()));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_suffix(".tmp").filter(|name| name.starts_with(&begin)) else { continue };
        let mut parts = rest.rsplitn(4, '.');
        let (Some(random), Some(key), Some(pid)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if random.len() == 16 && is_over(pid, key) {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let _ = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
    }
}
