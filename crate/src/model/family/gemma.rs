//! Gemma 1, 2 and 3 (text): norm weights stored less 1, embeddings times `sqrt(d)`, tanh-GELU gate,
//! embeddings tied. Gemma 2 adds norms after attention and MLP, windows in every second layer and
//! soft-caps; Gemma 3 has windows with a rotary base of their own in five layers of six and norms of
//! q and k instead of the caps.

use super::fields::Fields;
use super::llama;
use super::names::{Names, GGUF, LLAMA};
use super::{rope, Family, Gguf};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{LocalAttention, ModelConfig, NormPlaces, QkNorm};
use crate::text::placeholder::shown;
use serde_json::json;

const SANDWICH: Names = Names { mlp_norm: "pre_feedforward_layernorm", ..LLAMA };

pub(super) const GEMMA: Family =
    Family { name: "gemma", config: gemma, names: LLAMA, gguf: Some(Gguf { name: "gemma", names: GGUF, interleaved: false }) };
pub(super) const GEMMA2: Family =
    Family { name: "gemma2", config: gemma2, names: SANDWICH, gguf: Some(Gguf { name: "gemma2", names: GGUF, interleaved: false }) };
pub(super) const GEMMA3: Family =
    Family { name: "gemma3_text", config: gemma3, names: SANDWICH, gguf: Some(Gguf { name: "gemma3", names: GGUF, interleaved: false }) };

/// Gemma 3 with its reader of images, of which the language model is taken.
pub(super) const GEMMA3_WITH_IMAGES: Family = Family {
    name: "gemma3",
    config: |fields| match fields.get("text_config") {
        Some(json) if !json.is_object() => Err(Error::expected(ErrorKind::BadFile, format_args!("{}: text_config", fields.place), shown(json), "an object")),
        Some(json) => gemma3(&Fields { json, place: &format!("{}: text_config", fields.place) }),
        None => gemma3(fields),
    },
    names: Names {
        prefixes: &["language_model.model.", "model.language_model."],
        others: &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."],
        unembeddings: &["language_model.lm_head"],
        ..SANDWICH
    },
    gguf: None,
};

fn gemma(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = llama::config(fields)?;
    let activation = fields.activation("hidden_activation", "gelu_pytorch_tanh")?;
    Ok(ModelConfig {
        norm_offset: true,
        activation,
        embedding_scale: (config.width as f64).sqrt(),
        tied: fields.flag("tie_word_embeddings", true)?,
        add_special: true,
        ..config
    })
}

/// What Gemma 2 and 3 have in common.
fn sandwich(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = gemma(fields)?;
    fields.refuse("use_bidirectional_attention", &[json!(false)])?;
    // llama.cpp's files leave it out; only the two of 27 B scale by other than the head's width.
    let by_head = if config.layers == 46 || config.layers == 62 { config.width / config.heads.max(1) } else { config.head_dim };
    let scalar = fields.real("query_pre_attn_scalar", by_head as f64)?;
    if scalar <= 0.0 {
        return Err(Error::expected(ErrorKind::BadConfig, format_args!("{}: query_pre_attn_scalar", fields.place), scalar, "a number above 0"));
    }
    Ok(ModelConfig {
        norm_places: NormPlaces::Sandwich,
        attention_scale: scalar.powf(-0.5),
        attention_cap: fields.optional_real("attn_logit_softcapping")?,
        logit_cap: fields.optional_real("final_logit_softcapping")?,
        ..config
    })
}

fn gemma2(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = sandwich(fields)?;
    let window = fields.optional("sliding_window")?.or(Some(4096));
    Ok(ModelConfig { local: fields.local(window, config.layers, config.context, |layer| layer % 2 == 0)?, ..config })
}

fn gemma3(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = sandwich(fields)?;
    let pattern = fields.optional("sliding_window_pattern")?.or(fields.optional("_sliding_window_pattern")?).unwrap_or(6).max(1);
    let local = fields.local(fields.optional("sliding_window")?, config.layers, usize::MAX, |layer| (layer + 1) % pattern != 0)?;
    let base = rope::local_base(fields)?.map_or_else(|| fields.real("rope_local_base_freq", 10_000.0), Ok)?;
    Ok(ModelConfig { qk_norm: Some(QkNorm::PerHead), local: local.map(|local| LocalAttention { base: Some(base), ..local }), ..config })
}
