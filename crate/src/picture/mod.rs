//! Picture: what people look at.
//!
//! In: a [`History`](crate::train::History), a [`Report`](crate::eval::Report), a [`Graph`](crate::graph::Graph), an
//! [`Effect`](crate::intervene::Effect), or numbers of one's own ([`lines`], [`scatter`], [`bars`]). Out: a
//! [`Picture`], SVG on white with a sentence that says the same, for a notebook, a file or a paper. [`Show`] makes
//! text, HTML and a picture of a value. Nothing here knows a notebook, nothing is fetched from a network.
//!
//! plotters draws every picture through `canvas`; `frame` puts title, caption and legend above it, `png` turns SVG
//! into pixels by plotters' bitmap backend, `foreign` checks SVG from outside. `axes` and `chart` are charts of numbers, `rows` bars about zero;
//! the other files draw one kind of value each. Cost: milliseconds, a PNG some tens of them.

mod axes;
mod canvas;
mod cards;
mod chart;
mod compare_view;
mod curves;
mod edge_table;
mod effect_view;
mod foreign;
mod frame;
mod graph_layout;
mod graph_view;
pub(crate) mod html;
mod lists;
mod per_layer;
mod png;
mod qk_view;
mod report_view;
mod rows;
mod show;
mod states_view;
mod supernode_view;
pub(crate) mod words;

pub use chart::{bars, lines, scatter, ChartConfig};
pub(crate) use curves::training;
pub use html::Html;
pub use show::Show;

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use frame::Frame;
use std::path::Path;
use std::sync::Arc;

/// A drawing and what it says. Cheap to clone.
///
/// ```
/// use cltlab::picture::{bars, ChartConfig};
/// let picture = bars(&[("relu", 0.31), ("top_k", 0.22)], &ChartConfig::default())?;
/// assert!(picture.svg().starts_with("<svg"));
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone)]
pub struct Picture {
    svg: Arc<str>,
    /// Without the frame: elements that fill `size`.
    body: Arc<str>,
    frame: Frame,
    size: (f64, f64),
    /// Pixels that it is shown at.
    width: f64,
}

impl Picture {
    /// A picture of SVG elements that fill so many pixels, under a frame.
    fn compose(frame: Frame, body: impl Into<Arc<str>>, size: (f64, f64)) -> Self {
        let mut picture = Picture { svg: Arc::default(), body: body.into(), frame, size, width: size.0 };
        picture.write();
        picture
    }

    fn write(&mut self) {
        let (head, above) = self.frame.head(self.size.0);
        let (width, height) = (self.size.0, self.size.1 + above);
        let scale = self.width / width;
        self.svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {width} {height}\" role=\"img\">\
             <title>{}</title><style>text{{unicode-bidi:isolate}}</style><rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <g transform=\"scale(0.125)\">\n{head}\n</g>\n<g transform=\"translate(0 {above})\">\n{}\n</g>\n</svg>\n",
            (scale * width).round(),
            (scale * height).round(),
            html::escape(&self.frame.alt),
            self.body
        )
        .into();
    }

    /// The drawing as SVG text, on white.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// What the picture says, in words.
    #[doc(hidden)]
    pub fn alt(&self) -> &str {
        &self.frame.alt
    }

    /// The same under another title; an empty one takes the title away.
    pub fn titled(mut self, title: &str) -> Self {
        self.frame.title = title.to_string();
        self.write();
        self
    }

    /// The same, shown at another width; its height and its letters follow.
    ///
    /// # Errors
    /// `BadInput` for a width that is not between 50 and 10,000 pixels.
    pub fn resized(mut self, pixels: u32) -> Result<Self> {
        if !(50..=10_000).contains(&pixels) {
            return Err(Error::expected(ErrorKind::BadInput, "Picture::resized", pixels, "50 to 10000 pixels"));
        }
        self.width = f64::from(pixels);
        self.write();
        Ok(self)
    }

    /// Writes `.svg`, `.png` (twice as many pixels each way as the picture is wide and high, for print and dense
    /// screens; [`resized`](Picture::resized) changes that), or `.html` as a page that needs nothing else.
    /// Whole or not at all. Letters that DejaVu Sans lacks (Chinese, emoji) are boxes in PNG, and all text runs from the left.
    ///
    /// # Errors
    /// `BadInput` for another ending, for a PNG of more than 25 million pixels or of an SVG from outside ([`from_svg`](Picture::from_svg)); `MissingFile` (the folder), `DiskFull` or
    /// `Io` with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("svg") => files::write_atomic(path, self.svg.as_bytes()),
            Some("png") => files::write_atomic(path, &png::encode(&self.svg)?),
            Some("html") => files::write_atomic(path, html::Html::page(self.alt(), self.image()).as_str().as_bytes()),
            _ => Err(Error::expected(ErrorKind::BadInput, "Picture::save: path", path.display(), "a name that ends in .svg, .png or .html")),
        }
    }

    /// An `<img>` that holds the picture itself.
    fn image(&self) -> Html {
        Html::image(&self.svg, self.alt(), self.width.round() as u32)
    }
}

impl PartialEq for Picture {
    fn eq(&self, other: &Self) -> bool {
        self.svg == other.svg
    }
}

impl Eq for Picture {}

impl std::fmt::Display for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.alt())
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture ({} kB): {}", self.svg.len() / 1000, self.alt())
    }
}
