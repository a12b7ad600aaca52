//! The transpose of mixing by attention patterns, for attribution: gradients at queries to gradients
//! at values, causal half only, targets of any length side by side.
//!
//! A block of the pattern, [`KEYS`] keys by [`QUERIES`] queries, is copied once and used for every
//! target; of it [`TILE`] keys by up to 64 columns of a head stand in registers while the queries go by.
//! On the thread that calls: blocks of targets run side by side.

use super::Unmix;
use std::arch::x86_64::*;

const LANES: usize = 16;
const TILE: usize = 6;
const KEYS: usize = 4 * TILE;
const QUERIES: usize = 192;

/// A block of a pattern: rows are queries, columns keys.
struct Block {
    key: usize,
    keys: usize,
    query: usize,
    queries: usize,
    weights: Vec<f32>,
}

/// Adds to `out`, `Σ lengths` rows of `[groups · width]`, what `mixed`, as many rows of `[heads · width]`, sends back.
///
/// # Safety
/// AVX-512F; `width` a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn unmix(shape: Unmix<'_>, pattern: &[f32], mixed: &[f32], out: &mut [f32]) {
    let Unmix { heads, groups, width, keys, lengths } = shape;
    let (from, to, rows) = (heads * width, groups * width, lengths.iter().sum::<usize>());
    let longest = lengths.iter().copied().max().unwrap_or(0);
    assert!(width.is_multiple_of(LANES) && pattern.len() == heads * keys * keys && longest <= keys && mixed.len() == rows * from && out.len() == rows * to);
    let mut block = Block { key: 0, keys: 0, query: 0, queries: 0, weights: vec![0.0; KEYS * QUERIES] };
    for head in 0..heads {
        let pattern = &pattern[head * keys * keys..(head + 1) * keys * keys];
        let group = head * groups / heads;
        for key in (0..longest).step_by(KEYS) {
            for query in (key..longest).step_by(QUERIES) {
                (block.key, block.keys, block.query, block.queries) = (key, KEYS.min(longest - key), query, QUERIES.min(longest - query));
                for (row, weights) in block.weights.chunks_exact_mut(KEYS).enumerate().take(block.queries) {
                    let start = (query + row) * keys + key;
                    // A query sees no later key: whatever the pattern holds there is zero.
                    weights[..block.keys].copy_from_slice(&pattern[start..start + block.keys]);
                    weights[block.keys..].fill(0.0);
                }
                let mut first = 0;
                for &length in lengths {
                    if length > query {
                        let mixed = mixed.as_ptr().add(first * from + head * width);
                        let out = out.as_mut_ptr().add(first * to + group * width);
                        columns(&block, length, width, mixed, from, out, to);
                    }
                    first += length;
                }
            }
        }
    }
}

/// One target's share of a block, all columns of the head.
#[target_feature(enable = "avx512f")]
unsafe fn columns(block: &Block, length: usize, width: usize, mixed: *const f32, from: usize, out: *mut f32, to: usize) {
    let queries = block.queries.min(length - block.query);
    let keys = block.keys.min(length - block.key);
    for first in (0..keys).step_by(TILE) {
        let count = TILE.min(keys - first);
        let weights = block.weights.as_ptr().add(first);
        let (mixed, out) = (mixed.add(block.query * from), out.add((block.key + first) * to));
        let mut column = 0;
        while column < width {
            let (mixed, out) = (mixed.add(column), out.add(column));
            match (width - column) / LANES {
                0 => return,
                1 => tile::<1>(weights, queries, mixed, from, out, to, count),
                2 | 3 => tile::<2>(weights, queries, mixed, from, out, to, count),
                _ => tile::<4>(weights, queries, mixed, from, out, to, count),
            }
            column += LANES * match (width - column) / LANES { 1 => 1, 2 | 3 => 2, _ => 4 };
        }
    }
}

/// `out[key] += Σ_q weights[q, key] · mixed[q]` for [`TILE`] keys, of which `count` are stored.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize>(weights: *const f32, queries: usize, mixed: *const f32, from: usize, out: *mut f32, to: usize, count: usize) {
    let mut sums = [[_mm512_setzero_ps(); M]; TILE];
    for query in 0..queries {
        let row = mixed.add(query * from);
        let mut values = [_mm512_setzero_ps(); M];
        for (m, value) in values.iter_mut().enumerate() {
            *value = _mm512_loadu_ps(row.add(m * LANES));
        }
        let weights = weights.add(query * KEYS);
        for (key, sums) in sums.iter_mut().enumerate() {
            let weight = _mm512_set1_ps(*weights.add(key));
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = _mm512_fmadd_ps(weight, value, *sum);
            }
        }
    }
    for (key, sums) in sums.iter().enumerate().take(count) {
        for (m, sum) in sums.iter().enumerate() {
            let place = out.add(key * to + m * LANES);
            _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), *sum));
        }
    }
}
