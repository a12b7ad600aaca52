//! The attribution graph as one still picture: layers from below, tokens from the left.
//!
//! ● features, ◆ errors, ■ tokens and outputs, larger with more influence. An edge's width is the
//! root of its share of the target's input; green and whole raises the target,
//! purple and dashed lowers it. At most
//! [`EDGES`] edges and [`NODES`] inner nodes are drawn, the most influential; the caption says so.

use super::canvas::{text_width, Anchor, Canvas, Drawn, FAINT, INK, QUIET};
use super::edge_table::{strongest, table, Strong};
use super::frame::{Frame, Mark};
use super::graph_layout::{Layout, LEFT, OUTPUT_SIZE, TOKEN_CHARS, TOKEN_SIZE};
use super::html::{row, Align, Html};
use super::words::{tame, visible};
use super::{Picture, Show};
use crate::graph::{Graph, NodeKind, PruneConfig};
use plotters::prelude::*;

/// Most edges in a picture.
const EDGES: usize = 600;
/// Most features and errors in a picture.
const NODES: usize = 400;
const LABELS: usize = 16;
const LABEL_SIZE: f64 = 9.5;
const GREEN: RGBColor = RGBColor(27, 120, 55);
const PURPLE: RGBColor = RGBColor(118, 42, 131);
const FEATURE: RGBColor = RGBColor(49, 96, 143);
const ERROR: RGBColor = RGBColor(138, 109, 59);
const BAND: RGBColor = RGBColor(246, 247, 249);

/// What a picture of a graph says about the graph.
pub(super) struct Look {
    pub title: String,
    pub alt: String,
    /// What stands below the title.
    pub note: &'static str,
    /// What positive and negative edges mean.
    pub edges: [&'static str; 2],
    /// Each output's name with its probability, in the order of [`Graph::logits`].
    pub outputs: Vec<String>,
}

impl Graph {
    /// The graph as a picture. A whole graph is pruned with the default thresholds first.
    pub fn picture(&self) -> Picture {
        self.draw(&Look::of(self))
    }

    /// As [`Graph::picture`], with other words.
    pub(super) fn draw(&self, look: &Look) -> Picture {
        let graph = self.drawable();
        let shown = shown(&graph);
        draw(&graph, &shown, &strongest(&graph, &shown, EDGES), look)
    }

    fn drawable(&self) -> Graph {
        match self.pruned() {
            Some(_) => self.clone(),
            // The default thresholds are valid, so that only the whole graph can be the answer else.
            None => self.prune(&PruneConfig::default()).unwrap_or_else(|_| self.clone()),
        }
    }
}

impl Look {
    pub fn of(graph: &Graph) -> Look {
        let output = graph.logits().first().map_or_else(String::new, |top| format!(" → {:?} (p = {:.2})", top.text, top.probability));
        let features = graph.nodes.iter().filter(|node| node.feature().is_some()).count();
        let prompt = if graph.prompt().is_empty() { graph.model_name() } else { graph.prompt() };
        Look {
            title: format!("Attribution graph: {}", tame(prompt)),
            note: "Size: influence. Names: layer/feature.",
            alt: format!("Attribution graph of {:?}{output}: {} nodes, {features} of them features, {} edges", graph.prompt(), graph.nodes.len(), graph.edges().len()),
            edges: ["raises its target", "lowers it"],
            outputs: graph.logits().iter().map(|logit| format!("{} {:.1} %", visible(&logit.text, TOKEN_CHARS), 100.0 * logit.probability)).collect(),
        }
    }
}

impl Show for Graph {
    fn text(&self) -> String {
        self.to_string()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.picture())
    }

