//! Safetensors files, read with the name in each error.

use crate::error::{Error, ErrorKind, Result};
use crate::files::names::shown;
use crate::files::numbers::{finite, floating};
use crate::text::placeholder::stands_in;
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use std::path::{Path, PathBuf};

/// A tensor that the format is not known to have.
pub(super) fn unknown_tensor(path: &Path, name: &str) -> Error {
    Error::expected(ErrorKind::Unsupported, path.display(), format_args!("a tensor '{}'", shown(name)), "only tensors that the format is known to have")
        .help("it may change what the weights mean, so nothing is read")
}

/// An open safetensors file, mapped into memory.
pub(crate) struct Reader {
    path: PathBuf,
    file: std::fs::File,
    map: memmap2::Mmap,
    /// Where the values begin.
    start: usize,
    header: Metadata,
}

impl Reader {
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = crate::files::open(&path)?;
        // SAFETY: the map is only read; a file that another program cuts meanwhile would fault,
        // and every writer of ours replaces files by renaming.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| Error::io(&path, error))?;
        let (length, header) = SafeTensors::read_metadata(&map).map_err(|error| {
            if let Some(error) = stands_in(&path) {
                return error;
            }
            Error::wrap(ErrorKind::BadFile, format_args!("{}: not a whole safetensors file", path.display()), error)
                .help("the file is truncated or of another kind; copy or download it again")
        })?;
        Ok(Reader { path, file, map, start: length + 8, header })
    }

    /// The shape of tensor `name`, `None` when it is not there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.header.info(name).map(|info| info.shape.clone())
    }

    fn place(&self, name: &str) -> String {
        format!("{}: {name}", self.path.display())
    }

    fn view(&self, name: &str) -> Result<(&TensorInfo, &[u8])> {
        let info = self.header.info(name).ok_or_else(|| Error::new(ErrorKind::BadTensor, format!("{}: missing", self.place(name))))?;
        let (from, to) = info.data_offsets;
        Ok((info, &self.map[self.start + from..self.start + to]))
    }

    /// Tensor `name` as f32, checked against `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let values = self.checked(name, shape)?;
        self.finite(name, &values, shape)?;
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// As [`Reader::tensor`] on the CPU, for one whose shape and type were checked and whose numbers are looked at when
    /// they are used.
    pub fn as_it_is(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.checked(name, shape)?, shape, &Device::Cpu)?)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.f32s(name, shape)?;
        let mut values = vec![0f32; shape.iter().product()];
        self.read_into(name, &mut values)?;
        Ok(values)
    }

    /// Refuses NaN and infinity among `values` of tensor `name`, which has `shape`. A logarithm of thresholds may be
    /// -infinity, that of 0.
    pub fn finite(&self, name: &str, values: &[f32], shape: &[usize]) -> Result<()> {
        if name.ends_with("log_threshold") && values.iter().all(|value| value.is_finite() || *value == f32::NEG_INFINITY) {
            return Ok(());
        }
        finite(self.place(name), values, shape)
    }

    /// Row `index` of the first axis of tensor `name`, as f32; `shape` is the whole tensor's.
    pub fn row(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        self.f32s(name, shape)?;
        if index >= shape.first().copied().unwrap_or(0) {
            return Err(Error::expected(ErrorKind::BadTensor, self.place(name), format_args!("shape {shape:?}"), format_args!("a row {index}")));
        }
        let mut values = vec![0f32; shape[1..].iter().product()];
        self.read_from(name, index * values.len(), &mut values)?;
        self.finite(name, &values, &shape[1..]).map_err(|error| error.context(format_args!("row {index}")))?;
        Ok(Tensor::from_vec(values, &shape[1..], &Device::Cpu)?)
    }

    /// The names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.header.tensors().into_keys().collect()
    }

    /// `Unsupported` naming a tensor other than `known`, if there is one: it may change what the others mean.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        let mut names = self.names();
        names.sort();
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(unknown_tensor(&self.path, name)),
        }
    }

    /// Tensor `name` as it lies in the file, checked against `shape`; `None` where it is not f32 or
    /// not aligned.
    pub fn f32s(&self, name: &str, shape: &[usize]) -> Result<Option<&[f32]>> {
        let (info, bytes) = self.view(name)?;
        if info.shape != shape {
            return Err(Error::expected(ErrorKind::BadTensor, self.place(name), format_args!("shape {:?}", info.shape), format_args!("{shape:?}")));
        }
        if info.dtype != Dtype::F32 || cfg!(target_endian = "big") {
            return Ok(None);
        }
        // SAFETY: any four bytes are an f32; `align_to` gives aligned ones, for as long as the map is borrowed.
        let (before, values, after) = unsafe { bytes.align_to::<f32>() };
        Ok((before.is_empty() && after.is_empty()).then_some(values))
    }

    /// Where the bytes of tensor `name` begin in the file.
    pub fn place_of(&self, name: &str) -> Result<u64> {
        let (info, _) = self.view(name)?;
        Ok((self.start + info.data_offsets.0) as u64)
    }

    /// Reads f32 values as they lie at byte `at` of the file. Unlike the map it leaves no pages
    /// behind: for scattered rows a third of the time, and no memory.
    pub fn read_at(&self, at: u64, into: &mut [f32]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        // SAFETY: any bytes are f32 values, and u8 has no alignment.
        let bytes = unsafe { std::slice::from_raw_parts_mut(into.as_mut_ptr().cast(), std::mem::size_of_val(into)) };
        self.file.read_exact_at(bytes, at).map_err(|error| Error::io(&self.path, error))
    }

    /// Copies tensor `name` into `into` as f32, checked against its length.
    pub fn read_into(&self, name: &str, into: &mut [f32]) -> Result<()> {
        let (info, _) = self.view(name)?;
        let count: usize = info.shape.iter().product();
        if count != into.len() {
            return Err(Error::expected(ErrorKind::BadTensor, self.place(name), format_args!("{count} values"), into.len()));
        }
        self.read_from(name, 0, into)
    }

    /// The values of tensor `name` from the one at `first` on, which must be there, as many as `into` holds.
    fn read_from(&self, name: &str, first: usize, into: &mut [f32]) -> Result<()> {
        let (info, bytes) = self.view(name)?;
        let bytes = &bytes[first * info.dtype.bitsize() / 8..];
        match info.dtype {
            Dtype::F32 => into.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, four)| *value = f32::from_le_bytes(*four)),
            Dtype::F16 => into.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, two)| *value = half::f16::from_le_bytes(*two).to_f32()),
            Dtype::BF16 => into.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, two)| *value = half::bf16::from_le_bytes(*two).to_f32()),
            Dtype::F64 => into.iter_mut().zip(bytes.as_chunks().0).for_each(|(value, eight)| *value = f64::from_le_bytes(*eight) as f32),
            other => return floating(self.place(name), &format!("{other:?}")),
        }
        Ok(())
    }
}
