//! The encoder or decoder weights of one layer: in memory, or mapped from their file.
//!
//! A prompt needs the rows of its active features only, a few per mille of the decoders, which are
//! most of a CLT, and each layer's encoder once. Mapped ones are read from the file when they are
//! used, so a CLT is loaded at once and takes little memory; training holds its own, and so do GPUs where
//! [they fit](Decoder::home). Attribution and
//! decoding use rows where they lie in the map: memory that a process has not had before is dear (measured
//! on a virtual machine: copying rows of 680 MB into it takes three times as long as mapping them).

use super::io::tensors::Reader;
use super::{pages, values, CltConfig};
use crate::device::free_on;
use crate::error::Result;
use crate::model::release;
use candle_core::{Device, Layout, StorageRef, Tensor};
use std::sync::{Arc, OnceLock};

/// `[F, slots, d]` of a decoder or `[F, d]` of an encoder, f32. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Decoder {
    Held(Tensor),
    Mapped(Arc<Mapped>),
}

pub(crate) struct Mapped {
    reader: Reader,
    name: String,
    shape: Vec<usize>,
    /// As it stands in the file: a PLT's has no axis of slots.
    in_file: Vec<usize>,
    /// First byte in the file.
    at: u64,
    /// The whole tensor, where it is asked for.
    whole: OnceLock<Tensor>,
    /// Set when all numbers were found to be finite.
    finite: OnceLock<()>,
}

/// Weights on the CPU, borrowed where they lie.
pub(crate) enum Lent<'a> {
    Mapped(&'a [f32]),
    Held((StorageRef<'a>, &'a Layout)),
}

impl Lent<'_> {
    pub fn values(&self) -> Result<&[f32]> {
        match self {
            Lent::Mapped(weights) => Ok(weights),
            Lent::Held(held) => values(held),
        }
    }
}

impl Decoder {
    /// Tensor `name` of a file, checked against `shape`: mapped where it can be read as it lies
    /// (f32, aligned, for the CPU), else read.
    pub fn open(reader: Reader, name: String, shape: impl Into<Vec<usize>>, device: &Device) -> Result<Self> {
        let shape = shape.into();
        let flat = shape.len() == 3 && shape[1] == 1 && reader.shape(&name).is_some_and(|shape| shape.len() == 2);
        let in_file = if flat { vec![shape[0], shape[2]] } else { shape.to_vec() };
        if !device.is_cpu() || reader.f32s(&name, &in_file)?.is_none() {
            return Ok(Decoder::Held(reader.tensor(&name, &in_file, device)?.reshape(shape)?));
        }
        let at = reader.place_of(&name)?;
        Ok(Decoder::Mapped(Arc::new(Mapped { reader, at, name, shape, in_file, whole: OnceLock::new(), finite: OnceLock::new() })))
    }

    /// Where the decoders of a CLT for `device` lie: on a GPU when they take at most half of the memory that is free
    /// there, else in their files, from which the rows of active features are brought. `CLTLAB_CUDA_DECODERS=files`
    /// leaves them there whatever they take.
    ///
    /// # Errors
    /// `BadConfig` for another value of that variable.
    pub fn home(config: &CltConfig, device: &Device) -> Result<Device> {
        let bytes = 4 * (config.decoders() * config.features * config.width) as u64;
        let in_files = !device.is_cpu() && (crate::environment::decoders_in_files()? || free_on(device).is_some_and(|free| bytes > free / 2));
        Ok(if in_files { Device::Cpu } else { device.clone() })
    }

    /// Whether the weights are held on `device`.
    pub fn is_held_on(&self, device: &Device) -> bool {
        matches!(self, Decoder::Held(tensor) if tensor.device().same_device(device))
    }

    /// The whole tensor.
    ///
    /// # Errors
    /// What reading its file says.
    pub fn tensor(&self) -> Result<&Tensor> {
        match self {
            Decoder::Held(tensor) => Ok(tensor),
            Decoder::Mapped(mapped) => match mapped.whole.get() {
                Some(tensor) => Ok(tensor),
                None => {
                    let tensor = mapped.reader.as_it_is(&mapped.name, &mapped.in_file)?.reshape(mapped.shape.as_slice())?;
                    Ok(mapped.whole.get_or_init(|| tensor))
                }
            },
        }
    }

    /// The same on the CPU.
    pub fn on_cpu(&self) -> Result<Self> {
        match self {
            Decoder::Held(tensor) => Ok(Decoder::Held(tensor.to_device(&Device::Cpu)?)),
            Decoder::Mapped(_) => Ok(self.clone()),
        }
    }

