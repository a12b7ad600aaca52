//! What configuration files say about rotary positions, by their older and newer names.

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::model::config::RotaryScaling;
use serde_json::json;

/// What newer files keep of the rotation in one place, for layers without a window where they differ.
fn rope<'a>(fields: &Fields<'a>) -> Option<&'a serde_json::Value> {
    let rope = fields.get("rope_parameters")?;
    Some(rope.get("full_attention").unwrap_or(rope))
}

/// The base of the frequencies, under its older or newer name.
pub(super) fn base(fields: &Fields<'_>) -> Result<Option<f64>> {
    let newer = rope(fields).and_then(|rope| rope.get("rope_theta")).and_then(|base| base.as_f64());
    Ok(fields.optional_real("rope_theta")?.or(newer))
}

/// The part of each head that is rotated, 0 to 1.
pub(super) fn part(fields: &Fields<'_>, default: f64) -> Result<f64> {
    let newer = rope(fields).and_then(|rope| rope.get("partial_rotary_factor")).and_then(|part| part.as_f64());
    Ok(fields.optional_real("partial_rotary_factor")?.or(newer).unwrap_or(default))
}

/// The rule for long contexts, if there is one, for `rotated` numbers of a head with this base.
pub(super) fn scaling(fields: &Fields<'_>, base: f64, rotated: usize) -> Result<Option<RotaryScaling>> {
    let Some(json) = fields.get("rope_scaling").or(rope(fields)) else { return Ok(None) };
    let inner = Fields { json, place: &format!("{}: rope_scaling", fields.place) };
    let field = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    inner.refuse(field, &[json!("llama3"), json!("linear"), json!("longrope"), json!("su"), json!("yarn"), json!("default")])?;
    Ok(match inner.text(field, "default")?.as_str() {
        "linear" => Some(RotaryScaling::Linear(inner.real("factor", 1.0)?)),
        "llama3" => Some(RotaryScaling::Llama3 {
            factor: inner.real("factor", 8.0)?,
            low: inner.real("low_freq_factor", 1.0)?,
            high: inner.real("high_freq_factor", 4.0)?,
            original_context: inner.number("original_max_position_embeddings")? as f64,
        }),
        "longrope" | "su" => {
            let (longest, original) = (fields.number("max_position_embeddings")?, original_context(fields, 0)?);
            let factor = longest as f64 / original.max(1) as f64;
            let magnitude = if factor > 1.0 { (1.0 + factor.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
            Some(RotaryScaling::LongRope { divisors: inner.reals("short_factor")?, magnitude: inner.real("attention_factor", magnitude)? })
        }
        "yarn" => Some(yarn(&inner, fields.number("max_position_embeddings")?, base, rotated)?),
        _ => None,
    })
}

/// YaRN (Peng et al. 2023) with the keys, defaults and rounding of transformers, which are
/// llama.cpp's too.
fn yarn(inner: &Fields<'_>, longest: usize, base: f64, rotated: usize) -> Result<RotaryScaling> {
    let factor = inner.real("factor", 1.0)?;
    let original = inner.optional("original_max_position_embeddings")?.filter(|context| *context > 0).unwrap_or(longest) as f64;
    // The pair, counted with fractions, that turns so many times in the context trained on.
    let pair = |turns: f64| rotated as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
    let turns = |field: &str, default: f64| Ok::<_, Error>(inner.optional_real(field)?.filter(|turns| *turns != 0.0).unwrap_or(default));
    let (mut first, mut last) = (pair(turns("beta_fast", 32.0)?), pair(turns("beta_slow", 1.0)?));
    if inner.flag("truncate", true)? {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min(rotated as f64 - 1.0));
    if first == last {
        last += 0.001;
    }
    let grown = |by: f64| if factor > 1.0 { 0.1 * by * factor.ln() + 1.0 } else { 1.0 };
    let given = |field: &str| Ok::<_, Error>(inner.optional_real(field)?.filter(|scale| *scale != 0.0));
    let usual = match (given("mscale")?, given("mscale_all_dim")?) {
        (Some(one), Some(all)) => grown(one) / grown(all),
        _ => grown(1.0),
    };
    Ok(RotaryScaling::Yarn { factor, first, last, magnitude: inner.real("attention_factor", usual)? })
}

/// The context trained on, which files keep beside the rule or within it.
pub(super) fn original_context(fields: &Fields<'_>, default: usize) -> Result<usize> {
    let inner = fields.get("rope_scaling").or(rope(fields)).and_then(|rope| rope.get("original_max_position_embeddings")?.as_u64());
    Ok(fields.optional("original_max_position_embeddings")?.or(inner.map(|context| context as usize)).unwrap_or(default))
}
