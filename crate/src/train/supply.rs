//! Where a training's activations come from, as far as its memory and its time depend on it.

use crate::activations::{Activations, Held, ReadConfig, StreamConfig};
use crate::clt::CltConfig;
use crate::error::Result;
use crate::model::Summary;
use candle_core::DType;

/// Where a training's activations come from. `tokens` are different tokens of the text, where they are known.
///
/// ```no_run
/// use cltlab::model::Summary;
/// use cltlab::prelude::*;
/// // Of the model config.json is read, or a GGUF file's header; no weights.
/// let source = PlanSource::Stream { model: Box::new(Summary::read("gpt2")?), dtype: None, stream: StreamConfig::default(), tokens: None };
/// let shape = CltConfig { layers: 12, width: 768, features: 24_576, ..CltConfig::default() };
/// println!("{}", Plan::new(&shape, &TrainConfig::default(), &source)?);
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlanSource {
    /// In memory already.
    Memory {
        /// Tokens that are there.
        tokens: Option<u64>,
    },
    /// On disk, read through a buffer.
    Store {
        /// How it is read.
        read: ReadConfig,
        /// Tokens that are there.
        tokens: Option<u64>,
    },
    /// From a model that runs while the CLT trains.
    Stream {
        /// The model's parts.
        model: Box<Summary>,
        /// The type in which its maps are held. `None`: f32 on the CPU, bf16 on a GPU.
        dtype: Option<DType>,
        /// How it runs.
        stream: StreamConfig,
        /// Tokens that the text serves.
        tokens: Option<u64>,
    },
}

/// Bytes that a source takes beside the CLT.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Supply {
    pub buffer: u64,
    /// A model's weights and a run of it.
    pub model: u64,
}

/// What a model does for one token of the CLT's training.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forward {
    pub flops: f64,
    /// Weights read, and activations written, read and picked.
    pub bytes: f64,
    /// The type of its maps.
    pub dtype: DType,
}

