//! A training as one TOML file: tables whose keys are the fields of the library's configurations.
//!
//! `preset = "..."` before the first table names the values that the others override. Unknown tables and keys are refused with the nearest known one. Relative paths are relative to the
//! file; in `--set`, to the current folder. The word `"none"` empties an optional field.
//!
//! `recipe/example.toml` holds every key; `cltlab train --example` prints it.

mod activation;
mod expected;

use crate::out;
use cltlab::model::OutputSite;
use cltlab::prelude::*;
use expected::{keys, value_of};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// `[model]`
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelTable {
    /// Folder, .gguf file, llama2.c checkpoint or hub name.
    pub source: Option<String>,
    /// f32, bf16 or f16 for its weights; else f32 on the CPU, bf16 on a GPU.
    pub dtype: Option<String>,
    /// Which value the decoders write to.
    pub output: Option<OutputSite>,
}

/// `[text]`
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextTable {
    /// A file of text, a folder of them, or a dataset of the hub: owner/name, owner/name/beginning/of/paths.
    pub source: Option<String>,
    /// The field of JSONL objects or parquet rows that holds the text.
    pub field: Option<String>,
    /// Text that is read at most, in bytes.
    pub max_bytes: Option<u64>,
    /// Text for evaluation, likewise; without it the last part of `source`.
    pub held_out_source: Option<String>,
    /// Share of `source` that is held out when there is no `held_out_source`; 0 for none.
    pub held_out: Option<f64>,
}

/// `[activations]`
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActivationsTable {
    /// A safetensors file with `input.{l}` and `target.{l}`, `[tokens, d]`.
    pub file: Option<String>,
    /// Folder of a store: opened, and made or completed first where the file names a model and a text.
    pub store: Option<String>,
}

/// `[output]`
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputTable {
    /// Where everything is written.
    pub folder: Option<String>,
    /// f32, bf16 or f16 for the CLT's encoders and decoders.
    pub dtype: Option<String>,
}

/// The parsed file.
pub struct Recipe {
    path: PathBuf,
    tables: toml::Table,
    /// Whose values stand where the file says none.
    pub preset: Option<Preset>,
    pub model: ModelTable,
    pub text: TextTable,
    pub activations: ActivationsTable,
    pub output: OutputTable,
    pub stream: StreamConfig,
    pub store: StoreConfig,
    pub train: TrainConfig,
    pub eval: EvalConfig,
    /// A CLT to begin with, `[clt] init`.
    pub init: Option<String>,
}

/// What `cltlab train --example` prints.
pub const EXAMPLE: &str = include_str!("recipe/example.toml");

/// Besides `preset`.
const TABLES: [&str; 9] = ["model", "text", "activations", "store", "stream", "clt", "train", "eval", "output"];

/// Keys that are paths.
const PATHS: [(&str, &str); 9] = [
    ("model", "source"),
    ("text", "source"),
    ("text", "held_out_source"),
    ("activations", "file"),
    ("activations", "store"),
    ("clt", "init"),
    ("output", "folder"),
    ("train", "checkpoint_dir"),
    ("train", "metrics"),
];

/// Keys that recipes do not have, and what is written instead.
const REPLACED: [(&str, &str, &str); 6] = [
    ("model", "name", "[model] source"),
    ("text", "file", "[text] source"),
    ("text", "dataset", "[text] source, a file, a folder or a dataset of the hub"),
    ("text", "held_out_file", "[text] held_out_source"),
    ("clt", "width", "nothing, for it is the model's; features per layer are [clt] features"),
    ("clt", "layers", "nothing, for they are the model's"),
];

