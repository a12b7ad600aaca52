//! EleutherAI's clt-training and sparsify: a folder a layer, named for its hook point (`h.0.mlp`).
//!
//! `cfg.json` and `sae.safetensors`: `encoder.weight` `[F, d]`, `encoder.bias`; `W_decs.{i}` `[F, d]`, `b_decs.{i}`
//! `[d]`, `W_skips.{i}` `[out, in]` for the target i layers on (`W_dec`, `b_dec`, `W_skip` where there is one);
//! `post_encs.{i}` and `post_enc_scales.{i}` `[F]` change active entries before they are decoded;
//! `in_norm`, `out_norm` `[1]`. `config.json` beside the folders names the hook points of the inputs.
//! `x̂ = x √d / in_norm`, `a = TopK(ReLU(h))`, `ŷ = y · out_norm / √d`.
//!
//! Source: EleutherAI/clt-training at cf9821f. Tied decoders are written out, contributions divided
//! among layers (`divide_cross_layer`) scaled, targets beyond the window zeros. Refused: `post_enc` other than
//! zero (not linear in the activation, and TopK cannot take it in a bias), TopK over several layers, group
//! and batch TopK, skips from one layer to another, decoders tied twice.

use super::import::CltLoadConfig;
use super::sites;
use super::source::Source;
use super::staged::write_owned;
use super::weights::{assemble, floats, fold, joined, no_place, summed, turned, Norm, Tensors};
use crate::activations::InputSite;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};

const NAME: &str = "sparsify";
const WEIGHTS: &str = "sae.safetensors";

/// A layer's `cfg.json`, as far as it says what the weights mean.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Config {
    #[serde(default = "topk")]
    activation: String,
    k: usize,
    d_in: usize,
    #[serde(default)]
    transcode: bool,
    #[serde(default)]
    skip_connection: bool,
    #[serde(default)]
    n_targets: usize,
    #[serde(default)]
    normalize_io: bool,
    #[serde(default)]
    divide_cross_layer: bool,
    #[serde(default)]
    post_encoder_scale: bool,
    #[serde(default)]
    per_source_tied: bool,
    #[serde(default)]
    secondary_target_tied: bool,
    #[serde(default = "none")]
    coalesce_topk: String,
    #[serde(default)]
    topk_coalesced: bool,
}

fn topk() -> String {
    "topk".into()
}

fn none() -> String {
    "none".into()
}

/// `config.json` of the run.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Run {
    #[serde(default)]
    hookpoints: Vec<String>,
    #[serde(default)]
    hookpoints_in: Vec<String>,
    #[serde(default)]
    model: String,
}

/// One layer's files.
struct Part {
    place: String,
    cfg: Config,
    tensors: Tensors,
    features: usize,
}

fn layer_files(source: &Source) -> Result<Vec<PathBuf>> {
    source.layer_files(|name| name == WEIGHTS)
}

