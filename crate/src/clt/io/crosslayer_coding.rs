//! crosslayer-coding's run folder.
//!
//! `cfg.json`; `clt_checkpoint_latest.safetensors`, `model.safetensors` or `latest/model.safetensors`, else
//! the highest step's. Per source l `encoder_module.encoders.{l}.weight` `[F, d]` and `.bias_param`; per pair
//! `decoder_module.decoders.{s}->{t}.weight` `[d, F]` and `.bias_param` (tied: `decoders.{l}`, of the source or of
//! the target); `theta_manager.log_threshold` `[L, F]`; `skip_weights` `[out, in]`. A feature is active
//! at its threshold too. `norm_stats.json` lies with the activations and has to be copied here.
//!
//! Source: curt-tigges/crosslayer-coding at 9499108. Refused: TopK and BatchTopK, which rank
//! pre-activations standardised over a batch and across layers; skips from one layer to another; offsets of active
//! features that differ between targets.

use super::import::CltLoadConfig;
use super::source::Source;
use super::staged::write_owned;
use super::weights::{assemble, exponential, fold, joined, log_thresholds, no_place, summed, turned, Norm, Tensors};
use super::sites;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const NAME: &str = "crosslayer-coding";

/// `cfg.json`, as far as it says what the weights mean.
#[derive(serde::Serialize, serde::Deserialize)]
struct Config {
    num_features: usize,
    num_layers: usize,
    d_model: usize,
    model_name: Option<String>,
    #[serde(default)]
    normalization_method: Normalization,
    #[serde(default = "jumprelu")]
    activation_fn: String,
    #[serde(default)]
    decoder_tying: Tying,
    #[serde(default)]
    enable_feature_offset: bool,
    #[serde(default)]
    enable_feature_scale: bool,
    #[serde(default)]
    skip_connection: bool,
    mlp_input_template: Option<String>,
    mlp_output_template: Option<String>,
    tl_input_template: Option<String>,
    tl_output_template: Option<String>,
    /// Of older runs.
    #[serde(default, skip_serializing)]
    sqrt_d_model_normalize: bool,
}

fn jumprelu() -> String {
    "jumprelu".into()
}

#[derive(Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Normalization {
    #[default]
    None,
    #[serde(alias = "auto", alias = "estimated_mean_std")]
    MeanStd,
    #[serde(alias = "auto_sqrt_d_model", alias = "estimated_mean_std_sqrt_d_model")]
    SqrtDModel,
}

#[derive(Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tying {
    #[default]
    None,
    PerSource,
    PerTarget,
}

#[derive(serde::Deserialize)]
struct Stats {
    inputs: Moments,
    targets: Moments,
}

#[derive(serde::Deserialize)]
struct Moments {
    mean: Vec<f64>,
    std: Vec<f64>,
}

/// The weights' file.
fn weights(source: &Source) -> Result<Option<PathBuf>> {
    for name in ["clt_checkpoint_latest.safetensors", "model.safetensors", "latest/model.safetensors"] {
        if source.has(name)? {
            return source.file(name).map(Some);
        }
    }
    let steps = source.find(|name| (name.starts_with("clt_checkpoint_") || name == "model.safetensors") && name.ends_with(".safetensors"))?;
    let step = |path: &PathBuf| {
        let text = path.to_string_lossy().into_owned();
        let rest = ["clt_checkpoint_", "step_"].iter().find_map(|word| text.rsplit_once(word)).map_or("", |(_, rest)| rest);
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().ok()
    };
    Ok(steps.into_iter().filter(|path| step(path).is_some()).max_by_key(step))
}

pub(super) fn is_here(source: &Source) -> Result<bool> {
    Ok(source.has("cfg.json")? && !source.has("sae_weights.safetensors")? && !source.has("sae.safetensors")? && weights(source)?.is_some())
}

pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    let path = source.file("cfg.json")?;
    let cfg: Config = files::read_json_object(&path)?;
    let place = path.display().to_string();
    let (l, f, d) = (cfg.num_layers, cfg.num_features, cfg.d_model);
    let reads = cfg.mlp_input_template.as_deref().or(cfg.tl_input_template.as_deref());
    let writes = cfg.mlp_output_template.as_deref().or(cfg.tl_output_template.as_deref());
    let (input, output) = sites::both(import, &place, reads, writes)?;
    let Some(path) = weights(source)? else {
        source.refuse_pickles()?;
        return Err(Error::new(ErrorKind::MissingFile, format!("{}: no clt_checkpoint_latest.safetensors or model.safetensors", source.name())));
    };
    let tensors = Tensors::open(path)?;
    // What is made for each layer is made for layers that the weights have.
    if l > 0 && !tensors.has(&format!("encoder_module.encoders.{}.weight", l - 1)) {
        return Err(Error::expected(ErrorKind::BadFile, format_args!("{place}: num_layers"), l, "as many as there are encoders in the weights"));
    }
    let mut activation = match cfg.activation_fn.as_str() {
        "relu" => Activation::Relu,
        "jumprelu" => Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 },
        kind @ ("topk" | "batchtopk") => {
            return Err(Error::expected(ErrorKind::Unsupported, format_args!("{place}: activation_fn"), kind, "relu or jumprelu")
                .help("it ranks pre-activations standardised over a batch and across layers; convert it with the program's own scripts/convert_batchtopk_to_jumprelu.py first"))
        }
        other => return Err(Error::expected(ErrorKind::BadFile, format_args!("{place}: activation_fn"), other, "relu, jumprelu, topk or batchtopk")),
    };
    CltConfig { layers: l, width: d, features: f, activation: activation.clone(), ..CltConfig::default() }.validate().map_err(|error| error.context(&place))?;
    let thresholds = match activation {
        Activation::Relu => None,
        _ => {
            let name = ["theta_manager.log_threshold", "log_threshold"].into_iter().find(|name| tensors.has(name)).unwrap_or("theta_manager.log_threshold");
            Some(exponential(&tensors.take(name, &[l, f])?, true).map_err(|error| error.context(tensors.place(name)))?)
        }
    };
    let decoders = decoders(&tensors, &cfg)?;
    let offset = offset(&tensors, &cfg)?;
    let mut layers = Vec::new();
    for (s, (decoder, decoder_bias)) in decoders.into_iter().enumerate() {
        let mut encoder_bias = tensors.take(&format!("encoder_module.encoders.{s}.bias_param"), &[f])?;
        let mut threshold = thresholds.as_ref().map(|all| all.get(s)).transpose()?;
        if let Some(offset) = &offset {
            // (a + o) of an active feature is the activation of h + o above θ + o.
            encoder_bias = (encoder_bias + offset)?;
            threshold = Some(threshold.map_or_else(|| Ok(offset.clone()), |threshold| threshold + offset)?);
            activation = Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 };
        }
        let encoder = tensors.take(&format!("encoder_module.encoders.{s}.weight"), &[f, d])?;
        let skip = if cfg.skip_connection { Some(skip(&tensors, &cfg, s)?) } else { None };
        layers.push(LayerWeights { encoder, encoder_bias, threshold, decoder, decoder_bias, skip });
    }
    tensors.finish(&[])?;
    let root = Norm::times((d as f64).sqrt(), d)?;
    let layers = match if cfg.sqrt_d_model_normalize { Normalization::SqrtDModel } else { cfg.normalization_method } {
        Normalization::None => layers,
        Normalization::SqrtDModel => fold(layers, &vec![root.clone(); l], &vec![root; l])?,
        Normalization::MeanStd => {
            let (inputs, targets) = stats(source, l, d)?;
            fold(layers, &inputs, &targets)?
        }
    };
    let mut config = CltConfig { layers: l, width: d, features: f, activation, skip: cfg.skip_connection, input, output, ..CltConfig::default() };
    config.model_name = cfg.model_name.unwrap_or_default();
    import.amend(&mut config);
    assemble(config, layers, device)
}

