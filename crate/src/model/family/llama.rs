//! Llama, and Mistral with its window: RMSNorm, rotary positions, grouped queries, gated SiLU MLP.
//! Most later families start from this. Hugging Face files rotate halves; llama.cpp permutes q and k
//! of these two and rotates neighbours.

use super::fields::Fields;
use super::names::{GGUF, LLAMA as NAMES};
use super::{Family, Gguf};
use crate::error::Result;
use crate::model::config::{Biases, ModelConfig, NormKind, NormPlaces, Positions, RotaryScaling};
use serde_json::json;

pub(super) const LLAMA: Family = Family { name: "llama", config, names: NAMES, gguf: Some(Gguf { name: "llama", names: GGUF, interleaved: true }) };

/// llama.cpp calls it llama too.
pub(super) const MISTRAL: Family = Family { name: "mistral", config: mistral, names: NAMES, gguf: None };

/// What Llama's keys say.
pub(super) fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    rotated(fields, part(fields, 1.0)?, None)
}

/// As [`config`], with the part of each head that is rotated, 0 to 1, and a base under another name.
pub(super) fn rotated(fields: &Fields<'_>, part: f64, base: Option<f64>) -> Result<ModelConfig> {
    let (width, heads) = (fields.number("hidden_size")?, fields.number("num_attention_heads")?);
    let head_dim = fields.optional("head_dim")?.unwrap_or(width / heads.max(1));
    let (attention, mlp) = (fields.flag("attention_bias", false)?, fields.flag("mlp_bias", false)?);
    Ok(ModelConfig {
        architecture: String::new(),
        layers: fields.number("num_hidden_layers")?,
        width,
        mlp_width: fields.number("intermediate_size")?,
        heads,
        kv_heads: fields.optional("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocab: fields.number("vocab_size")?,
        context: fields.number("max_position_embeddings")?,
        norm: NormKind::Rms,
        norm_eps: fields.real("rms_norm_eps", 1e-6)?,
        norm_places: NormPlaces::Pre,
        norm_offset: false,
        parallel: false,
        positions: Positions::Rotary {
            base: base_of(fields)?.or(base).unwrap_or(10_000.0),
            interleaved: false,
            rotated: fields.optional("rotary_dim")?.unwrap_or((head_dim as f64 * part) as usize),
            scaling: scaling(fields)?,
        },
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_cap: None,
        qk_norm: None,
        local: None,
        activation: match fields.get("hidden_activation") {
            Some(_) => fields.activation("hidden_activation", "silu")?,
            None => fields.activation("hidden_act", "silu")?,
        },
        gated: true,
        biases: Biases { qkv: attention, output: attention, mlp, unembedding: false },
        embedding_scale: 1.0,
        tied: fields.flag("tie_word_embeddings", false)?,
        logit_scale: 1.0,
        logit_cap: None,
        special_token: fields.token("bos_token_id"),
        add_special: false,
        stop_tokens: fields.tokens("eos_token_id"),
    })
}

fn mistral(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = config(fields)?;
    let local = fields.local(fields.optional("sliding_window")?, config.layers, config.context, |_| true)?;
    Ok(ModelConfig { local, ..config })
}

/// What newer files keep of the rotation in one place, for layers without a window where they differ.
fn rope<'a>(fields: &Fields<'a>) -> Option<&'a serde_json::Value> {
    let rope = fields.get("rope_parameters")?;
    Some(rope.get("full_attention").unwrap_or(rope))
}

fn base_of(fields: &Fields<'_>) -> Result<Option<f64>> {
    let newer = rope(fields).and_then(|rope| rope.get("rope_theta")).and_then(|base| base.as_f64());
    Ok(fields.optional_real("rope_theta")?.or(newer))
}

/// The part of each head that is rotated, 0 to 1.
pub(super) fn part(fields: &Fields<'_>, default: f64) -> Result<f64> {
    let newer = rope(fields).and_then(|rope| rope.get("partial_rotary_factor")).and_then(|part| part.as_f64());
    Ok(fields.optional_real("partial_rotary_factor")?.or(newer).unwrap_or(default))
}

fn scaling(fields: &Fields<'_>) -> Result<Option<RotaryScaling>> {
    let Some(json) = fields.get("rope_scaling").or(rope(fields)) else { return Ok(None) };
    let inner = Fields { json, place: &format!("{}: rope_scaling", fields.place) };
    let field = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    inner.refuse(field, &[json!("llama3"), json!("linear"), json!("default")])?;
    Ok(match inner.text(field, "default")?.as_str() {
        "linear" => Some(RotaryScaling::Linear(inner.real("factor", 1.0)?)),
        "llama3" => Some(RotaryScaling::Llama3 {
            factor: inner.real("factor", 8.0)?,
            low: inner.real("low_freq_factor", 1.0)?,
            high: inner.real("high_freq_factor", 4.0)?,
            original_context: inner.number("original_max_position_embeddings")? as f64,
        }),
        _ => None,
    })
}