impl Recipe {
    /// Reads `path` and applies `table.key=value` overrides.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = String::from_utf8(cltlab::internal::files::read(path)?).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::expected(ErrorKind::BadFile, path.display(), format_args!("bytes that are not UTF-8 (byte {at})"), "TOML in UTF-8").help("save it as UTF-8")
        })?;
        let mut tables: toml::Table =
            toml::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| syntax(path, &text, error))?;
        let here = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for (table, key) in PATHS {
            if let Some(value) = tables.get_mut(table).and_then(|table| table.get_mut(key)) {
                anchor(value, table, here)?;
            }
        }
        let mut given = Vec::new();
        for text in overrides {
            set(&mut tables, text, &mut given)?;
        }
        for (name, value) in &tables {
            finite(path, name, value)?;
        }
        if let Some((table, key, new)) = REPLACED.iter().find(|(table, key, _)| tables.get(*table).and_then(|table| table.get(key)).is_some()) {
            return Err(Error::new(ErrorKind::BadConfig, format!("{}: [{table}] {key}: unknown key", path.display())).help(format!("write {new}")));
        }
        let preset = tables.get("preset").map(|value| preset(value, path)).transpose()?;
        tables.remove("preset");
        for (name, table) in &tables {
            if !TABLES.contains(&name.as_str()) {
                return Err(unknown(path, "table", &format!("[{name}]"), name, &[&TABLES[..], &["preset"]].concat()));
            }
            if !table.is_table() {
                return Err(Error::expected(ErrorKind::BadConfig, format_args!("{}: {name}", path.display()), table.type_str(), "a table"));
            }
        }
        let mut recipe = Recipe {
            path: path.to_path_buf(),
            preset,
            init: None,
            model: Default::default(),
            text: Default::default(),
            activations: Default::default(),
            output: Default::default(),
            stream: Default::default(),
            store: Default::default(),
            train: Default::default(),
            eval: Default::default(),
            tables,
        };
        recipe.model = recipe.table("model", &ModelTable::default())?;
        recipe.text = recipe.table("text", &TextTable::default())?;
        recipe.activations = recipe.table("activations", &ActivationsTable::default())?;
        recipe.output = recipe.table("output", &OutputTable::default())?;
        recipe.stream = recipe.table("stream", &preset.map_or_else(StreamConfig::default, Preset::stream))?;
        recipe.store = recipe.table("store", &StoreConfig::default())?;
        recipe.train = recipe.table("train", &preset.map_or_else(TrainConfig::default, Preset::train))?;
        // Evaluated in contexts like those it was trained in.
        recipe.eval = recipe.table("eval", &EvalConfig { context: recipe.stream.context, ..EvalConfig::default() })?;
        let init = recipe.tables.get_mut("clt").and_then(|table| table.as_table_mut()?.remove("init"));
        recipe.init = init.map(|value| value.as_str().map(str::to_string).ok_or_else(|| recipe.bad("[clt] init", value.type_str(), "the folder of a CLT"))).transpose()?;
        // A wrong key is refused before a model is loaded. Whether parts of an activation fit one that is not given
        // shows when that is known.
        let usual = CltConfig::default();
        let base = preset.map_or(usual.clone(), |preset| preset.shape(&usual));
        let parts = activation::PARTS.iter().any(|part| recipe.is_given("clt", part));
        if recipe.init.is_none() || recipe.is_given("clt", "activation") || !parts {
            recipe.clt(&base)?;
        }
        recipe.one_source()?;
        Ok(recipe)
    }

    /// `base` with the keys of `[clt]` in its place.
    pub fn clt(&self, base: &CltConfig) -> Result<CltConfig> {
        let mut table = self.tables.get("clt").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let said = activation::read(&table, &base.activation);
        let said = said.map_err(|what| Error::new(ErrorKind::BadConfig, format!("{}: [clt] {what}", self.path.display())))?;
        let base = CltConfig { activation: said.unwrap_or(base.activation.clone()), ..base.clone() };
        ["activation"].iter().chain(&activation::PARTS).for_each(|key| {
            table.remove(*key);
        });
        self.read_table("clt", &table, &base)
    }

    /// An error about a key that has to be given, with the example's line for it.
    pub fn missing(&self, table: &str, key: &str, why: &str) -> Error {
        let line = example_line(table, key).unwrap_or_default();
        let add = if self.tables.contains_key(table) { format!("add to [{table}]: {line}") } else { format!("add a table [{table}] with: {line}") };
        Error::new(ErrorKind::BadConfig, format!("{}: [{table}] {key} is missing: {why}", self.path.display())).help(format!("{add} (cltlab train --example prints a whole recipe)"))
    }

    /// The file with the overrides, as TOML.
    pub fn text(&self) -> Result<String> {
        let mut tables = self.tables.clone();
        if let Some(preset) = self.preset {
            tables.insert("preset".into(), preset.name().into());
        }
        if let (Some(init), Some(table)) = (&self.init, tables.get_mut("clt").and_then(toml::Value::as_table_mut)) {
            table.insert("init".into(), init.clone().into());
        }
        toml::to_string(&tables).map_err(|error| Error::wrap(ErrorKind::BadConfig, self.path.display(), error))
    }

    /// An error about one field of the file.
    pub fn bad(&self, field: &str, got: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
        Error::expected(ErrorKind::BadConfig, format_args!("{}: {field}", self.path.display()), got, expected)
    }

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses outputs that would take the place of this recipe, its text or its activations.
    ///
    /// # Errors
    /// `BadConfig` naming the input and the output.
    pub fn keeps_inputs(&self, folder: &Path, metrics: Option<&Path>) -> Result<()> {
        let outputs = [Some(folder.join("config.toml")), Some(folder.join("report.json")), metrics.map(Path::to_path_buf)];
        let files = [&self.text.source, &self.text.held_out_source, &self.activations.file, &self.model.source];
        let inputs = std::iter::once(self.path.clone()).chain(files.into_iter().flatten().map(PathBuf::from));
        for input in inputs.filter_map(|input| input.canonicalize().ok()).filter(|input| input.is_file()) {
            for output in outputs.iter().flatten().filter(|output| output.canonicalize().is_ok_and(|output| output == input)) {
                let recipe = output.ends_with("config.toml") && self.path.canonicalize().is_ok_and(|path| path == input);
                // A run goes on from the recipe that it wrote itself.
                let written = || Some(Recipe::read(&self.path, &[]).ok()?.text().ok()?.into_bytes() == cltlab::internal::files::read(&self.path).ok()?);
                if !(recipe && written() == Some(true)) {
                    return Err(self.bad("[output] folder", format_args!("{}, whose {} would replace an input of this training", folder.display(), output.display()), "another folder"));
                }
            }
        }
        Ok(())
    }

    pub fn is_given(&self, table: &str, key: &str) -> bool {
        self.tables.get(table).and_then(|table| table.get(key)).is_some()
    }

    /// Refuses keys that would be passed over, because activations come from elsewhere.
    fn one_source(&self) -> Result<()> {
        match (&self.activations.file, &self.activations.store) {
            (Some(_), Some(_)) => return Err(self.bad("[activations]", "a file and a store", "one of them")),
            (_, None) if self.tables.contains_key("store") => return Err(self.bad("[store]", "a table", "none, or its folder: [activations] store")),
            (_, None) => return Ok(()),
            (None, Some(_)) => {}
        }
        let read = ["buffer_tokens", "passes", "seed", "ahead"];
        let odd = self.tables.get("stream").and_then(toml::Value::as_table).into_iter().flatten().find(|(key, _)| !read.contains(&key.as_str()));
        match odd {
            None => Ok(()),
            Some((key, value)) => Err(self.bad(&format!("[stream] {key}"), value, "none, because activations come from a store").help("give it in [store]")),
        }
    }

    /// True when `[train]` says how often checkpoints are made.
    pub fn says_checkpoints(&self) -> bool {
        self.is_given("train", "checkpoint_every")
    }

    /// `base` with the keys of table `name` in its place.
    fn table<T: DeserializeOwned + serde::Serialize>(&self, name: &str, base: &T) -> Result<T> {
        match self.tables.get(name).and_then(toml::Value::as_table) {
            Some(table) => self.read_table(name, table, base),
            None => self.read_table(name, &toml::Table::new(), base),
        }
    }

    fn read_table<T: DeserializeOwned + serde::Serialize>(&self, name: &str, table: &toml::Table, base: &T) -> Result<T> {
        let fault = |error: serde_json::Error| Error::wrap(ErrorKind::BadConfig, format_args!("{}: [{name}]", self.path.display()), error);
        let base = serde_json::to_value(base).map_err(fault)?;
        let mut whole = base.clone();
        for (key, value) in table {
            let Some(known) = keys::<T>().iter().find(|known| *known == key) else {
                let beside: &[&str] = if name == "clt" { &["init", "k", "threshold", "bandwidth"] } else { &[] };
                let of_model = ["layers", "width"];
                let all: Vec<&str> = keys::<T>().iter().chain(beside).copied().filter(|key| name != "clt" || !of_model.contains(key)).collect();
                return Err(unknown(&self.path, "key", &format!("[{name}] {key}"), key, &all));
            };
            let given = if value.as_str() == Some("none") { Value::Null } else { serde_json::to_value(value).map_err(fault)? };
            // One at a time, so that the error names the key.
            serde_json::from_value::<T>(with(&base, key, &given)).map_err(|error| {
                let refused = self.bad(&format!("[{name}] {key}"), out::cut(&value.to_string()), value_of::<T>(known)).caused_by(error);
                example_line(name, key).map_or(refused.clone(), |line| refused.help(format!("for instance {line}")))
            })?;
            whole = with(&whole, key, &given);
        }
        serde_json::from_value(whole).map_err(fault)
    }
}

