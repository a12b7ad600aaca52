//! A repository's folder in the cache, laid out as Python's `huggingface_hub` does: `blobs/ETAG`,
//! `snapshots/COMMIT/FILE` as links to them, `refs/REVISION` with the commit, `.no_exist/COMMIT/FILE`.

use super::answer::Fault;
use crate::files::names::{plain_relative, shown};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

pub(super) struct Kept {
    cache: PathBuf,
    /// `models--owner--name`.
    name: String,
    revision: String,
}

/// A commit or an etag: one component of a path.
fn is_one(text: &str) -> bool {
    plain_relative(text, "").is_ok() && !text.contains('/') && text.len() <= 200
}

impl Kept {
    pub fn new(cache: &Path, name: String, revision: &str) -> Self {
        // Absolute, because links are followed from elsewhere.
        Kept { cache: std::path::absolute(cache).unwrap_or_else(|_| cache.to_path_buf()), name, revision: revision.to_string() }
    }

    pub fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    /// The commit that the revision stood for when something of it was fetched; a commit stands for itself.
    pub fn commit(&self) -> Option<String> {
        let is_hash = self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hash {
            return Some(self.revision.clone());
        }
        let text = crate::files::read_text(self.folder().join("refs").join(&self.revision)).unwrap_or_default();
        let commit = text.trim();
        if is_one(commit) {
            return Some(commit.to_string());
        }
        let own = is_one(&self.revision) && self.folder().join("snapshots").join(&self.revision).is_dir();
        own.then(|| self.revision.clone())
    }

    pub fn snapshot(&self) -> Option<PathBuf> {
        Some(self.folder().join("snapshots").join(self.commit()?))
    }

    /// A file that lies here.
    pub fn get(&self, file: &Path) -> Option<PathBuf> {
        self.snapshot().map(|snapshot| snapshot.join(file)).filter(|path| path.exists())
    }

    /// Where it is kept that the repository does not have a file; `None` before anything of this
    /// revision was fetched.
    pub fn absence(&self, file: &Path) -> Option<PathBuf> {
        Some(self.folder().join(".no_exist").join(self.commit()?).join(file))
    }

    /// A mark that cannot be written only costs another question.
    pub fn note_absent(&self, file: &Path) {
        if let Some(mark) = self.absence(file) {
            let _ = mark.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(mark, ""));
        }
    }

    /// Puts a file there: `fetch` appends its bytes from the given place on to what an earlier fetch
    /// left. Returns the path in the snapshot.
    pub fn put(&self, file: &Path, commit: &str, etag: &str, size: u64, fetch: impl FnOnce(u64, &mut File) -> Result<(), Fault>) -> Result<PathBuf, Fault> {
        let etag = etag.trim().trim_start_matches("W/").replace('"', "");
        for (what, value) in [("x-repo-commit", commit), ("etag", etag.as_str())] {
            if plain_relative(value, what).is_err() || value.len() > 200 || (what != "etag" && value.contains('/')) {
                return Err(Fault::Answer(format!("the hub's {what} is '{}', which cannot name a file", shown(value))));
            }
        }
        let etag = etag.replace('/', "-");
        let blobs = self.folder().join("blobs");
        let blob = blobs.join(&etag);
        make(&blobs)?;
        let lock = self.lock(&etag)?;
        if !blob.metadata().is_ok_and(|about| about.is_file() && about.len() == size) {
            let part = blobs.join(format!("{etag}.incomplete"));
            let disk = |error| Fault::Disk(part.clone(), error);
            let mut out = OpenOptions::new().create(true).append(true).open(&part).map_err(disk)?;
            let mut start = out.metadata().map_err(disk)?.len();
            if start > size {
                out.set_len(0).map_err(disk)?;
                start = 0;
            }
            if start < size {
                fetch(start, &mut out).map_err(|fault| match fault {
                    Fault::Disk(_, error) => Fault::Disk(part.clone(), error),
                    other => other,
                })?;
            }
            let length = out.metadata().map_err(disk)?.len();
            if length > size {
                out.set_len(0).map_err(disk)?;
                return Err(Fault::Answer(format!("the hub sent {length} bytes, it had said {size}")));
            }
            if length < size {
                return Err(Fault::BrokeOff(format!("{length} of {size} bytes came")));
            }
            std::fs::rename(&part, &blob).map_err(disk)?;
        }
        drop(lock);
        let pointer = self.folder().join("snapshots").join(commit).join(file);
        let disk = |error| Fault::Disk(pointer.clone(), error);
        pointer.parent().map_or(Ok(()), make)?;
        if !pointer.exists() {
            // A link whose file is gone.
            let _ = std::fs::remove_file(&pointer);
            let to = format!("{}blobs/{etag}", "../".repeat(file.components().count() + 1));
            match std::os::unix::fs::symlink(to, &pointer) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(_) => std::fs::copy(&blob, &pointer).map(|_| ()).map_err(disk)?,
                Ok(()) => {}
            }
        }
        if self.revision != commit {
            let place = self.folder().join("refs").join(&self.revision);
            place.parent().map_or(Ok(()), make)?;
            std::fs::write(&place, commit).map_err(|error| Fault::Disk(place, error))?;
        }
        if pointer.exists() { Ok(pointer) } else { Err(Fault::Answer(format!("{} could not be put into the cache", pointer.display()))) }
    }

    /// Held while a blob is written, as other programs hold it; given back when it is dropped.
    fn lock(&self, etag: &str) -> Result<File, Fault> {
        let folder = self.cache.join(".locks").join(&self.name);
        make(&folder)?;
        let path = folder.join(format!("{etag}.lock"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|error| Fault::Disk(path.clone(), error))?;
        // A file system without locks is used without them.
        match file.lock() {
            Err(error) if error.kind() != std::io::ErrorKind::Unsupported => Err(Fault::Disk(path, error)),
            _ => Ok(file),
        }
    }
}

fn make(folder: &Path) -> Result<(), Fault> {
    std::fs::create_dir_all(folder).map_err(|error| Fault::Disk(folder.to_path_buf(), error))
}
