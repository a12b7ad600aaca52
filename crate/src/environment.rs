//! The environment variables that the library reads, all of them here: name, default, effect.
//!
//! | variable | default | effect |
//! |---|---|---|
//! | `CLTLAB_PARAMS` | none | a JSON file with a notebook's parameters ([`param`](crate::notebook::param)) |
//! | `CLTLAB_<NAME>` | none | the notebook's parameter `<name>`, before that file |
//! | `CLTLAB_KERNEL` | none | set by cltlab's kernel for the process that runs the cells: displays arrive while a cell runs |
//! | `CLTLAB_TF32` | 0 | 1: products of f32 on a GPU may round to TF32, from the time a device is opened ([`set_tf32`](crate::device::set_tf32)) |
//! | `CLTLAB_CUDA_PATH` | by cost | `dense` or `lists`: how a training on a GPU multiplies, to measure |
//! | `CLTLAB_CUDA_DECODERS` | by size | `files`: decoders stay in their files, whatever they take |
//! | `HF_HOME`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `XDG_CACHE_HOME` | `~/.cache/huggingface` | where the hub's files are kept |
//! | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN` | the saved token | the hub's token |
//! | `HF_ENDPOINT` | `https://huggingface.co` | the hub's address |
//! | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | 0 | 1: the hub is not asked |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | 30 | seconds that a read from the network may take |
//! | `HOME`, `TMPDIR`, `PATH` | the system's | the user's folder, temporary files, where NVIDIA's libraries are looked for |
//!
//! The hub's variables mean what they mean to Python's `huggingface_hub`. A proxy for the hub is read from `ALL_PROXY`,
//! `HTTPS_PROXY` and `HTTP_PROXY` by the HTTP library.

use crate::error::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::path::PathBuf;

/// How a training on a GPU multiplies: `CLTLAB_CUDA_PATH`.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CudaPath {
    /// Dense products everywhere.
    Dense,
    /// Lists everywhere.
    Lists,
}

/// The value of a variable that is set and not blank.
pub(crate) fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The value of any variable that is set, for paths that name one.
pub(crate) fn raw(name: &str) -> Option<String> {
    if name.is_empty() { None } else { std::env::var(name).ok() }
}

/// Whether a variable is set to 1, true, yes or on.
pub(crate) fn is_true(name: &str) -> bool {
    text(name).is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.trim().to_lowercase().as_str()))
}

/// One of some words, or nothing.
fn word<T: Copy>(name: &str, known: &[(&str, T)]) -> Result<Option<T>> {
    let Some(value) = text(name) else { return Ok(None) };
    let found = known.iter().find(|(word, _)| *word == value.trim()).map(|(_, meaning)| *meaning);
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    found.map(Some).ok_or_else(|| Error::expected(ErrorKind::BadConfig, format_args!("environment variable {name}"), format_args!("{value:?}"), words.join(" or ")).help("or leave it out"))
}

/// `CLTLAB_TF32`.
#[cfg(feature = "cuda")]
pub(crate) fn tf32() -> Result<Option<bool>> {
    word("CLTLAB_TF32", &[("0", false), ("1", true)])
}

/// `CLTLAB_CUDA_PATH`.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_path() -> Result<Option<CudaPath>> {
    word("CLTLAB_CUDA_PATH", &[("dense", CudaPath::Dense), ("lists", CudaPath::Lists)])
}

/// `CLTLAB_CUDA_DECODERS`: whether decoders stay in their files.
pub(crate) fn decoders_in_files() -> Result<bool> {
    Ok(word("CLTLAB_CUDA_DECODERS", &[("files", ())])?.is_some())
}

/// Whether evcxr runs this process as that of a notebook's cells.
pub(crate) fn in_evcxr() -> bool {
    raw("EVCXR_IS_RUNTIME").is_some()
}

/// Set by the kernel for the process that runs the cells.
pub(crate) fn in_kernel() -> bool {
    std::env::var_os("CLTLAB_KERNEL").is_some()
}

/// The file that `CLTLAB_PARAMS` names.
pub(crate) fn parameter_file() -> Option<OsString> {
    std::env::var_os("CLTLAB_PARAMS").filter(|path| !path.is_empty())
}

/// The notebook's parameter `name`, and the variable that holds it.
pub(crate) fn parameter(name: &str) -> Option<(String, String)> {
    let variable = format!("CLTLAB_{}", name.to_uppercase());
    let value = std::env::var_os(&variable)?;
    Some((variable, value.to_string_lossy().into_owned()))
}

/// The user's folder.
pub(crate) fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

/// Where temporary files go that belong beside no output.
pub(crate) fn temporary_folder() -> PathBuf {
    std::env::temp_dir()
}

/// The folders of programs.
pub(crate) fn program_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|paths| std::env::split_paths(&paths).collect()).unwrap_or_default()
}
