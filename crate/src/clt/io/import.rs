//! Which format a folder is in, and reading it: one [`Format`] per program.

use super::source::Source;
use super::{clt_forge, circuit_tracer, crosslayer_coding, crosslayer_transcoder, gemma_scope, gemma_scope_2, sae_lens, sparsify};
use crate::activations::InputSite;
use crate::clt::{Clt, CltConfig};
use crate::device::{auto_device, require_own};
use crate::error::{Error, ErrorKind, Result};
use crate::files::names;
use crate::model::OutputSite;
use candle_core::Device;
use std::path::Path;

/// The formats of CLTs and per-layer transcoders that are read and written.
///
/// ```
/// use cltlab::clt::Format;
/// assert_eq!("clt-forge".parse::<Format>()?, Format::CltForge);
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Format {
    /// circuit-tracer's folder, and ours: `config.yaml` with `W_enc_i` and `W_dec_i`, or with a file a layer.
    CircuitTracer,
    /// crosslayer-coding: `cfg.json` with `clt_checkpoint_latest.safetensors` or `model.safetensors`.
    CrosslayerCoding,
    /// EleutherAI's clt-training and sparsify: a folder a layer with `cfg.json` and `sae.safetensors`.
    Sparsify,
    /// CLT-Forge: `clt_cfg.json` with `clt_weights.safetensors`, whole or in shards.
    CltForge,
    /// crosslayer-transcoder: `config.yaml` with `checkpoint.safetensors`.
    CrosslayerTranscoder,
    /// Gemma Scope's transcoders: `params.npz`, one a layer.
    GemmaScope,
    /// Gemma Scope 2: `params.safetensors` a layer, or a CLT's `params_layer_i.safetensors`.
    GemmaScope2,
    /// SAELens: a folder a layer with `cfg.json` and `sae_weights.safetensors`.
    SaeLens,
}

impl Format {
    /// All of them, in the order in which a folder is asked.
    #[doc(hidden)]
    pub const ALL: [Format; 8] = [
        Format::CircuitTracer,
        Format::CrosslayerTranscoder,
        Format::CltForge,
        Format::CrosslayerCoding,
        Format::Sparsify,
        Format::SaeLens,
        Format::GemmaScope,
        Format::GemmaScope2,
    ];

    /// The name on the command line: `circuit-tracer`, `clt-forge` and so on.
    pub fn name(self) -> &'static str {
        match self {
            Format::CircuitTracer => "circuit-tracer",
            Format::CrosslayerCoding => "crosslayer-coding",
            Format::Sparsify => "sparsify",
            Format::CltForge => "clt-forge",
            Format::CrosslayerTranscoder => "crosslayer-transcoder",
            Format::GemmaScope => "gemma-scope",
            Format::GemmaScope2 => "gemma-scope-2",
            Format::SaeLens => "saelens",
        }
    }

    /// The files by which a folder of this format is known.
    fn files(self) -> &'static str {
        match self {
            Format::CircuitTracer => "config.yaml with W_enc_0.safetensors and W_dec_0.safetensors, or with a file a layer",
            Format::CrosslayerCoding => "cfg.json with clt_checkpoint_latest.safetensors or model.safetensors",
            Format::Sparsify => "a folder a layer with cfg.json and sae.safetensors",
            Format::CltForge => "clt_cfg.json with clt_weights.safetensors",
            Format::CrosslayerTranscoder => "config.yaml with checkpoint.safetensors",
            Format::GemmaScope => "params.npz, one a layer",
            Format::GemmaScope2 => "params.safetensors a layer, or params_layer_0.safetensors and so on",
            Format::SaeLens => "a folder a layer with cfg.json and sae_weights.safetensors",
        }
    }

    /// The format of a folder or hub repository, by its files.
    ///
    /// # Errors
    /// `Unsupported` for a folder that holds pickles, `BadFile` for one of no known format, and what
    /// [`Clt::load`] says of sources.
    #[doc(hidden)]
    pub fn of(source: &str) -> Result<Self> {
        Format::detect(&Source::open(source)?)
    }

    fn detect(source: &Source) -> Result<Self> {
        for format in Format::ALL {
            let found = match format {
                Format::CircuitTracer => circuit_tracer::is_here(source)?,
                Format::CrosslayerTranscoder => crosslayer_transcoder::is_here(source)?,
                Format::CltForge => clt_forge::is_here(source)?,
                Format::CrosslayerCoding => crosslayer_coding::is_here(source)?,
                Format::Sparsify => sparsify::is_here(source)?,
                Format::SaeLens => sae_lens::is_here(source)?,
                Format::GemmaScope => gemma_scope::is_here(source)?,
                Format::GemmaScope2 => gemma_scope_2::is_here(source)?,
            };
            if found {
                return Ok(format);
            }
        }
        source.refuse_pickles()?;
        if matches!(source, Source::Hub(..)) {
            // A repository that does not exist has no files either: let the hub say so.
            source.file("config.yaml")?;
        }
        if let Some(inner) = source.inside("clt").filter(|inner| circuit_tracer::is_here(inner).unwrap_or(false)) {
            return Err(Error::expected(ErrorKind::BadFile, source.name(), "the folder of a training", "the folder of a CLT").help(format!("give the CLT in it: {}", inner.name())));
        }
        let files: Vec<String> = Format::ALL.map(|format| format!("{} ({})", format.name(), format.files())).to_vec();
        Err(Error::expected(ErrorKind::BadFile, source.name(), "files of no known format", format_args!("those of one of these: {}", files.join("; ")))
            .help("folders of layers are searched on disk, not on the hub"))
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = || Format::ALL.map(Format::name).join(", ");
        Format::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| Error::expected(ErrorKind::BadInput, "format", format_args!("'{text}'"), names()))
    }
}

