//! Adam's moments in eight bits: small floating-point numbers, rounded at random.
//!
//! Blocks of [`BLOCK`] neighbouring weights share an exponent, that of the block's largest value.
//! A first moment is sign, 4 bits of exponent below it and 3 of mantissa; a second one 5 and 3, and
//! never 0 where the block is not, so that no step is divided by nothing. What lies between two
//! numbers goes to either with the probability that keeps the mean, so that a running mean moves
//! even where one step moves it by less than the spacing of the numbers. The random bits follow from
//! step, row and column: a result depends on no thread and no tile.

use super::lanes::{Lanes, Portable, N};

/// Weights that share exponents.
pub(crate) const BLOCK: usize = 64;

/// Both moments of one block.
#[repr(align(64))]
pub(crate) struct Moments {
    pub m: [f32; BLOCK],
    pub v: [f32; BLOCK],
}

impl Moments {
    pub const ZERO: Moments = Moments { m: [0.0; BLOCK], v: [0.0; BLOCK] };
}

/// The exponents (as f32 has them) of a block's largest first and second moment; 0 where all are 0.
pub(crate) type Scales = [u8; 2];

/// Exponent steps below the block's largest that a first and a second moment have.
pub(super) const DEPTH: [u32; 2] = [15, 31];

/// A golden section of 2³², by which the random bits of neighbours differ.
pub(super) const GOLDEN: u32 = 0x9E37_79B1;

/// Bits of the number of code 0, which stands for 0 itself; 0 where a block has nothing else.
#[inline(always)]
pub(super) fn base(scale: u8, depth: u32) -> u32 {
    u32::from(scale).saturating_sub(depth) << 23
}

/// Eight codes to eight numbers and back.
pub(crate) trait Small: Lanes {
    /// First moments; `base` is not 0.
    fn first(codes: &[u8; N], base: u32) -> Self;
    /// Second moments; `base` is not 0.
    fn second(codes: &[u8; N], base: u32) -> Self;
    /// The codes of first moments; `random` has 20 bits.
    fn first_codes(self, base: u32, random: &[u32; N]) -> [u8; N];
    /// The codes of second moments.
    fn second_codes(self, base: u32, random: &[u32; N]) -> [u8; N];
    /// The larger size in each lane.
    fn larger(self, other: Self) -> Self;
}

impl Small for Portable {
    #[inline(always)]
    fn first(codes: &[u8; N], base: u32) -> Self {
        Portable::load(&codes.map(|code| {
            let size = u32::from(code) & 0x7f;
            f32::from_bits(if size == 0 { 0 } else { ((size << 20) + base) | (u32::from(code & 0x80) << 24) })
        }))
    }
    #[inline(always)]
    fn second(codes: &[u8; N], base: u32) -> Self {
        Portable::load(&codes.map(|code| f32::from_bits(if code == 0 { 0 } else { (u32::from(code) << 20) + base })))
    }
    #[inline(always)]
    fn first_codes(self, base: u32, random: &[u32; N]) -> [u8; N] {
        let values = self.array();
        std::array::from_fn(|i| {
            let bits = values[i].to_bits();
            let above = (bits & 0x7fff_ffff) as i32 - base as i32 + random[i] as i32;
            (above >> 20).clamp(0, 0x7f) as u8 | ((bits >> 24) & 0x80) as u8
        })
    }
    #[inline(always)]
    fn second_codes(self, base: u32, random: &[u32; N]) -> [u8; N] {
        let values = self.array();
        std::array::from_fn(|i| ((values[i].to_bits() as i32 - base as i32 + random[i] as i32) >> 20).clamp(1, 0xff) as u8)
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        let (a, b) = (self.array(), other.array());
        Portable::load(&std::array::from_fn(|i| a[i].abs().max(b[i].abs())))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::super::lanes::Avx2;
    use super::*;
    use std::arch::x86_64::*;

    /// The low bytes of eight 32-bit lanes, with what the two packs make of larger ones.
    // SAFETY, here and below: `simd!` names `Avx2` only after it found AVX2.
    #[inline(always)]
    fn bytes(packed: __m256i) -> [u8; N] {
        unsafe {
            let both = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
            _mm_cvtsi128_si64(_mm256_castsi256_si128(both)).to_le_bytes()
        }
    }

    impl Small for Avx2 {
        #[inline(always)]
        fn first(codes: &[u8; N], base: u32) -> Self {
            unsafe {
                let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast()));
                let size = _mm256_slli_epi32::<20>(_mm256_and_si256(codes, _mm256_set1_epi32(0x7f)));
                let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(codes, _mm256_set1_epi32(0x80)));
                let bits = _mm256_or_si256(_mm256_add_epi32(size, _mm256_set1_epi32(base as i32)), sign);
                Avx2::of(_mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpeq_epi32(size, _mm256_setzero_si256()), bits)))
            }
        }
        #[inline(always)]
        fn second(codes: &[u8; N], base: u32) -> Self {
            unsafe {
                let size = _mm256_slli_epi32::<20>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast())));
                let bits = _mm256_add_epi32(size, _mm256_set1_epi32(base as i32));
                Avx2::of(_mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpeq_epi32(size, _mm256_setzero_si256()), bits)))
            }
        }
        #[inline(always)]
        fn first_codes(self, base: u32, random: &[u32; N]) -> [u8; N] {
            unsafe {
                let bits = _mm256_castps_si256(self.register());
                let offset = _mm256_sub_epi32(_mm256_loadu_si256(random.as_ptr().cast()), _mm256_set1_epi32(base as i32));
                let size = _mm256_srai_epi32::<20>(_mm256_add_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff)), offset));
                let size = _mm256_max_epi32(_mm256_min_epi32(size, _mm256_set1_epi32(0x7f)), _mm256_setzero_si256());
                let codes = _mm256_or_si256(size, _mm256_and_si256(_mm256_srli_epi32::<24>(bits), _mm256_set1_epi32(0x80)));
                let words = _mm256_packus_epi32(codes, codes);
                bytes(_mm256_packus_epi16(words, words))
            }
        }
        #[inline(always)]
        fn second_codes(self, base: u32, random: &[u32; N]) -> [u8; N] {
            unsafe {
                let bits = _mm256_castps_si256(self.register());
                let offset = _mm256_sub_epi32(_mm256_loadu_si256(random.as_ptr().cast()), _mm256_set1_epi32(base as i32));
                let size = _mm256_max_epi32(_mm256_srai_epi32::<20>(_mm256_add_epi32(bits, offset)), _mm256_set1_epi32(1));
                let words = _mm256_packus_epi32(size, size);
                // Saturates at 255.
                bytes(_mm256_packus_epi16(words, words))
            }
        }
        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            unsafe {
                let sign = _mm256_set1_ps(-0.0);
                Avx2::of(_mm256_max_ps(_mm256_andnot_ps(sign, self.register()), _mm256_andnot_ps(sign, other.register())))
            }
        }
    }
}

