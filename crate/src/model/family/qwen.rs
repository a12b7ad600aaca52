//! Qwen 2 and 2.5 (Llama with biases on q, k and v, windows in later layers) and Qwen 3 (without
//! the biases, with q and k normed head by head).

use super::fields::Fields;
use super::llama;
use super::names::{GGUF, LLAMA};
use super::{Family, Gguf};
use crate::error::Result;
use crate::model::config::{Biases, ModelConfig, QkNorm};

pub(super) const QWEN2: Family =
    Family { name: "qwen2", config: qwen2, names: LLAMA, gguf: Some(Gguf { name: "qwen2", names: GGUF, interleaved: false }) };
pub(super) const QWEN3: Family =
    Family { name: "qwen3", config: qwen3, names: LLAMA, gguf: Some(Gguf { name: "qwen3", names: GGUF, interleaved: false }) };

fn qwen2(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = windowed(fields)?;
    Ok(ModelConfig { biases: Biases { qkv: true, ..config.biases }, ..config })
}

fn qwen3(fields: &Fields<'_>) -> Result<ModelConfig> {
    Ok(ModelConfig { qk_norm: Some(QkNorm::PerHead), ..windowed(fields)? })
}

fn windowed(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = llama::config(fields)?;
    let window = if fields.flag("use_sliding_window", false)? { fields.optional("sliding_window")? } else { None };
    let first = fields.optional("max_window_layers")?.unwrap_or(0);
    let local = fields.local(window, config.layers, config.context, |layer| layer >= first)?;
    // Beginning and end are one token in the files that name only the end.
    let special_token = config.special_token.or(fields.token("eos_token_id")?);
    Ok(ModelConfig { local, special_token, ..config })
}
