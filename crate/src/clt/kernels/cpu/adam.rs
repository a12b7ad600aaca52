//! Adam, fused: one pass over weight, moments and gradient.

use super::lanes::{groups, groups_mut, prefetch, Lanes, N};
use super::simd;

/// The constants of one optimiser step. Source: Adam (Kingma & Ba 2015), in PyTorch's form:
/// `w -= lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`.
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
}

impl AdamStep {
    /// The constants of step `t`, counted from 1.
    pub fn new(lr: f64, betas: (f64, f64), eps: f64, t: u64) -> Self {
        let power = |beta: f64| 1.0 - beta.powf(t as f64);
        AdamStep {
            beta1: betas.0 as f32,
            beta2: betas.1 as f32,
            eps: eps as f32,
            rate: (lr / power(betas.0)) as f32,
            root: (1.0 / power(betas.1).sqrt()) as f32,
            clip: 1.0,
        }
    }
}

/// Rows of one parameter and of its moments, `d` long and `stride` apart from `at` on.
pub(crate) struct Rows<'a> {
    pub w: &'a mut [f32],
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
    pub stride: usize,
    pub at: usize,
    pub d: usize,
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
        }
    }

    /// One step on eight weights; returns the new ones.
    #[inline(always)]
    fn step(&self, w: &mut [f32; N], m: &mut [f32; N], v: &mut [f32; N], gradient: V, own: V) -> V {
        let old = V::load(w);
        let g = self.clip.mul(own.fma(old, gradient));
        let first = self.beta1.fma(V::load(m), self.keep1.mul(g));
        let second = self.beta2.fma(V::load(v), self.keep2.mul(g).mul(g));
        let new = old.sub(self.rate.mul(first).div(second.sqrt().fma(self.root, self.eps)));
        new.store(w);
        first.store(m);
        second.store(v);
        new
    }
}

#[inline(always)]
fn adam_body<V: Lanes>(rows: &mut Rows<'_>, gradient: &[f32], own: &[f32], squares: &mut [f32], step: &AdamStep) {
    let (stride, at, d) = (rows.stride, rows.at, rows.d);
    let constants = Constants::<V>::of(step);
    for (f, g) in gradient.chunks_exact(d).enumerate() {
        let begin = f * stride + at;
        for values in [&*rows.w, &*rows.m, &*rows.v] {
            prefetch(values, begin + stride, d);
        }
        let (w, w_rest) = groups_mut(&mut rows.w[begin..begin + d]);
        let (m, m_rest) = groups_mut(&mut rows.m[begin..begin + d]);
        let (v, v_rest) = groups_mut(&mut rows.v[begin..begin + d]);
        let (g, g_rest) = groups(g);
        let own = V::splat(own.get(f).copied().unwrap_or(0.0));
        let mut sum = V::zero();
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let new = constants.step(w, m, v, V::load(g), own);
            sum = new.fma(new, sum);
        }
        if !g_rest.is_empty() {
            let n = g_rest.len();
            let mut tail = [[0f32; N]; 4];
            for (lanes, rest) in tail.iter_mut().zip([&*w_rest, &*m_rest, &*v_rest, g_rest]) {
                lanes[..n].copy_from_slice(rest);
            }
            let [w, m, v, g] = &mut tail;
            let new = constants.step(w, m, v, V::load(g), own);
            sum = new.fma(new, sum);
            for (rest, lanes) in [w_rest, m_rest, v_rest].into_iter().zip(&tail) {
                rest.copy_from_slice(&lanes[..n]);
            }
        }
        if let Some(square) = squares.get_mut(f) {
            *square += sum.sum();
        }
    }
}
simd! {
    /// One Adam step on rows whose gradient is `gradient[f] + own[f] · w[f]` (`own` may be empty);
    /// adds the squared norm of each new row to `squares` (may be empty).
    pub(crate) fn adam_rows(rows: &mut Rows<'_>, gradient: &[f32], own: &[f32], squares: &mut [f32], step: &AdamStep) = adam_body
}