pub(super) fn is_here(source: &Source) -> Result<bool> {
    Ok(!source.find(|name| name == WEIGHTS)?.is_empty())
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        let beside = path.with_file_name("cfg.json");
        let cfg: Config = files::read_json_object(&beside)?;
        let place = beside.display().to_string();
        let refuse = |field: &str, got: &str, expected: &str, help: &str| {
            Err(Error::expected(ErrorKind::Unsupported, format_args!("{place}: {field}"), got, expected).help(help.to_string()))
        };
        if !cfg.transcode {
            return refuse("transcode", "false", "true", "an autoencoder does not map an MLP's input to its output");
        }
        if cfg.activation != "topk" {
            return refuse("activation", &cfg.activation, "topk", "it depends on the batch or on groups of features");
        }
        if cfg.secondary_target_tied {
            return refuse("secondary_target_tied", "true", "false", "decoders tied to source and target at once are not read");
        }
        if !["none", "concat", "per-layer"].contains(&cfg.coalesce_topk.as_str()) || (cfg.topk_coalesced && cfg.coalesce_topk != "none") {
            let got = if cfg.topk_coalesced { "topk_coalesced" } else { &cfg.coalesce_topk };
            return refuse("coalesce_topk", got, "none, or concat or per-layer without topk_coalesced", "a TopK over several layers' features is not a CLT's");
        }
        let tensors = Tensors::open(path)?;
        let [features, width] = tensors.shape("encoder.weight", "[features, width]")?;
        if width != cfg.d_in {
            return Err(Error::expected(ErrorKind::BadTensor, tensors.place("encoder.weight"), format_args!("width {width}"), format_args!("d_in {}", cfg.d_in)));
        }
        if let Some(name) = ["W_skip", "W_skips.0"].into_iter().find(|name| !cfg.skip_connection && tensors.has(name)) {
            return Err(Error::expected(ErrorKind::Unsupported, tensors.place(name), "present", "missing, for skip_connection is false in cfg.json"));
        }
        Ok(Part { place, cfg, tensors, features })
    }

    /// Targets that the layer writes to, from its own on.
    fn targets(&self) -> usize {
        self.cfg.n_targets.max(1)
    }

    /// Whether it has a list of biases and skips, one a target.
    fn listed(&self) -> bool {
        self.cfg.n_targets > 0 && self.cfg.coalesce_topk == "none"
    }

    /// Parameter `one`, or entry `i` of its list `many`.
    fn take(&self, one: &str, many: &str, i: usize, shape: &[usize]) -> Result<Tensor> {
        let entry = format!("{many}.{i}");
        // The first of a list is the parameter itself, and may stand under either name, or both.
        let first = if i == 0 { self.tensors.take_if(one, shape)? } else { None };
        match first {
            Some(tensor) if !self.tensors.has(&entry) => Ok(tensor),
            _ => self.tensors.take(&entry, shape),
        }
    }

    /// The factor of each feature's decoder to the target `i` layers on; `post_enc` must be zero.
    fn scale(&self, i: usize) -> Result<Option<Tensor>> {
        let shape = [self.features];
        let multi = self.cfg.n_targets > 0;
        let name = |what: &str| if multi { format!("{what}s.{i}") } else { what.to_string() };
        if let Some(offset) = self.tensors.take_if(&name("post_enc"), &shape)? {
            if let Some(at) = floats(&offset)?.iter().position(|value| *value != 0.0) {
                return Err(Error::expected(ErrorKind::Unsupported, self.tensors.place(&name("post_enc")), format_args!("{} for feature {at}", floats(&offset)?[at]), "zeros")
                    .help("what is added to active features after TopK is not a linear function of the activation"));
            }
        }
        if self.cfg.post_encoder_scale { self.tensors.take(&name("post_enc_scale"), &shape).map(Some) } else { Ok(None) }
    }
}

pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    let files = layer_files(source)?;
    if files.is_empty() {
        source.refuse_pickles()?;
        return Err(Error::new(ErrorKind::MissingFile, format!("{}: no {WEIGHTS} in a folder of a layer", source.name())));
    }
    let parts = files.iter().map(|path| Part::open(path)).collect::<Result<Vec<_>>>()?;
    let (l, f, d) = (parts.len(), parts[0].features, parts[0].cfg.d_in);
    for (s, part) in parts.iter().enumerate() {
        for (field, got, expected) in [("features", part.features, f), ("d_in", part.cfg.d_in, d), ("k", part.cfg.k, parts[0].cfg.k)] {
            if got != expected {
                return Err(Error::expected(ErrorKind::Unsupported, format_args!("{}: {field}", part.place), got, format_args!("{expected}, as in layer 0")));
            }
        }
        if part.targets() > l - s {
            return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: n_targets", part.place), part.cfg.n_targets, format_args!("at most {}, the layers from {s} on", l - s)));
        }
    }
    let (input, output, model_name) = sites_of(source, import, &files[0])?;
    let per_layer = parts.iter().all(|part| part.targets() == 1);
    let skip = parts[0].cfg.skip_connection;
    let mut config = CltConfig { layers: l, width: d, features: f, activation: Activation::TopK { k: parts[0].cfg.k }, per_layer, skip, input, output, model_name, ..CltConfig::default() };
    import.amend(&mut config);
    config.validate().map_err(|error| error.context(source.name()))?;
    let mut decoders: Vec<Vec<Tensor>> = vec![Vec::new(); l];
    let mut layers = Vec::with_capacity(l);
    for t in 0..l {
        let (decoder_bias, skip) = target(&parts, t, &mut decoders, if per_layer { t } else { 0 })?;
        layers.push((decoder_bias, skip));
    }
    let weights = |(s, (decoder_bias, skip)): (usize, (Tensor, Option<Tensor>))| {
        Ok(LayerWeights {
            encoder: parts[s].tensors.take("encoder.weight", &[f, d])?,
            encoder_bias: parts[s].tensors.take("encoder.bias", &[f])?,
            threshold: None,
            decoder: joined(&decoders[s])?,
            decoder_bias,
            skip,
        })
    };
    let mut layers = layers.into_iter().enumerate().map(weights).collect::<Result<Vec<_>>>()?;
    let norms = |name: &str| parts.iter().map(|part| norm(part, name)).collect::<Result<Vec<_>>>();
    if parts.iter().any(|part| part.cfg.normalize_io) {
        layers = fold(layers, &norms("in_norm")?, &norms("out_norm")?)?;
    }
    parts.into_iter().try_for_each(|part| part.tensors.finish(&["W_dec", "b_dec", "W_skip"]))?;
    assemble(config, layers, device)
}

