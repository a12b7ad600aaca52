//! Weights by name: safetensors (one file or sharded), GGUF, llama2.c, behind one face.
//!
//! Files are memory-mapped; a tensor is read, dequantised and converted to f32 when it is asked
//! for. `family::read` says which are needed and checks names and shapes.

use super::gguf_parts::GgufParts;
use super::shards;
use crate::error::{Error, ErrorKind, Result};
use crate::files::numbers::{finite, floating};
use crate::text::placeholder::{shown, stands_in};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Storage, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where tensors come from.
pub(crate) enum Weights {
    /// Hugging Face safetensors: the files, and in which of them a tensor lies.
    Safetensors { files: Vec<MmapedSafetensors>, place: HashMap<String, usize>, path: PathBuf },
    /// A GGUF model.
    Gguf(GgufParts),
    /// Tensors already in memory, under the family's names.
    Memory { tensors: HashMap<String, Tensor>, path: PathBuf },
}

impl Weights {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` lists, each tensor from the
    /// shard that the list names. Where both are there the single file is read, as transformers does, and a line on
    /// standard error says so.
    pub(crate) fn open_folder(folder: &Path) -> Result<Self> {
        let listed = shards::find(folder)?;
        for shard in &listed.files {
            check_safetensors(shard)?;
        }
        let map = |shard: &PathBuf| {
            // SAFETY: the files are mapped read-only; as with every map, they must not be changed by
            // another program while the model is loading.
            unsafe { MmapedSafetensors::new(shard) }.map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {}", shard.display(), shown(&error))).caused_by(error))
        };
        let files = listed.files.iter().map(map).collect::<Result<Vec<_>>>()?;
        let place = listed.places(&files)?;
        Ok(Weights::Safetensors { files, place, path: folder.to_path_buf() })
    }

    /// Opens a GGUF file, or all parts of a split model, and reads the header.
    pub(crate) fn open_gguf(path: &Path) -> Result<Self> {
        GgufParts::open(path).map(Weights::Gguf)
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Weights::Safetensors { path, .. } | Weights::Memory { path, .. } => path,
            Weights::Gguf(parts) => &parts.path,
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Weights::Safetensors { place, .. } => place.contains_key(name),
            Weights::Gguf(parts) => parts.content.tensor_infos.contains_key(name),
            Weights::Memory { tensors, .. } => tensors.contains_key(name),
        }
    }

    /// How many tensors there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Weights::Safetensors { place, .. } => place.len(),
            Weights::Gguf(parts) => parts.content.tensor_infos.len(),
            Weights::Memory { tensors, .. } => tensors.len(),
        }
    }

    /// Names of all tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Weights::Safetensors { place, .. } => place.keys().cloned().collect(),
            Weights::Gguf(parts) => parts.content.tensor_infos.keys().cloned().collect(),
            Weights::Memory { tensors, .. } => tensors.keys().cloned().collect(),
        }
    }

    /// The shape of a tensor, by the header; `None` when there is no such tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Weights::Safetensors { files, place, .. } => files[*place.get(name)?].get(name).ok().map(|view| view.shape().to_vec()),
            Weights::Gguf(parts) => parts.content.tensor_infos.get(name).map(|info| info.shape.dims().to_vec()),
            Weights::Memory { tensors, .. } => tensors.get(name).map(|tensor| tensor.dims().to_vec()),
        }
    }

    /// One tensor as contiguous f32.
    pub(crate) fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let unreadable = |error: candle_core::Error| {
            let error = Error::from(error);
            if error.is_out_of_memory() {
                return error.context(format_args!("{}: tensor {name}", self.path().display())).help("take bf16 (LoadConfig::dtype) if it was to be f32, a smaller model, or the CPU");
            }
            Error::new(ErrorKind::BadFile, format!("{}: tensor {name}: {}", self.path().display(), shown(&error))).caused_by(error)
                .help("the file is truncated or quantised in a way this build cannot read")
        };
        let absent = || unreadable(candle_core::Error::Msg("no such tensor".to_string()));
        let tensor = match self {
            Weights::Safetensors { files, place, .. } => {
                let file = &files[*place.get(name).ok_or_else(absent)?];
                let view = file.get(name).map_err(unreadable)?;
                self.float(name, &format!("{:?}", view.dtype()))?;
                let tensor = file.load(name, device).map_err(unreadable)?;
                release(view.data());
                tensor
            }
            Weights::Gguf(parts) => parts.tensor(name, device).map_err(unreadable)?,
            Weights::Memory { tensors, .. } => {
                let tensor = tensors.get(name).ok_or_else(absent)?;
                self.float(name, tensor.dtype().as_str())?;
                tensor.to_device(device)?
            }
        };
        let tensor = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.contiguous()).map_err(unreadable)?;
        self.finite(name, &tensor)?;
        Ok(tensor)
    }

    fn float(&self, name: &str, dtype: &str) -> Result<()> {
        floating(format_args!("{}: tensor {}", self.path().display(), shown(name)), dtype)
    }

    /// Refuses NaN and infinity where they lie. What is on a GPU is not looked at.
    fn finite(&self, name: &str, tensor: &Tensor) -> Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else { return Ok(()) };
        finite(format_args!("{}: tensor {}", self.path().display(), shown(name)), &storage.as_slice::<f32>()?[start..end], tensor.dims())
    }
}

/// Gives the pages of a mapped tensor back once it has been copied, so that a model is not in memory
/// twice while it loads (peak for SmolLM2-135M: 1,042 MiB without).
pub(crate) fn release(mapped: &[u8]) {
    #[cfg(unix)]
    {
        const PAGE: usize = 1 << 16; // no page of a machine we build for is larger
        let start = mapped.as_ptr().addr().next_multiple_of(PAGE);
        let end = (mapped.as_ptr().addr() + mapped.len()) & !(PAGE - 1);
        if start < end {
            // SAFETY: whole pages within a private, read-only map of a file, which are read again from
            // the file if touched. Advice only: a failure changes nothing.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    #[cfg(not(unix))]
    let _ = mapped;
}

/// Checks that a safetensors file is as long as its header says, so that a truncated download is
/// named as such.
pub(crate) fn check_safetensors(path: &Path) -> Result<()> {
    use std::io::Read;
    let mut file = crate::files::open(path)?;
    if let Some(error) = stands_in(path) {
        return Err(error);
    }
    let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
    let truncated = |expected: u64| {
        Error::expected(
            ErrorKind::BadFile,
            format_args!("{}: length", path.display()),
            format_args!("{length} bytes"),
            format_args!("{expected} by its header"),
        )
        .help("the file is truncated; download it again")
    };
    let mut first = [0; 8];
    if length < 8 {
        return Err(truncated(8));
    }
    file.read_exact(&mut first).map_err(|error| Error::io(path, error))?;
    let header = u64::from_le_bytes(first);
    if header > length - 8 {
        return Err(truncated(header.saturating_add(8)));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(|error| Error::io(path, error))?;
    let parsed: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: header is not JSON: {}", path.display(), shown(&error))).caused_by(error))?;
    let end = parsed
        .as_object()
        .into_iter()
        .flat_map(|entries| entries.values())
        .filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64())
        .max()
        .unwrap_or(0);
    let all = end.saturating_add(header + 8);
    if all > length {
        return Err(truncated(all));
    }
    Ok(())
}
