//! The terms of the loss, elementwise.

use super::{fma, simd};

/// What [`residual`] sums over its columns of one target layer.
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
fn residual_body<const F: bool>(output: &mut [f32], target: &[f32], scale: f32, sums: &mut [f32], squares: &mut [f32], gradient: &mut [f32], errors: &mut [f32]) {
    let n = output.len();
    let (target, sums, squares) = (&target[..n], &mut sums[..n], &mut squares[..n]);
    let (gradient, errors) = (&mut gradient[..n], &mut errors[..n]);
    for i in 0..n {
        let y = target[i];
        let error = output[i] - y;
        errors[i] = fma::<F>(error, error, errors[i]);
        sums[i] += y;
        squares[i] = fma::<F>(y, y, squares[i]);
        output[i] = scale * error;
        gradient[i] += output[i];
    }
}
simd! {
    /// Turns one row of reconstruction into the gradient `scale (ŷ − y)`, and adds to column sums
    /// of y, y², the gradient and the squared error.
    pub(crate) fn residual(output: &mut [f32], target: &[f32], scale: f32, sums: &mut [f32], squares: &mut [f32], gradient: &mut [f32], errors: &mut [f32]) = residual_body
}

#[inline(always)]
fn squares_body<const F: bool>(gradient: &[f32], weights: &[f32], stride: usize, at: usize, d: usize, own: &[f32], out: &mut [f32]) {
    for (f, (g, out)) in gradient.chunks_exact(d).zip(out).enumerate() {
        let begin = f * stride + at;
        let w = &weights[begin..begin + d];
        let coefficient = own.get(f).copied().unwrap_or(0.0);
        let mut sums = [0f32; 32];
        let whole = d / 32 * 32;
        for group in (0..whole).step_by(32) {
            for lane in 0..32 {
                let value = fma::<F>(coefficient, w[group + lane], g[group + lane]);
                sums[lane] = fma::<F>(value, value, sums[lane]);
            }
        }
        for i in whole..d {
            let value = fma::<F>(coefficient, w[i], g[i]);
            sums[0] = fma::<F>(value, value, sums[0]);
        }
        *out += sums.iter().sum::<f32>();
    }
}
simd! {
    /// Adds `‖gradient[f] + own[f] · w[f]‖²` to `out[f]`; weights as in [`super::sparse::Columns`].
    pub(crate) fn square_rows(gradient: &[f32], weights: &[f32], stride: usize, at: usize, d: usize, own: &[f32], out: &mut [f32]) = squares_body
}

/// `tanh` of a number that is not negative, to 2e-7 absolute: `1 − 2 / (e^{2x} + 1)` with `e^x`
/// from its Taylor polynomial after reduction by powers of two.
#[inline(always)]
fn tanh<const F: bool>(x: f32) -> f32 {
    let x = if x < 10.0 { x } else { 10.0 };
    let scaled = x * (2.0 * std::f32::consts::LOG2_E);
    let whole = (scaled + 0.5) as i32;
    let r = (scaled - whole as f32) * std::f32::consts::LN_2;
    let mut e = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        e = fma::<F>(e, r, term);
    }
    e *= f32::from_bits(((whole + 127) as u32) << 23);
    (e - 1.0) / (e + 1.0)
}

#[inline(always)]
fn tanh_body<const F: bool>(values: &[f32], scale: f32, slopes: &mut [f32]) -> (f64, f64) {
    let (mut total, mut first) = (0f64, 0f64);
    for (values, slopes) in values.chunks(64).zip(slopes.chunks_mut(64)) {
        let (mut sum, mut moment) = (0f32, 0f32);
        let mut held = [0f32; 64];
        for (i, &a) in values.iter().enumerate() {
            held[i] = tanh::<F>(scale * a);
        }
        for (i, &a) in values.iter().enumerate() {
            let slope = 1.0 - held[i] * held[i];
            slopes[i] = slope;
            sum += held[i];
            moment += slope * a;
        }
        total += f64::from(sum);
        first += f64::from(moment);
    }
    (total, first)
}
simd! {
    /// Writes `1 − tanh²(scale · a)` for each activation (none negative) and returns
    /// `(Σ tanh(scale · a), Σ (1 − tanh²) a)`.
    pub(crate) fn tanh_terms(values: &[f32], scale: f32, slopes: &mut [f32]) -> (f64, f64) = tanh_body
}