/// Adds every source's decoder to target `t`, from layer `first` on; gives the target's bias and skip.
fn target(parts: &[Part], t: usize, decoders: &mut [Vec<Tensor>], first: usize) -> Result<(Tensor, Option<Tensor>)> {
    let own = &parts[t];
    let (f, d) = (own.features, own.cfg.d_in);
    let live: Vec<usize> = (first..=t).filter(|&s| t - s < parts[s].targets()).collect();
    let share = if own.cfg.divide_cross_layer && own.cfg.coalesce_topk == "none" { 1.0 / (live.len() - 1).max(1) as f64 } else { 1.0 };
    let mut biases = Vec::new();
    let mut skip = None;
    for s in first..=t {
        let (part, i) = (&parts[s], t - s);
        let Some(order) = live.iter().position(|&other| other == s) else {
            decoders[s].push(Tensor::zeros((f, d), DType::F32, &Device::Cpu)?);
            continue;
        };
        let decoder = match own.cfg.coalesce_topk.as_str() {
            // Each of these decodes all sources with the target's own matrix: the same rows, or a block of rows each.
            "concat" => own.tensors.take("W_dec", &[f, d])?,
            "per-layer" => {
                let [rows, _] = own.tensors.shape("W_dec", "[sources x features, width]")?;
                own.tensors.take("W_dec", &[rows.max(live.len() * f), d])?.narrow(0, order * f, f)?
            }
            _ if part.cfg.per_source_tied => part.tensors.take("W_dec", &[f, d])?,
            _ => part.take("W_dec", "W_decs", i, &[f, d])?,
        };
        let factor = if s < t { share } else { 1.0 };
        let decoder = match part.scale(i)? {
            Some(scale) => decoder.broadcast_mul(&scale.unsqueeze(1)?)?,
            None => decoder,
        };
        decoders[s].push((decoder * factor)?);
        if s == t || part.listed() {
            let at = if part.listed() { i } else { 0 };
            biases.push((part.take("b_dec", "b_decs", at, &[d])? * factor)?);
            if part.cfg.skip_connection {
                let given = part.take("W_skip", "W_skips", at, &[d, d])?;
                if s == t {
                    skip = Some(turned(&given)?);
                } else if given.abs()?.max_all()?.to_scalar::<f32>()? != 0.0 {
                    return Err(Error::expected(ErrorKind::Unsupported, part.tensors.place(&format!("W_skips.{i}")), "a skip connection from one layer to another", "zeros: skip connections stay in their layer"));
                }
            }
        }
    }
    Ok((summed(&biases)?, skip))
}

fn norm(part: &Part, name: &str) -> Result<Norm> {
    let d = part.cfg.d_in;
    if !part.cfg.normalize_io {
        return Norm::times(1.0, d);
    }
    let value = floats(&part.tensors.take(name, &[1])?)?[0];
    if !(value > 0.0 && value.is_finite()) {
        return Err(Error::expected(ErrorKind::BadTensor, part.tensors.place(name), value, "a number above 0"));
    }
    Norm::times((d as f64).sqrt() / f64::from(value), d)
}

