//! Rows: the exact direct effects of every source on a block of targets.
//!
//! Targets of neighbouring positions are carried down together (see
//! [`FrozenModel::carry`](crate::replacement::FrozenModel::carry)), each at the positions that it reaches; at every MLP output and position
//! one GEMM with the decoder rows there adds to the block's effects ([`super::columns`] on the CPU, [`super::on_device`] on a
//! GPU). Blocks are bounded in memory and run side by side, on a GPU one after the other. Agrees with
//! circuit-tracer's backward passes to 1e-4 of the largest effect.

use super::columns;
use super::edges::Edges;
use super::lanes::Lanes;
use super::on_device::OnDevice;
use super::sources::{Sources, Vectors};
use super::targets::Start;
use crate::error::Result;
use crate::model::flow::Flow;
use crate::progress::stop_requested;
use crate::replacement::{FeatureNode, FrozenModel, LocalReplacement};
use candle_core::Tensor;

/// Values of directions that a block may hold, some temporaries of the same size beside: 8 MiB, which a core's cache
/// nearly holds; on a GPU 256 MiB, to fill it.
const BLOCK_VALUES: [usize; 2] = [2 << 20, 64 << 20];
/// Values that a block's sums may have on a GPU, where they are dense: 1 GiB.
const BLOCK_SUMS: usize = 256 << 20;
/// Targets that a block may hold however long the prompt is: fewer would make products of vectors.
const LEAST_TARGETS: usize = 8;

/// Computes rows for one prompt.
pub(crate) struct RowEngine {
    local: LocalReplacement,
    frozen: FrozenModel,
    pub sources: Sources,
    pub active: Vec<FeatureNode>,
    body: Body,
    /// Values and targets that a block may hold.
    most: (usize, usize),
    lanes: Lanes,
}

enum Body {
    Host(Vectors),
    Device(OnDevice),
}

impl RowEngine {
    /// With `positions` their learnt embeddings are sources.
    pub fn new(local: &LocalReplacement, batch: usize, positions: bool) -> Result<Self> {
        let sources = Sources::new(local, positions);
        let (body, most, lanes) = if local.embeddings().device().is_cpu() {
            (Body::Host(Vectors::new(local, &sources)?), (BLOCK_VALUES[0], batch), Lanes::new()?)
        } else {
            // One stream: side by side they would only wait for each other.
            let targets = (BLOCK_SUMS / sources.nodes()).max(LEAST_TARGETS);
            (Body::Device(OnDevice::new(local, &sources)?), (BLOCK_VALUES[1], batch.min(targets)), Lanes::one()?)
        };
        Ok(RowEngine { frozen: local.frozen(), sources, active: local.active(), local: local.clone(), body, most, lanes })
    }

    /// Nodes before the logits: features, errors, tokens, positions where they are.
    pub fn first_logit(&self) -> usize {
        self.sources.nodes()
    }

    /// Whether a block of `count` targets that have `rows` rows in all can take another of `more`, where
    /// all the targets at hand have `all` rows: few are shared out evenly over the lanes.
    fn has_room(&self, count: usize, rows: usize, more: usize, all: usize) -> bool {
        let most = (self.most.0 / self.sources.width).min(all.div_ceil(self.lanes.count()));
        count < self.most.1 && (count < LEAST_TARGETS || rows + more <= most)
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
        let most = (self.most.0 / s.width).max(LEAST_TARGETS * s.tokens);
        let rows = |number: u32| self.active[number as usize].position + 1;
        // The products of a target's maps and those with the decoder rows below it, a position.
        let around = s.features().div_ceil(s.layers * s.tokens);
        let cost = |number: u32| {
            let layer = self.active[number as usize].layer;
            rows(number) * (1 + layer * (4 * s.width + (layer + 1) * around))
        };
        let (all, size) = features.iter().fold((0, 0), |(all, size), &number| (all + cost(number), size + rows(number)));
        let count = size.div_ceil(most * self.lanes.count()).max(features.len().div_ceil(self.most.1 * self.lanes.count())) * self.lanes.count();
        let mut blocks = Vec::with_capacity(count);
        let (mut start, mut held, mut done) = (0, 0, 0);
        for (i, &number) in features.iter().enumerate() {
            let full = i - start == self.most.1 || held + rows(number) > 2 * most;
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
        match &self.body {
            Body::Host(vectors) => columns::block(&self.frozen, &self.sources, vectors, groups),
            Body::Device(effects) => effects.block(&self.frozen, &self.sources, groups),
        }
    }
}

/// Targets `(node, position)` of one layer, and their directions at the end of block `below - 1`.
pub(super) struct Group {
    pub below: usize,
    pub targets: Vec<(u32, usize)>,
    pub flow: Flow,
}
