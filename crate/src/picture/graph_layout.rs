//! Where the nodes of a graph stand: columns are tokens, rows are layers from below.
//!
//! In: a graph and the nodes to show. Out: a place and a radius for each, in pixels. Rows without a
//! node are left out; a column is as wide as its fullest cell needs. Cost: O(nodes).

use super::canvas::text_width;
use super::html::WIDTH;
use super::words::visible;
use crate::graph::{Graph, Node, NodeKind};
use std::collections::BTreeMap;

/// Pixels left of the first column, for the layers' names.
pub(super) const LEFT: f64 = 58.0;
const RIGHT: f64 = 20.0;
/// From one output to the next.
const SLOT: f64 = 26.0;
pub(super) const OUTPUT_SIZE: f64 = 10.5;
pub(super) const TOKEN_SIZE: f64 = 11.0;
/// Token texts are cut after this many characters.
pub(super) const TOKEN_CHARS: usize = 24;
const SMALL: f64 = 2.4;
const LARGE: f64 = 7.0;
/// The picture grows beyond its usual width up to this.
const WIDEST: f64 = 1180.0;

pub(super) struct Column {
    pub left: f64,
    pub width: f64,
}

pub(super) struct Layout {
    pub columns: Vec<Column>,
    /// (height in the graph, pixels from above), from below.
    pub rows: Vec<(usize, f64)>,
    /// Centre and radius of each node of the graph; `None` when it is not shown.
    pub places: Vec<Option<((f64, f64), f64)>>,
    pub width: f64,
    /// Height of the first row, below the outputs' names.
    pub top: f64,
    pub bottom: f64,
    /// Tokens are written upright below the columns when they do not fit.
    pub turned: bool,
}

impl Layout {
    /// `names` are those of the outputs, which stand upright above them.
    pub fn new(graph: &Graph, shown: &[bool], names: &[String]) -> Layout {
        let top = 20.0 + names.iter().map(|name| text_width(name, OUTPUT_SIZE)).fold(0.0, f64::max);
        let most = graph.nodes.iter().filter(|node| !node.kind.is_end()).map(|node| node.influence).fold(0.0_f32, f32::max).max(f32::MIN_POSITIVE);
        let radius = |node: &Node| match node.kind {
            NodeKind::Token { .. } | NodeKind::Position | NodeKind::Logit { .. } => 4.0,
            _ => SMALL + (LARGE - SMALL) * f64::from(node.influence.max(0.0) / most).sqrt(),
        };
        let mut cells: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| shown[*i]) {
            cells.entry((node.kind.height(graph.layers()), node.position)).or_default().push(i);
        }
        // Errors stand right of the features; within a kind by number, so that a cell reads the same
        // in every picture.
        let span = |cell: &[usize]| cell.iter().map(|i| 2.0 * radius(&graph.nodes[*i]) + 1.5).sum::<f64>();
        let outputs = graph.layers() + 1;
        let mut needs: Vec<f64> = graph.token_text().iter().map(|_| 13.0).collect();
        for ((height, position), cell) in &cells {
            if *height != outputs {
                needs[*position] = needs[*position].max(span(cell) + 7.0);
            }
        }
        let words: Vec<f64> = graph.token_text().iter().map(|text| text_width(&visible(text, TOKEN_CHARS), TOKEN_SIZE) + 8.0).collect();
        let room = f64::from(WIDTH) - LEFT - RIGHT;
        let level: Vec<f64> = needs.iter().zip(&words).map(|(need, word)| need.max(*word)).collect();
        let turned = level.iter().sum::<f64>() > (room + 120.0).max(needs.iter().sum::<f64>() * 1.1);
        let base = if turned { needs } else { level };
        let wanted: f64 = base.iter().sum();
        let total = wanted.clamp(room, WIDEST - LEFT - RIGHT);
        let mut left = LEFT;
        let columns: Vec<Column> = base
            .iter()
            .map(|need| {
                let width = need * total / wanted;
                left += width;
                Column { left: left - width, width }
            })
            .collect();

        let mut heights: Vec<usize> = cells.keys().map(|(height, _)| *height).collect();
        heights.dedup();
        let pitch = (600.0 / heights.len().max(1) as f64).clamp(15.0, 46.0);
        let bottom = top + pitch * heights.len().saturating_sub(1) as f64;
        let rows: Vec<(usize, f64)> = heights.iter().enumerate().map(|(k, height)| (*height, bottom - pitch * k as f64)).collect();

        let mut places = vec![None; graph.nodes.len()];
        for ((height, position), cell) in &cells {
            let y = rows.iter().find(|(of, _)| of == height).map_or(top, |row| row.1);
            if *height == outputs {
                let slot = (total / cell.len() as f64).min(SLOT);
                for (k, i) in cell.iter().enumerate() {
                    let x = LEFT + total - 10.0 - slot * (cell.len() - 1 - k) as f64;
                    places[*i] = Some(((x, y), radius(&graph.nodes[*i])));
                }
                continue;
            }
            let column = &columns[*position];
            let squeeze = ((column.width - 5.0) / span(cell)).min(1.0);
            let mut x = column.left + 0.5 * (column.width - squeeze * span(cell));
            for i in cell {
                let r = radius(&graph.nodes[*i]);
                let step = squeeze * (2.0 * r + 1.5);
                places[*i] = Some(((x + 0.5 * step, y), r));
                x += step;
            }
        }
        Layout { columns, rows, places, width: LEFT + total + RIGHT, top, bottom, turned }
    }

    /// Pixels below the last row that the tokens' texts take.
    pub fn below(&self, graph: &Graph) -> f64 {
        if !self.turned {
            return 30.0;
        }
        16.0 + graph.token_text().iter().map(|text| text_width(&visible(text, TOKEN_CHARS), TOKEN_SIZE)).fold(0.0, f64::max)
    }
}
