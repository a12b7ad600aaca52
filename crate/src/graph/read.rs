//! A graph read from the JSON that viewers read: what [`Graph::save`] writes, and circuit-tracer's own files.

use super::{Edges, Graph, GraphParts, LogitTarget, Node, NodeKind, PruneConfig, Scores};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::replacement::FeatureNode;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Layers that a file may speak of, at most: a picture has a row for each.
const LAYERS: usize = 10_000;

#[derive(Deserialize)]
struct File {
    metadata: Metadata,
    nodes: Vec<Record>,
    links: Vec<Link>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    scan: String,
    prompt: String,
    prompt_tokens: Vec<String>,
    node_threshold: Option<f64>,
    pruning_settings: Option<Thresholds>,
    #[serde(default)]
    replacement_score: f64,
    #[serde(default)]
    completeness_score: f64,
}

#[derive(Deserialize)]
struct Thresholds {
    node_threshold: f64,
    edge_threshold: f64,
}

#[derive(Deserialize)]
struct Record {
    node_id: String,
    layer: Layer,
    ctx_idx: usize,
    feature_type: String,
    token_prob: Option<f32>,
    #[serde(default)]
    clerp: String,
    influence: Option<f32>,
    activation: Option<f32>,
}

/// Layers are texts in most files, numbers in some.
#[derive(Deserialize)]
#[serde(untagged)]
enum Layer {
    Text(String),
    Number(usize),
}

#[derive(Deserialize)]
struct Link {
    source: String,
    target: String,
    weight: f32,
}

impl Graph {
    /// Reads a graph from the JSON that viewers read: nodes, effects, prompt, outputs and scores. A node's
    /// influence comes back as its share of all influence, which is what the file holds; features that were pruned away
    /// are not in the file.
    ///
    /// ```no_run
    /// let graph = cltlab::Graph::load("dallas.json")?;
    /// graph.picture().save("dallas.svg")?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `MissingFile`, `Io`; `BadFile` naming the node or link that does not fit the others; `NotFinite`.
    pub fn load(path: impl AsRef<Path>) -> Result<Graph> {
        let path = path.as_ref();
        let file: File = files::read_json_object(path)?;
        graph(file).map_err(|error| error.context(path.display()))
    }
}

fn bad(what: std::fmt::Arguments<'_>, got: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
    Error::expected(ErrorKind::BadFile, what, got, expected)
}

impl Record {
    fn layer(&self) -> Result<usize> {
        let number = match &self.layer {
            Layer::Number(layer) => Some(*layer),
            Layer::Text(text) => text.parse().ok(),
        };
        number.filter(|layer| *layer <= LAYERS).ok_or_else(|| bad(format_args!("node {:?}: layer", self.node_id), self.layer.shown(), format_args!("a number up to {LAYERS}")))
    }

    /// The number between the first and the last part of the id.
    fn number(&self) -> Result<usize> {
        let number = self.node_id.split('_').nth(1).and_then(|part| part.parse().ok()).filter(|number| *number <= u32::MAX as usize);
        number.ok_or_else(|| bad(format_args!("node_id"), format_args!("{:?}", self.node_id), "layer_number_position"))
    }

    fn kind(&self) -> Result<NodeKind> {
        Ok(match self.feature_type.as_str() {
            "cross layer transcoder" => NodeKind::Feature { layer: self.layer()?, feature: self.number()?, activation: self.activation.unwrap_or(0.0) },
            "mlp reconstruction error" => NodeKind::Error { layer: self.layer()? },
            "embedding" if self.node_id.starts_with("P_") => NodeKind::Position,
            "embedding" => NodeKind::Token { token: self.number()? as u32 },
            "logit" => NodeKind::Logit { token: self.number()? as u32, probability: self.token_prob.unwrap_or(0.0) },
            other => {
                let expected = "cross layer transcoder, mlp reconstruction error, embedding or logit";
                return Err(bad(format_args!("node {:?}: feature_type", self.node_id), format_args!("{other:?}"), expected));
            }
        })
    }

    /// The output's token: what stands in the label's quotes.
    fn text(&self) -> String {
        let label = self.clerp.rsplit_once(" (p=").map_or(self.clerp.as_str(), |(label, _)| label);
        let inner = label.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
        inner.map_or_else(|| label.to_string(), |(text, _)| text.to_string())
    }
}

impl Layer {
    fn shown(&self) -> String {
        match self {
            Layer::Number(layer) => layer.to_string(),
            Layer::Text(text) => format!("{text:?}"),
        }
    }
}

/// Place of a kind in the order of a graph's nodes.
fn rank(kind: &NodeKind) -> usize {
    match kind {
        NodeKind::Feature { .. } => 0,
        NodeKind::Error { .. } => 1,
        NodeKind::Token { .. } => 2,
        NodeKind::Position => 3,
        NodeKind::Logit { .. } => 4,
    }
}

