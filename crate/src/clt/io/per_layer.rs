//! circuit-tracer's folder of per-layer transcoders (PLTs), `model_kind: transcoder_set`.
//!
//! One file a layer, `layer_i.safetensors` or what `transcoders` in `config.yaml` lists (a path in
//! the folder, or `hf://owner/name/file?revision=R`): `W_enc` `[F, d]`, `b_enc` `[F]`, `W_dec`
//! `[F, d]`, `b_dec` `[d]`, optional `activation_function.threshold` `[F]`, optional `W_skip` `[d, d]`
//! (output, input: the transpose of ours). `activation: topk` with `k` makes it a TopK.

use super::circuit_tracer::Yaml;
use super::source::Source;
use super::staged::write_as;
use super::tensors::Reader;
use crate::clt::{Activation, Clt, CltConfig, Decoder, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::hub::HubRepo;
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

pub(super) const KIND: &str = "transcoder_set";
const THRESHOLD: &str = "activation_function.threshold";
const SKIP: &str = "W_skip";

/// The files, by layer.
pub(super) fn files(source: &Source, yaml: &Yaml) -> Result<Vec<PathBuf>> {
    if let Some(listed) = &yaml.transcoders {
        return listed.iter().map(|place| file(source, place)).collect();
    }
    let name = |layer: usize| format!("layer_{layer}.safetensors");
    let mut files = vec![source.file(&name(0))?];
    while let Some(next) = source.optional(&name(files.len())) {
        files.push(next);
    }
    Ok(files)
}

fn file(source: &Source, place: &str) -> Result<PathBuf> {
    let Some(remote) = place.strip_prefix("hf://") else { return source.file(place) };
    let (path, revision) = remote.split_once("?revision=").unwrap_or((remote, "main"));
    match path.splitn(3, '/').collect::<Vec<_>>()[..] {
        [owner, name, file] => HubRepo::open(&format!("{owner}/{name}@{revision}"))?.file(file),
        _ => Err(Error::expected(ErrorKind::BadFile, format!("{}/config.yaml: transcoders", source.name()), place, "hf://owner/name/file")),
    }
}

/// Shape, activation and whether there are skip connections, from `config.yaml` and the first file.
pub(super) fn shape(source: &Source, yaml: &Yaml) -> Result<(usize, [usize; 2], Activation, bool)> {
    let files = files(source, yaml)?;
    let Some(first) = files.first() else {
        return Err(Error::expected(ErrorKind::BadFile, format!("{}/config.yaml: transcoders", source.name()), "none", "a file for each layer"));
    };
    let reader = Reader::open(first)?;
    let shape = reader.shape("W_enc").unwrap_or_default();
    let [features, width] = shape[..] else {
        return Err(Error::expected(ErrorKind::BadTensor, format!("{}: W_enc", first.display()), format_args!("shape {shape:?}"), "[features, width]"));
    };
    let place = || format!("{}/config.yaml: activation", source.name());
    let activation = match (yaml.activation.as_deref(), yaml.k) {
        (Some("topk" | "top_k"), Some(k)) => Activation::TopK { k },
        (Some("topk" | "top_k"), None) => return Err(Error::expected(ErrorKind::BadFile, place(), "topk without k", "k: the features that a token keeps")),
        (None, _) if reader.shape(THRESHOLD).is_some() => Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 },
        (Some("jump_relu" | "jumprelu"), _) => Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 },
        (None | Some("relu"), _) => Activation::Relu,
        (Some(other), _) => return Err(Error::expected(ErrorKind::Unsupported, place(), other, "relu, jump_relu or topk")),
    };
    Ok((files.len(), [features, width], activation, reader.shape(SKIP).is_some()))
}

/// The weights.
pub(super) fn layers(source: &Source, yaml: &Yaml, config: &CltConfig, device: &Device, mut read: impl FnMut(usize)) -> Result<Vec<Layer>> {
    let (f, d) = (config.features, config.width);
    let jumps = matches!(config.activation, Activation::JumpRelu { .. });
    let files = files(source, yaml)?;
    if files.len() != config.layers {
        return Err(Error::expected(ErrorKind::BadFile, format!("{}: layer files", source.name()), files.len(), config.layers));
    }
    let home = Decoder::home(config, device);
    let layer = |(l, path): (usize, &PathBuf)| {
        let reader = Reader::open(path)?;
        if reader.shape(SKIP).is_some() != config.skip {
            let (got, expected) = if config.skip { ("missing", "present") } else { ("present", "missing") };
            return Err(Error::expected(ErrorKind::BadTensor, format_args!("{}: {SKIP}", path.display()), got, expected)
                .help("every layer must have a skip connection, or none (in a folder of ours, cltlab.json says which)"));
        }
        let layer = Layer {
            encoder: Decoder::open(Reader::open(path)?, "W_enc".to_string(), [f, d], device)?,
            encoder_bias: reader.tensor("b_enc", &[f], device)?,
            threshold: if jumps { Some(reader.tensor(THRESHOLD, &[f], device)?) } else { None },
            decoder_bias: reader.tensor("b_dec", &[d], device)?,
            skip: if config.skip { Some(reader.tensor(SKIP, &[d, d], device)?.t()?.contiguous()?) } else { None },
            decoder: Decoder::open(reader, "W_dec".to_string(), [f, 1, d], &home)?,
        };
        read(l + 1);
        Ok(layer)
    };
    files.iter().enumerate().map(layer).collect()
}

impl Clt {
    /// The layer files of a PLT.
    pub(super) fn write_per_layer(&self, folder: &Path, dtype: DType) -> Result<()> {
        let (f, d) = (self.features(), self.config().width);
        for l in 0..self.layers() {
            let decoder = self.decoder(l).squeeze(1)?;
            let skip = self.skip(l).map(|skip| skip.t()).transpose()?;
            let mut tensors = vec![
                ("W_enc".to_string(), vec![f, d], self.encoder(l)),
                ("b_enc".to_string(), vec![f], self.encoder_bias(l)),
                ("W_dec".to_string(), vec![f, d], &decoder),
                ("b_dec".to_string(), vec![d], self.decoder_bias(l)),
            ];
            tensors.extend(self.threshold(l).map(|threshold| (THRESHOLD.to_string(), vec![f], threshold)));
            tensors.extend(skip.as_ref().map(|skip| (SKIP.to_string(), vec![d, d], skip)));
            write_as(&folder.join(format!("layer_{l}.safetensors")), &tensors, dtype)?;
        }
        Ok(())
    }
}
