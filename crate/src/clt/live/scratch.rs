//! Buffers of a step, allocated once and grown as needed.

use crate::clt::kernels::{self, Matrix, Slab};
use crate::clt::sparse::{FeatureLists, LayerCode};
use crate::clt::CltConfig;
use super::zeros;
use std::ops::Range;
use std::sync::Mutex;

/// Tokens whose pre-activations are computed together: their block stays in cache.
pub(crate) const TOKEN_BLOCK: usize = 128;

/// Everything a step needs besides weights and batch.
#[derive(Default)]
pub(crate) struct Scratch {
    pub layers: Vec<LayerScratch>,
    /// `[tokens, d]` for each target: reconstruction, then the gradient `2 (ŷ − y) / tokens`.
    pub outputs: Vec<Vec<f32>>,
    /// `[d]` for each target: column sums of that gradient.
    pub output_sums: Vec<Vec<f32>>,
    /// One block of pre-activations for each thread.
    pub blocks: Vec<Mutex<Vec<f32>>>,
}

/// Buffers of one source layer.
#[derive(Default)]
pub(crate) struct LayerScratch {
    /// Entries found by each block of tokens.
    pub parts: Vec<Part>,
    /// The code, token by token.
    pub code: LayerCode,
    /// BatchTopK: values of all candidates.
    pub candidates: Vec<f32>,
    /// The code, feature by feature; `values` are activations.
    pub lists: FeatureLists,
    /// JumpReLU: the pre-activation of each entry of `lists` (entries near θ have activation 0).
    pub pre: Vec<f32>,
    /// This step's products are dense.
    pub dense: bool,
    /// Dense activations `[tokens, F]`.
    pub activations: Vec<f32>,
    /// JumpReLU when dense: pre-activations `[tokens, F]`.
    pub pre_dense: Vec<f32>,
    /// Active entries, and those that matter to the gradient (JumpReLU: the window as well).
    pub active: usize,
    pub kept: usize,
    /// Active entries of each feature.
    pub fired: Vec<u32>,
    /// TopK: sum over tokens of the least kept value, and the value for each token.
    pub cuts: Vec<f32>,
    /// Column sums of the input, `[d]`.
    pub input_sum: Vec<f32>,
    /// Features in blocks, each worked on by one thread.
    pub features: Vec<FeatureBlock>,
}

/// Entries of one block of tokens, in order of tokens.
#[derive(Default)]
pub(crate) struct Part {
    pub features: Vec<u32>,
    pub values: Vec<f32>,
    /// Where each token's entries end.
    pub ends: Vec<u32>,
    /// Left from row to row by the selection.
    pub select: Vec<f32>,
}

/// Per-feature terms of a block of features.
#[derive(Default)]
pub(crate) struct FeatureBlock {
    /// First feature and one past the last.
    pub range: Range<usize>,
    /// Gradient of each entry: of its activation first, then of its pre-activation. Sparse: in the
    /// order of the lists. Dense: `[tokens, features of the block]`.
    pub entries: Vec<f32>,
    /// Multiple of the decoder row itself in the decoder's gradient.
    pub own: Vec<f32>,
    /// Multiple of the input's column sums in the encoder's gradient (dead features).
    pub common: Vec<f32>,
    /// Gradient of the encoder's bias and of the logarithm of the threshold.
    pub bias: Vec<f32>,
    pub threshold: Vec<f32>,
    /// Gradient rows in the making, and slopes of the tanh.
    pub rows: Vec<f32>,
    /// Sums of the block: sparsity and dead terms, squared gradient norm.
    pub sparsity: f64,
    pub dead_term: f64,
    pub square: f64,
}

/// One layer's code as the backward pass reads it.
#[derive(Clone, Copy)]
pub(crate) struct Code<'a> {
    pub lists: &'a FeatureLists,
    pub pre: &'a [f32],
    pub dense: bool,
    pub activations: &'a [f32],
    pub pre_dense: &'a [f32],
    pub fired: &'a [u32],
    pub cuts: &'a [f32],
    pub input_sum: &'a [f32],
}

/// Which gradient rows are formed: `Σ_p a e` or `Σ_p ∂h x`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Decoder,
    Encoder,
}

impl LayerScratch {
    /// The code to read and the feature blocks to write.
    pub fn split(&mut self) -> (Code<'_>, &mut [FeatureBlock]) {
        let code = Code {
            lists: &self.lists,
            pre: &self.pre,
            dense: self.dense,
            activations: &self.activations,
            pre_dense: &self.pre_dense,
            fired: &self.fired,
            cuts: &self.cuts,
            input_sum: &self.input_sum,
        };
        (code, &mut self.features)
    }
}

