//! circuit-tracer's CLT folder, which is also our own format.
//!
//! `config.yaml`; per source layer i `W_enc_i.safetensors` (`W_enc_i` `[F, d]`, `b_enc_i` `[F]`,
//! `b_dec_i` `[d]`, optional `threshold_i` `[F]`) and `W_dec_i.safetensors` (`W_dec_i`
//! `[F, L - i, d]`). Ours adds `cltlab.json` with the [`CltConfig`], which circuit-tracer ignores:
//! it keeps what the format has no place for (TopK, the model's fingerprint). Thresholds are real
//! values, normalisation is folded in. Skip connections, for which the format has no place either, are
//! `W_skip_i.safetensors` with `W_skip_i` `[d, d]` (input, output): circuit-tracer does not read them.

use super::{gemma_scope, gemma_scope_2, per_layer};
use super::import::CltLoadConfig;
use super::source::Source;
use super::staged::write_as;
use super::tensors::Reader;
use super::weights::{floats, mean, no_place};
use crate::clt::{Activation, Clt, CltConfig, Decoder, InputSite, Layer, Tied};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use crate::progress;
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

const KIND: &str = "cross_layer_transcoder";

/// `config.yaml`, as far as we read it; other keys are circuit-tracer's own bookkeeping.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Yaml {
    model_name: String,
    model_kind: String,
    feature_input_hook: String,
    feature_output_hook: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scan: Option<String>,
    /// Of PLTs: a file for each layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcoders: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
}

impl Clt {
    pub(super) fn write_files(&self, folder: &Path, dtype: DType) -> Result<()> {
        let config = self.config();
        let (f, d) = (config.features, config.width);
        if config.per_layer {
            self.write_per_layer(folder, dtype)?;
        }
        for l in (0..config.layers).filter(|_| !config.per_layer) {
            let mut encoder = vec![
                (format!("W_enc_{l}"), vec![f, d], self.encoder(l)?),
                (format!("b_enc_{l}"), vec![f], self.encoder_bias(l)?),
                (format!("b_dec_{l}"), vec![d], self.decoder_bias(l)?),
            ];
            encoder.extend(self.threshold(l)?.map(|threshold| (format!("threshold_{l}"), vec![f], threshold)));
            write_as(&folder.join(format!("W_enc_{l}.safetensors")), &encoder, dtype)?;
            let decoder = [(format!("W_dec_{l}"), vec![f, config.slots(l), d], self.decoder(l)?)];
            write_as(&folder.join(format!("W_dec_{l}.safetensors")), &decoder, dtype)?;
            if let Some(skip) = self.skip(l)? {
                write_as(&folder.join(skip_file(l)), &[(format!("W_skip_{l}"), vec![d, d], skip)], dtype)?;
            }
        }
        let k = if let (Activation::TopK { k }, true) = (&config.activation, config.per_layer) { Some(*k) } else { None };
        let yaml = Yaml {
            model_name: config.model_name.clone(),
            model_kind: if config.per_layer { per_layer::KIND } else { KIND }.into(),
            feature_input_hook: config.input.hook().into(),
            feature_output_hook: config.output.hook().into(),
            scan: None,
            transcoders: None,
            activation: k.map(|_| "topk".into()),
            k,
        };
        let text = serde_yaml_ng::to_string(&yaml).map_err(|error| Error::wrap(ErrorKind::BadConfig, "config.yaml", error))?;
        files::write_atomic(folder.join("config.yaml"), text.as_bytes())?;
        files::write_json(folder.join("cltlab.json"), config)
    }
}

/// Whether `source` is in this format, by its files.
pub(super) fn is_here(source: &Source) -> Result<bool> {
    Ok(source.has("cltlab.json")? || (source.has("config.yaml")? && !source.has("checkpoint.safetensors")?))
}

/// Writes what circuit-tracer itself reads; [`Clt::save`] keeps more.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let config = clt.config();
    if config.activation.is_ranked() && !(config.per_layer && matches!(config.activation, Activation::TopK { .. })) {
        return Err(no_place("circuit-tracer", "activation", config.activation.label(), "relu or jump_relu, which are what it has for CLTs")
            .help("Clt::save keeps it for use here; Clt::calibrate makes a JumpReLU of it"));
    }
    if config.skip && !config.per_layer {
        return Err(no_place("circuit-tracer", "skip", "skip connections", "none, for it does not read a CLT's").help("Clt::save keeps them for use here"));
    }
    clt.write_files(folder, DType::F32)
}

