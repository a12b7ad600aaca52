//! SAELens' transcoders: a folder a layer.
//!
//! `cfg.json` (`architecture`, `d_in`, `d_out`, `d_sae`, `metadata.hook_name` and `hook_name_out`) and
//! `sae_weights.safetensors`: `W_enc` `[d, F]`, `b_enc`, `W_dec` `[F, d]`, `b_dec`, `threshold` `[F]`, `W_skip`
//! `[out, in]`. A feature is active above its threshold and above 0. The layer is the hook's.
//!
//! Source: SAELens 6.54.12, classes `Transcoder`, `SkipTranscoder`, `JumpReLUTranscoder` and
//! `JumpReLUSkipTranscoder`. Refused: autoencoders, normalisation of each token by itself; on export CLTs and TopK.

use super::import::CltLoadConfig;
use super::sites;
use super::source::{layer_number, Source};
use super::staged::write_owned;
use super::weights::{assemble, no_place, positive, thresholds, turned, Tensors};
use crate::activations::InputSite;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use candle_core::Device;
use std::path::{Path, PathBuf};

const NAME: &str = "saelens";
const WEIGHTS: &str = "sae_weights.safetensors";

#[derive(serde::Deserialize)]
struct Config {
    architecture: String,
    d_in: usize,
    #[serde(default)]
    d_out: Option<usize>,
    d_sae: usize,
    #[serde(default)]
    apply_b_dec_to_input: bool,
    #[serde(default = "none")]
    normalize_activations: String,
    #[serde(default = "none")]
    reshape_activations: String,
    #[serde(default, deserialize_with = "metadata")]
    metadata: Metadata,
    /// Before version 6 these stood here.
    #[serde(flatten)]
    old: Metadata,
}

#[derive(Default, serde::Deserialize)]
struct Metadata {
    model_name: Option<String>,
    hook_name: Option<String>,
    hook_name_out: Option<String>,
    /// The sites in the model's own modules: where they are given they say more than hooks do, for
    /// Gemma 3's transcoders have `hook_mlp_in` for a value after the norm.
    hf_hook_name: Option<String>,
    hf_hook_name_out: Option<String>,
}

/// The fields of `metadata`, by their names: a list is not taken for them in their order.
fn metadata<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Metadata, D::Error> {
    use serde::de::Error;
    let value = <serde_json::Value as serde::Deserialize>::deserialize(from)?;
    if !value.is_object() {
        return Err(D::Error::custom(format!("metadata: got {}, expected an object", crate::files::names::shown(&value.to_string()))));
    }
    serde_json::from_value(value).map_err(|error| D::Error::custom(format!("metadata: {error}")))
}

fn none() -> String {
    "none".into()
}

fn config(weights: &Path) -> Result<Config> {
    let mut config: Config = files::read_json_object(weights.with_file_name("cfg.json"))?;
    let old = std::mem::take(&mut config.old);
    let new = &mut config.metadata;
    new.model_name = new.model_name.take().or(old.model_name);
    new.hook_name = new.hook_name.take().or(old.hook_name);
    new.hook_name_out = new.hook_name_out.take().or(old.hook_name_out);
    new.hf_hook_name = new.hf_hook_name.take().or(old.hf_hook_name);
    new.hf_hook_name_out = new.hf_hook_name_out.take().or(old.hf_hook_name_out);
    Ok(config)
}

fn layer_files(source: &Source) -> Result<Vec<PathBuf>> {
    source.layer_files_by(|name| name == WEIGHTS, |path| Ok(config(path)?.metadata.hook_name.as_deref().and_then(layer_number)))
}

pub(super) fn is_here(source: &Source) -> Result<bool> {
    Ok(!source.find(|name| name == WEIGHTS)?.is_empty())
}

pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    let files = layer_files(source)?;
    let Some(first) = files.first() else {
        source.refuse_pickles()?;
        return Err(Error::new(ErrorKind::MissingFile, format!("{}: no {WEIGHTS} in a folder of a layer", source.name())));
    };
    let cfg = config(first)?;
    let (f, d) = (cfg.d_sae, cfg.d_in);
    let (jumps, skips) = (cfg.architecture.starts_with("jumprelu"), cfg.architecture.contains("skip"));
    let (input, output) = sites_of(import, &source.name(), &cfg.metadata)?;
    let mut shape = CltConfig {
        layers: files.len(),
        width: d,
        features: f,
        activation: if jumps { Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 } } else { Activation::Relu },
        per_layer: true,
        skip: skips,
        input,
        output,
        model_name: cfg.metadata.model_name.clone().unwrap_or_default(),
        ..CltConfig::default()
    };
    import.amend(&mut shape);
    shape.validate().map_err(|error| error.context(source.name()))?;
    let layer = |path: &PathBuf| -> Result<LayerWeights> {
        let (own, place) = (config(path)?, path.with_file_name("cfg.json").display().to_string());
        check(&own, &cfg, &place)?;
        let found = sites_of(import, &place, &own.metadata)?;
        if found != (input, output) {
            let show = |(input, output): (InputSite, OutputSite)| format!("{} to {}", input.hook(), output.hook());
            return Err(Error::expected(ErrorKind::Unsupported, format_args!("{place}: hook_name and hook_name_out"), show(found), format_args!("{}, as in the first layer", show((input, output)))));
        }
        let tensors = Tensors::open(path)?;
        let weights = LayerWeights {
            encoder: turned(&tensors.take("W_enc", &[d, f])?)?,
            encoder_bias: tensors.take("b_enc", &[f])?,
            threshold: if jumps { Some(positive(&tensors.take("threshold", &[f])?)?) } else { None },
            decoder: tensors.take("W_dec", &[f, d])?.unsqueeze(1)?,
            decoder_bias: tensors.take("b_dec", &[d])?,
            skip: if skips { Some(turned(&tensors.take("W_skip", &[d, d])?)?) } else { None },
        };
        tensors.finish(&[])?;
        Ok(weights)
    };
    assemble(shape, files.iter().map(layer).collect::<Result<_>>()?, device)
}

