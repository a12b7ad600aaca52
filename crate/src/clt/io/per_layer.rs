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
use crate::files::names::{plain_relative, shown};
use crate::files::walk::walk;
use crate::hub::{HubConfig, HubRepo};
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

pub(super) const KIND: &str = "transcoder_set";
const THRESHOLD: &str = "activation_function.threshold";
const SKIP: &str = "W_skip";

/// The files, by layer. All names are checked before the first file is fetched; from the hub for a folder on disk only if `fetch`.
pub(super) fn files(source: &Source, yaml: &Yaml, fetch: bool) -> Result<Vec<PathBuf>> {
    if let Some(listed) = &yaml.transcoders {
        let places = listed.iter().map(|place| place_of(source, place, fetch)).collect::<Result<Vec<_>>>()?;
        return places.iter().map(|place| place.file(source)).collect();
    }
    let name = |layer: usize| format!("layer_{layer}.safetensors");
    let mut files = vec![source.file(&name(0))?];
    while let Some(next) = source.optional(&name(files.len())) {
        files.push(next);
    }
    let numbered = |path: &Path| path.file_name()?.to_str()?.strip_prefix("layer_")?.strip_suffix(".safetensors")?.parse::<usize>().ok();
    if let Source::Folder(folder) = source {
        // A layer that is missing would make the rest another model's.
        let mut later = None;
        walk(folder, 0, &mut |path| {
            later = later.max(numbered(&path).filter(|layer| *layer >= files.len()));
            Ok(())
        })?;
        if let Some(later) = later {
            return Err(Error::expected(ErrorKind::MissingFile, source.name(), format_args!("no {}, but {}", name(files.len()), name(later)), "a file for each layer from 0 on"));
        }
    }
    Ok(files)
}

/// Where `transcoders` says that a layer is.
enum Place<'a> {
    Here(&'a str),
    Hub(HubRepo, &'a str),
}

impl Place<'_> {
    fn file(&self, source: &Source) -> Result<PathBuf> {
        match self {
            Place::Here(name) => source.file(name),
            Place::Hub(repo, name) => repo.file(name),
        }
    }
}

fn place_of<'a>(source: &Source, place: &'a str, fetch: bool) -> Result<Place<'a>> {
    let field = format!("{}/config.yaml: transcoders", source.name());
    let Some(remote) = place.strip_prefix("hf://") else {
        plain_relative(place, &field)?;
        return Ok(Place::Here(place));
    };
    let (path, revision) = remote.split_once("?revision=").unwrap_or((remote, "main"));
    let [owner, name, file] = path.splitn(3, '/').collect::<Vec<_>>()[..] else {
        return Err(Error::expected(ErrorKind::BadFile, field, shown(place), "hf://owner/name/file"));
    };
    plain_relative(file, &field)?;
    if !fetch && matches!(source, Source::Folder(_)) {
        return Err(Error::expected(ErrorKind::Unsupported, field, shown(place), "files in the folder: a folder on disk does not make this program fetch from the hub")
            .help("if that is meant, set CltLoadConfig::fetch (clt convert --fetch keeps a copy), or load the CLT by its hub name"));
    }
    Ok(Place::Hub(HubRepo::open(&format!("{owner}/{name}@{revision}"), &HubConfig::default()).map_err(|error| error.context(&field))?, file))
}

/// Shape, activation and whether there are skip connections, from `config.yaml` and the first file.
pub(super) fn shape(source: &Source, yaml: &Yaml, fetch: bool) -> Result<(usize, [usize; 2], Activation, bool)> {
    let files = files(source, yaml, fetch)?;
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
pub(super) fn layers(source: &Source, yaml: &Yaml, fetch: bool, config: &CltConfig, device: &Device, mut read: impl FnMut(usize)) -> Result<Vec<Layer>> {
    let (f, d) = (config.features, config.width);
    let jumps = matches!(config.activation, Activation::JumpRelu { .. });
    let files = files(source, yaml, fetch)?;
    if files.len() != config.layers {
        return Err(Error::expected(ErrorKind::BadFile, format!("{}: layer files", source.name()), files.len(), config.layers));
    }
    let home = Decoder::home(config, device)?;
    let layer = |(l, path): (usize, &PathBuf)| {
        let reader = Reader::open(path)?;
        if reader.shape(SKIP).is_some() != config.skip {
            let (got, expected) = if config.skip { ("missing", "present") } else { ("present", "missing") };
            return Err(Error::expected(ErrorKind::BadTensor, format_args!("{}: {SKIP}", path.display()), got, expected)
                .help("every layer must have a skip connection, or none (in a folder of ours, cltlab.json says which)"));
        }
        let mut known = vec!["W_enc", "b_enc", "W_dec", "b_dec", SKIP];
        known.extend(jumps.then_some(THRESHOLD));
        reader.only(&known)?;
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
            let decoder = self.decoder(l)?.squeeze(1)?;
            let skip = self.skip(l)?.map(|skip| skip.t()).transpose()?;
            let mut tensors = vec![
                ("W_enc".to_string(), vec![f, d], self.encoder(l)?),
                ("b_enc".to_string(), vec![f], self.encoder_bias(l)?),
                ("W_dec".to_string(), vec![f, d], &decoder),
                ("b_dec".to_string(), vec![d], self.decoder_bias(l)?),
            ];
            tensors.extend(self.threshold(l)?.map(|threshold| (THRESHOLD.to_string(), vec![f], threshold)));
            tensors.extend(skip.as_ref().map(|skip| (SKIP.to_string(), vec![d, d], skip)));
            write_as(&folder.join(format!("layer_{l}.safetensors")), &tensors, dtype)?;
        }
        Ok(())
    }
}
