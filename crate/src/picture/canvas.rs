//! Canvas: what plotters draws on. Every shape and letter of every picture goes through here.
//!
//! plotters counts in whole units; eight of them are one pixel, so that curves are smooth. Text is measured with
//! the font that lies in `font/`, which PNG is drawn with too.

use super::words::tame;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::sync::Once;

/// Units of plotters in a pixel.
pub(super) const UNIT: f64 = 8.0;
/// The font's file.
static FONT_FILE: &[u8] = include_bytes!("font/DejaVuSans.ttf");
/// Families that SVG asks for: the first is measured, the second is as wide.
const FAMILIES: &str = "DejaVu Sans, Verdana, sans-serif";

pub(super) const INK: RGBColor = RGBColor(34, 34, 34);
pub(super) const QUIET: RGBColor = RGBColor(110, 110, 110);
pub(super) const FAINT: RGBColor = RGBColor(228, 228, 228);
pub(super) const BLUE: RGBColor = RGBColor(43, 123, 186);
pub(super) const PALE: RGBColor = RGBColor(166, 189, 219);
/// Colours of series, in their order; told apart by those who do not see all colours (Okabe and Ito, 2008).
pub(super) const SERIES: [RGBColor; 8] = [
    RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167), RGBColor(230, 159, 0),
    RGBColor(86, 180, 233), RGBColor(90, 90, 90), RGBColor(120, 80, 30),
];

/// A plotters area; the backend writes into memory.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What plotters may report; writing into memory does not fail.
pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Where a text is held.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A point, in pixels from the upper left.
pub(super) type Point = (f64, f64);

/// Shapes in pixels.
pub(super) struct Canvas<'a> {
    pub area: Area<'a>,
}

/// SVG elements, in units, of what `paint` draws on an area of so many pixels.
pub(super) fn paint((width, height): (f64, f64), paint: impl FnOnce(&Canvas<'_>) -> Drawn) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        register();
        let canvas = Canvas { area: SVGBackend::with_string(&mut svg, (units(width) as u32, units(height) as u32)).into_drawing_area() };
        paint(&canvas)?;
        canvas.area.present()?;
    }
    let inside = svg.find('>').map_or(0, |at| at + 1)..svg.rfind("</svg>").unwrap_or(svg.len());
    Ok(svg[inside].trim().to_string())
}

fn register() {
    static ONCE: Once = Once::new();
    // A font that cannot be registered shows as an error of the first text.
    ONCE.call_once(|| drop(plotters::style::register_font(FAMILIES, FontStyle::Normal, FONT_FILE)));
}

/// Pixels as units.
pub(super) fn units(pixels: f64) -> i32 {
    (pixels * UNIT).round() as i32
}

/// The font, as high as plotters' size says, not its em.
pub(super) fn sized_font(size: f64) -> FontDesc<'static> {
    register();
    (FAMILIES, size).into_font()
}

/// Text of `size` pixels, for plotters' own labels.
pub(super) fn font(size: f64, colour: RGBColor) -> TextStyle<'static> {
    // plotters' size is that of a line; 1.24 is its own factor.
    sized_font(1.24 * size * UNIT).color(&colour)
}

/// How wide a text of `size` pixels is, in pixels. Scripts that the font lacks are taken for square.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let square = text.chars().filter(|c| (*c as u32) >= 0x2e80).count();
    let known: String = text.chars().filter(|c| (*c as u32) < 0x2e80).collect();
    // plotters measures for its line size, the letters are smaller.
    let measured = sized_font(1000.0).box_size(&known).map_or(610.0 * known.chars().count() as f64, |(width, _)| f64::from(width) / EM);
    (measured / 1000.0 + 1.05 * square as f64) * size
}

/// The font's em over the height of its line, by which ab_glyph scales.
pub(super) const EM: f64 = 2048.0 / 2384.0;

