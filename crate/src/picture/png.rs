//! PNG of a picture: the shapes that plotters wrote as SVG, drawn again by its bitmap backend.
//!
//! An element is one call of a backend, so that everything stands in the same place. Drawn four times as large as
//! the picture, then two by two pixels are averaged: edges are smooth, and the file has twice the picture's pixels.

use super::canvas::{sized_font, EM};
use crate::error::{Error, ErrorKind, Result};
use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use roxmltree::{Document, Node};
use std::io::Write;

/// Pixels of the file for one of the picture, each way.
const SCALE: f64 = 2.0;
/// Pixels that are averaged to one of the file, each way.
const FINE: usize = 2;
/// Most pixels of a file.
const MOST: f64 = 25e6;

type Bitmap<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn fault(what: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::BadInput, format!("PNG of a picture: {what}"))
}

/// The SVG of a picture as a PNG file.
pub(super) fn encode(svg: &str) -> Result<Vec<u8>> {
    let document = Document::parse(svg).map_err(|error| fault(&error))?;
    let root = document.root_element();
    let size = ["width", "height"].map(|side| root.attribute(side).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0));
    let across = root.attribute("viewBox").and_then(|text| text.split(' ').nth(2)?.parse::<f64>().ok()).unwrap_or(size[0]);
    let [width, height] = size.map(|side| (SCALE * side).round().max(1.0));
    if width * height > MOST {
        return Err(Error::expected(ErrorKind::BadInput, "PNG of a picture: size", format_args!("{width} × {height} pixels"), format_args!("at most {} million pixels", MOST / 1e6))
            .help("make the picture smaller with resized"));
    }
    let (width, height) = (width as usize, height as usize);
    let mut fine = vec![255; 3 * width * height * FINE * FINE];
    {
        let area = BitMapBackend::with_buffer(&mut fine, ((width * FINE) as u32, (height * FINE) as u32)).into_drawing_area();
        let place = Place { x: 0.0, y: 0.0, scale: SCALE * FINE as f64 * size[0] / across };
        root.children().try_for_each(|child| element(&area, child, place)).and_then(|()| Ok(area.present()?)).map_err(|error| fault(&error))?;
    }
    file(&averaged(&fine, width, height), width as u32, height as u32)
}

/// A PNG file of rows that each begin with 0, "no filter" (W3C, *Portable Network Graphics*, 2003).
fn file(rows: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    let packed = packed.write_all(rows).and_then(|()| packed.finish()).map_err(|error| fault(&error))?;
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    // Eight bits for each of red, green and blue.
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    for (name, content) in [(b"IHDR", &header), (b"IDAT", &packed), (b"IEND", &Vec::new())] {
        let mut sum = Crc::new();
        sum.update(name);
        sum.update(content);
        out.extend((content.len() as u32).to_be_bytes());
        out.extend(name);
        out.extend(content);
        out.extend(sum.sum().to_be_bytes());
    }
    Ok(out)
}

/// Rows of pixels, each after its filter's number.
fn averaged(fine: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity((3 * width + 1) * height);
    for y in 0..height {
        out.push(0);
        for x in 0..width {
            for colour in 0..3 {
                let part = |dy: usize, dx: usize| u32::from(fine[3 * ((FINE * y + dy) * FINE * width + FINE * x + dx) + colour]);
                let sum: u32 = (0..FINE * FINE).map(|k| part(k / FINE, k % FINE)).sum();
                out.push((sum / (FINE * FINE) as u32) as u8);
            }
        }
    }
    out
}

/// Where a group's origin lies on the bitmap, and how many pixels its unit is.
#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    scale: f64,
}

impl Place {
    fn at(self, x: f64, y: f64) -> (i32, i32) {
        ((self.x + self.scale * x).round() as i32, (self.y + self.scale * y).round() as i32)
    }

    fn within(self, transform: &str) -> Option<Place> {
        let (kind, rest) = transform.split_once('(')?;
        let values: Vec<f64> = rest.trim_end_matches(')').split(' ').filter_map(|value| value.parse().ok()).collect();
        match (kind, &values[..]) {
            ("scale", [scale]) => Some(Place { scale: self.scale * scale, ..self }),
            ("translate", [x, y]) => Some(Place { x: self.x + self.scale * x, y: self.y + self.scale * y, ..self }),
            _ => None,
        }
    }
}

