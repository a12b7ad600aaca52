//! Activations from one safetensors file, made by any program: for each layer `l` the tensors
//! `input.{l}` and `target.{l}`, `[tokens, d]`, in f32, f16, bf16 or f64.

use super::Activations;
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::files::numbers::{floating, odd};
use crate::model::check_safetensors;
use crate::text::placeholder::shown;
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::Path;

impl Activations {
    pub(super) fn read_file(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
        // As they lie in the file, and as they are used.
        require_memory(&format!("activations of {}", path.display()), length.saturating_mul(2), "take fewer tokens, or a store (Activations::store), which is read in parts")?;
        check_safetensors(path)?;
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .map_err(|error| Error::wrap(ErrorKind::BadFile, format_args!("{}: not a whole safetensors file", path.display()), error))?;
        let layers = (0..).take_while(|l| tensors.contains_key(&format!("input.{l}"))).count();
        // Of a layer beyond a gap nothing would be trained.
        let mut beyond: Vec<&String> = tensors.keys().filter(|name| layer(name).is_some_and(|l| l >= layers)).collect();
        beyond.sort();
        if let Some(name) = beyond.first() {
            return Err(missing(path, &format!("input.{layers}")).help(format!("{} is there: the layers of inputs and targets go from 0 on without a gap", shown(name))));
        }
        let first = tensors.get("input.0").map(|tensor| tensor.dims().to_vec());
        let shape = first.ok_or_else(|| missing(path, "input.0").help("the file needs input.{l} and target.{l}, [tokens, d], for each layer"))?;
        let mut take = |side: &str| -> Result<Vec<Vec<f32>>> { (0..layers).map(|l| values(&mut tensors, path, &format!("{side}.{l}"), &shape)).collect() };
        let (inputs, targets) = (take("input")?, take("target")?);
        let width = shape.get(1).copied().unwrap_or(0);
        Activations::from_memory(inputs, targets, width).map_err(|error| error.context(path.display()))
    }
}

fn missing(path: &Path, name: &str) -> Error {
    Error::new(ErrorKind::BadTensor, format!("{}: {name}: missing", path.display()))
}

/// Takes tensor `name` out as f32, checked against `shape`.
fn values(tensors: &mut HashMap<String, Tensor>, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = tensors.remove(name).ok_or_else(|| missing(path, name))?;
    if tensor.dims() != shape || shape.len() != 2 {
        let expected = if shape.len() == 2 { format!("{shape:?}, as input.0") } else { "[tokens, d]".into() };
        return Err(Error::expected(ErrorKind::BadTensor, format_args!("{}: {name}", path.display()), format_args!("shape {:?}", tensor.dims()), expected));
    }
    floating(format_args!("{}: {name}", path.display()), tensor.dtype().as_str())?;
    let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if let Some(at) = odd(&values) {
        let place = format!("{}: {name}: token {}, number {}", path.display(), at / shape[1].max(1), at % shape[1].max(1));
        return Err(Error::expected(ErrorKind::NotFinite, place, values[at], "a finite number"));
    }
    Ok(values)
}

/// The layer in a name like `input.3` or `target.3`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("input.").or_else(|| name.strip_prefix("target."))?.parse().ok()
}
