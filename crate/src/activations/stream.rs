//! Streaming: the model runs over shuffled blocks of the corpus and fills the buffer.

use super::held::{Filling, Held};
use super::rounds::Rounds;
use super::{Batch, InputSite, Outliers};
use crate::device::require_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{DevicePass, Model, ModelConfig, Sites};
use crate::progress::{stop_requested, Task};
use crate::text::{Blocks, Corpus};
use candle_core::{DType, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Tokens are left out whose input or target at any layer is longer than this multiple of the context's median: attention
    /// sinks of models without a special first token, hundreds of times as long as others, wherever in a
    /// context they come to stand (`max_activation_norm_multiple` in dictionary_learning). `None` keeps all.
    /// Default 100.
    pub max_norm: Option<f64>,
    /// Seed of the order of blocks and tokens. Default 0.
    pub seed: u64,
    /// Tokens of the corpus that are used at most, those of its first documents
    /// ([`Corpus::shuffled`](crate::Corpus::shuffled) draws their order); `None` for all. Default `None`.
    pub max_tokens: Option<usize>,
    /// Make the next filling of the buffer on a thread while the present one is used, in twice the
    /// memory. `None`: where the model runs on a GPU; on the CPU the model and the step would share the
    /// cores. The tokens are the same either way. Default `None`.
    pub ahead: Option<bool>,
}

impl Default for StreamConfig {
    fn default() -> Self {
        StreamConfig { input: InputSite::default(), context: 128, batch: 8, buffer_tokens: None, passes: 1, exclude_first: 1, max_norm: Some(100.0), seed: 0, max_tokens: None, ahead: None }
    }
}

/// Tokens that are held and shuffled together at most.
pub(super) const MOST_TOKENS: usize = 1 << 32;

/// Blocks that a run of the model takes at most.
pub(super) const MOST_BLOCKS: usize = 1 << 20;

impl StreamConfig {
    /// Checks the fields against the model's longest context.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub(crate) fn validate(&self, longest: usize) -> Result<()> {
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
        for (field, value, most) in [("batch", self.batch, MOST_BLOCKS), ("buffer_tokens", self.buffer_tokens.unwrap_or(1), MOST_TOKENS)] {
            Error::at_most(ErrorKind::BadConfig, format_args!("StreamConfig::{field}"), value, most)?;
        }
        Outliers::validate(self.max_norm, "StreamConfig::max_norm")
    }

    /// Tokens of one filling of the buffer, for a text of which `tokens` are served where that is known.
    pub(crate) fn filling_tokens(&self, layers: usize, width: usize, tokens: Option<u64>) -> u64 {
        let served = self.context - self.exclude_first;
        let blocks = tokens.map_or(usize::MAX, |tokens| tokens as usize / served);
        let wanted = self.buffer_tokens.unwrap_or(Rounds::usual_tokens(layers, width));
        Rounds::new(blocks, served, wanted, self.seed, self.passes).chunk.saturating_mul(served) as u64
    }

    /// Bytes that a run of the model takes besides its weights, an upper estimate: all sites, which are kept until the run is done, and
    /// one layer at its widest. Whatever the weights are, what lies between products is f32.
    pub(crate) fn working_bytes(&self, model: &ModelConfig) -> u64 {
        let (contexts, context) = (self.batch as u64, self.context);
        let width = model.width.max(model.heads * model.head_dim);
        // Scores, the same with what may not be seen, and patterns; the stream, queries, keys and values, turned, scaled and as the products
        // take them.
        let attention = 3 * model.heads * context + 12 * width;
        let mlp = 4 * model.mlp_width + 6 * width;
        let values = (2 * model.layers * model.width + attention.max(mlp)) as u64;
        values.saturating_mul(4 * contexts).saturating_mul(context as u64)
    }
}

/// Runs a model over blocks of a corpus and keeps what its MLPs read and write.
pub(crate) struct Runner {
    pub model: Model,
    pub blocks: Blocks,
    pub input: InputSite,
    pub context: usize,
    /// Blocks that are run at once.
    pub batch: usize,
    pub exclude_first: usize,
    pub max_norm: Option<f64>,
}

