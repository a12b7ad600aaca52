//! GPT-NeoX (Pythia): LayerNorm, attention and MLP side by side, rotation of a part of each head,
//! q, k and v fused head by head.

use super::fields::Fields;
use super::llama;
use super::names::{Names, Qkv, Up, GGUF, LLAMA};
use super::{rope, Family, Gguf};
use crate::error::Result;
use crate::model::config::{Biases, ModelConfig, NormKind};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    config,
    names: Names {
        prefixes: &["gpt_neox.", ""],
        embedding: "embed_in",
        qkv: Qkv::Heads("attention.query_key_value"),
        output: "attention.dense",
        up: Up::Plain("mlp.dense_h_to_4h"),
        down: "mlp.dense_4h_to_h",
        final_norm: "final_layer_norm",
        unembedding: "embed_out",
        ..LLAMA
    },
    gguf: Some(Gguf { name: "gptneox", names: Names { qkv: Qkv::Blocks("attn_qkv"), up: Up::Plain("ffn_up"), ..GGUF }, interleaved: false }),
};

fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    let part = rope::part(fields, fields.real("rotary_pct", 0.25)?)?;
    let base = fields.optional_real("rotary_emb_base")?;
    let attention = fields.flag("attention_bias", true)?;
    let config = llama::rotated(fields, part, base)?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_eps: fields.real("layer_norm_eps", 1e-5)?,
        parallel: fields.flag("use_parallel_residual", true)?,
        activation: fields.activation("hidden_act", "gelu")?,
        gated: false,
        biases: Biases { qkv: attention, output: attention, mlp: true, unembedding: false },
        ..config
    })
}
