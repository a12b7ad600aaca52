//! Sparse products of codes with decoder rows, and their transposes.
//!
//! All of them are bound by memory, so each works on a tile of columns: forward token by token,
//! with a token's sums in the first-level cache and the tile of the decoder in the second; backward
//! feature by feature, where a decoder row is read once and meets all tokens on which its
//! feature is active, while the tile of the tokens' rows stays in that cache.

use super::lanes::{axpy, axpy2, axpy4, dot, meet4, prefetch, Lanes};
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
    pub(crate) fn add_rows(features: &[u32], values: &[f32], weights: &[f32], stride: usize, at: usize, out: &mut [f32]) = add_rows_body
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
    /// Asks for the rows of the four entries from `entry` on.
    #[inline(always)]
    fn ask(&self, lists: &FeatureLists, entry: usize, width: usize) {
        for &p in lists.tokens.get(entry..entry + 4).unwrap_or_default() {
            prefetch(self.values, p as usize * self.stride + self.at, width);
        }
    }

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

impl Shared {
    /// # Safety
    /// As [`pointer::add`]; what is written there must be the caller's own.
    pub unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// The entries of some tokens' codes whose features lie in a range.
#[derive(Clone)]
pub(crate) struct Part<'a> {
    pub code: &'a LayerCode,
    pub tokens: Range<usize>,
    pub features: Range<u32>,
    /// Features whose columns stay in the second-level cache while all tokens pass by.
    pub round: u32,
}

/// Rows that are asked for before they are needed.
const AHEAD: usize = 4;

/// What [`decode_tile`] keeps between calls.
#[derive(Default)]
pub(crate) struct Tile {
    /// Where each token's next entry is.
    cursors: Vec<u32>,
    /// The columns of one round's features side by side: in the decoder they lie a row apart, often
    /// a multiple of a page, and would compete for a few sets of the cache.
    packed: Vec<f32>,
}

#[inline(always)]
fn decode_body<V: Lanes>(part: &Part<'_>, weights: &[f32], columns: Columns, out: Shared, width: usize, tile: &mut Tile) {
    let Part { code, tokens, features, round } = part;
    let Columns { stride, at, d } = columns;
    let Tile { cursors, packed } = tile;
    cursors.clear();
    cursors.extend(tokens.clone().map(|p| {
        let from = code.offsets[p] as usize;
        let below = if features.start == 0 { 0 } else { code.features[from..code.offsets[p + 1] as usize].partition_point(|&f| f < features.start) };
        (from + below) as u32
    }));
    let rounds = (features.len() as u32) > *round;
    let mut limit = features.start;
    while limit < features.end {
        let first = limit;
        limit = limit.saturating_add(*round).min(features.end);
        let (rows, stride, at, first) = if rounds {
            packed.clear();
            for f in first as usize..limit as usize {
                prefetch(weights, (f + AHEAD) * stride + at, d);
                packed.extend_from_slice(&weights[f * stride + at..][..d]);
            }
            (packed.as_slice(), d, 0, first as usize)
        } else {
            (weights, stride, at, 0)
        };
        let row = |f: u32| &rows[(f as usize - first) * stride + at..][..d];
        for (cursor, p) in cursors.iter_mut().zip(tokens.clone()) {
            let mut entry = *cursor as usize;
            let end = entry + code.features[entry..code.offsets[p + 1] as usize].iter().take_while(|&&f| f < limit).count();
            *cursor = end as u32;
            // SAFETY: `out` has a row for each token, and these columns of it are the caller's.
            let sums = unsafe { std::slice::from_raw_parts_mut(out.0.add(p * width), d) };
            while entry + 4 <= end {
                let at: [usize; 4] = std::array::from_fn(|i| entry + i);
                axpy4::<V>(at.map(|at| code.values[at]), at.map(|at| row(code.features[at])), sums);
                entry += 4;
            }
            if entry + 2 <= end {
                let at = [entry, entry + 1];
                axpy2::<V>(at.map(|at| code.values[at]), at.map(|at| row(code.features[at])), sums);
                entry += 2;
            }
            if entry < end {
                axpy::<V>(code.values[entry], row(code.features[entry]), sums);
            }
        }
    }
}
simd! {
    /// `out[p, 0..d] += Σ_f a[p, f] W[f, at..at + d]` over the entries of `part`. `out` points at the
    /// first of the caller's own columns of a matrix `width` wide.
    pub(crate) fn decode_tile(part: &Part<'_>, weights: &[f32], columns: Columns, out: Shared, width: usize, tile: &mut Tile) = decode_body
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
fn meet_body<V: Lanes>(lists: &FeatureLists, features: Range<usize>, weights: &[f32], columns: Columns, slab: Slab<'_>, products: &mut [f32], out: &mut [f32]) {
    let Columns { stride, at, d } = columns;
    let base = lists.offsets[features.start] as usize;
    for (f, gradient) in features.clone().zip(out.chunks_exact_mut(d)) {
        let begin = (f - features.start) * stride + at;
        prefetch(weights, begin + 2 * stride, d);
        let row = &weights[begin..begin + d];
        gradient.fill(0.0);
        let range = lists.range(f);
        let products = &mut products[range.start - base..range.end - base];
        let (coefficients, tokens) = (&lists.values[range.clone()], &lists.tokens[range.clone()]);
        let (fours, rest) = coefficients.as_chunks::<4>();
        for (four, ((values, tokens), products)) in fours.iter().zip(tokens.as_chunks::<4>().0).zip(products.as_chunks_mut::<4>().0).enumerate() {
            slab.ask(lists, range.start + 4 * four + 4, d);
            let dots = meet4::<V>(*values, tokens.map(|p| slab.row(p, d)), row, gradient);
            products.iter_mut().zip(dots).for_each(|(product, dot)| *product += dot);
        }
        let done = tokens.len() - rest.len();
        for ((&value, &p), product) in rest.iter().zip(&tokens[done..]).zip(&mut products[done..]) {
            let other = slab.row(p, d);
            *product += dot::<V>(row, other);
            axpy::<V>(value, other, gradient);
        }
    }
}
simd! {
    /// [`dots`] with the weights as they are, and [`gather_rows`] with the activations, in one pass
    /// over the slab: `products += W[f] · slab[p]`, `out[f] = Σ_p a[p, f] slab[p]`.
    pub(crate) fn meet(lists: &FeatureLists, features: Range<usize>, weights: &[f32], columns: Columns, slab: Slab<'_>, products: &mut [f32], out: &mut [f32]) = meet_body
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
