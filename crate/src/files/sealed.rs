//! Sealed files: safetensors with a checksum of each tensor and one of the header.
//!
//! A flipped bit anywhere in the file is found: in a tensor by its checksum (XXH64) when it is read,
//! in the header by the seal when the file is opened. Other readers of safetensors see two more notes.
//! Cost: one pass over the bytes, some 10 GB/s a core.

use super::fill_atomic;
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use twox_hash::XxHash64;

const SUMS: &str = "xxh64";
const SEAL: &str = "seal";

/// Values of one of the types that we write.
#[derive(Clone, Copy)]
pub(crate) enum Array<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
    U32(&'a [u32]),
    /// Bytes that mean values of this type.
    Raw(Dtype, &'a [u8]),
}

/// The same, to be filled.
pub(crate) enum ArrayMut<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
    U32(&'a mut [u32]),
}

impl Array<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Array::F32(_) => Dtype::F32,
            Array::U8(_) => Dtype::U8,
            Array::U32(_) => Dtype::U32,
            Array::Raw(dtype, _) => *dtype,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.bytes().len() * 8 / self.dtype().bitsize()
    }

    /// The bytes as the format has them: little-endian, as are the machines that we build for.
    fn bytes(&self) -> &[u8] {
        fn plain<T>(values: &[T]) -> &[u8] {
            // SAFETY: called for numbers only, all of whose bytes are initialised; u8 has no alignment.
            unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
        }
        match self {
            Array::F32(values) => plain(values),
            Array::U8(values) | Array::Raw(_, values) => values,
            Array::U32(values) => plain(values),
        }
    }
}

/// A named array to write: name, shape, values.
pub(crate) type Entry<'a> = (String, Vec<usize>, Array<'a>);

/// The checksum of some bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// Writes arrays and text notes as one safetensors file, whole or not at all, without checksums.
pub(crate) fn write_plain(path: &Path, arrays: &[Entry<'_>], notes: HashMap<String, String>) -> Result<()> {
    let fault = |error: serde_json::Error| Error::wrap(ErrorKind::BadTensor, path.display(), error);
    // Sorted, so that the same content is the same file.
    let mut header = BTreeMap::new();
    if !notes.is_empty() {
        header.insert("__metadata__", serde_json::to_value(notes.iter().collect::<BTreeMap<_, _>>()).map_err(fault)?);
    }
    let mut offset = 0;
    for (name, shape, values) in arrays {
        let bytes = values.bytes().len();
        let info = TensorInfo { dtype: values.dtype(), shape: shape.clone(), data_offsets: (offset, offset + bytes) };
        header.insert(name.as_str(), serde_json::to_value(info).map_err(fault)?);
        offset += bytes;
    }
    let mut header = serde_json::to_vec(&header).map_err(fault)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    fill_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        arrays.iter().try_for_each(|(_, _, values)| out.write_all(values.bytes()))
    })
}

