//! Paths: a graph told as its strongest chains of causes, in text.
//!
//! A path goes from a token or an error node up to an output. Its share is the output's weight times
//! the product of `|A[t, s]| / Σ_s |A[t, s]|` along it: what part of the influence flows just there,
//! so that the shares of all paths of an output add up to its weight. Found best first with the exact
//! best continuation as a bound: no path is looked at that is not among the strongest, and none is
//! missed. Cost: O(edges) once, then little a path.

use super::influence::ROW_FLOOR;
use super::{Graph, NodeKind};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A chain of nodes from a token or error to an output.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// Places in [`Graph::nodes`], cause first.
    pub nodes: Vec<usize>,
    /// Share of all influence that flows along it, 0 to 1.
    pub share: f64,
    /// True when it lowers the output: an odd number of its effects are negative.
    pub negative: bool,
}

/// A path's upper end, growing down: `bound` is the share of its best completion.
struct Open {
    bound: f64,
    share: f64,
    negative: bool,
    /// Output first.
    nodes: Vec<usize>,
}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Open {}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bound.total_cmp(&other.bound).then_with(|| other.nodes.cmp(&self.nodes))
    }
}

impl Graph {
    /// The `n` strongest paths, strongest first; fewer when there are no more.
    ///
    /// ```no_run
    /// # fn f(graph: cltlab::Graph) {
    /// println!("{}", graph.explain(5));
    /// # }
    /// ```
    pub fn paths(&self, n: usize) -> Vec<Path> {
        let best = self.best_completions();
        let weights = self.output_weights();
        let mut open: BinaryHeap<Open> = weights
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0.0)
            .map(|(node, weight)| Open { bound: weight * best[node], share: *weight, negative: false, nodes: vec![node] })
            .filter(|open| open.bound > 0.0)
            .collect();
        let mut paths = Vec::new();
        while let Some(top) = open.pop().filter(|_| paths.len() < n) {
            let node = top.nodes[top.nodes.len() - 1];
            if self.is_cause(node) {
                paths.push(Path { nodes: top.nodes.into_iter().rev().collect(), share: top.share, negative: top.negative });
                continue;
            }
            let (sources, effects) = self.edges().into(node);
            let norm = norm(effects);
            for (source, effect) in sources.iter().map(|source| *source as usize).zip(effects) {
                let share = top.share * f64::from(effect.abs()) / norm;
                let bound = share * best[source];
                if bound > 0.0 {
                    let nodes = top.nodes.iter().copied().chain([source]).collect();
                    open.push(Open { bound, share, negative: top.negative ^ (*effect < 0.0), nodes });
                }
            }
        }
        paths
    }

    /// For each node the share of the best way from it down to a cause.
    fn best_completions(&self) -> Vec<f64> {
        let mut best: Vec<f64> = (0..self.nodes.len()).map(|node| if self.is_cause(node) { 1.0 } else { 0.0 }).collect();
        // Rows ascend and effects only go forward, so sources are known before their targets.
        for row in self.edges().rows() {
            let norm = row.norm(ROW_FLOOR);
            let ways = row.sources.iter().zip(row.weights).map(|(source, effect)| f64::from(effect.abs()) / norm * best[*source as usize]);
            best[row.target as usize] = ways.fold(0.0, f64::max);
        }
        best
    }

    fn is_cause(&self, node: usize) -> bool {
        matches!(self.nodes[node].kind, NodeKind::Token { .. } | NodeKind::Position | NodeKind::Error { .. })
    }

    /// A node in words: `"Dallas" at 7`, `feature 3_120_7`, `error 3 at 7`, `output "Austin"`.
    pub fn node_text(&self, node: usize) -> String {
        let Some(it) = self.nodes.get(node) else { return String::new() };
        let at = it.position;
        match it.kind {
            NodeKind::Feature { layer, feature, .. } => format!("feature {layer}_{feature}_{at}"),
            NodeKind::Error { layer } => format!("error {layer} at {at}"),
            NodeKind::Token { .. } => format!("{:?} at {at}", self.token_text().get(at).map_or("", String::as_str)),
            NodeKind::Position => format!("position {at}"),
            NodeKind::Logit { token, .. } => {
                format!("output {:?}", self.logits().iter().find(|logit| logit.token == token).map_or("", |logit| &logit.text))
            }
        }
    }

    /// The `n` strongest paths as text, a line each: share of the influence, sign, nodes.
    pub fn explain(&self, n: usize) -> String {
        let line = |path: &Path| {
            let nodes: Vec<String> = path.nodes.iter().map(|node| self.node_text(*node)).collect();
            format!("{:>6.2} % {} {}", 100.0 * path.share, if path.negative { '−' } else { '+' }, nodes.join(" → "))
        };
        self.paths(n).iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn norm(effects: &[f32]) -> f64 {
    effects.iter().map(|effect| f64::from(effect.abs())).sum::<f64>().max(ROW_FLOOR)
}
