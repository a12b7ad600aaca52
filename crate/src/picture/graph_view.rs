//! The attribution graph as one still picture: layers from below, tokens from the left.
//!
//! ● features, ◆ errors, ■ tokens and outputs, larger with more influence. An edge's width is the
//! root of its share of the target's input; green raises the target, purple lowers it. At most
//! [`EDGES`] edges and [`NODES`] inner nodes are drawn, the most influential; the caption says so.

use super::edge_table::{strongest, table, Strong};
use super::graph_layout::{Layout, LEFT, TOKEN_CHARS, TOKEN_SIZE, TOP};
use super::html::{self, visible, Align};
use super::svg::{text_width, Anchor, Svg};
use super::Picture;
use crate::graph::{Graph, NodeKind, PruneConfig};

/// Most edges in a picture.
pub const EDGES: usize = 600;
/// Most features and errors in a picture.
pub const NODES: usize = 400;
const LABELS: usize = 16;
const LABEL_SIZE: f64 = 9.5;
const GREEN: &str = "#1b7837";
const PURPLE: &str = "#762a83";
const INK: &str = "#222";
const QUIET: &str = "#777";

impl Graph {
    /// The graph as a picture. A whole graph is pruned with the default thresholds first.
    pub fn picture(&self) -> Picture {
        let graph = self.drawable();
        let shown = shown(&graph);
        draw(&graph, &shown, &strongest(&graph, &shown, EDGES))
    }

    /// Picture, scores, and a table of the strongest edges, as HTML.
    pub fn html(&self) -> String {
        let graph = self.drawable();
        let shown = shown(&graph);
        let edges = strongest(&graph, &shown, EDGES);
        let picture = draw(&graph, &shown, &edges).html();
        let scores = self.scores();
        let lines = [
            ("replacement score", format!("{:.3}", scores.replacement), "share of the outputs' influence that reaches tokens through features, not errors"),
            ("completeness", format!("{:.3}", scores.completeness), "mean share of a node's input that does not come from errors"),
        ];
        let rows: Vec<Vec<String>> = lines.into_iter().map(|(name, value, why)| vec![name.into(), value, format!("<small>{why}</small>")]).collect();
        format!(
            "<div>{picture}<div><small>{}</small></div>{}{}</div>",
            html::escape(&caption(self, &graph, &shown, edges.len())),
            html::table(&[("score of the whole graph", Align::Left), ("", Align::Right), ("", Align::Left)], &rows),
            html::details("Strongest edges as a table", &table(&graph, &edges[..edges.len().min(30)]))
        )
    }

    fn drawable(&self) -> Graph {
        match self.pruned() {
            Some(_) => self.clone(),
            // The default thresholds are valid, so that only the whole graph can be the answer else.
            None => self.prune(&PruneConfig::default()).unwrap_or_else(|_| self.clone()),
        }
    }
}

/// Which nodes are drawn: the ends, and the most influential others.
fn shown(graph: &Graph) -> Vec<bool> {
    let mut inner: Vec<usize> = (0..graph.nodes.len()).filter(|i| !graph.nodes[*i].kind.is_end()).collect();
    inner.sort_by(|a, b| graph.nodes[*b].influence.total_cmp(&graph.nodes[*a].influence));
    let mut shown: Vec<bool> = graph.nodes.iter().map(|node| node.kind.is_end()).collect();
    inner.into_iter().take(NODES).for_each(|i| shown[i] = true);
    shown
}

fn caption(whole: &Graph, graph: &Graph, shown: &[bool], edges: usize) -> String {
    let drawn = shown.iter().filter(|shown| **shown).count();
    let mut text = format!("{} nodes, {} edges", graph.nodes.len(), graph.edges().len());
    if let Some(config) = graph.pruned() {
        text += &format!(" after pruning to {:.0} % of the nodes' and {:.0} % of the edges' influence", 100.0 * config.node_threshold, 100.0 * config.edge_threshold);
    }
    if whole.pruned().is_none() {
        text += &format!(" (the whole graph has {} and {})", whole.nodes.len(), whole.edges().len());
    }
    if drawn < graph.nodes.len() || edges < graph.edges().len() {
        text += &format!("; drawn are the {drawn} nodes and {edges} edges with the most influence");
    }
    if !whole.complete() {
        text += "; stopped early, so that some features are missing";
    }
    text + ". Width: root of the share of the target's input."
}

