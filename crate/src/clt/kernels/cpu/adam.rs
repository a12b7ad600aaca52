//! Adam, fused: one pass over weight, moments and gradient. And what Adam would have done to rows
//! that got no gradient for some steps, in one pass too.

#[cfg(target_arch = "x86_64")]
use super::adam512;
use super::lanes::{dot, groups, groups_mut, prefetch, Lanes, N};
use super::moments::{key, pack, unpack, Moments, Scales, Small, BLOCK};
use super::simd;

/// The constants of one optimiser step. Source: Adam (Kingma & Ba 2015), in PyTorch's form:
/// `w -= lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`, and AdamW's decay `w -= lr · decay · w` before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// `lr / (1 − β₁ᵗ)`.
    pub rate: f32,
    /// `1 / √(1 − β₂ᵗ)`.
    pub root: f32,
    /// Factor on the gradient: 1, or less when its norm is clipped.
    pub clip: f32,
    /// Factor on the weight: 1, or `1 − lr · decay`.
    pub keep: f32,
    /// The step's random bits for moments in eight bits.
    pub key: u32,
}

impl AdamStep {
    /// The constants of step `t`, counted from 1.
    pub fn new(lr: f64, betas: (f64, f64), eps: f64, decay: f64, t: u64) -> Self {
        let power = |beta: f64| 1.0 - beta.powf(t as f64);
        AdamStep {
            beta1: betas.0 as f32,
            beta2: betas.1 as f32,
            eps: eps as f32,
            rate: (lr / power(betas.0)) as f32,
            root: (1.0 / power(betas.1).sqrt()) as f32,
            clip: 1.0,
            keep: (1.0 - lr * decay) as f32,
            key: (t as u32).wrapping_mul(0x2545_F491),
        }
    }
}

/// Rows of one parameter and of its moments, `d` long and `stride` apart from `at` on.
pub(crate) struct Rows<'a> {
    pub w: &'a mut [f32],
    pub moments: MomentRows<'a>,
    pub stride: usize,
    pub at: usize,
    pub d: usize,
}

/// The moments of [`Rows`].
pub(crate) enum MomentRows<'a> {
    F32 { m: &'a mut [f32], v: &'a mut [f32] },
    /// `scales` has `⌈stride / BLOCK⌉` entries a row; `at` must be a multiple of [`BLOCK`]. `first`
    /// is the first row's number in the parameter.
    Eight { m: &'a mut [u8], v: &'a mut [u8], scales: &'a mut [Scales], first: usize },
}

/// [`AdamStep`] in lanes.
#[derive(Clone, Copy)]
struct Constants<V> {
    beta1: V,
    beta2: V,
    keep1: V,
    keep2: V,
    eps: V,
    rate: V,
    root: V,
    clip: V,
    keep: V,
}

impl<V: Lanes> Constants<V> {
    #[inline(always)]
    fn of(step: &AdamStep) -> Self {
        Constants {
            beta1: V::splat(step.beta1),
            beta2: V::splat(step.beta2),
            keep1: V::splat(1.0 - step.beta1),
            keep2: V::splat(1.0 - step.beta2),
            eps: V::splat(step.eps),
            rate: V::splat(step.rate),
            root: V::splat(step.root),
            clip: V::splat(step.clip),
            keep: V::splat(step.keep),
        }
    }

    /// One step on eight weights; returns the new ones.
    #[inline(always)]
    fn step(&self, w: &mut [f32; N], m: &mut [f32; N], v: &mut [f32; N], gradient: V, own: V) -> V {
        let old = V::load(w);
        let g = self.clip.mul(own.fma(old, gradient));
        let first = self.beta1.fma(V::load(m), self.keep1.mul(g));
        let second = self.beta2.fma(V::load(v), self.keep2.mul(g).mul(g));
        let new = self.keep.mul(old).sub(self.rate.mul(first).div(second.sqrt().fma(self.root, self.eps)));
        new.store(w);
        first.store(m);
        second.store(v);
        new
    }