/// Sites and the model's name: hook points in `config.json`, else the folder's own name.
fn sites_of(source: &Source, import: &CltLoadConfig, first: &Path) -> Result<(InputSite, OutputSite, String)> {
    let run: Run = if source.has("config.json")? { files::read_json_object(source.file("config.json")?)? } else { Run::default() };
    let folder = first.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let writes = format!("{folder}.output");
    let reads = run.hookpoints_in.first().map_or_else(|| format!("{folder}.input"), |name| format!("{name}.input"));
    let (input, output) = sites::both(import, &source.name(), Some(&reads), Some(&writes))?;
    if let Some(other) = run.hookpoints_in.iter().find(|name| import.input.is_none() && sites::input(&format!("{name}.input")) != Some(input)) {
        return Err(Error::expected(ErrorKind::Unsupported, format_args!("{}: config.json: hookpoints_in", source.name()), other, format_args!("{}, as the first", input.hook())));
    }
    Ok((input, output, run.model))
}

/// TopK, or ReLU as the TopK of all features; one folder a layer, no normalisation.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let c = clt.config();
    let k = match c.activation {
        Activation::TopK { k } => k,
        Activation::Relu => c.features,
        _ => return Err(no_place(NAME, "activation", c.activation.label(), "top_k or relu: it has no thresholds")),
    };
    // Hook points are paths of modules, which differ between families.
    let name = c.model_name.to_lowercase();
    let (layers, norm) = match (name.contains("gpt2"), name.contains("gemma")) {
        (true, _) => ("h", "ln_2"),
        (_, true) => ("layers", "pre_feedforward_layernorm"),
        _ => ("layers", "post_attention_layernorm"),
    };
    let module = if (name.contains("gemma") || name.contains("olmo")) && c.output == OutputSite::AfterNorm { "post_feedforward_layernorm" } else { "mlp" };
    let reads = match c.input {
        InputSite::ResidMid => norm,
        InputSite::MlpIn => "mlp",
        InputSite::Normalized => return Err(no_place(NAME, "input", c.input.hook(), "hook_resid_mid or mlp.hook_in: it reads what a module reads")),
    };
    let points = |module: &str| (0..c.layers).map(|l| format!("{layers}.{l}.{module}")).collect::<Vec<_>>();
    for l in 0..c.layers {
        let mut tensors = vec![("encoder.weight".to_string(), clt.encoder(l)?.clone()), ("encoder.bias".to_string(), clt.encoder_bias(l)?.clone())];
        for i in 0..c.slots(l) {
            let entry = |what: &str| if c.per_layer { what.to_string() } else { format!("{what}s.{i}") };
            let own = |tensor: Tensor| if i == 0 { Ok(tensor) } else { tensor.zeros_like() };
            tensors.push((entry("W_dec"), clt.decoder(l)?.narrow(1, i, 1)?.squeeze(1)?));
            tensors.push((entry("b_dec"), own(clt.decoder_bias(l)?.clone())?));
            if let Some(skip) = clt.skip(l)? {
                tensors.push((entry("W_skip"), own(turned(skip)?)?));
            }
        }
        let place = folder.join(format!("{layers}.{l}.{module}"));
        write_owned(&place.join(WEIGHTS), &tensors)?;
        let targets = if c.per_layer { 0 } else { c.slots(l) };
        let mut cfg = serde_json::json!({
            "dtype": "float32", "activation": "topk", "expansion_factor": 0, "normalize_decoder": false, "num_latents": c.features, "k": k,
            "skip_connection": c.skip, "transcode": true, "n_targets": targets, "n_sources": if c.per_layer { 0 } else { l + 1 }, "normalize_io": false,
            "divide_cross_layer": false, "train_post_encoder": false, "post_encoder_scale": false, "per_source_tied": false,
        });
        cfg["coalesce_topk"] = none().into();
        cfg["d_in"] = c.width.into();
        files::write_json(place.join("cfg.json"), &cfg)?;
    }
    let run = Run { hookpoints: points(module), hookpoints_in: if reads == module { Vec::new() } else { points(reads) }, model: c.model_name.clone() };
    files::write_json(folder.join("config.json"), &run)
}
