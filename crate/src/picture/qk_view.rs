//! An attention score: the strongest pairs of query and key parts as bars, and both sides' own sums.

use super::chart::QUIET;
use super::html::{self, shorten, tame, Align, WIDTH};
use super::svg::{Anchor, Svg};
use super::Picture;
use crate::graph::{QkAttribution, QkPart};

const ROW: f64 = 20.0;
const HEAD: f64 = 66.0;
const INK: &str = "#222";
const MORE: &str = "#2b7bba";
const LESS: &str = "#c0643c";
/// Parts of either side in the tables.
const PARTS: usize = 12;

impl QkAttribution {
    /// Bars of the strongest pairs, the query's part on the left, the key's on the right.
    pub fn picture(&self) -> Picture {
        let foot = HEAD + ROW * self.pairs.len() as f64;
        let mut svg = Svg::new(f64::from(WIDTH), foot + 34.0);
        svg.text((10.0, 20.0), Anchor::Start, 13.5, INK, &shorten(&tame(&self.title()), 80));
        svg.text((10.0, 38.0), Anchor::Start, 10.0, QUIET, &self.figures());
        let (left, right) = (240.0, 480.0);
        svg.text((left - 10.0, HEAD - 8.0), Anchor::End, 10.0, QUIET, "part of the query");
        svg.text((right + 10.0, HEAD - 8.0), Anchor::Start, 10.0, QUIET, "part of the key");
        let finite = |weight: f64| if weight.is_finite() { weight } else { 0.0 };
        let most = self.pairs.iter().map(|pair| finite(pair.weight).abs()).fold(0.0, f64::max).max(1e-12);
        let (zero, scale) = (0.5 * (left + right), 0.5 * (right - left) / (1.05 * most));
        super::chart::about_zero(&mut svg, most, (zero, scale), (HEAD, foot));
        svg.text((zero, foot + 28.0), Anchor::Middle, 10.5, INK, "part of the score (before softmax)");
        for (k, pair) in self.pairs.iter().enumerate() {
            let (y, length) = (HEAD + ROW * k as f64, scale * finite(pair.weight));
            svg.rect((zero + length.min(0.0), y + 4.0), (length.abs(), 12.0), if length < 0.0 { LESS } else { MORE });
            let text = |part: &QkPart| shorten(&tame(&self.part_text(part)), 34);
            svg.text((left - 10.0, y + 14.0), Anchor::End, 10.5, INK, &text(&self.queries[pair.query]));
            svg.text((right + 10.0, y + 14.0), Anchor::Start, 10.5, INK, &text(&self.keys[pair.key]));
        }
        let alt = format!("{}: {}", self.title(), self.figures());
        Picture::new(svg.finish(&alt), alt, WIDTH)
    }

    /// Picture, both sides' strongest parts, and the pairs as a table, as HTML.
    pub fn html(&self) -> String {
        let share = |weight: f64| format!("{:+.1} %", 100.0 * weight / self.score);
        let pairs = self.pairs.iter().map(|pair| {
            let name = |part: &QkPart| html::escape(&self.part_text(part));
            vec![name(&self.queries[pair.query]), name(&self.keys[pair.key]), format!("{:+.4}", pair.weight), share(pair.weight)]
        });
        let columns = [("part of the query", Align::Left), ("part of the key", Align::Left), ("weight", Align::Right), ("of the score", Align::Right)];
        let side = |heading: &str, of_query: bool| {
            let rows = self.strongest(of_query, PARTS).into_iter().map(|part| vec![html::escape(&self.part_text(&part)), format!("{:+.4}", part.weight), share(part.weight)]);
            html::table(&[(heading, Align::Left), ("with the whole other side", Align::Right), ("of the score", Align::Right)], &rows.collect::<Vec<_>>())
        };
        format!(
            "<div>{}{}{}</div>",
            self.picture().html(),
            html::details("Query and key alone", &format!("{}{}", side("part of the query", true), side("part of the key", false))),
            html::details("Pairs as a table", &html::table(&columns, &pairs.collect::<Vec<_>>()))
        )
    }

    fn figures(&self) -> String {
        let shown: f64 = self.pairs.iter().map(|pair| pair.weight).sum();
        let cap = self.cap.map_or_else(String::new, |cap| format!(", capped at {cap} afterwards"));
        let all = self.queries.len() * self.keys.len();
        format!("score {:+.3}{cap}, attention {:.1} %; {} of {all} pairs shown, together {shown:+.3}", self.score, 100.0 * self.attention, self.pairs.len())
    }
}