/// Where a layer reads and writes. Both names must be of one layer.
fn sites_of(import: &CltLoadConfig, place: &str, said: &Metadata) -> Result<(InputSite, OutputSite)> {
    let reads = said.hf_hook_name.as_deref().or(said.hook_name.as_deref());
    let writes = said.hf_hook_name_out.as_deref().or(said.hook_name_out.as_deref());
    let names = [&said.hook_name, &said.hook_name_out, &said.hf_hook_name, &said.hf_hook_name_out];
    let mut layers = names.into_iter().flatten().filter_map(|name| layer_number(name));
    if let Some(first) = layers.next() {
        if let Some(other) = layers.find(|layer| *layer != first) {
            return Err(Error::expected(ErrorKind::Unsupported, format_args!("{place}: hooks"), format_args!("layers {first} and {other}"), "one layer: a transcoder maps an MLP's input to its own output"));
        }
    }
    sites::both(import, place, reads, writes)
}

/// What of a layer's configuration cannot be read, or differs from the first layer's.
fn check(cfg: &Config, first: &Config, place: &str) -> Result<()> {
    let refuse = |field: &str, got: &str, expected: &str| Err(Error::expected(ErrorKind::Unsupported, format_args!("{place}: {field}"), got, expected));
    if !["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"].contains(&cfg.architecture.as_str()) {
        return refuse("architecture", &cfg.architecture, "a transcoder: transcoder, skip_transcoder, jumprelu_transcoder or jumprelu_skip_transcoder");
    }
    if cfg.apply_b_dec_to_input {
        return refuse("apply_b_dec_to_input", "true", "false");
    }
    // With the second the program too takes its input as it is: the factor is folded in when it saves.
    if !["none", "expected_average_only_in"].contains(&cfg.normalize_activations.as_str()) {
        return refuse("normalize_activations", &cfg.normalize_activations, "none: no other is the same for every token");
    }
    if cfg.reshape_activations != "none" {
        return refuse("reshape_activations", &cfg.reshape_activations, "none");
    }
    if cfg.metadata.model_name != first.metadata.model_name {
        let show = |c: &Config| c.metadata.model_name.clone().unwrap_or_else(|| "none".into());
        return refuse("model_name", &show(cfg), &format!("{}, as in the first layer", show(first)));
    }
    if (cfg.d_in, cfg.d_out.unwrap_or(cfg.d_in), cfg.d_sae) != (first.d_in, first.d_in, first.d_sae) || cfg.architecture != first.architecture {
        let show = |c: &Config| format!("{} of {} to {} by {}", c.architecture, c.d_in, c.d_out.unwrap_or(c.d_in), c.d_sae);
        return Err(Error::expected(ErrorKind::Unsupported, place, show(cfg), format_args!("{}, as wide out as in, in every layer", show(first))));
    }
    Ok(())
}

/// A folder a layer, of a PLT.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let c = clt.config();
    if !c.per_layer {
        return Err(no_place(NAME, "per_layer", "decoders to later layers", "one transcoder a layer"));
    }
    let jumps = matches!(c.activation, Activation::JumpRelu { .. });
    let architecture = match (jumps, c.skip) {
        (false, false) => "transcoder",
        (false, true) => "skip_transcoder",
        (true, false) => "jumprelu_transcoder",
        (true, true) => "jumprelu_skip_transcoder",
    };
    for l in 0..c.layers {
        let cuts = thresholds(clt, l, NAME)?;
        let mut tensors = vec![
            ("W_enc".to_string(), turned(clt.encoder(l)?)?),
            ("b_enc".to_string(), clt.encoder_bias(l)?.clone()),
            ("W_dec".to_string(), clt.decoder(l)?.squeeze(1)?),
            ("b_dec".to_string(), clt.decoder_bias(l)?.clone()),
        ];
        if jumps {
            tensors.push(("threshold".to_string(), cuts));
        }
        if let Some(skip) = clt.skip(l)? {
            tensors.push(("W_skip".to_string(), turned(skip)?));
        }
        let place = folder.join(format!("layer_{l}"));
        write_owned(&place.join(WEIGHTS), &tensors)?;
        let config = serde_json::json!({
            "architecture": architecture, "d_in": c.width, "d_out": c.width, "d_sae": c.features, "dtype": "float32", "device": "cpu",
            "apply_b_dec_to_input": false, "normalize_activations": "none", "reshape_activations": "none",
            "metadata": {
                "model_name": c.model_name, "hook_name": format!("blocks.{l}.{}", c.input.hook()), "hook_name_out": format!("blocks.{l}.{}", c.output.hook()),
            },
        });
        files::write_json(place.join("cfg.json"), &config)?;
    }
    Ok(())
}
