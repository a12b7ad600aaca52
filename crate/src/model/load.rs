//! Loading: a hub name, a folder, a GGUF file or a llama2.c checkpoint to a [`Model`].

use super::rotary::Rotaries;
use super::weights::Weights;
use super::{family, shards, GenerateConfig, Inner, Model, ModelConfig, OutputSite};
use crate::device::{auto_device, require_own};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::hub::{HubConfig, HubRepo};
use crate::included;
use crate::text::placeholder::{stands_in, warn};
use crate::text::Tokenizer;
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a model is put and how its weights are held.
///
/// ```
/// use cltlab::candle::DType;
/// use cltlab::model::LoadConfig;
/// let half = LoadConfig { dtype: Some(DType::BF16), ..LoadConfig::default() };
/// let here = LoadConfig { dtype: Some(DType::BF16), ..LoadConfig::on(&cltlab::auto_device()?) };
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoadConfig {
    /// The type in which maps and embeddings are held: f32, or bf16 or f16, which halve their memory.
    /// `None`: f32 on the CPU, bf16 on a GPU. Norms, softmax, rotary positions and the residual
    /// stream are computed in f32 whatever it is, and sites and logits are given in f32.
    pub dtype: Option<DType>,
    /// `None`: what [`auto_device`] finds.
    pub device: Option<Device>,
    /// Where `mlp_out` is, wherever it is kept, shown, replaced or carried to, in families with a norm after the MLP:
    /// before that norm, which is the default, or after it. A [`Replacement`](crate::Replacement) takes it where its
    /// CLT writes.
    pub output: Option<OutputSite>,
}

impl LoadConfig {
    /// The defaults, on `device`.
    pub fn on(device: &Device) -> Self {
        LoadConfig { device: Some(device.clone()), ..LoadConfig::default() }
    }

    fn target<'a>(&self, device: &'a Device) -> Target<'a> {
        let usual = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        Target { device, dtype: self.dtype.unwrap_or(usual), output: self.output.unwrap_or(OutputSite::BeforeNorm), sampling: GenerateConfig::default() }
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub(crate) fn validate(&self) -> Result<()> {
        match self.dtype {
            None | Some(DType::F32 | DType::BF16 | DType::F16) => Ok(()),
            Some(other) => Err(Error::expected(ErrorKind::BadConfig, "LoadConfig::dtype", other.as_str(), "f32, bf16 or f16")),
        }
    }
}

/// Where the tensors go, and as what; how the model's makers sample.
struct Target<'a> {
    device: &'a Device,
    dtype: DType,
    output: OutputSite,
    sampling: GenerateConfig,
}

impl Model {
    /// Loads a model, by default on the device that [`auto_device`] finds, in f32 on the CPU and in bf16 on a GPU.
    ///
    /// `source` is a local folder (`config.json`, `model.safetensors` or shards, `tokenizer.json`),
    /// a `.gguf` file (of a model split into parts the first), a llama2.c `.bin` checkpoint (with `tokenizer.bin` beside it),
    /// `states` (the small model that comes with the library: [`crate::states`]), or else a repository of the Hugging Face hub, `owner/name` or `owner/name@revision`.
    ///
    /// ```no_run
    /// # use cltlab::{candle::{DType, Device}, model::LoadConfig, Model};
    /// let small = Model::load("states", &LoadConfig::default())?;
    /// let model = Model::load("gpt2", &LoadConfig::default())?;
    /// let on_the_cpu = Model::load("SmolLM2-135M-Instruct.Q4_1.gguf", &LoadConfig::on(&Device::Cpu))?;
    /// let half = Model::load("EleutherAI/pythia-1.4b", &LoadConfig { dtype: Some(DType::BF16), ..LoadConfig::default() })?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `MissingFile`, `BadFile` (truncated, not the format), `UnknownArchitecture`, `BadTensor`
    /// (missing or of another shape), `Network`, `AccessDenied` (private or gated), `OutOfMemory`; `BadConfig` for
    /// another dtype, and for weights that f16 cannot hold.
    pub fn load(source: impl AsRef<Path>, config: &LoadConfig) -> Result<Model> {
        Self::open(files::names::source(source.as_ref())?, config)
    }

    fn open(source: &str, config: &LoadConfig) -> Result<Model> {
        config.validate()?;
        let device = config.device.clone().map_or_else(auto_device, Ok)?;
        require_own(&device)?;
        let target = config.target(&device);
        match find(source)? {
            Source::Folder(folder) => Self::load_folder(folder, source, target),
            Source::Gguf(path) => Self::load_gguf(path, target),
            Source::Llama2c(path) => Self::load_llama2c(path, target),
            Source::Included => Self::load_included(target),
            Source::Hub => Self::load_folder(&fetch(source)?, source, target),
        }
    }

