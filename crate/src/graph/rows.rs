//! Rows: the exact direct effects of every source on a block of targets.
//!
//! Targets of neighbouring positions are carried down together (see
//! [`FrozenModel::carry`](crate::replacement::FrozenModel::carry)), each at the positions that it reaches; at every MLP output and position
//! one GEMM with the decoder rows there adds to the block's effects. Blocks run side by side and are
//! bounded in memory: a block holds at most [`BLOCK_VALUES`] values of directions, or [`LEAST_TARGETS`] targets. Agrees with
//! circuit-tracer's backward passes to 1e-4 of the largest effect.

use super::edges::Edges;
use super::lanes::Lanes;
use super::sources::Sources;
use super::targets::Start;
use crate::clt::values;
use crate::error::Result;
use crate::model::back::{dot, products};
use crate::model::flow::Flow;
use crate::progress::stop_requested;
use crate::replacement::{FeatureNode, FrozenModel, LocalReplacement, Site};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Values of directions that a block may hold: 8 MiB, some temporaries of the same size beside.
const BLOCK_VALUES: usize = 2 << 20;
/// Targets that a block may hold however long the prompt is: fewer would make products of vectors.
const LEAST_TARGETS: usize = 8;

/// Computes rows for one prompt.
pub(crate) struct RowEngine {
    local: LocalReplacement,
    frozen: FrozenModel,
    pub sources: Sources,
    pub active: Vec<FeatureNode>,
    batch: usize,
    lanes: Lanes,
}

impl RowEngine {
    /// With `positions` their learnt embeddings are sources.
    pub fn new(local: &LocalReplacement, batch: usize, positions: bool) -> Result<Self> {
        Ok(RowEngine { frozen: local.frozen(), sources: Sources::new(local, positions)?, active: local.active(), local: local.clone(), batch, lanes: Lanes::new()? })
    }

    /// Nodes before the logits: features, errors, tokens, positions where they are.
    pub fn first_logit(&self) -> usize {
        let sources = &self.sources;
        sources.features() + (sources.layers + 1 + usize::from(sources.has_positions())) * sources.tokens
    }

    /// Whether a block of `count` targets that have `rows` rows in all can take another of `more`, where
    /// all the targets at hand have `all` rows: few are shared out evenly over the lanes.
    fn has_room(&self, count: usize, rows: usize, more: usize, all: usize) -> bool {
        let most = (BLOCK_VALUES / self.sources.width).min(all.div_ceil(self.lanes.count()));
        count < self.batch && (count < LEAST_TARGETS || rows + more <= most)
    }

