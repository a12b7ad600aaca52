//! Buffers of a step, allocated once and grown as needed.

#[cfg(target_arch = "x86_64")]
use super::near;
use super::auxiliary::Aux;
use super::param::zeros;
use super::per_target::TargetBlock;
use super::{LiveClt, StepOptions};
use crate::clt::activation::CutOff;
use crate::clt::sparse::{FeatureLists, LayerCode};
use crate::clt::CltConfig;
use crate::model::fast;
use std::ops::Range;
use std::sync::Mutex;

/// Tokens whose pre-activations are computed together: their block stays in cache.
pub(crate) fn token_block(d: usize) -> usize {
    fast::panel_rows(d).unwrap_or(128)
}

/// Distance of two tokens' rows in a slab: not a multiple of a page, or all rows of a tile would
/// compete for the same few sets of the cache.
pub(crate) fn stride(config: &CltConfig) -> usize {
    (config.layers * config.width).next_multiple_of(1024) + 272
}

/// Everything a step needs besides weights and batch.
#[derive(Default)]
pub(crate) struct Scratch {
    pub layers: Vec<LayerScratch>,
    /// `[tokens, L · d]`, rows [`stride`] apart, for each group of features ([`StepOptions::groups`](super::StepOptions)):
    /// the reconstruction by the groups so far, then the gradient that these features get from it. With
    /// an auxiliary loss as many rows again, for its gradient.
    pub slabs: Vec<Vec<f32>>,
    /// `[L · d]`: column sums of the gradient at the targets.
    pub sums: Vec<f32>,
    /// Tied per target: blocks of each target's rows, and squared norms of each source's.
    pub targets: Vec<Vec<TargetBlock>>,
    pub norms: Vec<Vec<f32>>,
    /// For each thread.
    pub blocks: Vec<Mutex<Block>>,
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct Block {
    /// Pre-activations of a block of tokens.
    pub h: Vec<f32>,
    /// Packed inputs of these.
    pub packed: Vec<f32>,
    /// Of [`near`].
    #[cfg(target_arch = "x86_64")]
    pub rounded: near::Rounded,
}

/// Buffers of one source layer.
#[derive(Default)]
pub(crate) struct LayerScratch {
    /// Entries found by each block of tokens.
    pub parts: Vec<Part>,
    /// How they are found where few are kept.
    #[cfg(target_arch = "x86_64")]
    pub near: near::Near,
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
    /// What each token's entries had to reach where a k decides: the least kept value, or 0.
    pub cuts: Vec<f32>,
    /// Rankings over layers: each token's cut.
    pub cut_offs: Vec<CutOff>,
    /// Column sums of the input, `[d]`.
    pub input_sum: Vec<f32>,
    /// Features in blocks, each worked on by one thread.
    pub features: Vec<FeatureBlock>,
    /// Gradient of the skip connection, `[d, d]`.
    pub skip: Vec<f32>,
    /// The auxiliary loss.
    pub aux: Aux,
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
    /// Rankings over layers: values of one token's candidates.
    pub candidates: Vec<f32>,
}

impl Part {
    /// Values of the part's `p`-th token.
    pub fn token(&self, p: usize) -> &[f32] {
        let start = if p == 0 { 0 } else { self.ends[p - 1] as usize };
        &self.values[start..self.ends[p] as usize]
    }
}

/// Per-feature terms of a block of features.
#[derive(Default)]
pub(crate) struct FeatureBlock {
    /// First feature and one past the last.
    pub range: Range<usize>,
    /// The group of features that it belongs to.
    pub group: usize,
    /// Gradient of each entry: of its activation first, then of its pre-activation. Sparse: in the
    /// order of the lists. Dense: `[tokens, features of the block]`.
    pub entries: Vec<f32>,
    /// Multiple of the decoder row itself in the decoder's gradient.
    pub own: Vec<f32>,
    /// What the sparsity term adds to `Σ_p a · ∂loss/∂a`.
    pub drift: Vec<f32>,
    /// Whether the decoder row gets a gradient in this step.
    pub touched: Vec<bool>,
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
    /// With an auxiliary loss: the inputs, twice.
    pub twice: &'a [f32],
}

impl Code<'_> {
    /// The entries of feature `f` in the lists that are its own: all but those of an auxiliary loss.
    pub fn own(&self, f: usize, options: &StepOptions) -> Range<usize> {
        let range = self.lists.range(f);
        if options.aux > 0.0 { range.start..range.start + self.fired[f] as usize } else { range }
    }

