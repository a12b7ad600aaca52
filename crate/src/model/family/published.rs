//! What a model's `generation_config.json` says: where its texts end, and how its makers sample.

use super::fields::Fields;
use crate::error::Result;
use crate::model::sample::GenerateConfig;

/// Stop tokens, where the file names some, and sampling. Defaults are transformers': greedy unless
/// `do_sample`, and then temperature 1, the 50 likeliest.
///
/// # Errors
/// `BadFile` for a field of another type; `BadConfig` for one out of range.
pub(crate) fn generation(json: &serde_json::Value, place: &str) -> Result<(Option<Vec<u32>>, GenerateConfig)> {
    let fields = Fields { json, place };
    let usual = GenerateConfig { max_tokens: fields.optional("max_new_tokens")?.unwrap_or(GenerateConfig::default().max_tokens), ..GenerateConfig::default() };
    let sampling = if fields.flag("do_sample", false)? {
        GenerateConfig {
            temperature: fields.real("temperature", 1.0)?,
            top_k: fields.optional("top_k")?.unwrap_or(50),
            top_p: fields.real("top_p", 1.0)?,
            ..usual
        }
    } else {
        usual
    };
    sampling.validate().map_err(|error| error.context(place))?;
    let stops = fields.tokens("eos_token_id")?;
    Ok(((!stops.is_empty()).then_some(stops), sampling))
}