impl Runner {
    /// Runs these blocks and puts their activations into `buffer`, silently when the run can be
    /// cancelled. Gives where each block's rows begin, and where the last one's end.
    ///
    /// # Errors
    /// Those of the model; `Interrupted` when the user asked to stop meanwhile.
    pub fn run(&self, order: &[usize], buffer: &mut Batch, cancel: Option<&AtomicBool>) -> Result<Vec<u32>> {
        let d = self.model.width();
        for side in [&mut buffer.inputs, &mut buffer.targets] {
            side.resize_with(self.model.layers(), Vec::new);
            side.iter_mut().for_each(Vec::clear);
        }
        let Batch { inputs, targets, .. } = &mut *buffer;
        let rows = self.each(order, cancel, |tokens, kept| {
            let mut outliers = Outliers::new(self.max_norm, counts(kept, self.context));
            self.model.visit_mlp(tokens, &mut |layer, site| {
                for (values, into) in [(&self.input.of(site)?, &mut inputs[layer]), (site.mlp_out, &mut targets[layer])] {
                    let before = into.len();
                    append(values, kept, d, into)?;
                    outliers.see(&into[before..], d);
                }
                Ok(())
            })?;
            if !outliers.none() {
                let count = kept.iter().filter(|&&kept| kept).count();
                inputs.iter_mut().chain(&mut *targets).for_each(|values| outliers.drop_rows(values, d, count));
                outliers.narrow(kept);
            }
            Ok(())
        })?;
        buffer.tokens = rows.last().map_or(0, |&end| end as usize);
        Ok(rows)
    }

    /// As [`Runner::run`], but the activations stay where the model runs: of each token it is read at most whether it is an outlier.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn run_in_place(&self, order: &[usize], held: &mut Held, cancel: Option<&AtomicBool>) -> Result<()> {
        let room = order.len() * (self.context - self.exclude_first);
        held.fit(self.model.layers(), room, self.model.width(), Held::dtype_for(self.model.dtype()), self.model.device())?;
        let rows = self.batch.min(order.len()) * self.context;
        if let Some(mut pass) = DevicePass::new(&self.model, self.input, rows, self.context, room)? {
            return self.run_straight(order, held, cancel, &mut pass);
        }
        self.each(order, cancel, |tokens, kept| {
            let mut sites = Vec::with_capacity(2 * self.model.layers());
            self.model.visit_mlp(tokens, &mut |_, site| {
                sites.push(self.input.of(site)?);
                sites.push(site.mlp_out.clone());
                Ok(())
            })?;
            held.append(&sites, self.max_norm, kept, self.context)
        })
        .map(|_| ())
    }

    /// The same by kernels that write into the filling; outliers are taken out of it when it is full.
    fn run_straight(&self, order: &[usize], held: &mut Held, cancel: Option<&AtomicBool>, pass: &mut DevicePass) -> Result<()> {
        self.each(order, cancel, |tokens, kept| {
            let mut rows = held.tokens as u32..;
            let places: Vec<Option<u32>> = kept.iter().map(|&kept| if kept { rows.next() } else { None }).collect();
            pass.run(tokens, &Sites { inputs: &held.inputs, targets: &held.targets, places: &places, max_norm: self.max_norm })?;
            held.tokens = rows.start as usize;
            Ok(())
        })?;
        if self.max_norm.is_some() {
            held.leave_out(&pass.outliers(held.tokens)?)?;
        }
        Ok(())
    }

    /// `take` on the tokens of some blocks at a time, `[blocks, context]`, and on which of them are kept, of which it may
    /// leave out more. Gives where each block's kept tokens begin, and where the last one's end.
    fn each(&self, order: &[usize], cancel: Option<&AtomicBool>, mut take: impl FnMut(&Tensor, &mut [bool]) -> Result<()>) -> Result<Vec<u32>> {
        let mut task = cancel.is_none().then(|| Task::new("run the model for activations", (order.len() * self.context) as u64, "tokens"));
        let (mut rows, mut end) = (Vec::with_capacity(order.len() + 1), 0);
        rows.push(0);
        for (done, group) in order.chunks(self.batch).enumerate() {
            let ids: Vec<u32> = group.iter().filter_map(|&block| self.blocks.block(block)).flatten().copied().collect();
            let special = self.model.special_token();
            let mut kept: Vec<bool> =
                ids.iter().enumerate().map(|(at, id)| at % self.context >= self.exclude_first && special != Some(*id)).collect();
            take(&Tensor::from_vec(ids, (group.len(), self.context), self.model.device())?, &mut kept)?;
            for block in kept.chunks(self.context) {
                end += block.iter().filter(|&&kept| kept).count() as u32;
                rows.push(end);
            }
            if let Some(task) = &mut task {
                task.advance(((done * self.batch + group.len()) * self.context) as u64);
            }
            if stop_requested() || cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(Error::new(ErrorKind::Interrupted, "stopped while the model ran for the next activations").help("run again to go on"));
            }
        }
        if end == 0 {
            return Err(Error::new(ErrorKind::BadInput, "the corpus holds special tokens only").help("give other text"));
        }
        Ok(rows)
    }
}

