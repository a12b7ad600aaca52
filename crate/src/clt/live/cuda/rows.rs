//! The rows of all matrices as the backward pass goes over them: a table on the device, one line for each part of d columns.
//!
//! A launch covers a range of lines: those of all layers, or of one layer where its gradient is a dense product that has one buffer.
//! All layers together the longest list of one is waited for beside the others' work, not after it: on real text a feature may be
//! active on every token while most are active on a few.

use super::step::{threads, Told};
use super::tables::{pair, Table};
use super::{CudaClt, DeviceBatch, Matrix, Moments};
use crate::clt::kernels::cuda::{At, Gpu, Kernels};
use crate::clt::live::StepOptions;
use crate::clt::Tied;
use crate::error::Result;
use std::ops::Range;

/// Words of a line: `Rows` of `rows.cu`.
const LINE: usize = 22;

/// Which of its parts a gradient has, as in `rows.cu`.
const DENSE: usize = 1;
const SHARED_LISTS: usize = 2;
const OWN: usize = 4;
const COMMON: usize = 8;
const SQUARES: usize = 16;

/// What a pass over rows does.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pass {
    /// Products of entries with the rows: gradients of activations.
    Products,
    /// Squared norms of the rows' gradients.
    Measure,
    /// Gradients of the rows, and Adam's update.
    Spend,
    /// Products and update, each row read once.
    Meet,
}

/// Where gradients of rows come from; 0 for what is not there.
#[derive(Clone, Copy, Default)]
struct Terms {
    offsets: At,
    tokens: At,
    coefficients: At,
    layers: At,
    slab: At,
    stride: usize,
    at: usize,
    count: usize,
    groups: usize,
    ends: At,
    apart: u64,
    again: usize,
    own: At,
    common: At,
    sums: At,
    dense: At,
}

/// The table, and how many lines it has.
pub(super) struct RowTable(Table);

impl RowTable {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(RowTable(Table::new(gpu)?))
    }
}

fn line(matrix: &Matrix, tile: usize, terms: &Terms, [products, squares, norms]: [At; 3]) -> [u64; LINE] {
    let [m, v, scales] = match &matrix.moments {
        Moments::Full { m, v } => [m.at(), v.at(), 0],
        Moments::Small { m, v, scales } => [m.at(), v.at(), scales.at()],
    };
    let there = [(DENSE, terms.dense), (SHARED_LISTS, terms.layers), (OWN, terms.own), (COMMON, terms.common), (SQUARES, squares)];
    let flags = there.into_iter().filter(|(_, at)| *at != 0).map(|(flag, _)| flag).sum();
    [
        matrix.w.at(), terms.slab, terms.offsets, terms.tokens, terms.coefficients, products, m, v, scales, norms, squares, terms.own, terms.common, terms.sums, terms.dense, terms.layers, terms.ends,
        terms.apart, pair(matrix.row, tile), pair(terms.stride, terms.at), pair(flags, terms.groups), pair(terms.count, terms.again),
    ]
}

impl CudaClt {
    /// Whether no layer's gradient is a dense product, so that the passes over all layers are one launch each.
    pub(super) fn is_together(&self, tokens: usize) -> bool {
        (0..self.config.layers).all(|layer| !self.is_dense(layer, tokens, super::path::Side::Backward))
    }

    /// Parts that a layer's entries have products with: its targets', or one of tied decoders or where products were dense.
    pub(super) fn product_parts(&self, layer: usize, tokens: usize) -> usize {
        match self.config.tied {
            _ if self.is_dense(layer, tokens, super::path::Side::Backward) => 1,
            Tied::PerTarget => self.config.slots(layer),
            Tied::No | Tied::PerSource => self.parts(layer),
        }
    }

    /// Room for the products of `layers` one after the other, and of all layers where they are passed over together. Entries must have their
    /// places.
    pub(super) fn fit_products(&mut self, tokens: usize) -> Result<()> {
        let parts: Vec<usize> = (0..self.config.layers).map(|layer| self.product_parts(layer, tokens)).collect();
        let parts = if self.is_together(tokens) { parts.iter().sum() } else { parts.into_iter().max().unwrap_or(0) };
        self.shared.products.fit(self.room() * parts)
    }

    /// Numbers that each part has in `shared.products`: the most places of any layer.
    pub(super) fn room(&self) -> usize {
        self.layers.iter().map(|layer| layer.entries.list_values.len()).max().unwrap_or(0)
    }

    /// Where a layer's products begin.
    pub(super) fn products_of(&self, layer: usize, tokens: usize) -> At {
        let before = if self.is_together(tokens) { (0..layer).map(|layer| self.product_parts(layer, tokens)).sum() } else { 0 };
        self.shared.products.from(before * self.room())
    }

    /// Gradients at the targets, for decoder rows to meet, from target `target` on.
    fn at_targets(&self, tokens: usize, target: usize) -> Terms {
        let (d, stride) = (self.config.width, self.config.layers * self.config.width);
        Terms { slab: self.shared.slab.at(), stride, at: target * d, groups: self.groups.len(), ends: self.shared.ends.at(), apart: (self.rows(tokens) * stride) as u64, ..Terms::default() }
    }

