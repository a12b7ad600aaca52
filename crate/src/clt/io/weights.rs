//! What the readers of other programs' formats share: tensors taken by name, normalisation folded into
//! weights, and the parts of an export.
//!
//! A trainer's CLT works on normalised values, `x̂ = (x − μ) / σ` and `ŷ = σ y + μ`. The same function
//! of x itself has `W' = W / σ`, `b' = b − W' μ`, and decoders and biases times the target's σ, plus
//! its μ; folding is done in f64.

use super::npz::Npz;
use super::tensors::{unknown_tensor, Reader};
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

enum File {
    Safetensors(Reader),
    Npz(Npz),
}

/// The tensors of one file. Each is taken by name; one that nobody took is unknown, and an unknown
/// tensor may change what the others mean.
pub(super) struct Tensors {
    path: PathBuf,
    file: File,
    left: RefCell<BTreeSet<String>>,
}

impl Tensors {
    /// A safetensors file, or a numpy file if it is named `.npz`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let npz = path.extension().is_some_and(|ending| ending == "npz");
        let file = if npz { File::Npz(Npz::open(&path)?) } else { File::Safetensors(Reader::open(&path)?) };
        let names = match &file {
            File::Safetensors(reader) => reader.names(),
            File::Npz(npz) => npz.names(),
        };
        Ok(Tensors { path, file, left: RefCell::new(names.into_iter().collect()) })
    }

    pub fn has(&self, name: &str) -> bool {
        self.dims(name).is_some()
    }

    fn dims(&self, name: &str) -> Option<Vec<usize>> {
        match &self.file {
            File::Safetensors(reader) => reader.shape(name),
            File::Npz(npz) => npz.shape(name),
        }
    }

    /// The shape of a tensor with `N` axes; `what` says which they are.
    pub fn shape<const N: usize>(&self, name: &str, what: &str) -> Result<[usize; N]> {
        let Some(found) = self.dims(name) else {
            return Err(Error::new(ErrorKind::BadTensor, format!("{}: {name}: missing", self.path.display())));
        };
        let shape = <[usize; N]>::try_from(found.as_slice());
        shape.map_err(|_| Error::expected(ErrorKind::BadTensor, self.place(name), format_args!("shape {found:?}"), what))
    }

    pub fn place(&self, name: &str) -> String {
        format!("{}: {name}", self.path.display())
    }

    /// Tensor `name`, f32 on the CPU, checked against `shape`.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.left.borrow_mut().remove(name);
        match &self.file {
            File::Safetensors(reader) => reader.tensor(name, shape, &Device::Cpu),
            File::Npz(npz) => npz.tensor(name, shape),
        }
    }

    /// As [`Tensors::take`], `None` for a tensor that is not there.
    pub fn take_if(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        if self.has(name) { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    /// Row `index` of the first axis of tensor `name`, which has `shape` in all.
    pub fn take_row(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        self.left.borrow_mut().remove(name);
        match &self.file {
            File::Safetensors(reader) => reader.row(name, shape, index),
            File::Npz(npz) => Ok(npz.tensor(name, shape)?.get(index)?),
        }
    }

    /// `Unsupported` naming a tensor that was not taken, other than those in `unused`.
    pub fn finish(self, unused: &[&str]) -> Result<()> {
        let left = self.left.borrow();
        match left.iter().find(|name| !unused.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(unknown_tensor(&self.path, name)),
        }
    }
}

/// `[a, b]` → `[b, a]`.
pub(super) fn turned(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.t()?.contiguous()?)
}

/// Decoders of one source by target, each `[F, d]`, as one `[F, slots, d]`.
pub(super) fn joined(decoders: &[Tensor]) -> Result<Tensor> {
    Ok(Tensor::stack(decoders, 1)?)
}

/// The sum of biases.
pub(super) fn summed(biases: &[Tensor]) -> Result<Tensor> {
    Ok(Tensor::stack(biases, 0)?.sum(0)?)
}

/// The values of a vector.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?)
}

/// θ where `a = h if h > θ and h > 0`: a negative threshold is 0.
pub(super) fn positive(threshold: &Tensor) -> Result<Tensor> {
    Ok(threshold.relu()?)
}

/// θ from its logarithm, taken in f64; that of -infinity is 0. With `reached` the feature is active at θ itself: the threshold is then the
/// number below.
pub(super) fn exponential(log: &Tensor, reached: bool) -> Result<Tensor> {
    let theta = |log: f32| match f64::from(log).exp() as f32 {
        theta if !theta.is_finite() => Err(Error::expected(ErrorKind::NotFinite, "log_threshold", log, "the logarithm of a number that f32 holds, below 88.7")),
        theta => Ok(if reached { theta.next_down().max(0.0) } else { theta }),
    };
    let values = floats(log)?.into_iter().map(theta).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::from_vec(values, log.dims(), &Device::Cpu)?)
}

/// How one layer's values were normalised: `x̂ = (x − mean) / scale`, entry by entry, `[d]` both.
#[derive(Clone)]
pub(super) struct Norm {
    pub mean: Tensor,
    pub scale: Tensor,
}