    /// The values where they lie, which must be on the CPU.
    pub fn lend(&self) -> Result<Lent<'_>> {
        if let Decoder::Mapped(mapped) = self {
            if let Some(weights) = mapped.reader.f32s(&mapped.name, &mapped.in_file)? {
                return Ok(Lent::Mapped(weights));
            }
        }
        Ok(Lent::Held(self.tensor()?.storage_and_layout()))
    }

    /// `work` on the values, which must be on the CPU.
    pub fn with<T>(&self, work: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        work(self.lend()?.values()?)
    }

    /// Brings the rows of `features`, which ascend, into memory if they lie in a file.
    pub fn bring(&self, features: &[u32]) -> Result<()> {
        let [_, slots, width] = self.dims();
        if let (true, Lent::Mapped(weights)) = (self.is_mapped(), self.lend()?) {
            let row = slots * width;
            let places = || features.iter().map(|&feature| feature as usize * row..(feature as usize + 1) * row);
            pages::bring(weights, places());
            // The rows are about to be read in any case.
            for (feature, place) in features.iter().zip(places()) {
                self.finite(*feature, 0, weights.get(place).unwrap_or_default())?;
            }
        }
        Ok(())
    }

    /// Refuses a row of a file, from a slot on, that holds NaN or infinity.
    fn finite(&self, feature: u32, slot: usize, row: &[f32]) -> Result<()> {
        let Decoder::Mapped(mapped) = self else { return Ok(()) };
        mapped.reader.finite(&format!("{}: feature {feature}, from slot {slot} on", mapped.name), row, &[row.len()])
    }

    /// As [`Decoder::with`]; afterwards a file's pages are given back. The first time, numbers that are not finite
    /// are refused.
    pub fn with_once<T>(&self, work: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        self.with(|weights| {
            if let Decoder::Mapped(mapped) = self {
                if mapped.finite.get().is_none() {
                    mapped.reader.finite(&mapped.name, weights, &mapped.in_file)?;
                    let _ = mapped.finite.set(());
                }
            }
            let done = work(weights);
            if self.is_mapped() {
                // SAFETY: any f32 is four initialised bytes, and u8 has no alignment.
                release(unsafe { std::slice::from_raw_parts(weights.as_ptr().cast(), std::mem::size_of_val(weights)) });
            }
            done
        })
    }

    /// `[F, slots, d]`, with one slot for an encoder.
    fn dims(&self) -> [usize; 3] {
        let shape = match self {
            Decoder::Held(tensor) => tensor.dims(),
            Decoder::Mapped(mapped) => &mapped.shape,
        };
        [shape[0], shape[1..shape.len() - 1].iter().product(), shape[shape.len() - 1]]
    }

    /// Copies what `feature`, which must exist, writes to its slots from `slot` on, as many as `into`
    /// holds, `[n, d]`. The weights must be on the CPU.
    pub fn row(&self, feature: u32, slot: usize, into: &mut [f32]) -> Result<()> {
        let [_, slots, width] = self.dims();
        let start = (feature as usize * slots + slot) * width;
        match self {
            Decoder::Mapped(mapped) => {
                mapped.reader.read_at(mapped.at + 4 * start as u64, into)?;
                self.finite(feature, slot, into)
            }
            Decoder::Held(tensor) => {
                let tensor = tensor.storage_and_layout();
                into.copy_from_slice(&values(&tensor)?[start..][..into.len()]);
                Ok(())
            }
        }
    }

    /// True when rows come from a file.
    pub fn is_mapped(&self) -> bool {
        matches!(self, Decoder::Mapped(_))
    }

    /// Rows of `features`, which must exist, `[n, slots, d]`, or `[n, d]` of an encoder.
    pub fn rows(&self, features: &[u32]) -> Result<Tensor> {
        let mapped = match self {
            Decoder::Held(weights) => return Ok(weights.index_select(&Tensor::from_slice(features, features.len(), weights.device())?, 0)?),
            Decoder::Mapped(mapped) => mapped,
        };
        let [_, slots, width] = self.dims();
        let mut rows = vec![0.0; features.len() * slots * width];
        for (feature, row) in features.iter().zip(rows.chunks_exact_mut(slots * width)) {
            self.row(*feature, 0, row)?;
        }
        let shape: Vec<usize> = [features.len()].into_iter().chain(mapped.shape[1..].iter().copied()).collect();
        Ok(Tensor::from_vec(rows, shape, &Device::Cpu)?)
    }
}
