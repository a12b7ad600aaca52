//! `[clt] activation` in both its forms: `activation = "batch_top_k"` with `k = 8` beside it, and
//! `activation = { batch_top_k = { k = 8 } }`.

use super::expected::listed;
use cltlab::clt::Activation;
use cltlab::prelude::*;
use serde_json::{Map, Value};
use toml::Table;

/// Keys of `[clt]` that belong to the activation.
pub const PARTS: [&str; 3] = ["k", "threshold", "bandwidth"];

/// What each activation needs, with values for an example.
const KNOWN: [(&str, &[(&str, &str)]); 6] = [
    ("relu", &[]),
    ("jump_relu", &[("threshold", "0.03"), ("bandwidth", "1.0")]),
    ("top_k", &[("k", "32")]),
    ("batch_top_k", &[("k", "32")]),
    ("global_top_k", &[("k", "32")]),
    ("global_batch_top_k", &[("k", "32")]),
];

fn parts_of(name: &str) -> Option<&'static [(&'static str, &'static str)]> {
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, parts)| *parts)
}

/// `activation = "batch_top_k" and k = 32, or activation = { batch_top_k = { k = 32 } }`.
fn forms(name: &str, parts: &[(&str, &str)]) -> String {
    if parts.is_empty() {
        return format!("activation = \"{name}\"");
    }
    let short: Vec<String> = parts.iter().map(|(part, value)| format!("{part} = {value}")).collect();
    format!("activation = \"{name}\" and {}, or activation = {{ {name} = {{ {} }} }}", short.join(" and "), short.join(", "))
}

/// One `--set clt.KEY=VALUE` over what the file says: another activation takes the place of all that the file says of
/// it, a part takes the place of that part.
///
/// # Errors
/// `BadInput` when `--set` gives the activation in its long form and a part of it too.
pub fn set(table: &mut Table, key: &str, value: toml::Value, given: &mut Vec<String>) -> Result<()> {
    let long = table.get("activation").is_some_and(toml::Value::is_table);
    let earlier = |name: &str| given.iter().any(|earlier| earlier == name);
    let twice = |part: &str| {
        Err(Error::new(ErrorKind::BadInput, format!("--set clt.{part}: clt.activation is given in its long form too, which holds {part}")).help("give one of them"))
    };
    if key == "activation" {
        if let (true, Some(part)) = (value.is_table(), PARTS.iter().find(|part| earlier(part))) {
            return twice(part);
        }
        let takes = value.as_str().and_then(parts_of).unwrap_or_default();
        let of_file = |part: &&&str| !earlier(part) && (value.is_table() || !takes.iter().any(|(name, _)| *name == **part));
        PARTS.iter().filter(of_file).for_each(|part| {
            table.remove(*part);
        });
    } else if long && earlier("activation") {
        return twice(key);
    } else if let Some(toml::Value::Table(variant)) = table.get_mut("activation") {
        if let Some((_, toml::Value::Table(parts))) = variant.iter_mut().next() {
            parts.insert(key.to_string(), value);
            given.push(key.to_string());
            return Ok(());
        }
    }
    table.insert(key.to_string(), value);
    given.push(key.to_string());
    Ok(())
}

/// The activation that `[clt]` says, in the library's form; `None` when it says nothing of it. `base` is what stands
/// where only a part of it is given.
///
/// # Errors
/// A sentence in the words of the recipe.
pub fn read(table: &Table, base: &Activation) -> Result<Option<Activation>, String> {
    let beside: Vec<(&str, &toml::Value)> = PARTS.iter().filter_map(|part| Some((*part, table.get(*part)?))).collect();
    let (name, inner) = match table.get("activation") {
        None if beside.is_empty() => return Ok(None),
        None => {
            let value = serde_json::to_value(base).unwrap_or_default();
            let (name, inner) = split(&value);
            (name, inner)
        }
        Some(toml::Value::String(name)) => (name.clone(), Map::new()),
        Some(toml::Value::Table(long)) => {
            if let Some((part, _)) = beside.first() {
                return Err(format!("{part}: is given beside activation = {{ ... }}, which holds it already; give one of them"));
            }
            let value = serde_json::to_value(long).map_err(|error| format!("activation: {error}"))?;
            if long.len() != 1 {
                return Err(format!("activation: got a table of {} keys, expected one name, for instance {}", long.len(), forms("batch_top_k", &[("k", "32")])));
            }
            let (name, inner) = split(&value);
            let is_table = long.values().all(toml::Value::is_table);
            match parts_of(&name) {
                Some(parts) if !is_table || parts.is_empty() => {
                    let needs = if parts.is_empty() { "takes no table" } else { "needs a table" };
                    return Err(format!("activation: {name} {needs}: {}", forms(&name, parts)));
                }
                _ => (name, inner),
            }
        }
        Some(other) => return Err(format!("activation: got {}, expected {}", crate::out::cut(&other.to_string()), names())),
    };
    let Some(parts) = parts_of(&name) else {
        let nearest = KNOWN.iter().map(|(known, _)| *known).min_by_key(|known| strsim::damerau_levenshtein(known, &name)).unwrap_or_default();
        let near = strsim::damerau_levenshtein(nearest, &name) <= 1 + name.len() / 3;
        return Err(format!("activation: got \"{name}\", expected {}{}", names(), if near { format!("; did you mean \"{nearest}\"?") } else { String::new() }));
    };
    let mut inner = inner;
    for (part, value) in beside {
        inner.insert(part.to_string(), serde_json::to_value(value).map_err(|error| format!("{part}: {error}"))?);
    }
    if let Some(part) = inner.keys().find(|part| !parts.iter().any(|(known, _)| known == part)) {
        let takes = if parts.is_empty() { "nothing".to_string() } else { listed(&parts.iter().map(|(part, _)| *part).collect::<Vec<_>>()).replace(" or ", " and ") };
        return Err(format!("{part}: {name} takes {takes}; leave {part} out"));
    }
    if let Some((part, _)) = parts.iter().find(|(part, _)| !inner.contains_key(*part)) {
        let article = if *part == "k" { "a k" } else { *part };
        return Err(format!("activation: {name} needs {article}: {}", forms(&name, parts)));
    }
    for (part, value) in &inner {
        let fits = if part == "k" { value.as_u64().is_some() } else { value.as_f64().is_some() };
        if !fits {
            return Err(format!("{part}: got {value}, expected {}", if part == "k" { "a whole number of 1 or more" } else { "a number above 0" }));
        }
    }
    let value = if parts.is_empty() { Value::String(name) } else { serde_json::json!({ name: inner }) };
    serde_json::from_value(value).map(Some).map_err(|error| format!("activation: {error}"))
}

/// `"name"` or `{ name = { parts } }`.
fn split(value: &Value) -> (String, Map<String, Value>) {
    match value {
        Value::String(name) => (name.clone(), Map::new()),
        Value::Object(map) => map.iter().next().map(|(name, inner)| (name.clone(), inner.as_object().cloned().unwrap_or_default())).unwrap_or_default(),
        _ => Default::default(),
    }
}

fn names() -> String {
    listed(&KNOWN.map(|(name, _)| name))
}
