//! Scores: how much of the output a graph explains without error nodes.
//!
//! Source: *Circuit Tracing*, section on graph scores; circuit-tracer's `compute_graph_scores`,
//! equal to 1e-5. Both lie in 0 to 1, both are of the whole graph: a pruned one keeps its parent's.

use super::edges::Edges;
use super::influence::ROW_FLOOR;
use super::NodeKind;

/// The two scores of a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Scores {
    /// Influence of the tokens (and positions) over that of these and errors: how much of the output is traced
    /// back to the prompt through features alone.
    pub replacement: f64,
    /// Mean share, weighted by influence, of what flows into a node and does not come from an error.
    pub completeness: f64,
}

/// Scores from node influence `I` and output weights `w`.
pub(crate) fn scores(edges: &Edges, kinds: &[NodeKind], influence: &[f64], weights: &[f64]) -> Scores {
    let sum = |wanted: fn(&NodeKind) -> bool| -> f64 {
        kinds.iter().zip(influence).filter(|(kind, _)| wanted(kind)).map(|(_, influence)| influence).sum()
    };
    let tokens = sum(|kind| matches!(kind, NodeKind::Token { .. } | NodeKind::Position));
    let errors = sum(|kind| matches!(kind, NodeKind::Error { .. }));
    let output = |node: usize| influence[node] + weights[node];
    let all: f64 = (0..kinds.len()).map(output).sum();
    let lost: f64 = edges
        .rows()
        .map(|row| {
            let from_errors: f64 = row.sources.iter().zip(row.weights)
                .filter(|(source, _)| matches!(kinds[**source as usize], NodeKind::Error { .. }))
                .map(|(_, weight)| f64::from(weight.abs()))
                .sum();
            output(row.target as usize) * from_errors / row.norm(ROW_FLOOR)
        })
        .sum();
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    Scores { replacement: share(tokens, tokens + errors), completeness: share(all - lost, all) }
}