fn graph(file: File) -> Result<Graph> {
    let positions = file.metadata.prompt_tokens.len();
    let mut records = Vec::with_capacity(file.nodes.len());
    for record in &file.nodes {
        if record.ctx_idx >= positions {
            return Err(bad(format_args!("node {:?}: ctx_idx", record.node_id), record.ctx_idx, format_args!("less than {positions}, the tokens of the prompt")));
        }
        let numbers = [record.token_prob, record.influence, record.activation];
        if numbers.iter().flatten().any(|number| !number.is_finite()) {
            return Err(Error::new(ErrorKind::NotFinite, format!("node {:?}: a number that is too large", record.node_id)));
        }
        records.push((record.kind()?, record));
    }
    records.sort_by_key(|(kind, _)| rank(kind));
    let mut number = HashMap::with_capacity(records.len());
    for (i, (_, record)) in records.iter().enumerate() {
        if number.insert(record.node_id.as_str(), i as u32).is_some() {
            return Err(bad(format_args!("node_id"), format_args!("{:?} twice", record.node_id), "one node of each id"));
        }
    }
    let mut nodes: Vec<Node> = records.iter().map(|(kind, record)| Node { kind: *kind, position: record.ctx_idx, influence: 0.0, cumulative: record.influence.unwrap_or(1.0) }).collect();
    // The cumulative share less that of the node before is the node's own.
    let mut order: Vec<usize> = (0..nodes.len()).filter(|i| records[*i].1.influence.is_some()).collect();
    order.sort_by(|a, b| nodes[*a].cumulative.total_cmp(&nodes[*b].cumulative));
    let mut before = 0.0;
    for i in order {
        nodes[i].influence = nodes[i].cumulative - before;
        before = nodes[i].cumulative;
    }
    let edges = edges(&file.links, &number)?;
    let top = records.iter().filter(|(kind, _)| rank(kind) < 2).map(|(_, record)| record.layer()).collect::<Result<Vec<_>>>()?;
    let outputs = records.iter().filter(|(kind, _)| rank(kind) == 4);
    // Outputs stand at layer L + 1.
    let above = outputs.clone().map(|(_, record)| record.layer()).collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
    let layers = top.into_iter().max().map_or(0, |layer| layer + 1).max(above.saturating_sub(1));
    let logits = outputs
        .filter_map(|(kind, record)| match kind {
            NodeKind::Logit { token, probability } => Some(LogitTarget { token: *token, text: record.text(), probability: *probability }),
            _ => None,
        })
        .collect();
    let mut tokens = vec![0; positions];
    for node in &nodes {
        if let NodeKind::Token { token } = node.kind {
            tokens[node.position] = token;
        }
    }
    let features: Vec<(FeatureNode, f32)> = nodes
        .iter()
        .filter_map(|node| match node.kind {
            NodeKind::Feature { activation, .. } => Some((node.feature()?, activation)),
            _ => None,
        })
        .collect();
    let metadata = file.metadata;
    let given = metadata.pruning_settings.map(|given| PruneConfig { node_threshold: given.node_threshold, edge_threshold: given.edge_threshold });
    let pruned = given.or(metadata.node_threshold.map(|node_threshold| PruneConfig { node_threshold, edge_threshold: 1.0 }));
    let parts = GraphParts {
        model_name: metadata.scan,
        prompt: metadata.prompt,
        tokens,
        token_text: metadata.prompt_tokens,
        layers,
        selected: (0..features.len() as u32).collect(),
        activations: features.iter().map(|(_, activation)| *activation).collect(),
        active: features.into_iter().map(|(feature, _)| feature).collect(),
        logits,
        position_nodes: nodes.iter().any(|node| node.kind == NodeKind::Position),
        edges: Edges::default(),
        zero_positions: Vec::new(),
        complete: true,
    };
    let scores = Scores { replacement: metadata.replacement_score, completeness: metadata.completeness_score };
    Ok(Graph { nodes, parts: Arc::new(parts), edges: Arc::new(edges), scores, pruned })
}

/// Links as rows, by ascending target.
fn edges(links: &[Link], number: &HashMap<&str, u32>) -> Result<Edges> {
    let mut list = Vec::with_capacity(links.len());
    for link in links {
        let place = |id: &str| number.get(id).copied().ok_or_else(|| bad(format_args!("links"), format_args!("{id:?}"), "the id of a node"));
        if !link.weight.is_finite() {
            return Err(Error::new(ErrorKind::NotFinite, format!("links: {:?} to {:?}: a weight that is too large", link.source, link.target)));
        }
        list.push((place(&link.target)?, place(&link.source)?, link.weight));
    }
    list.sort_by_key(|(target, source, _)| (*target, *source));
    let mut edges = Edges::default();
    for row in list.chunk_by(|a, b| a.0 == b.0) {
        row.iter().for_each(|(_, source, weight)| edges.push(*source, *weight));
        edges.close(row[0].0);
    }
    Ok(edges)
}
