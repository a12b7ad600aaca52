//! The edges of a graph that matter most: for the picture, and as a table of words.
//!
//! An edge is ranked by its influence on the outputs, and drawn by the share of its target's input
//! that it is: its weight over the sum of the magnitudes of all that reach the target.

use super::html::{row, Align, Html};
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
fn name(graph: &Graph, node: &Node) -> Html {
    let at = |words: String| {
        let token = graph.token_text().get(node.position).map(|text| Html::token(text));
        Html::join([Html::from(words)].into_iter().chain(token))
    };
    match node.kind {
        NodeKind::Feature { layer, feature, .. } => at(format!("● {layer}/{feature} at {} ", node.position)),
        NodeKind::Error { layer } => at(format!("◆ error {layer} at {} ", node.position)),
        NodeKind::Token { .. } => at(format!("■ token {} ", node.position)),
        NodeKind::Position => Html::from(format!("■ position {}", node.position)),
        NodeKind::Logit { token, probability } => {
            let text = graph.logits().iter().find(|logit| logit.token == token).map_or("", |logit| &logit.text);
            Html::join([Html::from("■ output "), Html::token(text), Html::from(format!(" {:.1} %", 100.0 * probability))])
        }
    }
}

/// A table of the strongest edges.
pub(super) fn table(graph: &Graph, edges: &[Strong]) -> Html {
    let rows = edges.iter().map(|strong| {
        let Edge { source, target, weight } = strong.edge;
        row![
            name(graph, &graph.nodes[source]),
            name(graph, &graph.nodes[target]),
            format!("{weight:+.3}"),
            format!("{:+.1} %", 100.0 * strong.share),
            format!("{:.4}", strong.influence),
        ]
    });
    let columns = [("from", Align::Left), ("to", Align::Left), ("effect", Align::Right), ("share of input", Align::Right), ("influence", Align::Right)];
    Html::table(&columns, rows)
}
