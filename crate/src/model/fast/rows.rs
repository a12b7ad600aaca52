//! What goes row by row between the products: norms, sums of residuals, heads, rotary positions.
//!
//! One pass over memory each, in rayon's threads: candle's own pool spins between operations, on the
//! cores that the products need. Written as plain loops over 16 lanes, compiled for AVX-512.

use super::held::filled;
use super::tile::LANES;
use rayon::prelude::*;

/// Rows that a task takes: below, the task itself costs more.
const BLOCK: usize = 16;

/// `centre(x) / √(mean(centre(x)²) + eps) · weight + bias` of each row, where `centre` takes the
/// mean away (LayerNorm) or does nothing (RMSNorm).
///
/// # Safety
/// AVX-512F.
pub(super) unsafe fn norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, centre: bool) -> Vec<f32> {
    let width = weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width) && bias.is_none_or(|bias| bias.len() == width));
    filled(x.len(), |to| {
        x.par_chunks(BLOCK * width).enumerate().for_each(|(block, x)| {
            // SAFETY: each block has its own rows.
            let y = unsafe { std::slice::from_raw_parts_mut(to.at(block * BLOCK * width), x.len()) };
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                unsafe { norm_row(x, weight, bias, eps, centre, y) }
            }
        });
    })
}

#[target_feature(enable = "avx512f")]
fn norm_row(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, centre: bool, y: &mut [f32]) {
    let count = x.len() as f32;
    let mean = if centre { sum(x, |value| value) / count } else { 0.0 };
    let variance = sum(x, |value| (value - mean) * (value - mean)) / count;
    let scale = 1.0 / (variance + eps).sqrt();
    match bias {
        None => y.iter_mut().zip(x).zip(weight).for_each(|((y, x), weight)| *y = (x - mean) * scale * weight),
        Some(bias) => {
            y.iter_mut().zip(x).zip(weight).zip(bias).for_each(|(((y, x), weight), bias)| *y = (x - mean) * scale * weight + bias)
        }
    }
}

/// Sum over a row in 16 parts, so that it can be done 16 at a time.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (mut parts, (whole, rest)) = ([0.0_f32; LANES], x.as_chunks::<LANES>());
    for x in whole {
        for (part, x) in parts.iter_mut().zip(x) {
            *part += of(*x);
        }
    }
    parts.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}

/// `a + b`.
///
/// # Safety
/// AVX-512F.
pub(super) unsafe fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    #[target_feature(enable = "avx512f")]
    fn block(a: &[f32], b: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b);
    }
    assert!(a.len() == b.len());
    let size = BLOCK * 1024;
    filled(a.len(), |to| {
        a.par_chunks(size).zip(b.par_chunks(size)).enumerate().for_each(|(index, (a, b))| {
            // SAFETY: each block has its own part.
            unsafe { block(a, b, std::slice::from_raw_parts_mut(to.at(index * size), a.len())) }
        });
    })
}

/// `x [B, T, count, h]` to `[B, count, T, h]`.
pub(super) fn by_head(x: &[f32], tokens: usize, count: usize, width: usize) -> Vec<f32> {
    let row = count * width;
    filled(x.len(), |to| {
        x.par_chunks(row).with_min_len(BLOCK).enumerate().for_each(|(at, x)| {
            let (batch, token) = (at / tokens, at % tokens);
            for (head, x) in x.chunks_exact(width).enumerate() {
                // SAFETY: each token's heads have their own places, all within `x.len()`.
                unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), to.at(((batch * count + head) * tokens + token) * width), width) }
            }
        });
    })
}

/// Rotary positions: `x [.., T, h]` turned by `cos`, `sin [T, h/2]`; pairs are (i, i + h/2), or
/// (2i, 2i + 1) when `interleaved`.
///
/// # Safety
/// AVX-512F.
pub(super) unsafe fn rotate(x: &[f32], cos: &[f32], sin: &[f32], tokens: usize, interleaved: bool) -> Vec<f32> {
    let half = cos.len() / tokens;
    let width = 2 * half;
    assert!(half > 0 && cos.len() == tokens * half && sin.len() == cos.len() && x.len().is_multiple_of(tokens * width));
    filled(x.len(), |to| {
        x.par_chunks(width).with_min_len(4 * BLOCK).enumerate().for_each(|(at, x)| {
            let table = at % tokens * half..(at % tokens + 1) * half;
            // SAFETY: each row has its own part.
            unsafe { rotate_row(x, &cos[table.clone()], &sin[table], interleaved, std::slice::from_raw_parts_mut(to.at(at * width), width)) }
        });
    })
}

#[target_feature(enable = "avx512f")]
fn rotate_row(x: &[f32], cos: &[f32], sin: &[f32], interleaved: bool, y: &mut [f32]) {
    if interleaved {
        let (pairs, to) = (x.as_chunks::<2>().0, y.as_chunks_mut::<2>().0);
        for (((to, pair), cos), sin) in to.iter_mut().zip(pairs).zip(cos).zip(sin) {
            *to = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
        }
    } else {
        let ((low, high), (to_low, to_high)) = (x.split_at(cos.len()), y.split_at_mut(cos.len()));
        for (((to, (low, high)), cos), sin) in to_low.iter_mut().zip(low.iter().zip(high)).zip(cos).zip(sin) {
            *to = low * cos - high * sin;
        }
        for (((to, (low, high)), cos), sin) in to_high.iter_mut().zip(low.iter().zip(high)).zip(cos).zip(sin) {
            *to = low * sin + high * cos;
        }
    }
}
