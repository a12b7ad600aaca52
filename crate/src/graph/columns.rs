//! Columns: a block's effects on the CPU, one position at a time.
//!
//! At every MLP output and position one product of the targets that have come there with the decoder rows there, which
//! are multiplied where they lie; positions side by side where the calling pool has threads. The twin on a GPU is
//! [`super::on_device`].

use super::edges::Edges;
use super::rows::Group;
use super::sources::{Sources, Vectors};
use crate::clt::values;
use crate::error::Result;
use crate::model::back::{dot, products};
use crate::model::flow::Flow;
use crate::replacement::{FrozenModel, Site};
use rayon::prelude::*;

/// Rows of the groups' targets, group by group.
pub(super) fn block(frozen: &FrozenModel, sources: &Sources, vectors: &Vectors, groups: Vec<Group>) -> Result<Edges> {
    let top = groups.first().map_or(0, |group| group.below);
    let targets: Vec<(usize, u32, usize)> = groups.iter().flat_map(|group| group.targets.iter().map(|(node, p)| (group.below, *node, *p))).collect();
    let length = targets.iter().map(|(_, _, position)| position + 1).max().unwrap_or(0);
    let mut columns: Vec<Column> = (0..length)
        .map(|p| Column::new((0..targets.len()).filter(|&b| targets[b].2 >= p).collect(), top, sources, p))
        .collect();
    frozen.carry_all(groups.into_iter().map(|group| (group.below, group.flow)).collect(), &mut |site, flow| {
        let rows = flow.rows.contiguous()?;
        let rows = rows.storage_and_layout();
        let directions = Directions::new(values(&rows)?, flow, sources.width);
        columns.par_iter_mut().enumerate().try_for_each(|(p, column)| column.add(sources, vectors, site, &directions, p))
    })?;
    let mut edges = Edges::default();
    for (b, (below, node, position)) in targets.into_iter().enumerate() {
        compress(sources, b, below, &columns[..=position], &mut edges);
        edges.close(node);
    }
    Ok(edges)
}

/// Appends target `b`'s effects in node order, without the zeros.
fn compress(sources: &Sources, b: usize, below: usize, columns: &[Column], edges: &mut Edges) {
    let s = sources;
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
        errors.enumerate().for_each(|(p, weight)| push(s.error(layer) + p, weight));
    }
    for first in [s.token(), s.position()] {
        let effects = columns.iter().map(|column| if first == s.token() { &column.tokens } else { &column.positions });
        let effects = effects.zip(&slots).filter_map(|(effects, slot)| effects.get(*slot));
        effects.enumerate().for_each(|(p, weight)| push(first + p, *weight));
    }
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
        let positions = vec![0.0; if sources.has_positions { count } else { 0 }];
        Column { positions, targets, below, stride, features: vec![0.0; count * stride], errors: vec![0.0; count * below], tokens: vec![0.0; count] }
    }

    /// Adds the effects at `site` and position `p`.
    fn add(&mut self, sources: &Sources, vectors: &Vectors, site: Site, directions: &Directions<'_>, p: usize) -> Result<()> {
        let width = sources.width;
        let (slots, here): (Vec<usize>, Vec<&[f32]>) =
            self.targets.iter().enumerate().filter_map(|(slot, &target)| Some((slot, directions.get(target, p)?))).unzip();
        let layer = match site {
            Site::Embedding => {
                slots.iter().zip(&here).for_each(|(&slot, g)| self.tokens[slot] += dot(g, vectors.embedding(p)));
                if let Some(position) = vectors.position(p) {
                    slots.iter().zip(&here).for_each(|(&slot, g)| self.positions[slot] += dot(g, position));
                }
                return Ok(());
            }
            Site::MlpOut(layer) => layer,
        };
        let error = vectors.error(layer, p);
        slots.iter().zip(&here).for_each(|(&slot, g)| self.errors[slot * self.below + layer] += dot(g, error));
        if slots.is_empty() {
            return Ok(());
        }
        let first = sources.below(vectors.writing(layer).start, p);
        vectors.decoder_rows(layer, p, |rows, activations| {
            let products = products(&here.concat(), rows, width);
            for (slot, products) in slots.into_iter().zip(products.chunks_exact(rows.len().max(1))) {
                let sums = &mut self.features[slot * self.stride + first..][..rows.len()];
                sums.iter_mut().zip(products).zip(activations).for_each(|((sum, product), activation)| *sum += product * activation);
            }
        })
    }
}
