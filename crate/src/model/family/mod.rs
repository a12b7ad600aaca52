//! Families: how each architecture's files say what [`ModelConfig`] and the weights are.
//!
//! A family is data: which configuration keys to read and which tensor holds which part. The
//! blocks themselves know no family.

mod gpt2;
mod llama;
pub(crate) mod llama2c;

use super::config::{ModelConfig, NormKind};
use super::parts::{Layer, Linear, Norm};
use super::weights::Weights;
use crate::error::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor};

/// The architectures that can be loaded, by the name their files use.
pub const ARCHITECTURES: &[&str] = &["gpt2", "llama"];

/// All tensors of a model.
pub(crate) struct Parts {
    pub embedding: Tensor,
    pub positions: Option<Tensor>,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    pub unembedding: Tensor,
}

/// Reads a Hugging Face `config.json`.
pub(crate) fn config_from_json(json: &serde_json::Value, place: &str) -> Result<ModelConfig> {
    let kind = json.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("none");
    let fields = Fields { json, place };
    match kind {
        "gpt2" => gpt2::config(&fields),
        "llama" => llama::config(&fields),
        other => Err(unknown(other, place)),
    }
}

/// Reads a GGUF header.
pub(crate) fn config_from_gguf(content: &candle_core::quantized::gguf_file::Content, place: &str) -> Result<ModelConfig> {
    let architecture = content
        .metadata
        .get("general.architecture")
        .and_then(|value| value.to_string().ok())
        .ok_or_else(|| Error::expected(ErrorKind::BadFile, format_args!("{place}: general.architecture"), "nothing", "a name"))?;
    match architecture.as_str() {
        "llama" => llama::config_gguf(content, place),
        other => Err(unknown(other, place)),
    }
}

/// Reads all tensors, by the family's names.
pub(crate) fn load(config: &ModelConfig, weights: &Weights, device: &Device) -> Result<Parts> {
    match (config.architecture.as_str(), weights) {
        ("gpt2", _) => gpt2::load(config, weights, device),
        ("llama", Weights::Gguf { .. }) => llama::load(config, weights, &llama::GGUF, device),
        ("llama", _) => llama::load(config, weights, &llama::HUGGING_FACE, device),
        (other, _) => Err(unknown(other, &weights.path().display().to_string())),
    }
}

fn unknown(got: &str, place: &str) -> Error {
    Error::expected(
        ErrorKind::UnknownArchitecture,
        format_args!("{place}: architecture"),
        format_args!("'{got}'"),
        format_args!("one of {}", ARCHITECTURES.join(", ")),
    )
}

/// Fields of a configuration file, with its path in the errors.
struct Fields<'a> {
    json: &'a serde_json::Value,
    place: &'a str,
}

impl Fields<'_> {
    fn number(&self, field: &str) -> Result<usize> {
        self.optional(field)?.ok_or_else(|| self.missing(field, "a whole number"))
    }

    fn optional(&self, field: &str) -> Result<Option<usize>> {
        match self.json.get(field) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(value) => value.as_u64().map(|number| Some(number as usize)).ok_or_else(|| self.wrong(field, value, "a whole number")),
        }
    }

    fn real(&self, field: &str, default: f64) -> Result<f64> {
        match self.json.get(field) {
            None | Some(serde_json::Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(field, value, "a number")),
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.json.get(field) {
            None | Some(serde_json::Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, value, "true or false")),
        }
    }

    fn text(&self, field: &str, default: &str) -> Result<String> {
        match self.json.get(field) {
            None | Some(serde_json::Value::Null) => Ok(default.to_string()),
            Some(value) => value.as_str().map(str::to_string).ok_or_else(|| self.wrong(field, value, "a string")),
        }
    }

    fn token(&self, field: &str) -> Option<u32> {
        let value = self.json.get(field)?;
        let single = value.as_array().and_then(|list| list.first()).unwrap_or(value);
        single.as_u64().map(|id| id as u32)
    }

    fn missing(&self, field: &str, expected: &str) -> Error {
        Error::expected(ErrorKind::BadFile, format_args!("{}: {field}", self.place), "nothing", expected)
    }

    fn wrong(&self, field: &str, value: &serde_json::Value, expected: &str) -> Error {
        Error::expected(ErrorKind::BadFile, format_args!("{}: {field}", self.place), value, expected)
    }

    /// Refuses a field that asks for something the blocks do not do.
    fn refuse(&self, field: &str, allowed: &[serde_json::Value]) -> Result<()> {
        match self.json.get(field) {
            Some(value) if !value.is_null() && !allowed.contains(value) => Err(Error::expected(
                ErrorKind::Unsupported,
                format_args!("{}: {field}", self.place),
                value,
                allowed.iter().map(ToString::to_string).chain(["nothing".to_string()]).collect::<Vec<_>>().join(" or "),
            )),
            _ => Ok(()),
        }
    }
}

/// Reads a norm's weight and, for LayerNorm, its bias.
fn norm(config: &ModelConfig, weights: &Weights, name: &str, device: &Device) -> Result<Norm> {
    let weight = weights.get(&format!("{name}.weight"), &[config.width], device)?;
    let bias = match config.norm {
        NormKind::Layer => Some(weights.get(&format!("{name}.bias"), &[config.width], device)?),
        NormKind::Rms => None,
    };
    Ok(Norm { kind: config.norm, eps: config.norm_eps, weight, bias })
}

/// Reads a linear map stored as `[out, in]`, with its bias if the file has one.
fn linear(weights: &Weights, name: &str, out: usize, inner: usize, device: &Device) -> Result<Linear> {
    Ok(Linear {
        weight: weights.get(&format!("{name}.weight"), &[out, inner], device)?,
        bias: weights.optional(&format!("{name}.bias"), &[out], device)?,
    })
}
