//! Llama, and Mistral with its window: RMSNorm, rotary positions, grouped queries, gated SiLU MLP.
//! Most later families start from this. Hugging Face files rotate halves; llama.cpp permutes q and k
//! of these two and rotates neighbours.

use super::fields::Fields;
use super::names::{GGUF, LLAMA as NAMES};
use super::{rope, Family, Gguf};
use crate::error::Result;
use crate::model::config::{Biases, ModelConfig, NormKind, NormPlaces, Positions, RotaryScaling};

pub(super) const LLAMA: Family = Family { name: "llama", config, names: NAMES, gguf: Some(Gguf { name: "llama", names: GGUF, interleaved: true }) };

/// llama.cpp calls it llama too.
pub(super) const MISTRAL: Family = Family { name: "mistral", config: mistral, names: NAMES, gguf: None };

/// What Llama's keys say.
pub(super) fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    rotated(fields, rope::part(fields, 1.0)?, None)
}

/// As [`config`], with the part of each head that is rotated, 0 to 1, and a base under another name.
pub(super) fn rotated(fields: &Fields<'_>, part: f64, base: Option<f64>) -> Result<ModelConfig> {
    let (width, heads) = (fields.number("hidden_size")?, fields.number("num_attention_heads")?);
    let head_dim = fields.optional("head_dim")?.unwrap_or(width / heads.max(1));
    let (attention, mlp) = (fields.flag("attention_bias", false)?, fields.flag("mlp_bias", false)?);
    let base = rope::base(fields)?.or(base).unwrap_or(10_000.0);
    let rotated = fields.optional("rotary_dim")?.unwrap_or((head_dim as f64 * part) as usize);
    let (scaling, longest) = (rope::scaling(fields, base, rotated)?, fields.number("max_position_embeddings")?);
    let trained = match scaling {
        Some(RotaryScaling::LongRope { .. }) => rope::original_context(fields, longest)?,
        _ => longest,
    };
    Ok(ModelConfig {
        architecture: String::new(),
        layers: fields.number("num_hidden_layers")?,
        width,
        mlp_width: fields.number("intermediate_size")?,
        heads,
        kv_heads: fields.optional("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocab: fields.number("vocab_size")?,
        context: trained.min(longest),
        norm: NormKind::Rms,
        norm_eps: fields.real("rms_norm_eps", 1e-6)?,
        norm_places: NormPlaces::Pre,
        norm_offset: false,
        parallel: false,
        positions: Positions::Rotary {
            base,
            interleaved: false,
            rotated,
            scaling,
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
        special_token: fields.token("bos_token_id")?,
        add_special: false,
        stop_tokens: fields.tokens("eos_token_id")?,
    })
}

fn mistral(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = config(fields)?;
    let local = fields.local(fields.optional("sliding_window")?, config.layers, config.context, |_| true)?;
    Ok(ModelConfig { local, ..config })
}
