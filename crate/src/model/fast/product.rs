//! Linear maps and the gated MLP over packed panels, in parallel over tiles of outputs.

use super::held::{filled, Held};
use super::tile::{self, LANES, MOST, OUTS};
use crate::model::MlpActivation;
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Outputs that a task computes at once: their weights stay in the second-level cache for all panels.
const CHUNK: usize = 64;

/// `[tokens, depth]` packed as panels `[depth, 16·M]`, M ≤ 3.
pub(super) struct Panels {
    values: Vec<f32>,
    tokens: usize,
    depth: usize,
}

/// One panel: where it starts, how many tokens it holds, in how many registers.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub first: usize,
    pub tokens: usize,
    pub registers: usize,
}

pub(super) fn panels(tokens: usize) -> impl IndexedParallelIterator<Item = Panel> {
    let full = MOST * LANES;
    (0..tokens.div_ceil(full)).into_par_iter().map(move |index| {
        let held = (tokens - index * full).min(full);
        Panel { first: index * full, tokens: held, registers: held.div_ceil(LANES) }
    })
}

impl Panels {
    /// # Safety
    /// AVX-512F. `x` is `[tokens, depth]`, `depth` a multiple of 4.
    pub(super) unsafe fn pack(x: &[f32], depth: usize) -> Self {
        let tokens = x.len() / depth;
        let values = filled(tokens.next_multiple_of(LANES) * depth, |to| {
            panels(tokens).for_each(|panel| {
                // SAFETY: each panel has its own part of `values`; its rows lie in `x`.
                unsafe { tile::pack(x.as_ptr().add(panel.first * depth), depth, panel.tokens, depth, panel.registers, to.at(panel.first * depth)) }
            });
        });
        Panels { values, tokens, depth }
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) unsafe fn panel(&self, panel: Panel) -> *const f32 {
        self.values.as_ptr().add(panel.first * self.depth)
    }

    /// Calls `work(panels, first output, end, buffers)` for all tiles, weights outermost.
    pub(super) fn tasks(&self, outs: usize, work: impl Fn(&[Panel], usize, usize, &mut [Vec<f32>; 2]) + Sync) {
        let chunks = outs.div_ceil(CHUNK);
        let group = if chunks >= 16 { usize::MAX } else { 4 };
        let all: Vec<Panel> = panels(self.tokens).collect();
        let groups: Vec<&[Panel]> = all.chunks(group.min(all.len())).collect();
        (0..chunks * groups.len()).into_par_iter().with_max_len(1).for_each_init(Default::default, |buffers, task| {
            let first = task / groups.len() * CHUNK;
            work(groups[task % groups.len()], first, (first + CHUNK).min(outs), buffers);
        });
    }

    /// `y [tokens, outs] = x wᵀ + bias`, with `w [outs, depth]`.
    ///
    /// # Safety
    /// AVX-512F. Lengths as said.
    pub(super) unsafe fn times(&self, w: Held<'_>, bias: Option<&[f32]>) -> Vec<f32> {
        let outs = w.len() / self.depth;
        assert!(w.len() == outs * self.depth);
        self.products(outs, bias, |first, end, buffer| Weights { first: w.part(first * self.depth..end * self.depth, buffer).as_ptr(), row: self.depth, step: 1 })
    }

    /// `y [tokens, outs] = x w`, with `w [depth, outs]` as it lies: the transpose of a map.
    ///
    /// # Safety
    /// AVX-512F.
    pub(super) unsafe fn times_turned(&self, w: &[f32]) -> Vec<f32> {
        let outs = w.len() / self.depth;
        assert!(w.len() == outs * self.depth);
        self.products(outs, None, |first, _, _| Weights { first: w[first..].as_ptr(), row: 1, step: outs })
    }

