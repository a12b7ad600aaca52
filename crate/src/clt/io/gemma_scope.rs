//! Gemma Scope's per-layer transcoders: numpy files.
//!
//! `params.npz`, one a layer (`layer_i/…/params.npz`): `W_enc` `[d, F]`, `b_enc`, `W_dec` `[F, d]`, `b_dec`, `threshold`
//! `[F]`. A feature is active above its threshold and above 0. They read `ln2.hook_normalized` and write
//! `hook_mlp_out`. Gemma Scope 2 has the same parameters in lower case, and may have `affine_skip_connection`
//! `[in, out]`.
//!
//! Source: google/gemma-scope-2b-pt-transcoders as circuit-tracer and SAELens read it. Refused on
//! export: CLTs, TopK, skip connections, other sites.

use super::import::CltLoadConfig;
use super::source::Source;
use super::weights::{assemble, no_place, positive, thresholds, turned, Tensors};
use crate::activations::InputSite;
use crate::clt::{Activation, Clt, CltConfig, LayerWeights};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use candle_core::{Device, Tensor};
use std::path::Path;

const NAME: &str = "gemma-scope";
const WEIGHTS: &str = "params.npz";

pub(super) fn is_here(source: &Source) -> Result<bool> {
    Ok(!source.find(|name| name == WEIGHTS)?.is_empty())
}

/// The names of a file's parameters, upper case or lower.
pub(super) fn names(tensors: &Tensors) -> [&'static str; 2] {
    if tensors.has("w_enc") { ["w_enc", "w_dec"] } else { ["W_enc", "W_dec"] }
}

/// Whether a file is of Gemma Scope or Gemma Scope 2.
pub(super) fn holds(path: &Path) -> Result<bool> {
    Ok(path.extension().is_some_and(|ending| ending == "npz") || Tensors::open(path)?.has("w_enc"))
}

/// One layer's transcoder, of Gemma Scope or Gemma Scope 2.
pub(super) fn transcoder(path: &Path) -> Result<LayerWeights> {
    let tensors = Tensors::open(path)?;
    let [enc, dec] = names(&tensors);
    let [d, f] = tensors.shape(enc, "[width, features]")?;
    let decoder = tensors.take(dec, &[f, d])?.unsqueeze(1)?;
    rest(tensors, decoder)
}

/// Everything but the decoder, which is given.
pub(super) fn rest(tensors: Tensors, decoder: Tensor) -> Result<LayerWeights> {
    let [enc, dec] = names(&tensors);
    let [d, f] = tensors.shape(enc, "[width, features]")?;
    let weights = LayerWeights {
        encoder: turned(&tensors.take(enc, &[d, f])?)?,
        encoder_bias: tensors.take("b_enc", &[f])?,
        threshold: Some(positive(&tensors.take("threshold", &[f])?)?),
        decoder,
        decoder_bias: tensors.take("b_dec", &[d])?,
        skip: tensors.take_if("affine_skip_connection", &[d, d])?,
    };
    tensors.finish(&[dec])?;
    Ok(weights)
}

/// The CLT or PLT of these layers, its shape taken from them.
pub(super) fn of_layers(source: &Source, import: &CltLoadConfig, layers: Vec<LayerWeights>, mut config: CltConfig, device: &Device) -> Result<Clt> {
    let Some(first) = layers.first() else {
        source.refuse_pickles()?;
        return Err(Error::new(ErrorKind::MissingFile, format!("{}: no parameters of any layer", source.name())));
    };
    let (f, d) = first.encoder.dims2()?;
    config = CltConfig { layers: layers.len(), features: f, width: d, activation: Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 }, skip: first.skip.is_some(), ..config };
    import.amend(&mut config);
    assemble(config, layers, device).map_err(|error| error.context(source.name()))
}

pub(super) fn load(source: &Source, import: &CltLoadConfig, device: &Device) -> Result<Clt> {
    let files = source.layer_files(|name| name == WEIGHTS)?;
    let config = CltConfig { per_layer: true, input: InputSite::Normalized, output: OutputSite::AfterNorm, ..CltConfig::default() };
    of_layers(source, import, files.iter().map(|path| transcoder(path)).collect::<Result<_>>()?, config, device)
}

/// `layer_i/params.npz`.
pub(super) fn write(clt: &Clt, folder: &Path) -> Result<()> {
    let c = clt.config();
    if !c.per_layer {
        return Err(no_place(NAME, "per_layer", "decoders to later layers", "one transcoder a layer"));
    }
    if c.skip {
        return Err(no_place(NAME, "skip", "skip connections", "none").help("gemma-scope-2 has them"));
    }
    if (c.input, c.output) != (InputSite::Normalized, OutputSite::AfterNorm) {
        let got = format!("{} to {}", c.input.hook(), c.output.hook());
        return Err(no_place(NAME, "input and output", got, "ln2.hook_normalized to hook_mlp_out, the ones that it reads and writes"));
    }
    for l in 0..c.layers {
        let arrays = [
            ("W_enc", turned(clt.encoder(l)?)?),
            ("b_enc", clt.encoder_bias(l)?.clone()),
            ("W_dec", clt.decoder(l)?.squeeze(1)?),
            ("b_dec", clt.decoder_bias(l)?.clone()),
            ("threshold", thresholds(clt, l, NAME)?),
        ];
        let arrays = arrays.map(|(name, tensor)| tensor.to_device(&Device::Cpu).map(|tensor| (name, tensor))).into_iter().collect::<candle_core::Result<Vec<_>>>()?;
        let place = folder.join(format!("layer_{l}"));
        files::create_folder(&place)?;
        files::replace(place.join(WEIGHTS), |path| Ok(Tensor::write_npz(&arrays, path)?))?;
    }
    Ok(())
}