/// Per source the decoders to all targets, with each target's scale of features, and the target's bias.
fn decoders(tensors: &Tensors, cfg: &Config) -> Result<Vec<(Tensor, Tensor)>> {
    let (l, f, d) = (cfg.num_layers, cfg.num_features, cfg.d_model);
    let name = |s: usize, t: usize| match cfg.decoder_tying {
        Tying::None => format!("decoder_module.decoders.{s}->{t}"),
        Tying::PerSource => format!("decoder_module.decoders.{s}"),
        Tying::PerTarget => format!("decoder_module.decoders.{t}"),
    };
    let scales = if cfg.enable_feature_scale && cfg.decoder_tying != Tying::None { Some(per_target(tensors, "feature_scale", l, f)?) } else { None };
    let mut all = Vec::new();
    for s in 0..l {
        let decoder = |t: usize| {
            let weight = turned(&tensors.take(&format!("{}.weight", name(s, t)), &[d, f])?)?;
            scales.as_ref().map_or_else(|| Ok(weight.clone()), |scales| Ok(weight.broadcast_mul(&scales[t].unsqueeze(1)?)?))
        };
        let decoder = joined(&(s..l).map(decoder).collect::<Result<Vec<_>>>()?)?;
        // The bias of target s comes from every source up to it, unless one decoder serves the target.
        let first = if cfg.decoder_tying == Tying::PerTarget { s } else { 0 };
        let biases = (first..=s).map(|source| tensors.take(&format!("{}.bias_param", name(source, s)), &[d])).collect::<Result<Vec<_>>>()?;
        all.push((decoder, summed(&biases)?));
    }
    Ok(all)
}

fn per_target(tensors: &Tensors, what: &str, l: usize, f: usize) -> Result<Vec<Tensor>> {
    let old = |t: usize| format!("encoder_module.{what}.{t}");
    (0..l).map(|t| tensors.take(&if tensors.has(&old(t)) { old(t) } else { format!("decoder_module.{what}.{t}") }, &[f])).collect()
}

/// What is added to active features before they are decoded; only one for all targets can be represented.
fn offset(tensors: &Tensors, cfg: &Config) -> Result<Option<Tensor>> {
    if !cfg.enable_feature_offset || cfg.decoder_tying == Tying::None {
        return Ok(None);
    }
    let offsets = per_target(tensors, "feature_offset", cfg.num_layers, cfg.num_features)?;
    let values = offsets.iter().map(Tensor::to_vec1::<f32>).collect::<candle_core::Result<Vec<_>>>()?;
    if let Some(other) = values.iter().position(|offset| *offset != values[0]) {
        return Err(Error::expected(ErrorKind::Unsupported, tensors.place("feature_offset"), format_args!("another for target {other} than for target 0"), "the same for all targets")
            .help("an offset for one target alone is not a linear function of the activation"));
    }
    Ok(values[0].iter().any(|value| *value != 0.0).then(|| offsets[0].clone()))
}

/// The skip connection of layer `t`, (input, output).
fn skip(tensors: &Tensors, cfg: &Config, t: usize) -> Result<Tensor> {
    let shape = [cfg.d_model, cfg.d_model];
    if cfg.decoder_tying != Tying::None {
        return turned(&tensors.take(&format!("decoder_module.skip_weights.{t}"), &shape)?);
    }
    for s in 0..t {
        let name = format!("decoder_module.skip_weights.{s}->{t}");
        if tensors.take(&name, &shape)?.abs()?.max_all()?.to_scalar::<f32>()? != 0.0 {
            return Err(Error::expected(ErrorKind::Unsupported, tensors.place(&name), "a skip connection from one layer to another", "zeros: skip connections stay in their layer"));
        }
    }
    turned(&tensors.take(&format!("decoder_module.skip_weights.{t}->{t}"), &shape)?)
}