    /// `weights` gives those of outputs from the first to the end, and may use the buffer.
    unsafe fn products(&self, outs: usize, bias: Option<&[f32]>, weights: impl Fn(usize, usize, &mut Vec<f32>) -> Weights + Sync) -> Vec<f32> {
        assert!(bias.is_none_or(|bias| bias.len() == outs));
        filled(self.tokens * outs, |to| self.tasks(outs, |panels, first, end, [buffer, _]| {
            let w = weights(first, end, buffer);
            for panel in panels {
                // SAFETY: tiles do not overlap; all lengths were checked above.
                unsafe {
                    let (x, y) = (self.panel(*panel), to.at(panel.first * outs));
                    match panel.registers {
                        1 => rows::<1>(x, self.depth, w, bias, y, outs, panel.tokens, first..end),
                        2 => rows::<2>(x, self.depth, w, bias, y, outs, panel.tokens, first..end),
                        _ => rows::<3>(x, self.depth, w, bias, y, outs, panel.tokens, first..end),
                    }
                }
            }
        }))
    }

    /// `act(x gateᵀ) · (x upᵀ)`, packed for the product with the map down.
    ///
    /// # Safety
    /// AVX-512F. `gate` and `up` are `[outs, depth]`, `outs` a multiple of 8.
    pub(super) unsafe fn gated(&self, gate: Held<'_>, up: Held<'_>, activation: MlpActivation) -> Panels {
        let outs = up.len() / self.depth;
        assert!(up.len() == outs * self.depth && gate.len() == up.len() && outs.is_multiple_of(OUTS));
        let values = filled(self.tokens.next_multiple_of(LANES) * outs, |to| self.tasks(outs, |panels, first, end, [gates, ups]| {
            let range = first * self.depth..end * self.depth;
            let (gate, up) = (gate.part(range.clone(), gates), up.part(range, ups));
            for panel in panels {
                // SAFETY: tiles do not overlap; all lengths were checked above.
                unsafe {
                    let (x, y) = (self.panel(*panel), to.at(panel.first * outs));
                    match panel.registers {
                        1 => gated::<1>(x, self.depth, gate, up, activation, y, first..end),
                        2 => gated::<2>(x, self.depth, gate, up, activation, y, first..end),
                        _ => gated::<3>(x, self.depth, gate, up, activation, y, first..end),
                    }
                }
            }
        }));
        Panels { values, tokens: self.tokens, depth: outs }
    }
}

/// One panel's `y [tokens, outs] = x wᵀ + bias`.
///
/// # Safety
/// AVX-512F; `depth` a multiple of 4, at most 48 rows, lengths that fit.
pub(super) unsafe fn one_panel(x: &[f32], depth: usize, w: &[f32], bias: &[f32], y: &mut [f32], packed: &mut Vec<f32>) {
    let (tokens, outs) = (x.len() / depth, bias.len());
    if tokens == 0 {
        return;
    }
    let registers = tokens.div_ceil(LANES);
    let w = Weights { first: w.as_ptr(), row: depth, step: 1 };
    packed.resize(depth * LANES * registers, 0.0);
    // SAFETY: the caller's promise; `packed` has just that length.
    unsafe {
        tile::pack(x.as_ptr(), depth, tokens, depth, registers, packed.as_mut_ptr());
        match registers {
            1 => rows::<1>(packed.as_ptr(), depth, w, Some(bias), y.as_mut_ptr(), outs, tokens, 0..outs),
            2 => rows::<2>(packed.as_ptr(), depth, w, Some(bias), y.as_mut_ptr(), outs, tokens, 0..outs),
            _ => rows::<3>(packed.as_ptr(), depth, w, Some(bias), y.as_mut_ptr(), outs, tokens, 0..outs),
        }
    }
}

/// Weights of a range of outputs: the n-th's k-th is `n · row + k · step` beyond `first`.
#[derive(Clone, Copy)]
struct Weights {
    first: *const f32,
    row: usize,
    step: usize,
}