/// Where a CLT is put, and what its files do not say, or say otherwise. The default leaves all to them.
///
/// ```
/// use cltlab::activations::InputSite;
/// use cltlab::clt::CltLoadConfig;
/// let config = CltLoadConfig { input: Some(InputSite::ResidMid), ..CltLoadConfig::default() };
/// ```
#[derive(Clone, Debug, Default)]
pub struct CltLoadConfig {
    /// `None`: what [`auto_device`](crate::auto_device) finds. A [`Replacement`](crate::Replacement) needs the model's.
    pub device: Option<Device>,
    /// The format. Default: by the folder's files.
    pub format: Option<Format>,
    /// What the encoders read. Default: what the files say, or the one site that the program has.
    pub input: Option<InputSite>,
    /// What the decoders write to. Default: likewise.
    pub output: Option<OutputSite>,
    /// The model's name. Default: what the files say, or none.
    pub model_name: Option<String>,
    /// Fetch what a folder on disk lists as `hf://owner/name/file`; a repository's own list is always fetched. Default: no,
    /// such a folder is refused.
    pub fetch: bool,
}

impl CltLoadConfig {
    /// The defaults, on `device`.
    pub fn on(device: &Device) -> Self {
        CltLoadConfig { device: Some(device.clone()), ..CltLoadConfig::default() }
    }

    /// Puts what is said here over what the files said.
    pub(super) fn amend(&self, config: &mut CltConfig) {
        config.input = self.input.unwrap_or(config.input);
        config.output = self.output.unwrap_or(config.output);
        if let Some(name) = &self.model_name {
            config.model_name.clone_from(name);
        }
    }
}

impl Clt {
    /// Reads a CLT or a set of per-layer transcoders, in any [`Format`], from a folder or from the hub
    /// (`owner/name`, `owner/name@revision`, `owner/name//folder@revision`).
    ///
    /// A CLT in circuit-tracer's format, which is ours, stays in its files until it is used; others are
    /// read whole. Normalisation is folded in, thresholds are real values, biases per pair of layers are
    /// summed, so that the CLT is the same function of the model's own values: tests compare it with each
    /// program's own results to 1e-5. What cannot be represented is refused.
    ///
    /// # Errors
    /// `MissingFile`, `BadFile` (truncated, of no known format), `BadTensor` (name, shape), `Unsupported`
    /// (pickles, another hook, content that no CLT here can represent), each with the file; `Network` for the hub.
    ///
    /// ```no_run
    /// # use cltlab::{candle::Device, clt::{Clt, CltLoadConfig}};
    /// let clt = Clt::load("runs/first/clt", &CltLoadConfig::default())?;
    /// let on_the_cpu = Clt::load("mntss/clt-gemma-2-2b-426k", &CltLoadConfig::on(&Device::Cpu))?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn load(source: impl AsRef<Path>, config: &CltLoadConfig) -> Result<Clt> {
        Self::open(names::source(source.as_ref())?, config)
    }

    fn open(source: &str, config: &CltLoadConfig) -> Result<Clt> {
        let device = config.device.clone().map_or_else(auto_device, Ok)?;
        require_own(&device)?;
        let source = Source::open(source)?;
        let format = config.format.map_or_else(|| Format::detect(&source), Ok)?;
        let read = match format {
            Format::CircuitTracer => circuit_tracer::load,
            Format::CrosslayerTranscoder => crosslayer_transcoder::load,
            Format::CltForge => clt_forge::load,
            Format::CrosslayerCoding => crosslayer_coding::load,
            Format::Sparsify => sparsify::load,
            Format::SaeLens => sae_lens::load,
            Format::GemmaScope => gemma_scope::load,
            Format::GemmaScope2 => gemma_scope_2::load,
        };
        read(&source, config, &device)
    }
}