/// A model, its packed corpus, and how to go through it.
pub(crate) struct Stream {
    runner: Runner,
    rounds: Rounds,
    ahead: bool,
}

impl Stream {
    pub fn device(&self) -> candle_core::Device {
        self.runner.model.device().clone()
    }

    pub fn new(model: &Model, corpus: &Corpus, config: &StreamConfig) -> Result<Self> {
        config.validate(model.context())?;
        let blocks = corpus.blocks(model.tokenizer()?, model.special_token(), config.context, config.max_tokens)?;
        Stream::of(model, blocks, config)
    }

    /// Of ids that are packed already.
    pub fn of(model: &Model, blocks: Blocks, config: &StreamConfig) -> Result<Self> {
        config.validate(model.context())?;
        let (layers, width) = (model.layers(), model.width());
        let wanted = config.buffer_tokens.unwrap_or(Rounds::usual_tokens(layers, width));
        let served = config.context - config.exclude_first;
        let rounds = Rounds::new(blocks.len(), served, wanted, config.seed, config.passes);
        let ahead = config.ahead.unwrap_or(!model.device().is_cpu());
        if model.device().is_cpu() {
            require_memory("buffer of activations", rounds.bytes(layers, width, served, ahead), "lower StreamConfig::buffer_tokens")?;
        }
        let runner = Runner {
            model: model.clone(),
            blocks,
            input: config.input,
            context: config.context,
            batch: config.batch,
            exclude_first: config.exclude_first,
            max_norm: config.max_norm,
        };
        Ok(Stream { runner, rounds, ahead })
    }

    pub fn rounds(&self) -> &Rounds {
        &self.rounds
    }

    pub fn ahead(&self) -> bool {
        self.ahead
    }

    /// Checksum of the token ids.
    pub fn text(&self) -> String {
        self.runner.blocks.fingerprint()
    }

    /// Bytes of a number that stays where the model runs.
    pub fn held_bytes(&self) -> u64 {
        Held::dtype_for(self.runner.model.dtype()).size_in_bytes() as u64
    }

    /// As [`StreamConfig::working_bytes`].
    pub fn working_bytes(&self) -> u64 {
        self.config().working_bytes(self.runner.model.config())
    }

    /// The model that runs.
    pub fn model(&self) -> &Model {
        &self.runner.model
    }

    /// A configuration that makes the same fillings; `ahead` is `None` where the device decided it.
    pub fn config(&self) -> StreamConfig {
        let (runner, usual) = (&self.runner, !self.device().is_cpu());
        StreamConfig {
            input: runner.input,
            context: runner.context,
            batch: runner.batch,
            buffer_tokens: Some(self.rounds.chunk * self.served()),
            passes: self.rounds.passes,
            exclude_first: runner.exclude_first,
            max_norm: runner.max_norm,
            seed: self.rounds.seed,
            max_tokens: None,
            ahead: Some(self.ahead).filter(|&ahead| ahead != usual),
        }
    }

    /// Tokens that are served of each block.
    pub fn served(&self) -> usize {
        self.runner.context - self.runner.exclude_first
    }

    pub fn tokens(&self) -> u64 {
        (self.runner.blocks.len() * self.served()) as u64
    }

    /// Makes filling number `index`, see [`Rounds`].
    ///
    /// # Errors
    /// Those of [`Runner::run`].
    pub fn fill(&self, index: u64, buffer: &mut Filling, cancel: Option<&AtomicBool>) -> Result<()> {
        let order = self.rounds.order(index);
        match buffer {
            Filling::Host(batch) => self.runner.run(&order, batch, cancel).map(|_| ()),
            Filling::Held(held) => self.runner.run_in_place(&order, held, cancel),
        }
    }
}

/// How many tokens of each context are kept.
pub(crate) fn counts(kept: &[bool], context: usize) -> Vec<usize> {
    kept.chunks(context).map(|block| block.iter().filter(|&&kept| kept).count()).collect()
}

/// Appends the kept rows of `[rows, d]`.
fn append(values: &Tensor, kept: &[bool], d: usize, into: &mut Vec<f32>) -> Result<()> {
    let values = values.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    for (row, _) in values.chunks_exact(d).zip(kept).filter(|(_, &kept)| kept) {
        into.extend_from_slice(row);
    }
    Ok(())
}
