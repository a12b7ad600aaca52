//! Sparse codes on a GPU outside training: which pre-activations are kept, and what a code decodes to. The same kernels as
//! a training's (`select.cuh`, `decode.cu`); their twins on the CPU are in [`crate::clt::activation`] and
//! [`crate::clt::decode`](mod@crate::clt).

use super::{At, Buffer, Gpu, Kernel, Kernels, Stored};
use crate::clt::{Clt, LayerCode};
use crate::error::Result;
use candle_core::{DType, Tensor};

/// Threads of kernels that walk along a row.
const ROW: usize = 256;
/// A feature where there is none: `NONE` in `common.cuh`.
const NONE: u32 = u32::MAX;

/// Which entries of a row are kept.
pub(crate) enum Keep<'a> {
    /// The k largest above 0.
    Top(usize),
    /// Those above 0, or above each feature's threshold, `[F]`.
    Above(Option<&'a Tensor>),
}

/// What is kept of `h + bias`, with `h` `[T, F]` and `bias` `[F]`.
pub(crate) fn select(h: &Tensor, bias: &Tensor, keep: &Keep<'_>) -> Result<LayerCode> {
    let gpu = Gpu::of(h.device())?;
    let (tokens, f) = h.dims2()?;
    let (at, bias, features) = (gpu.place(h)?, gpu.place(bias)?, f as u32);
    match keep {
        Keep::Top(k) => {
            let places = tokens * k;
            let (kept, values, of): (Buffer<u32>, Buffer<f32>, Buffer<u32>) = (gpu.zeros(places)?, gpu.zeros(places)?, gpu.zeros(places)?);
            let (starts, counts, cuts, hint): (Buffer<u32>, Buffer<u32>, Buffer<f32>, Buffer<f32>) = (gpu.zeros(tokens)?, gpu.zeros(tokens)?, gpu.zeros(tokens)?, gpu.zeros(1)?);
            // SAFETY: one block a token; runs of k entries each have room.
            unsafe { gpu.launch(Kernel::TOP_ROWS, (tokens, 1), ROW, &[&at, &bias, &features, &(*k as u32), &hint.at(), &kept.at(), &values.at(), &of.at(), &starts.at(), &counts.at(), &cuts.at(), &(0 as At)])? };
            let (kept, values) = (kept.read_first(places)?, values.read_first(places)?);
            let mut code = LayerCode::empty(0);
            for (features, values) in kept.chunks_exact(*k).zip(values.chunks_exact(*k)) {
                let there = features.iter().zip(values).filter(|(feature, _)| **feature != NONE);
                there.for_each(|(feature, value)| {
                    code.features.push(*feature);
                    code.values.push(*value);
                });
                code.close_token();
            }
            Ok(code)
        }
        Keep::Above(threshold) => {
            let threshold = threshold.map_or(Ok(0), |threshold| gpu.place(threshold))?;
            let counts: Buffer<u32> = gpu.zeros(tokens)?;
            // SAFETY: one block a token, which has a count.
            unsafe { gpu.launch(Kernel::COUNT_KEPT, (tokens, 1), ROW, &[&at, &bias, &features, &threshold, &counts.at()])? };
            let mut offsets = vec![0u32];
            for count in counts.read_first(tokens)? {
                offsets.push(offsets[offsets.len() - 1] + count);
            }
            let places = offsets[tokens] as usize;
            let (starts, kept, values, of): (_, Buffer<u32>, Buffer<f32>, Buffer<u32>) = (gpu.copy(&offsets)?, gpu.zeros(places)?, gpu.zeros(places)?, gpu.zeros(places)?);
            // SAFETY: runs begin and end where they were counted.
            unsafe { gpu.launch(Kernel::WRITE_KEPT, (tokens, 1), ROW, &[&at, &bias, &features, &threshold, &starts.at(), &kept.at(), &values.at(), &of.at()])? };
            Ok(LayerCode { tokens, offsets, features: kept.read_first(places)?, values: values.read_first(places)? })
        }
    }
}

/// As in `decode.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Source {
    lists: [At; 5],
    numbers: [u32; 4],
}
// SAFETY: plain numbers, as the kernel has them.
unsafe impl candle_core::cuda_backend::cudarc::driver::DeviceRepr for Source {}
// SAFETY: zeros are a source.
unsafe impl candle_core::cuda_backend::cudarc::driver::ValidAsZeroBits for Source {}

/// The reconstructions of `targets`, `[T, d]` each with its bias, from the codes of sources 0 on; `None` for
/// widths that the kernel does not take. Decoders must be held on the device.
pub(crate) fn decode(clt: &Clt, codes: &[LayerCode], targets: std::ops::Range<usize>) -> Result<Option<Vec<Tensor>>> {
    let gpu = Gpu::of(clt.device())?;
    let (config, tokens) = (clt.config(), codes.first().map_or(0, |code| code.tokens));
    let d = config.width;
    if !d.is_multiple_of(8) || d > 8192 || tokens == 0 {
        return Ok(None);
    }
    let lists = |code: &LayerCode| -> Result<(Buffer<u32>, Buffer<f32>, Buffer<u32>, Buffer<u32>)> {
        let counts: Vec<u32> = code.offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Ok((gpu.copy(&code.features)?, gpu.copy(&code.values)?, gpu.copy(&code.offsets)?, gpu.copy(&counts)?))
    };
    let lists = codes.iter().map(lists).collect::<Result<Vec<_>>>()?;
    let decoders = (0..codes.len()).map(|s| gpu.place(clt.decoder(s)?)).collect::<Result<Vec<_>>>()?;
    let aligned = |at: &At| at.is_multiple_of(16);
    let mut out = Vec::with_capacity(targets.len());
    for t in targets {
        let bias = gpu.place(clt.decoder_bias(t)?)?;
        if !aligned(&bias) || !decoders.iter().all(aligned) {
            return Ok(None);
        }
        let source = |s: usize| {
            let (features, values, starts, counts) = &lists[s];
            let decoder = decoders[s] + (4 * (t - s) * d) as u64;
            Source { lists: [features.at(), values.at(), starts.at(), counts.at(), decoder], numbers: [(config.slots(s) * d) as u32, 0, 1, 0] }
        };
        let sources: Vec<Source> = (config.first_source(t)..=t).map(source).collect();
        let (count, sources) = (sources.len() as u32, gpu.copy(&sources)?);
        let made = Tensor::zeros((tokens, d), DType::F32, clt.device())?;
        let (slab, none, d32) = (gpu.place(&made)?, 0 as At, d as u32);
        // SAFETY: a block a token, eight columns a thread; runs end within the entries, as a `LayerCode` is made; features are below F, checked by the caller; `made` is [T, d].
        unsafe { gpu.launch(Kernels::DECODE.of(Stored::F32), (tokens, 1), d.div_ceil(8).next_multiple_of(32), &[&sources.at(), &count, &none, &bias, &none, &(tokens as u32), &d32, &d32, &none, &slab, &none, &none])? };
        out.push(made);
    }
    Ok(Some(out))
}