fn stats(source: &Source, l: usize, d: usize) -> Result<(Vec<Norm>, Vec<Norm>)> {
    if !source.has("norm_stats.json")? {
        return Err(Error::new(ErrorKind::MissingFile, format!("{}: norm_stats.json: missing, and normalization_method is mean_std", source.name()))
            .help("copy it here from the folder of activations that the CLT was trained on"));
    }
    let path = source.file("norm_stats.json")?;
    let all: HashMap<String, Stats> = files::read_json_object(&path)?;
    let norm = |layer: usize, what: &str, moments: &Moments| -> Result<Norm> {
        let place = format!("{}: {layer}.{what}", path.display());
        if moments.mean.len() != d || moments.std.len() != d {
            return Err(Error::expected(ErrorKind::BadFile, place, format_args!("{} means and {} deviations", moments.mean.len(), moments.std.len()), d));
        }
        // The program reads both as f32 and adds its epsilon there.
        let scale: Vec<f32> = moments.std.iter().map(|std| *std as f32 + 1e-6).collect();
        if let Some(bad) = scale.iter().find(|scale| !(**scale > 0.0 && scale.is_finite())) {
            return Err(Error::expected(ErrorKind::BadFile, place, format_args!("a deviation of {bad}"), "above 0"));
        }
        let mean: Vec<f32> = moments.mean.iter().map(|mean| *mean as f32).collect();
        Ok(Norm { mean: Tensor::from_vec(mean, d, &Device::Cpu)?, scale: Tensor::from_vec(scale, d, &Device::Cpu)? })
    };
    let mut norms = (Vec::with_capacity(l), Vec::with_capacity(l));
    for layer in 0..l {
        let found = all.get(&layer.to_string()).ok_or_else(|| Error::expected(ErrorKind::BadFile, path.display(), format_args!("no layer {layer}"), format_args!("layers 0 to {}", l - 1)))?;
        norms.0.push(norm(layer, "inputs", &found.inputs)?);
        norms.1.push(norm(layer, "targets", &found.targets)?);
    }
    Ok(norms)
}

/// Untied decoders, the bias of a target in its own pair, zeros where a PLT has no decoder.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let c = clt.config();
    let (l, f, d) = (c.layers, c.features, c.width);
    let activation_fn = match c.activation {
        Activation::Relu => "relu",
        Activation::JumpRelu { .. } => "jumprelu",
        _ => return Err(no_place(NAME, "activation", c.activation.label(), "relu or jump_relu").help("its TopK ranks across layers over a batch")),
    };
    let mut tensors = Vec::new();
    if activation_fn == "jumprelu" {
        let logs = (0..l).map(|layer| log_thresholds(clt, layer, NAME)).collect::<Result<Vec<_>>>()?;
        tensors.push(("theta_manager.log_threshold".to_string(), Tensor::stack(&logs, 0)?));
    }
    let zero = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    for s in 0..l {
        tensors.push((format!("encoder_module.encoders.{s}.weight"), clt.encoder(s)?.clone()));
        tensors.push((format!("encoder_module.encoders.{s}.bias_param"), clt.encoder_bias(s)?.clone()));
        for t in s..l {
            let decoder = if t - s < c.slots(s) { turned(&clt.decoder(s)?.narrow(1, t - s, 1)?.squeeze(1)?)? } else { zero(&[d, f])? };
            tensors.push((format!("decoder_module.decoders.{s}->{t}.weight"), decoder));
            tensors.push((format!("decoder_module.decoders.{s}->{t}.bias_param"), if s == t { clt.decoder_bias(t)?.clone() } else { zero(&[d])? }));
            if let Some(skip) = clt.skip(s)? {
                tensors.push((format!("decoder_module.skip_weights.{s}->{t}"), if s == t { turned(skip)? } else { zero(&[d, d])? }));
            }
        }
    }
    write_owned(&folder.join("clt_checkpoint_latest.safetensors"), &tensors)?;
    let template = |site: &str| Some(format!("blocks.{{}}.{site}"));
    let config = Config {
        num_features: f,
        num_layers: l,
        d_model: d,
        model_name: Some(c.model_name.clone()).filter(|name| !name.is_empty()),
        normalization_method: Normalization::None,
        activation_fn: activation_fn.into(),
        decoder_tying: Tying::None,
        enable_feature_offset: false,
        enable_feature_scale: false,
        skip_connection: c.skip,
        mlp_input_template: None,
        mlp_output_template: None,
        tl_input_template: template(c.input.hook()),
        tl_output_template: template(c.output.hook()),
        sqrt_d_model_normalize: false,
    };
    files::write_json(folder.join("cfg.json"), &config)
}
