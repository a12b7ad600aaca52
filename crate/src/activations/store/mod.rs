//! A store: the activations of a corpus on disk, for trainings that go over them more than once.
//!
//! `activations.json` says what they are; `shard-00000.safetensors` and so on hold, for each layer,
//! `input.{l}` and `target.{l}` `[tokens, d]` in the order of the corpus. Each shard is written whole or
//! not at all, so that a store that was interrupted goes on; each block has a checksum, tested when it
//! is read. As f32 a training sees what it would see streaming. Cost on disk: 8·L·d bytes a token as
//! f32, half as f16 or bf16, a quarter as int8; zstd takes off what it can. Cost in time: 2,032 tokens of
//! SmolLM2-135M took some 7 s to make on two cores, half a second to read as f32, 0.8 s as int8 with zstd.

mod shard;
mod write;

use super::rounds::Rounds;
use super::{Activations, Batch, Inner, InputSite, Outliers, Source};
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::OutputSite;
use crate::progress::{stop_requested, Task};
use rayon::prelude::*;
use shard::Shard;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

const MANIFEST: &str = "activations.json";
const VERSION: u32 = 1;
/// Places within a shard are counted in 32 bits.
const LARGEST_SHARD: u64 = 4 << 30;

/// How a stored value is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoreFormat {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes, 11 bits of precision, up to 65,504: refused for larger values.
    F16,
    /// 2 bytes, 8 bits of precision.
    Bf16,
    /// 1 byte, with a symmetric scale for each layer, side and dimension in each shard. For each
    /// dimension, because a residual stream has a few that are a hundred times larger than the
    /// rest: with one scale a layer all others would be 0.
    Int8,
}

/// What is stored and how.
///
/// ```
/// use cltlab::activations::{StoreConfig, StoreFormat};
/// let config = StoreConfig { format: StoreFormat::Bf16, max_tokens: Some(1_000_000), ..StoreConfig::default() };
/// // GPT-2 small: 12 layers of width 768.
/// assert_eq!(config.bytes(12, 768, 1_000_000), 36_864_000_000);
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Which site the encoders read. Default: the residual before the MLP's norm.
    pub input: InputSite,
    /// Tokens in a context, the special first one included. Default 128.
    pub context: usize,
    /// Contexts that the model runs at once. Default 8.
    pub batch: usize,
    /// Positions left out at the start of each context, and special tokens anywhere. Default 1.
    pub exclude_first: usize,
    /// Tokens are left out whose input or target at any layer is longer than this multiple of the context's median: attention
    /// sinks of models without a special first token, hundreds of times as long as others, wherever in a
    /// context they come to stand (`max_activation_norm_multiple` in dictionary_learning). `None` keeps all.
    /// Default 100.
    pub max_norm: Option<f64>,
    /// Tokens of the corpus that are stored at most; `None` for all. Default `None`.
    pub max_tokens: Option<usize>,
    /// How values are kept. Default f32.
    pub format: StoreFormat,
    /// Level of zstd compression, 1 to 22; `None` for none. On SmolLM2-135M level 3 leaves 88 % of
    /// int8, 79 % of bf16 and 93 % of f32; higher levels take off no more. Default `None`.
    pub zstd: Option<i32>,
    /// Bytes of f32 values that make a shard, about, at most 4 GiB; this much memory is needed, twice.
    /// Default 512 MiB.
    pub shard_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig { input: InputSite::default(), context: 128, batch: 8, exclude_first: 1, max_norm: Some(100.0), max_tokens: None, format: StoreFormat::F32, zstd: None, shard_bytes: 512 << 20 }
    }
}

impl StoreConfig {
    /// Bytes on disk of `tokens` tokens, before compression.
    #[doc(hidden)]
    pub fn bytes(&self, layers: usize, width: usize, tokens: usize) -> u64 {
        let each = match self.format {
            StoreFormat::F32 => 4,
            StoreFormat::F16 | StoreFormat::Bf16 => 2,
            StoreFormat::Int8 => 1,
        };
        [width as u64, tokens as u64].into_iter().fold(2 * each * layers as u64, u64::saturating_mul)
    }