/// The line of the example that gives `key` in `table`, without its remark.
fn example_line(table: &str, key: &str) -> Option<String> {
    let mut at = "";
    EXAMPLE.lines().find_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            at = name;
        }
        let is_it = at == table && line.split(" = ").next() == Some(key);
        is_it.then(|| line.split(" #").next().unwrap_or(line).trim().to_string())
    })
}

fn with(base: &Value, key: &str, value: &Value) -> Value {
    let mut map: Map<String, Value> = base.as_object().cloned().unwrap_or_default();
    map.insert(key.to_string(), value.clone());
    Value::Object(map)
}

fn preset(value: &toml::Value, path: &Path) -> Result<Preset> {
    let name = value.as_str().ok_or_else(|| Error::expected(ErrorKind::BadConfig, format_args!("{}: preset", path.display()), value.type_str(), "a name"))?;
    Preset::named(name).map_err(|error| error.context(path.display()))
}

/// Applies one `table.key=value`.
/// `given` collects what was set of the activation.
fn set(tables: &mut toml::Table, text: &str, given: &mut Vec<String>) -> Result<()> {
    let bad = || Error::expected(ErrorKind::BadInput, "--set", format_args!("'{}'", out::cut(text)), "table.key=value, for instance train.steps=100");
    let (place, value) = text.split_once('=').ok_or_else(bad)?;
    if place.trim() == "preset" {
        tables.insert("preset".into(), value.trim().into());
        return Ok(());
    }
    let (name, key) = place.trim().split_once('.').ok_or_else(bad)?;
    // What is no TOML value is a string: --set output.folder=runs/a needs no quotes.
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    let mut value = parsed.unwrap_or_else(|| toml::Value::String(value.to_string()));
    if PATHS.contains(&(name, key)) {
        anchor(&mut value, name, Path::new("."))?;
    }
    let table = tables.entry(name).or_insert_with(|| toml::Table::new().into());
    let table = table.as_table_mut().ok_or_else(bad)?;
    if name == "clt" && (key == "activation" || activation::PARTS.contains(&key)) {
        return activation::set(table, key, value, given);
    }
    table.insert(key.to_string(), value);
    Ok(())
}

