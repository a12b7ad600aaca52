//! The graph as JSON for viewers: the schema of circuit-tracer's and Neuronpedia's front ends.
//!
//! A pruned graph is what viewers expect; of a whole one everything is written. Differs from
//! circuit-tracer in the ids of error nodes (see [`Graph::node_id`]). Streamed to the file.

use super::{listing, Graph, Node, NodeKind, Supernode};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct File<'a> {
    metadata: Metadata<'a>,
    #[serde(rename = "qParams")]
    view: View,
    nodes: Vec<NodeRecord>,
    links: Vec<Link<'a>>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    slug: String,
    scan: &'a str,
    transcoder_list: [&'a str; 0],
    prompt_tokens: &'a [String],
    prompt: &'a str,
    node_threshold: Option<f64>,
    schema_version: u32,
    info: Info,
    pruning_settings: Option<super::PruneConfig>,
    replacement_score: f64,
    completeness_score: f64,
}

#[derive(Serialize)]
struct Info {
    generator: Generator,
}

#[derive(Serialize)]
struct Generator {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    pinned_ids: Vec<String>,
    supernodes: Vec<Vec<String>>,
    link_type: &'static str,
    clicked_id: &'static str,
    #[serde(rename = "sg_pos")]
    boxes: &'static str,
}

#[derive(Serialize)]
struct NodeRecord {
    node_id: String,
    feature: i64,
    layer: String,
    ctx_idx: usize,
    feature_type: &'static str,
    token_prob: f32,
    is_target_logit: bool,
    run_idx: u32,
    reverse_ctx_idx: u32,
    #[serde(rename = "jsNodeId")]
    js_node_id: String,
    clerp: String,
    influence: Option<f32>,
    activation: Option<f32>,
}

#[derive(Serialize)]
struct Link<'a> {
    source: &'a str,
    target: &'a str,
    weight: f32,
}

/// Cantor's pairing of layer and feature: one number that viewers take apart again.
pub fn cantor(layer: u64, feature: u64) -> u64 {
    (layer + feature) * (layer + feature + 1) / 2 + feature
}

impl Graph {
    pub(super) fn write_json(&self, path: &Path, groups: &[Supernode]) -> Result<()> {
        listing::is_free(path)?;
        let view = self.view(groups)?;
        let ids: Vec<String> = self.nodes.iter().map(|node| self.node_id(node)).collect();
        let mut linked = vec![false; ids.len()];
        let mut links = Vec::with_capacity(self.edges().len());
        for edge in self.edges().iter() {
            finite(edge.weight, "links: weight")?;
            linked[edge.source] = true;
            linked[edge.target] = true;
            links.push(Link { source: &ids[edge.source], target: &ids[edge.target], weight: edge.weight });
        }
        let mut nodes = Vec::new();
        for (node, id) in self.nodes.iter().zip(&ids).zip(&linked).filter(|((node, _), linked)| **linked || node.kind.is_end()).map(|(pair, _)| pair) {
            nodes.push(self.record(node, id)?);
        }
        let config = self.pruned();
        let metadata = Metadata {
            slug: slug(path),
            scan: self.model_name(),
            transcoder_list: [],
            prompt_tokens: self.token_text(),
            prompt: self.prompt(),
            node_threshold: config.map(|config| config.node_threshold),
            schema_version: 1,
            info: Info { generator: Generator { name: "cltlab", version: env!("CARGO_PKG_VERSION") } },
            pruning_settings: config,
            replacement_score: self.scores().replacement,
            completeness_score: self.scores().completeness,
        };
        let entry = serde_json::to_value(&metadata).map_err(|error| Error::wrap(ErrorKind::NotFinite, path.display(), error))?;
        let slug = metadata.slug.clone();
        files::fill_atomic(path, |out| Ok(serde_json::to_writer(out, &File { metadata, view, nodes, links })?))?;
        listing::add(path, &slug, entry)
    }

    fn view(&self, groups: &[Supernode]) -> Result<View> {
        let (mut pinned_ids, mut supernodes) = (Vec::new(), Vec::new());
        for group in groups {
            let places = self.places(&group.features).map_err(|error| error.context(format_args!("supernode '{}'", group.name)))?;
            let ids: Vec<String> = places.into_iter().map(|place| self.node_id(&self.nodes[place])).collect();
            pinned_ids.extend_from_slice(&ids);
            supernodes.push([group.name.clone()].into_iter().chain(ids).collect());
        }
        if !groups.is_empty() {
            pinned_ids.extend(self.nodes.iter().filter(|node| matches!(node.kind, NodeKind::Logit { .. })).map(|node| self.node_id(node)));
        }
        Ok(View { pinned_ids, supernodes, link_type: "both", clicked_id: "", boxes: "" })
    }

    fn record(&self, node: &Node, id: &str) -> Result<NodeRecord> {
        let position = node.position;
        let layer = |layer: usize| layer.to_string();
        let (feature, layer, feature_type, js) = match node.kind {
            NodeKind::Feature { layer: l, feature, .. } => {
                (cantor(l as u64, feature as u64) as i64, layer(l), "cross layer transcoder", format!("{l}_{feature}-0"))
            }
            NodeKind::Error { layer: l } => (-1, layer(l), "mlp reconstruction error", format!("{l}_error_mlp-{position}")),
            NodeKind::Token { token } => (position as i64, "E".to_string(), "embedding", format!("E_{token}-{position}")),
            NodeKind::Position => (position as i64, "E".to_string(), "embedding", format!("P_{position}-{position}")),
            NodeKind::Logit { token, .. } => (i64::from(token), layer(self.layers() + 1), "logit", format!("L_{token}-{position}")),
        };
        let mut record = NodeRecord {
            node_id: id.to_string(),
            feature,
            layer,
            ctx_idx: position,
            feature_type,
            token_prob: 0.0,
            is_target_logit: false,
            run_idx: 0,
            reverse_ctx_idx: 0,
            js_node_id: js,
            clerp: String::new(),
            influence: Some(finite(node.cumulative, "nodes: influence")?),
            activation: None,
        };
        match node.kind {
            NodeKind::Feature { activation, .. } => record.activation = Some(finite(activation, "nodes: activation")?),
            NodeKind::Logit { token, probability } => {
                record.token_prob = finite(probability, "nodes: token_prob")?;
                record.is_target_logit = self.logits().first().is_some_and(|first| first.token == token);
                record.influence = None;
                let text = self.logits().iter().find(|logit| logit.token == token).map_or("", |logit| &logit.text);
                record.clerp = format!("Output \"{}\" (p={probability:.3})", label(text));
            }
            NodeKind::Position => record.clerp = format!("position {position}"),
            NodeKind::Error { .. } | NodeKind::Token { .. } => {}
        }
        Ok(record)
    }
}

/// Viewers cut a logit's label at the first pair of quotes and at `(p=`; a token must hold neither.
fn label(text: &str) -> String {
    text.replace('"', "″").replace("(p=", "(p =")
}

fn slug(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    stem.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' }).collect()
}

fn finite(value: f32, field: &str) -> Result<f32> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::expected(ErrorKind::NotFinite, format_args!("Graph::save: {field}"), value, "a finite number"))
}
