//! Causal attention without a pattern in memory: scores, softmax and mix of 48 queries at a time.
//!
//! Lanes are queries, so the softmax needs no sums across lanes, and keys that no query of a panel
//! sees are never computed: half the arithmetic of a full pattern.

use super::held::filled;
use super::product::{panels, write_tile, Panel};
use super::tile::{self, LANES, MOST, OUTS};
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Shapes of one attention.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub groups: usize,
    /// Width of a head, a multiple of 8.
    pub width: usize,
    pub tokens: usize,
    /// Tokens before the first query.
    pub start: usize,
    pub scale: f32,
}

/// `q [B, H, T, h]`, `k` and `v [B, K, start + T, h]` to `[B, T, H·h]`.
///
/// # Safety
/// AVX-512F.
pub(super) unsafe fn causal(shape: Shape, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let Shape { batch, heads, groups, width, tokens, start, .. } = shape;
    let keys = start + tokens;
    let ours = batch * heads * tokens * width;
    assert!(q.len() == ours && k.len() == batch * groups * keys * width && v.len() == k.len() && width.is_multiple_of(OUTS));
    let panels: Vec<Panel> = panels(tokens).collect();
    // Late panels see more keys: they come first, so that the last tasks are small.
    filled(ours, |to| (0..batch * heads * panels.len()).into_par_iter().rev().with_max_len(1).for_each_init(Vec::new, |scratch, task| {
        let (panel, row) = (panels[task / (batch * heads)], task % (batch * heads));
        let (batch, head) = (row / heads, row % heads);
        let group = (batch * groups + head * groups / heads) * keys * width;
        // SAFETY: each task writes its own tokens and head; lengths were checked above.
        unsafe {
            let q = q.as_ptr().add((row * tokens + panel.first) * width);
            let y = to.at((batch * tokens + panel.first) * heads * width + head * width);
            let (k, v) = (k.as_ptr().add(group), v.as_ptr().add(group));
            match panel.registers {
                1 => one::<1>(shape, panel, q, k, v, y, scratch),
                2 => one::<2>(shape, panel, q, k, v, y, scratch),
                _ => one::<{ MOST }>(shape, panel, q, k, v, y, scratch),
            }
        }
    }))
}

/// One panel of queries of one head.
#[target_feature(enable = "avx512f")]
unsafe fn one<const M: usize>(shape: Shape, panel: Panel, q: *const f32, k: *const f32, v: *const f32, y: *mut f32, scratch: &mut Vec<f32>) {
    let Shape { heads, width, start, .. } = shape;
    let (lanes, seen) = (M * LANES, start + panel.first + panel.tokens);
    scratch.resize(scratch.len().max((width + seen) * lanes), 0.0);
    let queries = scratch.as_mut_ptr();
    let scores = queries.add(width * lanes);
    tile::pack(q, width, panel.tokens, width, M, queries);

    let mut most = [_mm512_set1_ps(f32::NEG_INFINITY); M];
    let mut key = 0;
    while key + OUTS <= seen {
        keep(&tile::sums::<M, OUTS>(width, queries, k.add(key * width), width, 1), key, start + panel.first, scores, &mut most);
        key += OUTS;
    }
    for key in key..seen {
        keep(&tile::sums::<M, 1>(width, queries, k.add(key * width), width, 1), key, start + panel.first, scores, &mut most);
    }

    let scale = _mm512_set1_ps(shape.scale);
    let mut total = [_mm512_setzero_ps(); M];
    for key in 0..seen {
        for m in 0..M {
            let place = scores.add((key * M + m) * LANES);
            let weight = tile::exp(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(place), most[m]), scale));
            total[m] = _mm512_add_ps(total[m], weight);
            _mm512_storeu_ps(place, weight);
        }
    }
    let share = total.map(|total| _mm512_div_ps(_mm512_set1_ps(1.0), total));
    for out in (0..width).step_by(OUTS) {
        let mut sums = tile::sums::<M, OUTS>(seen, scores, v.add(out), 1, width);
        for sums in &mut sums {
            for (sum, share) in sums.iter_mut().zip(share) {
                *sum = _mm512_mul_ps(*sum, share);
            }
        }
        write_tile(&sums, y.add(out), heads * width, panel.tokens);
    }
}

/// Stores the scores of keys from `first`, minus infinity where a query (the first at position
/// `from`) does not see the key, and keeps the largest.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn keep<const M: usize, const N: usize>(sums: &tile::Sums<M, N>, first: usize, from: usize, scores: *mut f32, most: &mut [__m512; M]) {
    let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (n, sums) in sums.iter().enumerate() {
        let key = first + n;
        for (m, sum) in sums.iter().enumerate() {
            let mut sum = *sum;
            if key > from {
                let query = _mm512_add_epi32(lane, _mm512_set1_epi32((from + m * LANES) as i32));
                let seen = _mm512_cmpge_epi32_mask(query, _mm512_set1_epi32(key as i32));
                sum = _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), seen, sum);
            }
            most[m] = _mm512_max_ps(most[m], sum);
            _mm512_storeu_ps(scores.add((key * M + m) * LANES), sum);
        }
    }
}
