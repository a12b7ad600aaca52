//! `cltlab train --dry-run`: what a training would take and how long it is predicted to last.
//!
//! Nothing is trained or written. Of a model the configuration is read, of activations in a file the header, of a store its list of
//! shards; a CLT to begin with (`[clt] init`) is loaded, because its shape stands with its weights.

use super::recipe::Recipe;
use super::train;
use cltlab::model::Summary;
use cltlab::prelude::*;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Prints the plan of the training that `recipe` describes with `config`, as text or as JSON.
pub fn dry_run(recipe: &Recipe, config: &TrainConfig, json: bool) -> Result<()> {
    let dtype = train::dtype(recipe, "[model] dtype", &recipe.model.dtype)?;
    let model = recipe.model.source.as_ref().map(|name| Summary::read(name)).transpose()?;
    let init = recipe.init.as_ref().map(|init| Clt::load(init, &CltLoadConfig::on(&Device::Cpu))).transpose()?;
    let (source, [layers, width], input) = source(recipe, model.as_ref(), dtype)?;
    let base = match (&init, &model) {
        (Some(clt), _) => clt.config().clone(),
        (None, Some(model)) => CltConfig { layers, width, features: 2 * width, model_name: model.name.clone(), output: recipe.model.output.unwrap_or_default(), ..CltConfig::default() },
        (None, None) => CltConfig { layers, width, features: 2 * width, ..CltConfig::default() },
    };
    let shape = train::shape(recipe, base, input, "")?;
    for (field, got, expected) in [("layers", shape.layers, layers), ("width", shape.width, width)] {
        if got != expected {
            return Err(Error::expected(ErrorKind::Mismatch, format_args!("CltConfig::{field}"), got, format_args!("{expected}, as the activations have")));
        }
    }
    let plan = Plan::new(&shape, config, &source)?;
    if json {
        let text = serde_json::to_string_pretty(&plan).map_err(|error| Error::wrap(ErrorKind::BadInput, "the plan as JSON", error))?;
        println!("{text}");
    } else {
        println!("{plan}");
    }
    Ok(())
}

/// Where activations come from, their layers and width, and which site they are where the recipe's own CLT does not say.
fn source(recipe: &Recipe, model: Option<&Summary>, dtype: Option<DType>) -> Result<(PlanSource, [usize; 2], Option<InputSite>)> {
    if let Some(file) = &recipe.activations.file {
        let [layers, width, tokens] = header(Path::new(file))?;
        return Ok((PlanSource::Memory { tokens: Some(tokens as u64) }, [layers, width], None));
    }
    if let Some(folder) = &recipe.activations.store {
        let read = train::read_config(recipe);
        if model.is_none() || Path::new(folder).exists() {
            let activations = Activations::load(folder, &read)?;
            return Ok((PlanSource::of(&activations), [activations.layers(), activations.width()], Some(activations.input())));
        }
        if let Some(model) = model {
            return Ok((PlanSource::Store { read, tokens: None }, [model.config.layers, model.config.width], Some(recipe.store.input)));
        }
    }
    let Some(model) = model else { return Err(recipe.missing("model", "source", "the model that the CLT belongs to; or give [activations] file")) };
    if recipe.text.source.is_none() {
        return Err(recipe.missing("text", "source", "the text to train on; or give [activations] file"));
    }
    let stream = PlanSource::Stream { model: Box::new(model.clone()), dtype, stream: recipe.stream.clone(), tokens: None };
    Ok((stream, [model.config.layers, model.config.width], Some(recipe.stream.input)))
}

/// A tensor in the header of a safetensors file.
#[derive(serde::Deserialize)]
struct Entry {
    #[serde(default)]
    shape: Vec<usize>,
}

/// Layers, width and tokens of a file of activations, from its header: its length in 8 bytes, then JSON.
fn header(path: &Path) -> Result<[usize; 3]> {
    let broken = |why: &str| Error::new(ErrorKind::BadFile, format!("{}: not a whole safetensors file: {why}", path.display()));
    let mut file = cltlab::internal::files::open(path)?;
    let room = file.metadata().map_err(|error| Error::io(path, error))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| broken("it ends within its header"))?;
    let length = u64::from_le_bytes(length);
    if length > room.saturating_sub(8) {
        return Err(broken("it ends within its header"));
    }
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text).map_err(|error| Error::io(path, error))?;
    let entries: HashMap<String, Entry> = serde_json::from_slice(&text).map_err(|error| broken(&error.to_string()))?;
    let shape = |side: &str, l: usize| entries.get(&format!("{side}.{l}")).map(|entry| entry.shape.as_slice());
    let layers = (0..).take_while(|&l| shape("input", l).is_some()).count();
    let bad = |name: String, got: String| Error::expected(ErrorKind::BadTensor, format_args!("{}: {name}", path.display()), got, "shape [tokens, d], as input.0");
    let Some(&[tokens, width]) = shape("input", 0) else { return Err(bad("input.0".into(), shape("input", 0).map_or("nothing".into(), |shape| format!("shape {shape:?}")))) };
    for (side, l) in (0..layers).flat_map(|l| [("input", l), ("target", l)]) {
        if shape(side, l) != Some(&[tokens, width]) {
            return Err(bad(format!("{side}.{l}"), shape(side, l).map_or("nothing".into(), |shape| format!("shape {shape:?}"))));
        }
    }
    Ok([layers, width, tokens])
}
