//! PNG of a picture: its SVG, drawn with the font that lies here, so that no library or font of the system is needed.

use super::canvas::FONT_FILE;
use crate::error::{Error, ErrorKind, Result};
use resvg::{tiny_skia, usvg};
use std::sync::{Arc, OnceLock};

/// Most pixels of a PNG, 400 MB in memory.
const MOST: f64 = 1e8;

/// The SVG as PNG, `scale` times its size.
pub(super) fn encode(svg: &str, scale: f64) -> Result<Vec<u8>> {
    let fault = |what: &dyn std::fmt::Display| Error::new(ErrorKind::BadInput, format!("PNG of a picture: {what}"));
    let tree = usvg::Tree::from_str(svg, &options()).map_err(|error| fault(&error))?;
    let [width, height] = [tree.size().width(), tree.size().height()].map(|side| (f64::from(side) * scale).round());
    if width * height > MOST {
        return Err(Error::expected(ErrorKind::BadInput, "PNG of a picture: size", format_args!("{width} × {height} pixels"), format_args!("at most {MOST:.0} pixels"))
            .help("make the picture smaller with with_width"));
    }
    let mut image = tiny_skia::Pixmap::new(width as u32, height as u32).ok_or_else(|| fault(&"it has no size"))?;
    image.fill(tiny_skia::Color::WHITE);
    let place = tiny_skia::Transform::from_scale((width / f64::from(tree.size().width())) as f32, (height / f64::from(tree.size().height())) as f32);
    resvg::render(&tree, place, &mut image.as_mut());
    image.encode_png().map_err(|error| fault(&error))
}

/// No files of the system are read, whatever the SVG asks for.
fn options() -> usvg::Options<'static> {
    static FONTS: OnceLock<Arc<usvg::fontdb::Database>> = OnceLock::new();
    let fontdb = FONTS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(FONT_FILE.to_vec());
        for set in [usvg::fontdb::Database::set_sans_serif_family, usvg::fontdb::Database::set_serif_family, usvg::fontdb::Database::set_monospace_family] {
            set(&mut fonts, "DejaVu Sans");
        }
        Arc::new(fonts)
    });
    let nothing = usvg::ImageHrefResolver { resolve_data: Box::new(|_, _, _| None), resolve_string: Box::new(|_, _| None) };
    usvg::Options { fontdb: fontdb.clone(), font_family: "DejaVu Sans".to_string(), image_href_resolver: nothing, ..usvg::Options::default() }
}
