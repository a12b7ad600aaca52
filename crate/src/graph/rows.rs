//! Rows: the exact direct effects of every source on a block of targets.
//!
//! Targets of one layer and neighbouring positions are carried down together (see
//! [`FrozenModel::carry`](crate::replacement::FrozenModel::carry)); at every MLP output and position
//! one GEMM with the decoder rows there adds to the block's effects. Blocks run side by side and are
//! bounded in memory: a block holds at most [`BLOCK_VALUES`] values of directions, or [`LEAST_TARGETS`] targets. Agrees with
//! circuit-tracer's backward passes to 1e-4 of the largest effect.

use super::edges::Edges;
use super::lanes::Lanes;
use super::sources::Sources;
use super::targets::Start;
use crate::clt::values;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::stop_requested;
use crate::replacement::{FeatureNode, FrozenModel, LocalReplacement, Site};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Values of directions that a block may hold: 16 MiB, some temporaries of the same size beside.
const BLOCK_VALUES: usize = 4 << 20;
/// Targets that make a GEMM efficient: a block that has them ends where the position changes.
const ENOUGH_TARGETS: usize = 32;
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
    pub fn new(local: &LocalReplacement, batch: usize) -> Result<Self> {
        Ok(RowEngine { frozen: local.frozen(), sources: Sources::new(local)?, active: local.active(), local: local.clone(), batch, lanes: Lanes::new()? })
    }

    /// Nodes before the logits: features, errors, tokens.
    pub fn first_logit(&self) -> usize {
        self.sources.features() + (self.sources.layers + 1) * self.sources.tokens
    }

    /// Most targets of a block whose directions reach `length` positions.
    fn block_targets(&self, length: usize) -> usize {
        self.batch.min(LEAST_TARGETS.max(BLOCK_VALUES / (length * self.sources.width)))
    }

    /// Rows of the outputs, in order. Those after the final norm go down together.
    pub fn outputs(&self, starts: &[Start]) -> Result<Edges> {
        let (s, device) = (&self.sources, self.local.embeddings().device());
        let mut edges = Edges::default();
        let step = self.block_targets(s.tokens);
        let mut k = 0;
        while k < starts.len() {
            let node = |k: usize| (self.first_logit() + k) as u32;
            let one = |direction: &[f32]| Tensor::from_slice(direction, (1, s.width), device);
            match &starts[k] {
                Start::Encoder(place, direction) => {
                    let site = self.local.replacement().clt().config().input;
                    let g = self.frozen.from_input(place.layer, site, &[place.position], &one(direction)?)?;
                    edges.append(&self.block(vec![Group { below: place.layer, targets: vec![(node(k), place.position)], g }])?);
                    k += 1;
                }
                Start::Stream { layer, position, .. } => {
                    let row = |start: &'_ Start| match start {
                        Start::Stream { layer: l, position: p, direction } if (l, p) == (layer, position) => Some(direction.clone()),
                        _ => None,
                    };
                    let rows: Vec<Vec<f32>> = starts[k..].iter().take(step).map_while(row).collect();
                    let directions = Tensor::from_vec(rows.concat(), (rows.len(), s.width), device)?;
                    let g = self.frozen.from_stream(&vec![*position; rows.len()], &directions)?;
                    let targets = (k..k + rows.len()).map(|k| (node(k), *position)).collect();
                    edges.append(&self.block(vec![Group { below: *layer, targets, g }])?);
                    k += rows.len();
                }
                Start::Output(_) => {
                    let rows = starts[k..].iter().take(step).map_while(|start| if let Start::Output(row) = start { Some(row.as_slice()) } else { None });
                    let rows: Vec<&[f32]> = rows.collect();
                    let g = self.frozen.from_output(&Tensor::from_vec(rows.concat(), (rows.len(), s.width), device)?)?;
                    let targets = (k..k + rows.len()).map(|k| (node(k), s.tokens - 1)).collect();
                    edges.append(&self.block(vec![Group { below: s.layers, targets, g }])?);
                    k += rows.len();
                }
            }
        }
        Ok(edges)
    }

    /// Appends the rows of `features` (ascending numbers of active features) to `edges`, in order,
    /// and returns how many were done: fewer when a stop was requested.
    pub fn features(&self, features: &[u32], edges: &mut Edges, progress: impl FnMut(usize)) -> Result<usize> {
        Ok(self.blocks(&self.split(features, |a, b| a.layer == b.layer), edges, progress)?.len())
    }

    /// As [`RowEngine::features`] for few features of all layers: those of neighbouring positions go
    /// down together, whatever their layers. Rows come in any order; returns whose were done.
    pub fn scattered(&self, features: &[u32], edges: &mut Edges, progress: impl FnMut(usize)) -> Result<Vec<u32>> {
        let mut features = features.to_vec();
        features.sort_by_key(|number| (self.active[*number as usize].position, *number));
        self.blocks(&self.split(&features, |_, _| true), edges, progress)
    }

    fn blocks(&self, blocks: &[&[u32]], edges: &mut Edges, mut progress: impl FnMut(usize)) -> Result<Vec<u32>> {
        let mut done = Vec::new();
        for some in blocks.chunks(4 * self.lanes.count()) {
            if stop_requested() {
                break;
            }
            self.lanes.map(some, |block| self.feature_block(block))?.iter().for_each(|rows| edges.append(rows));
            some.iter().for_each(|block| done.extend_from_slice(block));
            progress(done.len());
        }
        Ok(done)
    }

    /// Cuts features into blocks of few positions, whose neighbours all satisfy `together`.
    fn split<'a>(&self, features: &'a [u32], together: impl Fn(FeatureNode, FeatureNode) -> bool) -> Vec<&'a [u32]> {
        let mut blocks = Vec::new();
        let mut start = 0;
        let place = |i: usize| self.active[features[i] as usize];
        for end in 1..=features.len() {
            let size = end - start;
            let ends = end == features.len() || {
                let (last, next) = (place(end - 1), place(end));
                let most = self.block_targets(next.position + 1);
                !together(last, next) || size >= most || (size >= ENOUGH_TARGETS && next.position != last.position)
            };
            if ends {
                blocks.push(&features[start..end]);
                start = end;
            }
        }
        blocks
    }

    fn feature_block(&self, block: &[u32]) -> Result<Edges> {
        let clt = self.local.replacement().clt();
        let mut targets: Vec<(u32, FeatureNode)> = block.iter().map(|number| (*number, self.active[*number as usize])).collect();
        targets.sort_by_key(|(_, place)| std::cmp::Reverse(place.layer));
        let length = targets.iter().map(|(_, place)| place.position + 1).max().unwrap_or(0);
        let groups = targets.chunk_by(|a, b| a.1.layer == b.1.layer).map(|group| {
            let layer = group[0].1.layer;
            let features: Vec<u32> = group.iter().map(|(_, place)| place.feature as u32).collect();
            let positions: Vec<usize> = group.iter().map(|(_, place)| place.position).collect();
            let g = self.frozen.from_input(layer, clt.config().input, &positions, &clt.encoder_rows(layer, &features)?)?;
            let short = length - g.dim(1)?;
            let g = if short == 0 { g } else { g.pad_with_zeros(1, 0, short)? };
            Ok(Group { below: layer, targets: group.iter().map(|(number, _)| *number).zip(positions).collect(), g })
        });
        self.block(groups.collect::<Result<_>>()?)
    }

    /// Rows of the groups' targets, group by group.
    fn block(&self, groups: Vec<Group>) -> Result<Edges> {
        let Some(first) = groups.first() else { return Ok(Edges::default()) };
        let (top, length) = (first.below, first.g.dim(1)?);
        let targets: Vec<(usize, u32, usize)> = groups.iter().flat_map(|group| group.targets.iter().map(|(node, p)| (group.below, *node, *p))).collect();
        let mut columns: Vec<Column> = (0..length).map(|p| Column::new(targets.len(), top, self.sources.below(top, p))).collect();
        self.frozen.carry_all(groups.into_iter().map(|group| (group.below, group.g)).collect(), &mut |site, g| {
            let g = g.to_device(&Device::Cpu)?.contiguous()?;
            let g = g.storage_and_layout();
            let g = values(&g)?;
            columns.par_iter_mut().enumerate().try_for_each(|(p, column)| column.add(&self.sources, site, g, p, length))
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
        let mut push = |source: usize, weight: f32| {
            if weight != 0.0 {
                edges.push(source as u32, weight);
            }
        };
        for layer in 0..below {
            for (p, column) in columns.iter().enumerate() {
                let (numbers, from) = (s.numbers(layer, p), s.below(layer, p));
                let at = b * column.stride + from;
                numbers.zip(&column.features[at..]).for_each(|(number, weight)| push(number, *weight));
            }
        }
        for layer in 0..below {
            columns.iter().enumerate().for_each(|(p, column)| push(s.features() + layer * s.tokens + p, column.errors[b * column.below + layer]));
        }
        columns.iter().enumerate().for_each(|(p, column)| push(s.features() + s.layers * s.tokens + p, column.tokens[b]));
    }
}

/// Targets `(node, position)` of one layer, and their directions `[B, T', d]` at the end of block
/// `below - 1`.
struct Group {
    below: usize,
    targets: Vec<(u32, usize)>,
    g: Tensor,
}

/// The effects of what stands at one position on B targets, of which those that have joined come first.
struct Column {
    /// The highest layer below which effects are.
    below: usize,
    /// Features at this position below that.
    stride: usize,
    /// `[B, stride]`.
    features: Vec<f32>,
    /// `[B, below]`.
    errors: Vec<f32>,
    /// `[B]`.
    tokens: Vec<f32>,
}

impl Column {
    fn new(count: usize, below: usize, stride: usize) -> Self {
        Column { below, stride, features: vec![0.0; count * stride], errors: vec![0.0; count * below], tokens: vec![0.0; count] }
    }

    /// Adds the effects at `site`, where the directions `g [joined, length, d]` are.
    fn add(&mut self, sources: &Sources, site: Site, g: &[f32], p: usize, length: usize) -> Result<()> {
        let width = sources.width;
        let at = |b: usize| &g[(b * length + p) * width..(b * length + p + 1) * width];
        match site {
            Site::Embedding => self.tokens.iter_mut().enumerate().for_each(|(b, token)| *token += dot(at(b), sources.embedding(p))),
            Site::MlpOut(layer) => {
                let error = sources.error(layer, p);
                let joined = g.len() / (length * width);
                for b in 0..joined {
                    self.errors[b * self.below + layer] += dot(at(b), error);
                }
                let rows = sources.decoder_rows(layer, p)?;
                let into = Into { values: &mut self.features[..joined * self.stride], stride: self.stride, first: sources.first_column(layer, p) };
                add_products(into, &g[p * width..], length * width, &rows, width)?;
            }
        }
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Columns from `first` on of a matrix `[count, stride]`.
struct Into<'a> {
    values: &'a mut [f32],
    stride: usize,
    first: usize,
}

/// `into[b, j] += Σ_k a[b, k] · rows[j, k]`: `a` has rows `a_stride` apart, `rows` is `[n, width]`.
fn add_products(Into { values, stride, first }: Into<'_>, a: &[f32], a_stride: usize, rows: &[f32], width: usize) -> Result<()> {
    let n = rows.len() / width;
    let count = values.len() / stride.max(1);
    if n == 0 || count == 0 {
        return Ok(());
    }
    if first + n > stride || (count - 1) * a_stride + width > a.len() {
        return Err(Error::new(ErrorKind::Tensor, format!("add_products: {n} rows into {stride} columns, {} values of directions", a.len())));
    }
    // SAFETY: `values` is [count, stride] with first + n <= stride, `a` reaches row count - 1 (both checked
    // above), `rows` is [n, width], and `values` is borrowed mutably, so nothing aliases.
    unsafe {
        gemm::gemm(
            count, n, width,
            values[first..].as_mut_ptr(), 1, stride as isize, true,
            a.as_ptr(), 1, a_stride as isize,
            rows.as_ptr(), width as isize, 1,
            1.0, 1.0, false, false, false,
            gemm::Parallelism::None,
        );
    }
    Ok(())
}
