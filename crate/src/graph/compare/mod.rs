//! Comparisons: graphs of several prompts laid over each other, their difference and their mean.
//!
//! In: graphs of one model and CLT, and which positions stand for each other. Nodes are the same when layer,
//! feature and slot agree (for an output its token, for tokens and errors the slot); a slot is a place that
//! positions of several prompts share. Out: [`GraphDifference`] and [`MergedGraph`], each with a [`Graph`] of
//! the slots that draws, prunes and saves itself as any other. A node or an edge that a graph lacks counts as 0
//! there, so that weights add up: `first = second + difference`, `Σ graphs = n · mean`. Cost: O(edges log edges).

mod union;

use super::edges::Edge;
use super::influence::cumulative;
use super::{Graph, Node, NodeKind};
use crate::error::Result;
use crate::files;
use std::path::Path;
use std::sync::Arc;
use union::Union;

/// Which positions of several prompts stand for each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Alignment {
    /// Counted from the end: prompts that end alike.
    #[default]
    FromEnd,
    /// Counted from the start: prompts that begin alike.
    FromStart,
    /// For each graph the slot of each of its positions, each slot once a graph; `None` has no counterpart.
    Slots(Vec<Vec<Option<usize>>>),
}

/// Graphs laid over each other.
#[derive(Clone)]
pub struct Overlay {
    /// The graphs, in the order given.
    pub graphs: Vec<Graph>,
    /// For each graph the place that each node of the overlay has in it, where it has one.
    pub places: Vec<Vec<Option<usize>>>,
}

impl Overlay {
    /// An edge's weight in each graph, 0 where it has none.
    #[doc(hidden)]
    pub fn weights(&self, edge: &Edge) -> Vec<f32> {
        let place = |places: &Vec<Option<usize>>, node: usize| places.get(node).copied().flatten();
        let weight = |(graph, places): (&Graph, &Vec<Option<usize>>)| match (place(places, edge.source), place(places, edge.target)) {
            (Some(source), Some(target)) => graph.edges().weight(source, target),
            _ => 0.0,
        };
        self.graphs.iter().zip(&self.places).map(weight).collect()
    }

    /// How many of the graphs have a node; 0 for one beyond the last.
    #[doc(hidden)]
    pub fn count(&self, node: usize) -> usize {
        self.places.iter().filter(|places| matches!(places.get(node), Some(Some(_)))).count()
    }
}

/// What one graph has more of than another. From [`Graph::difference`].
#[derive(Clone)]
pub struct GraphDifference {
    /// Nodes and edges that differ, and all tokens and outputs. Weights and activations are the first's less
    /// the second's, influence is the magnitude of the difference, probabilities are the mean, scores the difference.
    pub graph: Graph,
    /// The two graphs.
    pub overlay: Overlay,
}

/// The mean of graphs. From [`Graph::merge`].
#[derive(Clone)]
pub struct MergedGraph {
    /// Every node and edge of any of the graphs, with the mean of weights, activations, influence,
    /// probabilities and scores.
    pub graph: Graph,
    /// The graphs.
    pub overlay: Overlay,
}

impl Graph {
    /// What this graph has more of than `other`: weights of the one less weights of the other.
    ///
    /// ```no_run
    /// # use cltlab::{graph::{Alignment, AttributeConfig}, replacement::Replacement};
    /// # fn f(replacement: Replacement) -> cltlab::Result<()> {
    /// let graph = |city: &str| replacement.attribute(&format!("The capital of the state containing {city} is"), &AttributeConfig::default());
    /// println!("{}", graph("Dallas")?.difference(&graph("Oakland")?, &Alignment::FromEnd)?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Mismatch` for graphs of different models; `BadInput` for slots that do not fit.
    pub fn difference(&self, other: &Graph, alignment: &Alignment) -> Result<GraphDifference> {
        let (mut graph, mut overlay) = Union::new(&[self.clone(), other.clone()], alignment)?.combined(&[1.0, -1.0])?;
        let influence: Vec<f32> = graph.nodes.iter().map(|node| node.influence.abs()).collect();
        let mut keep: Vec<bool> = graph.nodes.iter().map(|node| node.kind.is_end() || node.influence != 0.0 || changed(node)).collect();
        graph.edges().iter().for_each(|edge| (keep[edge.source], keep[edge.target]) = (true, true));
        for (node, (influence, cumulative)) in graph.nodes.iter_mut().zip(influence.iter().zip(cumulative(&influence))) {
            (node.influence, node.cumulative) = (*influence, cumulative);
        }
        let mut next = 0..;
        let number: Vec<Option<u32>> = keep.iter().map(|kept| if *kept { next.next() } else { None }).collect();
        let edges = graph.edges().select(&number, |_| true);
        let mut kept = keep.iter();
        graph.nodes.retain(|_| kept.next() == Some(&true));
        graph.edges = Arc::new(edges);
        for places in &mut overlay.places {
            let mut kept = keep.iter();
            places.retain(|_| kept.next() == Some(&true));
        }
        Ok(GraphDifference { graph, overlay })
    }

