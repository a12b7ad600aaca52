//! Picture: what people look at.
//!
//! In: a [`History`](crate::train::History), a [`Report`](crate::eval::Report), a [`Graph`](crate::graph::Graph), an
//! [`Effect`](crate::intervene::Effect). Out: a [`Picture`], one SVG on white with a sentence that
//! says the same, for a notebook, a file or a paper. Nothing here knows a notebook, nothing is
//! fetched from a network. Inside HTML a picture is always an `<img>` with its data in the address:
//! JupyterLab strips `<svg>` from notebooks it does not trust, and leaves `<img>`.
//!
//! `html` escapes and lays out, `svg` writes shapes; `chart`, `curves`, `report_view`, `graph_view`,
//! `effect_view`, `qk_view`, `supernode_view` and `compare_view` draw. Cost: milliseconds.

pub mod chart;
mod compare_view;
mod curves;
mod edge_table;
mod effect_view;
mod graph_layout;
mod graph_view;
pub mod html;
mod qk_view;
mod report_view;
mod supernode_view;
mod svg;

pub use curves::{thin, training};

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use base64::Engine;
use std::path::Path;

/// A drawing and what it says. Cheap to clone compared with drawing it.
///
/// ```
/// let picture = cltlab::picture::chart::l0_per_layer(&[31.5, 40.0, 22.1]);
/// assert!(picture.svg().starts_with("<svg"));
/// assert!(picture.html().starts_with("<img alt="));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    svg: String,
    alt: String,
    width: u32,
}

impl Picture {
    /// A picture from SVG text that is `width` pixels wide, and a sentence for those who cannot see it.
    pub(crate) fn new(svg: String, alt: impl Into<String>, width: u32) -> Self {
        Picture { svg, alt: alt.into(), width }
    }

    /// The drawing as SVG text, on white.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// What the picture says, in words.
    pub fn alt(&self) -> &str {
        &self.alt
    }

    /// An `<img>` that holds the picture itself; shown also where the notebook is not trusted.
    pub fn html(&self) -> String {
        let data = base64::engine::general_purpose::STANDARD.encode(&self.svg);
        format!(
            "<img alt=\"{}\" width=\"{}\" style=\"max-width:100%;background:#fff;border-radius:4px\" src=\"data:image/svg+xml;base64,{data}\">",
            html::escape(&self.alt),
            self.width
        )
    }

    /// Writes `.svg`, or `.html` as a page that needs nothing else; whole or not at all.
    ///
    /// # Errors
    /// `BadInput` for another ending; `MissingFile` (the folder), `DiskFull` or `Io` with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("svg") => files::write_atomic(path, self.svg.as_bytes()),
            Some("html") => files::write_atomic(path, html::page(&self.alt, &self.html()).as_bytes()),
            _ => Err(Error::expected(ErrorKind::BadInput, "Picture::save: path", path.display(), "a name that ends in .svg or .html")),
        }
    }
}

impl std::fmt::Display for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.alt)
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture ({} kB): {}", self.svg.len() / 1000, self.alt)
    }
}