/// Reads a CLT in circuit-tracer's format, ours or theirs.
///
/// Per-layer transcoders (`model_kind: transcoder_set`) are read too, see [`CltConfig::per_layer`].
/// Without `cltlab.json` the shape comes from the tensors, and the activation is JumpReLU if
/// `threshold_0` is there, else ReLU.
pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    let own = source.optional("cltlab.json");
    let mut config = match &own {
        Some(path) => files::read_json_object::<CltConfig>(path)?,
        None => {
            let yaml = yaml(source)?;
            if let Some(clt) = gemma_scope(source, import, &yaml, device)? {
                return Ok(clt);
            }
            foreign_config(source, &yaml, import.fetch)?
        }
    };
    import.amend(&mut config);
    config.validate().map_err(|error| error.context(source.name()))?;
    let (f, d) = (config.features, config.width);
    let jumps = matches!(config.activation, Activation::JumpRelu { .. });
    let mut task = progress::Task::new(format!("load CLT {}", source.name()), config.layers as u64, "layers");
    let mut layers = Vec::new();
    if config.per_layer {
        layers = per_layer::layers(source, &yaml(source)?, import.fetch, &config, device, |done| task.advance(done as u64))?;
    }
    let home = Decoder::home(&config, device)?;
    for l in layers.len()..config.layers {
        let place = source.file(&format!("W_enc_{l}.safetensors"))?;
        let encoder = Reader::open(&place)?;
        let decoder = Reader::open(source.file(&format!("W_dec_{l}.safetensors"))?)?;
        // Each layer must be as the first: thresholds here and none there would be another activation in one of them.
        let threshold = format!("threshold_{l}");
        if !jumps && encoder.shape(&threshold).is_some() {
            return Err(Error::expected(ErrorKind::BadTensor, format_args!("{}: {threshold}", place.display()), "present", "missing")
                .help("every layer must have thresholds, or none (in a folder of ours, cltlab.json says which)"));
        }
        if encoder.shape(&format!("W_enc_{l}")).is_some() {
            encoder.only(&[&format!("W_enc_{l}"), &format!("b_enc_{l}"), &format!("b_dec_{l}"), &threshold])?;
        }
        // Another layer's file lacks this one's tensors, which is what is said then.
        if decoder.shape(&format!("W_dec_{l}")).is_some() {
            decoder.only(&[&format!("W_dec_{l}")])?;
        }
        if own.is_none() && source.has(&skip_file(l))? != config.skip {
            let (got, expected) = if config.skip { ("missing", "present") } else { ("present", "missing") };
            return Err(Error::expected(ErrorKind::BadFile, format_args!("{}/{}", source.name(), skip_file(l)), got, expected)
                .help("every layer must have a skip connection, or none"));
        }
        layers.push(Layer {
            encoder: Decoder::open(Reader::open(&place)?, format!("W_enc_{l}"), [f, d], device)?,
            encoder_bias: encoder.tensor(&format!("b_enc_{l}"), &[f], device)?,
            threshold: if jumps { Some(encoder.tensor(&threshold, &[f], device)?) } else { None },
            decoder: Decoder::open(decoder, format!("W_dec_{l}"), [f, config.slots(l), d], &home)?,
            decoder_bias: encoder.tensor(&format!("b_dec_{l}"), &[d], device)?,
            skip: if config.skip { Some(Reader::open(source.file(&skip_file(l))?)?.tensor(&format!("W_skip_{l}"), &[d, d], device)?) } else { None },
        });
        task.advance(l as u64 + 1);
    }
    if let (Activation::JumpRelu { threshold, .. }, true) = (&mut config.activation, own.is_none()) {
        *threshold = mean(&layers[0].threshold.as_ref().map(floats).transpose()?.unwrap_or_default());
    }
    Clt::from_layers(config, layers)
}

