//! Gemma Scope 2: transcoders a layer, and cross-layer ones.
//!
//! A PLT: `layer_i…/params.safetensors` with Gemma Scope's parameters in lower case. A CLT:
//! `params_layer_i.safetensors` with `w_dec` `[F, L, d]`, of which only targets from i on are used.
//! `affine_skip_connection` `[in, out]` in both. `config.json` beside them names the sites; without it they read
//! the output of `pre_feedforward_layernorm` and write that of `post_feedforward_layernorm`.
//!
//! Source: google/gemma-scope-2-* as circuit-tracer and SAELens 6.54.12 read it; unlike circuit-tracer's,
//! this reader takes the last layer too. Refused on export: TopK, `ln2.hook_normalized`.

use super::gemma_scope::{names, of_layers, rest, transcoder};
use super::import::CltLoadConfig;
use super::sites;
use super::source::{layer_number, Source};
use super::staged::write_owned;
use super::weights::{no_place, thresholds, turned, Tensors};
use crate::activations::InputSite;
use crate::clt::{Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};

const NAME: &str = "gemma-scope-2";

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Config {
    #[serde(default)]
    model_name: String,
    #[serde(default = "jump_relu")]
    architecture: String,
    hf_hook_point_in: Option<String>,
    hf_hook_point_out: Option<String>,
    #[serde(default)]
    affine_connection: Option<bool>,
}

fn jump_relu() -> String {
    "jump_relu".into()
}

fn layer_files(source: &Source) -> Result<Vec<PathBuf>> {
    source.layer_files(|name| name == "params.safetensors" || (name.starts_with("params") && name.contains("layer_") && name.ends_with(".safetensors")))
}

pub(super) fn is_here(source: &Source) -> Result<bool> {
    let first = layer_files(source)?.into_iter().next();
    first.map_or(Ok(false), |path| Ok(Tensors::open(path)?.has("w_enc")))
}

pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    read(source, import, &layer_files(source)?, device)
}

/// The CLT or PLT of these files, layer by layer.
fn read(source: &Source, import: &CltLoadConfig, files: &[PathBuf], device: &Device) -> Result<Clt> {
    let cross = files.first().map(|path| decoder_axes(path)).transpose()? == Some(3);
    let mut config = CltConfig { per_layer: !cross, input: InputSite::MlpIn, output: OutputSite::AfterNorm, ..CltConfig::default() };
    let (mut layers, mut named) = (Vec::with_capacity(files.len()), None);
    for (l, path) in files.iter().enumerate() {
        let layer = if cross { cross_layer(path, l, files.len())? } else { transcoder(path)? };
        let beside = path.with_file_name("config.json");
        // A CLT has one for all layers.
        let given: Option<Config> = if beside.exists() && !(cross && l > 0) { Some(files::read_json_object(&beside)?) } else { None };
        let place = beside.display().to_string();
        let refuse = |field: &str, got: &str, expected: &str| Err(Error::expected(ErrorKind::Unsupported, format_args!("{place}: {field}"), got, expected));
        let usual = [sites_names(l, InputSite::MlpIn), sites_names(l, OutputSite::AfterNorm)];
        let mut points = usual.clone();
        if let Some(given) = given {
            if given.architecture != "jump_relu" {
                return refuse("architecture", &given.architecture, "jump_relu");
            }
            if given.affine_connection.is_some_and(|said| said != layer.skip.is_some()) {
                return refuse("affine_connection", "another value than the file of weights has", "true with affine_skip_connection, false without");
            }
            points = [given.hf_hook_point_in.unwrap_or_else(|| usual[0].clone()), given.hf_hook_point_out.unwrap_or_else(|| usual[1].clone())];
            for (field, point) in [("hf_hook_point_in", &points[0]), ("hf_hook_point_out", &points[1])] {
                if !cross && layer_number(point).is_some_and(|said| said != l) {
                    return refuse(field, point, &format!("a hook of layer {l}, whose folder it is"));
                }
            }
            let before = named.get_or_insert_with(|| given.model_name.clone());
            if *before != given.model_name {
                return refuse("model_name", &given.model_name, &format!("{before}, as in the layers before"));
            }
        }
        if l == 0 || !cross {
            let found = sites::both(import, &place, Some(&points[0]), Some(&points[1]))?;
            if l > 0 && found != (config.input, config.output) {
                return refuse("hf_hook_point_in and hf_hook_point_out", &points.join(", "), &format!("{} and {}, as in the layers before", config.input.hook(), config.output.hook()));
            }
            (config.input, config.output) = found;
        }
        layers.push(layer);
    }
    config.model_name = named.unwrap_or_default();
    of_layers(source, import, layers, config, device)
}

