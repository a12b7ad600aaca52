//! Whether a recipe may go on with the checkpoint that is there: every key that would be passed over is
//! refused by its name.

use super::recipe::Recipe;
use super::train::shape;
use cltlab::prelude::*;
use serde_json::Value;
use std::path::Path;

/// Keys of `[stream]` that do not touch what is trained on.
const FREE: [&str; 2] = ["ahead", "batch"];

/// Compares `recipe` with the trainer of the checkpoint.
///
/// # Errors
/// `Mismatch` naming the first key that differs.
pub fn same_run(recipe: &Recipe, trainer: &Trainer, model: Option<&Model>, activations: &Activations) -> Result<()> {
    let saved = trainer.clt_config();
    let base = match model {
        // A CLT that it began with has the shape that the checkpoint has.
        _ if recipe.init.is_some() => saved.clone(),
        Some(model) => CltConfig::for_model(model),
        None => CltConfig { layers: activations.layers(), width: activations.width(), features: 2 * activations.width(), ..CltConfig::default() },
    };
    let input = if recipe.activations.file.is_some() { None } else { Some(activations.input()) };
    let given = shape(recipe, base, input, activations.model_fingerprint())?;
    differs(recipe, "clt", saved, &given, |_| true)
}

/// Compares `recipe` with the one that the run's folder keeps, before a model or a text is opened.
///
/// # Errors
/// `Mismatch` naming the first key that differs.
pub fn same_recipe(recipe: &Recipe, folder: &Path) -> Result<()> {
    let before = folder.join("config.toml");
    // A training that the library made, or an older version, keeps no recipe, or one that is not read any more.
    let Some(before) = before.exists().then(|| Recipe::read(&before, &[]).ok()).flatten() else { return Ok(()) };
    // Over one base, and only what both say: a default may be the model's, which `same_run` sees.
    let of = |recipe: &Recipe| shape(recipe, CltConfig { layers: 1, width: 1, ..CltConfig::default() }, None, "").ok();
    if let (Some(saved), Some(given)) = (of(&before), of(recipe)) {
        differs(recipe, "clt", &saved, &given, |key| before.is_given("clt", key) && recipe.is_given("clt", key))?;
    }
    differs(recipe, "stream", &before.stream, &recipe.stream, |key| !FREE.contains(&key))?;
    differs(recipe, "model", &before.model, &recipe.model, |key| key != "source")?;
    if before.init != recipe.init {
        let word = |init: &Option<String>| init.clone().unwrap_or_else(|| "none".into());
        return Err(refused(recipe, "[clt] init", &word(&recipe.init), &word(&before.init)));
    }
    Ok(())
}

fn refused(recipe: &Recipe, key: &str, got: &str, saved: &str) -> Error {
    Error::expected(ErrorKind::Mismatch, format_args!("{}: {key}", recipe.path().display()), got, format_args!("{saved}, as when the training began"))
        .help("go on with the same value, or begin anew in another folder: --set output.folder=...")
}

fn differs<T: serde::Serialize>(recipe: &Recipe, table: &str, saved: &T, given: &T, compared: impl Fn(&str) -> bool) -> Result<()> {
    let value = |of: &T| serde_json::to_value(of).map_err(|error| Error::wrap(ErrorKind::BadConfig, format_args!("[{table}]"), error));
    let (saved, given) = (value(saved)?, value(given)?);
    let differing = given.as_object().into_iter().flatten().find(|(key, value)| compared(key) && saved.get(key) != Some(value));
    match differing {
        None => Ok(()),
        Some((key, value)) => {
            let before = saved.get(key).unwrap_or(&Value::Null);
            Err(refused(recipe, &format!("[{table}] {key}"), &value.to_string(), &before.to_string()))
        }
    }
}
