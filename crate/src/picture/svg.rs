//! Shapes into SVG text, for pictures that a chart library has no form for.

use super::html::escape;
use std::fmt::Write;

/// SVG text that grows.
pub(super) struct Svg {
    body: String,
    /// Pixels.
    pub width: f64,
    /// Pixels.
    pub height: f64,
}

/// Where a text is held.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub fn new(width: f64, height: f64) -> Self {
        Svg { body: String::new(), width, height }
    }

    pub fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        let _ = write!(self.body, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>");
    }

    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str, width: f64) {
        let _ = write!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\" stroke-width=\"{width:.1}\"/>"
        );
    }

    pub fn circle(&mut self, (x, y): (f64, f64), r: f64, fill: &str, stroke: &str) {
        let _ = write!(self.body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"0.8\"/>");
    }

    pub fn diamond(&mut self, (x, y): (f64, f64), r: f64, fill: &str, stroke: &str) {
        let _ = write!(
            self.body,
            "<path d=\"M{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"0.8\"/>",
            x - r,
            y - r,
            x + r,
            y + r
        );
    }

    pub fn square(&mut self, (x, y): (f64, f64), r: f64, fill: &str, stroke: &str) {
        let (left, top, side) = (x - r, y - r, 2.0 * r);
        let _ = write!(
            self.body,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"0.8\"/>"
        );
    }

    /// A curve that leaves and arrives upright, dashed for what is negative.
    pub fn arc(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), (stroke, dashed): (&str, bool), width: f64, opacity: f64) {
        let middle = 0.5 * (y1 + y2);
        let dashes = if dashed { DASHES } else { "" };
        let _ = write!(
            self.body,
            "<path d=\"M{x1:.1} {y1:.1}C{x1:.1} {middle:.1} {x2:.1} {middle:.1} {x2:.1} {y2:.1}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"{width:.2}\" stroke-opacity=\"{opacity:.2}\"{dashes}/>"
        );
    }

    /// Text of `size` pixels with a white seam, escaped here.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, size: f64, fill: &str, text: &str) {
        self.turned((x, y), anchor, size, fill, 0.0, text);
    }

    /// As [`Svg::text`], turned by `degrees` around its anchor.
    pub fn turned(&mut self, (x, y): (f64, f64), anchor: Anchor, size: f64, fill: &str, degrees: f64, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let turn = if degrees == 0.0 { String::new() } else { format!(" transform=\"rotate({degrees:.0} {x:.1} {y:.1})\"") };
        let _ = write!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\"{anchor}{turn}>{}</text>", escape(text));
    }

    pub fn finish(self, title: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\" role=\"img\">\
             <title>{}</title><style>text{{font-family:'DejaVu Sans','Helvetica Neue',Arial,sans-serif;paint-order:stroke;stroke:#fff;stroke-width:2.5px;\
             stroke-linejoin:round;unicode-bidi:isolate}}</style><rect width=\"{w:.0}\" height=\"{h:.0}\" fill=\"#fff\"/>{}</svg>",
            escape(title),
            self.body,
            w = self.width,
            h = self.height
        )
    }
}

/// The second sign, beside its colour, of an edge that lowers its target.
const DASHES: &str = " stroke-dasharray=\"5 3\"";

/// About how wide a text is, in pixels: wide scripts and emoji count double.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if (c as u32) >= 0x2e80 { 1.05 } else { 0.61 }).sum::<f64>() * size
}
