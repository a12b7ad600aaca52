//! The terms of the loss, elementwise.

use super::lanes::{dot, groups, Lanes, N};
use super::simd;
/// Columns of which sums are kept side by side.
pub(crate) const TILE: usize = 64;

/// Sums over the tokens, column by column.
pub(crate) struct ColumnSums {
    pub errors: [f32; TILE],
    pub targets: [f32; TILE],
    pub squares: [f32; TILE],
    pub gradient: [f32; TILE],
}

impl ColumnSums {
    pub const ZERO: ColumnSums = ColumnSums { errors: [0.0; TILE], targets: [0.0; TILE], squares: [0.0; TILE], gradient: [0.0; TILE] };

    /// Error and variance over `tokens` tokens.
    pub fn total(&self, tokens: usize) -> Residual {
        let total = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
        let means: f64 = self.targets.iter().map(|&s| f64::from(s) * f64::from(s)).sum::<f64>() / tokens as f64;
        Residual { error: total(&self.errors), variance: total(&self.squares) - means }
    }
}

/// Squared error and variance of a target layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Residual {
    /// `Σ (ŷ − y)²`.
    pub error: f64,
    /// `Σ (y − ȳ)²`, ȳ the mean over the tokens.
    pub variance: f64,
}

impl std::ops::AddAssign for Residual {
    fn add_assign(&mut self, other: Self) {
        self.error += other.error;
        self.variance += other.variance;
    }
}

#[inline(always)]
fn residual_body<V: Lanes>(output: &mut [f32], target: &[f32], scale: f32, sums: &mut ColumnSums) {
    // Sums have a fixed width, so that no bound is checked inside.
    for (i, (output, &y)) in output.iter_mut().zip(target).enumerate().take(TILE) {
        let error = *output - y;
        *output = scale * error;
        sums.errors[i] += error * error;
        sums.targets[i] += y;
        sums.squares[i] += y * y;
        sums.gradient[i] += *output;
    }
}
simd! {
    /// Turns one row of reconstruction (at most [`TILE`] long) into the gradient
    /// `scale (ŷ − y)` and adds to the column sums.
    pub(crate) fn residual(output: &mut [f32], target: &[f32], scale: f32, sums: &mut ColumnSums) = residual_body
}

#[inline(always)]
fn squares_body<V: Lanes>(gradient: &[f32], weights: &[f32], stride: usize, at: usize, d: usize, own: &[f32], out: &mut [f32]) {
    for (f, (g, out)) in gradient.chunks_exact(d).zip(out).enumerate() {
        let coefficient = own.get(f).copied().unwrap_or(0.0);
        if coefficient == 0.0 {
            // Mostly so: then the weights need not be read.
            *out += dot::<V>(g, g);
            continue;
        }
        let begin = f * stride + at;
        let (own, mut sum) = (V::splat(coefficient), V::zero());
        let ((g, g_rest), (w, w_rest)) = (groups(g), groups(&weights[begin..begin + d]));
        for (g, w) in g.iter().zip(w) {
            let value = own.fma(V::load(w), V::load(g));
            sum = value.fma(value, sum);
        }
        let rest = g_rest.iter().zip(w_rest).map(|(g, w)| (g + coefficient * w) * (g + coefficient * w)).sum::<f32>();
        *out += sum.sum() + rest;
    }
}
simd! {
    /// Adds `‖gradient[f] + own[f] · w[f]‖²` to `out[f]`; weights as in [`super::sparse::Columns`].
    pub(crate) fn square_rows(gradient: &[f32], weights: &[f32], stride: usize, at: usize, d: usize, own: &[f32], out: &mut [f32]) = squares_body
}

/// `tanh` of numbers that are not negative, to 2e-7 absolute: `1 − 2 / (e^{2x} + 1)` with `e^x`
/// from its Taylor polynomial after reduction by powers of two.
#[inline(always)]
fn tanh<V: Lanes>(x: V) -> V {
    let scaled = x.array().map(|x| if x < 10.0 { x * (2.0 * std::f32::consts::LOG2_E) } else { 20.0 * std::f32::consts::LOG2_E });
    let whole = scaled.map(|s| (s + 0.5) as i32);
    let r = V::load(&scaled).sub(V::load(&whole.map(|n| n as f32))).mul(V::splat(std::f32::consts::LN_2));
    let mut e = V::splat(1.0 / 5040.0);
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        e = e.fma(r, V::splat(term));
    }
    e = e.mul(V::load(&whole.map(|n| f32::from_bits(((n + 127) as u32) << 23))));
    let one = V::splat(1.0);
    e.sub(one).div(e.add(one))
}

#[inline(always)]
fn tanh_body<V: Lanes>(values: &[f32], scale: f32, slopes: &mut [f32]) -> (f64, f64) {
    let (mut total, mut first) = (0f64, 0f64);
    for (values, slopes) in values.chunks(N).zip(slopes.chunks_mut(N)) {
        let mut a = [0f32; N];
        a[..values.len()].copy_from_slice(values);
        let a = V::load(&a);
        let held = tanh(a.mul(V::splat(scale)));
        let slope = V::splat(1.0).sub(held.mul(held));
        slopes.copy_from_slice(&slope.array()[..values.len()]);
        total += f64::from(held.sum());
        first += f64::from(slope.mul(a).sum());
    }
    (total, first)
}
simd! {
    /// Writes `1 − tanh²(scale · a)` for each activation (none negative) and returns
    /// `(Σ tanh(scale · a), Σ (1 − tanh²) a)`.
    pub(crate) fn tanh_terms(values: &[f32], scale: f32, slopes: &mut [f32]) -> (f64, f64) = tanh_body
}