    /// Appends the rows of the outputs to `edges`, in order. Those after the final norm go down together.
    pub fn outputs(&self, starts: &[Start], edges: &mut Edges) -> Result<()> {
        let (s, device) = (&self.sources, self.local.embeddings().device());
        let step = (1..starts.len()).find(|&count| !self.has_room(count, count * s.tokens, s.tokens, usize::MAX)).unwrap_or(starts.len());
        let mut k = 0;
        while k < starts.len() {
            let node = |k: usize| (self.first_logit() + k) as u32;
            let one = |direction: &[f32]| Tensor::from_slice(direction, (1, s.width), device);
            match &starts[k] {
                Start::Encoder(place, direction) => {
                    let site = self.local.replacement().clt().config().input;
                    let flow = self.frozen.input_flow(place.layer, site, &[place.position], &one(direction)?)?;
                    edges.append(&self.block(vec![Group { below: place.layer, targets: vec![(node(k), place.position)], flow }])?)?;
                    k += 1;
                }
                Start::Stream { layer, position, .. } => {
                    let row = |start: &'_ Start| match start {
                        Start::Stream { layer: l, position: p, direction } if (l, p) == (layer, position) => Some(direction.clone()),
                        _ => None,
                    };
                    let rows: Vec<Vec<f32>> = starts[k..].iter().take(step).map_while(row).collect();
                    let directions = Tensor::from_vec(rows.concat(), (rows.len(), s.width), device)?;
                    let flow = Flow::points(&directions, &vec![*position; rows.len()])?;
                    let targets = (k..k + rows.len()).map(|k| (node(k), *position)).collect();
                    edges.append(&self.block(vec![Group { below: *layer, targets, flow }])?)?;
                    k += rows.len();
                }
                Start::Output(_) => {
                    let rows = starts[k..].iter().take(step).map_while(|start| if let Start::Output(row) = start { Some(row.as_slice()) } else { None });
                    let rows: Vec<&[f32]> = rows.collect();
                    let flow = self.frozen.output_flow(&Tensor::from_vec(rows.concat(), (rows.len(), s.width), device)?)?;
                    let targets = (k..k + rows.len()).map(|k| (node(k), s.tokens - 1)).collect();
                    edges.append(&self.block(vec![Group { below: s.layers, targets, flow }])?)?;
                    k += rows.len();
                }
            }
        }
        Ok(())
    }

    /// Appends the rows of `features` (ascending numbers of active features) to `edges`, in order,
    /// and returns how many were done: fewer when a stop was requested.
    pub fn features(&self, features: &[u32], edges: &mut Edges, progress: impl FnMut(usize)) -> Result<usize> {
        Ok(self.blocks(&self.split(features), edges, progress)?.len())
    }

    /// As [`RowEngine::features`] for few features of all layers: those of neighbouring positions go
    /// down together, whatever their layers. Rows come in any order; returns whose were done.
    pub fn scattered(&self, features: &[u32], edges: &mut Edges, progress: impl FnMut(usize)) -> Result<Vec<u32>> {
        let mut features = features.to_vec();
        features.sort_by_key(|number| (self.active[*number as usize].position, *number));
        self.blocks(&self.share(&features), edges, progress)
    }

    fn blocks(&self, blocks: &[&[u32]], edges: &mut Edges, mut progress: impl FnMut(usize)) -> Result<Vec<u32>> {
        let mut done = Vec::new();
        for some in blocks.chunks(4 * self.lanes.count()) {
            if stop_requested() {
                break;
            }
            self.lanes.map(some, |block| self.feature_block(block))?.iter().try_for_each(|rows| edges.append(rows))?;
            some.iter().for_each(|block| done.extend_from_slice(block));
            progress(done.len());
        }
        Ok(done)
    }

    /// Cuts features into blocks of one layer each.
    fn split<'a>(&self, features: &'a [u32]) -> Vec<&'a [u32]> {
        let mut blocks = Vec::new();
        let (mut start, mut rows) = (0, 0);
        let place = |i: usize| self.active[features[i] as usize];
        let all = (0..features.len()).map(|i| place(i).position + 1).sum();
        for end in 1..=features.len() {
            rows += place(end - 1).position + 1;
            let goes_on = end < features.len() && place(end - 1).layer == place(end).layer && self.has_room(end - start, rows, place(end).position + 1, all);
            if !goes_on {
                blocks.push(&features[start..end]);
                (start, rows) = (end, 0);
            }
        }
        blocks
    }

    /// Cuts features of any layers into blocks that take about as long as one another, as many for each lane.
    fn share<'a>(&self, features: &'a [u32]) -> Vec<&'a [u32]> {
        let s = &self.sources;
        let most = (BLOCK_VALUES / s.width).max(LEAST_TARGETS * s.tokens);
        let rows = |number: u32| self.active[number as usize].position + 1;
        // The products of a target's maps and those with the decoder rows below it, a position.
        let around = s.features().div_ceil(s.layers * s.tokens);
        let cost = |number: u32| {
            let layer = self.active[number as usize].layer;
            rows(number) * (1 + layer * (4 * s.width + (layer + 1) * around))
        };
        let (all, size) = features.iter().fold((0, 0), |(all, size), &number| (all + cost(number), size + rows(number)));
        let count = size.div_ceil(most * self.lanes.count()).max(features.len().div_ceil(self.batch * self.lanes.count())) * self.lanes.count();
        let mut blocks = Vec::with_capacity(count);
        let (mut start, mut held, mut done) = (0, 0, 0);
        for (i, &number) in features.iter().enumerate() {
            let full = i - start == self.batch || held + rows(number) > 2 * most;
            // A block ends where its share of the whole does, the middle of a target deciding.
            if i > start && (full || (done + cost(number) / 2) * count >= all * (blocks.len() + 1)) {
                blocks.push(&features[start..i]);
                (start, held) = (i, 0);
            }
            held += rows(number);
            done += cost(number);
        }
        if start < features.len() {
            blocks.push(&features[start..]);
        }
        blocks
    }

    fn feature_block(&self, block: &[u32]) -> Result<Edges> {
        let clt = self.local.replacement().clt();
        let mut targets: Vec<(u32, FeatureNode)> = block.iter().map(|number| (*number, self.active[*number as usize])).collect();
        targets.sort_by_key(|(_, place)| std::cmp::Reverse(place.layer));
        let groups = targets.chunk_by(|a, b| a.1.layer == b.1.layer).map(|group| {
            let layer = group[0].1.layer;
            let features: Vec<u32> = group.iter().map(|(_, place)| place.feature as u32).collect();
            let positions: Vec<usize> = group.iter().map(|(_, place)| place.position).collect();
            let flow = self.frozen.input_flow(layer, clt.config().input, &positions, &clt.encoder_rows(layer, &features)?)?;
            Ok(Group { below: layer, targets: group.iter().map(|(number, _)| *number).zip(positions).collect(), flow })
        });
        self.block(groups.collect::<Result<_>>()?)
    }

    /// Rows of the groups' targets, group by group.
    fn block(&self, groups: Vec<Group>) -> Result<Edges> {
        let top = groups.first().map_or(0, |group| group.below);
        let targets: Vec<(usize, u32, usize)> = groups.iter().flat_map(|group| group.targets.iter().map(|(node, p)| (group.below, *node, *p))).collect();
        let length = targets.iter().map(|(_, _, position)| position + 1).max().unwrap_or(0);
        let mut columns: Vec<Column> = (0..length)
            .map(|p| Column::new((0..targets.len()).filter(|&b| targets[b].2 >= p).collect(), top, &self.sources, p))
            .collect();
        self.frozen.carry_all(groups.into_iter().map(|group| (group.below, group.flow)).collect(), &mut |site, flow| {
            let rows = flow.rows.to_device(&Device::Cpu)?.contiguous()?;
            let rows = rows.storage_and_layout();
            let directions = Directions::new(values(&rows)?, flow, self.sources.width);
            columns.par_iter_mut().enumerate().try_for_each(|(p, column)| column.add(&self.sources, site, &directions, p))
        })?;
        let mut edges = Edges::default();
        for (b, (below, node, position)) in targets.into_iter().enumerate() {
            self.compress(b, below, &columns[..=position], &mut edges);
            edges.close(node);
        }
        Ok(edges)
    }

    /// Appends target `b`'s effects in node order, without the zeros.
    fn compress(&self, b: usize, below: usize, columns: &[Column], edges: &mut Edges) {
        let s = &self.sources;
        let slots: Vec<usize> = columns.iter().map(|column| column.targets.partition_point(|&target| target < b)).collect();
        let mut push = |source: usize, weight: f32| {
            if weight != 0.0 {
                edges.push(source as u32, weight);
            }
        };
        for layer in 0..below {
            for (p, (column, slot)) in columns.iter().zip(&slots).enumerate() {
                let (numbers, from) = (s.numbers(layer, p), s.below(layer, p));
                let at = slot * column.stride + from;
                numbers.zip(&column.features[at..]).for_each(|(number, weight)| push(number, *weight));
            }
        }
        for layer in 0..below {
            let errors = columns.iter().zip(&slots).map(|(column, slot)| column.errors[slot * column.below + layer]);
            errors.enumerate().for_each(|(p, weight)| push(s.features() + layer * s.tokens + p, weight));
        }
        for place in [s.layers, s.layers + 1] {
            let effects = columns.iter().map(|column| if place == s.layers { &column.tokens } else { &column.positions });
            let effects = effects.zip(&slots).filter_map(|(effects, slot)| effects.get(*slot));
            effects.enumerate().for_each(|(p, weight)| push(s.features() + place * s.tokens + p, *weight));
        }
    }
}

