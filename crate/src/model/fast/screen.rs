//! Which outputs of a linear map exceed a limit: products of inputs and weights rounded to bytes, at nearly
//! four times the rate of f32, or to bfloat16, at nearly twice, with a bound on what the rounding did.
//! Outputs that may exceed their limit are computed exactly, so the rounding decides only how many these
//! are. AVX-512 with bfloat16 only, and with products of bytes where the machine has them.
//!
//! The bound is Cauchy and Schwarz's: with x̂ and ŵ the rounded rows,
//! `|w·x − ŵ·x̂| ≤ ‖w‖ ‖x − x̂‖ + ‖w − ŵ‖ ‖x̂‖`, all four norms measured, and a slack for the rounding of sums.

use super::tile::{self, LANES, MOST, OUTS};
use std::arch::x86_64::*;

/// Outputs whose weights are rounded together: both copies stay in the second-level cache.
pub(crate) const CHUNK: usize = 64;

/// What sums of a few numbers may lose, relative to these.
const SLACK: f32 = 4.0 * f32::EPSILON;

/// Whether the machine and rows of `depth` suit [`Screen`].
pub(crate) fn screens(depth: usize) -> bool {
    depth > 0 && depth.is_multiple_of(32) && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// What inputs and weights are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Grain {
    /// Bytes, each row with a scale of its own: few values far beyond the others cost all of them precision.
    Bytes,
    #[default]
    Bf16,
}

impl Grain {
    /// The coarsest that this machine has products of.
    pub fn coarsest() -> Self {
        if is_x86_feature_detected!("avx512vnni") { Grain::Bytes } else { Grain::Bf16 }
    }

    /// Numbers that take as much room as an f32, and are multiplied in one lane.
    fn packed(self) -> usize {
        if self == Grain::Bytes { 4 } else { 2 }
    }
}

/// Inputs `[tokens, depth]`, rounded and packed in panels.
#[derive(Default)]
pub(crate) struct Screen {
    grain: Grain,
    /// Panels `[depth / 2, 16·M]` of pairs, or `[depth / 4, 16·M]` of bytes from 1 to 255 that stand for −127 to 127.
    panels: Vec<f32>,
    /// Bytes: what 1 stands for in each token's row, padded like the norms.
    scales: Vec<f32>,
    /// Rounded rows, before they are packed.
    rows: Vec<f32>,
    /// ‖x̂‖ and ‖x − x̂‖ with slack, padded to whole registers.
    norms: Vec<f32>,
    errors: Vec<f32>,
    tokens: usize,
    depth: usize,
}

/// What [`Screen::chunk`] found: for each output of the chunk in turn the tokens at which it exceeds the
/// limit, and its values there.
#[derive(Default)]
pub(crate) struct Found {
    pub tokens: Vec<u32>,
    pub values: Vec<f32>,
    /// Where each output's entries end.
    pub ends: Vec<u32>,
    /// Entries that were computed exactly.
    pub looked: usize,
}

/// Rounded weights of a chunk, their norms and losses, a bit for each of its entries.
#[derive(Default)]
pub(crate) struct Rounded {
    weights: Vec<f32>,
    norms: Vec<Row>,
    masks: Vec<u16>,
    near: Vec<u32>,
}

impl Screen {
    /// Rounds and packs `x`; to be called where [`screens`] said yes.
    pub fn fill(&mut self, x: &[f32], depth: usize, grain: Grain) {
        assert!(screens(depth) && x.len().is_multiple_of(depth));
        (self.tokens, self.depth, self.grain) = (x.len() / depth, depth, grain);
        let (padded, half) = (self.tokens.next_multiple_of(LANES), depth / grain.packed());
        self.rows.resize(self.tokens * half, 0.0);
        self.panels.resize(padded * half, 0.0);
        for values in [&mut self.norms, &mut self.errors, &mut self.scales] {
            values.clear();
            values.resize(padded, 0.0);
        }
        for (p, (row, rounded)) in x.chunks_exact(depth).zip(self.rows.chunks_exact_mut(half)).enumerate() {
            // SAFETY: `screens` found the instructions and a depth of whole registers.
            let Row { whole, lost, scale, .. } = unsafe { rounded_row(grain, row, rounded, 128) };
            (self.norms[p], self.errors[p], self.scales[p]) = (whole, lost + depth as f32 * f32::EPSILON * whole, scale);
        }
        for first in (0..self.tokens).step_by(MOST * LANES) {
            let held = (self.tokens - first).min(MOST * LANES);
            // SAFETY: as above; the panel's rows and its part of `panels` exist.
            unsafe { tile::pack(self.rows.as_ptr().add(first * half), half, held, half, held.div_ceil(LANES), self.panels.as_mut_ptr().add(first * half)) };
        }
    }

