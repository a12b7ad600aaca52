//! `graph-metadata.json`: the list of the graphs in a folder, from which circuit-tracer's page lets one choose.
//!
//! `{"graphs": [metadata, ...]}`, one entry for each slug. Writers take turns by a lock on the folder; what the list
//! holds beside the entry, and keys that are not ours, stay.

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;

/// The list's name in its folder.
pub(crate) const LIST: &str = "graph-metadata.json";

/// Whether a file of this name can be listed: viewers ask for `{slug}.json`, so the name must be its slug.
fn is_listed(path: &Path, slug: &str) -> bool {
    !slug.is_empty() && path.file_name().is_some_and(|name| name.to_str() == Some(&format!("{slug}.json")))
}

/// Refuses to write a graph over the list.
///
/// # Errors
/// `BadInput`.
pub(super) fn is_free(path: &Path) -> Result<()> {
    if path.file_name().is_some_and(|name| name == LIST) {
        return Err(Error::expected(ErrorKind::BadInput, path.display(), "the name of the list of graphs", "a name of its own"));
    }
    Ok(())
}

/// Puts the entry of the graph at `path` into its folder's list, in the place of an earlier one.
///
/// # Errors
/// `BadFile` when there is a list that cannot be read, which stays as it is; `DiskFull` or `Io`.
pub(super) fn add(path: &Path, slug: &str, entry: Value) -> Result<()> {
    if !is_listed(path, slug) || !path.is_file() {
        return Ok(());
    }
    let folder = files::write::folder_of(path);
    let list = folder.join(LIST);
    let held = File::open(folder).map_err(|error| Error::io(folder, error))?;
    // A file system without locks has no turns; the list is still replaced as a whole.
    let _turn = held.lock().map(|()| &held);
    let mut all = read(&list)?;
    let graphs = entries(&mut all, &list)?;
    let of_slug = |graph: &Value| graph.get("slug").and_then(Value::as_str) == Some(slug);
    match graphs.iter().position(of_slug) {
        None => graphs.push(entry),
        Some(first) => {
            graphs[first] = entry;
            let mut at = 0;
            graphs.retain(|graph| {
                at += 1;
                at - 1 <= first || !of_slug(graph)
            });
        }
    }
    files::write_json(&list, &all)
}

fn read(list: &Path) -> Result<Map<String, Value>> {
    match files::read_json_object(list) {
        Err(error) if error.kind() == ErrorKind::MissingFile => Ok(Map::new()),
        other => other.map_err(|error| error.help("the graph is written; repair the list or move it away")),
    }
}

fn entries<'a>(all: &'a mut Map<String, Value>, list: &Path) -> Result<&'a mut Vec<Value>> {
    match all.entry("graphs").or_insert_with(|| Value::Array(Vec::new())) {
        Value::Array(graphs) => Ok(graphs),
        _ => Err(Error::expected(ErrorKind::BadFile, format_args!("{}: graphs", list.display()), "something else", "a list").help("the graph is written; repair the list or move it away")),
    }
}