/// Splits the d columns into tiles of which all tokens' rows fit into the second-level cache:
/// first column and width of each.
pub(crate) fn tiles(tokens: usize, d: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    const ENTRIES: usize = 128 << 10;
    let count = (tokens * d).div_ceil(ENTRIES);
    let width = d.div_ceil(count).next_multiple_of(16).min(d);
    (0..d).step_by(width).map(move |at| (at, width.min(d - at)))
}

impl FeatureBlock {
    /// Forms the gradient rows of `features` (of this block) over `d` columns of `slab` in `self.rows`.
    pub fn gradient_rows(&mut self, code: &Code<'_>, side: Side, features: Range<usize>, slab: Slab<'_>, d: usize) {
        let n = features.len();
        self.rows.resize(n * d, 0.0);
        let tokens = slab.values.len() / slab.stride;
        let first = features.start - self.range.start;
        if code.dense {
            let f = code.fired.len();
            let (left, view) = match side {
                Side::Decoder => (code.activations, Matrix { at: features.start, row: f, column: 1 }),
                Side::Encoder => (&self.entries[..], Matrix { at: first, row: self.range.len(), column: 1 }),
            };
            // SAFETY: `rows` is ours and has n rows of d.
            unsafe { kernels::gemm(n, tokens, d, self.rows.as_mut_ptr(), Matrix::rows(0, d), false, left, view.t(), slab.values, Matrix::rows(slab.at, slab.stride)) };
        } else {
            let begin = code.lists.offsets[features.start] as usize;
            let coefficients = match side {
                Side::Decoder => &code.lists.values[begin..],
                Side::Encoder => &self.entries[begin - code.lists.offsets[self.range.start] as usize..],
            };
            kernels::gather_rows(code.lists, coefficients, features, slab, d, &mut self.rows);
        }
        if side == Side::Encoder {
            for (row, &common) in self.rows.chunks_exact_mut(d).zip(&self.common[first..]).filter(|(_, &common)| common != 0.0) {
                row.iter_mut().zip(&code.input_sum[slab.at..]).for_each(|(g, &sum)| *g += common * sum);
            }
        }
    }

    /// Features whose gradient rows are formed together: few when they come from lists, so that
    /// they stay in the first-level cache; more for a dense product.
    pub fn group(code: &Code<'_>) -> usize {
        if code.dense { 64 } else { 8 }
    }
}

impl Scratch {
    /// Makes room for batches of `tokens`.
    pub fn fit(&mut self, config: &CltConfig, tokens: usize) {
        let (l, d, f) = (config.layers, config.width, config.features);
        let threads = rayon::current_num_threads() + 1;
        self.blocks.resize_with(threads, Mutex::default);
        self.layers.resize_with(l, LayerScratch::default);
        self.outputs.resize_with(l, Vec::new);
        self.output_sums.resize_with(l, Vec::new);
        for output in self.outputs.iter_mut().filter(|output| output.len() != tokens * d) {
            *output = zeros(tokens * d);
        }
        self.output_sums.iter_mut().for_each(|sums| sums.resize(d, 0.0));
        let per_block = feature_block(config, threads);
        for layer in &mut self.layers {
            layer.parts.resize_with(tokens.div_ceil(TOKEN_BLOCK), Part::default);
            layer.fired.resize(f, 0);
            layer.cuts.resize(tokens, 0.0);
            layer.input_sum.resize(d, 0.0);
            layer.features.resize_with(f.div_ceil(per_block), FeatureBlock::default);
            for (index, block) in layer.features.iter_mut().enumerate() {
                block.range = index * per_block..((index + 1) * per_block).min(f);
                let n = block.range.len();
                for values in [&mut block.own, &mut block.common, &mut block.bias, &mut block.threshold] {
                    values.resize(n, 0.0);
                }
            }
        }
    }

    /// The block of pre-activations of the calling thread.
    pub fn block(&self) -> std::sync::MutexGuard<'_, Vec<f32>> {
        let thread = rayon::current_thread_index().map_or(0, |index| index + 1);
        self.blocks[thread % self.blocks.len()].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Features per block: many, so that a block meets each token's row several times while it is in
/// cache; but enough blocks for all threads.
fn feature_block(config: &CltConfig, threads: usize) -> usize {
    let blocks = (8 * threads).div_ceil(config.layers).max(config.features.div_ceil(512));
    config.features.div_ceil(blocks).next_multiple_of(8)
}