    fn load_included(target: Target<'_>) -> Result<Model> {
        let config = family::config_from_json(&included::json("config.json", included::CONFIG)?, included::STATES)?;
        let tensors = candle_core::safetensors::load_buffer(included::WEIGHTS, &Device::Cpu)?;
        let tokenizer = Tokenizer::from_memory(included::TOKENIZER, included::json("tokenizer_config.json", included::TOKENIZER_CONFIG)?)?;
        let weights = Weights::Memory { tensors, path: PathBuf::from(included::STATES) };
        Self::assemble(included::STATES.to_string(), config, weights, Some(tokenizer), target)
    }

    /// A model from tensors that are in memory, under Hugging Face's names; `config` is what its `config.json` would hold.
    /// It has no tokenizer.
    ///
    /// # Errors
    /// `Unsupported` for an unknown architecture, `BadConfig` and `BadTensor` naming the field or tensor.
    ///
    /// ```no_run
    /// # use cltlab::{candle::{safetensors, Device}, model::LoadConfig, Model};
    /// let config = serde_json::json!({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024});
    /// let tensors = safetensors::load("model.safetensors", &Device::Cpu)?;
    /// let model = Model::from_tensors("mine", &config, tensors, &LoadConfig::default())?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn from_tensors(name: &str, config: &serde_json::Value, tensors: HashMap<String, Tensor>, load: &LoadConfig) -> Result<Model> {
        load.validate()?;
        let device = load.device.clone().map_or_else(auto_device, Ok)?;
        require_own(&device)?;
        let weights = Weights::Memory { tensors, path: PathBuf::from(name) };
        Self::assemble(name.to_string(), family::config_from_json(config, name)?, weights, None, load.target(&device))
    }

    fn load_folder(folder: &Path, name: &str, target: Target<'_>) -> Result<Model> {
        let place = folder.join("config.json");
        if let Some(error) = stands_in(&place) {
            return Err(error);
        }
        let mut config = family::config_from_json(&files::read_json_object(&place)?, &place.display().to_string())?;
        let published = folder.join("generation_config.json");
        let mut sampling = GenerateConfig::default();
        if published.exists() {
            let (stops, own) = family::generation(&files::read_json_object(&published)?, &published.display().to_string())?;
            config.stop_tokens = stops.unwrap_or(config.stop_tokens);
            sampling = own;
        }
        let file = folder.join("tokenizer.json");
        let tokenizer = if file.exists() { Some(Tokenizer::from_file(&file)?) } else { None };
        config.special_token = config.special_token.or(tokenizer.as_ref().and_then(Tokenizer::front));
        Self::assemble(short_name(name), config, Weights::open_folder(folder)?, tokenizer, Target { sampling, ..target })
    }

    fn load_gguf(path: &Path, target: Target<'_>) -> Result<Model> {
        let weights = Weights::open_gguf(path)?;
        let Weights::Gguf(parts) = &weights else { return Err(not_gguf(path)) };
        let content = &parts.content;
        let mut config = family::config_from_gguf(content, &path.display().to_string())?;
        let beside = path.with_file_name("tokenizer.json");
        let inside = || Tokenizer::from_gguf_header(content).map(|tokenizer| tokenizer.at(path)).map_err(|error| error.context(path.display()));
        let tokenizer = if beside.exists() {
            Some(Tokenizer::from_file(&beside)?.or_chat_of(content).map_err(|error| error.context(path.display()))?)
        } else if content.metadata.contains_key("tokenizer.ggml.model") {
            Some(inside()?)
        } else {
            None
        };
        config.special_token = config.special_token.or(tokenizer.as_ref().and_then(Tokenizer::front));
        Self::assemble(short_name(&path.to_string_lossy()), config, weights, tokenizer, target)
    }

    fn load_llama2c(path: &Path, target: Target<'_>) -> Result<Model> {
        let (config, weights) = family::llama2c::open(path)?;
        let beside = path.with_file_name("tokenizer.bin");
        let tokenizer = if beside.exists() { Some(Tokenizer::from_llama2c(&beside, config.vocab)?) } else { None };
        Self::assemble(short_name(&path.to_string_lossy()), config, weights, tokenizer, target)
    }

    fn assemble(name: String, mut config: ModelConfig, weights: Weights, tokenizer: Option<Tokenizer>, target: Target<'_>) -> Result<Model> {
        config.validate().map_err(|error| error.context(weights.path().display()))?;
        let Target { device, dtype, output, sampling } = target;
        if family::has_own_head(&config, &weights)? {
            warn(format_args!("{}: the configuration says tie_word_embeddings, but the file has an unembedding of its own, which is used", weights.path().display()));
            config.tied = false;
        }
        let parts = family::load(&config, &weights, device, dtype)?;
        let fingerprint = fingerprint(&config, &parts.sample);
        let rotaries = Rotaries::new(&config, parts.rope_divisors.as_ref(), device)?;
        Ok(Model(Arc::new(Inner { name, config, parts, rotaries, tokenizer, device: device.clone(), dtype, sampling, fingerprint }), output))
    }
}

