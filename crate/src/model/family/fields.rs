//! Fields of a configuration, with its path in the errors: a Hugging Face `config.json`, or a GGUF
//! header under the same names.

use crate::error::{Error, ErrorKind, Result};
use crate::model::config::{LocalAttention, MlpActivation, MOST_LAYERS};
use crate::text::placeholder::shown;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::{json, Map, Value as Json};

/// GGUF keys below the architecture's, and the names that families read.
const GGUF_KEYS: [(&str, &[&str]); 15] = [
    ("block_count", &["num_hidden_layers", "n_layer"]),
    ("embedding_length", &["hidden_size", "n_embd"]),
    ("feed_forward_length", &["intermediate_size", "n_inner"]),
    ("attention.head_count", &["num_attention_heads", "n_head"]),
    ("attention.head_count_kv", &["num_key_value_heads"]),
    ("attention.key_length", &["head_dim"]),
    ("context_length", &["max_position_embeddings", "n_positions"]),
    ("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    ("attention.layer_norm_epsilon", &["layer_norm_epsilon", "layer_norm_eps"]),
    ("use_parallel_residual", &["use_parallel_residual"]),
    ("rope.freq_base", &["rope_theta"]),
    ("rope.dimension_count", &["rotary_dim"]),
    ("attention.sliding_window", &["sliding_window"]),
    ("attn_logit_softcapping", &["attn_logit_softcapping"]),
    ("final_logit_softcapping", &["final_logit_softcapping"]),
];

/// A GGUF header's entries under the names that families read.
///
/// # Errors
/// `BadFile` for a number of the architecture's that is NaN or infinite.
pub(super) fn from_gguf(content: &Content, architecture: &str, place: &str) -> Result<Json> {
    let own = content.metadata.iter().filter(|(key, _)| key.strip_prefix(architecture).is_some_and(|rest| rest.starts_with('.')));
    for (key, value) in own {
        let number = match value {
            Value::F32(number) => f64::from(*number),
            Value::F64(number) => *number,
            _ => continue,
        };
        if !number.is_finite() {
            return Err(Error::expected(ErrorKind::BadFile, format_args!("{place}: {}", shown(key)), number, "a finite number"));
        }
    }
    let get = |key: &str| content.metadata.get(key).and_then(to_json);
    let mut fields = Map::new();
    for (key, names) in GGUF_KEYS {
        if let Some(value) = get(&format!("{architecture}.{key}")) {
            names.iter().for_each(|name| {
                fields.insert(name.to_string(), value.clone());
            });
        }
    }
    match get(&format!("{architecture}.rope.scaling.type")).as_ref().and_then(Json::as_str) {
        None | Some("none") => {}
        Some(kind) => {
            let scaling = |name: &str| get(&format!("{architecture}.rope.scaling.{name}"));
            let rule = json!({
                "rope_type": kind,
                "factor": scaling("factor"),
                "original_max_position_embeddings": scaling("original_context_length"),
                "beta_fast": scaling("yarn_beta_fast"),
                "beta_slow": scaling("yarn_beta_slow"),
            });
            fields.insert("rope_scaling".to_string(), rule);
        }
    }
    let vocab = content.tensor_infos.get("token_embd.weight").and_then(|info| info.shape.dims().first().copied());
    fields.insert("vocab_size".to_string(), json!(vocab));
    fields.insert("tie_word_embeddings".to_string(), json!(!content.tensor_infos.contains_key("output.weight")));
    fields.insert("add_special".to_string(), json!(crate::text::adds_bos(content)));
    fields.insert("bos_token_id".to_string(), json!(get("tokenizer.ggml.bos_token_id")));
    fields.insert("eos_token_id".to_string(), json!(get("tokenizer.ggml.eos_token_id")));
    Ok(fields.into())
}

fn to_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::F32(number) => json!(number),
        Value::F64(number) => json!(number),
        Value::I32(number) => json!(number),
        Value::I64(number) => json!(number),
        Value::Bool(flag) => json!(flag),
        Value::String(text) => json!(text),
        // One for each layer: no field that is read is a list, so it is refused with its values.
        Value::Array(list) => list.iter().take(100).map(to_json).collect::<Option<Vec<Json>>>()?.into(),
        other => json!(other.to_u64().ok()?),
    })
}

/// Fields of a configuration.
pub(super) struct Fields<'a> {
    pub json: &'a Json,
    pub place: &'a str,
}