impl Norm {
    /// `x̂ = x · factor`.
    pub fn times(factor: f64, width: usize) -> Result<Self> {
        Ok(Norm { mean: Tensor::zeros(width, DType::F64, &Device::Cpu)?, scale: Tensor::full(1.0 / factor, width, &Device::Cpu)? })
    }
}

/// The layers as functions of values that are not normalised.
pub(super) fn fold(layers: Vec<LayerWeights>, inputs: &[Norm], targets: &[Norm]) -> Result<Vec<LayerWeights>> {
    layers.into_iter().enumerate().map(|(l, layer)| fold_layer(layer, &inputs[l], &targets[l..])).collect()
}

fn fold_layer(layer: LayerWeights, input: &Norm, targets: &[Norm]) -> Result<LayerWeights> {
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
    let (mean, scale) = (wide(&input.mean)?, wide(&input.scale)?);
    let encoder = wide(&layer.encoder)?.broadcast_div(&scale)?;
    let bias = (wide(&layer.encoder_bias)? - encoder.matmul(&mean.unsqueeze(1)?)?.squeeze(1)?)?;
    let slots = layer.decoder.dim(1)?;
    let scales = targets[..slots].iter().map(|target| target.scale.to_dtype(DType::F32)).collect::<candle_core::Result<Vec<_>>>()?;
    let own = wide(&targets[0].scale)?;
    let mut decoder_bias = ((wide(&layer.decoder_bias)? * &own)? + wide(&targets[0].mean)?)?;
    let mut skip = None;
    if let Some(given) = &layer.skip {
        let folded = wide(given)?.broadcast_div(&scale.unsqueeze(1)?)?.broadcast_mul(&own)?;
        decoder_bias = (decoder_bias - mean.unsqueeze(0)?.matmul(&folded)?.squeeze(0)?)?;
        skip = Some(folded.to_dtype(DType::F32)?);
    }
    Ok(LayerWeights {
        encoder: encoder.to_dtype(DType::F32)?,
        encoder_bias: bias.to_dtype(DType::F32)?,
        threshold: layer.threshold,
        decoder: layer.decoder.broadcast_mul(&Tensor::stack(&scales, 0)?)?,
        decoder_bias: decoder_bias.to_dtype(DType::F32)?,
        skip,
    })
}

/// The CLT of these layers, on `device`. Its configuration takes the mean threshold of the first layer.
pub(super) fn assemble(mut config: CltConfig, layers: Vec<LayerWeights>, device: &Device) -> Result<Clt> {
    if let (Activation::JumpRelu { threshold, .. }, Some(first)) = (&mut config.activation, layers.first().and_then(|layer| layer.threshold.as_ref())) {
        *threshold = mean(&floats(first)?);
    }
    let moved = |layer: LayerWeights| -> Result<LayerWeights> {
        let to = |tensor: Tensor| tensor.to_device(device);
        Ok(LayerWeights {
            encoder: to(layer.encoder)?,
            encoder_bias: to(layer.encoder_bias)?,
            threshold: layer.threshold.map(to).transpose()?,
            decoder: to(layer.decoder)?,
            decoder_bias: to(layer.decoder_bias)?,
            skip: layer.skip.map(to).transpose()?,
        })
    };
    Clt::new(config, layers.into_iter().map(moved).collect::<Result<_>>()?)
}

/// The mean of thresholds, as a configuration wants it: above 0.
pub(super) fn mean(thresholds: &[f32]) -> f64 {
    (thresholds.iter().map(|&t| f64::from(t)).sum::<f64>() / thresholds.len().max(1) as f64).max(f64::MIN_POSITIVE)
}

/// `Unsupported`: this CLT has `field` that `format` has no place for.
pub(super) fn no_place(format: &str, field: &str, got: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
    Error::expected(ErrorKind::Unsupported, format_args!("export to {format}: {field}"), got, expected)
}

/// A layer's thresholds, `[F]`, of a format that knows JumpReLU only: 0 for ReLU.
pub(super) fn thresholds(clt: &Clt, layer: usize, format: &str) -> Result<Tensor> {
    let activation = &clt.config().activation;
    match (activation, clt.threshold(layer)?) {
        (Activation::Relu, _) => Ok(Tensor::zeros(clt.features(), DType::F32, &Device::Cpu)?),
        (Activation::JumpRelu { .. }, Some(threshold)) => {
            let values = floats(threshold)?;
            match values.iter().position(|value| *value < 0.0) {
                None => Ok(threshold.clone()),
                Some(at) => Err(no_place(format, &format!("threshold of feature {layer}_{at}"), values[at], "0 or above: it has no activations below 0")),
            }
        }
        _ => Err(no_place(format, "activation", activation.label(), "relu or jump_relu")),
    }
}

/// Their logarithms. That of 0 is no number to go on training with: −103 stands for it, for exp(−103) is
/// the smallest number above 0 that f32 has.
pub(super) fn log_thresholds(clt: &Clt, layer: usize, format: &str) -> Result<Tensor> {
    let values = floats(&thresholds(clt, layer, format)?)?;
    let logs = values.iter().map(|value| (f64::from(*value).ln() as f32).max(-103.0)).collect();
    Ok(Tensor::from_vec(logs, clt.features(), &Device::Cpu)?)
}
