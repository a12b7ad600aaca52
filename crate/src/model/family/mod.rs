//! Families: how each architecture's files say what [`ModelConfig`] and the weights are.
//!
//! A family is data: which configuration keys to read and which tensor holds which part. The
//! blocks themselves know no family. A new one is a file like `olmo2.rs` and a line in [`FAMILIES`].

mod fields;
mod gemma;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod llama;
pub(crate) mod llama2c;
mod names;
mod olmo2;
mod phi;
mod phi3;
mod published;
mod qwen;
mod read;
mod rope;

use super::config::{ModelConfig, Positions};
use super::parts::{Layer, Norm};
use super::weights::Weights;
use crate::error::{Error, ErrorKind, Result};
use crate::text::placeholder::{shown, warn};
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use fields::Fields;
use names::Names;
pub(crate) use published::generation;

/// One architecture.
struct Family {
    /// `model_type` in `config.json`.
    name: &'static str,
    /// Reads its configuration. [`ModelConfig::architecture`] is filled in by the caller.
    config: fn(&Fields<'_>) -> Result<ModelConfig>,
    /// Names of its tensors in Hugging Face files.
    names: Names,
    /// How llama.cpp stores it, where that is known.
    gguf: Option<Gguf>,
}

/// A family in GGUF files.
struct Gguf {
    /// `general.architecture`.
    name: &'static str,
    names: Names,
    /// Queries and keys are stored for rotation of neighbours.
    interleaved: bool,
}

const FAMILIES: &[Family] = &[
    gpt2::FAMILY,
    gpt_neo::FAMILY,
    gpt_neox::FAMILY,
    llama::LLAMA,
    llama::MISTRAL,
    qwen::QWEN2,
    qwen::QWEN3,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    gemma::GEMMA3_WITH_IMAGES,
    phi::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
];

/// The architectures that can be loaded, by the name their files use.
pub const ARCHITECTURES: &[&str] = &{
    let mut names = [""; FAMILIES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FAMILIES[i].name;
        i += 1;
    }
    names
};

/// All tensors of a model. Maps, embedding and unembedding are in the model's dtype, the rest in f32.
pub(crate) struct Parts {
    pub embedding: Tensor,
    pub positions: Option<Tensor>,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    pub unembedding: Tensor,
    pub unembedding_bias: Option<Tensor>,
    /// Divide the rotary frequencies, `[rotated / 2]`.
    pub rope_divisors: Option<Tensor>,
    /// First rows of the embedding and of each layer's map down, as the files have them: the
    /// fingerprint, which does not depend on the dtype.
    pub sample: Vec<Vec<f32>>,
}

/// Reads a Hugging Face `config.json`.
pub(crate) fn config_from_json(json: &serde_json::Value, place: &str) -> Result<ModelConfig> {
    let kind = json.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("none");
    let family = FAMILIES.iter().find(|family| family.name == kind).ok_or_else(|| unknown(kind, ARCHITECTURES, place))?;
    quantized(json, place)?;
    let [older, newer] = ["rope_scaling", "rope_parameters"].map(|field| json.get(field).and_then(|table| table.as_object()).filter(|table| !table.is_empty()));
    if older.is_some() && newer.is_some() && older != newer {
        warn(format_args!("{place}: rope_scaling and rope_parameters differ; rope_scaling is used, as transformers does"));
    }
    family.read(&Fields { json, place })
}

/// Refuses quantised weights by the name of their method.
fn quantized(json: &serde_json::Value, place: &str) -> Result<()> {
    let inner = json.get("text_config");
    for field in ["quantization_config", "compression_config"] {
        let Some(found) = json.get(field).or(inner.and_then(|inner| inner.get(field))).filter(|found| !found.is_null()) else { continue };
        if !found.is_object() {
            return Err(Error::expected(ErrorKind::BadFile, format_args!("{place}: {field}"), shown(found), "an object with quant_method"));
        }
        let loads = ["load_in_8bit", "load_in_4bit"].iter().any(|flag| found.get(flag).and_then(|flag| flag.as_bool()) == Some(true));
        let named = ["quant_method", "quant_algo", "format"].iter().find_map(|name| found.get(name)?.as_str());
        let method = shown(named.unwrap_or(if loads { "bitsandbytes" } else { "an unnamed method" }));
        let message = format!("{place}: {field}: the weights are quantised by {method}, which is not read; expected weights in floating point");
        return Err(Error::new(ErrorKind::Unsupported, message).help("take the model that it was made from (bf16, f16 or f32), or a GGUF file of it"));
    }
    Ok(())
}

/// Whether a model that is said to have its unembedding tied has one of its own in the file, which transformers keeps.
pub(crate) fn has_own_head(config: &ModelConfig, weights: &Weights) -> Result<bool> {
    let family = FAMILIES.iter().find(|family| family.name == config.architecture);
    let Some(names) = family.map(|family| &family.names).filter(|_| config.tied && !matches!(weights, Weights::Gguf(_))) else { return Ok(false) };
    let head = format!("{}.weight", names.of(weights).unembedding);
    let embedding = names.prefixes.iter().map(|prefix| format!("{prefix}{}.weight", names.embedding)).find(|name| weights.contains(name));
    let Some(embedding) = embedding.filter(|embedding| weights.contains(&head) && weights.shape(embedding) == weights.shape(&head)) else { return Ok(false) };
    let [one, two] = [weights.read(&head, &Device::Cpu)?, weights.read(&embedding, &Device::Cpu)?];
    Ok(one.ne(&two)?.max_all()?.to_scalar::<u8>()? > 0)
}

/// Reads a GGUF header.
pub(crate) fn config_from_gguf(content: &Content, place: &str) -> Result<ModelConfig> {
    let architecture = content
        .metadata
        .get("general.architecture")
        .and_then(|value| value.to_string().ok())
        .ok_or_else(|| Error::expected(ErrorKind::BadFile, format_args!("{place}: general.architecture"), "nothing", "a name"))?;
    let known = FAMILIES.iter().find_map(|family| Some((family, family.gguf.as_ref().filter(|gguf| gguf.name == architecture)?)));
    let Some((family, gguf)) = known else {
        let names: Vec<&str> = FAMILIES.iter().filter_map(|family| Some(family.gguf.as_ref()?.name)).collect();
        return Err(unknown(architecture, &names, place));
    };
    let json = fields::from_gguf(content, architecture, place)?;
    let fields = Fields { json: &json, place };
    let mut config = family.read(&fields)?;
    // llama.cpp adds Gemma's 1 when it converts.
    config.norm_offset = false;
    if let Positions::Rotary { interleaved, .. } = &mut config.positions {
        *interleaved = gguf.interleaved;
    }
    // A file that says "no special token in front" means texts that are run. Contexts of a training begin with one as
    // attribution's prompts do, so that features are learnt where they are explained.
    config.add_special = fields.flag("add_special", false)?;
    config.special_token = fields.token("bos_token_id")?;
    Ok(config)
}

/// Reads all tensors, by the family's names.
pub(crate) fn load(config: &ModelConfig, weights: &Weights, device: &Device, dtype: DType) -> Result<Parts> {
    let family = FAMILIES.iter().find(|family| family.name == config.architecture);
    let names = family.and_then(|family| match weights {
        Weights::Gguf(_) => family.gguf.as_ref().map(|gguf| &gguf.names),
        _ => Some(&family.names),
    });
    let names = names.ok_or_else(|| unknown(&config.architecture, ARCHITECTURES, &weights.path().display().to_string()))?;
    read::parts(config, weights, names, device, dtype)
}

/// Whether one norm serves attention and MLP of a block (Phi-2).
pub(crate) fn one_norm(architecture: &str) -> bool {
    FAMILIES.iter().any(|family| family.name == architecture && family.names.attn_norm == family.names.mlp_norm)
}

impl Family {
    fn read(&self, fields: &Fields<'_>) -> Result<ModelConfig> {
        Ok(ModelConfig { architecture: self.name.to_string(), ..(self.config)(fields)? })
    }
}

fn unknown(got: &str, names: &[&str], place: &str) -> Error {
    let expected = format!("one of {}", names.join(", "));
    Error::expected(ErrorKind::UnknownArchitecture, format_args!("{place}: architecture"), format_args!("'{}'", shown(got)), expected)
}
