//! Heads: which attention heads carry an edge.
//!
//! An edge is a sum over ways through the residual stream and the frozen attentions between source
//! and target. Sorting the ways by the last head on them, the one nearest to the target, splits the
//! edge exactly: `A[t, s] = (past every head) + Σ_{layer, head} (last through this head)`. What
//! reaches a head may have come through earlier heads. Between positions only heads carry anything;
//! skip connections carry within a position, so they are on the way past every head.
//! Source: the exact split proposed for circuit-tracer (its pull request 114); here without
//! autograd, one carry of H directions a layer.

use super::sources::learnt_positions;
use super::{Graph, Node, NodeKind};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::targets::directions;
use crate::model::Run;
use crate::replacement::{LocalReplacement, Replacement, Site};
use candle_core::{Device, Tensor};

/// What one head carries of an edge as the last head on the way.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HeadShare {
    /// Layer of the attention.
    pub layer: usize,
    /// Head within the layer.
    pub head: usize,
    /// Its part of the edge's weight, signed.
    pub weight: f64,
}

/// An edge, split by the last head on the way. The parts sum to the edge.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EdgeSplit {
    /// The edge's weight in the graph.
    pub weight: f32,
    /// What goes past every head, along the residual stream.
    pub residual: f64,
    /// Every head that could be the last, by (layer, head).
    pub heads: Vec<HeadShare>,
}

impl EdgeSplit {
    /// Sum of the parts: the edge's weight up to rounding.
    pub fn sum(&self) -> f64 {
        self.residual + self.heads.iter().map(|head| head.weight).sum::<f64>()
    }

    /// The heads by |weight|, largest first.
    pub fn strongest(&self) -> Vec<HeadShare> {
        let mut heads = self.heads.clone();
        heads.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        heads
    }
}

impl std::fmt::Display for EdgeSplit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "edge {:+.4}: residual {:+.4}", self.weight, self.residual)?;
        for HeadShare { layer, head, weight } in self.strongest().into_iter().take(5).filter(|head| head.weight != 0.0) {
            write!(f, ", head {layer}.{head} {weight:+.4}")?;
        }
        Ok(())
    }
}

impl Replacement {
    /// Splits the edge from node `source` to node `target` (places in [`Graph::nodes`]) by heads.
    /// Cost: a forward pass, then `H` rows a layer.
    ///
    /// # Errors
    /// `BadInput` for nodes that are not there, a target that is neither a feature nor a token's
    /// logit, or a source that is a logit; `Mismatch` when the graph is of another model or CLT.
    pub fn split_edge(&self, graph: &Graph, source: usize, target: usize) -> Result<EdgeSplit> {
        let local = self.local_at(graph.tokens(), graph.zero_positions())?;
        if local.active() != graph.active_features() {
            return Err(Error::expected(ErrorKind::Mismatch, "split_edge: active features", graph.active_features().len(), local.active().len())
                .help("give the graph to the model and CLT that made it"));
        }
        let top = Top::new(&local, graph, target)?;
        let writes = writes(&local, graph, source, top.below)?;
        let mut split = EdgeSplit { weight: graph.edges().weight(source, target), residual: 0.0, heads: Vec::new() };
        let frozen = local.frozen();
        let mut g = top.g;
        let mut layers = Vec::with_capacity(top.attentions);
        for layer in (0..top.attentions).rev() {
            let mut at_attention = g.clone();
            // The target's own layer comes in above its attention.
            if layer < top.below {
                let at_mlp = self.model().back_mlp_out(layer, local.run(), &g)?;
                split.residual += product(&writes, Site::MlpOut(layer), &at_mlp)?[0];
                (at_attention, g) = frozen.past(layer, &g, &at_mlp)?;
            }
            let through = by_head(&local, layer, &at_attention)?;
            let mut parts = vec![0.0; through.dim(0)?];
            frozen.carry(layer, through, &mut |site, g| {
                parts.iter_mut().zip(product(&writes, site, g)?).for_each(|(part, product)| *part += product);
                Ok(())
            })?;
            layers.push(parts.into_iter().enumerate().map(move |(head, weight)| HeadShare { layer, head, weight }));
        }
        split.residual += product(&writes, Site::Embedding, &g)?[0];
        split.heads.extend(layers.into_iter().rev().flatten());
        Ok(split)
    }
}

/// Where a target's direction stands before any attention has moved it.
struct Top {
    /// MLP outputs that it may see: those of layers below this one.
    below: usize,
    /// Attentions that it may see.
    attentions: usize,
    /// `[1, T', d]`.
    g: Tensor,
}