    /// ‖x̂‖ of each token.
    pub fn norms(&self) -> &[f32] {
        &self.norms[..self.tokens]
    }

    /// How many floors [`Screen::chunk`] wants.
    pub fn padded(&self) -> usize {
        self.norms.len()
    }

    /// Finds where `x wᵀ + bias` exceeds `floors[token] + each[output]`, for at most [`CHUNK`] outputs. `x` is
    /// what [`Screen::fill`] was given; floors are 0 or more, padded as [`Screen::padded`] says; `each` may be
    /// empty. The values are those of [`exact_row`].
    pub fn chunk(&self, x: &[f32], w: &[f32], bias: &[f32], (floors, each): (&[f32], &[f32]), buffers: &mut Rounded, found: &mut Found) {
        let (outs, depth) = (bias.len(), self.depth);
        assert!(outs <= CHUNK && w.len() == outs * depth && x.len() == self.tokens * depth && floors.len() >= self.norms.len() && (each.is_empty() || each.len() == outs));
        let Found { tokens, values, ends, looked } = found;
        let Rounded { weights, norms, masks, near } = buffers;
        let half = depth / self.grain.packed();
        let rows = outs.next_multiple_of(OUTS);
        weights.resize(rows * half, 0.0);
        norms.clear();
        for (row, rounded) in w.chunks_exact(depth).zip(weights.chunks_exact_mut(half)) {
            // SAFETY: `fill` checked the machine and the depth.
            norms.push(unsafe { rounded_row(self.grain, row, rounded, 0) });
        }
        let words = self.tokens.div_ceil(LANES);
        masks.resize(rows * words, 0);
        for first in (0..self.tokens).step_by(MOST * LANES) {
            let registers = (self.tokens - first).div_ceil(LANES).min(MOST);
            for out in (0..outs).step_by(OUTS) {
                let mut limits = [Limit::default(); OUTS];
                for (n, limit) in limits.iter_mut().enumerate().take(outs - out) {
                    let Row { whole, lost, scale, sum } = norms[out + n];
                    let (own, bias) = (each.get(out + n).copied().unwrap_or(0.0), bias[out + n]);
                    *limit = Limit { floor: own - bias - SLACK * (own.abs() + bias.abs()), whole, lost, scale, offset: 128 * sum };
                }
                let place = Place { x: self.panels[first * half..].as_ptr(), w: weights[out * half..].as_ptr(), half };
                let token = Tokens { floors: &floors[first..], errors: &self.errors[first..], norms: &self.norms[first..], scales: &self.scales[first..] };
                let masks = &mut masks[out * words + first / LANES..];
                // SAFETY: as above; panel and weights have the lengths that `place` says.
                unsafe {
                    match (self.grain, registers) {
                        (Grain::Bf16, 1) => above::<1>(place, &limits, token, masks, words),
                        (Grain::Bf16, 2) => above::<2>(place, &limits, token, masks, words),
                        (Grain::Bf16, _) => above::<3>(place, &limits, token, masks, words),
                        (Grain::Bytes, 1) => above_in_bytes::<1>(place, &limits, token, masks, words),
                        (Grain::Bytes, 2) => above_in_bytes::<2>(place, &limits, token, masks, words),
                        (Grain::Bytes, _) => above_in_bytes::<3>(place, &limits, token, masks, words),
                    }
                }
            }
        }
        tokens.clear();
        values.clear();
        ends.clear();
        *looked = 0;
        for (out, masks) in masks.chunks_exact(words).enumerate().take(outs) {
            near.clear();
            for (word, &mask) in masks.iter().enumerate() {
                let mut left = mask;
                while left != 0 {
                    near.push((word * LANES) as u32 + left.trailing_zeros());
                    left &= left - 1;
                }
            }
            while near.last().is_some_and(|&p| p as usize >= self.tokens) {
                near.pop();
            }
            *looked += near.len();
            let (row, floor) = (&w[out * depth..(out + 1) * depth], each.get(out).copied().unwrap_or(0.0));
            for four in near.chunks(4) {
                let at: [usize; 4] = std::array::from_fn(|i| four[i.min(four.len() - 1)] as usize * depth);
                // SAFETY: as above; tokens lie within `x`.
                let products = unsafe { products(row.as_ptr(), at.map(|at| x.as_ptr().add(at)), depth) };
                for (&p, product) in four.iter().zip(products) {
                    let value = product + bias[out];
                    if value > floors[p as usize] + floor {
                        tokens.push(p);
                        values.push(value);
                    }
                }
            }
            ends.push(tokens.len() as u32);
        }
    }
}