impl PlanSource {
    /// Of activations that are there.
    ///
    /// ```
    /// use cltlab::prelude::*;
    /// let activations = Activations::from_memory(vec![vec![1.0; 64]], vec![vec![2.0; 64]], 8)?;
    /// assert!(matches!(PlanSource::of(&activations), PlanSource::Memory { tokens: Some(8) }));
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    pub fn of(activations: &Activations) -> Self {
        let tokens = Some(activations.tokens());
        if let Some((model, stream)) = activations.streamed() {
            return PlanSource::Stream { model: Box::new(model.summary()), dtype: Some(model.dtype()), stream, tokens };
        }
        let (buffer, filling) = (activations.buffer_bytes(), activations.filling_tokens());
        let one = 8 * filling * (activations.layers() * activations.width()) as u64;
        match buffer {
            0 => PlanSource::Memory { tokens },
            _ => PlanSource::Store { read: ReadConfig { buffer_tokens: Some(filling as usize), ahead: buffer > one, ..ReadConfig::default() }, tokens },
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        match self {
            PlanSource::Stream { model, stream, .. } => stream.validate(model.config.context),
            PlanSource::Memory { .. } | PlanSource::Store { .. } => Ok(()),
        }
    }

    /// Different tokens, where they are known.
    pub(super) fn tokens(&self) -> Option<u64> {
        match self {
            PlanSource::Memory { tokens } | PlanSource::Store { tokens, .. } | PlanSource::Stream { tokens, .. } => *tokens,
        }
    }

    pub(super) fn is_streamed(&self) -> bool {
        matches!(self, PlanSource::Stream { .. })
    }

    /// In which type a model's maps are held.
    fn held(dtype: Option<DType>, gpu: bool) -> DType {
        dtype.unwrap_or(if gpu { DType::BF16 } else { DType::F32 })
    }

    /// Bytes of fillings; large where they cannot be counted.
    fn bytes(factors: [u64; 4]) -> u64 {
        factors.into_iter().fold(1, u64::saturating_mul)
    }

    /// Bytes of main memory, for a training on the CPU.
    pub(super) fn on_cpu(&self, clt: &CltConfig) -> Supply {
        let numbers = 2 * (clt.layers * clt.width) as u64;
        match self {
            PlanSource::Memory { .. } => Supply::default(),
            PlanSource::Store { .. } => Supply { buffer: Self::bytes([4, numbers, self.filling(clt), self.fillings(false)]), model: 0 },
            PlanSource::Stream { model, dtype, stream, .. } => Supply {
                buffer: Self::bytes([4, numbers, self.filling(clt), self.fillings(false)]),
                model: model.memory(Self::held(*dtype, false)).saturating_add(stream.working_bytes(&model.config)),
            },
        }
    }

    /// Bytes of a GPU's memory, weights of the CLT in `weight` bytes: fillings are held where the model runs; one that is made
    /// elsewhere is copied whole.
    pub(super) fn on_gpu(&self, clt: &CltConfig, weight: u64) -> Supply {
        let numbers = 2 * (clt.layers * clt.width) as u64;
        match self {
            PlanSource::Memory { .. } | PlanSource::Store { .. } => Supply { buffer: Self::bytes([1, weight, numbers, self.filling(clt)]), model: 0 },
            PlanSource::Stream { model, dtype, stream, .. } => {
                let (dtype, filling) = (Self::held(*dtype, true), self.filling(clt));
                let number = Held::dtype_for(dtype).size_in_bytes() as u64;
                let held = Self::bytes([number, numbers, filling, self.fillings(true)]).saturating_add(Held::measuring_bytes(filling, clt.width));
                Supply { buffer: held, model: model.memory(dtype).saturating_add(stream.working_bytes(&model.config)) }
            }
        }
    }

    /// Tokens of one filling of the buffer.
    fn filling(&self, clt: &CltConfig) -> u64 {
        match self {
            PlanSource::Memory { tokens } => tokens.unwrap_or(0),
            PlanSource::Store { read, tokens } => {
                // The blocks of a store that is not there yet are not known: as many single tokens.
                let stream = StreamConfig { context: 2, exclude_first: 1, buffer_tokens: read.buffer_tokens, ..StreamConfig::default() };
                stream.filling_tokens(clt.layers, clt.width, *tokens)
            }
            PlanSource::Stream { stream, tokens, .. } => stream.filling_tokens(clt.layers, clt.width, *tokens),
        }
    }

    /// Fillings that are held at once.
    fn fillings(&self, gpu: bool) -> u64 {
        match self {
            PlanSource::Memory { .. } => 1,
            PlanSource::Store { read, .. } => 1 + u64::from(read.ahead),
            PlanSource::Stream { stream, .. } => 1 + u64::from(stream.ahead.unwrap_or(gpu)),
        }
    }

    /// What a model that runs meanwhile does for each token, a CLT's weights in `weight` bytes.
    ///
    /// Flops: two for each number of the blocks' maps, and attention's scores and mixtures over half a context; the unembedding is not
    /// run. Positions that are left out are run all the same, and each filling serves as often as it has passes.
    pub(super) fn forward(&self, clt: &CltConfig, gpu: bool, weight: u64) -> Option<Forward> {
        let PlanSource::Stream { model, dtype, stream, .. } = self else { return None };
        let config = &model.config;
        let outside = |name: &str| ["embedding", "positions", "unembedding"].contains(&name);
        let maps: f64 = model.parts.iter().filter(|part| part.shape.len() == 2 && !outside(part.name)).map(|part| part.count as f64 * part.shape.iter().product::<usize>() as f64).sum();
        let attention = 2.0 * (config.layers * config.heads * config.head_dim) as f64 * (stream.context as f64 + 1.0);
        let runs = stream.context as f64 / (stream.context - stream.exclude_first) as f64 / stream.passes as f64;
        let dtype = Self::held(*dtype, gpu);
        let weights = maps * dtype.size_in_bytes() as f64 / (stream.batch * stream.context) as f64;
        let held = if gpu { Held::dtype_for(dtype).size_in_bytes() as f64 } else { 4.0 };
        let numbers = 2.0 * (clt.layers * clt.width) as f64;
        Some(Forward { flops: runs * (2.0 * maps + attention), bytes: runs * (weights + numbers * held) + numbers * (held + weight as f64), dtype })
    }
}
