//! The decoder weights of one layer: in memory, or mapped from their file.
//!
//! A prompt needs the rows of its active features only, a few per mille of the decoders, which are
//! most of a CLT. Mapped ones are read from the file when they are used, so a CLT is loaded at once
//! and takes little memory; training and GPUs hold theirs.

use super::io::tensors::Reader;
use super::values;
use crate::error::Result;
use candle_core::{Device, Tensor};
use std::sync::{Arc, OnceLock};

/// `[F, slots, d]`, f32. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Decoder {
    Held(Tensor),
    Mapped(Arc<Mapped>),
}

pub(crate) struct Mapped {
    reader: Reader,
    name: String,
    shape: [usize; 3],
    /// The whole tensor, for whoever asks for it.
    whole: OnceLock<Tensor>,
}

impl Decoder {
    /// Tensor `name` of a file, checked against `shape`: mapped where it can be read as it lies
    /// (f32, aligned, for the CPU), else read.
    pub fn open(reader: Reader, name: String, shape: [usize; 3], device: &Device) -> Result<Self> {
        if !device.is_cpu() || reader.f32s(&name, &shape)?.is_none() {
            return Ok(Decoder::Held(reader.tensor(&name, &shape, device)?));
        }
        Ok(Decoder::Mapped(Arc::new(Mapped { reader, name, shape, whole: OnceLock::new() })))
    }

    /// The whole tensor.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Decoder::Held(tensor) => tensor,
            Decoder::Mapped(mapped) => mapped.whole.get_or_init(|| {
                // Shape and type were checked when it was mapped.
                mapped.reader.tensor(&mapped.name, &mapped.shape, &Device::Cpu).expect("a checked tensor")
            }),
        }
    }

    /// The same on the CPU.
    pub fn on_cpu(&self) -> Result<Self> {
        match self {
            Decoder::Held(tensor) => Ok(Decoder::Held(tensor.to_device(&Device::Cpu)?)),
            Decoder::Mapped(_) => Ok(self.clone()),
        }
    }

    /// `work` on the values, which must be on the CPU.
    pub fn with<T>(&self, work: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        if let Decoder::Mapped(mapped) = self {
            if let Some(weights) = mapped.reader.f32s(&mapped.name, &mapped.shape)? {
                return work(weights);
            }
        }
        let tensor = self.tensor().storage_and_layout();
        work(values(&tensor)?)
    }

    /// Gives back the memory of what was read of a mapped file.
    pub fn forget(&self) {
        if let Decoder::Mapped(mapped) = self {
            mapped.reader.forget();
        }
    }

    /// Rows of `features`, which must exist, `[n, slots, d]`.
    pub fn rows(&self, features: &[u32]) -> Result<Tensor> {
        let mapped = match self {
            Decoder::Held(weights) => return Ok(weights.index_select(&Tensor::from_slice(features, features.len(), weights.device())?, 0)?),
            Decoder::Mapped(mapped) => mapped,
        };
        let [_, slots, width] = mapped.shape;
        let rows: Vec<f32> = self.with(|weights| {
            Ok(features.iter().flat_map(|feature| &weights[*feature as usize * slots * width..][..slots * width]).copied().collect())
        })?;
        Ok(Tensor::from_vec(rows, (features.len(), slots, width), &Device::Cpu)?)
    }
}
