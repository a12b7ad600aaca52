//! Sparse products of codes with decoder rows, and their transposes.
//!
//! The training kernels go feature by feature: one decoder row is read once and meets all tokens
//! on which its feature is active, while the rows of those tokens stay in the second-level cache.

use super::{dot, fma, simd};
use crate::clt::sparse::{FeatureLists, LayerCode};
use rayon::prelude::*;
use std::ops::Range;

/// Adds `Σ_f a[p, f] W[f, slot, :]` to row `p` of `out` `[tokens, d]`; `weights` is `[F, slots, d]`.
pub(crate) fn decode_rows(code: &LayerCode, weights: &[f32], slots: usize, slot: usize, d: usize, out: &mut [f32]) {
    out.par_chunks_exact_mut(d).enumerate().for_each(|(p, row)| {
        let (features, values) = code.token(p);
        add_rows(features, values, weights, slots * d, slot * d, row);
    });
}

#[inline(always)]
fn add_rows_body<const F: bool>(features: &[u32], values: &[f32], weights: &[f32], stride: usize, at: usize, out: &mut [f32]) {
    for (&feature, &value) in features.iter().zip(values) {
        let start = feature as usize * stride + at;
        axpy::<F>(value, &weights[start..start + out.len()], out);
    }
}
simd! {
    /// Adds the weighted rows of `features` (each `stride` apart, from column `at`) to `out`.
    fn add_rows(features: &[u32], values: &[f32], weights: &[f32], stride: usize, at: usize, out: &mut [f32]) = add_rows_body
}

#[inline(always)]
fn axpy<const F: bool>(value: f32, row: &[f32], out: &mut [f32]) {
    for (sum, &weight) in out.iter_mut().zip(row) {
        *sum = fma::<F>(value, weight, *sum);
    }
}

/// Where rows lie in a block of weights `[features, slots, d]`: every `stride` from `at`, `d` long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub stride: usize,
    pub at: usize,
    pub d: usize,
}

/// A matrix `[tokens, width]` of which one thread owns some columns.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub *mut f32);
// SAFETY: `scatter` writes only the columns that its caller says are its own.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

#[inline(always)]
fn scatter_body<const F: bool>(lists: &FeatureLists, weights: &[f32], columns: Columns, out: Shared, width: usize) {
    let Columns { stride, at, d } = columns;
    for f in 0..lists.offsets.len() - 1 {
        let range = lists.range(f);
        if range.is_empty() {
            continue;
        }
        let row = &weights[f * stride + at..f * stride + at + d];
        for (&p, &value) in lists.tokens[range.clone()].iter().zip(&lists.values[range]) {
            // SAFETY: tokens are rows of `out`, whose columns the caller has to itself.
            let sums = unsafe { std::slice::from_raw_parts_mut(out.0.add(p as usize * width), d) };
            axpy::<F>(value, row, sums);
        }
    }
}
simd! {
    /// `out[p, 0..d] += Σ_f a[p, f] W[f, at..at + d]`, feature by feature. `out` points at the first
    /// of the caller's own columns of a matrix `width` wide, with a row for every token.
    pub(crate) fn scatter(lists: &FeatureLists, weights: &[f32], columns: Columns, out: Shared, width: usize) = scatter_body
}

#[inline(always)]
fn dots_body<const F: bool>(lists: &FeatureLists, features: Range<usize>, weights: &[f32], columns: Columns, slab: &[f32], out: &mut [f32]) {
    let Columns { stride, at, d } = columns;
    let base = lists.offsets[features.start] as usize;
    for f in features.clone() {
        let begin = (f - features.start) * stride + at;
        let row = &weights[begin..begin + d];
        for entry in lists.range(f) {
            let p = lists.tokens[entry] as usize;
            out[entry - base] += dot::<F>(row, &slab[p * d..(p + 1) * d]);
        }
    }
}
simd! {
    /// For each entry (p, f) of a range of features: `out += W[f, at..at + d] · slab[p]`. `weights`
    /// and `out` begin at the range; `slab` is `[tokens, d]`.
    pub(crate) fn dots(lists: &FeatureLists, features: Range<usize>, weights: &[f32], columns: Columns, slab: &[f32], out: &mut [f32]) = dots_body
}

#[inline(always)]
fn gather_body<const F: bool>(lists: &FeatureLists, coefficients: &[f32], features: Range<usize>, slab: &[f32], d: usize, out: &mut [f32]) {
    let base = lists.offsets[features.start] as usize;
    for (f, row) in features.zip(out.chunks_exact_mut(d)) {
        row.fill(0.0);
        let range = lists.range(f);
        let coefficients = &coefficients[range.start - base..range.end - base];
        let token = |p: u32| &slab[p as usize * d..(p as usize + 1) * d];
        let tokens = &lists.tokens[range];
        let (fours, rest) = coefficients.as_chunks::<4>();
        for (values, tokens) in fours.iter().zip(tokens.as_chunks::<4>().0) {
            let [a, b, c, e] = tokens.map(token);
            for (i, sum) in row.iter_mut().enumerate() {
                let first = fma::<F>(values[0], a[i], fma::<F>(values[1], b[i], *sum));
                *sum = fma::<F>(values[2], c[i], fma::<F>(values[3], e[i], first));
            }
        }
        let done = tokens.len() - rest.len();
        for (&value, &p) in rest.iter().zip(&tokens[done..]) {
            axpy::<F>(value, token(p), row);
        }
    }
}
simd! {
    /// Gradient rows: `out[f] = Σ_p coefficient[p, f] slab[p]` for a range of features, at whose
    /// first entry `coefficients` begins.
    pub(crate) fn gather_rows(lists: &FeatureLists, coefficients: &[f32], features: Range<usize>, slab: &[f32], d: usize, out: &mut [f32]) = gather_body
}