    /// One step on slices of equal length, of which what is left after the groups is padded;
    /// returns the sum of squares of the new weights.
    #[inline(always)]
    fn run(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], own: V) -> V {
        let (w, w_rest) = groups_mut(w);
        let (m, m_rest) = groups_mut(m);
        let (v, v_rest) = groups_mut(v);
        let (g, g_rest) = groups(g);
        let mut sum = V::zero();
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let new = self.step(w, m, v, V::load(g), own);
            sum = new.fma(new, sum);
        }
        if !g_rest.is_empty() {
            let n = g_rest.len();
            let mut tail = [[0f32; N]; 4];
            for (lanes, rest) in tail.iter_mut().zip([&*w_rest, &m_rest[..n], &v_rest[..n], g_rest]) {
                lanes[..n].copy_from_slice(rest);
            }
            let [w, m, v, g] = &mut tail;
            let new = self.step(w, m, v, V::load(g), own);
            sum = new.fma(new, sum);
            for (rest, lanes) in [w_rest, &mut m_rest[..n], &mut v_rest[..n]].into_iter().zip(&tail) {
                rest.copy_from_slice(&lanes[..n]);
            }
        }
        sum
    }
}

/// The gradient of some rows: `rows[f] + own[f] · w[f]`; `own` may be empty.
#[derive(Clone, Copy)]
pub(crate) struct Gradient<'a> {
    pub rows: &'a [f32],
    pub own: &'a [f32],
    /// Rows that get none are left as they are; empty when all get one.
    pub touched: &'a [bool],
}

#[inline(always)]
fn adam_body<V: Small>(rows: &mut Rows<'_>, gradient: Gradient<'_>, squares: &mut [f32], step: &AdamStep) -> f64 {
    let (stride, at, d) = (rows.stride, rows.at, rows.d);
    let constants = Constants::<V>::of(step);
    let mut moments = Moments::ZERO;
    let mut norm = 0.0;
    #[cfg(target_arch = "x86_64")]
    let wide = adam512::has();
    for (f, g) in gradient.rows.chunks_exact(d).enumerate() {
        if gradient.touched.get(f) == Some(&false) {
            continue;
        }
        let begin = f * stride + at;
        prefetch(rows.w, begin + stride, d);
        let own = gradient.own.get(f).copied().unwrap_or(0.0);
        let w = &mut rows.w[begin..begin + d];
        norm += f64::from(dot::<V>(g, g));
        if own != 0.0 {
            norm += f64::from(own * (2.0 * dot::<V>(g, w) + own * dot::<V>(w, w)));
        }
        let lanes = V::splat(own);
        let sum = match &mut rows.moments {
            MomentRows::F32 { m, v } => {
                prefetch(m, begin + stride, d);
                prefetch(v, begin + stride, d);
                constants.run(w, &mut m[begin..begin + d], &mut v[begin..begin + d], g, lanes)
            }
            MomentRows::Eight { m, v, scales, first } => {
                prefetch(m, begin + stride, d);
                prefetch(v, begin + stride, d);
                let scales = &mut scales[f * stride.div_ceil(BLOCK) + at / BLOCK..];
                let (m, v) = (&mut m[begin..begin + d], &mut v[begin..begin + d]);
                #[cfg(target_arch = "x86_64")]
                if wide && d.is_multiple_of(BLOCK) {
                    let scales = &mut scales[..d / BLOCK];
                    // SAFETY: `has` said yes; the slices were just cut to d.
                    let square = unsafe { adam512::row(step, w, m, v, scales, (g, own), |block| key(step.key, *first + f, at + block * BLOCK)) };
                    if let Some(all) = squares.get_mut(f) {
                        *all += square;
                    }
                    continue;
                }
                let mut sum = V::zero();
                for (block, (w, g)) in w.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).enumerate() {
                    let codes = block * BLOCK..block * BLOCK + w.len();
                    let key = key(step.key, *first + f, at + block * BLOCK);
                    let (m, v, scales, n) = (&mut m[codes.clone()], &mut v[codes], &mut scales[block], w.len());
                    read_block::<V>(m, v, *scales, &mut moments);
                    sum = sum.add(constants.run(w, &mut moments.m[..n], &mut moments.v[..n], g, lanes));
                    write_block::<V>(&moments, m, v, scales, key);
                }
                sum
            }
        };
        if let Some(square) = squares.get_mut(f) {
            *square += sum.sum();
        }
    }
    norm
}
simd! {
    /// One Adam step on rows; adds the squared norm of each new row to `squares` (may be empty).
    /// Returns the squared norm of the gradient.
    pub(crate) fn adam_rows(rows: &mut Rows<'_>, gradient: Gradient<'_>, squares: &mut [f32], step: &AdamStep) -> f64 = adam_body
}

