//! HTML by hand: escaping, tables, cards, pages. No scripts, no network; colours that are read on
//! the light and on the dark theme, since text keeps the page's colour and lines are half clear.
//!
//! Every text of a user or a model goes through [`escape`]; tokens through [`token`].

/// Width that pictures and cards are made for, in pixels.
pub const WIDTH: u32 = 720;

/// Text made safe between tags, in quoted attributes and in SVG, its control characters [`tame`].
///
/// ```
/// use cltlab::picture::html::escape;
/// assert_eq!(escape("<b a='1'>\n"), "&lt;b a=&#39;1&#39;&gt;⏎");
/// ```
pub fn escape(text: &str) -> String {
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

/// Text in which control characters, which XML has no word for, and marks that turn the direction
/// of text around have become visible signs; not escaped.
pub fn tame(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push('⏎'),
            '\t' => out.push('⇥'),
            '\r' => out.push('␍'),
            '\u{0}'..='\u{1f}' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("⟨U+{:04X}⟩", c as u32));
            }
            c => out.push(c),
        }
    }
    out
}

/// A token with its spaces made visible, cut after `most` characters; not escaped.
pub fn visible(token: &str, most: usize) -> String {
    shorten(token, most).replace(' ', "·")
}

/// A text cut after `most` characters, with a sign that it was; not escaped.
pub fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// A token for a table: spaces visible, escaped, its direction kept to itself.
pub fn token(text: &str) -> String {
    format!("<bdi><code>{}</code></bdi>", escape(&visible(text, 40)))
}

/// How a table's column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Text of a model with its line ends, direction kept to itself.
pub fn passage(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(escape).collect();
    format!("<div dir=\"auto\" style=\"white-space:pre-wrap;max-width:{WIDTH}px\">{}</div>", lines.join("\n"))
}

/// A table; the headings are plain text, the cells are HTML, already escaped.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
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
            out += &format!("<td style=\"{line};{}\">{cell}</td>", side(align));
        }
        out += "</tr>";
    }
    out + "</tbody></table>"
}

/// A framed box with a title (plain text) and a body (HTML).
pub fn card(title: &str, body: &str) -> String {
    format!(
        "<div style=\"border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:8px 12px;max-width:{WIDTH}px\">\
         <div style=\"font-weight:600;margin-bottom:4px\">{}</div>{body}</div>",
        escape(title)
    )
}

/// A card of names and values, both plain text.
pub fn facts(title: &str, facts: &[(&str, String)]) -> String {
    let rows: String = facts
        .iter()
        .map(|(name, value)| {
            format!(
                "<tr><td style=\"padding:1px 16px 1px 0;text-align:left;opacity:.75\">{}</td><td style=\"padding:1px 0;text-align:left\">{}</td></tr>",
                escape(name),
                escape(value)
            )
        })
        .collect();
    card(title, &format!("<table style=\"border-collapse:collapse;margin:0\"><tbody>{rows}</tbody></table>"))
}

/// Something that opens on a click, also where scripts do not run.
pub fn details(summary: &str, body: &str) -> String {
    format!("<details style=\"margin:4px 0\"><summary style=\"cursor:pointer\">{}</summary>{body}</details>", escape(summary))
}

/// A slim bar with a line of text (plain) below; `share` from 0 to 1, `None` when the end is not known.
pub fn bar(share: Option<f64>, line: &str) -> String {
    let bar = share.map_or_else(String::new, |share| {
        format!(
            "<div style=\"background:rgba(128,128,128,.3);border-radius:3px;height:6px\">\
             <div style=\"background:#2b7bba;border-radius:3px;height:6px;width:{:.1}%\"></div></div>",
            100.0 * share.clamp(0.0, 1.0)
        )
    });
    format!("<div style=\"max-width:{WIDTH}px;font-size:12px\">{bar}<div>{}</div></div>", escape(line))
}

/// A whole page around a body (HTML) that follows the reader's theme.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html><head><meta charset=\"utf-8\"><meta name=\"color-scheme\" content=\"light dark\"><title>{}</title></head>\
         <body style=\"font-family:sans-serif;margin:16px\">{body}</body></html>\n",
        escape(title)
    )
}

/// A count in short form: 950, 12.5 k, 3.1 M.
pub fn count(value: f64) -> String {
    match value {
        v if v < 1e3 => format!("{v:.0}"),
        v if v < 1e6 => format!("{:.1} k", v / 1e3),
        v if v < 1e9 => format!("{:.1} M", v / 1e6),
        v => format!("{:.2} G", v / 1e9),
    }
}

/// Seconds as `mm:ss` or `h:mm:ss`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".to_string();
    }
    let all = seconds.max(0.0).round() as u64;
    let (hours, minutes, rest) = (all / 3600, all / 60 % 60, all % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{rest:02}") } else { format!("{minutes:02}:{rest:02}") }
}