/// `out = w x + bias` for one row `x`, to the bit as [`Screen::chunk`] has it; where [`screens`] said yes.
pub(crate) fn exact_row(x: &[f32], w: &[f32], bias: &[f32], out: &mut [f32]) {
    let depth = x.len();
    assert!(screens(depth) && w.len() == bias.len() * depth && out.len() == bias.len());
    for (four, (out, bias)) in out.chunks_mut(4).zip(bias.chunks(4)).enumerate() {
        let at: [usize; 4] = std::array::from_fn(|i| (4 * four + i.min(out.len() - 1)) * depth);
        // SAFETY: `screens` found the instructions; the rows lie within `w`.
        let products = unsafe { products(x.as_ptr(), at.map(|at| w.as_ptr().add(at)), depth) };
        out.iter_mut().zip(bias).zip(products).for_each(|((out, bias), product)| *out = product + bias);
    }
}

/// What became of a rounded row: its norm, that of what it lost, and for bytes what 1 stands for and their sum.
#[derive(Clone, Copy, Default)]
struct Row {
    whole: f32,
    lost: f32,
    scale: f32,
    sum: i32,
}

/// Rounds a row; bytes get `offset` added.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded_row(grain: Grain, row: &[f32], rounded: &mut [f32], offset: i32) -> Row {
    if grain == Grain::Bytes {
        return to_bytes(row, rounded, offset);
    }
    let [whole, lost] = round(row, rounded);
    Row { whole, lost, ..Row::default() }
}

/// As [`round`], to whole multiples, up to 127, of a 127th of the largest entry.
#[target_feature(enable = "avx512f")]
unsafe fn to_bytes(row: &[f32], rounded: &mut [f32], offset: i32) -> Row {
    let mut most = _mm512_setzero_ps();
    for from in row.chunks_exact(LANES) {
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(from.as_ptr())));
    }
    let most = _mm512_reduce_max_ps(most);
    let (scale, back) = if most > 0.0 { (most / 127.0, 127.0 / most) } else { (0.0, 0.0) };
    let (mut whole, mut lost, mut sum) = (_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_si512());
    for (from, to) in row.chunks_exact(LANES).zip(rounded.chunks_exact_mut(LANES / 4)) {
        let exact = _mm512_loadu_ps(from.as_ptr());
        let near = _mm512_cvtps_epi32(_mm512_mul_ps(exact, _mm512_set1_ps(back)));
        sum = _mm512_add_epi32(sum, near);
        _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_add_epi32(near, _mm512_set1_epi32(offset))));
        let near = _mm512_mul_ps(_mm512_cvtepi32_ps(near), _mm512_set1_ps(scale));
        // What is no number stays none: such a row is looked at.
        let gap = _mm512_sub_ps(exact, near);
        whole = _mm512_fmadd_ps(near, near, whole);
        lost = _mm512_fmadd_ps(gap, gap, lost);
    }
    Row { whole: _mm512_reduce_add_ps(whole).sqrt(), lost: _mm512_reduce_add_ps(lost).sqrt(), scale, sum: _mm512_reduce_add_epi32(sum) }
}

/// Rounds a row; returns the norms of what it became and of what it lost; a weight's first is its own norm
/// to within the second, which the slack covers.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round(row: &[f32], rounded: &mut [f32]) -> [f32; 2] {
    let (mut whole, mut lost) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for (from, to) in row.chunks_exact(2 * LANES).zip(rounded.chunks_exact_mut(LANES)) {
        let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(LANES)));
        let pairs: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_ps(to.as_mut_ptr(), _mm512_castsi512_ps(pairs));
        for (exact, half) in [(low, _mm512_castsi512_si256(pairs)), (high, _mm512_extracti64x4_epi64::<1>(pairs))] {
            let near = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
            let gap = _mm512_sub_ps(exact, near);
            whole = _mm512_fmadd_ps(near, near, whole);
            lost = _mm512_fmadd_ps(gap, gap, lost);
        }
    }
    [_mm512_reduce_add_ps(whole).sqrt(), _mm512_reduce_add_ps(lost).sqrt()]
}

/// What an output has to exceed: `floor + floors[token] − whole · errors[token] − lost · norms[token]`.
#[derive(Clone, Copy, Default)]
struct Limit {
    floor: f32,
    whole: f32,
    lost: f32,
    /// Bytes: what a product of 1 and 1 stands for, less the token's part, and what their offset adds to the sum.
    scale: f32,
    offset: i32,
}