fn number(node: &Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

/// The colour in an attribute, `None` for none.
fn colour(node: &Node<'_, '_>, name: &str) -> Option<RGBAColor> {
    let digits = node.attribute(name)?.strip_prefix('#')?;
    let digits = if digits.len() == 3 { digits.chars().flat_map(|digit| [digit, digit]).collect() } else { digits.to_string() };
    let part = |k: usize| u8::from_str_radix(digits.get(2 * k..2 * k + 2)?, 16).ok();
    let opacity = node.attribute("opacity").and_then(|text| text.parse().ok()).unwrap_or(1.0);
    Some(RGBColor(part(0)?, part(1)?, part(2)?).mix(opacity))
}

/// Draws one element of those that plotters and the frame write.
fn element(area: &Bitmap<'_>, node: Node<'_, '_>, place: Place) -> Drawn {
    if !node.is_element() {
        return Ok(());
    }
    let at = |x: &str, y: &str| place.at(number(&node, x), number(&node, y));
    let stroke = |colour: RGBAColor| ShapeStyle { color: colour, filled: false, stroke_width: (place.scale * number(&node, "stroke-width").max(1.0)).round().max(1.0) as u32 };
    let points = || -> Vec<(i32, i32)> {
        let pairs = node.attribute("points").unwrap_or_default().split_whitespace().filter_map(|pair| pair.split_once(','));
        pairs.filter_map(|(x, y)| Some(place.at(x.parse().ok()?, y.parse().ok()?))).collect()
    };
    match node.tag_name().name() {
        "title" | "style" => {}
        "g" => {
            let place = node.attribute("transform").map_or(Some(place), |transform| place.within(transform)).ok_or("an unknown transform")?;
            node.children().try_for_each(|child| element(area, child, place))?;
        }
        "rect" => {
            let corner = place.at(number(&node, "x") + number(&node, "width"), number(&node, "y") + number(&node, "height"));
            if let Some(colour) = colour(&node, "fill").map(|colour| colour.filled()).or(colour(&node, "stroke").map(stroke)) {
                area.draw(&Rectangle::new([at("x", "y"), corner], colour))?;
            }
        }
        "line" => {
            if let Some(colour) = colour(&node, "stroke") {
                area.draw(&PathElement::new([at("x1", "y1"), at("x2", "y2")], stroke(colour)))?;
            }
        }
        "polyline" => {
            if let Some(colour) = colour(&node, "stroke") {
                area.draw(&PathElement::new(points(), stroke(colour)))?;
            }
        }
        "polygon" => {
            if let Some(colour) = colour(&node, "fill") {
                area.draw(&Polygon::new(points(), colour.filled()))?;
            }
        }
        "circle" => {
            let radius = (place.scale * number(&node, "r")).round() as u32;
            if let Some(colour) = colour(&node, "fill").map(|colour| colour.filled()).or(colour(&node, "stroke").map(stroke)) {
                area.draw(&Circle::new(at("cx", "cy"), radius, colour))?;
            }
        }
        "text" => text(area, node, place)?,
        other => return Err(format!("<{other}> is none of the shapes that plotters draws; save the picture as .svg or .html").into()),
    }
    Ok(())
}

/// Heights of DejaVu Sans in ems: half its small letters', and its line's from the upper edge to the base.
const HALF_X: f64 = 0.2735;

fn text(area: &Bitmap<'_>, node: Node<'_, '_>, place: Place) -> Drawn {
    let em = place.scale * number(&node, "font-size");
    let base = match node.attribute("dy") {
        Some("0.76em") => 0.76,
        Some("-0.5ex") => -HALF_X,
        _ => HALF_X,
    };
    let side = match node.attribute("text-anchor") {
        Some("middle") => HPos::Center,
        Some("end") => HPos::Right,
        _ => HPos::Left,
    };
    let Some(colour) = colour(&node, "fill") else { return Ok(()) };
    let turned = node.attribute("transform").is_some_and(|transform| transform.starts_with("rotate(270"));
    // plotters' letters stand on a base line half of the font's size below the place.
    let down = (em * base - 0.5 * em / EM).round() as i32;
    let (x, y) = place.at(number(&node, "x"), number(&node, "y"));
    let (spot, transform) = if turned { ((x + down, y), FontTransform::Rotate270) } else { ((x, y + down), FontTransform::None) };
    let style = TextStyle::from(sized_font(em / EM).transform(transform)).color(&colour).pos(Pos::new(side, VPos::Top));
    Ok(area.draw_text(node.text().unwrap_or_default().trim(), &style, spot)?)
}
