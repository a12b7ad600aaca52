//! Edges: direct effects of nodes on nodes, in compressed rows, one row a target.
//!
//! Only features and logits are targets, and a target is reached only from earlier layers and
//! positions, so about a fifth of a dense `[nodes, nodes]` matrix is there at all. Cost: 8 bytes an
//! edge, in memory or in files. Node numbers are those of the graph; `sources` ascend within a row, `targets` over rows.

use super::store::Array;
use crate::error::{Error, ErrorKind, Result};
use std::path::Path;

/// One edge: `weight` is the direct linear effect of `source` on `target`, signed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// Node that causes.
    pub source: usize,
    /// Node that is affected.
    pub target: usize,
    /// Effect on the target's pre-activation, or demeaned logit.
    pub weight: f32,
}

/// All edges of a graph, row by row of their targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Edges {
    targets: Vec<u32>,
    offsets: Vec<usize>,
    sources: Array<u32>,
    weights: Array<f32>,
}

impl Default for Edges {
    fn default() -> Self {
        Edges { targets: Vec::new(), offsets: vec![0], sources: Array::default(), weights: Array::default() }
    }
}

impl Edges {
    /// Edges from a dense matrix, `matrix[target * nodes + source]`; zeros are no edges.
    ///
    /// # Errors
    /// `BadInput` when the matrix is not square, or when a target has an edge from a later target:
    /// the nodes must come in an order in which effects only go forward. `NotFinite` for NaN.
    pub fn from_dense(matrix: &[f32], nodes: usize) -> Result<Self> {
        if matrix.len() != nodes * nodes {
            return Err(Error::expected(ErrorKind::BadInput, "Edges::from_dense: matrix", matrix.len(), format_args!("{nodes} x {nodes} values")));
        }
        let mut edges = Edges::default();
        for (target, row) in matrix.chunks_exact(nodes.max(1)).enumerate() {
            for (source, weight) in row.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                if !weight.is_finite() {
                    return Err(Error::new(ErrorKind::NotFinite, format!("Edges::from_dense: effect of {source} on {target}: {weight}")));
                }
                edges.push(source as u32, *weight);
            }
            edges.close(target as u32);
        }
        edges.retain_rows();
        for row in edges.rows() {
            let later = row.sources.iter().find(|source| **source >= row.target && edges.row_of(**source as usize).is_some());
            if let Some(source) = later {
                return Err(Error::expected(ErrorKind::BadInput, format_args!("Edges::from_dense: effect on {}", row.target), format_args!("one from {source}"), "sources that come before it"));
            }
        }
        Ok(edges)
    }

    /// No edges, kept in files in `folder` once there are some.
    ///
    /// # Errors
    /// `MissingFile` when there is no such folder; `Io` when nothing can be written there.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Edges { sources: Array::in_folder(folder)?, weights: Array::in_folder(folder)?, ..Edges::default() })
    }

    /// Rows of `targets` that end at `ends`.
    pub(crate) fn from_rows(targets: Vec<u32>, ends: Vec<usize>, sources: Vec<u32>, weights: Vec<f32>) -> Self {
        let offsets = [0].into_iter().chain(ends).collect();
        Edges { targets, offsets, sources: Array::Memory(sources), weights: Array::Memory(weights) }
    }

    /// No edges, kept where these are.
    pub(crate) fn beside(&self) -> Result<Self> {
        self.sources.folder().map_or_else(|| Ok(Edges::default()), Edges::in_folder)
    }

    /// Appends an edge to the row that [`Edges::close`] will end.
    pub(crate) fn push(&mut self, source: u32, weight: f32) {
        self.sources.push(source);
        self.weights.push(weight);
    }

    /// Ends a row.
    pub(crate) fn close(&mut self, target: u32) {
        self.targets.push(target);
        self.offsets.push(self.sources.len());
    }

    /// Appends the rows of `other`.
    ///
    /// # Errors
    /// `DiskFull` or `Io` where these edges lie in files.
    pub(crate) fn append(&mut self, other: &Edges) -> Result<()> {
        let base = self.sources.len();
        self.sources.extend(&other.sources)?;
        self.weights.extend(&other.weights)?;
        self.targets.extend_from_slice(&other.targets);
        self.offsets.extend(other.offsets[1..].iter().map(|offset| base + offset));
        Ok(())
    }

    /// Drops rows without an edge.
    fn retain_rows(&mut self) {
        let all: Vec<usize> = (0..self.targets.len()).filter(|&r| self.offsets[r] < self.offsets[r + 1]).collect();
        let mut offsets = vec![0];
        offsets.extend(all.iter().map(|&r| self.offsets[r + 1]));
        self.targets = all.iter().map(|&r| self.targets[r]).collect();
        self.offsets = offsets;
    }

    /// The edges that `keep` names (by number in storage order) with nodes renumbered: `number[old]`
    /// is the new number, `None` drops the node. Rows come out by ascending target.
    pub(crate) fn select(&self, number: &[Option<u32>], keep: impl Fn(usize) -> bool) -> Edges {
        let mut out = Edges::default();
        for r in self.order(number) {
            self.select_row(&mut out, r, number, &keep);
        }
        out
    }

    /// As [`Edges::select`], put into `out`.
    ///
    /// # Errors
    /// As [`Edges::append`].
    pub(crate) fn select_into(&self, mut out: Edges, number: &[Option<u32>], keep: impl Fn(usize) -> bool) -> Result<Edges> {
        const ROWS: usize = 256;
        for some in self.order(number).chunks(ROWS) {
            let mut part = Edges::default();
            some.iter().for_each(|&r| self.select_row(&mut part, r, number, &keep));
            out.append(&part)?;
        }
        Ok(out)
    }

    /// Rows whose target is kept, by ascending target.
    fn order(&self, number: &[Option<u32>]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.targets.len()).filter(|&r| number[self.targets[r] as usize].is_some()).collect();
        order.sort_by_key(|&r| self.targets[r]);
        order
    }

    fn select_row(&self, out: &mut Edges, r: usize, number: &[Option<u32>], keep: &impl Fn(usize) -> bool) {
        for e in self.offsets[r]..self.offsets[r + 1] {
            if let Some(source) = number[self.sources[e] as usize].filter(|_| keep(e)) {
                out.push(source, self.weights[e]);
            }
        }
        if let Some(target) = number[self.targets[r] as usize] {
            out.close(target);
        }
    }

    /// Number of edges.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// True when there is no edge.
    #[doc(hidden)]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Rows, in storage order.
    pub(crate) fn rows(&self) -> impl DoubleEndedIterator<Item = Row<'_>> + ExactSizeIterator {
        (0..self.targets.len()).map(|r| self.row(r))
    }

    /// Row number `r`.
    pub(crate) fn row(&self, r: usize) -> Row<'_> {
        let range = self.offsets[r]..self.offsets[r + 1];
        Row { target: self.targets[r], first: range.start, sources: &self.sources[range.clone()], weights: &self.weights[range] }
    }

    /// Row of a target, if it has one and rows ascend.
    fn row_of(&self, target: usize) -> Option<usize> {
        self.targets.binary_search(&u32::try_from(target).ok()?).ok()
    }

    /// The effects on `target` as `(sources, weights)`; empty when nothing reaches it.
    pub fn into(&self, target: usize) -> (&[u32], &[f32]) {
        self.row_of(target).map_or((&[], &[]), |r| {
            let row = self.row(r);
            (row.sources, row.weights)
        })
    }

    /// The effect of `source` on `target`, 0 when there is none.
    pub fn weight(&self, source: usize, target: usize) -> f32 {
        let (sources, weights) = self.into(target);
        u32::try_from(source).ok().and_then(|source| sources.binary_search(&source).ok()).map_or(0.0, |at| weights[at])
    }

    /// Every edge, by ascending target, then source.
    pub fn iter(&self) -> impl Iterator<Item = Edge> + '_ {
        self.rows().flat_map(|row| {
            row.sources.iter().zip(row.weights).map(move |(source, weight)| Edge {
                source: *source as usize,
                target: row.target as usize,
                weight: *weight,
            })
        })
    }
}

/// One row: the effects on one target. `first` is the number of its first edge in storage order.
pub(crate) struct Row<'a> {
    pub target: u32,
    pub first: usize,
    pub sources: &'a [u32],
    pub weights: &'a [f32],
}

impl Row<'_> {
    /// Sum of |weight|, kept above `floor` so that it can divide.
    pub fn norm(&self, floor: f64) -> f64 {
        self.weights.iter().map(|weight| f64::from(weight.abs())).sum::<f64>().max(floor)
    }
}