/// The configuration of a CLT that another program wrote.
fn foreign_config(source: &Source, yaml: &Yaml, fetch: bool) -> Result<CltConfig> {
    let (per_layer, input, output) = kind_and_sites(source, yaml)?;
    let (layers, [features, width], activation, skip) = if per_layer { per_layer::shape(source, yaml, fetch)? } else { cross_layer_shape(source)? };
    Ok(CltConfig { layers, width, features, activation, per_layer, skip, tied: Tied::No, input, output, model_name: yaml.model_name.clone(), model_fingerprint: String::new() })
}

/// Whether it is a PLT, and where it reads and writes.
fn kind_and_sites(source: &Source, yaml: &Yaml) -> Result<(bool, InputSite, OutputSite)> {
    let place = |field: &str| format!("{}/config.yaml: {field}", source.name());
    let per_layer = yaml.model_kind == per_layer::KIND;
    if yaml.model_kind != KIND && !per_layer {
        return Err(Error::expected(ErrorKind::Unsupported, place("model_kind"), &yaml.model_kind, format_args!("{KIND} or {}", per_layer::KIND)));
    }
    let input = InputSite::from_hook(&yaml.feature_input_hook).ok_or_else(|| {
        Error::expected(ErrorKind::Unsupported, place("feature_input_hook"), &yaml.feature_input_hook, "hook_resid_mid, mlp.hook_in or ln2.hook_normalized")
    })?;
    let output = OutputSite::from_hook(&yaml.feature_output_hook).ok_or_else(|| {
        Error::expected(ErrorKind::Unsupported, place("feature_output_hook"), &yaml.feature_output_hook, "hook_mlp_out or mlp.hook_out")
    })?;
    Ok((per_layer, input, output))
}

/// Gemma Scope's own files, where `config.yaml` lists them. circuit-tracer goes by the repository's name;
/// here it is what the files hold.
fn gemma_scope(source: &Source, import: &CltLoadConfig, yaml: &Yaml, device: &Device) -> Result<Option<Clt>> {
    if yaml.transcoders.is_none() {
        return Ok(None);
    }
    let files = per_layer::files(source, yaml, import.fetch)?;
    match files.first() {
        Some(first) if gemma_scope::holds(first)? => {}
        _ => return Ok(None),
    }
    let (per_layer, input, output) = kind_and_sites(source, yaml)?;
    let count = files.len();
    let layer = |(l, path): (usize, &PathBuf)| if per_layer { gemma_scope::transcoder(path) } else { gemma_scope_2::cross_layer(path, l, count) };
    let layers = files.iter().enumerate().map(layer).collect::<Result<_>>()?;
    let config = CltConfig { per_layer, input, output, model_name: yaml.model_name.clone(), ..CltConfig::default() };
    gemma_scope::of_layers(source, import, layers, config, device).map(Some)
}

fn skip_file(layer: usize) -> String {
    format!("W_skip_{layer}.safetensors")
}

fn yaml(source: &Source) -> Result<Yaml> {
    let path = source.file("config.yaml")?;
    let value = files::read_yaml(&path)?;
    if !value.is_mapping() {
        return Err(Error::expected(ErrorKind::BadFile, path.display(), "no mapping", "model_kind, model_name and the hooks, each with its value"));
    }
    serde_yaml_ng::from_value(value).map_err(|error| Error::wrap(ErrorKind::BadFile, path.display(), error))
}

fn cross_layer_shape(source: &Source) -> Result<(usize, [usize; 2], Activation, bool)> {
    let encoder = Reader::open(source.file("W_enc_0.safetensors")?)?;
    let decoder = Reader::open(source.file("W_dec_0.safetensors")?)?;
    let shape = decoder.shape("W_dec_0").unwrap_or_default();
    let [features, layers, width] = shape[..] else {
        let place = format!("{}/W_dec_0.safetensors: W_dec_0", source.name());
        return Err(Error::expected(ErrorKind::BadTensor, place, format_args!("shape {shape:?}"), "[features, layers, width]"));
    };
    let activation = match encoder.shape("threshold_0") {
        Some(_) => Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 },
        None => Activation::Relu,
    };
    Ok((layers, [features, width], activation, source.optional(&skip_file(0)).is_some()))
}
