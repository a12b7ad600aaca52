//! Which safetensors files of a folder hold a model, and which of them holds each tensor.

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::text::placeholder::{first_ten, shown, stands_in, warn};
use candle_core::safetensors::MmapedSafetensors;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files, and for shards the file of each tensor by the index.
pub(super) struct Listed {
    pub files: Vec<PathBuf>,
    index: Option<(PathBuf, HashMap<String, usize>)>,
}

/// The files of a folder's model.
pub(super) fn find(folder: &Path) -> Result<Listed> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    if single.exists() {
        if index.exists() {
            warn(format_args!("{}: {SINGLE} is read; the shards of {INDEX}, which is there too, are not", folder.display()));
        }
        return Ok(Listed { files: vec![single], index: None });
    }
    if !index.exists() {
        return Err(no_weights(folder));
    }
    if let Some(error) = stands_in(&index) {
        return Err(error);
    }
    let map = weight_map(&files::read_json_object(&index)?, &index)?;
    let names: BTreeMap<&str, usize> = map.values().map(String::as_str).collect::<std::collections::BTreeSet<_>>().into_iter().zip(0..).collect();
    let places = map.iter().map(|(tensor, shard)| (tensor.clone(), names[shard.as_str()])).collect();
    let files: Vec<PathBuf> = names.keys().map(|name| folder.join(name)).collect();
    if let Some(missing) = files.iter().find(|file| !file.exists()) {
        let listed = format!("{} lists it among {} shards; download it again", index.display(), files.len());
        return Err(Error::new(ErrorKind::MissingFile, format!("{}: no such file", missing.display())).help(listed));
    }
    Ok(Listed { files, index: Some((index, places)) })
}

/// The shard of each tensor, by the content of an index; every name is that of a file in the same folder.
pub(super) fn weight_map(listing: &serde_json::Value, index: &Path) -> Result<HashMap<String, String>> {
    let place = |field: &str| format!("{}: {field}", index.display());
    let map = listing.get("weight_map").and_then(|map| map.as_object()).filter(|map| !map.is_empty());
    let map = map.ok_or_else(|| Error::expected(ErrorKind::BadFile, index.display(), "no field 'weight_map'", "a map from tensor to shard"))?;
    let mut found = HashMap::new();
    for (tensor, shard) in map {
        let name = shard.as_str().filter(|name| plain(name));
        let name = name.ok_or_else(|| {
            Error::expected(ErrorKind::BadFile, place(&format!("weight_map: {}", shown(tensor))), shown(shard), "the name of a .safetensors file in the same folder")
        })?;
        found.insert(tensor.clone(), name.to_string());
    }
    Ok(found)
}

/// Whether a name is a relative path of plain components.
fn plain(name: &str) -> bool {
    let odd = |c: char| c.is_control() || ['?', '#', '%', '\\'].contains(&c);
    !name.is_empty() && !name.contains(odd) && !name.split('/').any(str::is_empty) && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

impl Listed {
    /// In which file each tensor lies.
    pub(super) fn places(&self, files: &[MmapedSafetensors]) -> Result<HashMap<String, usize>> {
        let mut found: HashMap<String, usize> = HashMap::new();
        let listed = self.index.as_ref().map(|(_, listed)| listed);
        for (index, file) in files.iter().enumerate() {
            for (name, _) in file.tensors() {
                match listed.and_then(|listed| listed.get(&name)) {
                    Some(wanted) if *wanted != index => {}
                    Some(_) => drop(found.insert(name, index)),
                    None => {
                        if let Some(other) = found.insert(name.clone(), index) {
                            let (one, two) = (self.files[other].display(), self.files[index].display());
                            return Err(Error::new(ErrorKind::BadFile, format!("{one} and {two}: tensor {} is in both, and the index does not say which is meant", shown(name))));
                        }
                    }
                }
            }
        }
        if let Some((index, listed)) = &self.index {
            let mut absent: Vec<String> = listed.iter().filter(|(name, _)| !found.contains_key(*name)).map(|(name, shard)| format!("{name} in {}", self.files[*shard].display())).collect();
            absent.sort();
            if !absent.is_empty() {
                let names = first_ten(&absent, absent.len());
                return Err(Error::new(ErrorKind::BadTensor, format!("{}: weight_map: not where it says: {names}", index.display())).help("the index and the shards are of different models or revisions; download both again"));
            }
        }
        Ok(found)
    }
}

/// A folder without safetensors: what there is instead.
fn no_weights(folder: &Path) -> Error {
    let mut names: Vec<String> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let of = |ends: &[&str]| names.iter().filter(|name| ends.iter().any(|end| name.ends_with(end))).cloned().collect::<Vec<_>>();
    let pickle: Vec<String> = of(&[".bin", ".pt", ".pth", ".ckpt", ".bin.index.json"]).into_iter().filter(|name| name != "tokenizer.bin" && name != "training_args.bin").collect();
    let place = folder.display();
    if !pickle.is_empty() {
        let message = format!("{place}: only pickle weights are there ({}), which are not read; expected {SINGLE}", first_ten(&pickle, pickle.len()));
        return Error::new(ErrorKind::Unsupported, message).help("load them in transformers and save with save_pretrained(folder, safe_serialization=True), or take a revision with safetensors");
    }
    let other = of(&[".safetensors", ".gguf", ".h5", ".msgpack", ".onnx"]);
    let missing = format!("{}: no such file, and no {INDEX}", folder.join(SINGLE).display());
    let help = match other.iter().find(|name| name.ends_with(".gguf")) {
        Some(gguf) => format!("give the GGUF file itself: {}", shown(folder.join(gguf).display())),
        None if other.is_empty() => "the weights were not downloaded".to_string(),
        None => format!("the folder holds {}; a model's safetensors are named {SINGLE}, or as {INDEX} lists them", first_ten(&other, other.len())),
    };
    Error::new(ErrorKind::MissingFile, missing).help(help)
}
