//! Weights by name: safetensors (one file or sharded), GGUF, llama2.c, behind one face.
//!
//! Files are memory-mapped; a tensor is read, dequantised and converted to f32 when it is asked
//! for. `family::read` says which are needed and checks names and shapes.

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use candle_core::quantized::gguf_file;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where tensors come from.
pub(crate) enum Weights {
    /// Hugging Face safetensors.
    Safetensors { files: MmapedSafetensors, path: PathBuf },
    /// A GGUF file: its header and the open file.
    Gguf { content: gguf_file::Content, file: std::cell::RefCell<std::io::BufReader<std::fs::File>>, path: PathBuf },
    /// Tensors already in memory, under the family's names.
    Memory { tensors: HashMap<String, Tensor>, path: PathBuf },
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub(crate) fn open_folder(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let shards = if index.exists() {
            let listing: serde_json::Value = files::read_json(&index)?;
            let map = listing.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| {
                Error::expected(ErrorKind::BadFile, index.display(), "no field 'weight_map'", "a map from tensor to shard")
            })?;
            let mut names: Vec<_> = map.values().filter_map(|name| name.as_str()).map(str::to_string).collect();
            names.sort();
            names.dedup();
            names.into_iter().map(|name| folder.join(name)).collect()
        } else {
            vec![single]
        };
        for shard in &shards {
            check_safetensors(shard)?;
        }
        // SAFETY: the files are mapped read-only; as with every map, they must not be changed by
        // another program while the model is loading.
        let mapped = unsafe { MmapedSafetensors::multi(&shards) }
            .map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {error}", folder.display())))?;
        Ok(Weights::Safetensors { files: mapped, path: folder.to_path_buf() })
    }

    /// Opens a GGUF file and reads its header.
    pub(crate) fn open_gguf(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|error| Error::io(path, &error))?;
        let mut reader = std::io::BufReader::new(file);
        let content = gguf_file::Content::read(&mut reader).map_err(|error| {
            Error::new(ErrorKind::BadFile, format!("{}: not a readable GGUF file: {error}", path.display()))
                .help("check that the download is complete")
        })?;
        Ok(Weights::Gguf { content, file: std::cell::RefCell::new(reader), path: path.to_path_buf() })
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Weights::Safetensors { path, .. } | Weights::Gguf { path, .. } | Weights::Memory { path, .. } => path,
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Weights::Safetensors { files, .. } => files.get(name).is_ok(),
            Weights::Gguf { content, .. } => content.tensor_infos.contains_key(name),
            Weights::Memory { tensors, .. } => tensors.contains_key(name),
        }
    }

    /// Names of all tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Weights::Safetensors { files, .. } => files.tensors().into_iter().map(|(name, _)| name).collect(),
            Weights::Gguf { content, .. } => content.tensor_infos.keys().cloned().collect(),
            Weights::Memory { tensors, .. } => tensors.keys().cloned().collect(),
        }
    }

    /// The shape of a tensor, by the header; `None` when there is no such tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Weights::Safetensors { files, .. } => files.get(name).ok().map(|view| view.shape().to_vec()),
            Weights::Gguf { content, .. } => content.tensor_infos.get(name).map(|info| info.shape.dims().to_vec()),
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
            Error::new(ErrorKind::BadFile, format!("{}: tensor {name}: {error}", self.path().display()))
                .help("the file is truncated or quantised in a way this build cannot read")
        };
        let tensor = match self {
            Weights::Safetensors { files, .. } => {
                let tensor = files.load(name, device).map_err(unreadable)?;
                release(files.get(name).map_err(unreadable)?.data());
                tensor
            }
            Weights::Gguf { content, file, .. } => {
                let quantised = content.tensor(&mut *file.borrow_mut(), name, device).map_err(unreadable)?;
                quantised.dequantize(device).map_err(unreadable)?
            }
            Weights::Memory { tensors, .. } => match tensors.get(name) {
                Some(tensor) => tensor.to_device(device)?,
                None => return Err(unreadable(candle_core::Error::Msg("no such tensor".to_string()))),
            },
        };
        tensor.to_dtype(DType::F32).and_then(|tensor| tensor.contiguous()).map_err(unreadable)
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
    let mut file = std::fs::File::open(path).map_err(|error| Error::io(path, &error))?;
    let length = file.metadata().map_err(|error| Error::io(path, &error))?.len();
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
    file.read_exact(&mut first).map_err(|error| Error::io(path, &error))?;
    let header = u64::from_le_bytes(first);
    if header > length - 8 {
        return Err(truncated(header.saturating_add(8)));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(|error| Error::io(path, &error))?;
    let parsed: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: header is not JSON: {error}", path.display())))?;
    let end = parsed
        .as_object()
        .into_iter()
        .flat_map(|entries| entries.values())
        .filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64())
        .max()
        .unwrap_or(0);
    if header + 8 + end > length {
        return Err(truncated(header + 8 + end));
    }
    Ok(())
}
