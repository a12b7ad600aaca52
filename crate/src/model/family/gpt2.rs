//! GPT-2: LayerNorm, learned positions, tanh-GELU, one fused projection for q, k and v, stored
//! as `[in, out]`.

use super::{norm, Fields, Parts};
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{MlpActivation, ModelConfig, NormKind, Positions};
use crate::model::parts::{Layer, Linear, Mlp};
use crate::model::weights::Weights;
use candle_core::Device;
use serde_json::json;

pub(super) fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.refuse("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    fields.refuse("scale_attn_weights", &[json!(true)])?;
    let width = fields.number("n_embd")?;
    let heads = fields.number("n_head")?;
    if heads == 0 || width % heads != 0 {
        return Err(Error::expected(ErrorKind::BadConfig, format_args!("{}: n_head", fields.place), heads, format_args!("a divisor of n_embd = {width}")));
    }
    let activation = match fields.text("activation_function", "gelu_new")?.as_str() {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => MlpActivation::GeluTanh,
        "gelu" => MlpActivation::Gelu,
        other => {
            let place = format!("{}: activation_function", fields.place);
            return Err(Error::expected(ErrorKind::Unsupported, place, other, "gelu_new or gelu"));
        }
    };
    let end = fields.token("eos_token_id");
    Ok(ModelConfig {
        architecture: "gpt2".to_string(),
        layers: fields.number("n_layer")?,
        width,
        mlp_width: fields.optional("n_inner")?.unwrap_or(4 * width),
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        vocab: fields.number("vocab_size")?,
        context: fields.number("n_positions")?,
        norm: NormKind::Layer,
        norm_eps: fields.real("layer_norm_epsilon", 1e-5)?,
        positions: Positions::Learned,
        activation,
        gated: false,
        tied: fields.flag("tie_word_embeddings", true)?,
        special_token: fields.token("bos_token_id").or(end),
        add_special: false,
        stop_tokens: end.into_iter().collect(),
    })
}

pub(super) fn load(config: &ModelConfig, weights: &Weights, device: &Device) -> Result<Parts> {
    let d = config.width;
    // Files made by the language-model class carry a prefix, those of the bare model do not.
    let prefix = if weights.contains("transformer.wte.weight") { "transformer." } else { "" };
    let conv = |name: String, inner: usize, out: usize| -> Result<Linear> {
        Ok(Linear {
            weight: weights.get(&format!("{name}.weight"), &[inner, out], device)?.t()?.contiguous()?,
            bias: Some(weights.get(&format!("{name}.bias"), &[out], device)?),
        })
    };
    let layers = (0..config.layers)
        .map(|layer| {
            let at = format!("{prefix}h.{layer}");
            let fused = conv(format!("{at}.attn.c_attn"), d, 3 * d)?;
            let part = |index: usize| -> Result<Linear> {
                Ok(Linear {
                    weight: fused.weight.narrow(0, index * d, d)?.contiguous()?,
                    bias: fused.bias.as_ref().map(|bias| bias.narrow(0, index * d, d)?.contiguous()).transpose()?,
                })
            };
            Ok(Layer {
                attn_norm: norm(config, weights, &format!("{at}.ln_1"), device)?,
                query: part(0)?,
                key: part(1)?,
                value: part(2)?,
                output: conv(format!("{at}.attn.c_proj"), d, d)?,
                mlp_norm: norm(config, weights, &format!("{at}.ln_2"), device)?,
                mlp: Mlp {
                    activation: config.activation,
                    gate: None,
                    up: conv(format!("{at}.mlp.c_fc"), d, config.mlp_width)?,
                    down: conv(format!("{at}.mlp.c_proj"), config.mlp_width, d)?,
                },
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let embedding = weights.get(&format!("{prefix}wte.weight"), &[config.vocab, d], device)?;
    Ok(Parts {
        positions: Some(weights.get(&format!("{prefix}wpe.weight"), &[config.context, d], device)?),
        layers,
        final_norm: norm(config, weights, &format!("{prefix}ln_f"), device)?,
        unembedding: if config.tied { embedding.clone() } else { weights.get("lm_head.weight", &[config.vocab, d], device)? },
        embedding,
    })
}
