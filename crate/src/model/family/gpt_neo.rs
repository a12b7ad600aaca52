//! GPT-Neo: GPT-2 with layers of local attention, unscaled scores, and q, k and v apart without
//! biases.

use super::fields::Fields;
use super::gpt2;
use super::names::{Names, Qkv};
use super::Family;
use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{Biases, LocalAttention, ModelConfig, MOST_LAYERS};
use crate::text::placeholder::shown;

pub(super) const FAMILY: Family = Family {
    name: "gpt_neo",
    config,
    names: Names {
        qkv: Qkv::Apart(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
        output: "attn.attention.out_proj",
        transposed: false,
        ..gpt2::NAMES
    },
    gguf: None,
};

fn config(fields: &Fields<'_>) -> Result<ModelConfig> {
    let (layers, context) = (fields.number("num_layers")?, fields.number("max_position_embeddings")?);
    let sizes = [layers, fields.number("hidden_size")?, fields.number("num_heads")?, context];
    let kinds = kinds(fields)?;
    let window = fields.optional("window_size")?.unwrap_or(256);
    Ok(ModelConfig {
        attention_scale: 1.0,
        local: (kinds.contains(&true) && window < context).then_some(LocalAttention { window, layers: kinds, base: None }),
        biases: Biases { qkv: false, ..Biases::BLOCKS },
        ..gpt2::learned(fields, sizes, fields.optional("intermediate_size")?)?
    })
}

/// Which layers are local: `attention_types` is a list of (kinds, how often they are repeated).
fn kinds(fields: &Fields<'_>) -> Result<Vec<bool>> {
    let read = |value: &serde_json::Value| {
        let mut layers = Vec::new();
        for part in value.as_array()? {
            let kinds = part.get(0)?.as_array()?.iter().map(|kind| Some(kind.as_str()? == "local")).collect::<Option<Vec<bool>>>()?;
            let times = usize::try_from(part.get(1)?.as_u64()?).ok()?;
            if layers.len() + kinds.len().checked_mul(times)? > MOST_LAYERS {
                return None;
            }
            layers.extend(kinds.repeat(times));
        }
        Some(layers)
    };
    let value = fields.get("attention_types");
    value.and_then(read).ok_or_else(|| {
        let place = format!("{}: attention_types", fields.place);
        let got = value.map_or("nothing".to_string(), shown);
        Error::expected(ErrorKind::BadFile, place, got, "a list like [[[\"global\", \"local\"], 6]]")
    })
}
