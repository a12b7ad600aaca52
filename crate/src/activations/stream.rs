//! Streaming: the model runs over shuffled blocks of the corpus and fills the buffer.

use super::{Batch, InputSite};
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Model;
use crate::progress::{stop_requested, Task};
use crate::text::{Blocks, Corpus};
use candle_core::{DType, Tensor};
use rand::seq::SliceRandom;
use rand::{rngs::StdRng, SeedableRng};

/// How activations are streamed.
///
/// ```
/// use cltlab::activations::StreamConfig;
/// let config = StreamConfig { context: 64, passes: 2, ..StreamConfig::default() };
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamConfig {
    /// Which site the encoders read. Default: the residual before the MLP's norm.
    pub input: InputSite,
    /// Tokens in a context, the special first one included. Default 128.
    pub context: usize,
    /// Contexts that the model runs at once. Default 8.
    pub batch: usize,
    /// Tokens that are held and shuffled together; `None` takes what 1 GiB holds, at most 65,536.
    pub buffer_tokens: Option<usize>,
    /// How many times each buffered token is used before the buffer is filled again. More than one
    /// spares runs of the model; the tokens are shuffled anew for each pass. Default 1.
    pub passes: usize,
    /// Positions left out at the start of each context, and special tokens anywhere. Default 1.
    pub exclude_first: usize,
    /// Seed of the order of blocks and tokens. Default 0.
    pub seed: u64,
    /// Tokens of the corpus that are used at most; `None` for all. Default `None`.
    pub max_tokens: Option<usize>,
}

impl Default for StreamConfig {
    fn default() -> Self {
        StreamConfig { input: InputSite::default(), context: 128, batch: 8, buffer_tokens: None, passes: 1, exclude_first: 1, seed: 0, max_tokens: None }
    }
}

impl StreamConfig {
    /// Checks the fields against the model's longest context.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub fn validate(&self, longest: usize) -> Result<()> {
        let bad = |field: &str, got: usize, expected: String| {
            Err(Error::expected(ErrorKind::BadConfig, format_args!("StreamConfig::{field}"), got, expected))
        };
        if self.context < 2 || self.context > longest {
            return bad("context", self.context, format!("2 to {longest}, the model's context"));
        }
        if self.exclude_first >= self.context {
            return bad("exclude_first", self.exclude_first, format!("less than the context, {}", self.context));
        }
        for (field, value) in [("batch", self.batch), ("passes", self.passes), ("buffer_tokens", self.buffer_tokens.unwrap_or(1))] {
            if value == 0 {
                return bad(field, 0, "at least 1".into());
            }
        }
        Ok(())
    }
}

/// A model, its packed corpus, and how to go through it.
pub(crate) struct Stream {
    model: Model,
    blocks: Blocks,
    config: StreamConfig,
    /// Blocks run for one filling of the buffer.
    chunk: usize,
}

impl Stream {
    pub fn new(model: &Model, corpus: &Corpus, config: &StreamConfig) -> Result<Self> {
        config.validate(model.context())?;
        let per_token = 8 * (model.layers() * model.width()) as u64;
        let wanted = config.buffer_tokens.unwrap_or(((1u64 << 30) / per_token).clamp(1, 65_536) as usize);
        let served = config.context - config.exclude_first;
        let blocks = corpus.blocks(model.tokenizer()?, model.special_token(), config.context, config.max_tokens)?;
        let chunk = wanted.div_ceil(served).min(blocks.len()).max(1);
        let buffer = per_token * (chunk * served) as u64;
        require_memory("buffer of activations", buffer, "lower StreamConfig::buffer_tokens")?;
        Ok(Stream { model: model.clone(), blocks, config: config.clone(), chunk })
    }

    pub fn seed(&self) -> u64 {
        self.config.seed
    }

    pub fn passes(&self) -> u64 {
        self.config.passes as u64
    }

    pub fn tokens(&self) -> u64 {
        (self.blocks.len() * (self.config.context - self.config.exclude_first)) as u64
    }

    /// Runs the blocks of filling number `index` and puts their activations into `buffer`. The
    /// blocks come in a new random order each time through the corpus, which follows from seed and
    /// number alone: a resumed training fills the same buffer.
    ///
    /// # Errors
    /// Those of the model; `Interrupted` when the user asked to stop meanwhile.
    pub fn fill(&self, index: u64, buffer: &mut Batch) -> Result<()> {
        let (layers, d) = (self.model.layers(), self.model.width());
        let order = self.order(index);
        let mut task = Task::new("run the model for activations", (order.len() * self.config.context) as u64, "tokens");
        buffer.tokens = 0;
        for side in [&mut buffer.inputs, &mut buffer.targets] {
            side.resize_with(layers, Vec::new);
            side.iter_mut().for_each(Vec::clear);
        }
        for (done, group) in order.chunks(self.config.batch).enumerate() {
            let ids: Vec<u32> = group.iter().filter_map(|&block| self.blocks.block(block)).flatten().copied().collect();
            let special = self.model.special_token();
            let kept: Vec<bool> = ids
                .iter()
                .enumerate()
                .map(|(at, id)| at % self.config.context >= self.config.exclude_first && special != Some(*id))
                .collect();
            let tokens = Tensor::from_vec(ids, (group.len(), self.config.context), self.model.device())?;
            let Batch { inputs, targets, .. } = &mut *buffer;
            self.model.visit_mlp(&tokens, &mut |layer, site| {
                append(&self.config.input.of(site)?, &kept, d, &mut inputs[layer])?;
                append(site.mlp_out, &kept, d, &mut targets[layer])
            })?;
            buffer.tokens += kept.iter().filter(|&&kept| kept).count();
            task.advance(((done + 1) * self.config.batch * self.config.context) as u64);
            if stop_requested() {
                return Err(Error::new(ErrorKind::Interrupted, "stopped while the model ran for the next activations").help("run again to go on"));
            }
        }
        if buffer.tokens == 0 {
            return Err(Error::new(ErrorKind::BadInput, "the corpus holds special tokens only").help("give other text"));
        }
        Ok(())
    }

    /// The blocks of one filling: a window of the endless sequence of shuffled rounds.
    fn order(&self, index: u64) -> Vec<usize> {
        let count = self.blocks.len() as u64;
        let (start, end) = (index * self.chunk as u64, (index + 1) * self.chunk as u64);
        let mut order = Vec::with_capacity(self.chunk);
        for round in start / count..=(end - 1) / count {
            let mut blocks: Vec<usize> = (0..self.blocks.len()).collect();
            blocks.shuffle(&mut StdRng::seed_from_u64(self.config.seed ^ (round + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            let (from, to) = (start.max(round * count) - round * count, end.min((round + 1) * count) - round * count);
            order.extend_from_slice(&blocks[from as usize..to as usize]);
        }
        order
    }
}

/// Appends the kept rows of `[rows, d]`.
fn append(values: &Tensor, kept: &[bool], d: usize, into: &mut Vec<f32>) -> Result<()> {
    let values = values.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    for (row, _) in values.chunks_exact(d).zip(kept).filter(|(_, &kept)| kept) {
        into.extend_from_slice(row);
    }
    Ok(())
}
