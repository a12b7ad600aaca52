//! crosslayer-transcoder's folder.
//!
//! `config.yaml` (`model: {class_path, init_args}`) and `checkpoint.safetensors`: `encoder.W` `[L, d, F]`,
//! `encoder.b` `[L, F]`; `decoder.W_{t}` `[t + 1, F, d]` per target, of a PLT `decoder.W` `[L, F, d]`; `decoder.b`
//! `[L, d]`; `nonlinearity.theta` `[1, L, F]`. A feature is active above θ and above 0. Standardisers
//! that were not folded are `input_standardizer.mean` and `.std`, `[L, d]` or `[L]`. It reads the input of GPT-2's
//! `ln_2` and writes the output of its `mlp`.
//!
//! Source: Goreg12345/crosslayer-transcoder at ae29e75. BatchTopK becomes the JumpReLU with which the
//! program itself infers. Refused: standardising each token by itself; on export skip connections and other sites.

use super::import::CltLoadConfig;
use super::source::Source;
use super::staged::write_owned;
use super::weights::{assemble, floats, fold, joined, no_place, positive, thresholds, turned, Norm, Tensors};
use crate::activations::InputSite;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use candle_core::{Device, Tensor};
use serde_yaml_ng::Value;
use std::path::Path;

const NAME: &str = "crosslayer-transcoder";
const WEIGHTS: &str = "checkpoint.safetensors";
/// Where its classes are.
const CLASSES: &str = "crosslayer_transcoder.model";

pub(super) fn is_here(source: &Source) -> Result<bool> {
    Ok(source.has("config.yaml")? && source.has(WEIGHTS)?)
}

/// A class of the configuration: its name and arguments.
fn class<'a>(value: &'a Value, place: &str) -> Result<(&'a str, &'a Value)> {
    let path = value.get("class_path").and_then(Value::as_str);
    let path = path.ok_or_else(|| Error::expected(ErrorKind::BadFile, place, "no class_path", "class_path and init_args"))?;
    Ok((path.rsplit('.').next().unwrap_or(path), value.get("init_args").unwrap_or(&Value::Null)))
}

pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    let path = source.file("config.yaml")?;
    let place = |field: &str| format!("{}: {field}", path.display());
    let yaml = files::read_yaml(&path)?;
    let (_, model) = class(yaml.get("model").unwrap_or(&Value::Null), &place("model"))?;
    let part = |name: &str| model.get(name).filter(|value| !value.is_null());
    let (decoder_class, _) = class(part("decoder").unwrap_or(&Value::Null), &place("model.decoder"))?;
    let per_layer = match decoder_class {
        "CrosslayerDecoder" => false,
        "Decoder" => true,
        other => return Err(Error::expected(ErrorKind::Unsupported, place("model.decoder"), other, "CrosslayerDecoder or Decoder")),
    };
    if !source.has(WEIGHTS)? {
        source.refuse_pickles()?;
    }
    let tensors = Tensors::open(source.file(WEIGHTS)?)?;
    let [l, d, f] = tensors.shape("encoder.W", "[layers, width, features]")?;
    CltConfig { layers: l, width: d, features: f, activation: Activation::Relu, ..CltConfig::default() }.validate().map_err(|error| error.context(source.name()))?;
    let (activation, cuts) = nonlinearity(part("nonlinearity"), &tensors, &place("model.nonlinearity"), [l, f])?;
    let mut config = CltConfig { layers: l, width: d, features: f, activation, per_layer, input: InputSite::ResidMid, output: OutputSite::AfterNorm, ..CltConfig::default() };
    import.amend(&mut config);
    config.validate().map_err(|error| error.context(source.name()))?;
    let mut layers = Vec::with_capacity(l);
    for s in 0..l {
        let decoder = |t: usize| match per_layer {
            true => tensors.take_row("decoder.W", &[l, f, d], s),
            false => tensors.take_row(&format!("decoder.W_{t}"), &[t + 1, f, d], s),
        };
        layers.push(LayerWeights {
            encoder: turned(&tensors.take_row("encoder.W", &[l, d, f], s)?)?,
            encoder_bias: tensors.take_row("encoder.b", &[l, f], s)?,
            threshold: cuts.as_ref().map(|all| all[s].clone()),
            decoder: joined(&(s..s + config.slots(s)).map(decoder).collect::<Result<Vec<_>>>()?)?,
            decoder_bias: tensors.take_row("decoder.b", &[l, d], s)?,
            skip: None,
        });
    }
    let inputs = standardizer(part("input_standardizer"), &tensors, "input_standardizer", &place("model.input_standardizer"), [l, d])?;
    let targets = standardizer(part("output_standardizer"), &tensors, "output_standardizer", &place("model.output_standardizer"), [l, d])?;
    tensors.finish(&["nonlinearity.bandwidth"])?;
    assemble(config, fold(layers, &inputs, &targets)?, device)
}