/// Makes a relative path absolute; the source of a model or a text stays when nothing lies there, as it may be the hub's.
fn anchor(value: &mut toml::Value, table: &str, folder: &Path) -> Result<()> {
    let Some(text) = value.as_str().filter(|text| *text != "none") else { return Ok(()) };
    let path = folder.join(text);
    if !matches!(table, "model" | "text") || path.exists() {
        let path = std::path::absolute(&path).unwrap_or(path).into_os_string().into_string();
        let path = path.map_err(|path| Error::expected(ErrorKind::BadInput, format_args!("[{table}]"), format_args!("{path:?}"), "a path in UTF-8, which TOML can hold"))?;
        *value = toml::Value::String(path);
    }
    Ok(())
}

/// Refuses numbers that are none: behind them a field would be empty.
fn finite(path: &Path, place: &str, value: &toml::Value) -> Result<()> {
    match value {
        toml::Value::Float(number) if !number.is_finite() => Err(Error::expected(ErrorKind::BadConfig, format_args!("{}: {place}", path.display()), number, "a finite number")),
        toml::Value::Array(values) => values.iter().enumerate().try_for_each(|(at, value)| finite(path, &format!("{place}[{at}]"), value)),
        toml::Value::Table(table) => table.iter().try_for_each(|(key, value)| finite(path, &format!("{place}.{key}"), value)),
        _ => Ok(()),
    }
}

/// What is wrong with the file's TOML; a line that is long is not repeated.
fn syntax(path: &Path, text: &str, error: toml::de::Error) -> Error {
    let line = error.span().map(|span| text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1));
    let whole = error.to_string();
    if whole.len() < 2000 {
        return Error::wrap(ErrorKind::BadFile, path.display(), error);
    }
    let line = line.map_or_else(String::new, |line| format!("line {line}: "));
    Error::new(ErrorKind::BadFile, format!("{}: {line}{}", path.display(), out::cut(error.message()))).caused_by(error)
}

fn unknown(path: &Path, what: &str, place: &str, got: &str, known: &[&str]) -> Error {
    let (place, got) = (out::cut(place), &out::cut(got));
    let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, got)).copied().unwrap_or("");
    let error = Error::new(ErrorKind::BadConfig, format!("{}: {place}: unknown {what}", path.display()));
    match strsim::damerau_levenshtein(nearest, got) <= 1 + got.len() / 3 {
        true => error.help(format!("did you mean '{nearest}'?")),
        false => error.help(format!("known are {}", known.join(", "))),
    }
}
