//! The edges of a graph that matter most: for the picture, and as a table of words.
//!
//! An edge is ranked by its influence on the outputs, and drawn by the share of its target's input
//! that it is: its weight over the sum of the magnitudes of all that reach the target.

use super::html::{self, Align};
use crate::graph::influence::edge_influence;
use crate::graph::{Edge, Graph, Node, NodeKind};

/// An edge with its signed share of the target's input, -1 to 1.
#[derive(Clone, Copy)]
pub(super) struct Strong {
    pub edge: Edge,
    pub share: f64,
    influence: f32,
}

/// The `most` most influential edges between shown nodes, strongest first.
pub(super) fn strongest(graph: &Graph, shown: &[bool], most: usize) -> Vec<Strong> {
    let mut inputs = vec![0.0; graph.nodes.len()];
    graph.edges().iter().for_each(|edge| inputs[edge.target] += f64::from(edge.weight.abs()));
    let influence = edge_influence(graph.edges(), &graph.output_weights());
    let mut edges: Vec<Strong> = graph
        .edges()
        .iter()
        .zip(influence)
        .filter(|(edge, _)| shown[edge.source] && shown[edge.target] && edge.weight != 0.0)
        .map(|(edge, influence)| Strong { edge, share: f64::from(edge.weight) / inputs[edge.target], influence })
        .collect();
    edges.sort_by(|a, b| b.influence.total_cmp(&a.influence));
    edges.truncate(most);
    edges
}

/// A node in words, as HTML.
fn name(graph: &Graph, node: &Node) -> String {
    let at = graph.token_text().get(node.position).map_or_else(String::new, |text| html::token(text));
    match node.kind {
        NodeKind::Feature { layer, feature, .. } => format!("● {layer}/{feature} at {} {at}", node.position),
        NodeKind::Error { layer } => format!("◆ error {layer} at {} {at}", node.position),
        NodeKind::Token { .. } => format!("■ token {} {at}", node.position),
        NodeKind::Position => format!("■ position {}", node.position),
        NodeKind::Logit { token, probability } => {
            let text = graph.logits().iter().find(|logit| logit.token == token).map_or("", |logit| &logit.text);
            format!("■ output {} {:.1} %", html::token(text), 100.0 * probability)
        }
    }
}

/// A table of the strongest edges, as HTML.
pub(super) fn table(graph: &Graph, edges: &[Strong]) -> String {
    let rows: Vec<Vec<String>> = edges
        .iter()
        .map(|strong| {
            let Edge { source, target, weight } = strong.edge;
            vec![
                name(graph, &graph.nodes[source]),
                name(graph, &graph.nodes[target]),
                format!("{weight:+.3}"),
                format!("{:+.1} %", 100.0 * strong.share),
                format!("{:.4}", strong.influence),
            ]
        })
        .collect();
    let columns = [("from", Align::Left), ("to", Align::Left), ("effect", Align::Right), ("share of input", Align::Right), ("influence", Align::Right)];
    html::table(&columns, &rows)
}
