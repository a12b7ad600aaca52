//! Arrays that grow, in memory or in a file that is mapped into it.
//!
//! A file has no name: it goes with the array, even when the process is killed. Its room is
//! reserved before it is written to, so that a full disk is an error and not a fault.

use crate::error::{Error, ErrorKind, Result};
use memmap2::MmapMut;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that a file begins with; it doubles.
const FIRST: usize = 1 << 20;

/// Numbers of which every pattern of bits is one.
pub(super) trait Plain: Copy {}
impl Plain for u32 {}
impl Plain for f32 {}

/// Some numbers.
#[derive(Clone)]
pub(super) enum Array<T: Plain> {
    Memory(Vec<T>),
    /// Shared by clones once it is complete; see [`Array::extend`].
    File(Arc<Mapped>, usize, std::marker::PhantomData<T>),
}

/// A file without a name, mapped.
pub(super) struct Mapped {
    folder: PathBuf,
    file: File,
    map: MmapMut,
}

impl<T: Plain> Default for Array<T> {
    fn default() -> Self {
        Array::Memory(Vec::new())
    }
}

impl<T: Plain> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Array::Memory(values) => values,
            // SAFETY: a mapping is aligned to pages and holds `len` numbers, all of whose patterns are valid.
            Array::File(mapped, len, _) => unsafe { std::slice::from_raw_parts(mapped.map.as_ptr().cast(), *len) },
        }
    }
}

impl<T: Plain> Array<T> {
    /// None yet, in a new file in `folder`.
    ///
    /// # Errors
    /// `MissingFile` when there is no such folder, `DiskFull`, `Io`.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Array::File(Arc::new(Mapped::new(folder)?), 0, std::marker::PhantomData))
    }

    /// Where the file is; `None` in memory.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Array::Memory(_) => None,
            Array::File(mapped, ..) => Some(&mapped.folder),
        }
    }

    /// Appends a number; an array in a file, which grows by [`Array::extend`], is brought into memory.
    pub fn push(&mut self, value: T) {
        match self {
            Array::Memory(values) => values.push(value),
            Array::File(..) => {
                let mut values = self.to_vec();
                values.push(value);
                *self = Array::Memory(values);
            }
        }
    }

    /// Appends numbers.
    ///
    /// # Errors
    /// `DiskFull` or `Io` for a file that cannot grow; the array is as it was then.
    pub fn extend(&mut self, more: &[T]) -> Result<()> {
        let size = std::mem::size_of::<T>();
        match self {
            Array::Memory(values) => values.extend_from_slice(more),
            Array::File(mapped, len, _) => {
                if Arc::get_mut(mapped).is_none() {
                    let mut own = Mapped::new(&mapped.folder)?;
                    own.reserve(mapped.map.len())?;
                    own.map[..*len * size].copy_from_slice(&mapped.map[..*len * size]);
                    *mapped = Arc::new(own);
                }
                let Some(own) = Arc::get_mut(mapped) else { return Err(Error::new(ErrorKind::Io, "spilled edges: shared")) };
                own.reserve((*len + more.len()) * size)?;
                // SAFETY: plain numbers are bytes.
                let bytes = unsafe { std::slice::from_raw_parts(more.as_ptr().cast::<u8>(), more.len() * size) };
                own.map[*len * size..][..bytes.len()].copy_from_slice(bytes);
                *len += more.len();
            }
        }
        Ok(())
    }
}

impl Mapped {
    fn new(folder: &Path) -> Result<Self> {
        let file = tempfile(folder)?;
        reserve(&file, FIRST).map_err(|error| Error::io(folder, error))?;
        // SAFETY: the file has no name, so nobody else writes to it or cuts it.
        let map = unsafe { MmapMut::map_mut(&file) }.map_err(|error| Error::io(folder, error))?;
        Ok(Mapped { folder: folder.to_path_buf(), file, map })
    }

    /// Makes room for so many bytes.
    fn reserve(&mut self, bytes: usize) -> Result<()> {
        if bytes <= self.map.len() {
            return Ok(());
        }
        let wanted = bytes.max(2 * self.map.len());
        reserve(&self.file, wanted).map_err(|error| Error::io(&self.folder, error).help("the edges of this graph are kept there: free some room, choose another folder, or lower AttributeConfig::max_features"))?;
        // SAFETY: as in `new`.
        self.map = unsafe { MmapMut::map_mut(&self.file) }.map_err(|error| Error::io(&self.folder, error))?;
        Ok(())
    }
}

/// A new file in `folder` whose name is gone already.
fn tempfile(folder: &Path) -> Result<File> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if !folder.is_dir() {
        return Err(Error::expected(ErrorKind::MissingFile, "AttributeConfig::spill", folder.display(), "a folder that is there"));
    }
    let path = folder.join(format!(".cltlab-edges-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(|error| Error::io(&path, error))?;
    std::fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
    Ok(file)
}

/// Has the system set bytes aside.
fn reserve(file: &File, bytes: usize) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: an open file of ours.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) } {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(error)),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        // Written, so that it is there.
        use std::io::{Seek, SeekFrom, Write};
        let mut file = file;
        let had = file.metadata()?.len();
        file.seek(SeekFrom::Start(had))?;
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes as u64 - had), &mut file)?;
        file.flush()
    }
}

impl<T: Plain + PartialEq> PartialEq for Array<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.deref().fmt(f)
    }
}
