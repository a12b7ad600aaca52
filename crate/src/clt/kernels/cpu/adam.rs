//! Adam, fused: one pass over weight, moments and gradient.

use super::{fma, simd};

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

#[inline(always)]
fn adam_body<const F: bool>(rows: &mut Rows<'_>, gradient: &[f32], own: &[f32], squares: &mut [f32], step: &AdamStep) {
    let (stride, at, d) = (rows.stride, rows.at, rows.d);
    let (keep1, keep2) = (1.0 - step.beta1, 1.0 - step.beta2);
    for (f, g) in gradient.chunks_exact(d).enumerate() {
        let begin = f * stride + at;
        let w = &mut rows.w[begin..begin + d];
        let m = &mut rows.m[begin..begin + d];
        let v = &mut rows.v[begin..begin + d];
        let coefficient = own.get(f).copied().unwrap_or(0.0);
        let mut sums = [0f32; 8];
        let whole = d / 8 * 8;
        let mut update = |i: usize| {
            let g = step.clip * fma::<F>(coefficient, w[i], g[i]);
            let first = fma::<F>(step.beta1, m[i], keep1 * g);
            let second = fma::<F>(step.beta2, v[i], keep2 * g * g);
            let weight = w[i] - step.rate * first / fma::<F>(second.sqrt(), step.root, step.eps);
            m[i] = first;
            v[i] = second;
            w[i] = weight;
            weight
        };
        for group in (0..whole).step_by(8) {
            for lane in 0..8 {
                let weight = update(group + lane);
                sums[lane] = fma::<F>(weight, weight, sums[lane]);
            }
        }
        for i in whole..d {
            let weight = update(i);
            sums[0] += weight * weight;
        }
        if let Some(square) = squares.get_mut(f) {
            *square += sums.iter().sum::<f32>();
        }
    }
}
simd! {
    /// One Adam step on rows whose gradient is `gradient[f] + own[f] · w[f]` (`own` may be empty);
    /// adds the squared norm of each new row to `squares` (may be empty).
    pub(crate) fn adam_rows(rows: &mut Rows<'_>, gradient: &[f32], own: &[f32], squares: &mut [f32], step: &AdamStep) = adam_body
}