/// Where a model lies.
pub(super) enum Source<'a> {
    Folder(&'a Path),
    Gguf(&'a Path),
    Llama2c(&'a Path),
    Included,
    Hub,
}

/// What `source` names, as [`Model::load`] says.
pub(super) fn find(source: &str) -> Result<Source<'_>> {
    let path = Path::new(source);
    if path.is_dir() {
        return if path.join("config.json").exists() { Ok(Source::Folder(path)) } else { Err(no_config(path)) };
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gguf") => Ok(Source::Gguf(path)),
        Some("bin") => Ok(Source::Llama2c(path)),
        _ if included::is_named(path) => Ok(Source::Included),
        _ if path.exists() => Err(Error::expected(ErrorKind::BadFile, source, "a file of unknown kind", "a folder, .gguf or .bin")),
        _ if source.starts_with(['.', '/', '~']) || source.matches('/').count() > 1 || source.is_empty() => {
            Err(Error::new(ErrorKind::MissingFile, format!("{source}: no such file or folder")).help("give a folder, a .gguf file, or a hub name like gpt2"))
        }
        _ => Ok(Source::Hub),
    }
}

/// A folder that is no Hugging Face model, and what of it could be loaded.
fn no_config(folder: &Path) -> Error {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    names.sort();
    let llama2c = folder.join("tokenizer.bin");
    let is_model = |path: &&PathBuf| path.extension().is_some_and(|end| end == "gguf" || (end == "bin" && llama2c.exists() && **path != llama2c));
    let help = match names.iter().find(is_model) {
        Some(file) => format!("give the file itself: {}", file.display()),
        None => "give a folder with config.json, *.safetensors and tokenizer.json, a .gguf file, or a hub name like gpt2".into(),
    };
    Error::new(ErrorKind::MissingFile, format!("{}: no such file", folder.join("config.json").display())).help(help)
}

pub(super) fn not_gguf(path: &Path) -> Error {
    Error::new(ErrorKind::BadFile, format!("{}: not a GGUF file", path.display()))
}

/// Fetches what a repository needs and returns the folder it lies in. The tokenizer, its chat
/// templates and the sampling are taken where there are any; the weights come last, so where they lie
/// here already the rest was asked for, and without a network what is missing is taken as absent.
fn fetch(source: &str) -> Result<PathBuf> {
    let repo = HubRepo::open(source, &HubConfig::default())?;
    let config = repo.file("config.json")?;
    let has_weights = ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| repo.cached(name).is_some());
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"] {
        match repo.optional(name) {
            Err(error) if error.kind() == ErrorKind::Network && has_weights => {}
            other => drop(other?),
        }
    }
    let sharded = repo.cached("model.safetensors.index.json").is_some();
    if sharded || repo.optional("model.safetensors")?.is_none() {
        let index = repo.optional("model.safetensors.index.json")?.ok_or_else(|| {
            Error::expected(ErrorKind::MissingFile, format_args!("hub {source}"), "no model.safetensors", "weights in safetensors form")
                .help("older repositories hold pickled weights, which are not read: look for a revision or a copy with safetensors")
        })?;
        let shards = shards::weight_map(&files::read_json_object(&index)?, &index)?;
        let names: std::collections::BTreeSet<&String> = shards.values().collect();
        for name in names {
            repo.file(name)?;
        }
    }
    config.parent().map(Path::to_path_buf).ok_or_else(|| Error::new(ErrorKind::MissingFile, format!("{source}: no folder in the cache")))
}

pub(super) fn short_name(source: &str) -> String {
    let trimmed = source.trim_end_matches('/');
    let last = trimmed.rsplit('/').next().unwrap_or(trimmed);
    last.trim_end_matches(".gguf").to_string()
}

/// FNV-1a over the configuration and every layer's first output weights.
fn fingerprint(config: &ModelConfig, sample: &[Vec<f32>]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(format!("{} {} {} {} {}", config.architecture, config.layers, config.width, config.heads, config.vocab).as_bytes());
    for value in sample.iter().flatten() {
        add(&value.to_le_bytes());
    }
    format!("{hash:016x}")
}
