//! Phi-3: Llama with q, k and v in one tensor, gate and up in another, and a window.

use super::fields::Fields;
use super::llama;
use super::names::{Names, Qkv, Up, GGUF, LLAMA};
use super::{Family, Gguf};
use crate::error::Result;
use crate::model::config::ModelConfig;

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    config,
    names: Names { qkv: Qkv::Blocks("self_attn.qkv_proj"), up: Up::Blocks("mlp.gate_up_proj"), ..LLAMA },
    gguf: Some(Gguf {
        name: "phi3",
        names: Names { qkv: Qkv::Blocks("attn_qkv"), up: Up::Blocks("ffn_up"), ..GGUF },
        interleaved: false,
    }),
};

fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    let config = llama::config(fields)?;
    let local = fields.local(fields.optional("sliding_window")?, config.layers, config.context, |_| true)?;
    Ok(ModelConfig { local, ..config })
}