/// Targets `(node, position)` of one layer, and their directions at the end of block `below - 1`.
struct Group {
    below: usize,
    targets: Vec<(u32, usize)>,
    flow: Flow,
}

/// The directions of targets that have joined.
struct Directions<'a> {
    values: &'a [f32],
    width: usize,
    flow: &'a Flow,
    /// First row of each target.
    firsts: Vec<usize>,
}

impl<'a> Directions<'a> {
    fn new(values: &'a [f32], flow: &'a Flow, width: usize) -> Self {
        let mut next = 0;
        let firsts = flow.spans.iter().map(|span| {
            next += span.len();
            next - span.len()
        });
        Directions { values, width, flow, firsts: firsts.collect() }
    }

    /// The direction of target `b` at position `p`, if it has come there.
    fn get(&self, b: usize, p: usize) -> Option<&'a [f32]> {
        let span = self.flow.spans.get(b).filter(|span| span.contains(&p))?;
        let row = self.firsts[b] + p - span.start;
        Some(&self.values[row * self.width..(row + 1) * self.width])
    }
}

/// The effects of what stands at one position on the targets that it can reach.
struct Column {
    /// Numbers of the targets within the block, ascending: those that join first come first.
    targets: Vec<usize>,
    /// The highest layer below which effects are.
    below: usize,
    /// Features at this position below that.
    stride: usize,
    /// `[targets, stride]`.
    features: Vec<f32>,
    /// `[targets, below]`.
    errors: Vec<f32>,
    /// `[targets]`.
    tokens: Vec<f32>,
    /// `[targets]`; empty when positions are no sources.
    positions: Vec<f32>,
}

