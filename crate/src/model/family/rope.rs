//! What configuration files say about rotary positions, by their older and newer names.
//!
//! As transformers 5 reads them: one table, `rope_scaling` where it is there and not empty, else `rope_parameters`;
//! what it holds goes before fields of the same meaning beside it, such as a `rope_theta` left over from an older
//! version. A table may hold one for each kind of layer.

use super::fields::Fields;
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::RotaryScaling;
use crate::text::placeholder::shown;
use serde_json::{json, Value};

/// The table and its name; of layers without a window where it holds one for each kind.
fn rope<'a>(fields: &Fields<'a>) -> Result<Option<(&'static str, &'a Value)>> {
    let Some((name, table)) = whole(fields)? else { return Ok(None) };
    let Some(kind) = table.get("full_attention") else { return Ok(Some((name, table))) };
    object(fields, &format!("{name}: full_attention"), kind).map(|kind| Some((name, kind)))
}

/// The table as the file has it.
fn whole<'a>(fields: &Fields<'a>) -> Result<Option<(&'static str, &'a Value)>> {
    for name in ["rope_scaling", "rope_parameters"] {
        if let Some(value) = fields.get(name) {
            let table = object(fields, name, value)?;
            if table.as_object().is_some_and(|entries| !entries.is_empty()) {
                return Ok(Some((name, table)));
            }
        }
    }
    Ok(None)
}

fn object<'a>(fields: &Fields<'_>, name: &str, value: &'a Value) -> Result<&'a Value> {
    let wrong = || Error::expected(ErrorKind::BadFile, format_args!("{}: {name}", fields.place), shown(value), "an object like {\"rope_type\": \"linear\", \"factor\": 2.0}");
    if value.is_object() { Ok(value) } else { Err(wrong()) }
}

/// A number of the table, which goes before the field of this name beside it.
fn real(fields: &Fields<'_>, field: &str) -> Result<Option<f64>> {
    let place = format!("{}: rope", fields.place);
    let inner = rope(fields)?.map(|(_, json)| Fields { json, place: &place }.optional_real(field)).transpose()?.flatten();
    inner.map_or_else(|| fields.optional_real(field), |value| Ok(Some(value)))
}

/// The base of the frequencies.
pub(super) fn base(fields: &Fields<'_>) -> Result<Option<f64>> {
    real(fields, "rope_theta")
}

/// The base of layers with a window, where the table has one for them; those are never scaled.
pub(super) fn local_base(fields: &Fields<'_>) -> Result<Option<f64>> {
    let Some((name, json)) = whole(fields)?.and_then(|(name, table)| Some((name, table.get("sliding_attention")?))) else { return Ok(None) };
    let place = format!("{}: {name}: sliding_attention", fields.place);
    let inner = Fields { json: object(fields, &format!("{name}: sliding_attention"), json)?, place: &place };
    inner.refuse("rope_type", &[json!("default")])?;
    inner.optional_real("rope_theta")
}

/// The part of each head that is rotated, above 0, at most 1.
pub(super) fn part(fields: &Fields<'_>, default: f64) -> Result<f64> {
    let part = real(fields, "partial_rotary_factor")?.unwrap_or(default);
    if part > 0.0 && part <= 1.0 {
        return Ok(part);
    }
    Err(Error::expected(ErrorKind::BadConfig, format_args!("{}: part of a head that is rotated", fields.place), part, "above 0, at most 1"))
}

/// The rule for long contexts, if there is one, for `rotated` numbers of a head with this base.
pub(super) fn scaling(fields: &Fields<'_>, base: f64, rotated: usize) -> Result<Option<RotaryScaling>> {
    let Some((name, json)) = rope(fields)? else { return Ok(None) };
    let inner = Fields { json, place: &format!("{}: {name}", fields.place) };
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
    let place = format!("{}: rope", fields.place);
    let inner = rope(fields)?.map(|(_, json)| Fields { json, place: &place }.optional("original_max_position_embeddings")).transpose()?.flatten();
    Ok(fields.optional("original_max_position_embeddings")?.or(inner).unwrap_or(default))
}
