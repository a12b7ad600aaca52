//! SVG from outside: read, checked and written anew, so that nothing in it runs or is fetched.

use super::html::{escape, WIDTH};
use super::frame::Frame;
use super::Picture;
use crate::error::{Error, ErrorKind, Result};
use roxmltree::{Document, Node};

const SVG: &str = "http://www.w3.org/2000/svg";
const XLINK: &str = "http://www.w3.org/1999/xlink";
const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// Most bytes of an SVG.
const MOST: usize = 20 << 20;
/// Most elements within elements.
const DEEPEST: usize = 200;

/// Elements of shapes, text, colours and clips. What is not here runs, fetches, moves or embeds another language.
const KNOWN: [&str; 26] = [
    "svg", "g", "defs", "symbol", "use", "title", "desc", "metadata", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan",
    "textPath", "linearGradient", "radialGradient", "stop", "clipPath", "mask", "pattern", "marker", "style",
];

impl Picture {
    /// A picture from an SVG text, for instance of plotters' or matplotlib's, and a sentence for those who cannot
    /// see it. It is shown at its own width, or 720 pixels where it states none; [`resized`](Picture::resized)
    /// and [`titled`](Picture::titled) change that.
    ///
    /// ```
    /// use cltlab::picture::Picture;
    /// let svg = r#"<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20" fill="teal"/></svg>"#;
    /// let picture = Picture::from_svg(svg, "A teal rectangle")?;
    /// assert!(picture.svg().contains("teal"));
    /// assert!(Picture::from_svg("<svg onload='f()'/>", "").is_err());
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `BadInput` for a text that is no SVG, has no size, or is longer than 20 MiB; for scripts, event attributes,
    /// images, references to anything but its own parts, animations and embedded HTML, with the line.
    pub fn from_svg(svg: &str, alt: &str) -> Result<Self> {
        if svg.len() > MOST {
            return Err(refused("length", format_args!("{} bytes", svg.len()), format_args!("at most {MOST}")));
        }
        let document = Document::parse_with_options(svg, roxmltree::ParsingOptions { allow_dtd: true, nodes_limit: 2_000_000, ..Default::default() })
            .map_err(|error| Error::new(ErrorKind::BadInput, format!("Picture::from_svg: {error}")))?;
        let root = document.root_element();
        if root.tag_name().name() != "svg" {
            return Err(refused("first element", format_args!("<{}>", root.tag_name().name()), "<svg>"));
        }
        let (width, height) = size(&root)?;
        let mut body = String::with_capacity(svg.len());
        uses(&document)?;
        write(&document, root, 0, &mut body)?;
        // The outer element is written anew with its size in pixels.
        let frame = root.attribute("viewBox").map_or_else(|| format!("0 0 {width} {height}"), str::to_string);
        let inside = body.find('>').map_or("", |at| &body[at + 1..]).trim_end_matches("</svg>");
        let looks = root.attributes().filter(|a| !["width", "height", "viewBox", "x", "y"].contains(&a.name())).map(|a| format!(" {}=\"{}\"", name(&a), escape(a.value())));
        let looks: String = looks.collect();
        let body = format!("<svg x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\" viewBox=\"{}\"{looks}>{inside}</svg>", escape(&frame));
        Ok(Picture::compose(Frame { alt: alt.to_string(), ..Frame::default() }, body, (width, height)))
    }
}

fn refused(field: &str, got: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
    Error::expected(ErrorKind::BadInput, format_args!("Picture::from_svg: {field}"), got, expected)
}

/// Refuses uses of uses, which could draw more than any memory holds.
fn uses(document: &Document<'_>) -> Result<()> {
    let is_use = |node: &Node<'_, '_>| node.tag_name().name() == "use";
    let holders: std::collections::HashSet<&str> =
        document.descendants().filter(is_use).flat_map(|node| node.ancestors().filter_map(|above| above.attribute("id")).collect::<Vec<_>>()).collect();
    for node in document.descendants().filter(is_use) {
        let href = node.attributes().find(|a| a.name() == "href").map_or("", |a| a.value().trim());
        if holders.contains(href.trim_start_matches('#')) {
            let line = document.text_pos_at(node.range().start).row;
            return Err(refused(&format!("line {line}"), format_args!("<use> of {href}, which holds a <use>"), "a part without <use>"));
        }
    }
    Ok(())
}