fn draw(graph: &Graph, shown: &[bool], edges: &[Strong]) -> Picture {
    let layout = Layout::new(graph, shown);
    let mut svg = Svg::new(layout.width, layout.bottom + layout.below(graph) + 10.0);
    ground(&mut svg, graph, &layout);
    // Weak ones first, so that strong ones lie above.
    for strong in edges.iter().rev() {
        if let (Some((from, a)), Some((to, b))) = (layout.places[strong.edge.source], layout.places[strong.edge.target]) {
            let size = strong.share.abs().sqrt();
            let colour = if strong.share > 0.0 { GREEN } else { PURPLE };
            svg.arc((from.0, from.1 - 0.5 * a), (to.0, to.1 + 0.5 * b), colour, 0.35 + 5.0 * size, 0.10 + 0.70 * size);
        }
    }
    for (node, place) in graph.nodes.iter().zip(&layout.places) {
        let Some((at, r)) = *place else { continue };
        match node.kind {
            NodeKind::Feature { .. } => svg.circle(at, r, "#31608f", "#fff"),
            NodeKind::Error { .. } => svg.diamond(at, r + 0.6, "#fff", "#8a6d3b"),
            NodeKind::Token { .. } | NodeKind::Position | NodeKind::Logit { .. } => svg.square(at, r, INK, "#fff"),
        }
    }
    labels(&mut svg, graph, &layout);
    head(&mut svg, graph);
    Picture::new(svg.finish(&alt(graph)), alt(graph), layout.width as u32)
}

fn alt(graph: &Graph) -> String {
    let output = graph.logits().first().map_or_else(String::new, |top| format!(" → {:?} (p = {:.2})", top.text, top.probability));
    let features = graph.nodes.iter().filter(|node| node.feature().is_some()).count();
    format!("Attribution graph of {:?}{output}: {} nodes, {features} of them features, {} edges", graph.prompt(), graph.nodes.len(), graph.edges().len())
}

/// Bands of layers, columns of tokens, their names.
fn ground(svg: &mut Svg, graph: &Graph, layout: &Layout) {
    let right = layout.columns.last().map_or(LEFT, |column| column.left + column.width);
    let pitch = layout.rows.windows(2).map(|pair| pair[0].1 - pair[1].1).next().unwrap_or(20.0);
    let name_each = (12.0 / pitch).ceil() as usize;
    for (k, (height, y)) in layout.rows.iter().enumerate() {
        if k % 2 == 0 {
            svg.rect((LEFT, y - 0.5 * pitch), (right - LEFT, pitch), "#f6f7f9");
        }
        let name = match *height {
            0 => "Emb".to_string(),
            height if height > graph.layers() => "Logits".to_string(),
            height => format!("L{}", height - 1),
        };
        if k % name_each == 0 || *height == 0 || *height > graph.layers() {
            svg.text((LEFT - 7.0, y + 3.5), Anchor::End, 10.5, QUIET, &name);
        }
    }
    let foot = layout.bottom + 0.5 * pitch;
    for (position, (column, text)) in layout.columns.iter().zip(graph.token_text()).enumerate() {
        if position > 0 {
            svg.line((column.left, TOP - 0.5 * pitch), (column.left, foot), "#e3e6ea", 0.8);
        }
        let (x, text) = (column.left + 0.5 * column.width, visible(text, TOKEN_CHARS));
        if layout.turned {
            svg.turned((x + 4.0, layout.bottom + 12.0), Anchor::End, TOKEN_SIZE, INK, -90.0, &text);
        } else {
            svg.text((x, layout.bottom + 22.0), Anchor::Middle, TOKEN_SIZE, INK, &text);
        }
    }
}