    /// Checks the fields against the model's longest context.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub(crate) fn validate(&self, longest: usize) -> Result<()> {
        let bad = |field: &str, got: String, expected: String| Err(Error::expected(ErrorKind::BadConfig, format_args!("StoreConfig::{field}"), got, expected));
        if self.context < 2 || self.context > longest {
            return bad("context", self.context.to_string(), format!("2 to {longest}, the model's context"));
        }
        if self.exclude_first >= self.context {
            return bad("exclude_first", self.exclude_first.to_string(), format!("less than the context, {}", self.context));
        }
        if self.batch == 0 {
            return bad("batch", "0".into(), "at least 1".into());
        }
        Error::at_most(ErrorKind::BadConfig, "StoreConfig::batch", self.batch, super::stream::MOST_BLOCKS)?;
        if !(1..=LARGEST_SHARD).contains(&self.shard_bytes) {
            return bad("shard_bytes", self.shard_bytes.to_string(), format!("1 to {LARGEST_SHARD}"));
        }
        Outliers::validate(self.max_norm, "StoreConfig::max_norm")?;
        match self.zstd {
            Some(level) if !(1..=22).contains(&level) => bad("zstd", level.to_string(), "1 to 22, or none".into()),
            _ => Ok(()),
        }
    }
}

/// How a store is read.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadConfig {
    /// Tokens that are held and shuffled together; `None` takes what 1 GiB holds, at most 65,536.
    pub buffer_tokens: Option<usize>,
    /// How many times each buffered token is used before the buffer is filled again. Default 1.
    pub passes: usize,
    /// Seed of the order of blocks and tokens. Default 0.
    pub seed: u64,
    /// Read the next filling while the present one is used, in twice the memory. Default yes.
    pub ahead: bool,
}

impl Default for ReadConfig {
    fn default() -> Self {
        ReadConfig { buffer_tokens: None, passes: 1, seed: 0, ahead: true }
    }
}

/// What a store holds; written once, before the first shard, and repeated in each.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    model_name: String,
    model_fingerprint: String,
    output: OutputSite,
    layers: usize,
    width: usize,
    input: InputSite,
    context: usize,
    exclude_first: usize,
    max_norm: Option<f64>,
    format: StoreFormat,
    zstd: Option<i32>,
    /// Checksum of the token ids.
    text: String,
    blocks: usize,
    shard_blocks: usize,
}

impl Manifest {
    /// Tokens that are served of each block, special ones within not counted.
    fn served(&self) -> usize {
        self.context - self.exclude_first
    }

    /// Refuses sizes that no store has.
    fn check(&self) -> Result<()> {
        let sizes = [("layers", self.layers, 1 << 16), ("width", self.width, 1 << 24), ("context", self.context, 1 << 30), ("blocks", self.blocks, 1 << 48), ("shard_blocks", self.shard_blocks, 1 << 48)];
        for (field, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(Error::expected(ErrorKind::BadFile, field, size, format_args!("1 to {most}")));
            }
        }
        if self.exclude_first >= self.context {
            return Err(Error::expected(ErrorKind::BadFile, "exclude_first", self.exclude_first, format_args!("less than the context, {}", self.context)));
        }
        Ok(())
    }

    fn shards(&self) -> usize {
        self.blocks.div_ceil(self.shard_blocks.max(1))
    }

    /// The first field in which two stores differ, with both values.
    fn difference(&self, other: &Manifest) -> Option<(String, String, String)> {
        let fields = |manifest: &Manifest| serde_json::to_value(manifest).unwrap_or_default();
        let (own, other) = (fields(self), fields(other));
        let found = own.as_object()?.iter().find(|(name, value)| other.get(name) != Some(value))?;
        Some((found.0.clone(), found.1.to_string(), other.get(found.0).map_or_else(String::new, ToString::to_string)))
    }
}

fn shard_path(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("shard-{index:05}.safetensors"))
}

/// An open store.
pub(super) struct Store {
    manifest: Manifest,
    shards: Vec<Shard>,
    rounds: Rounds,
    ahead: bool,
}

impl Activations {
    /// Loads activations from `source`: the folder of a store that [`Activations::store`] wrote, or a safetensors file that
    /// another program made.
    ///
    /// A store's values are read when they are needed, and tested then. A file is read whole and held in memory, as
    /// f32; each pass serves every token once, in a new order, and `config` must be the default. Its tensors are
    /// `input.{l}` (what the encoder of layer l reads) and `target.{l}` (what is to be reconstructed), all
    /// `[tokens, d]`, for l from 0 on; others are not read.
    ///
    /// ```no_run
    /// use cltlab::activations::{Activations, ReadConfig, StoreConfig};
    /// use cltlab::{Corpus, Model};
    /// let model = Model::load("gpt2", &Default::default())?;
    /// let corpus = Corpus::load("stories.txt", &Default::default())?;
    /// Activations::store(&model, &corpus, "runs/activations", &StoreConfig::default())?;
    /// let stored = Activations::load("runs/activations", &ReadConfig { passes: 4, ..ReadConfig::default() })?;
    /// let of_another_program = Activations::load("gpt2_activations.safetensors", &ReadConfig::default())?;
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// `MissingFile` for the file, the folder or a shard; `BadFile` for one that is cut off, damaged or no safetensors
    /// file; `Mismatch` for a shard of another store (another model or text), naming what differs; `BadTensor` naming
    /// the tensor that is missing (the first, where a layer is left out), has another shape than `input.0` or another
    /// type; `NotFinite`; `BadConfig`; `OutOfMemory` when the predicted size exceeds what is free.
    pub fn load(source: impl AsRef<Path>, config: &ReadConfig) -> Result<Self> {
        let source = source.as_ref();
        if source.is_dir() {
            return Self::open(source, config);
        }
        if source.is_file() && *config != ReadConfig::default() {
            return Err(Error::expected(ErrorKind::BadConfig, format_args!("{}: ReadConfig", source.display()), format_args!("{config:?}"), "the default, because a file is held whole in memory"));
        }
        Self::read_file(source)
    }