    /// The mean of graphs of several prompts.
    ///
    /// # Errors
    /// `BadInput` for no graph, or slots that do not fit; `Mismatch` for graphs of different models.
    pub fn merge(graphs: &[Graph], alignment: &Alignment) -> Result<MergedGraph> {
        let share = 1.0 / graphs.len().max(1) as f64;
        let (graph, overlay) = Union::new(graphs, alignment)?.combined(&vec![share; graphs.len()])?;
        Ok(MergedGraph { graph, overlay })
    }
}

/// Whether a feature's activation differs.
fn changed(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Feature { activation, .. } if activation != 0.0)
}

impl GraphDifference {
    /// True when nothing differs.
    #[doc(hidden)]
    pub fn is_empty(&self) -> bool {
        self.graph.edges().is_empty() && self.graph.nodes.iter().all(|node| node.kind.is_end() || (node.influence == 0.0 && !changed(node)))
    }

    /// The `n` edges that differ most, by |difference|, largest first, each with its two weights.
    pub fn strongest(&self, n: usize) -> Vec<(Edge, [f32; 2])> {
        let mut edges: Vec<Edge> = self.graph.edges().iter().collect();
        edges.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        edges.into_iter().take(n).map(|edge| {
            let weights = self.overlay.weights(&edge);
            (edge, [weights[0], weights[1]])
        }).collect()
    }

    /// Features that only the first graph has, and only the second, with most influence there first.
    pub fn only(&self) -> [Vec<usize>; 2] {
        [0, 1].map(|which| {
            let here = |node: &usize| self.overlay.places[which][*node].is_some() && self.overlay.places[1 - which][*node].is_none();
            let mut nodes: Vec<usize> = (0..self.graph.nodes.len()).filter(|node| self.graph.nodes[*node].feature().is_some()).filter(here).collect();
            nodes.sort_by(|a, b| self.graph.nodes[*b].influence.total_cmp(&self.graph.nodes[*a].influence));
            nodes
        })
    }

    /// Writes nodes and edges with their values in both graphs as JSON; [`Graph::save`] of
    /// [`GraphDifference::graph`] writes the differences for viewers.
    ///
    /// # Errors
    /// `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        save(&self.graph, &self.overlay, path)
    }
}

impl MergedGraph {
    /// Writes nodes and edges with their values in every graph as JSON; [`Graph::save`] of
    /// [`MergedGraph::graph`] writes the means for viewers.
    ///
    /// # Errors
    /// `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        save(&self.graph, &self.overlay, path)
    }
}

fn save(graph: &Graph, overlay: &Overlay, path: impl AsRef<Path>) -> Result<()> {
    let ids: Vec<String> = graph.nodes.iter().map(|node| graph.node_id(node)).collect();
    let nodes = graph.nodes.iter().zip(&ids).enumerate().map(|(i, (node, id))| {
        let of = |value: &dyn Fn(&Node) -> f32| -> Vec<Option<f32>> {
            overlay.graphs.iter().zip(&overlay.places).map(|(graph, places)| places[i].map(|place| value(&graph.nodes[place]))).collect()
        };
        let activation = |node: &Node| if let NodeKind::Feature { activation, .. } = node.kind { activation } else { 0.0 };
        serde_json::json!({"id": id, "text": graph.node_text(i), "slot": node.position, "influence": of(&|node| node.influence), "activation": of(&activation)})
    });
    let edges = graph.edges().iter().map(|edge| {
        serde_json::json!({"source": ids[edge.source], "target": ids[edge.target], "weight": edge.weight, "weights": overlay.weights(&edge)})
    });
    let prompts: Vec<&str> = overlay.graphs.iter().map(Graph::prompt).collect();
    let (nodes, edges): (Vec<_>, Vec<_>) = (nodes.collect(), edges.collect());
    files::write_json(path, &serde_json::json!({"prompts": prompts, "slots": graph.token_text(), "nodes": nodes, "edges": edges}))
}