impl Top {
    fn new(local: &LocalReplacement, graph: &Graph, target: usize) -> Result<Self> {
        let (model, clt) = (local.replacement().model(), local.replacement().clt());
        let node = node(graph, target)?;
        match node.kind {
            NodeKind::Feature { layer, feature, .. } => {
                let row = clt.encoder_rows(layer, &[feature as u32])?;
                let g = local.frozen().before_attention(layer, clt.config().input, &[node.position], &row)?;
                Ok(Top { below: layer, attentions: if model.parallel_blocks() { layer } else { layer + 1 }, g })
            }
            NodeKind::Logit { token, .. } if (token as usize) < model.vocab() => {
                let g = local.frozen().from_output(&directions(model, &[token])?)?;
                Ok(Top { below: model.layers(), attentions: model.layers(), g })
            }
            kind => Err(Error::expected(ErrorKind::BadInput, "split_edge: target", format_args!("{kind:?}"), "a feature or a token's logit")),
        }
    }
}

/// A vector that a node writes.
struct Write {
    site: Site,
    position: usize,
    vector: Vec<f32>,
}

impl Write {
    /// Its product with each direction of `g [B, T', d]`.
    fn times(&self, g: &Tensor) -> Result<Vec<f64>> {
        let (count, length, _) = g.dims3()?;
        if self.position >= length {
            return Ok(vec![0.0; count]);
        }
        let rows = g.narrow(1, self.position, 1)?.squeeze(1)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        Ok(rows.iter().map(|row| row.iter().zip(&self.vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()).collect())
    }
}

/// The product of each direction of `g [B, T', d]` with what is written at `site`.
fn product(writes: &[Write], site: Site, g: &Tensor) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; g.dim(0)?];
    for write in writes.iter().filter(|write| write.site == site) {
        sums.iter_mut().zip(write.times(g)?).for_each(|(sum, product)| *sum += product);
    }
    Ok(sums)
}

/// What a node writes below layer `below`.
fn writes(local: &LocalReplacement, graph: &Graph, source: usize, below: usize) -> Result<Vec<Write>> {
    let node = node(graph, source)?;
    let position = node.position;
    let row = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.get(position)?.to_device(&Device::Cpu)?.to_vec1()?) };
    match node.kind {
        NodeKind::Feature { layer, feature, activation } => {
            let slots = local.replacement().clt().decoder_rows(layer, &[feature as u32])?.get(0)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
            let scaled = slots.into_iter().zip(layer..below).map(|(slot, t)| Write {
                site: Site::MlpOut(t),
                position,
                vector: slot.into_iter().map(|weight| weight * activation).collect(),
            });
            Ok(scaled.collect())
        }
        NodeKind::Error { layer } if layer < below => Ok(vec![Write { site: Site::MlpOut(layer), position, vector: row(local.errors(layer)?)? }]),
        NodeKind::Error { .. } => Ok(Vec::new()),
        NodeKind::Token { .. } => Ok(vec![Write { site: Site::Embedding, position, vector: row(local.embeddings())? }]),
        NodeKind::Position => Ok(vec![Write { site: Site::Embedding, position, vector: row(&learnt_positions(local)?)? }]),
        NodeKind::Logit { .. } => Err(Error::expected(ErrorKind::BadInput, "split_edge: source", "an output", "a feature, an error, a token or a position")),
    }
}

fn node(graph: &Graph, number: usize) -> Result<&Node> {
    let count = graph.nodes.len();
    graph.nodes.get(number).ok_or_else(|| Error::expected(ErrorKind::BadInput, "split_edge: node", number, format_args!("less than {count}")))
}

/// `g [1, T', d]` taken through the attention of `layer`, each head alone, `[H, T', d]`.
fn by_head(local: &LocalReplacement, layer: usize, g: &Tensor) -> Result<Tensor> {
    let (model, length) = (local.replacement().model(), g.dim(1)?);
    let missing = || Error::new(ErrorKind::BadInput, "split_edge: the run lacks attention patterns");
    let pattern = local.run().layers[layer].attn_pattern.as_ref().ok_or_else(missing)?;
    let pattern = pattern.narrow(1, 0, length)?.narrow(2, 0, length)?.contiguous()?;
    let heads = pattern.dim(0)?;
    let mut run: Run = local.run().clone();
    let parts = (0..heads).map(|head| {
        let alone: Vec<f32> = (0..heads).map(|other| if other == head { 1.0 } else { 0.0 }).collect();
        let alone = Tensor::from_vec(alone, (heads, 1, 1), pattern.device())?;
        run.layers[layer].attn_pattern = Some(pattern.broadcast_mul(&alone)?);
        model.back_attention(layer, &run, g)
    });
    Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}