impl Column {
    fn new(targets: Vec<usize>, below: usize, sources: &Sources, p: usize) -> Self {
        let (count, stride) = (targets.len(), sources.below(below, p));
        let positions = vec![0.0; if sources.has_positions() { count } else { 0 }];
        Column { positions, targets, below, stride, features: vec![0.0; count * stride], errors: vec![0.0; count * below], tokens: vec![0.0; count] }
    }

    /// Adds the effects at `site` and position `p`.
    fn add(&mut self, sources: &Sources, site: Site, directions: &Directions<'_>, p: usize) -> Result<()> {
        let width = sources.width;
        let (slots, here): (Vec<usize>, Vec<&[f32]>) =
            self.targets.iter().enumerate().filter_map(|(slot, &target)| Some((slot, directions.get(target, p)?))).unzip();
        let layer = match site {
            Site::Embedding => {
                slots.iter().zip(&here).for_each(|(&slot, g)| self.tokens[slot] += dot(g, sources.embedding(p)));
                if let Some(position) = sources.position(p) {
                    slots.iter().zip(&here).for_each(|(&slot, g)| self.positions[slot] += dot(g, position));
                }
                return Ok(());
            }
            Site::MlpOut(layer) => layer,
        };
        let error = sources.error(layer, p);
        slots.iter().zip(&here).for_each(|(&slot, g)| self.errors[slot * self.below + layer] += dot(g, error));
        if slots.is_empty() {
            return Ok(());
        }
        let first = sources.first_column(layer, p);
        sources.decoder_rows(layer, p, |rows, activations| {
            let products = products(&here.concat(), rows, width);
            for (slot, products) in slots.into_iter().zip(products.chunks_exact(rows.len().max(1))) {
                let sums = &mut self.features[slot * self.stride + first..][..rows.len()];
                sums.iter_mut().zip(products).zip(activations).for_each(|((sum, product), activation)| *sum += product * activation);
            }
        })
    }
}