    /// Picture, scores, and a table of the strongest edges.
    fn html(&self) -> Html {
        let graph = self.drawable();
        let shown = shown(&graph);
        let edges = strongest(&graph, &shown, EDGES);
        let scores = self.scores();
        let lines = [
            ("replacement score", format!("{:.3}", scores.replacement), "share of the outputs' influence that reaches tokens through features, not errors"),
            ("completeness", format!("{:.3}", scores.completeness), "mean share of a node's input that does not come from errors"),
        ];
        let rows = lines.into_iter().map(|(name, value, why)| row![name, value, Html::text(why).small()]);
        Html::join([
            draw(&graph, &shown, &edges, &Look::of(self)).html(),
            Html::from(caption(self, &graph, &shown, edges.len())).small().block(),
            Html::table(&[("score of the whole graph", Align::Left), ("", Align::Right), ("", Align::Left)], rows),
            Html::details("Strongest edges as a table", table(&graph, &edges[..edges.len().min(30)])),
        ])
        .block()
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

fn draw(graph: &Graph, shown: &[bool], edges: &[Strong], look: &Look) -> Picture {
    let layout = Layout::new(graph, shown, &look.outputs);
    let legend = [
        (Mark::Circle(FEATURE), "feature"),
        (Mark::Diamond(ERROR), "error"),
        (Mark::Square(INK), "token, output"),
        (Mark::Line(GREEN), look.edges[0]),
        (Mark::Dashes(PURPLE), look.edges[1]),
    ];
    let frame = Frame {
        title: look.title.clone(),
        caption: look.note.to_string(),
        legend: legend.into_iter().map(|(mark, text)| (mark, text.to_string())).collect(),
        alt: look.alt.clone(),
    };
    frame.draw((layout.width, layout.bottom + layout.below(graph) + 10.0), |canvas| {
        ground(canvas, graph, &layout)?;
        // Weak ones first, so that strong ones lie above.
        for strong in edges.iter().rev() {
            if let (Some((from, a)), Some((to, b))) = (layout.places[strong.edge.source], layout.places[strong.edge.target]) {
                let size = strong.share.abs().sqrt();
                let colour = if strong.share > 0.0 { GREEN } else { PURPLE };
                let (from, to) = ((from.0, from.1 - 0.5 * a), (to.0, to.1 + 0.5 * b));
                canvas.arc(from, to, colour.mix(0.10 + 0.70 * size), 0.35 + 5.0 * size, strong.share <= 0.0)?;
            }
        }
        for (node, place) in graph.nodes.iter().zip(&layout.places) {
            let Some((at, r)) = *place else { continue };
            match node.kind {
                NodeKind::Feature { .. } => canvas.circle(at, r, FEATURE, WHITE)?,
                NodeKind::Error { .. } => canvas.diamond(at, r + 0.6, WHITE, ERROR)?,
                NodeKind::Token { .. } | NodeKind::Position | NodeKind::Logit { .. } => canvas.square(at, r, INK, WHITE)?,
            }
        }
        labels(canvas, graph, &layout, &look.outputs)
    })
}

/// Bands of layers, columns of tokens, their names.
fn ground(canvas: &Canvas<'_>, graph: &Graph, layout: &Layout) -> Drawn {
    let right = layout.columns.last().map_or(LEFT, |column| column.left + column.width);
    let pitch = layout.rows.windows(2).map(|pair| pair[0].1 - pair[1].1).next().unwrap_or(20.0);
    let name_each = (12.0 / pitch).ceil() as usize;
    for (k, (height, y)) in layout.rows.iter().enumerate() {
        if k % 2 == 0 {
            canvas.rect((LEFT, y - 0.5 * pitch), (right - LEFT, pitch), BAND.filled())?;
        }
        let name = match *height {
            0 => "tokens".to_string(),
            height if height > graph.layers() => "outputs".to_string(),
            height => format!("layer {}", height - 1),
        };
        if k % name_each == 0 || *height == 0 || *height > graph.layers() {
            canvas.text((LEFT - 7.0, y + 3.5), Anchor::End, 10.5, QUIET, &name)?;
        }
    }
    let foot = layout.bottom + 0.5 * pitch;
    for (position, (column, text)) in layout.columns.iter().zip(graph.token_text()).enumerate() {
        if position > 0 {
            canvas.line((column.left, layout.top - 0.5 * pitch), (column.left, foot), FAINT, 0.8)?;
        }
        let (x, text) = (column.left + 0.5 * column.width, visible(text, TOKEN_CHARS));
        match layout.turned {
            true => canvas.upright((x, layout.bottom + 12.0), Anchor::End, TOKEN_SIZE, INK, &text)?,
            false => canvas.text((x, layout.bottom + 22.0), Anchor::Middle, TOKEN_SIZE, INK, &text)?,
        }
    }
    Ok(())
}

/// Names of the outputs and of the most influential features, where they are free of each other.
fn labels(canvas: &Canvas<'_>, graph: &Graph, layout: &Layout, outputs: &[String]) -> Drawn {
    let places = graph.nodes.iter().zip(&layout.places).filter(|(node, _)| matches!(node.kind, NodeKind::Logit { .. }));
    for ((_, place), name) in places.zip(outputs) {
        if let Some(((x, y), _)) = *place {
            canvas.upright((x, y - 9.0), Anchor::Start, OUTPUT_SIZE, INK, name)?;
        }
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
            canvas.rect((spot.0 - 1.0, spot.1 - LABEL_SIZE + 1.5), (width + 2.0, LABEL_SIZE), WHITE.mix(0.75).filled())?;
            canvas.text(spot, Anchor::Start, LABEL_SIZE, RGBColor(18, 57, 95), &text)?;
        }
    }
    Ok(())
}