#[derive(Clone, Copy)]
struct Place {
    x: *const f32,
    w: *const f32,
    half: usize,
}

#[derive(Clone, Copy)]
struct Tokens<'a> {
    floors: &'a [f32],
    errors: &'a [f32],
    norms: &'a [f32],
    scales: &'a [f32],
}

/// A tile of products, compared at once: a bit for each token of 8 outputs, whose words are `words` apart.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn above<const M: usize>(place: Place, limits: &[Limit; OUTS], tokens: Tokens<'_>, masks: &mut [u16], words: usize) {
    let mut sums = [[_mm512_setzero_ps(); M]; OUTS];
    let (mut x, mut w) = (place.x, place.w);
    for _ in 0..place.half {
        let mut pairs = [_mm512_setzero_ps(); M];
        for (m, pairs) in pairs.iter_mut().enumerate() {
            *pairs = _mm512_loadu_ps(x.add(m * LANES));
        }
        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(8 * M * LANES).cast());
        for (n, sums) in sums.iter_mut().enumerate() {
            let weight: __m512bh = std::mem::transmute(_mm512_set1_ps(*w.add(n * place.half)));
            for (sum, pairs) in sums.iter_mut().zip(pairs) {
                *sum = _mm512_dpbf16_ps(*sum, std::mem::transmute::<__m512, __m512bh>(pairs), weight);
            }
        }
        x = x.add(M * LANES);
        w = w.wrapping_add(1);
    }
    compare(&sums, limits, tokens, masks, words);
}

/// As [`above`], of bytes.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn above_in_bytes<const M: usize>(place: Place, limits: &[Limit; OUTS], tokens: Tokens<'_>, masks: &mut [u16], words: usize) {
    let mut sums = [[_mm512_setzero_si512(); M]; OUTS];
    let (mut x, mut w) = (place.x, place.w);
    for _ in 0..place.half {
        let mut fours = [_mm512_setzero_si512(); M];
        for (m, fours) in fours.iter_mut().enumerate() {
            *fours = _mm512_loadu_si512(x.add(m * LANES).cast());
        }
        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(8 * M * LANES).cast());
        for (n, sums) in sums.iter_mut().enumerate() {
            let weight = _mm512_set1_epi32((*w.add(n * place.half)).to_bits() as i32);
            for (sum, fours) in sums.iter_mut().zip(fours) {
                *sum = _mm512_dpbusd_epi32(*sum, fours, weight);
            }
        }
        x = x.add(M * LANES);
        w = w.wrapping_add(1);
    }
    let mut products = [[_mm512_setzero_ps(); M]; OUTS];
    for ((products, sums), limit) in products.iter_mut().zip(sums).zip(limits) {
        for (m, (product, sum)) in products.iter_mut().zip(sums).enumerate() {
            let scale = _mm512_mul_ps(_mm512_set1_ps(limit.scale), _mm512_loadu_ps(tokens.scales[m * LANES..][..LANES].as_ptr()));
            *product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(limit.offset))), scale);
        }
    }
    compare(&products, limits, tokens, masks, words);
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn compare<const M: usize>(sums: &[[__m512; M]; OUTS], limits: &[Limit; OUTS], tokens: Tokens<'_>, masks: &mut [u16], words: usize) {
    for (n, (sums, limit)) in sums.iter().zip(limits).enumerate() {
        let (whole, lost) = (_mm512_set1_ps(limit.whole + limit.lost), _mm512_set1_ps(limit.lost));
        for (m, sum) in sums.iter().enumerate() {
            let load = |values: &[f32]| _mm512_loadu_ps(values[m * LANES..][..LANES].as_ptr());
            let least = _mm512_fmadd_ps(_mm512_set1_ps(1.0 - SLACK), load(tokens.floors), _mm512_set1_ps(limit.floor));
            let least = _mm512_fnmadd_ps(whole, load(tokens.errors), least);
            let least = _mm512_fnmadd_ps(lost, load(tokens.norms), least);
            // Not below, so that what is no number is looked at too.
            masks[n * words + m] = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(*sum, least);
        }
    }
}

/// Four products with one row of whole registers, each summed in the same order whatever its neighbours.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn products(one: *const f32, four: [*const f32; 4], depth: usize) -> [f32; 4] {
    let mut sums = [_mm512_setzero_ps(); 4];
    for at in (0..depth).step_by(LANES) {
        let values = _mm512_loadu_ps(one.add(at));
        for (sum, row) in sums.iter_mut().zip(four) {
            *sum = _mm512_fmadd_ps(values, _mm512_loadu_ps(row.add(at)), *sum);
        }
    }
    sums.map(|sum| _mm512_reduce_add_ps(sum))
}
