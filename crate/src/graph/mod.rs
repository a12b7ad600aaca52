//! Attribution graphs: why the model said that.
//!
//! In: a [`Replacement`](crate::replacement::Replacement) and a prompt. Out: a [`Graph`] of features,
//! error nodes, tokens and logits whose edges are exact direct linear effects with attention
//! patterns, norm scales and MLP outputs held (*Circuit Tracing*, sections on attribution graphs).
//!
//! Symbols: N features, L layers, T tokens, K logits. Nodes stand in circuit-tracer's order:
//! N features by (layer, position, feature) | L·T errors by (layer, position) | T tokens | K logits; asked for,
//! T learnt position embeddings stand before the logits.
//!
//! `edges` holds the effects, `heads` splits one, `qk` splits an attention score, `influence` ranks nodes, `prune` cuts, `score` says how much is
//! explained, `paths` tells it in text, `supernodes` groups, `compare` lays several over each other, `json`, `listing` and `raw` write files, `read` reads one; `targets`, `sources`, `rows` and `attribute` compute.

mod attribute;
mod columns;
mod compare;
mod edges;
mod heads;
#[doc(hidden)]
pub mod influence;
mod json;
mod lanes;
mod listing;
mod on_device;
mod paths;
mod prune;
mod qk;
mod raw;
mod read;
mod rows;
mod save;
mod score;
mod sources;
mod store;
mod supernodes;
pub(crate) mod targets;

pub use attribute::AttributeConfig;
pub use compare::{Alignment, GraphDifference, MergedGraph, Overlay};
pub use edges::{Edge, Edges};
pub use heads::{EdgeSplit, HeadShare};
#[doc(hidden)]
pub use json::cantor;
pub use paths::Path;
pub use prune::PruneConfig;
#[doc(hidden)]
pub use prune::PruneMask;
pub use qk::{QkAttribution, QkConfig, QkPair, QkPart};
pub use save::{GraphFormat, GraphSaveConfig};
pub use score::Scores;
pub use supernodes::Supernode;
pub use targets::Target;

use crate::error::{Error, ErrorKind, Result};
use crate::replacement::FeatureNode;
use candle_core::Tensor;
use influence::{cumulative, node_influence};
use std::sync::Arc;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeKind {
    /// An active feature of the CLT.
    Feature {
        /// Layer that it reads.
        layer: usize,
        /// Number within the layer.
        feature: usize,
        /// Activation on this prompt.
        activation: f32,
    },
    /// What the CLT's reconstruction lacks of the MLP output of `layer`.
    Error {
        /// Layer of the MLP.
        layer: usize,
    },
    /// The embedding of a prompt token.
    Token {
        /// Vocabulary id.
        token: u32,
    },
    /// The learnt embedding of the position, where the graph has such nodes
    /// ([`AttributeConfig::position_nodes`]).
    Position,
    /// An output: a token's logit, less the mean over the vocabulary.
    Logit {
        /// Vocabulary id.
        token: u32,
        /// Probability on this prompt.
        probability: f32,
    },
}

impl NodeKind {
    /// True for tokens, positions and logits, the ends of every path; pruning never drops them.
    #[doc(hidden)]
    pub fn is_end(&self) -> bool {
        matches!(self, NodeKind::Token { .. } | NodeKind::Position | NodeKind::Logit { .. })
    }

    /// Height in a picture: 0 for tokens and positions, layer + 1 for features and errors, `layers + 1` for logits.
    pub(crate) fn height(&self, layers: usize) -> usize {
        match self {
            NodeKind::Token { .. } | NodeKind::Position => 0,
            NodeKind::Feature { layer, .. } | NodeKind::Error { layer } => layer + 1,
            NodeKind::Logit { .. } => layers + 1,
        }
    }
}

/// A node of a graph, at a position of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Position in the prompt, from 0; a logit stands at the last.
    pub position: usize,
    /// Influence: the part of the outputs' probability, 0 to 1 each, whose paths pass here; 0 for logits. Paths through
    /// several nodes count at each of them.
    pub influence: f32,
    /// Cumulative share of all influence at this node's rank, 0 to 1: small means important.
    pub cumulative: f32,
}

impl Node {
    /// The feature with its place, for interventions; `None` for other kinds.
    pub fn feature(&self) -> Option<FeatureNode> {
        match self.kind {
            NodeKind::Feature { layer, feature, .. } => Some(FeatureNode { layer, position: self.position, feature }),
            _ => None,
        }
    }
}

/// An output whose logit is explained.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitTarget {
    /// Vocabulary id.
    pub token: u32,
    /// The token as text, for people.
    pub text: String,
    /// Probability on this prompt, 0 to 1.
    pub probability: f32,
}

