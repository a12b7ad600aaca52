//! The pages: a table of graphs, and one graph's picture. No script; every text of a file is escaped.

use super::folder::{Folder, Summary};
use cltlab::picture::Html;
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid #d9dde2;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}a{color:#0b57a4}img{max-width:100%;background:#fff}p.q{color:#57606a}";

/// `name` as a part of an address.
fn address(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn page(title: &str, body: &str) -> String {
    format!("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{}</title><style>{STYLE}</style></head><body>{body}</body></html>\n", Html::text(title).as_str())
}

/// What a graph is called.
fn title(graph: &Summary) -> String {
    match graph.text("title_prefix") {
        "" => graph.name.clone(),
        prefix => format!("{prefix} {}", graph.name),
    }
}

/// The table of graphs.
pub fn list(folder: &Folder, graphs: &[Summary]) -> String {
    let mut rows = String::new();
    for graph in graphs {
        let _ = write!(
            rows,
            "<tr><td><a href=\"/graph/{}\">{}</a></td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            address(&graph.name),
            Html::text(&title(graph)).as_str(),
            Html::text(graph.text("prompt")).as_str(),
            Html::text(graph.text("scan")).as_str(),
            graph.nodes,
            graph.links
        );
    }
    let name = folder.name();
    let table = match graphs.is_empty() {
        true => "<p>No graphs are here yet: <code>cltlab attribute ... -o FOLDER/NAME.json</code> writes one.</p>".to_string(),
        false => format!("<table><thead><tr><th>graph</th><th>prompt</th><th>model</th><th class=\"n\">nodes</th><th class=\"n\">links</th></tr></thead><tbody>{rows}</tbody></table>"),
    };
    page(&format!("Attribution graphs: {name}"), &format!("<h1>Attribution graphs</h1><p class=\"q\">{}</p>{table}", Html::text(&name).as_str()))
}

/// One graph.
pub fn one(graph: &Summary) -> String {
    let name = address(&graph.name);
    let body = format!(
        "<p><a href=\"/\">all graphs</a></p><h1>{}</h1><p>{}</p><p class=\"q\">{} nodes, {} links; <a href=\"/graph_data/{name}.json\">JSON</a>, <a href=\"/picture/{name}.svg\">SVG</a></p><img src=\"/picture/{name}.svg\" alt=\"picture of the graph\">",
        Html::text(&title(graph)).as_str(),
        Html::text(graph.text("prompt")).as_str(),
        graph.nodes,
        graph.links
    );
    page(&title(graph), &body)
}
