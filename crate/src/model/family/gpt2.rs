//! GPT-2: LayerNorm, learned positions, tanh-GELU, one fused projection for q, k and v, stored
//! as `[in, out]`.

use super::fields::Fields;
use super::names::{Names, Qkv, Up, GGUF};
use super::{Family, Gguf};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{Biases, ModelConfig, NormKind, NormPlaces, Positions};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    name: "gpt2",
    config,
    names: NAMES,
    gguf: Some(Gguf { name: "gpt2", names: Names { qkv: Qkv::Blocks("attn_qkv"), up: Up::Plain("ffn_up"), ..GGUF }, interleaved: false }),
};

/// GPT-Neo shares all but the attention's.
pub(super) const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    embedding: "wte",
    positions: "wpe",
    layer: "h.",
    attn_norm: "ln_1",
    qkv: Qkv::Blocks("attn.c_attn"),
    query_norm: "",
    key_norm: "",
    output: "attn.c_proj",
    attn_post_norm: "",
    mlp_norm: "ln_2",
    up: Up::Plain("mlp.c_fc"),
    down: "mlp.c_proj",
    mlp_post_norm: "",
    final_norm: "ln_f",
    unembedding: "lm_head",
    unembeddings: &[],
    transposed: true,
    others: &[],
};

fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.refuse("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    fields.refuse("scale_attn_weights", &[json!(true)])?;
    let (width, heads) = (fields.number("n_embd")?, fields.number("n_head")?);
    if heads == 0 || width % heads != 0 {
        return Err(Error::expected(ErrorKind::BadConfig, format_args!("{}: n_head", fields.place), heads, format_args!("a divisor of n_embd = {width}")));
    }
    learned(fields, [fields.number("n_layer")?, width, heads, fields.number("n_positions")?], fields.optional("n_inner")?)
}

/// What GPT-2 and GPT-Neo have in common; `[layers, width, heads, context]`.
pub(super) fn learned(fields: &Fields<'_>, [layers, width, heads, context]: [usize; 4], mlp_width: Option<usize>) -> Result<ModelConfig> {
    let head_dim = width / heads.max(1);
    Ok(ModelConfig {
        architecture: String::new(),
        layers,
        width,
        mlp_width: mlp_width.unwrap_or(4 * width),
        heads,
        kv_heads: heads,
        head_dim,
        vocab: fields.number("vocab_size")?,
        context,
        norm: NormKind::Layer,
        norm_eps: fields.real("layer_norm_epsilon", 1e-5)?,
        norm_places: NormPlaces::Pre,
        norm_offset: false,
        parallel: false,
        positions: Positions::Learned,
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_cap: None,
        qk_norm: None,
        local: None,
        activation: fields.activation("activation_function", "gelu_new")?,
        gated: false,
        biases: Biases::BLOCKS,
        embedding_scale: 1.0,
        tied: fields.flag("tie_word_embeddings", true)?,
        logit_scale: 1.0,
        logit_cap: None,
        special_token: fields.token("bos_token_id")?.or(fields.token("eos_token_id")?),
        add_special: false,
        stop_tokens: fields.tokens("eos_token_id")?,
    })
}