/// The activation, and each layer's thresholds if it has them.
fn nonlinearity(value: Option<&Value>, tensors: &Tensors, place: &str, [l, f]: [usize; 2]) -> Result<(Activation, Option<Vec<Tensor>>)> {
    let (name, args) = class(value.unwrap_or(&Value::Null), place)?;
    let jump = Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 };
    let each = |thresholds: Vec<f32>| thresholds.into_iter().map(|theta| Ok(Tensor::full(theta.max(0.0), f, &Device::Cpu)?)).collect::<Result<Vec<_>>>();
    match name {
        "ReLU" => Ok((Activation::Relu, None)),
        "JumpReLU" => {
            let theta = tensors.take("nonlinearity.theta", &[1, l, f])?;
            Ok((jump, Some((0..l).map(|s| positive(&theta.get(0)?.get(s)?)).collect::<Result<_>>()?)))
        }
        "PerLayerTopK" => {
            let k = args.get("k").and_then(Value::as_u64).ok_or_else(|| Error::expected(ErrorKind::BadFile, format_args!("{place}.k"), "none", "the features that a token keeps"))?;
            Ok((Activation::TopK { k: k as usize }, None))
        }
        // Both infer with the running mean of the least value kept.
        "BatchTopK" => Ok((jump, Some(each(vec![floats(&tensors.take("nonlinearity.threshold", &[1])?)?[0]; l])?))),
        "PerLayerBatchTopK" => Ok((jump, Some(each(floats(&tensors.take("nonlinearity.threshold", &[l])?)?)?))),
        other => Err(Error::expected(ErrorKind::Unsupported, place, other, "ReLU, JumpReLU, PerLayerTopK, BatchTopK or PerLayerBatchTopK")),
    }
}

/// Each layer's mean and deviation; 0 and 1 without a standardiser.
fn standardizer(value: Option<&Value>, tensors: &Tensors, name: &str, place: &str, [l, d]: [usize; 2]) -> Result<Vec<Norm>> {
    let kind = value.map(|value| class(value, place)).transpose()?.map_or("Standardizer", |(name, _)| name);
    let shape: &[usize] = match kind {
        "Standardizer" => return Ok(vec![Norm::times(1.0, d)?; l]),
        "DimensionwiseInputStandardizer" | "DimensionwiseOutputStandardizer" => &[l, d],
        "LayerwiseInputStandardizer" | "LayerwiseOutputStandardizer" => &[l],
        other => {
            return Err(Error::expected(ErrorKind::Unsupported, place, other, "a standardiser with one mean and deviation for all tokens")
                .help("the encoder is not a function that a CLT here has: it standardises each token by itself"))
        }
    };
    let (mean, scale) = (tensors.take(&format!("{name}.mean"), shape)?, tensors.take(&format!("{name}.std"), shape)?);
    if let Some(bad) = floats(&scale)?.iter().find(|scale| !(**scale > 0.0 && scale.is_finite())) {
        return Err(Error::expected(ErrorKind::BadTensor, tensors.place(&format!("{name}.std")), bad, "numbers above 0"));
    }
    let row = |all: &Tensor, s: usize| -> Result<Tensor> { Ok(all.get(s)?.broadcast_as(d)?.contiguous()?) };
    (0..l).map(|s| Ok(Norm { mean: row(&mean, s)?, scale: row(&scale, s)? })).collect()
}

