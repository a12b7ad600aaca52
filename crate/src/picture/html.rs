//! HTML that is safe by its type: an [`Html`] is made of escaped text and of other [`Html`], nothing else.
//!
//! Tables, cards, pages. No scripts, no network; colours that are read on the light and on the dark theme, since
//! text keeps the page's colour and lines are half clear.

use super::words::{tame, visible};
use base64::Engine;

/// Width that pictures and cards are made for, in pixels.
pub(crate) const WIDTH: u32 = 720;

/// HTML that shows a value. Texts in it are escaped: there is no way to make one of unescaped text.
///
/// ```
/// use cltlab::picture::Html;
/// assert_eq!(Html::text("<b a='1'>\n").as_str(), "&lt;b a=&#39;1&#39;&gt;⏎");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Html(String);

impl Html {
    /// Text made safe between tags and in quoted attributes; control characters and marks that turn the direction
    /// of text around become visible signs.
    pub fn text(text: &str) -> Self {
        Html(escape(text))
    }

    /// The HTML.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One after the other.
    pub(crate) fn join(parts: impl IntoIterator<Item = Html>) -> Self {
        Html(parts.into_iter().map(|part| part.0).collect())
    }

    /// Within a `<div>`.
    pub(crate) fn block(self) -> Self {
        Html(format!("<div>{}</div>", self.0))
    }

    /// In small letters.
    pub(crate) fn small(self) -> Self {
        Html(format!("<small>{}</small>", self.0))
    }

    /// In strong letters.
    pub(crate) fn strong(self) -> Self {
        Html(format!("<b>{}</b>", self.0))
    }

    /// A line may be broken behind it.
    pub(crate) fn breakable(self) -> Self {
        Html(self.0 + "<wbr>")
    }

    /// A token for a table: spaces visible, its direction kept to itself.
    pub(crate) fn token(text: &str) -> Self {
        Html(format!("<bdi><code>{}</code></bdi>", escape(&visible(text, 40))))
    }

    /// Text of a model with its line ends, direction kept to itself.
    pub(crate) fn passage(text: &str) -> Self {
        let lines: Vec<_> = text.split('\n').map(escape).collect();
        Html(format!("<div dir=\"auto\" style=\"white-space:pre-wrap;max-width:{WIDTH}px\">{}</div>", lines.join("\n")))
    }

    /// A table.
    pub(crate) fn table(columns: &[(&str, Align)], rows: impl IntoIterator<Item = Vec<Html>>) -> Self {
        let line = "padding:2px 10px;border-bottom:1px solid rgba(128,128,128,.25)";
        let side = |align: &Align| if *align == Align::Left { "text-align:left" } else { "text-align:right;font-variant-numeric:tabular-nums" };
        let mut out = String::from("<table style=\"border-collapse:collapse;margin:4px 0\"><thead><tr>");
        for (heading, align) in columns {
            out += &format!("<th style=\"{line};{}\">{}</th>", side(align), escape(heading));
        }
        out += "</tr></thead><tbody>";
        for row in rows {
            out += "<tr>";
            for (cell, (_, align)) in row.iter().zip(columns) {
                out += &format!("<td style=\"{line};{}\">{}</td>", side(align), cell.0);
            }
            out += "</tr>";
        }
        Html(out + "</tbody></table>")
    }

    /// A framed box with a title.
    pub(crate) fn card(title: &str, body: Html) -> Self {
        Html(format!(
            "<div style=\"border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:8px 12px;max-width:{WIDTH}px\">\
             <div style=\"font-weight:600;margin-bottom:4px\">{}</div>{}</div>",
            escape(title),
            body.0
        ))
    }

    /// A card of names and values.
    pub(crate) fn facts(title: &str, facts: &[(&str, String)]) -> Self {
        let row = |(name, value): &(&str, String)| {
            format!(
                "<tr><td style=\"padding:1px 16px 1px 0;text-align:left;opacity:.75\">{}</td><td style=\"padding:1px 0;text-align:left\">{}</td></tr>",
                escape(name),
                escape(value)
            )
        };
        let rows: String = facts.iter().map(row).collect();
        Self::card(title, Html(format!("<table style=\"border-collapse:collapse;margin:0\"><tbody>{rows}</tbody></table>")))
    }

    /// Something that opens on a click, also where scripts do not run.
    pub(crate) fn details(summary: &str, body: Html) -> Self {
        Html(format!("<details style=\"margin:4px 0\"><summary style=\"cursor:pointer\">{}</summary>{}</details>", escape(summary), body.0))
    }

    /// A slim bar with a line of text below; `share` from 0 to 1, `None` when the end is not known.
    pub(crate) fn bar(share: Option<f64>, line: &str) -> Self {
        let bar = share.map_or_else(String::new, |share| {
            format!(
                "<div style=\"background:rgba(128,128,128,.3);border-radius:3px;height:6px\">\
                 <div style=\"background:#2b7bba;border-radius:3px;height:6px;width:{:.1}%\"></div></div>",
                100.0 * share.clamp(0.0, 1.0)
            )
        });
        Html(format!("<div style=\"max-width:{WIDTH}px;font-size:12px\">{bar}<div>{}</div></div>", escape(line)))
    }

    /// An `<img>` that holds an SVG itself: JupyterLab strips `<svg>` from notebooks it does not trust, and leaves `<img>`.
    pub(super) fn image(svg: &str, alt: &str, width: u32) -> Self {
        let data = base64::engine::general_purpose::STANDARD.encode(svg);
        Html(format!(
            "<img alt=\"{}\" width=\"{width}\" style=\"max-width:100%;background:#fff;border-radius:4px\" src=\"data:image/svg+xml;base64,{data}\">",
            escape(alt)
        ))
    }

    /// A whole page that follows the reader's theme.
    pub(super) fn page(title: &str, body: Html) -> Self {
        Html(format!(
            "<!doctype html>\n<html><head><meta charset=\"utf-8\"><meta name=\"color-scheme\" content=\"light dark\"><title>{}</title></head>\
             <body style=\"font-family:sans-serif;margin:16px\">{}</body></html>\n",
            escape(title),
            body.0
        ))
    }
}

impl std::fmt::Display for Html {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Html {
    fn from(text: &str) -> Self {
        Html::text(text)
    }
}

impl From<String> for Html {
    fn from(text: String) -> Self {
        Html::text(&text)
    }
}

/// The cells of a table's row: anything that becomes [`Html`].
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$($crate::picture::Html::from($cell)),*] };
}
pub(crate) use row;

/// How a table's column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Text made safe in XML, its control characters tamed.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in tame(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
