//! An attention score: the strongest pairs of query and key parts as bars, and both sides' own sums.

use super::canvas::BLUE;
use super::frame::Frame;
use super::html::{row, Align, Html, WIDTH};
use super::rows::{Bar, Row, Rows};
use super::{Picture, Show};
use crate::graph::QkAttribution;
use plotters::style::RGBColor;

const LESS: RGBColor = RGBColor(192, 100, 60);
/// Parts of either side in the tables.
const PARTS: usize = 12;

impl QkAttribution {
    /// Bars of the strongest pairs, the query's part on the left, the key's on the right.
    pub fn picture(&self) -> Picture {
        let frame = Frame { title: self.title(), caption: self.figures(), alt: format!("{}: {}", self.title(), self.figures()), ..Frame::default() };
        let rows = self.pairs.iter().map(|pair| Row {
            left: self.part_text(&self.queries[pair.query]),
            right: self.part_text(&self.keys[pair.key]),
            bars: vec![Bar { value: pair.weight, top: 4.0, height: 12.0, colour: if pair.weight < 0.0 { LESS } else { BLUE } }],
        });
        let axis = "part of the score (before softmax)".to_string();
        Rows { axis, heads: ["part of the query", "part of the key"], rows: rows.collect(), pitch: 20.0, width: f64::from(WIDTH) }.picture(frame)
    }

    fn figures(&self) -> String {
        let shown: f64 = self.pairs.iter().map(|pair| pair.weight).sum();
        let cap = self.cap.map_or_else(String::new, |cap| format!(", capped at {cap} afterwards"));
        let all = self.queries.len() * self.keys.len();
        format!("score {:+.3}{cap}, attention {:.1} %; {} of {all} pairs shown, together {shown:+.3}", self.score, 100.0 * self.attention, self.pairs.len())
    }
}

impl Show for QkAttribution {
    fn text(&self) -> String {
        self.to_string()
    }

    fn picture(&self) -> Option<Picture> {
        Some(self.picture())
    }

    /// Picture, both sides' strongest parts, and the pairs as a table.
    fn html(&self) -> Html {
        let share = |weight: f64| format!("{:+.1} %", 100.0 * weight / self.score);
        let pairs = self.pairs.iter().map(|pair| {
            row![self.part_text(&self.queries[pair.query]), self.part_text(&self.keys[pair.key]), format!("{:+.4}", pair.weight), share(pair.weight)]
        });
        let columns = [("part of the query", Align::Left), ("part of the key", Align::Left), ("weight", Align::Right), ("of the score", Align::Right)];
        let side = |heading: &str, of_query: bool| {
            let rows = self.strongest(of_query, PARTS).into_iter().map(|part| row![self.part_text(&part), format!("{:+.4}", part.weight), share(part.weight)]);
            Html::table(&[(heading, Align::Left), ("with the whole other side", Align::Right), ("of the score", Align::Right)], rows)
        };
        let sides = Html::join([side("part of the query", true), side("part of the key", false)]);
        Html::join([
            self.picture().html(),
            Html::details("Query and key alone", sides),
            Html::details("Pairs as a table", Html::table(&columns, pairs)),
        ])
        .block()
    }
}
