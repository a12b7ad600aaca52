//! circuit-tracer's CLT folder, which is also our own format.
//!
//! `config.yaml`; per source layer i `W_enc_i.safetensors` (`W_enc_i` `[F, d]`, `b_enc_i` `[F]`,
//! `b_dec_i` `[d]`, optional `threshold_i` `[F]`) and `W_dec_i.safetensors` (`W_dec_i`
//! `[F, L - i, d]`). Ours adds `cltlab.json` with the [`CltConfig`], which circuit-tracer ignores:
//! it keeps what the format has no place for (TopK, the model's fingerprint). Thresholds are real
//! values, normalisation is folded in. Skip connections, for which the format has no place either, are
//! `W_skip_i.safetensors` with `W_skip_i` `[d, d]` (input, output): circuit-tracer does not read them.

use super::per_layer;
use super::tensors::{self, Reader};
use crate::clt::decode::values;
use crate::clt::{Activation, Clt, CltConfig, Decoder, InputSite, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::hub::HubRepo;
use crate::model::OutputSite;
use crate::progress;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
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
    /// Writes the CLT into `folder` in circuit-tracer's format, plus `cltlab.json`.
    ///
    /// All files are written beside `folder` first and moved in when they are complete: a full disk
    /// leaves an earlier CLT there untouched. Other files in the folder stay.
    ///
    /// # Errors
    /// `DiskFull`, `MissingFile` or `Io`, with the path.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "clt".into());
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files::create_folder(parent)?;
        let staged = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        let done = self.write_files(&staged).and_then(|()| move_in(&staged, folder));
        let _ = std::fs::remove_dir_all(&staged);
        done
    }

    fn write_files(&self, folder: &Path) -> Result<()> {
        files::create_folder(folder)?;
        let config = self.config();
        let (f, d) = (config.features, config.width);
        if config.per_layer {
            self.write_per_layer(folder)?;
        }
        for l in (0..config.layers).filter(|_| !config.per_layer) {
            let mut encoder = vec![
                (format!("W_enc_{l}"), vec![f, d], self.encoder(l)),
                (format!("b_enc_{l}"), vec![f], self.encoder_bias(l)),
                (format!("b_dec_{l}"), vec![d], self.decoder_bias(l)),
            ];
            encoder.extend(self.threshold(l).map(|threshold| (format!("threshold_{l}"), vec![f], threshold)));
            write_tensors(&folder.join(format!("W_enc_{l}.safetensors")), &encoder)?;
            let decoder = [(format!("W_dec_{l}"), vec![f, config.slots(l), d], self.decoder(l))];
            write_tensors(&folder.join(format!("W_dec_{l}.safetensors")), &decoder)?;
            if let Some(skip) = self.skip(l) {
                write_tensors(&folder.join(skip_file(l)), &[(format!("W_skip_{l}"), vec![d, d], skip)])?;
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
        let text = serde_yaml_ng::to_string(&yaml).map_err(|error| Error::new(ErrorKind::BadConfig, format!("config.yaml: {error}")))?;
        files::write_atomic(folder.join("config.yaml"), text.as_bytes())?;
        files::write_json(folder.join("cltlab.json"), config)
    }

    /// Reads a CLT in circuit-tracer's format, ours or theirs, from a folder or from the hub
    /// (`owner/name`, `owner/name@revision`).
    ///
    /// Per-layer transcoders (`model_kind: transcoder_set`) are read too, see [`CltConfig::per_layer`].
    /// Without `cltlab.json` the shape comes from the tensors, and the activation is JumpReLU if
    /// `threshold_0` is there, else ReLU.
    ///
    /// # Errors
    /// `MissingFile`, `BadFile` (truncated, not YAML), `BadTensor` (name, shape), `Unsupported`
    /// (another kind of transcoder or hook), each with the file; `Network` for the hub.
    pub fn load(source: &str, device: &Device) -> Result<Clt> {
        let source = Source::open(source)?;
        let own = source.optional("cltlab.json");
        let mut config = match &own {
            Some(path) => files::read_json::<CltConfig>(path)?,
            None => foreign_config(&source)?,
        };
        config.validate().map_err(|error| error.context(source.name()))?;
        let (f, d) = (config.features, config.width);
        let jumps = matches!(config.activation, Activation::JumpRelu { .. });
        let mut task = progress::Task::new(format!("load CLT {}", source.name()), config.layers as u64, "layers");
        let mut layers = Vec::with_capacity(config.layers);
        if config.per_layer {
            layers = per_layer::layers(&source, &yaml(&source)?, &config, device, |done| task.advance(done as u64))?;
        }
        for l in layers.len()..config.layers {
            let place = source.file(&format!("W_enc_{l}.safetensors"))?;
            let encoder = Reader::open(&place)?;
            let decoder = Reader::open(source.file(&format!("W_dec_{l}.safetensors"))?)?;
            layers.push(Layer {
                encoder: Decoder::open(Reader::open(&place)?, format!("W_enc_{l}"), [f, d], device)?,
                encoder_bias: encoder.tensor(&format!("b_enc_{l}"), &[f], device)?,
                threshold: if jumps { Some(encoder.tensor(&format!("threshold_{l}"), &[f], device)?) } else { None },
                decoder: Decoder::open(decoder, format!("W_dec_{l}"), [f, config.slots(l), d], device)?,
                decoder_bias: encoder.tensor(&format!("b_dec_{l}"), &[d], device)?,
                skip: if config.skip { Some(Reader::open(source.file(&skip_file(l))?)?.tensor(&format!("W_skip_{l}"), &[d, d], device)?) } else { None },
            });
            task.advance(l as u64 + 1);
        }
        if let (Activation::JumpRelu { threshold, .. }, true) = (&mut config.activation, own.is_none()) {
            let first = layers[0].threshold.as_ref().map(Tensor::to_vec1::<f32>).transpose()?.unwrap_or_default();
            *threshold = (first.iter().map(|&t| f64::from(t)).sum::<f64>() / first.len().max(1) as f64).max(f64::MIN_POSITIVE);
        }
        Clt::from_layers(config, layers)
    }
}

/// Where a CLT's files are.
pub(super) enum Source {
    Folder(PathBuf),
    Hub(HubRepo, String),
}

impl Source {
    fn open(source: &str) -> Result<Self> {
        let folder = PathBuf::from(source);
        if folder.is_dir() {
            return Ok(Source::Folder(folder));
        }
        let parts = source.split('/').count();
        if parts == 2 && !source.starts_with(['.', '/', '~']) {
            return Ok(Source::Hub(HubRepo::open(source)?, source.to_string()));
        }
        Err(Error::new(ErrorKind::MissingFile, format!("{source}: no such folder"))
            .help("give a folder that Clt::save or circuit-tracer wrote, or a hub name owner/name"))
    }

    pub fn name(&self) -> String {
        match self {
            Source::Folder(folder) => folder.display().to_string(),
            Source::Hub(_, name) => name.clone(),
        }
    }

    pub fn file(&self, name: &str) -> Result<PathBuf> {
        match self {
            Source::Folder(folder) => Ok(folder.join(name)),
            Source::Hub(repo, _) => repo.file(name),
        }
    }

    /// A file that may be absent.
    pub fn optional(&self, name: &str) -> Option<PathBuf> {
        self.file(name).ok().filter(|path| path.exists())
    }
}

pub(super) fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, &Tensor)]) -> Result<()> {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape, tensor)| Ok((name.clone(), shape.clone(), tensor.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    let guards: Vec<_> = tensors.iter().map(|(_, _, tensor)| tensor.storage_and_layout()).collect();
    let named: Vec<tensors::Named<'_>> = tensors
        .iter()
        .zip(&guards)
        .map(|((name, shape, _), guard)| Ok((name.clone(), shape.clone(), values(guard)?)))
        .collect::<Result<_>>()?;
    tensors::write(path, &named, HashMap::new())
}

/// Moves the complete files of `staged` into `folder`, or `staged` itself when there is none.
fn move_in(staged: &Path, folder: &Path) -> Result<()> {
    if !folder.exists() {
        return std::fs::rename(staged, folder).map_err(|error| Error::io(folder, &error));
    }
    for entry in std::fs::read_dir(staged).map_err(|error| Error::io(staged, &error))? {
        let entry = entry.map_err(|error| Error::io(staged, &error))?;
        let to = folder.join(entry.file_name());
        std::fs::rename(entry.path(), &to).map_err(|error| Error::io(&to, &error))?;
    }
    Ok(())
}

/// The configuration of a CLT that another program wrote.
fn foreign_config(source: &Source) -> Result<CltConfig> {
    let path = source.file("config.yaml")?;
    let place = |field: &str| format!("{}: {field}", path.display());
    let yaml = yaml(source)?;
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
    let (layers, [features, width], activation, skip) = if per_layer { per_layer::shape(source, &yaml)? } else { cross_layer_shape(source)? };
    Ok(CltConfig { layers, width, features, activation, per_layer, skip, input, output, model_name: yaml.model_name, model_fingerprint: String::new() })
}

fn skip_file(layer: usize) -> String {
    format!("W_skip_{layer}.safetensors")
}

fn yaml(source: &Source) -> Result<Yaml> {
    let path = source.file("config.yaml")?;
    serde_yaml_ng::from_slice(&files::read(&path)?).map_err(|error| Error::new(ErrorKind::BadFile, format!("{}: {error}", path.display())))
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
