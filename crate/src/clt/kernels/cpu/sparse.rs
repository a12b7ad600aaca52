//! Sparse products of codes with decoder rows, and their transposes.
//!
//! All of them are bound by memory, so each works on a tile of columns: forward token by token,
//! with a token's sums in registers and the tile of the decoder in the second-level cache;
//! backward feature by feature, where a decoder row is read once and meets all tokens on which its
//! feature is active, while the tile of the tokens' rows stays in that cache.

use super::lanes::{axpy, axpy4, dot, prefetch, Lanes, N};
use super::simd;
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
fn add_rows_body<V: Lanes>(features: &[u32], values: &[f32], weights: &[f32], stride: usize, at: usize, out: &mut [f32]) {
    for (&feature, &value) in features.iter().zip(values) {
        let start = feature as usize * stride + at;
        axpy::<V>(value, &weights[start..start + out.len()], out);
    }
}
simd! {
    /// Adds the weighted rows of `features` (each `stride` apart, from column `at`) to `out`.
    fn add_rows(features: &[u32], values: &[f32], weights: &[f32], stride: usize, at: usize, out: &mut [f32]) = add_rows_body
}

/// Where rows lie in a block of weights `[features, slots, d]`: every `stride` from `at`, `d` long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub stride: usize,
    pub at: usize,
    pub d: usize,
}

/// Some columns of a matrix with a row for each token.
#[derive(Clone, Copy)]
pub(crate) struct Slab<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub at: usize,
}

impl<'a> Slab<'a> {
    #[inline(always)]
    fn row(&self, p: u32, width: usize) -> &'a [f32] {
        let begin = p as usize * self.stride + self.at;
        &self.values[begin..begin + width]
    }
}

/// A matrix of which one thread owns some columns.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub *mut f32);
// SAFETY: who holds one writes only the columns that are its own.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

/// Columns that [`decode_tile`] holds in registers.
pub(crate) const TILE: usize = 64;

/// Features whose columns stay in the second-level cache while all tokens pass by.
const FEATURES: u32 = 2048;

#[inline(always)]
fn decode_body<V: Lanes>(code: &LayerCode, features: usize, weights: &[f32], columns: Columns, next: Option<(&[f32], Columns)>, out: Shared, width: usize, cursors: &mut Vec<u32>) {
    let Columns { stride, at, d } = columns;
    cursors.clear();
    cursors.extend_from_slice(&code.offsets[..code.tokens]);
    let mut limit = 0;
    while limit < features as u32 {
        limit += FEATURES;
        for p in 0..code.tokens {
            if let (true, Some((rows, next))) = (limit == FEATURES, next) {
                for f in features * p / code.tokens..features * (p + 1) / code.tokens {
                    prefetch(rows, f * next.stride + next.at, next.d);
                }
            }
            let end = code.offsets[p + 1] as usize;
            let mut entry = cursors[p] as usize;
            // SAFETY: `out` has a row for each token, and these columns of it are the caller's.
            let sums = unsafe { std::slice::from_raw_parts_mut(out.0.add(p * width), d) };
            if let Ok(sums) = <&mut [f32; TILE]>::try_from(&mut *sums) {
                let (groups, _) = sums.as_chunks_mut::<N>();
                let mut held = [V::zero(); TILE / N];
                held.iter_mut().zip(groups.iter()).for_each(|(held, group)| *held = V::load(group));
                while entry < end && code.features[entry] < limit {
                    let begin = code.features[entry] as usize * stride + at;
                    let value = V::splat(code.values[entry]);
                    let (row, _) = weights[begin..begin + TILE].as_chunks::<N>();
                    for (held, group) in held.iter_mut().zip(row) {
                        *held = value.fma(V::load(group), *held);
                    }
                    entry += 1;
                }
                held.iter().zip(groups).for_each(|(held, group)| held.store(group));
            } else {
                while entry < end && code.features[entry] < limit {
                    let begin = code.features[entry] as usize * stride + at;
                    axpy::<V>(code.values[entry], &weights[begin..begin + d], sums);
                    entry += 1;
                }
            }
            cursors[p] = entry as u32;
        }
    }
}
simd! {
    /// `out[p, 0..d] += Σ_f a[p, f] W[f, at..at + d]`, token by token, d at most [`TILE`]. `out`
    /// points at the first of the caller's own columns of a matrix `width` wide. `next` is the tile
    /// that will be decoded after this one: its rows lie far apart, and are fetched meanwhile.
    pub(crate) fn decode_tile(code: &LayerCode, features: usize, weights: &[f32], columns: Columns, next: Option<(&[f32], Columns)>, out: Shared, width: usize, cursors: &mut Vec<u32>) = decode_body
}

#[inline(always)]
fn dots_body<V: Lanes>(lists: &FeatureLists, features: Range<usize>, weights: &[f32], columns: Columns, slab: Slab<'_>, out: &mut [f32]) {
    let Columns { stride, at, d } = columns;
    let base = lists.offsets[features.start] as usize;
    for f in features.clone() {
        let begin = (f - features.start) * stride + at;
        prefetch(weights, begin + stride, d);
        let row = &weights[begin..begin + d];
        for entry in lists.range(f) {
            out[entry - base] += dot::<V>(row, slab.row(lists.tokens[entry], d));
        }
    }
}
simd! {
    /// For each entry (p, f) of a range of features: `out += W[f, at..at + d] · slab[p]`. `weights`
    /// and `out` begin at the range.
    pub(crate) fn dots(lists: &FeatureLists, features: Range<usize>, weights: &[f32], columns: Columns, slab: Slab<'_>, out: &mut [f32]) = dots_body
}

#[inline(always)]
fn gather_body<V: Lanes>(lists: &FeatureLists, coefficients: &[f32], features: Range<usize>, slab: Slab<'_>, d: usize, out: &mut [f32]) {
    let base = lists.offsets[features.start] as usize;
    for (f, row) in features.zip(out.chunks_exact_mut(d)) {
        row.fill(0.0);
        let range = lists.range(f);
        let coefficients = &coefficients[range.start - base..range.end - base];
        let tokens = &lists.tokens[range];
        let (fours, rest) = coefficients.as_chunks::<4>();
        for (values, tokens) in fours.iter().zip(tokens.as_chunks::<4>().0) {
            axpy4::<V>(*values, tokens.map(|p| slab.row(p, d)), row);
        }
        let done = tokens.len() - rest.len();
        for (&value, &p) in rest.iter().zip(&tokens[done..]) {
            axpy::<V>(value, slab.row(p, d), row);
        }
    }
}
simd! {
    /// Gradient rows: `out[f] = Σ_p coefficient[p, f] slab[p]` for a range of features, at whose
    /// first entry `coefficients` begins.
    pub(crate) fn gather_rows(lists: &FeatureLists, coefficients: &[f32], features: Range<usize>, slab: Slab<'_>, d: usize, out: &mut [f32]) = gather_body
}