/// As [`write_plain`], sealed.
pub(crate) fn write(path: &Path, arrays: &[Entry<'_>], mut notes: HashMap<String, String>) -> Result<()> {
    let sums: BTreeMap<&str, String> = arrays.par_iter().map(|(name, _, values)| (name.as_str(), format!("{:016x}", checksum(values.bytes())))).collect();
    let sums = serde_json::to_string(&sums).map_err(|error| Error::wrap(ErrorKind::BadTensor, path.display(), error))?;
    notes.insert(SUMS.into(), sums);
    let infos = arrays.iter().map(|(name, shape, values)| (name.clone(), values.dtype(), shape.clone())).collect();
    notes.insert(SEAL.into(), seal(&notes, infos));
    write_plain(path, arrays, notes)
}

/// What the header says, as one number: notes, names, types and shapes. Offsets follow from these.
fn seal(notes: &HashMap<String, String>, mut infos: Vec<(String, Dtype, Vec<usize>)>) -> String {
    infos.sort_by(|a, b| a.0.cmp(&b.0));
    let notes: BTreeMap<_, _> = notes.iter().filter(|(name, _)| *name != SEAL).collect();
    format!("{:016x}", checksum(format!("{notes:?}{infos:?}").as_bytes()))
}

/// An open sealed file, mapped into memory.
pub(crate) struct Sealed {
    path: PathBuf,
    map: memmap2::Mmap,
    /// Where the values begin.
    start: usize,
    header: Metadata,
    sums: HashMap<String, String>,
}

impl Sealed {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// `MissingFile`; `BadFile` when it is cut off, damaged or not sealed.
    pub fn open(path: &Path) -> Result<Self> {
        let file = super::open(path)?;
        if file.metadata().is_ok_and(|about| about.len() == 0) {
            return Err(Error::new(ErrorKind::BadFile, format!("{}: truncated: it is empty", path.display())));
        }
        // SAFETY: the map is only read; a file that another program cuts meanwhile would fault, and
        // every writer of ours replaces files by renaming.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| Error::io(path, error))?;
        let bad = |what: String| Error::new(ErrorKind::BadFile, format!("{}: {what}", path.display()));
        let (length, header) = SafeTensors::read_metadata(&map).map_err(|error| bad(format!("truncated or damaged: {error}")).caused_by(error))?;
        let notes = header.metadata().clone().unwrap_or_default();
        let infos = header.tensors().into_iter().map(|(name, info)| (name, info.dtype, info.shape.clone())).collect();
        match notes.get(SEAL) {
            None => return Err(bad("has no checksums: not written by this version".into())),
            Some(found) if *found != seal(&notes, infos) => return Err(bad("damaged: the header's checksum differs".into())),
            Some(_) => {}
        }
        let sums = notes.get(SUMS).and_then(|sums| serde_json::from_str(sums).ok()).ok_or_else(|| bad("has no checksums".into()))?;
        Ok(Sealed { path: path.to_path_buf(), map, start: length + 8, header, sums })
    }

    /// A text note of the header.
    pub fn note(&self, name: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(name).map(String::as_str)
    }

    /// Type, shape and bytes of tensor `name`, not yet checked.
    pub fn unchecked(&self, name: &str) -> Result<(Dtype, &[usize], &[u8])> {
        let info = self.header.info(name).ok_or_else(|| Error::new(ErrorKind::BadTensor, format!("{}: {name}: missing", self.path.display())))?;
        let (from, to) = info.data_offsets;
        Ok((info.dtype, &info.shape, &self.map[self.start + from..self.start + to]))
    }

    /// The bytes of tensor `name`, whose checksum is right.
    ///
    /// # Errors
    /// `BadTensor` when it is missing, `BadFile` when its bytes are damaged.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let (_, _, bytes) = self.unchecked(name)?;
        if self.sums.get(name).map(String::as_str) != Some(format!("{:016x}", checksum(bytes)).as_str()) {
            return Err(Error::new(ErrorKind::BadFile, format!("{}: {name}: damaged: the checksum differs", self.path.display())));
        }
        Ok(bytes)
    }

    /// Checks all tensors.
    ///
    /// # Errors
    /// As [`Sealed::bytes`].
    pub fn verify(&self) -> Result<()> {
        self.header.tensors().keys().collect::<Vec<_>>().par_iter().try_for_each(|name| self.bytes(name).map(|_| ()))
    }

    /// Copies tensor `name` into `into`, checked against its length and type.
    ///
    /// # Errors
    /// As [`Sealed::bytes`]; `BadTensor` for another length or type.
    pub fn fill(&self, name: &str, into: ArrayMut<'_>) -> Result<()> {
        let (dtype, length) = match &into {
            ArrayMut::F32(values) => (Dtype::F32, values.len()),
            ArrayMut::U8(values) => (Dtype::U8, values.len()),
            ArrayMut::U32(values) => (Dtype::U32, values.len()),
        };
        let (found, shape, _) = self.unchecked(name)?;
        let count: usize = shape.iter().product();
        if (count, found) != (length, dtype) {
            let place = format!("{}: {name}", self.path.display());
            return Err(Error::expected(ErrorKind::BadTensor, place, format_args!("{count} values of {found:?}"), format_args!("{length} of {dtype:?}")));
        }
        let bytes = self.bytes(name)?;
        match into {
            ArrayMut::U8(values) => values.copy_from_slice(bytes),
            ArrayMut::U32(values) => values.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, four)| *value = u32::from_le_bytes(*four)),
            ArrayMut::F32(values) => values.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, four)| *value = f32::from_le_bytes(*four)),
        }
        Ok(())
    }
}