/// Outputs `range` of one panel, whose weights `w` are, written as rows of `y`, which are `stride` apart.
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
unsafe fn rows<const M: usize>(
    x: *const f32, depth: usize, w: Weights, bias: Option<&[f32]>, y: *mut f32, stride: usize, tokens: usize, range: std::ops::Range<usize>,
) {
    let weights = |out: usize| w.first.add((out - range.start) * w.row);
    let mut out = range.start;
    while out + OUTS <= range.end {
        let mut sums = tile::sums::<M, OUTS>(depth, x, weights(out), w.row, w.step);
        if let Some(bias) = bias {
            for (sums, bias) in sums.iter_mut().zip(&bias[out..]) {
                sums.iter_mut().for_each(|sum| *sum = _mm512_add_ps(*sum, _mm512_set1_ps(*bias)));
            }
        }
        write_tile(&sums, y.add(out), stride, tokens);
        out += OUTS;
    }
    for out in out..range.end {
        let sums = tile::sums::<M, 1>(depth, x, weights(out), w.row, w.step);
        for (m, sum) in sums[0].into_iter().enumerate() {
            let mut values = [0.0_f32; LANES];
            _mm512_storeu_ps(values.as_mut_ptr(), sum);
            for (lane, value) in values.into_iter().enumerate().take(tokens.saturating_sub(m * LANES)) {
                *y.add((m * LANES + lane) * stride + out) = value + bias.map_or(0.0, |bias| bias[out]);
            }
        }
    }
}

/// Writes a tile as rows, `y` at its first token and output.
///
/// # Safety
/// AVX-512F; the rows of the first `tokens` tokens exist.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write_tile<const M: usize>(sums: &tile::Sums<M, OUTS>, y: *mut f32, stride: usize, tokens: usize) {
    for m in 0..M {
        let left = tokens.saturating_sub(m * LANES);
        let y = y.add(m * LANES * stride);
        tile::write_rows([sums[0][m], sums[1][m], sums[2][m], sums[3][m]], y, stride, left);
        tile::write_rows([sums[4][m], sums[5][m], sums[6][m], sums[7][m]], y.add(4), stride, left);
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn gated<const M: usize>(
    x: *const f32, depth: usize, gate: &[f32], up: &[f32], activation: MlpActivation, y: *mut f32, range: std::ops::Range<usize>,
) {
    let first = range.start;
    for out in range.step_by(OUTS) {
        let row = (out - first) * depth;
        let gates = tile::sums::<M, OUTS>(depth, x, gate.as_ptr().add(row), depth, 1);
        let place = |n: usize, m: usize| y.add(((out + n) * M + m) * LANES);
        for (n, gates) in gates.iter().enumerate() {
            for (m, gate) in gates.iter().enumerate() {
                _mm512_storeu_ps(place(n, m), activate(*gate, activation));
            }
        }
        let ups = tile::sums::<M, OUTS>(depth, x, up.as_ptr().add(row), depth, 1);
        for (n, ups) in ups.iter().enumerate() {
            for (m, up) in ups.iter().enumerate() {
                _mm512_storeu_ps(place(n, m), _mm512_mul_ps(*up, _mm512_loadu_ps(place(n, m))));
            }
        }
    }
}

/// Whether [`Panels::gated`] has the activation.
pub(super) fn has(activation: MlpActivation) -> bool {
    matches!(activation, MlpActivation::Silu | MlpActivation::GeluTanh)
}

/// `x σ(x)`, or GELU's form by tanh, which is `x σ(2 √(2/π) (x + 0.044715 x³))`.
#[inline]
#[target_feature(enable = "avx512f")]
fn activate(x: __m512, activation: MlpActivation) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let at = match activation {
        MlpActivation::GeluTanh => {
            let square = _mm512_mul_ps(x, x);
            let inner = _mm512_fmadd_ps(square, _mm512_set1_ps(0.044_715), one);
            _mm512_mul_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(1.595_769_1))
        }
        _ => x,
    };
    let below = tile::exp(_mm512_sub_ps(_mm512_setzero_ps(), at));
    _mm512_div_ps(x, _mm512_add_ps(one, below))
}
