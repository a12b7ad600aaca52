//! CLT-Forge's folder.
//!
//! `clt_cfg.json` and `clt_weights.safetensors`, or a shard of the features a rank
//! (`rank{r}_clt_weights.safetensors`): `W_enc` `[L, d, F]`, `b_enc` `[L, F]`, `W_dec` `[K, F, d]`, `b_dec` `[K, d]`
//! with the K pairs of source and target in the order (0, 0), (0, 1) … (1, 1) …, `log_threshold` `[L, F]`,
//! `estimated_norm_scaling_factor_in` and `_out` `[L]`, by which the trainer multiplied inputs and
//! targets. Without cross-layer decoders K is L. It reads `ln2.hook_normalized` and writes `hook_mlp_out`.
//!
//! Source: LLM-Interp/CLT-Forge at dcf4cc8. Refused on export: TopK, skip connections, other sites.

use super::import::CltLoadConfig;
use super::source::Source;
use super::staged::write_owned;
use super::weights::{assemble, exponential, floats, fold, joined, log_thresholds, no_place, summed, turned, Norm, Tensors};
use crate::activations::InputSite;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use candle_core::{DType, Device, Tensor};
use std::path::Path;

const NAME: &str = "clt-forge";
const COUNT: &str = "feature_count";
const MASK: &str = "layer_mask";
const WEIGHTS: &str = "clt_weights.safetensors";

#[derive(serde::Deserialize)]
struct Config {
    model_name: String,
    d_in: usize,
    d_latent: usize,
    n_layers: usize,
    #[serde(default = "yes")]
    cross_layer_decoders: bool,
    #[serde(default)]
    feature_sharding: bool,
}

fn yes() -> bool {
    true
}

pub(super) fn is_here(source: &Source) -> Result<bool> {
    source.has("clt_cfg.json")
}

/// The shards, each with the number of its features; one if there are none.
fn shards(source: &Source, cfg: &Config) -> Result<Vec<(usize, Tensors)>> {
    let (l, d) = (cfg.n_layers, cfg.d_in);
    let mut shards = Vec::new();
    if cfg.feature_sharding {
        while source.has(&format!("rank{}_{WEIGHTS}", shards.len()))? {
            shards.push(Tensors::open(source.file(&format!("rank{}_{WEIGHTS}", shards.len()))?)?);
        }
    }
    if shards.is_empty() {
        if !source.has(WEIGHTS)? {
            source.refuse_pickles()?;
            let name = if cfg.feature_sharding { format!("rank0_{WEIGHTS}") } else { WEIGHTS.to_string() };
            return Err(Error::new(ErrorKind::MissingFile, format!("{}: {name}: no such file", source.name())));
        }
        shards.push(Tensors::open(source.file(WEIGHTS)?)?);
    }
    let mut sized = Vec::with_capacity(shards.len());
    for shard in shards {
        let [layers, width, features] = shard.shape("W_enc", "[layers, width, features]")?;
        if [layers, width] != [l, d] {
            return Err(Error::expected(ErrorKind::BadTensor, shard.place("W_enc"), format_args!("shape {:?}", [layers, width, features]), format_args!("[{l}, {d}, features]")));
        }
        sized.push((features, shard));
    }
    let total: usize = sized.iter().map(|(features, _)| features).sum();
    if total != cfg.d_latent {
        return Err(Error::expected(ErrorKind::BadTensor, source.name(), format_args!("{total} features in {} files", sized.len()), format_args!("d_latent {}", cfg.d_latent))
            .help("a shard is missing, or belongs to another CLT"));
    }
    Ok(sized)
}

pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    let cfg: Config = files::read_json_object(source.file("clt_cfg.json")?)?;
    let (l, d) = (cfg.n_layers, cfg.d_in);
    let mut config = CltConfig {
        layers: l,
        width: d,
        features: cfg.d_latent,
        activation: Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 },
        per_layer: !cfg.cross_layer_decoders,
        input: InputSite::Normalized,
        output: OutputSite::AfterNorm,
        model_name: cfg.model_name.clone(),
        ..CltConfig::default()
    };
    import.amend(&mut config);
    config.validate().map_err(|error| error.context(source.name()))?;
    let shards = shards(source, &cfg)?;
    let pairs = config.decoders();
    let pair = |s: usize, t: usize| if config.per_layer { s } else { s * l - s * s.saturating_sub(1) / 2 + t - s };
    // The features of all shards, along `axis`.
    let across = |take: &dyn Fn(usize, &Tensors) -> Result<Tensor>, axis: usize| -> Result<Tensor> {
        let parts = shards.iter().map(|(features, shard)| take(*features, shard)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, axis)?)
    };
    let first = &shards[0].1;
    let mut layers = Vec::with_capacity(l);
    for s in 0..l {
        let decoder = |t: usize| across(&|f, shard| shard.take_row("W_dec", &[pairs, f, d], pair(s, t)), 0);
        let decoders = (s..s + config.slots(s)).map(decoder).collect::<Result<Vec<_>>>()?;
        let biases = (config.first_source(s)..=s).map(|from| first.take_row("b_dec", &[pairs, d], pair(from, s))).collect::<Result<Vec<_>>>()?;
        layers.push(LayerWeights {
            encoder: across(&|f, shard| turned(&shard.take_row("W_enc", &[l, d, f], s)?), 0)?,
            encoder_bias: across(&|f, shard| shard.take_row("b_enc", &[l, f], s), 0)?,
            threshold: Some(exponential(&across(&|f, shard| shard.take_row("log_threshold", &[l, f], s), 0)?, false).map_err(|error| error.context(format_args!("{}: row {s}", first.place("log_threshold"))))?),
            decoder: joined(&decoders)?,
            decoder_bias: summed(&biases)?,
            skip: None,
        });
    }
    let norms = |name: &str| -> Result<Vec<Norm>> {
        let place = first.place(name);
        let norm = |factor: f32| match factor > 0.0 && factor.is_finite() {
            true => Norm::times(f64::from(factor), d),
            false => Err(Error::expected(ErrorKind::BadTensor, &place, factor, "a number above 0")),
        };
        floats(&first.take(name, &[l])?)?.into_iter().map(norm).collect()
    };
    let layers = fold(layers, &norms("estimated_norm_scaling_factor_in")?, &norms("estimated_norm_scaling_factor_out")?)?;
    for (features, shard) in &shards {
        check_bookkeeping(shard, &config, *features)?;
    }
    let copies = ["b_dec", "estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out", COUNT, MASK];
    shards.into_iter().try_for_each(|(_, shard)| shard.finish(&copies))?;
    assemble(config, layers, device)
}