    /// Writes the table, where anything in it moved: decoders layer by layer and part by part, encoders, and for decoders tied by target each
    /// source's entries with the rows of each target.
    pub(super) fn tell_rows(&mut self, batch: &DeviceBatch, options: &StepOptions) -> Result<()> {
        let (l, d, f, tokens) = (self.config.layers, self.config.width, self.config.features, batch.tokens);
        let dense: Vec<bool> = (0..l).map(|layer| self.is_dense(layer, tokens, super::path::Side::Backward)).collect();
        if dense.contains(&true) {
            // As large as the first layer's decoder at once: a buffer that grows would have to be given back.
            self.shared.gradient.fit(f * self.layers[0].decoder.row)?;
        }
        let (shared, room) = (&self.shared, self.room());
        let mut words = Vec::new();
        // Multiples of a row itself come from the sparsity and dead-feature terms, of the inputs' sums from the latter.
        let [own, common] = [options.sparsity > 0.0 || options.dead > 0.0, options.dead > 0.0];
        let if_there = |there: bool, at: At| if there { at } else { 0 };
        let gradient = |layer: usize| if dense[layer] { shared.gradient.at() } else { 0 };
        for (index, layer) in self.layers.iter().enumerate() {
            let (e, products) = (&layer.entries, self.products_of(index, tokens));
            for part in 0..self.parts(index) {
                let terms = self.at_targets(tokens, index + part);
                let terms = match self.config.tied {
                    Tied::PerTarget => Terms { layers: self.tables.layers.at(), count: index + 1, own: if_there(own, e.own.at()), ..terms },
                    _ => Terms { offsets: e.offsets.at(), tokens: e.list_tokens.at(), coefficients: e.list_values.at(), own: if_there(own, e.own.at()), dense: gradient(index), ..terms },
                };
                let [squares, norms] = [shared.squares.from(self.squares_from(index) + part * f), shared.norms.from(self.norms_from(index) + part * f)];
                words.extend(line(&layer.decoder, part, &terms, [products + (4 * part * room) as u64, squares, norms]));
            }
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let e = &layer.entries;
            let terms = Terms {
                offsets: e.offsets.at(),
                tokens: e.list_tokens.at(),
                coefficients: e.gradients.at(),
                slab: batch.inputs.from(index * tokens * d),
                again: if self.aux.k > 0 { tokens } else { 0 },
                stride: d,
                common: if_there(common, e.common.at()),
                sums: shared.input_sums.from(index * d),
                dense: gradient(index),
                ..Terms::default()
            };
            words.extend(line(&layer.encoder, 0, &terms, [0, 0, shared.norms.from(self.norms_from(index) + self.parts(index) * f)]));
        }
        if self.config.tied == Tied::PerTarget {
            for (index, layer) in self.layers.iter().enumerate() {
                let (e, products) = (&layer.entries, self.products_of(index, tokens));
                for target in index..l {
                    let terms = Terms { offsets: e.offsets.at(), tokens: e.list_tokens.at(), coefficients: e.list_values.at(), ..self.at_targets(tokens, target) };
                    words.extend(line(&self.layers[target].decoder, 0, &terms, [products + (4 * (target - index) * room) as u64, 0, 0]));
                }
            }
        }
        self.tables.rows.0.tell(words)
    }

    /// Lines of the decoders of some layers.
    fn decoder_lines(&self, layers: &Range<usize>) -> Range<usize> {
        let before = |layer: usize| (0..layer).map(|layer| self.parts(layer)).sum();
        before(layers.start)..before(layers.end)
    }

    /// Lines of the encoders of some layers.
    fn encoder_lines(&self, layers: &Range<usize>) -> Range<usize> {
        let decoders = self.decoder_lines(&(0..self.config.layers)).end;
        decoders + layers.start..decoders + layers.end
    }

    /// A pass over the decoder rows of `layers`.
    pub(super) fn pass_decoders(&self, layers: &Range<usize>, pass: Pass, told: &Told) -> Result<()> {
        let (l, lines) = (self.config.layers, self.decoder_lines(layers));
        if self.config.tied == Tied::PerTarget && pass == Pass::Products {
            // Behind the encoders; a layer's entries meet the rows of all later targets.
            let (from, before) = (self.encoder_lines(&(0..l)).end, |layer: usize| (0..layer).map(|layer| l - layer).sum::<usize>());
            return self.pass(from + before(layers.start)..from + before(layers.end), pass, told);
        }
        self.pass(lines, pass, told)
    }

    /// A pass over the encoder rows of `layers`.
    pub(super) fn pass_encoders(&self, layers: &Range<usize>, pass: Pass, told: &Told) -> Result<()> {
        self.pass(self.encoder_lines(layers), pass, told)
    }

    /// `feature_pass` over some lines of the table.
    fn pass(&self, lines: Range<usize>, pass: Pass, told: &Told) -> Result<()> {
        let kernels = match (pass, &self.layers[0].decoder.moments) {
            (Pass::Products, _) => Kernels::PRODUCTS,
            (Pass::Measure, _) => Kernels::MEASURE,
            (Pass::Spend, Moments::Full { .. }) => Kernels::SPEND_FULL,
            (Pass::Spend, Moments::Small { .. }) => Kernels::SPEND_SMALL,
            (Pass::Meet, Moments::Full { .. }) => Kernels::MEET_FULL,
            (Pass::Meet, Moments::Small { .. }) => Kernels::MEET_SMALL,
        };
        let (table, d) = (self.tables.rows.0.at() + (8 * LINE * lines.start) as u64, self.config.width as u32);
        // SAFETY: a block a row and line; the lists' tokens are below T, and every row has its moments.
        unsafe { self.gpu.launch(kernels.of(self.stored), (self.config.features, lines.len()), threads(self.config.width), &[&table, &d, told]) }
    }
}
