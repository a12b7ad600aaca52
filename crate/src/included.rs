//! The model that comes with the library, as bytes: it is loaded by name, without a path, a network or a cache.
//!
//! `models/states/README.md` says what it is, `models/states/recipe` how it was made; [`crate::states`] is what is known about it.

use crate::error::{Error, ErrorKind, Result};
use std::io::Read;
use std::path::Path;

/// The name that [`Model::load`](crate::Model::load) and [`Corpus::load`](crate::Corpus::load) know it and its text by.
pub(crate) const STATES: &str = "states";

/// Whether `source` is that name, and no file or folder here is called so.
pub(crate) fn is_named(source: &Path) -> bool {
    source == Path::new(STATES) && !source.exists()
}

/// `config.json`.
pub(crate) const CONFIG: &[u8] = include_bytes!("../../models/states/config.json");
/// Weights in bf16.
pub(crate) const WEIGHTS: &[u8] = include_bytes!("../../models/states/model.safetensors");
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../../models/states/tokenizer.json");
pub(crate) const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../models/states/tokenizer_config.json");
/// Facts, held-out questions and the figures of three seeds.
pub(crate) const KNOWN: &[u8] = include_bytes!("../../models/states/known.json");
const TEXT: &[u8] = include_bytes!("../../models/states/text.gz");

/// A JSON file of the model.
pub(crate) fn json<T: serde::de::DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::wrap(ErrorKind::BadFile, format_args!("{STATES} (in the library): {file}"), error))
}

/// The model's text, one document a line.
pub(crate) fn text() -> Result<Vec<String>> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(TEXT).read_to_string(&mut text).map_err(|error| Error::io(format!("{STATES} (in the library): text.gz"), error))?;
    Ok(text.lines().map(str::to_string).collect())
}
