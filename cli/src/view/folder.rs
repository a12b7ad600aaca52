//! What lies in the folder that is served.

use cltlab::prelude::*;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

/// The list that graphs are entered into.
const LIST: &str = "graph-metadata.json";

/// A graph's file in short.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Name of the file without `.json`.
    pub name: String,
    /// The file's `metadata`.
    pub metadata: Value,
    pub nodes: usize,
    pub links: usize,
}

impl Summary {
    /// A text of the metadata; empty when there is none.
    pub fn text(&self, key: &str) -> &str {
        self.metadata.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

/// A file that may be sent.
pub struct Found {
    pub file: File,
    pub length: u64,
    pub name: String,
}

/// A summary, with the file's time and length when it was made.
type Known = HashMap<String, (SystemTime, u64, Option<Summary>)>;

pub struct Folder {
    /// Without links in it.
    root: PathBuf,
    known: Mutex<Known>,
}

/// A graph's file, its long lists only counted.
#[derive(Deserialize)]
struct Head {
    metadata: Value,
    nodes: Count,
    links: Count,
}

struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Count;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_seq(Counter)
    }
}

impl Folder {
    pub fn open(path: &Path) -> Result<Self> {
        let root = path.canonicalize().map_err(|error| Error::io(path, error))?;
        if !root.is_dir() {
            return Err(Error::expected(ErrorKind::BadInput, path.display(), "a file", "a folder of graphs"));
        }
        Ok(Folder { root, known: Mutex::default() })
    }

    /// The folder's own name.
    pub fn name(&self) -> String {
        self.root.file_name().map_or_else(|| "/".to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// The file of this name, when it is a regular file below the folder whose name ends as it may.
    pub fn file(&self, name: &str, endings: &[&str]) -> Result<Option<Found>> {
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(part) if !part.to_string_lossy().starts_with('.')));
        let ends = name.rsplit_once('.').is_some_and(|(_, ending)| endings.contains(&ending));
        if !plain || !ends || name.contains('\\') || name.starts_with('/') {
            return Ok(None);
        }
        // Links may lead about in the folder, not out of it.
        let Ok(place) = self.root.join(name).canonicalize() else { return Ok(None) };
        if !place.starts_with(&self.root) {
            return Ok(None);
        }
        // A pipe would hold the thread that opens it.
        let Ok(file) = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&place) else { return Ok(None) };
        let about = file.metadata().map_err(|error| Error::io(&place, error))?;
        // A folder on the way may have become a link meanwhile.
        let still = self.root.join(name).canonicalize().ok().filter(|again| *again == place).and_then(|again| std::fs::symlink_metadata(again).ok());
        let same = still.is_some_and(|still| (still.dev(), still.ino()) == (about.dev(), about.ino()));
        Ok((same && about.is_file()).then(|| Found { file, length: about.len(), name: name.to_string() }))
    }

    /// Every graph of the folder, by name.
    pub fn graphs(&self) -> Result<Vec<Summary>> {
        let entries = std::fs::read_dir(&self.root).map_err(|error| Error::io(&self.root, error))?;
        let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_string)).collect();
        names.sort();
        names.iter().filter_map(|name| self.graph(name).transpose()).collect()
    }

    /// The graph of this name; `None` for a file that is none.
    pub fn graph(&self, name: &str) -> Result<Option<Summary>> {
        let file = format!("{name}.json");
        let Some(found) = self.file(&file, &["json"])?.filter(|_| file != LIST && !name.contains('/')) else { return Ok(None) };
        let time = found.file.metadata().and_then(|about| about.modified()).map_err(|error| Error::io(&file, error))?;
        if let Some((_, _, known)) = self.known().get(name).filter(|(then, length, _)| (*then, *length) == (time, found.length)) {
            return Ok(known.clone());
        }
        let head: Option<Head> = serde_json::from_reader(std::io::BufReader::new(found.file)).ok();
        let graph = head.filter(|head| head.metadata.is_object()).map(|head| Summary { name: name.to_string(), metadata: head.metadata, nodes: head.nodes.0, links: head.links.0 });
        self.known().insert(name.to_string(), (time, found.length, graph.clone()));
        Ok(graph)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The list as circuit-tracer's page reads it: the entries of `graph-metadata.json` whose graphs are here, and one for
    /// every other graph. The slug is the file's name, by which the page asks for it.
    pub fn list(&self) -> Result<Value> {
        let kept: Option<Value> = self.file(LIST, &["json"])?.and_then(|found| serde_json::from_reader(std::io::BufReader::new(found.file)).ok());
        let kept = kept.as_ref().and_then(|list| list.get("graphs")?.as_array());
        let entry = |graph: Summary| {
            let of_name = |entry: &&Value| entry.get("slug").and_then(Value::as_str) == Some(graph.name.as_str());
            let mut entry = kept.and_then(|kept| kept.iter().find(of_name)).cloned().unwrap_or(graph.metadata);
            entry["slug"] = Value::String(graph.name);
            entry
        };
        Ok(serde_json::json!({ "graphs": self.graphs()?.into_iter().map(entry).collect::<Vec<_>>() }))
    }

    /// The picture of a graph as SVG.
    pub fn picture(&self, name: &str) -> Result<Option<String>> {
        if self.graph(name)?.is_none() {
            return Ok(None);
        }
        let graph = Graph::load(self.root.join(format!("{name}.json")))?;
        Ok(Some(graph.picture().svg().to_string()))
    }
}
