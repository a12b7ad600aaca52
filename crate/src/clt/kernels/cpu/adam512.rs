//! Adam on rows with moments in eight bits, a block of 64 weights at a time in AVX-512 registers. To
//! the bit what [`super::adam`] gives in other lanes, but for the order in which squares are added up.

use super::adam::AdamStep;
use super::moments::{base, scale_of, Scales, BLOCK, DEPTH, GOLDEN};
use std::arch::x86_64::*;

const LANES: usize = 16;
const REGISTERS: usize = BLOCK / LANES;

/// Whether the machine has what [`row`] needs.
#[inline(always)]
pub(super) fn has() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// One step on a row of whole blocks, with gradient `g + own · w`; returns the new row's squared norm. `keys` gives
/// each block's random key.
///
/// # Safety
/// [`has`]; all slices as long as `w`, with a pair of scales for each block.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn row(step: &AdamStep, w: &mut [f32], m: &mut [u8], v: &mut [u8], scales: &mut [Scales], (g, own): (&[f32], f32), keys: impl Fn(usize) -> u32) -> f32 {
    let [beta1, beta2, keep1, keep2] = [step.beta1, step.beta2, 1.0 - step.beta1, 1.0 - step.beta2].map(|value| _mm512_set1_ps(value));
    let [eps, rate, root, clip, keep, own] = [step.eps, step.rate, step.root, step.clip, step.keep, own].map(|value| _mm512_set1_ps(value));
    let mut total = _mm512_setzero_ps();
    for (block, scales) in scales.iter_mut().enumerate().take(w.len() / BLOCK) {
        let bases = [base(scales[0], DEPTH[0]), base(scales[1], DEPTH[1])];
        let (mut firsts, mut seconds) = ([_mm512_setzero_ps(); REGISTERS], [_mm512_setzero_ps(); REGISTERS]);
        let (mut most1, mut most2) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for r in 0..REGISTERS {
            let at = block * BLOCK + r * LANES;
            let old = _mm512_loadu_ps(w.as_ptr().add(at));
            let gradient = _mm512_mul_ps(clip, _mm512_fmadd_ps(own, old, _mm512_loadu_ps(g.as_ptr().add(at))));
            let first = _mm512_fmadd_ps(beta1, first(m.as_ptr().add(at), bases[0]), _mm512_mul_ps(keep1, gradient));
            let square = _mm512_mul_ps(_mm512_mul_ps(keep2, gradient), gradient);
            let second = _mm512_fmadd_ps(beta2, second(v.as_ptr().add(at), bases[1]), square);
            let push = _mm512_div_ps(_mm512_mul_ps(rate, first), _mm512_fmadd_ps(_mm512_sqrt_ps(second), root, eps));
            let new = _mm512_sub_ps(_mm512_mul_ps(keep, old), push);
            _mm512_storeu_ps(w.as_mut_ptr().add(at), new);
            total = _mm512_fmadd_ps(new, new, total);
            (firsts[r], seconds[r]) = (first, second);
            most1 = _mm512_max_ps(most1, _mm512_abs_ps(first));
            most2 = _mm512_max_ps(most2, second);
        }
        *scales = [scale_of(_mm512_reduce_max_ps(most1)), scale_of(_mm512_reduce_max_ps(most2))];
        let bases = [base(scales[0], DEPTH[0]), base(scales[1], DEPTH[1])];
        let places = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(GOLDEN as i32));
        let mut random = _mm512_add_epi32(places, _mm512_set1_epi32(keys(block) as i32));
        for r in 0..REGISTERS {
            let at = block * BLOCK + r * LANES;
            let bits = _mm512_srli_epi32::<12>(random);
            random = _mm512_add_epi32(random, _mm512_set1_epi32(GOLDEN.wrapping_mul(LANES as u32) as i32));
            _mm_storeu_si128(m.as_mut_ptr().add(at).cast(), first_codes(firsts[r], bases[0], bits));
            _mm_storeu_si128(v.as_mut_ptr().add(at).cast(), second_codes(seconds[r], bases[1], bits));
        }
    }
    _mm512_reduce_add_ps(total)
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn first(codes: *const u8, base: u32) -> __m512 {
    if base == 0 {
        return _mm512_setzero_ps();
    }
    let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
    let size = _mm512_and_si512(codes, _mm512_set1_epi32(0x7f));
    let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(codes, _mm512_set1_epi32(0x80)));
    let bits = _mm512_or_si512(_mm512_add_epi32(_mm512_slli_epi32::<20>(size), _mm512_set1_epi32(base as i32)), sign);
    _mm512_castsi512_ps(_mm512_maskz_mov_epi32(_mm512_test_epi32_mask(size, size), bits))
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn second(codes: *const u8, base: u32) -> __m512 {
    if base == 0 {
        return _mm512_setzero_ps();
    }
    let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
    let bits = _mm512_add_epi32(_mm512_slli_epi32::<20>(codes), _mm512_set1_epi32(base as i32));
    _mm512_castsi512_ps(_mm512_maskz_mov_epi32(_mm512_test_epi32_mask(codes, codes), bits))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn first_codes(values: __m512, base: u32, random: __m512i) -> __m128i {
    if base == 0 {
        return _mm_setzero_si128();
    }
    let bits = _mm512_castps_si512(values);
    let offset = _mm512_sub_epi32(random, _mm512_set1_epi32(base as i32));
    let size = _mm512_srai_epi32::<20>(_mm512_add_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff)), offset));
    let size = _mm512_max_epi32(_mm512_min_epi32(size, _mm512_set1_epi32(0x7f)), _mm512_setzero_si512());
    _mm512_cvtepi32_epi8(_mm512_or_si512(size, _mm512_and_si512(_mm512_srli_epi32::<24>(bits), _mm512_set1_epi32(0x80))))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn second_codes(values: __m512, base: u32, random: __m512i) -> __m128i {
    if base == 0 {
        return _mm_setzero_si128();
    }
    let offset = _mm512_sub_epi32(random, _mm512_set1_epi32(base as i32));
    let size = _mm512_srai_epi32::<20>(_mm512_add_epi32(_mm512_castps_si512(values), offset));
    _mm512_cvtepi32_epi8(_mm512_min_epi32(_mm512_max_epi32(size, _mm512_set1_epi32(1)), _mm512_set1_epi32(0xff)))
}
