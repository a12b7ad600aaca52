//! Weights as a model holds them, f32 or a half, widened to f32 part by part where they are used.
//!
//! A half costs one widening of each weight a product, into a buffer that stays in the cache: with
//! many rows that is lost in the arithmetic, and with few rows, where memory is the bound, half the
//! bytes are read. The arithmetic is f32 in every case.

use super::ROWS;
use candle_core::{CpuStorage, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Outputs that a task computes: their widened weights stay in the second-level cache.
const CHUNK: usize = 64;

/// Weights, row after row.
#[derive(Clone, Copy)]
pub(super) enum Held<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl Held<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Held::F32(values) => values.len(),
            Held::Bf16(values) => values.len(),
            Held::F16(values) => values.len(),
        }
    }

    /// The weights of `range` in f32; `buffer` holds them where they have to be widened.
    pub(super) fn part<'b>(&'b self, range: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        if let Held::F32(values) = self {
            return &values[range];
        }
        buffer.resize(buffer.len().max(range.len()), 0.0);
        let wide = &mut buffer[..range.len()];
        match self {
            Held::F32(_) => {}
            // A bf16 is the upper half of an f32.
            Held::Bf16(values) => wide.iter_mut().zip(&values[range]).for_each(|(wide, value)| *wide = f32::from_bits(u32::from(value.to_bits()) << 16)),
            Held::F16(values) => values[range].convert_to_f32_slice(wide),
        }
        wide
    }
}

/// Calls `work` with the values of a contiguous tensor on the CPU; `None` for others, and for tensors
/// that candle differentiates.
pub(super) fn with_held<T>(tensor: &Tensor, work: impl FnOnce(Held<'_>) -> T) -> Option<T> {
    if tensor.track_op() {
        return None;
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (from, to) = layout.contiguous_offsets()?;
    Some(work(match &*storage {
        Storage::Cpu(CpuStorage::F32(all)) => Held::F32(&all[from..to]),
        Storage::Cpu(CpuStorage::BF16(all)) => Held::Bf16(&all[from..to]),
        Storage::Cpu(CpuStorage::F16(all)) => Held::F16(&all[from..to]),
        _ => return None,
    }))
}

/// `y [tokens, outs] = x wᵀ + bias`, `x [tokens, depth]`, on any CPU: products of few rows, and of
/// many where the panels' instructions are missing.
pub(super) fn times(x: &[f32], depth: usize, w: Held<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let (tokens, outs) = (x.len() / depth, w.len() / depth);
    assert!(x.len() == tokens * depth && w.len() == outs * depth && bias.is_none_or(|bias| bias.len() == outs));
    filled(tokens * outs, |to| {
        (0..outs.div_ceil(CHUNK)).into_par_iter().for_each_init(Vec::new, |buffer, chunk| {
            let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(outs);
            if tokens < ROWS {
                for out in range {
                    let row = w.part(out * depth..(out + 1) * depth, buffer);
                    for (token, x) in x.chunks_exact(depth).enumerate() {
                        // SAFETY: each task writes its own outputs, all within tokens · outs.
                        unsafe { to.at(token * outs + out).write(dot(x, row) + bias.map_or(0.0, |bias| bias[out])) };
                    }
                }
                return;
            }
            let weights = w.part(range.start * depth..range.end * depth, buffer);
            // SAFETY: as above; gemm writes `tokens` rows of `range.len()` outputs, `outs` apart, and
            // reads what the two slices hold.
            unsafe {
                gemm::gemm(
                    tokens, range.len(), depth,
                    to.at(range.start), 1, outs as isize, false,
                    x.as_ptr(), 1, depth as isize,
                    weights.as_ptr(), depth as isize, 1,
                    0.0, 1.0, false, false, false, gemm::Parallelism::None,
                );
                for (token, out) in (0..tokens).flat_map(|token| range.clone().map(move |out| (token, out))) {
                    *to.at(token * outs + out) += bias.map_or(0.0, |bias| bias[out]);
                }
            }
        });
    })
}

/// A dot product in 32 running sums, with what the machine has.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(a: &[f32], b: &[f32]) -> f32 {
            sums(a, b, |a, b, sum| a.mul_add(b, sum))
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: just checked.
            return unsafe { wide(a, b) };
        }
    }
    sums(a, b, |a, b, sum| sum + a * b)
}

#[inline(always)]
fn sums(a: &[f32], b: &[f32], add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut parts = [0.0_f32; 32];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<32>(), b.as_chunks::<32>());
    for (a, b) in a.iter().zip(b) {
        for (part, (a, b)) in parts.iter_mut().zip(a.iter().zip(b)) {
            *part = add(*a, *b, *part);
        }
    }
    parts.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// A pointer that tasks share; each writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32);
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// As [`pointer::add`]; no two tasks touch the same place.
    pub(super) unsafe fn at(self, offset: usize) -> *mut f32 {
        self.0.add(offset)
    }
}

/// `length` values, all of which `work` must write: no time goes into zeros that are written over.
pub(super) fn filled(length: usize, work: impl FnOnce(Shared)) -> Vec<f32> {
    let mut values = Vec::<f32>::with_capacity(length);
    work(Shared(values.as_mut_ptr()));
    // SAFETY: allocated above and written by `work`.
    unsafe { values.set_len(length) };
    values
}
