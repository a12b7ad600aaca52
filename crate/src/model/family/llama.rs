//! Llama: RMSNorm, rotary positions, grouped queries, gated SiLU MLP. Hugging Face files rotate
//! halves; GGUF files store q and k permuted and rotate neighbours.

use super::{linear, norm, Fields, Parts};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{MlpActivation, ModelConfig, NormKind, Positions, RotaryScaling};
use crate::model::parts::{Layer, Mlp};
use crate::model::weights::Weights;
use candle_core::quantized::gguf_file::Content;
use candle_core::Device;
use serde_json::json;

/// Names of the tensors; `{}` is the layer.
pub(super) struct Names {
    embedding: &'static str,
    final_norm: &'static str,
    unembedding: &'static str,
    layer: &'static str,
    attn_norm: &'static str,
    attention: [&'static str; 4],
    mlp_norm: &'static str,
    mlp: [&'static str; 3],
}

pub(super) const HUGGING_FACE: Names = Names {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm",
    unembedding: "lm_head.weight",
    layer: "model.layers.",
    attn_norm: "input_layernorm",
    attention: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    mlp_norm: "post_attention_layernorm",
    mlp: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
};

pub(super) const GGUF: Names = Names {
    embedding: "token_embd.weight",
    final_norm: "output_norm",
    unembedding: "output.weight",
    layer: "blk.",
    attn_norm: "attn_norm",
    attention: ["attn_q", "attn_k", "attn_v", "attn_output"],
    mlp_norm: "ffn_norm",
    mlp: ["ffn_gate", "ffn_up", "ffn_down"],
};

pub(super) fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.refuse("hidden_act", &[json!("silu")])?;
    let (width, heads) = (fields.number("hidden_size")?, fields.number("num_attention_heads")?);
    let rope = fields.json.get("rope_parameters").and_then(|rope| rope.get("rope_theta")).and_then(|base| base.as_f64());
    Ok(ModelConfig {
        architecture: "llama".to_string(),
        layers: fields.number("num_hidden_layers")?,
        width,
        mlp_width: fields.number("intermediate_size")?,
        heads,
        kv_heads: fields.optional("num_key_value_heads")?.unwrap_or(heads),
        head_dim: fields.optional("head_dim")?.unwrap_or(width / heads.max(1)),
        vocab: fields.number("vocab_size")?,
        context: fields.number("max_position_embeddings")?,
        norm: NormKind::Rms,
        norm_eps: fields.real("rms_norm_eps", 1e-6)?,
        positions: Positions::Rotary { base: fields.real("rope_theta", rope.unwrap_or(10_000.0))?, interleaved: false, scaling: scaling(fields)? },
        activation: MlpActivation::Silu,
        gated: true,
        tied: fields.flag("tie_word_embeddings", false)?,
        special_token: fields.token("bos_token_id"),
        add_special: false,
        stop_tokens: fields.token("eos_token_id").into_iter().collect(),
    })
}

fn scaling(fields: &Fields<'_>) -> Result<Option<RotaryScaling>> {
    let Some(json) = fields.json.get("rope_scaling").filter(|scaling| !scaling.is_null()) else { return Ok(None) };
    let inner = Fields { json, place: &format!("{}: rope_scaling", fields.place) };
    inner.refuse("rope_type", &[json!("llama3")])?;
    Ok(Some(RotaryScaling {
        factor: inner.real("factor", 8.0)?,
        low: inner.real("low_freq_factor", 1.0)?,
        high: inner.real("high_freq_factor", 4.0)?,
        original_context: inner.number("original_max_position_embeddings")? as f64,
    }))
}

pub(super) fn config_gguf(content: &Content, place: &str) -> Result<ModelConfig> {
    let missing = |key: &str| Error::expected(ErrorKind::BadFile, format_args!("{place}: {key}"), "nothing", "a value");
    let number = |key: &str| -> Result<usize> {
        content.metadata.get(key).and_then(|value| value.to_u32().ok()).map(|value| value as usize).ok_or_else(|| missing(key))
    };
    let real = |key: &str| content.metadata.get(key).and_then(|value| value.to_f32().ok()).map(f64::from);
    let token = |key: &str| content.metadata.get(key).and_then(|value| value.to_u32().ok());
    let add_special = content.metadata.get("tokenizer.ggml.add_bos_token").and_then(|value| value.to_bool().ok()).unwrap_or(false);
    let embedding = content.tensor_infos.get(GGUF.embedding).ok_or_else(|| missing(GGUF.embedding))?;
    let (width, heads) = (number("llama.embedding_length")?, number("llama.attention.head_count")?);
    Ok(ModelConfig {
        architecture: "llama".to_string(),
        layers: number("llama.block_count")?,
        width,
        mlp_width: number("llama.feed_forward_length")?,
        heads,
        kv_heads: number("llama.attention.head_count_kv").unwrap_or(heads),
        head_dim: number("llama.attention.key_length").unwrap_or(width / heads.max(1)),
        vocab: embedding.shape.dims().first().copied().unwrap_or(0),
        context: number("llama.context_length")?,
        norm: NormKind::Rms,
        norm_eps: real("llama.attention.layer_norm_rms_epsilon").ok_or_else(|| missing("llama.attention.layer_norm_rms_epsilon"))?,
        positions: Positions::Rotary { base: real("llama.rope.freq_base").unwrap_or(10_000.0), interleaved: true, scaling: None },
        activation: MlpActivation::Silu,
        gated: true,
        tied: !content.tensor_infos.contains_key(GGUF.unembedding),
        // A file that says "no special token in front" means it: such a model was not trained with one.
        special_token: token("tokenizer.ggml.bos_token_id").filter(|_| add_special),
        add_special,
        stop_tokens: token("tokenizer.ggml.eos_token_id").into_iter().collect(),
    })
}

pub(super) fn load(config: &ModelConfig, weights: &Weights, names: &Names, device: &Device) -> Result<Parts> {
    let d = config.width;
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let layers = (0..config.layers)
        .map(|layer| {
            let at = |part: &str| format!("{}{layer}.{part}", names.layer);
            let [query, key, value, output] = names.attention;
            let [gate, up, down] = names.mlp;
            Ok(Layer {
                attn_norm: norm(config, weights, &at(names.attn_norm), device)?,
                query: linear(weights, &at(query), queries, d, device)?,
                key: linear(weights, &at(key), keys, d, device)?,
                value: linear(weights, &at(value), keys, d, device)?,
                output: linear(weights, &at(output), d, queries, device)?,
                mlp_norm: norm(config, weights, &at(names.mlp_norm), device)?,
                mlp: Mlp {
                    activation: config.activation,
                    gate: Some(linear(weights, &at(gate), config.mlp_width, d, device)?),
                    up: linear(weights, &at(up), config.mlp_width, d, device)?,
                    down: linear(weights, &at(down), d, config.mlp_width, device)?,
                },
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let embedding = weights.get(names.embedding, &[config.vocab, d], device)?;
    Ok(Parts {
        positions: None,
        layers,
        final_norm: norm(config, weights, names.final_norm, device)?,
        unembedding: if config.tied { embedding.clone() } else { weights.get(names.unembedding, &[config.vocab, d], device)? },
        embedding,
    })
}