    /// Tokens on which feature `f` is active, with its activation.
    pub fn active(&self, f: usize) -> Box<dyn Iterator<Item = (usize, f32)> + '_> {
        if self.dense {
            let features = self.fired.len();
            let column = self.activations.iter().skip(f).step_by(features);
            return Box::new(column.enumerate().filter(|&(_, &a)| a > 0.0).map(|(p, &a)| (p, a)));
        }
        let range = self.lists.range(f);
        Box::new(self.lists.tokens[range.clone()].iter().zip(&self.lists.values[range]).map(|(&p, &a)| (p as usize, a)).filter(|&(_, a)| a != 0.0))
    }
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
            twice: &self.aux.input,
        };
        (code, &mut self.features)
    }

    /// Whether feature `f` has an entry in this step.
    pub fn has(&self, f: usize) -> bool {
        self.dense || !self.lists.range(f).is_empty()
    }
}

/// Splits `columns` into tiles, in multiples of 64, of which all tokens' rows fit into the
/// second-level cache: first column and width of each.
pub(crate) fn tiles(tokens: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    const ENTRIES: usize = 128 << 10;
    let count = (tokens * columns).div_ceil(ENTRIES);
    let width = columns.div_ceil(count).next_multiple_of(64).min(columns);
    (0..columns).step_by(width).map(move |at| (at, width.min(columns - at)))
}

impl Scratch {
    /// Makes room for batches of `tokens`; with room for an auxiliary loss in each slab's second half.
    pub fn fit(&mut self, clt: &LiveClt, options: &StepOptions, tokens: usize) {
        let groups = options.groups.as_slice();
        let CltConfig { layers: l, width: d, features: f, .. } = clt.config;
        let threads = rayon::current_num_threads() + 1;
        self.blocks.resize_with(threads, Mutex::default);
        self.layers.resize_with(l, LayerScratch::default);
        self.slabs.resize_with(groups.len(), Vec::new);
        let size = tokens * stride(&clt.config) * if options.aux > 0.0 { 2 } else { 1 };
        for slab in self.slabs.iter_mut().filter(|slab| slab.len() != size) {
            *slab = zeros(size);
        }
        self.sums.resize(l * d, 0.0);
        let per_block = feature_block(&clt.config, threads);
        for layer in &mut self.layers {
            layer.parts.resize_with(tokens.div_ceil(token_block(d)), Part::default);
            layer.fired.resize(f, 0);
            layer.cuts.resize(tokens, 0.0);
            layer.input_sum.resize(d, 0.0);
            let starts = || std::iter::once(0).chain(groups.iter().copied());
            let ranges = starts().zip(groups).enumerate().flat_map(|(group, (from, &to))| {
                (from..to).step_by(per_block).map(move |start| (group, start..(start + per_block).min(to)))
            });
            layer.features.resize_with(ranges.clone().count(), FeatureBlock::default);
            for (block, (group, range)) in layer.features.iter_mut().zip(ranges) {
                let n = range.len();
                (block.group, block.range) = (group, range);
                for values in [&mut block.own, &mut block.drift, &mut block.common, &mut block.bias, &mut block.threshold] {
                    values.resize(n, 0.0);
                }
                block.touched.resize(n, true);
            }
        }
    }

    /// The block of pre-activations of the calling thread.
    pub fn block(&self) -> std::sync::MutexGuard<'_, Block> {
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
