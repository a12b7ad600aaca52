//! Phi-1, 1.5 and 2: LayerNorm, attention and MLP side by side behind one norm, rotation of a part
//! of each head, biases everywhere, the unembedding's too.

use super::fields::Fields;
use super::llama;
use super::names::{Names, Up, GGUF, LLAMA};
use super::{rope, Family, Gguf};
use crate::error::Result;
use crate::model::config::{Biases, ModelConfig, NormKind};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    name: "phi",
    config,
    names: Names {
        output: "self_attn.dense",
        mlp_norm: "input_layernorm",
        up: Up::Plain("mlp.fc1"),
        down: "mlp.fc2",
        final_norm: "final_layernorm",
        ..LLAMA
    },
    gguf: Some(Gguf { name: "phi2", names: Names { mlp_norm: "attn_norm", up: Up::Plain("ffn_up"), ..GGUF }, interleaved: false }),
};

fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.refuse("qk_layernorm", &[json!(false)])?;
    let config = llama::rotated(fields, rope::part(fields, 0.5)?, None)?;
    Ok(ModelConfig {
        norm: NormKind::Layer,
        norm_eps: fields.real("layer_norm_eps", 1e-5)?,
        parallel: true,
        activation: fields.activation("hidden_act", "gelu_new")?,
        gated: false,
        biases: Biases { unembedding: true, ..Biases::BLOCKS },
        special_token: config.special_token.or(fields.token("eos_token_id")?),
        ..config
    })
}