/// Width and height in pixels, of the attributes or of the viewBox.
fn size(root: &Node<'_, '_>) -> Result<(f64, f64)> {
    let length = |name: &str| {
        let text = root.attribute(name)?.trim();
        let units = [("px", 1.0), ("pt", 4.0 / 3.0), ("mm", 96.0 / 25.4), ("cm", 96.0 / 2.54), ("in", 96.0)];
        let (number, scale) = units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale))).unwrap_or((text, 1.0));
        number.trim().parse::<f64>().ok().map(|number| number * scale)
    };
    let frame: Vec<f64> = root.attribute("viewBox").unwrap_or_default().split([' ', ',']).filter_map(|part| part.trim().parse().ok()).collect();
    let size = match (length("width"), length("height"), &frame[..]) {
        (Some(width), Some(height), _) => (width, height),
        (Some(width), None, [_, _, w, h]) => (width, width * h / w),
        (None, Some(height), [_, _, w, h]) => (height * w / h, height),
        (None, None, [_, _, w, h]) => (f64::from(WIDTH), f64::from(WIDTH) * h / w),
        _ => (f64::NAN, f64::NAN),
    };
    let fits = |side: f64| (1.0..=20_000.0).contains(&side);
    if !fits(size.0) || !fits(size.1) {
        return Err(refused("size", format_args!("{} × {}", size.0, size.1), "width and height, or a viewBox, from 1 to 20000 pixels"));
    }
    Ok(size)
}

fn name(attribute: &roxmltree::Attribute<'_, '_>) -> String {
    match attribute.namespace() {
        Some(XLINK) => format!("xlink:{}", attribute.name()),
        Some(XML) => format!("xml:{}", attribute.name()),
        _ => attribute.name().to_string(),
    }
}

fn write(document: &Document<'_>, node: Node<'_, '_>, depth: usize, out: &mut String) -> Result<()> {
    let place = |at: usize| format!("line {}", document.text_pos_at(at).row);
    if node.is_text() {
        out.push_str(&escaped(node.text().unwrap_or_default()));
        return Ok(());
    }
    if !node.is_element() {
        return Ok(());
    }
    let tag = node.tag_name().name();
    // What other programs keep for themselves is left out.
    if node.tag_name().namespace().is_some_and(|space| space != SVG) || tag == "metadata" {
        return Ok(());
    }
    if depth > DEEPEST {
        return Err(refused(&place(node.range().start), format_args!("more than {DEEPEST} elements within elements"), format_args!("at most {DEEPEST}")));
    }
    if !KNOWN.contains(&tag) {
        return Err(refused(&place(node.range().start), format_args!("<{tag}>"), "shapes, text, gradients, clips, masks, patterns and markers"));
    }
    out.push('<');
    out.push_str(tag);
    for attribute in node.attributes().filter(|a| a.namespace().is_none_or(|space| [XLINK, XML].contains(&space))) {
        let (name, value) = (name(&attribute), attribute.value());
        let local = attribute.name().to_ascii_lowercase();
        let at = place(attribute.range().start);
        if local.starts_with("on") {
            return Err(refused(&at, format_args!("the event attribute {name}"), "no scripts"));
        }
        if matches!(local.as_str(), "href" | "src") && !value.trim().starts_with('#') || name == "xml:base" {
            return Err(refused(&at, format_args!("{name}=\"{}\"", super::words::shorten(value, 60)), "a part of the same SVG, as in #name"));
        }
        style(value, &at)?;
        out.push_str(&format!(" {name}=\"{}\"", escaped(value)));
    }
    out.push('>');
    if tag == "style" {
        let text: String = node.descendants().filter(Node::is_text).filter_map(|part| part.text()).collect();
        style(&text, &place(node.range().start))?;
    }
    for child in node.children() {
        write(document, child, depth + 1, out)?;
    }
    out.push_str(&format!("</{tag}>"));
    Ok(())
}

/// Refuses what a style or an attribute would fetch or run. Escapes of CSS could hide it, and no drawing needs them.
fn style(text: &str, place: &str) -> Result<()> {
    let plain: String = text.to_ascii_lowercase().chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
    let outside = plain.split("url(").skip(1).any(|rest| !rest.trim_start_matches(['"', '\'']).starts_with('#'));
    let words = ["@import", "javascript:", "expression(", "image-set(", "-moz-binding", "src("];
    if outside || words.iter().any(|word| plain.contains(word)) || (plain.contains('\\') && plain.contains(['(', '@'])) || plain.contains("/*") {
        return Err(refused(place, format_args!("{:?}", super::words::shorten(text.trim(), 60)), "no references to anything outside and no comments in styles"));
    }
    Ok(())
}

/// Text for XML: what XML has no word for is left out, line ends stay.
fn escaped(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| line.split('\t').map(escape).collect::<Vec<_>>().join("\t")).collect();
    lines.join("\n")
}
