//! The split of an edge over heads against runs whose attention patterns were blanked.

use crate::attribution::{replacement, TOKENS};
use crate::support::assert_close;
use cltlab::candle::Tensor;
use cltlab::graph::{AttributeConfig, Graph, NodeKind};
use cltlab::model::Run;
use cltlab::replacement::{FrozenModel, Site};
use cltlab::ErrorKind;
use std::sync::Arc;

fn whole(arch: &str) -> Graph {
    let config = AttributeConfig { max_features: Some(40), max_logits: 3, ..AttributeConfig::default() };
    replacement(arch).attribute(&TOKENS, &config).unwrap()
}

/// The effect of `source` on `target` when the run's patterns are changed.
fn effect(arch: &str, graph: &Graph, source: usize, target: usize, blank: impl Fn(usize, usize) -> bool) -> f64 {
    let given = replacement(arch);
    let local = given.local(&TOKENS, &Default::default()).unwrap();
    let mut run: Run = local.run().clone();
    for (l, layer) in run.layers.iter_mut().enumerate() {
        let pattern = layer.attn_pattern.clone().unwrap();
        let heads = pattern.dim(0).unwrap();
        let keep: Vec<f32> = (0..heads).map(|h| if blank(l, h) { 0.0 } else { 1.0 }).collect();
        layer.attn_pattern = Some(pattern.broadcast_mul(&Tensor::from_vec(keep, (heads, 1, 1), pattern.device()).unwrap()).unwrap());
    }
    let frozen = FrozenModel::new(given.model(), &Arc::new(run));
    let feature = graph.nodes[target].feature().unwrap();
    let row = given.clt().encoder_rows(feature.layer, &[feature.feature as u32]).unwrap();
    let g = frozen.from_input(feature.layer, given.clt().config().input, &[feature.position], &row).unwrap();
    let node = graph.nodes[source];
    let mut sum = 0.0;
    frozen
        .carry(feature.layer, g, &mut |site, g| {
            let at = g.get(0)?.get(node.position)?.to_vec1::<f32>()?;
            let vector = match (site, node.kind) {
                (Site::Embedding, NodeKind::Token { .. }) => local.embeddings().get(node.position)?.to_vec1::<f32>()?,
                (Site::MlpOut(t), NodeKind::Feature { layer, feature, activation }) if t >= layer => {
                    let row = given.clt().decoder_rows(layer, &[feature as u32])?.get(0)?.get(t - layer)?.to_vec1::<f32>()?;
                    row.into_iter().map(|weight| weight * activation).collect()
                }
                _ => return Ok(()),
            };
            sum += at.iter().zip(&vector).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            Ok(())
        })
        .unwrap();
    sum
}

#[test]
fn heads_share_an_edge_exactly() {
    for arch in ["gpt2", "llama"] {
        let graph = whole(arch);
        let given = replacement(arch);
        // Some edges of every kind, the largest among them.
        let mut edges: Vec<_> = graph.edges().iter().collect();
        edges.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        for edge in edges.iter().step_by(edges.len() / 40) {
            let split = given.split_edge(&graph, edge.source, edge.target).unwrap();
            assert_close(&format!("{arch}: {split}"), &[split.sum() as f32], &[edge.weight], 1e-5 * edge.weight.abs().max(0.1));
        }
        // Between positions only heads carry anything, and each carries what blanked runs say.
        let moves = |e: &&cltlab::graph::Edge| graph.nodes[e.target].feature().is_some() && graph.nodes[e.source].position < graph.nodes[e.target].position;
        let feature = |e: &&cltlab::graph::Edge| graph.nodes[e.source].feature().is_some();
        let token = |e: &&cltlab::graph::Edge| matches!(graph.nodes[e.source].kind, NodeKind::Token { .. });
        let picked = [edges.iter().copied().find(|e| moves(&e) && feature(&e)), edges.iter().copied().find(|e| moves(&e) && token(&e))];
        for edge in picked.into_iter().flatten() {
            let split = given.split_edge(&graph, edge.source, edge.target).unwrap();
            assert_eq!(split.residual, 0.0);
            for part in &split.heads {
                let above = |l: usize, h: usize| l > part.layer || (l == part.layer && h != part.head);
                let with = effect(arch, &graph, edge.source, edge.target, above);
                let without = effect(arch, &graph, edge.source, edge.target, |l, _| l >= part.layer);
                assert_close(&format!("{arch} head {}.{}", part.layer, part.head), &[part.weight as f32], &[(with - without) as f32], 1e-6);
            }
        }
    }
}

#[test]
fn edges_that_cannot_be_split() {
    let graph = whole("gpt2");
    let count = graph.nodes.len();
    let given = replacement("gpt2");
    for (source, target) in [(0, count), (count, count - 1), (count - 1, count - 1), (0, count - 4)] {
        assert_eq!(given.split_edge(&graph, source, target).unwrap_err().kind(), ErrorKind::BadInput);
    }
    // Another model's graph: of another CLT, or of tokens that are not active there.
    assert_eq!(replacement("llama").split_edge(&graph, 0, count - 1).unwrap_err().kind(), ErrorKind::Mismatch);
}
