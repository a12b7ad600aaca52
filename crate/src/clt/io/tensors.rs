//! Safetensors files of f32 tensors: streamed out without a copy, read with the name in each error.

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A named array to write: name, shape, values.
pub(crate) type Named<'a> = (String, Vec<usize>, &'a [f32]);

/// Writes arrays and text metadata as one safetensors file, whole or not at all.
pub(crate) fn write(path: &Path, arrays: &[Named<'_>], notes: HashMap<String, String>) -> Result<()> {
    let mut offset = 0;
    let mut infos = Vec::with_capacity(arrays.len());
    for (name, shape, values) in arrays {
        let bytes = std::mem::size_of_val(*values);
        infos.push((name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (offset, offset + bytes) }));
        offset += bytes;
    }
    let fault = |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadTensor, format!("{}: {error}", path.display()));
    let notes = if notes.is_empty() { None } else { Some(notes) };
    let header = Metadata::new(notes, infos).map_err(|error| fault(&error))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| fault(&error))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    files::write_atomic_with(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        arrays.iter().try_for_each(|(_, _, values)| out.write_all(as_bytes(values)))
    })
}

/// The bytes of f32 values; the format is little-endian, as are the machines that we build for.
fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: any f32 is four initialised bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// An open safetensors file.
pub(crate) struct Reader {
    path: PathBuf,
    file: MmapedSafetensors,
}

impl Reader {
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        std::fs::File::open(&path).map_err(|error| Error::io(&path, &error))?;
        // SAFETY: the map is only read; a file that another program cuts meanwhile would fault,
        // and every writer of ours replaces files by renaming.
        let file = unsafe { MmapedSafetensors::new(&path) }.map_err(|error| {
            Error::new(ErrorKind::BadFile, format!("{}: not a whole safetensors file: {error}", path.display()))
                .help("the file is truncated or of another kind; copy or download it again")
        })?;
        Ok(Reader { path, file })
    }

    /// The shape of tensor `name`, `None` when it is not there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.get(name).ok().map(|view| view.shape().to_vec())
    }

    /// Tensor `name` as f32, checked against `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let place = format!("{}: {name}", self.path.display());
        match self.shape(name) {
            None => Err(Error::new(ErrorKind::BadTensor, format!("{place}: missing"))),
            Some(got) if got != shape => Err(Error::expected(ErrorKind::BadTensor, place, format_args!("shape {got:?}"), format_args!("{shape:?}"))),
            Some(_) => {
                let tensor = self.file.load(name, device).map_err(|error| Error::from(error).context(&place))?;
                Ok(tensor.to_dtype(DType::F32)?)
            }
        }
    }

    /// Copies the f32 values of tensor `name` into `into`, checked against its length.
    pub fn read_into(&self, name: &str, into: &mut [f32]) -> Result<()> {
        let place = format!("{}: {name}", self.path.display());
        let view = self.file.get(name).map_err(|_| Error::new(ErrorKind::BadTensor, format!("{place}: missing")))?;
        let bytes = view.data();
        if bytes.len() != std::mem::size_of_val(into) {
            return Err(Error::expected(ErrorKind::BadTensor, place, format_args!("{} bytes", bytes.len()), std::mem::size_of_val(into)));
        }
        for (value, four) in into.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        }
        Ok(())
    }
}
