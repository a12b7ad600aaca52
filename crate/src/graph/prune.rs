//! Pruning: the nodes and edges that carry most of the influence.
//!
//! Nodes first, by influence; then edges among them, by edge influence on the renormalised rest;
//! then whatever lost all its edges, to a fixed point (*Circuit Tracing*, appendix on pruning;
//! circuit-tracer's `prune_graph`, identical masks up to ties). Cost: O(edges), no n² numbers.

use super::influence::{edge_influence, mass_threshold};
use super::{Edge, Graph, NodeKind};
use crate::error::{Error, ErrorKind, Result};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneConfig {
    /// Share of the nodes' influence that is kept, 0 to 1. Default 0.8.
    pub node_threshold: f64,
    /// Share of the edges' influence that is kept, 0 to 1. Default 0.98.
    pub edge_threshold: f64,
}

impl Default for PruneConfig {
    fn default() -> Self {
        PruneConfig { node_threshold: 0.8, edge_threshold: 0.98 }
    }
}

impl PruneConfig {
    /// Checks the fields.
    ///
    /// # Errors
    /// `BadConfig` naming the field that is outside 0 to 1.
    #[doc(hidden)]
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [("node_threshold", self.node_threshold), ("edge_threshold", self.edge_threshold)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::expected(ErrorKind::BadConfig, format_args!("PruneConfig::{field}"), value, "a share from 0 to 1"));
            }
        }
        Ok(())
    }
}

/// What pruning keeps: one flag a node, and one an edge in the order of [`Graph::edges`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneMask {
    /// Kept nodes.
    pub nodes: Vec<bool>,
    /// Kept edges.
    pub edges: Vec<bool>,
}

impl Graph {
    /// Which nodes and edges [`Graph::prune`] would keep. Tokens and logits always stay.
    ///
    /// # Errors
    /// `BadConfig` for a threshold outside 0 to 1.
    #[doc(hidden)]
    pub fn prune_mask(&self, config: &PruneConfig) -> Result<PruneMask> {
        config.validate()?;
        let influence: Vec<f32> = self.nodes.iter().map(|node| node.influence).collect();
        let floor = mass_threshold(&influence, config.node_threshold);
        let mut nodes: Vec<bool> = self.nodes.iter().map(|node| node.influence >= floor || node.kind.is_end()).collect();

        // The same numbers, without the dropped nodes' edges.
        let same: Vec<Option<u32>> = nodes.iter().enumerate().map(|(node, kept)| kept.then_some(node as u32)).collect();
        let rest = self.edges().select(&same, |_| true);
        let scores = edge_influence(&rest, &self.output_weights());
        let floor = mass_threshold(&scores, config.edge_threshold);
        let mut kept: Vec<Edge> = rest.iter().zip(&scores).filter(|(_, score)| **score >= floor).map(|(edge, _)| edge).collect();
        self.settle(&mut nodes, &mut kept);

        let mut left = kept.into_iter().peekable();
        let edges = self.edges().iter().map(|edge| left.next_if_eq(&edge).is_some()).collect();
        Ok(PruneMask { nodes, edges })
    }

    /// Drops features and errors without an outgoing edge and features without an incoming one,
    /// with their edges, until nothing changes.
    fn settle(&self, nodes: &mut [bool], kept: &mut Vec<Edge>) {
        loop {
            let (mut goes, mut comes) = (vec![false; nodes.len()], vec![false; nodes.len()]);
            for edge in kept.iter() {
                goes[edge.source] = true;
                comes[edge.target] = true;
            }
            let mut changed = false;
            for (node, kept) in nodes.iter_mut().enumerate().filter(|(_, kept)| **kept) {
                let stays = match self.nodes[node].kind {
                    NodeKind::Feature { .. } => goes[node] && comes[node],
                    NodeKind::Error { .. } => goes[node],
                    NodeKind::Token { .. } | NodeKind::Position | NodeKind::Logit { .. } => true,
                };
                changed |= !stays;
                *kept = stays;
            }
            if !changed {
                return;
            }
            kept.retain(|edge| nodes[edge.source] && nodes[edge.target]);
        }
    }

    /// The graph that [`Graph::prune_mask`] leaves. Influence and scores stay those of the whole graph.
    ///
    /// ```no_run
    /// # use cltlab::graph::PruneConfig;
    /// # fn f(graph: cltlab::graph::Graph) -> cltlab::Result<()> {
    /// let story = graph.prune(&PruneConfig { node_threshold: 0.6, ..PruneConfig::default() })?;
    /// story.save("story.json", &Default::default())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `BadConfig` for a threshold outside 0 to 1.
    pub fn prune(&self, config: &PruneConfig) -> Result<Graph> {
        let mask = self.prune_mask(config)?;
        let mut next = 0..;
        let number: Vec<Option<u32>> = mask.nodes.iter().map(|kept| if *kept { next.next() } else { None }).collect();
        let edges = self.edges().select(&number, |edge| mask.edges[edge]);
        let nodes = self.nodes.iter().zip(&mask.nodes).filter(|(_, kept)| **kept).map(|(node, _)| *node).collect();
        Ok(self.with_nodes(nodes, edges, *config))
    }
}