// No closures around lanes: they would not be compiled for AVX2.

/// Unpacks a block, which may be short; what is beyond it is 0.
#[inline(always)]
fn read_block<V: Small>(m: &[u8], v: &[u8], scales: Scales, moments: &mut Moments) {
    if let (Ok(m), Ok(v)) = (<&[u8; BLOCK]>::try_from(m), <&[u8; BLOCK]>::try_from(v)) {
        return unpack::<V>(m, v, scales, moments);
    }
    let (mut padded_m, mut padded_v) = ([0; BLOCK], [0; BLOCK]);
    padded_m[..m.len()].copy_from_slice(m);
    padded_v[..v.len()].copy_from_slice(v);
    unpack::<V>(&padded_m, &padded_v, scales, moments);
}

/// Packs a block, which may be short.
#[inline(always)]
fn write_block<V: Small>(moments: &Moments, m: &mut [u8], v: &mut [u8], scales: &mut Scales, key: u32) {
    if let (Ok(m), Ok(v)) = (<&mut [u8; BLOCK]>::try_from(&mut *m), <&mut [u8; BLOCK]>::try_from(&mut *v)) {
        return pack::<V>(moments, m, v, scales, key);
    }
    let (mut padded_m, mut padded_v) = ([0; BLOCK], [0; BLOCK]);
    pack::<V>(moments, &mut padded_m, &mut padded_v, scales, key);
    m.copy_from_slice(&padded_m[..m.len()]);
    v.copy_from_slice(&padded_v[..v.len()]);
}

/// What steps without a gradient did to a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// `Σ_i lr_i / (1 − β₁^i) / √(1/(1 − β₂^i)) · (β₁ / √β₂)^i` over these steps, ε being small beside √v.
    pub drift: f32,
    /// β₁ and β₂ to the power of their number.
    pub decay1: f32,
    pub decay2: f32,
    pub eps: f32,
}

#[inline(always)]
fn settle(w: &mut [f32], m: &mut [f32], v: &mut [f32], rest: Rest) {
    for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
        *w -= rest.drift * *m / (v.sqrt() + rest.eps);
        *m *= rest.decay1;
        *v *= rest.decay2;
    }
}

#[inline(always)]
fn rest_body<V: Small>(rows: &mut Rows<'_>, rest: Rest, key_of_step: u32) -> f32 {
    let (begin, d) = (rows.at, rows.d);
    let w = &mut rows.w[begin..begin + d];
    match &mut rows.moments {
        MomentRows::F32 { m, v } => settle(w, &mut m[begin..begin + d], &mut v[begin..begin + d], rest),
        MomentRows::Eight { m, v, scales, first } => {
            let mut moments = Moments::ZERO;
            for (block, w) in w.chunks_mut(BLOCK).enumerate() {
                let at = begin + block * BLOCK;
                let (m, v, scales) = (&mut m[at..at + w.len()], &mut v[at..at + w.len()], &mut scales[begin / BLOCK + block]);
                read_block::<V>(m, v, *scales, &mut moments);
                settle(w, &mut moments.m, &mut moments.v, rest);
                write_block::<V>(&moments, m, v, scales, key(!key_of_step, *first, at));
            }
        }
    }
    dot::<V>(w, w)
}
simd! {
    /// Brings one row (the first of `rows`) up to date after steps without a gradient; returns its
    /// squared norm.
    pub(crate) fn rest_row(rows: &mut Rows<'_>, rest: Rest, key: u32) -> f32 = rest_body
}