/// Names of the outputs and of the most influential features, where they are free of each other.
fn labels(svg: &mut Svg, graph: &Graph, layout: &Layout) {
    for (node, place) in graph.nodes.iter().zip(&layout.places) {
        let (NodeKind::Logit { token, probability }, Some(((x, y), _))) = (node.kind, *place) else { continue };
        let text = graph.logits().iter().find(|logit| logit.token == token).map_or("", |logit| &logit.text);
        let name = format!("{} {:.1} %", visible(text, 10), 100.0 * probability);
        svg.turned((x + 2.0, y - 8.0), Anchor::Start, 10.5, INK, -42.0, &name);
    }
    let mut order: Vec<usize> = (0..graph.nodes.len()).filter(|i| graph.nodes[*i].feature().is_some() && layout.places[*i].is_some()).collect();
    order.sort_by(|a, b| graph.nodes[*b].influence.total_cmp(&graph.nodes[*a].influence));
    let boxed = |((x, y), r): ((f64, f64), f64)| [x - r, y - r, x + r, y + r];
    let mut taken: Vec<[f64; 4]> = layout.places.iter().flatten().map(|place| boxed(*place)).collect();
    for i in order.into_iter().take(LABELS) {
        let (Some(((x, y), r)), Some(place)) = (layout.places[i], graph.nodes[i].feature()) else { continue };
        let text = format!("{}/{}", place.layer, place.feature);
        let width = text_width(&text, LABEL_SIZE);
        let beside = [(x + r + 1.5, y + 3.3), (x - r - 1.5 - width, y + 3.3)];
        let shifts = [0.5, 0.2, 0.8].map(|part| x - part * width);
        let around = shifts.into_iter().flat_map(|left| [(left, y - r - 1.5), (left, y + r + LABEL_SIZE - 1.0)]);
        let free = |(left, base): &(f64, f64)| {
            let [a, b, c, d] = [*left, base - LABEL_SIZE + 2.0, left + width, *base];
            *left > LEFT && c < layout.width && !taken.iter().any(|other| a < other[2] && other[0] < c && b < other[3] && other[1] < d)
        };
        if let Some(spot) = beside.into_iter().chain(around).find(free) {
            taken.push([spot.0, spot.1 - LABEL_SIZE + 2.0, spot.0 + width, spot.1]);
            svg.text(spot, Anchor::Start, LABEL_SIZE, "#12395f", &text);
        }
    }
}

/// Title and legend.
fn head(svg: &mut Svg, graph: &Graph) {
    let most = (svg.width / 7.6) as usize;
    let title = format!("Attribution graph: {}", if graph.prompt().is_empty() { graph.model_name() } else { graph.prompt() });
    svg.text((10.0, 20.0), Anchor::Start, 13.5, INK, &html::shorten(&title, most));
    let (mut x, y) = (10.0, 38.0);
    let mut entry = |svg: &mut Svg, width: f64, text: &str| {
        svg.text((x + width, y + 3.5), Anchor::Start, 10.0, QUIET, text);
        let at = x;
        x += width + text_width(text, 10.0) + 14.0;
        at
    };
    let at = entry(svg, 10.0, "feature");
    svg.circle((at + 4.0, y), 4.0, "#31608f", "#fff");
    let at = entry(svg, 12.0, "error");
    svg.diamond((at + 5.0, y), 4.6, "#fff", "#8a6d3b");
    let at = entry(svg, 12.0, "token, output");
    svg.square((at + 5.0, y), 4.0, INK, "#fff");
    let at = entry(svg, 24.0, "raises its target");
    svg.line((at, y), (at + 19.0, y), GREEN, 2.5);
    let at = entry(svg, 24.0, "lowers it");
    svg.line((at, y), (at + 19.0, y), PURPLE, 2.5);
    entry(svg, 0.0, "· size: influence · label: layer/feature");
}
