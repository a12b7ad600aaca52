//! OLMo 2: Llama with the norms after attention and MLP, and q and k normed over all heads.

use super::fields::Fields;
use super::llama;
use super::names::{GGUF, LLAMA};
use super::{Family, Gguf};
use crate::error::Result;
use crate::model::config::{ModelConfig, NormPlaces, QkNorm};

pub(super) const FAMILY: Family = Family { name: "olmo2", config, names: LLAMA, gguf: Some(Gguf { name: "olmo2", names: GGUF, interleaved: false }) };

fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = llama::config(fields)?;
    Ok(ModelConfig {
        norm_places: NormPlaces::Post,
        qk_norm: Some(QkNorm::Whole),
        special_token: config.special_token.or(fields.token("eos_token_id")?),
        ..config
    })
}