/// Which of the K pairs each layer writes, 1 or 0, `[L, K]`.
fn layer_mask(config: &CltConfig) -> Vec<f32> {
    let pairs = config.decoders();
    let mut mask = vec![0.0; config.layers * pairs];
    let mut first = 0;
    for s in 0..config.layers {
        mask[s * pairs + first..][..config.slots(s)].fill(1.0);
        first += config.slots(s);
    }
    mask
}

/// Refuses a file whose mask says that its pairs stand in another order, or whose counters are of another shape: no
/// function of the CLT depends on them, but then its weights are not what they are taken for.
fn check_bookkeeping(shard: &Tensors, config: &CltConfig, features: usize) -> Result<()> {
    if shard.has(COUNT) {
        let found = shard.shape::<2>(COUNT, "[layers, features]")?;
        if found != [config.layers, features] {
            return Err(Error::expected(ErrorKind::BadTensor, shard.place(COUNT), format_args!("shape {found:?}"), format_args!("{:?}", [config.layers, features])));
        }
    }
    let Some(mask) = shard.take_if(MASK, &[config.layers, config.decoders()])? else { return Ok(()) };
    let differs = floats(&mask)?.iter().zip(layer_mask(config)).position(|(found, expected)| *found != expected);
    differs.map_or(Ok(()), |at| {
        let (layer, pair) = (at / config.decoders(), at % config.decoders());
        Err(Error::expected(ErrorKind::BadTensor, shard.place(MASK), format_args!("another value at layer {layer}, pair {pair}"), "1 where the layer is the pair's source, pairs in the order (0, 0), (0, 1) … (1, 1) …"))
    })
}

/// One file, no sharding, scaling factors 1, the bias of a target in its own pair.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let c = clt.config();
    let (l, f, d) = (c.layers, c.features, c.width);
    let (threshold, bandwidth) = match c.activation {
        Activation::Relu => (0.03, 1.0),
        Activation::JumpRelu { threshold, bandwidth } => (threshold, bandwidth),
        _ => return Err(no_place(NAME, "activation", c.activation.label(), "relu or jump_relu")),
    };
    if c.skip {
        return Err(no_place(NAME, "skip", "skip connections", "none"));
    }
    if (c.input, c.output) != (InputSite::Normalized, OutputSite::AfterNorm) {
        let got = format!("{} to {}", c.input.hook(), c.output.hook());
        return Err(no_place(NAME, "input and output", got, "ln2.hook_normalized to hook_mlp_out, the ones that it reads and writes"));
    }
    let stack = |part: &dyn Fn(usize) -> Result<Tensor>| -> Result<Tensor> { Ok(Tensor::stack(&(0..l).map(part).collect::<Result<Vec<_>>>()?, 0)?) };
    let (mut decoders, mut biases) = (Vec::new(), Vec::new());
    for s in 0..l {
        for t in s..s + c.slots(s) {
            decoders.push(clt.decoder(s)?.narrow(1, t - s, 1)?.squeeze(1)?);
            biases.push(if s == t { clt.decoder_bias(t)?.clone() } else { clt.decoder_bias(t)?.zeros_like()? });
        }
    }
    let ones = Tensor::ones(l, DType::F32, &Device::Cpu)?;
    let mut tensors = vec![
        ("W_enc".to_string(), stack(&|s| turned(clt.encoder(s)?))?),
        ("b_enc".to_string(), stack(&|s| Ok(clt.encoder_bias(s)?.clone()))?),
        ("W_dec".to_string(), Tensor::stack(&decoders, 0)?),
        ("b_dec".to_string(), Tensor::stack(&biases, 0)?),
        ("log_threshold".to_string(), stack(&|s| log_thresholds(clt, s, NAME))?),
        ("estimated_norm_scaling_factor_in".to_string(), ones.clone()),
        ("estimated_norm_scaling_factor_out".to_string(), ones),
        // A count of steps since each feature fired, which its loader insists on.
        (COUNT.to_string(), Tensor::zeros((l, f), DType::F32, &Device::Cpu)?),
    ];
    if !c.per_layer {
        tensors.push((MASK.to_string(), Tensor::from_vec(layer_mask(c), (l, c.decoders()), &Device::Cpu)?));
    }
    write_owned(&folder.join(WEIGHTS), &tensors)?;
    let config = serde_json::json!({
        "device": "cpu", "dtype": "float32", "seed": 0, "model_name": c.model_name,
        "d_in": d, "d_latent": f, "n_layers": l, "jumprelu_bandwidth": bandwidth, "jumprelu_init_threshold": threshold,
        "normalize_decoder": false, "dead_feature_window": 250, "cross_layer_decoders": !c.per_layer, "context_size": 16,
        "l0_coefficient": 0.0, "feature_sharding": false,
    });
    files::write_json(folder.join("clt_cfg.json"), &config)
}