    fn open(folder: &Path, config: &ReadConfig) -> Result<Self> {
        let manifest: Manifest = files::read_json_object(folder.join(MANIFEST))?;
        if manifest.version != VERSION {
            return Err(Error::expected(ErrorKind::BadFile, format_args!("{}: version", folder.join(MANIFEST).display()), manifest.version, VERSION));
        }
        manifest.check().map_err(|error| error.context(folder.join(MANIFEST).display()))?;
        for (field, value) in [("passes", config.passes), ("buffer_tokens", config.buffer_tokens.unwrap_or(1))] {
            if value == 0 {
                return Err(Error::expected(ErrorKind::BadConfig, format_args!("ReadConfig::{field}"), 0, "at least 1"));
            }
        }
        let shards = (0..manifest.shards()).map(|index| Shard::open(folder, index, &manifest)).collect::<Result<Vec<_>>>()?;
        if shards.iter().all(|shard| shard.tokens() == 0) {
            return Err(Error::expected(ErrorKind::BadFile, folder.display(), "no token in any shard", "at least one"));
        }
        let (layers, width) = (manifest.layers, manifest.width);
        let served = manifest.served();
        let wanted = config.buffer_tokens.unwrap_or(Rounds::usual_tokens(layers, width));
        let rounds = Rounds::new(manifest.blocks, served, wanted, config.seed, config.passes);
        require_memory("buffer of activations", rounds.bytes(layers, width, served, config.ahead), "lower ReadConfig::buffer_tokens, or set ReadConfig::ahead to false")?;
        Ok(Activations(Arc::new(Inner {
            layers,
            width,
            input: manifest.input,
            output: manifest.output,
            model_name: manifest.model_name.clone(),
            model_fingerprint: manifest.model_fingerprint.clone(),
            text: manifest.text.clone(),
            source: Source::Store(Store { manifest, shards, rounds, ahead: config.ahead }),
        })))
    }
}

impl Store {
    pub fn rounds(&self) -> &Rounds {
        &self.rounds
    }

    pub fn ahead(&self) -> bool {
        self.ahead
    }

    pub fn served(&self) -> usize {
        self.manifest.served()
    }

    pub fn tokens(&self) -> u64 {
        self.shards.iter().map(|shard| shard.tokens() as u64).sum()
    }

    /// Reads filling number `index` into `buffer`, silently when it can be cancelled.
    pub fn fill(&self, index: u64, buffer: &mut Batch, cancel: Option<&AtomicBool>) -> Result<()> {
        let order = self.rounds.order(index);
        let task = cancel.is_none().then(|| Task::new("read activations", 0, "tokens"));
        let per = self.manifest.shard_blocks;
        buffer.tokens = order.iter().map(|&block| self.shards[block / per].rows(block % per).len()).sum();
        for side in [&mut buffer.inputs, &mut buffer.targets] {
            side.resize_with(self.manifest.layers, Vec::new);
            side.iter_mut().for_each(Vec::clear);
        }
        let sides = buffer.inputs.par_iter_mut().enumerate().map(|(l, into)| (l, 0, into));
        let sides = sides.chain(buffer.targets.par_iter_mut().enumerate().map(|(l, into)| (l, 1, into)));
        sides.try_for_each(|(l, side, into)| {
            for &block in &order {
                if stop_requested() || cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                    return Err(Error::new(ErrorKind::Interrupted, "stopped while activations were read").help("run again to go on"));
                }
                self.shards[block / per].read(l, side, block % per, into)?;
            }
            Ok(())
        })?;
        if let Some(task) = task {
            task.finish(format!("{} tokens", buffer.tokens));
        }
        Ok(())
    }
}
