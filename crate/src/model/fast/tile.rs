//! The matrix product's inner part: 8 outputs of up to 48 tokens, kept in registers.
//!
//! Lanes are tokens. `x` is packed in panels of 16·M tokens, `[depth, 16·M]`, and one weight is
//! broadcast to all of them, so weights are read as they lie in the model: nothing is packed or
//! kept twice. At M = 3 a step of depth is 24 multiply-adds for 11 loads, so the multiply-adds
//! bound it. AVX-512 only; every function needs it checked by the caller.

use std::arch::x86_64::*;

/// Tokens in a register.
pub(super) const LANES: usize = 16;
/// Outputs in a tile.
pub(super) const OUTS: usize = 8;
/// Registers of tokens in a full panel.
pub(super) const MOST: usize = 3;

/// Sums of a tile: `[output][register of tokens]`.
pub(super) type Sums<const M: usize, const N: usize> = [[__m512; M]; N];

/// `Σ_k x[k] · w[n · row + k · step]` for N outputs.
///
/// # Safety
/// AVX-512F; `x` holds `depth · 16 · M` values; every weight addressed exists.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn sums<const M: usize, const N: usize>(depth: usize, x: *const f32, w: *const f32, row: usize, step: usize) -> Sums<M, N> {
    let mut sums = [[_mm512_setzero_ps(); M]; N];
    let (mut x, mut w) = (x, w);
    for _ in 0..depth {
        let mut tokens = [_mm512_setzero_ps(); M];
        for (m, tokens) in tokens.iter_mut().enumerate() {
            *tokens = _mm512_loadu_ps(x.add(m * LANES));
        }
        _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(8 * M * LANES).cast());
        for (n, sums) in sums.iter_mut().enumerate() {
            let weight = _mm512_set1_ps(*w.add(n * row));
            for (sum, tokens) in sums.iter_mut().zip(tokens) {
                *sum = _mm512_fmadd_ps(tokens, weight, *sum);
            }
        }
        x = x.add(M * LANES);
        w = w.wrapping_add(step);
    }
    sums
}

/// Transposes four registers within their 128-bit parts: lane `4L + i` of `v[j]` to lane `4L + j`
/// of the result's `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn(v: [__m512; 4]) -> [__m512; 4] {
    let (a, b) = (_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    let (c, d) = (_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    [
        _mm512_shuffle_ps::<0b01_00_01_00>(a, c),
        _mm512_shuffle_ps::<0b11_10_11_10>(a, c),
        _mm512_shuffle_ps::<0b01_00_01_00>(b, d),
        _mm512_shuffle_ps::<0b11_10_11_10>(b, d),
    ]
}

/// Writes four outputs of 16 tokens as rows: token `t` to `y[t · stride ..][..4]`, first `tokens` only.
///
/// # Safety
/// AVX-512F; the rows written exist.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write_rows(v: [__m512; 4], y: *mut f32, stride: usize, tokens: usize) {
    let turned = turn(v);
    for (i, v) in turned.into_iter().enumerate() {
        let parts = [
            _mm512_extractf32x4_ps::<0>(v),
            _mm512_extractf32x4_ps::<1>(v),
            _mm512_extractf32x4_ps::<2>(v),
            _mm512_extractf32x4_ps::<3>(v),
        ];
        for (part, v) in parts.into_iter().enumerate() {
            if 4 * part + i < tokens {
                _mm_storeu_ps(y.add((4 * part + i) * stride), v);
            }
        }
    }
}

/// Packs rows `[tokens, depth]` (`stride` apart) as `[depth, 16·M]`; lanes beyond the last token
/// repeat it. `depth` is a multiple of 4.
///
/// # Safety
/// AVX-512F; at least one token; the rows and `depth · 16 · M` values of `to` exist.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack(rows: *const f32, stride: usize, tokens: usize, depth: usize, registers: usize, to: *mut f32) {
    for m in 0..registers {
        let row = |lane: usize| rows.add((m * LANES + lane).min(tokens - 1) * stride);
        for k in (0..depth).step_by(4) {
            let mut v = [_mm512_setzero_ps(); 4];
            for (i, v) in v.iter_mut().enumerate() {
                let part = |part: usize| _mm_loadu_ps(row(4 * part + i).add(k));
                *v = _mm512_castps128_ps512(part(0));
                *v = _mm512_insertf32x4::<1>(*v, part(1));
                *v = _mm512_insertf32x4::<2>(*v, part(2));
                *v = _mm512_insertf32x4::<3>(*v, part(3));
            }
            for (j, v) in turn(v).into_iter().enumerate() {
                _mm512_storeu_ps(to.add(((k + j) * registers + m) * LANES), v);
            }
        }
    }
}

/// `eˣ`, within 2 units in the last place; 0 below -87, the value at 88 above it.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp(x: __m512) -> __m512 {
    // In this order and form both keep what is not a number.
    let x = _mm512_min_ps(_mm512_set1_ps(88.0), x);
    let seen = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-87.0));
    let turns = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first exact in a product with any exponent.
    let rest = _mm512_fnmadd_ps(turns, _mm512_set1_ps(0.693_359_4), x);
    let rest = _mm512_fmadd_ps(turns, _mm512_set1_ps(2.121_944_4e-4), rest);
    // Taylor to the seventh power: 1e-8 relative for |rest| ≤ ln 2 / 2.
    let mut sum = _mm512_set1_ps(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(coefficient));
    }
    _mm512_maskz_scalef_ps(seen, sum, turns)
}
