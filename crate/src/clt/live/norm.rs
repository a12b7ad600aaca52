//! The norm of the whole gradient, before any of it is spent.
//!
//! A feature's decoder row gets `g = Σ_p a_p e_p`, so `‖g‖² = Σ_pq a_p a_q (e_p · e_q)`: with the
//! tokens' products at hand (`[tokens, tokens]` a layer, one dense product) a feature costs the
//! square of the number of its entries instead of forming its row. Where there are too many tokens
//! for that, rows are formed in cache, measured and thrown away.

use super::block::{entries_of, group, Context, Side, Work};
use super::scratch::{tiles, Code};
use crate::clt::kernels::{self, Matrix, Slab};

/// Products of all pairs of tokens: of their gradients at a layer's targets, and of their inputs.
pub(super) struct Pairs {
    outputs: Vec<f32>,
    inputs: Vec<f32>,
}

/// Bytes that the pairs of all layers may take.
const ROOM: usize = 256 << 20;

/// Whether pairs cost less than rows: a dense product runs at some six times the speed of a gather.
pub(super) fn pairs_pay(tokens: usize, layers: usize, entries: usize) -> bool {
    8 * tokens * tokens * layers <= ROOM && 2 * tokens * tokens <= 6 * entries
}

impl Pairs {
    /// Of a layer whose decoder rows have `columns` columns from `offset` on, and whose inputs are `d` wide.
    pub fn of(slab: &[f32], (stride, offset, columns): (usize, usize, usize), input: &[f32], d: usize) -> Self {
        let tokens = input.len() / d;
        let product = |values: &[f32], at: usize, stride: usize, depth: usize| {
            let mut out = vec![0.0; tokens * tokens];
            let view = Matrix::rows(at, stride);
            // SAFETY: `out` is ours and has as many rows of as many columns.
            unsafe { kernels::gemm(tokens, depth, tokens, out.as_mut_ptr(), Matrix::rows(0, tokens), false, values, view, values, view.t()) };
            out
        };
        Pairs { outputs: product(slab, offset, stride, columns), inputs: product(input, 0, d, d) }
    }
}

/// `Σ_pq c_p c_q pairs[p, q]` over the tokens of one feature.
fn quadratic(pairs: &[f32], tokens: usize, at: &[u32], coefficients: &[f32]) -> f64 {
    let mut sum = 0.0;
    for (i, (&p, &c)) in at.iter().zip(coefficients).enumerate() {
        let row = &pairs[p as usize * tokens..][..tokens];
        let cross: f32 = at[..i].iter().zip(coefficients).map(|(&q, &other)| other * row[q as usize]).sum();
        sum += f64::from(c) * (2.0 * f64::from(cross) + f64::from(c) * f64::from(row[p as usize]));
    }
    sum
}

impl Work<'_> {
    /// The squared norm of the gradient of the block's weights, into `block.square`; after
    /// [`Work::pre_activations`]. `products` are `Σ_p a · ∂loss/∂a`, from before it.
    pub fn measure(&mut self, context: &Context<'_>, pairs: Option<&Pairs>, products: &[f64]) {
        let code = &context.code;
        let small = self.block.bias.iter().chain(&self.block.threshold).map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        self.block.square = small
            + match pairs.filter(|_| !code.dense) {
                Some(pairs) => self.by_pairs(context, pairs, products),
                None => self.by_rows(context),
            };
    }

    /// `Σ_p a (∂loss/∂a)` of each feature's reconstruction term, once the entries hold it.
    pub fn products(&self, code: &Code<'_>) -> Vec<f64> {
        if code.dense {
            return Vec::new();
        }
        let base = entries_of(code, self.block).start;
        let sum = |i: usize| {
            let range = code.lists.range(self.block.range.start + i);
            let entries = &self.block.entries[range.start - base..range.end - base];
            code.lists.values[range].iter().zip(entries).map(|(&a, &g)| f64::from(a) * f64::from(g)).sum::<f64>() - f64::from(self.block.drift[i])
        };
        (0..self.block.range.len()).map(sum).collect()
    }

    fn by_pairs(&self, context: &Context<'_>, pairs: &Pairs, products: &[f64]) -> f64 {
        let (code, block, tokens) = (&context.code, &*self.block, context.tokens);
        let base = entries_of(code, block).start;
        let sums: f64 = code.input_sum.iter().map(|&s| f64::from(s) * f64::from(s)).sum();
        let mut total = 0.0;
        for (i, f) in block.range.clone().enumerate() {
            let range = code.lists.range(f);
            let at = &code.lists.tokens[range.clone()];
            let (own, common) = (f64::from(block.own[i]), f64::from(block.common[i]));
            let gradients = &block.entries[range.start - base..range.end - base];
            total += quadratic(&pairs.outputs, tokens, at, &code.lists.values[range]) + own * (2.0 * products[i] + own * f64::from(self.squares[i]));
            total += quadratic(&pairs.inputs, tokens, at, gradients);
            if common != 0.0 {
                // Σ_q x_q is the sum of all columns of the pairs.
                let cross = |p: u32| pairs.inputs[p as usize * tokens..][..tokens].iter().map(|&x| f64::from(x)).sum::<f64>();
                total += common * (2.0 * at.iter().zip(gradients).map(|(&p, &g)| f64::from(g) * cross(p)).sum::<f64>() + common * sums);
            }
        }
        total
    }

    fn by_rows(&mut self, context: &Context<'_>) -> f64 {
        let Work { block, encoder, decoder, .. } = self;
        let code = &context.code;
        let (range, group) = (block.range.clone(), group(code));
        let mut squares = vec![0f32; range.len()];
        let sides = [(Side::Decoder, &*decoder.w, decoder.row, context.slab, context.stride, context.offset), (Side::Encoder, &*encoder.w, encoder.row, context.input, encoder.row, 0)];
        // Where targets share their rows, none is the feature's own.
        for (side, weights, row, values, stride, offset) in sides.into_iter().filter(|side| side.2 > 0) {
            for (at, width) in tiles(context.tokens, row) {
                for begin in range.clone().step_by(group) {
                    let i = begin - range.start;
                    block.gradient_rows(code, side, begin..(begin + group).min(range.end), Slab { values, stride, at: offset + at }, width);
                    let own = if side == Side::Decoder { &block.own[i..] } else { &[] };
                    kernels::square_rows(&block.rows, &weights[i * row..], row, at, width, own, &mut squares[i..]);
                }
            }
        }
        squares.iter().map(|&s| f64::from(s)).sum()
    }
}