#[inline(always)]
pub(crate) fn unpack<V: Small>(m: &[u8; BLOCK], v: &[u8; BLOCK], scales: Scales, out: &mut Moments) {
    let bases = [base(scales[0], DEPTH[0]), base(scales[1], DEPTH[1])];
    for (out, codes) in out.m.as_chunks_mut::<N>().0.iter_mut().zip(m.as_chunks::<N>().0) {
        let values = if bases[0] == 0 { V::zero() } else { V::first(codes, bases[0]) };
        values.store(out);
    }
    for (out, codes) in out.v.as_chunks_mut::<N>().0.iter_mut().zip(v.as_chunks::<N>().0) {
        let values = if bases[1] == 0 { V::zero() } else { V::second(codes, bases[1]) };
        values.store(out);
    }
}

/// As [`unpack`], for whoever has no kernel around it.
pub(crate) fn unpack_block(m: &[u8; BLOCK], v: &[u8; BLOCK], scales: Scales) -> Moments {
    let mut out = Moments::ZERO;
    unpack::<Portable>(m, v, scales, &mut out);
    out
}

/// The exponent for a block whose largest value is `largest`: with room for rounding it up.
#[inline(always)]
pub(super) fn scale_of(largest: f32) -> u8 {
    ((largest * 1.07).to_bits() >> 23) as u8
}

#[inline(always)]
fn scale<V: Small>(values: &[f32; BLOCK]) -> u8 {
    let mut most = V::zero();
    for values in values.as_chunks::<N>().0 {
        most = most.larger(V::load(values));
    }
    let largest = most.array().iter().fold(0f32, |most, &value| most.max(value));
    scale_of(largest)
}

#[inline(always)]
pub(crate) fn pack<V: Small>(moments: &Moments, m: &mut [u8; BLOCK], v: &mut [u8; BLOCK], scales: &mut Scales, key: u32) {
    *scales = [scale::<V>(&moments.m), scale::<V>(&moments.v)];
    let bases = [base(scales[0], DEPTH[0]), base(scales[1], DEPTH[1])];
    let mut random: [u32; N] = std::array::from_fn(|i| key.wrapping_add((i as u32).wrapping_mul(GOLDEN)));
    let rounds = moments.m.as_chunks::<N>().0.iter().zip(moments.v.as_chunks::<N>().0);
    for ((m, v), (first, second)) in m.as_chunks_mut::<N>().0.iter_mut().zip(v.as_chunks_mut::<N>().0).zip(rounds) {
        let bits = random.map(|random| random >> 12);
        *m = if bases[0] == 0 { [0; N] } else { V::load(first).first_codes(bases[0], &bits) };
        *v = if bases[1] == 0 { [0; N] } else { V::load(second).second_codes(bases[1], &bits) };
        random = random.map(|random| random.wrapping_add(GOLDEN.wrapping_mul(N as u32)));
    }
}

/// Random bits for one block: from the step's key, the row and the block's place in it.
#[inline(always)]
pub(crate) fn key(step: u32, row: usize, column: usize) -> u32 {
    let mut h = step ^ (row as u32).wrapping_mul(0x9E37_79B1) ^ (column as u32).wrapping_mul(0xC2B2_AE3D);
    h ^= h >> 16;
    h = h.wrapping_mul(0x7FEB_352D);
    h ^= h >> 15;
    h.wrapping_mul(0x846C_A68B)
}