/// All that a whole graph is made of; [`Graph::new`] checks it and computes influence and scores.
#[derive(Clone, Debug)]
pub struct GraphParts {
    /// Name of the model, for people.
    pub model_name: String,
    /// The prompt as text.
    pub prompt: String,
    /// Token ids, T.
    pub tokens: Vec<u32>,
    /// Tokens as text, T.
    pub token_text: Vec<String>,
    /// Layers, L.
    pub layers: usize,
    /// Every active feature, selected or not, in order of (layer, position, feature).
    pub active: Vec<FeatureNode>,
    /// Activation of each active feature.
    pub activations: Vec<f32>,
    /// Which active features are nodes, ascending, N.
    pub selected: Vec<u32>,
    /// The outputs, K.
    pub logits: Vec<LogitTarget>,
    /// Whether the T learnt position embeddings are nodes, after the tokens.
    pub position_nodes: bool,
    /// Effects between the N + L·T + T (+ T) + K nodes.
    pub edges: Edges,
    /// Positions that have neither features nor errors.
    pub zero_positions: Vec<usize>,
    /// False when the computation was stopped before every selected feature had its row.
    pub complete: bool,
}

/// An attribution graph, whole or pruned. Cheap to clone.
#[derive(Clone)]
pub struct Graph {
    /// The nodes in order: features, errors, tokens, logits.
    pub nodes: Vec<Node>,
    parts: Arc<GraphParts>,
    edges: Arc<Edges>,
    scores: Scores,
    pruned: Option<PruneConfig>,
}

impl Graph {
    /// A whole graph from its parts.
    ///
    /// # Errors
    /// `BadInput` when lengths disagree or an edge names a node that is not there; `NotFinite` for
    /// NaN or infinity among effects, activations or probabilities.
    pub fn new(mut parts: GraphParts) -> Result<Graph> {
        let edges = std::mem::take(&mut parts.edges);
        let kinds = parts.kinds()?;
        let count = kinds.len();
        for row in edges.rows() {
            let beyond = row.sources.iter().chain([&row.target]).find(|node| **node as usize >= count);
            if let Some(node) = beyond {
                return Err(Error::expected(ErrorKind::BadInput, "Graph: node of an edge", node, format_args!("less than {count}")));
            }
            if let Some(weight) = row.weights.iter().find(|weight| !weight.is_finite()) {
                return Err(Error::new(ErrorKind::NotFinite, format!("Graph: effect on node {}: {weight}", row.target))
                    .help("the model or the CLT holds NaN, infinity or huge weights"));
            }
        }
        let weights: Vec<f64> = kinds.iter().map(|(kind, _)| output_weight(kind)).collect();
        let influence = node_influence(&edges, &weights);
        let only: Vec<NodeKind> = kinds.iter().map(|(kind, _)| *kind).collect();
        let scores = score::scores(&edges, &only, &influence, &weights);
        let influence: Vec<f32> = influence.iter().map(|influence| *influence as f32).collect();
        let nodes = kinds
            .iter()
            .zip(influence.iter().zip(cumulative(&influence)))
            .map(|((kind, position), (influence, cumulative))| Node { kind: *kind, position: *position, influence: *influence, cumulative })
            .collect();
        Ok(Graph { nodes, parts: Arc::new(parts), edges: Arc::new(edges), scores, pruned: None })
    }

    /// The same prompt and scores with other nodes.
    fn with_nodes(&self, nodes: Vec<Node>, edges: Edges, config: PruneConfig) -> Graph {
        Graph { nodes, edges: Arc::new(edges), pruned: Some(config), ..self.clone() }
    }

    /// Token ids of the prompt, `[T]`.
    pub fn tokens(&self) -> &[u32] {
        &self.parts.tokens
    }

    /// The prompt's tokens as text, `[T]`.
    pub fn token_text(&self) -> &[String] {
        &self.parts.token_text
    }

    /// The prompt as text.
    pub fn prompt(&self) -> &str {
        &self.parts.prompt
    }

    /// Name of the model.
    pub fn model_name(&self) -> &str {
        &self.parts.model_name
    }

    /// Layers of the model, L.
    pub fn layers(&self) -> usize {
        self.parts.layers
    }

    /// The explained outputs, most probable first.
    pub fn logits(&self) -> &[LogitTarget] {
        &self.parts.logits
    }

    /// Every active feature of the prompt, selected or not.
    pub fn active_features(&self) -> &[FeatureNode] {
        &self.parts.active
    }

    /// Positions that have neither features nor errors: the special first token.
    pub(crate) fn zero_positions(&self) -> &[usize] {
        &self.parts.zero_positions
    }

    /// The effects between nodes; numbers are places in [`Graph::nodes`].
    pub fn edges(&self) -> &Edges {
        &self.edges
    }