impl Canvas<'_> {
    pub fn rect(&self, (x, y): Point, (width, height): (f64, f64), fill: impl Into<ShapeStyle>) -> Drawn {
        let (from, to) = ((units(x), units(y)), (units(x + width), units(y + height)));
        Ok(self.area.draw(&Rectangle::new([from, to], fill))?)
    }

    pub fn line(&self, from: Point, to: Point, colour: impl Color, width: f64) -> Drawn {
        self.path(&[from, to], colour, width)
    }

    /// A line through points.
    pub fn path(&self, points: &[Point], colour: impl Color, width: f64) -> Drawn {
        let points: Vec<(i32, i32)> = points.iter().map(|(x, y)| (units(*x), units(*y))).collect();
        Ok(self.area.draw(&PathElement::new(points, stroke(colour, width)))?)
    }

    pub fn circle(&self, (x, y): Point, r: f64, fill: RGBColor, edge: RGBColor) -> Drawn {
        for (radius, colour) in [(r + 0.4, edge), (r - 0.4, fill)] {
            self.area.draw(&Circle::new((units(x), units(y)), units(radius), colour.filled()))?;
        }
        Ok(())
    }

    pub fn square(&self, (x, y): Point, r: f64, fill: RGBColor, edge: RGBColor) -> Drawn {
        self.rect((x - r - 0.4, y - r - 0.4), (2.0 * r + 0.8, 2.0 * r + 0.8), edge.filled())?;
        self.rect((x - r + 0.4, y - r + 0.4), (2.0 * r - 0.8, 2.0 * r - 0.8), fill.filled())
    }

    pub fn diamond(&self, (x, y): Point, r: f64, fill: RGBColor, edge: RGBColor) -> Drawn {
        for (r, colour) in [(r + 0.5, edge), (r - 0.5, fill)] {
            let corners = [(x - r, y), (x, y - r), (x + r, y), (x, y + r)].map(|(x, y)| (units(x), units(y)));
            self.area.draw(&Polygon::new(corners, colour.filled()))?;
        }
        Ok(())
    }

    /// A curve that leaves and arrives upright, dashed for what is negative.
    pub fn arc(&self, from: Point, to: Point, colour: impl Color + Copy, width: f64, dashed: bool) -> Drawn {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy);
        // A Bézier curve whose control points lie half way up, above its ends.
        let at = |t: f64| (from.0 + dx * t * t * (3.0 - 2.0 * t), from.1 + dy * t * (1.5 - 1.5 * t + t * t));
        let pieces = if dashed { (length / 8.0).clamp(3.0, 31.0) as usize | 1 } else if dx.abs() < 1.0 { 1 } else { (length / 9.0).clamp(6.0, 24.0) as usize };
        let points: Vec<Point> = (0..=pieces).map(|k| at(k as f64 / pieces as f64)).collect();
        if dashed {
            return points.chunks(2).filter(|dash| dash.len() == 2).try_for_each(|dash| self.path(dash, colour, width));
        }
        self.path(&points, colour, width)
    }

    /// Text of `size` pixels on a base line; its control characters become signs, plotters escapes it.
    pub fn text(&self, (x, base): Point, anchor: Anchor, size: f64, colour: RGBColor, text: &str) -> Drawn {
        self.write((x, base - 0.27 * size), anchor, font(size, colour), text)
    }

    /// Text that is read from below, with its middle line at `x`.
    pub fn upright(&self, (x, y): Point, anchor: Anchor, size: f64, colour: RGBColor, text: &str) -> Drawn {
        self.write((x, y), anchor, font(size, colour).transform(FontTransform::Rotate270), text)
    }

    fn write(&self, (x, y): Point, anchor: Anchor, style: TextStyle<'_>, text: &str) -> Drawn {
        let side = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        Ok(self.area.draw_text(&tame(text), &style.pos(Pos::new(side, VPos::Center)), (units(x), units(y)))?)
    }
}

/// A line of so many pixels.
pub(super) fn stroke(colour: impl Color, width: f64) -> ShapeStyle {
    ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: units(width).max(1) as u32 }
}

/// Text in lines of at most `width` pixels, broken at line ends and spaces; a longer word is broken where it must.
pub(super) fn wrap(text: &str, size: f64, width: f64) -> Vec<String> {
    text.split('\n').flat_map(|line| wrapped(line, size, width)).collect()
}

fn wrapped(text: &str, size: f64, width: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let longer = if line.is_empty() { word.to_string() } else { format!("{line} {word}") };
        if text_width(&longer, size) <= width {
            line = longer;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for c in word.chars() {
            line.push(c);
            if text_width(&line, size) > width && line.chars().count() > 1 {
                line.pop();
                lines.push(std::mem::replace(&mut line, c.to_string()));
            }
        }
    }
    lines.push(line);
    lines.retain(|line| !line.is_empty());
    lines
}

/// A text that fits into `width` pixels, cut with a sign where it does not.
pub(super) fn fit(text: &str, size: f64, width: f64) -> String {
    if text_width(text, size) <= width {
        return text.to_string();
    }
    let mut cut = text.to_string();
    while cut.pop().is_some() && text_width(&cut, size) + text_width("…", size) > width {}
    cut + "…"
}
