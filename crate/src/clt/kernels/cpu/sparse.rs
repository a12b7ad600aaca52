//! Sparse products: code times decoder rows.

use super::{fma, simd};
use crate::clt::sparse::LayerCode;
use rayon::prelude::*;

/// Adds `Σ_f a[p, f] W[f, slot, :]` to row `p` of `out` `[tokens, d]`; `weights` is `[F, slots, d]`.
pub(crate) fn decode_rows(code: &LayerCode, weights: &[f32], slots: usize, slot: usize, d: usize, out: &mut [f32]) {
    out.par_chunks_exact_mut(d).enumerate().for_each(|(p, row)| {
        let (features, values) = code.token(p);
        add_rows(features, values, weights, slots * d, slot * d, row);
    });
}

#[inline(always)]
fn add_rows_body<const F: bool>(features: &[u32], values: &[f32], weights: &[f32], stride: usize, at: usize, out: &mut [f32]) {
    let d = out.len();
    for (&feature, &value) in features.iter().zip(values) {
        let start = feature as usize * stride + at;
        for (sum, &weight) in out.iter_mut().zip(&weights[start..start + d]) {
            *sum = fma::<F>(value, weight, *sum);
        }
    }
}
simd! {
    /// Adds the weighted rows of `features` (each `stride` apart, from column `at`) to `out`.
    fn add_rows(features: &[u32], values: &[f32], weights: &[f32], stride: usize, at: usize, out: &mut [f32]) = add_rows_body
}
