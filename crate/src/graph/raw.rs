//! The whole graph as arrays in one safetensors file, by circuit-tracer's names and node order.
//!
//! `adjacency_matrix` is `[n, n]` (row = target) up to [`DENSE_NODES`] nodes; beyond that the same
//! as `adjacency_rows`, `adjacency_columns`, `adjacency_values`, with `edge_mask` beside the values.
//! Rows are streamed: nothing of size n² is held.

use super::{Graph, PruneConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::io::Write;
use std::path::Path;

/// Most nodes for which a dense matrix is written.
pub const DENSE_NODES: usize = 20_000;

type Fill<'a> = Box<dyn Fn(&mut dyn Write) -> std::io::Result<()> + 'a>;

/// An array that writes itself: name, type, shape, bytes.
struct Array<'a>(&'static str, Dtype, Vec<usize>, Fill<'a>);

impl<'a> Array<'a> {
    fn i64s(name: &'static str, shape: Vec<usize>, values: impl Fn() -> Box<dyn Iterator<Item = i64> + 'a> + 'a) -> Self {
        Array(name, Dtype::I64, shape, Box::new(move |out| values().try_for_each(|value| out.write_all(&value.to_le_bytes()))))
    }

    fn f32s(name: &'static str, shape: Vec<usize>, values: impl Fn() -> Box<dyn Iterator<Item = f32> + 'a> + 'a) -> Self {
        Array(name, Dtype::F32, shape, Box::new(move |out| values().try_for_each(|value| out.write_all(&value.to_le_bytes()))))
    }

    fn flags(name: &'static str, shape: Vec<usize>, values: impl Fn() -> Box<dyn Iterator<Item = bool> + 'a> + 'a) -> Self {
        Array(name, Dtype::U8, shape, Box::new(move |out| values().try_for_each(|value| out.write_all(&[u8::from(value)]))))
    }
}

impl Graph {
    pub(super) fn write_arrays(&self, path: &Path, config: &PruneConfig) -> Result<()> {
        if self.pruned().is_some() {
            return Err(Error::expected(ErrorKind::BadInput, "Graph::save: arrays", "a pruned graph", "a whole one").help("save the graph that was pruned"));
        }
        let mask = self.prune_mask(config)?;
        let (parts, n, count) = (&*self.parts, self.nodes.len(), self.edges().len());
        let scores = self.scores();
        let mut arrays = vec![
            Array::i64s("active_features", vec![parts.active.len(), 3], || {
                Box::new(parts.active.iter().flat_map(|place| [place.layer as i64, place.position as i64, place.feature as i64]))
            }),
            Array::f32s("activation_values", vec![parts.active.len()], || Box::new(parts.activations.iter().copied())),
            Array::i64s("selected_features", vec![parts.selected.len()], || Box::new(parts.selected.iter().map(|index| i64::from(*index)))),
            Array::i64s("input_tokens", vec![parts.tokens.len()], || Box::new(parts.tokens.iter().map(|token| i64::from(*token)))),
            Array::i64s("logit_token_ids", vec![parts.logits.len()], || Box::new(parts.logits.iter().map(|logit| i64::from(logit.token)))),
            Array::f32s("logit_probabilities", vec![parts.logits.len()], || Box::new(parts.logits.iter().map(|logit| logit.probability))),
            Array::f32s("node_influence", vec![n], || Box::new(self.nodes.iter().map(|node| node.influence))),
            Array::f32s("cumulative_scores", vec![n], || Box::new(self.nodes.iter().map(|node| node.cumulative))),
            Array::flags("node_mask", vec![n], || Box::new(mask.nodes.iter().copied())),
            Array::f32s("replacement_score", vec![1], || Box::new([scores.replacement as f32].into_iter())),
            Array::f32s("completeness_score", vec![1], || Box::new([scores.completeness as f32].into_iter())),
        ];
        if n <= DENSE_NODES {
            let weights: Fill = Box::new(|out| self.dense_rows(out, 4, |_, weight, cell| cell.copy_from_slice(&weight.to_le_bytes())));
            let kept: Fill = Box::new(|out| self.dense_rows(out, 1, |edge, _, cell| cell[0] = u8::from(mask.edges[edge])));
            arrays.push(Array("adjacency_matrix", Dtype::F32, vec![n, n], weights));
            arrays.push(Array("edge_mask", Dtype::U8, vec![n, n], kept));
        } else {
            arrays.push(Array::i64s("adjacency_rows", vec![count], || Box::new(self.edges().iter().map(|edge| edge.target as i64))));
            arrays.push(Array::i64s("adjacency_columns", vec![count], || Box::new(self.edges().iter().map(|edge| edge.source as i64))));
            arrays.push(Array::f32s("adjacency_values", vec![count], || Box::new(self.edges().iter().map(|edge| edge.weight))));
            arrays.push(Array::flags("edge_mask", vec![count], || Box::new(mask.edges.iter().copied())));
        }
        write(path.as_ref(), &arrays)
    }

    /// Streams an `[n, n]` matrix of cells of `size` bytes, zero where there is no edge.
    fn dense_rows(&self, out: &mut dyn Write, size: usize, set: impl Fn(usize, f32, &mut [u8])) -> std::io::Result<()> {
        let zeros = vec![0_u8; self.nodes.len() * size];
        let mut next = 0;
        for row in self.edges().rows() {
            while next < row.target as usize {
                out.write_all(&zeros)?;
                next += 1;
            }
            let mut cells = zeros.clone();
            for (k, (source, weight)) in row.sources.iter().zip(row.weights).enumerate() {
                let at = *source as usize * size;
                set(row.first + k, *weight, &mut cells[at..at + size]);
            }
            out.write_all(&cells)?;
            next += 1;
        }
        (next..self.nodes.len()).try_for_each(|_| out.write_all(&zeros))
    }
}

fn write(path: &Path, arrays: &[Array<'_>]) -> Result<()> {
    let mut end = 0;
    let infos = arrays.iter().map(|Array(name, dtype, shape, _)| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name.to_string(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) })
    });
    let header = Metadata::new(None, infos.collect()).map_err(|error| Error::wrap(ErrorKind::BadTensor, path.display(), error))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| Error::wrap(ErrorKind::BadTensor, path.display(), error))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    files::fill_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        arrays.iter().try_for_each(|Array(_, _, _, fill)| fill(out))
    })
}
