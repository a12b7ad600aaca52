//! Where everything lies, told to the device: kernels that go over all layers at once read it there.
//!
//! Tables are written when something moved, not at every step.

use super::rows::RowTable;
use super::{CudaClt, Layer, Vector};
use crate::clt::kernels::cuda::{At, Buffer, Gpu};
use crate::clt::Tied;
use crate::error::Result;

/// Words on the device, and what they are.
pub(super) struct Table {
    words: Vec<u64>,
    there: Buffer<u64>,
}

impl Table {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Table { words: Vec::new(), there: gpu.zeros(0)? })
    }

    /// Makes it say `words`.
    pub fn tell(&mut self, words: Vec<u64>) -> Result<()> {
        if words != self.words {
            self.there.fit(words.len())?;
            self.there.write(&words)?;
            self.words = words;
        }
        Ok(())
    }

    pub fn at(&self) -> At {
        self.there.at()
    }
}

/// Words of a source.
const SOURCE: usize = 7;

/// Two numbers of 32 bits beside each other.
pub(super) fn pair(low: usize, high: usize) -> u64 {
    low as u64 | ((high as u64) << 32)
}

pub(super) struct Tables {
    /// `Layer` of `layer.cuh`.
    pub layers: Table,
    /// `Source` of `decode.cu`.
    pub sources: Table,
    /// `Vector` of `learn.cu`.
    pub vectors: Table,
    /// `Part` of `report.cu`.
    pub parts: Table,
    /// `Rows` of `rows.cu`.
    pub rows: RowTable,
}

impl Tables {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Tables { layers: Table::new(gpu)?, sources: Table::new(gpu)?, vectors: Table::new(gpu)?, parts: Table::new(gpu)?, rows: RowTable::new(gpu)? })
    }
}

impl Layer {
    fn vectors(&self) -> impl Iterator<Item = &Vector> {
        [Some(&self.encoder_bias), self.log_threshold.as_ref(), self.skip.as_ref()].into_iter().flatten()
    }
}

impl CudaClt {
    /// Layers and their entries, once these have room.
    pub(super) fn tell_layers(&mut self, tokens: usize) -> Result<()> {
        self.fit_products(tokens)?;
        let (d, f, shared) = (self.config.width, self.config.features, &self.shared);
        let mut words = Vec::with_capacity(self.layers.len() * 32);
        for (index, layer) in self.layers.iter().enumerate() {
            let e = &layer.entries;
            let [log, threshold] = layer.log_threshold.as_ref().map_or([0, 0], |log| [log.w.at(), log.gradient.at()]);
            let [pre, list_pre] = if log == 0 { [0, 0] } else { [e.pre.at(), e.list_pre.at()] };
            words.extend([e.features.at(), e.values.at(), e.tokens.at(), pre, e.total.at(), e.starts.at(), e.counts.at(), e.cuts.at()]);
            words.push(self.own_cuts(index, tokens));
            words.extend([shared.lengths.from(index * f), e.offsets.at(), e.list.at(), e.list_tokens.at(), e.list_values.at(), list_pre, e.gradients.at()]);
            words.extend([e.own.at(), e.common.at(), e.sparsity.at(), e.dead_term.at(), e.fired.at(), layer.idle.at(), shared.squares.from(self.squares_from(index))]);
            words.extend([layer.encoder.w.at(), layer.encoder_bias.w.at(), layer.encoder_bias.gradient.at(), log, threshold, shared.input_sums.from(index * d), shared.hints.from(index)]);
            // Tied by target, a source's row goes on in the rows of all later targets, whose squares follow.
            words.push(match self.config.tied {
                Tied::No => pair(self.parts(index), 1),
                Tied::PerSource => pair(1, self.config.slots(index)),
                Tied::PerTarget => pair(self.config.layers - index, 1),
            });
            words.push(pair(self.lent_from(tokens), self.aux.k * tokens));
            words.extend([self.products_of(index, tokens), pair(self.product_parts(index, tokens), self.room())]);
        }
        self.tables.layers.tell(words)
    }

    /// What each layer writes to the reconstruction, group after group; nothing where `dense` products did. Tied by target,
    /// what each layer up to it writes to a target, target after target.
    pub(super) fn tell_sources(&mut self, dense: &[bool], tokens: usize) -> Result<()> {
        let (mut words, shared, l) = (Vec::new(), &self.shared, self.config.layers);
        let lists = |group: usize, index: usize| {
            let (e, at) = (&self.layers[index].entries, (group * l + index) * tokens);
            let [starts, counts] = if self.groups.len() > 1 { [shared.group_starts.from(at), shared.group_counts.from(at)] } else { [e.starts.at(), e.counts.at()] };
            [e.features.at(), e.values.at(), starts, counts]
        };
        for group in 0..self.groups.len() {
            for (index, layer) in self.layers.iter().enumerate() {
                let decoder = &layer.decoder;
                if self.config.tied == Tied::PerTarget {
                    (0..=index).for_each(|source| words.extend(lists(group, source).into_iter().chain([decoder.w.at(), pair(decoder.row, 0), pair(1, 0)])));
                } else {
                    let targets = if dense[index] { 0 } else { self.config.slots(index) };
                    words.extend(lists(group, index).into_iter().chain([decoder.w.at(), pair(decoder.row, index), pair(targets, 0)]));
                }
            }
        }
        self.tables.sources.tell(words)
    }

    /// Where in the table of sources those of a group begin; tied by target, those of a target.
    pub(super) fn sources_of(&self, group: usize, target: usize) -> At {
        let l = self.config.layers;
        let first = if self.config.tied == Tied::PerTarget { group * l * (l + 1) / 2 + target * (target + 1) / 2 } else { group * l };
        self.tables.sources.at() + (8 * SOURCE * first) as u64
    }

    /// Everything that is trained as a vector.
    fn vectors(&self) -> impl Iterator<Item = &Vector> {
        self.layers.iter().flat_map(Layer::vectors).chain([&self.decoder_bias])
    }

    /// Vectors, and what the gradient's norm is made of: squared norms of all rows, and the gradients of vectors.
    pub(super) fn tell_vectors(&mut self) -> Result<()> {
        let vectors = self.vectors().flat_map(|v| [v.w.at(), v.m.at(), v.v.at(), v.gradient.at(), v.w.len() as u64]).collect();
        let norms = [self.shared.norms.at(), pair(self.norms_from(self.config.layers), 0)];
        let parts = norms.into_iter().chain(self.vectors().flat_map(|v| [v.gradient.at(), pair(v.gradient.len(), 1)])).collect();
        self.tables.vectors.tell(vectors)?;
        self.tables.parts.tell(parts)
    }

    /// How many vectors there are, and the length of the longest.
    pub(super) fn count_vectors(&self) -> (usize, usize) {
        self.vectors().fold((0, 0), |(count, most), vector| (count + 1, most.max(vector.w.len())))
    }

    /// Parts of d columns of a layer's decoder rows: its targets, or 1 where they are tied.
    pub(super) fn parts(&self, layer: usize) -> usize {
        self.layers[layer].decoder.row / self.config.width
    }

    /// Where in `shared.squares` a layer's begin.
    pub(super) fn squares_from(&self, layer: usize) -> usize {
        (0..layer).map(|layer| self.parts(layer) * self.config.features).sum()
    }

    /// Where in `shared.norms` a layer's rows begin: those of its decoder, part by part, then of its encoder.
    pub(super) fn norms_from(&self, layer: usize) -> usize {
        (0..layer).map(|layer| (self.parts(layer) + 1) * self.config.features).sum()
    }
}
