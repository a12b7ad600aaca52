//! Products with rows that lie anywhere in memory: attribution multiplies decoder rows where they were
//! read to, without bringing them together first.
//!
//! A row is used once, by all inputs, so most of the work is waiting for memory: while eight rows are
//! multiplied, the next eight are asked for.

use super::held::filled;
use super::product::{write_tile, Panels};
use super::screen::products;
use super::tile::{Sums, LANES, OUTS};
use super::ROWS;
use std::arch::x86_64::*;

/// `x [m, depth] · rows [n, depth]ᵀ`, `[m, n]`.
///
/// # Safety
/// AVX-512F; `depth` a multiple of 16.
pub(super) unsafe fn times(x: &[f32], rows: &[&[f32]], depth: usize) -> Vec<f32> {
    assert!(x.len().is_multiple_of(depth) && rows.iter().all(|row| row.len() == depth));
    let (m, n) = (x.len() / depth, rows.len());
    if m < ROWS {
        let mut out = vec![0.0; m * n];
        for (first, four) in rows.chunks(4).enumerate() {
            let at: [*const f32; 4] = std::array::from_fn(|i| four[i.min(four.len() - 1)].as_ptr());
            for (x, out) in x.chunks_exact(depth).zip(out.chunks_exact_mut(n)) {
                // SAFETY: rows of `depth`, checked above.
                let products = unsafe { products(x.as_ptr(), at, depth) };
                out[4 * first..].iter_mut().zip(products).take(four.len()).for_each(|(out, product)| *out = product);
            }
        }
        return out;
    }
    // SAFETY: as above; `pack` wants a multiple of 4.
    let panels = unsafe { Panels::pack(x, depth) };
    filled(m * n, |to| {
        panels.tasks(n, |some, first, end, _| {
            for out in (first..end).step_by(OUTS) {
                let at = |from: usize| -> [*const f32; OUTS] { std::array::from_fn(|i| rows[(from + i).min(n - 1)].as_ptr()) };
                let (now, next, count) = (at(out), at(out + OUTS), OUTS.min(end - out));
                for panel in some {
                    // SAFETY: tiles do not overlap; all rows and panels have `depth` entries.
                    unsafe {
                        let (x, y) = (panels.panel(*panel), to.at(panel.first * n + out));
                        match panel.registers {
                            1 => tile::<1>(x, depth, now, next, y, n, panel.tokens, count),
                            2 => tile::<2>(x, depth, now, next, y, n, panel.tokens, count),
                            _ => tile::<3>(x, depth, now, next, y, n, panel.tokens, count),
                        }
                    }
                }
            }
        });
    })
}

/// Up to 8 outputs of one panel.
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<const M: usize>(x: *const f32, depth: usize, rows: [*const f32; OUTS], next: [*const f32; OUTS], y: *mut f32, stride: usize, tokens: usize, count: usize) {
    let sums = sums::<M>(x, depth, rows, next);
    if count == OUTS {
        return write_tile(&sums, y, stride, tokens);
    }
    for (n, sums) in sums.iter().enumerate().take(count) {
        for (m, sum) in sums.iter().enumerate() {
            let mut values = [0.0_f32; LANES];
            _mm512_storeu_ps(values.as_mut_ptr(), *sum);
            for (lane, value) in values.into_iter().enumerate().take(tokens.saturating_sub(m * LANES)) {
                *y.add((m * LANES + lane) * stride + n) = value;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn sums<const M: usize>(x: *const f32, depth: usize, rows: [*const f32; OUTS], next: [*const f32; OUTS]) -> Sums<M, OUTS> {
    let mut sums = [[_mm512_setzero_ps(); M]; OUTS];
    for line in (0..depth).step_by(LANES) {
        for next in next {
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line).cast());
        }
        for k in line..line + LANES {
            let x = x.add(k * M * LANES);
            let mut tokens = [_mm512_setzero_ps(); M];
            for (m, tokens) in tokens.iter_mut().enumerate() {
                *tokens = _mm512_loadu_ps(x.add(m * LANES));
            }
            _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(8 * M * LANES).cast());
            for (row, sums) in rows.iter().zip(&mut sums) {
                let weight = _mm512_set1_ps(*row.add(k));
                for (sum, tokens) in sums.iter_mut().zip(tokens) {
                    *sum = _mm512_fmadd_ps(tokens, weight, *sum);
                }
            }
        }
    }
    sums
}