    /// The effects as an adjacency matrix `[nodes, nodes]` in f32 on the CPU: row the target, column the source,
    /// both in the order of [`Graph::nodes`] (features, errors, tokens, positions, outputs), 0 where there is no edge.
    ///
    /// ```no_run
    /// # fn f(graph: cltlab::Graph) -> cltlab::Result<()> {
    /// let adjacency = graph.to_tensor()?;
    /// let into_output = adjacency.get(graph.nodes.len() - 1)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `OutOfMemory` when the matrix does not fit: prune the graph first.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let nodes = self.nodes.len();
        crate::device::require_memory("a graph as a matrix", 4 * (nodes as u64).saturating_mul(nodes as u64), "prune the graph first")?;
        let mut dense = vec![0.0_f32; nodes * nodes];
        self.edges.iter().for_each(|edge| dense[edge.target * nodes + edge.source] = edge.weight);
        Ok(Tensor::from_vec(dense, (nodes, nodes), &candle_core::Device::Cpu)?)
    }

    /// Replacement and completeness score of the whole graph.
    pub fn scores(&self) -> Scores {
        self.scores
    }

    /// False when an interrupt stopped the computation: features that were not reached are absent.
    pub fn complete(&self) -> bool {
        self.parts.complete
    }

    /// The thresholds that this graph was pruned with; `None` for a whole graph.
    #[doc(hidden)]
    pub fn pruned(&self) -> Option<PruneConfig> {
        self.pruned
    }

    /// The `n` features with the most influence, most influential first.
    pub fn top_features(&self, n: usize) -> Vec<FeatureNode> {
        let mut features: Vec<(f32, FeatureNode)> = self.nodes.iter().filter_map(|node| Some((node.influence, node.feature()?))).collect();
        features.sort_by(|a, b| b.0.total_cmp(&a.0));
        features.into_iter().take(n).map(|(_, feature)| feature).collect()
    }

    /// Id of a node in files and pictures: `{layer}_{feature}_{position}`,
    /// `{layer}_error_mlp_{position}`, `E_{token}_{position}`, `P_{position}_{position}`, `{L+1}_{token}_{position}`.
    ///
    /// Differs from circuit-tracer in error nodes, whose `0_{layer}_{position}` there is also the id
    /// of a feature of layer 0.
    pub fn node_id(&self, node: &Node) -> String {
        let position = node.position;
        match node.kind {
            NodeKind::Feature { layer, feature, .. } => format!("{layer}_{feature}_{position}"),
            NodeKind::Error { layer } => format!("{layer}_error_mlp_{position}"),
            NodeKind::Token { token } => format!("E_{token}_{position}"),
            NodeKind::Position => format!("P_{position}_{position}"),
            NodeKind::Logit { token, .. } => format!("{}_{token}_{position}", self.layers() + 1),
        }
    }

    /// Output weight of each node: the probability of a logit, else 0.
    pub(crate) fn output_weights(&self) -> Vec<f64> {
        self.nodes.iter().map(|node| output_weight(&node.kind)).collect()
    }
}

fn output_weight(kind: &NodeKind) -> f64 {
    match kind {
        NodeKind::Logit { probability, .. } => f64::from(*probability),
        _ => 0.0,
    }
}

impl GraphParts {
    /// Kind and position of each node, in order.
    fn kinds(&self) -> Result<Vec<(NodeKind, usize)>> {
        let tokens = self.tokens.len();
        for (field, got, expected) in [("token_text", self.token_text.len(), tokens), ("activations", self.activations.len(), self.active.len())] {
            if got != expected {
                return Err(Error::expected(ErrorKind::BadInput, format_args!("GraphParts::{field}: length"), got, expected));
            }
        }
        let numbers = self.activations.iter().chain(self.logits.iter().map(|logit| &logit.probability));
        if let Some(number) = numbers.clone().find(|number| !number.is_finite()) {
            return Err(Error::new(ErrorKind::NotFinite, format!("GraphParts: activation or probability: {number}")));
        }
        let mut kinds = Vec::with_capacity(self.selected.len() + (self.layers + 1) * tokens + self.logits.len());
        for index in &self.selected {
            let (Some(place), Some(activation)) = (self.active.get(*index as usize), self.activations.get(*index as usize)) else {
                return Err(Error::expected(ErrorKind::BadInput, "GraphParts::selected", index, format_args!("less than {}", self.active.len())));
            };
            kinds.push((NodeKind::Feature { layer: place.layer, feature: place.feature, activation: *activation }, place.position));
        }
        kinds.extend((0..self.layers).flat_map(|layer| (0..tokens).map(move |position| (NodeKind::Error { layer }, position))));
        kinds.extend(self.tokens.iter().enumerate().map(|(position, token)| (NodeKind::Token { token: *token }, position)));
        if self.position_nodes {
            kinds.extend((0..tokens).map(|position| (NodeKind::Position, position)));
        }
        let last = tokens.saturating_sub(1);
        kinds.extend(self.logits.iter().map(|logit| (NodeKind::Logit { token: logit.token, probability: logit.probability }, last)));
        Ok(kinds)
    }
}

impl std::fmt::Display for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let features = self.nodes.iter().filter(|node| node.feature().is_some()).count();
        write!(
            f,
            "Graph of {:?}: {} nodes ({features} features), {} edges, replacement score {:.3}, completeness {:.3}{}{}",
            self.prompt(),
            self.nodes.len(),
            self.edges.len(),
            self.scores.replacement,
            self.scores.completeness,
            if self.pruned.is_some() { ", pruned" } else { "" },
            if self.complete() { "" } else { ", stopped early" }
        )
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