impl<'a> Fields<'a> {
    /// The value of a field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&'a Json> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    fn read<T>(&self, field: &str, expected: &str, read: impl Fn(&Json) -> Option<T>) -> Result<Option<T>> {
        let wrong = |value: &Json| Error::expected(ErrorKind::BadFile, format_args!("{}: {field}", self.place), shown(value), expected);
        self.get(field).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    pub fn number(&self, field: &str) -> Result<usize> {
        self.optional(field)?.ok_or_else(|| Error::expected(ErrorKind::BadFile, format_args!("{}: {field}", self.place), "nothing", "a whole number"))
    }

    /// A whole number; above 2^40 is none that a model has.
    pub fn optional(&self, field: &str) -> Result<Option<usize>> {
        self.read(field, "a whole number, at most 2^40", |value| value.as_u64().filter(|number| *number <= 1 << 40).map(|number| number as usize))
    }

    pub fn real(&self, field: &str, default: f64) -> Result<f64> {
        Ok(self.optional_real(field)?.unwrap_or(default))
    }

    pub fn optional_real(&self, field: &str) -> Result<Option<f64>> {
        self.read(field, "a number", Json::as_f64)
    }

    pub fn reals(&self, field: &str) -> Result<Vec<f64>> {
        let list = self.read(field, "a list of numbers", |value| value.as_array()?.iter().map(Json::as_f64).collect())?;
        list.ok_or_else(|| Error::expected(ErrorKind::BadFile, format_args!("{}: {field}", self.place), "nothing", "a list of numbers"))
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool> {
        Ok(self.read(field, "true or false", Json::as_bool)?.unwrap_or(default))
    }

    pub fn text(&self, field: &str, default: &str) -> Result<String> {
        Ok(self.read(field, "a string", |value| value.as_str().map(str::to_string))?.unwrap_or_else(|| default.to_string()))
    }

    /// A token id, the first where there are several; `None` for none.
    pub fn token(&self, field: &str) -> Result<Option<u32>> {
        Ok(self.tokens(field)?.first().copied())
    }

    /// Token ids: a number or a list of them. −1 stands for none, as some files have it.
    pub fn tokens(&self, field: &str) -> Result<Vec<u32>> {
        let ids = |value: &Json| {
            let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let some = list.iter().filter(|id| !id.is_null() && id.as_i64() != Some(-1));
            some.map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<Vec<u32>>>()
        };
        Ok(self.read(field, "a token id or a list of them", ids)?.unwrap_or_default())
    }

    pub fn activation(&self, field: &str, default: &str) -> Result<MlpActivation> {
        match self.text(field, default)?.as_str() {
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(MlpActivation::GeluTanh),
            "gelu" => Ok(MlpActivation::Gelu),
            "relu" => Ok(MlpActivation::Relu),
            "silu" | "swish" => Ok(MlpActivation::Silu),
            other => {
                let place = format!("{}: {field}", self.place);
                Err(Error::expected(ErrorKind::Unsupported, place, shown(other), "gelu_new, gelu_pytorch_tanh, gelu, relu or silu"))
            }
        }
    }

    /// Layers with a window of this many keys: as `layer_types` lists them, or else by `default`.
    /// A window that the context never leaves is none, and so is 0 (llama.cpp's Phi-4).
    pub fn local(&self, window: Option<usize>, layers: usize, context: usize, default: impl Fn(usize) -> bool) -> Result<Option<LocalAttention>> {
        let Some(window) = window.filter(|window| (1..context).contains(window)) else { return Ok(None) };
        let listed = self.read("layer_types", "a list of sliding_attention and full_attention", |value| {
            let sliding = |kind: &Json| match kind.as_str()? {
                "sliding_attention" => Some(true),
                "full_attention" => Some(false),
                _ => None,
            };
            value.as_array()?.iter().map(sliding).collect::<Option<Vec<bool>>>()
        })?;
        let layers = listed.unwrap_or_else(|| (0..layers.min(MOST_LAYERS)).map(default).collect());
        Ok(layers.contains(&true).then_some(LocalAttention { window, layers, base: None }))
    }

    /// Refuses a field that asks for something the blocks do not do.
    pub fn refuse(&self, field: &str, allowed: &[Json]) -> Result<()> {
        match self.get(field) {
            Some(value) if !allowed.contains(value) => Err(Error::expected(
                ErrorKind::Unsupported,
                format_args!("{}: {field}", self.place),
                shown(value),
                allowed.iter().map(ToString::to_string).chain(["nothing".to_string()]).collect::<Vec<_>>().join(" or "),
            )),
            _ => Ok(()),
        }
    }
}