/// Folded, without standardisers.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let c = clt.config();
    let (l, f, d) = (c.layers, c.features, c.width);
    if c.skip {
        return Err(no_place(NAME, "skip", "skip connections", "none"));
    }
    if (c.input, c.output) != (InputSite::ResidMid, OutputSite::AfterNorm) {
        let got = format!("{} to {}", c.input.hook(), c.output.hook());
        return Err(no_place(NAME, "input and output", got, "hook_resid_mid to hook_mlp_out, the ones that it reads and writes"));
    }
    let stack = |part: &dyn Fn(usize) -> Result<Tensor>| -> Result<Tensor> { Ok(Tensor::stack(&(0..l).map(part).collect::<Result<Vec<_>>>()?, 0)?) };
    let mut tensors = vec![
        ("encoder.W".to_string(), stack(&|s| turned(clt.encoder(s)?))?),
        ("encoder.b".to_string(), stack(&|s| Ok(clt.encoder_bias(s)?.clone()))?),
        ("decoder.b".to_string(), stack(&|s| Ok(clt.decoder_bias(s)?.clone()))?),
    ];
    let decoder = |s: usize, t: usize| -> Result<Tensor> { Ok(clt.decoder(s)?.narrow(1, t - s, 1)?.squeeze(1)?) };
    if c.per_layer {
        tensors.push(("decoder.W".to_string(), stack(&|s| decoder(s, s))?));
    }
    for t in (0..l).filter(|_| !c.per_layer) {
        let all = (0..=t).map(|s| decoder(s, t)).collect::<Result<Vec<_>>>()?;
        tensors.push((format!("decoder.W_{t}"), Tensor::stack(&all, 0)?));
    }
    let shape = serde_json::json!({ "d_acts": d, "d_features": f, "n_layers": l });
    let class = |path: &str, args: serde_json::Value| serde_json::json!({ "class_path": format!("{CLASSES}.{path}"), "init_args": args });
    let nonlinearity = match c.activation {
        Activation::Relu => class("jumprelu.ReLU", serde_json::json!({})),
        Activation::TopK { k } => class("topk.PerLayerTopK", serde_json::json!({ "k": k, "e": null, "n_layers": l })),
        Activation::JumpRelu { threshold, bandwidth } => {
            let thresholds = stack(&|s| thresholds(clt, s, NAME))?;
            tensors.push(("nonlinearity.theta".to_string(), thresholds.unsqueeze(0)?));
            tensors.push(("nonlinearity.bandwidth".to_string(), Tensor::new(bandwidth as f32, &Device::Cpu)?));
            class("jumprelu.JumpReLU", serde_json::json!({ "theta": threshold, "bandwidth": bandwidth, "n_layers": l, "d_features": f }))
        }
        Activation::BatchTopK { .. } | Activation::GlobalTopK { .. } | Activation::GlobalBatchTopK { .. } => return Err(no_place(NAME, "activation", c.activation.label(), "relu, jump_relu or top_k")),
    };
    write_owned(&folder.join(WEIGHTS), &tensors)?;
    let mut model = class("clt.CrossLayerTranscoder", serde_json::json!({
        "nonlinearity": nonlinearity,
        "encoder": class("clt.Encoder", shape.clone()),
        "decoder": class(if c.per_layer { "clt.Decoder" } else { "clt.CrosslayerDecoder" }, shape),
        "input_standardizer": null,
        "output_standardizer": null,
    }));
    model["is_folded"] = true.into();
    let text = serde_yaml_ng::to_string(&serde_json::json!({ "model": model })).map_err(|error| Error::wrap(ErrorKind::BadConfig, "config.yaml", error))?;
    files::write_atomic(folder.join("config.yaml"), text.as_bytes())
}