fn decoder_axes(path: &Path) -> Result<usize> {
    let tensors = Tensors::open(path)?;
    Ok(if tensors.shape::<3>("w_dec", "").is_ok() { 3 } else { 2 })
}

/// Layer `l` of a CLT of `layers` layers.
pub(super) fn cross_layer(path: &Path, l: usize, layers: usize) -> Result<LayerWeights> {
    let tensors = Tensors::open(path)?;
    let [enc, dec] = names(&tensors);
    let [d, f] = tensors.shape(enc, "[width, features]")?;
    let decoder = tensors.take(dec, &[f, layers, d])?.narrow(1, l, layers - l)?.contiguous()?;
    rest(tensors, decoder)
}

/// A module's name as this format has it.
trait Point {
    fn point(self) -> Option<&'static str>;
}

impl Point for InputSite {
    fn point(self) -> Option<&'static str> {
        match self {
            InputSite::ResidMid => Some("pre_feedforward_layernorm.input"),
            InputSite::MlpIn => Some("pre_feedforward_layernorm.output"),
            InputSite::Normalized => None,
        }
    }
}

impl Point for OutputSite {
    fn point(self) -> Option<&'static str> {
        Some(if self == OutputSite::AfterNorm { "post_feedforward_layernorm.output" } else { "mlp.output" })
    }
}

fn sites_names(layer: usize, site: impl Point) -> String {
    site.point().map(|point| format!("model.layers.{layer}.{point}")).unwrap_or_default()
}

/// `layer_i/params.safetensors` of a PLT, `params_layer_i.safetensors` of a CLT.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let c = clt.config();
    if c.input == InputSite::Normalized {
        return Err(no_place(NAME, "input", c.input.hook(), "hook_resid_mid or mlp.hook_in: a module's input or output"));
    }
    for l in 0..c.layers {
        let decoder = if c.per_layer {
            clt.decoder(l)?.squeeze(1)?
        } else {
            let none = Tensor::zeros((c.features, l, c.width), DType::F32, &Device::Cpu)?;
            Tensor::cat(&[&none, &clt.decoder(l)?.to_device(&Device::Cpu)?], 1)?
        };
        let mut tensors = vec![
            ("w_enc".to_string(), turned(clt.encoder(l)?)?),
            ("b_enc".to_string(), clt.encoder_bias(l)?.clone()),
            ("w_dec".to_string(), decoder),
            ("b_dec".to_string(), clt.decoder_bias(l)?.clone()),
            ("threshold".to_string(), thresholds(clt, l, NAME)?),
        ];
        tensors.extend(clt.skip(l)?.map(|skip| ("affine_skip_connection".to_string(), skip.clone())));
        let config = Config {
            model_name: c.model_name.clone(),
            architecture: jump_relu(),
            hf_hook_point_in: Some(sites_names(l, c.input)),
            hf_hook_point_out: Some(sites_names(l, c.output)),
            affine_connection: Some(c.skip),
        };
        let place = if c.per_layer { folder.join(format!("layer_{l}")) } else { folder.to_path_buf() };
        let name = if c.per_layer { "params.safetensors".to_string() } else { format!("params_layer_{l}.safetensors") };
        write_owned(&place.join(name), &tensors)?;
        files::write_json(place.join("config.json"), &config)?;
    }
    Ok(())
}
