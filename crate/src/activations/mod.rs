//! Activations: what a CLT is trained on.
//!
//! In: a model and a corpus, or arrays in memory. Out: shuffled batches of, for each layer, the
//! value that the encoder reads and the MLP output that is to be reconstructed, `[tokens, d]` each.
//! The model runs while training goes on, or ran before and filled a store on disk. The first
//! position of a context and special tokens are left out: there the residual stream holds a few
//! enormous values that say nothing about language. Cost: one forward pass a token, without logits,
//! shared by [`StreamConfig::passes`] uses of it.

mod ahead;
mod file;
mod held;
mod outliers;
mod reader;
mod rounds;
mod scale;
mod store;
mod stream;

pub(crate) use outliers::Outliers;
pub(crate) use stream::counts;
pub(crate) use held::Filling;
pub(crate) use reader::{Position, Reader};
#[cfg_attr(not(feature = "cuda"), allow(unused_imports))]
pub(crate) use {held::Held, reader::Taken};
pub(crate) use scale::{Affine, LayerScale, Scale};
pub use store::{ReadConfig, StoreConfig, StoreFormat};
pub use stream::StreamConfig;

use crate::error::{Error, ErrorKind, Result};
pub use crate::model::InputSite;
use crate::model::{Model, OutputSite};
use crate::text::{Blocks, Corpus};
use rounds::Rounds;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

/// Inputs and targets of the same tokens, `[tokens, d]` row by row for each layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub tokens: usize,
    pub inputs: Vec<Vec<f32>>,
    pub targets: Vec<Vec<f32>>,
}

/// Names and values, see [`Activations::course`].
pub(crate) type Course = BTreeMap<String, String>;

/// A source of training activations. Cloning shares it.
///
/// ```no_run
/// use cltlab::{activations::Activations, auto_device, Corpus, Model};
/// let model = Model::load("gpt2", &Default::default())?;
/// let (train, test) = Corpus::load("stories.txt", &Default::default())?.split(0.95)?;
/// let activations = Activations::stream(&model, &train, &Default::default())?;
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone)]
pub struct Activations(Arc<Inner>);

struct Inner {
    layers: usize,
    width: usize,
    input: InputSite,
    output: OutputSite,
    model_name: String,
    model_fingerprint: String,
    /// Checksum of the token ids; empty for activations in memory.
    text: String,
    source: Source,
}

enum Source {
    Stream(stream::Stream),
    Store(store::Store),
    Memory(Arc<Filling>),
}

impl Activations {
    /// Runs `model` over `corpus` as training asks for it. The corpus is tokenised and packed now.
    ///
    /// # Errors
    /// `BadConfig` naming the field, `BadInput` for a corpus shorter than one context,
    /// `OutOfMemory` when the buffer's predicted size exceeds what is free.
    pub fn stream(model: &Model, corpus: &Corpus, config: &StreamConfig) -> Result<Self> {
        Ok(Self::of_stream(model, config, stream::Stream::new(model, corpus, config)?))
    }

    /// As [`Activations::stream`] over token ids that are packed into contexts already.
    ///
    /// # Errors
    /// As [`Activations::stream`]; `BadConfig` for a context of another length than the blocks'; `BadInput` for an id outside
    /// the vocabulary.
    ///
    /// ```
    /// use cltlab::activations::{Activations, StreamConfig};
    /// use cltlab::{model::LoadConfig, selftest::RandomModel, text::Blocks};
    /// let model = RandomModel::default().load(&LoadConfig::default())?;
    /// let blocks = Blocks::from_ids((0..400).map(|i| i * 7 % 50).collect(), 16)?;
    /// let activations = Activations::stream_blocks(&model, &blocks, &StreamConfig { context: 16, ..StreamConfig::default() })?;
    /// assert_eq!(activations.tokens(), 25 * 15);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    #[doc(hidden)]
    pub fn stream_blocks(model: &Model, blocks: &Blocks, config: &StreamConfig) -> Result<Self> {
        if config.context != blocks.context() {
            return Err(Error::expected(ErrorKind::BadConfig, "StreamConfig::context", config.context, format_args!("{}, as the blocks have", blocks.context())));
        }
        for index in 0..blocks.len() {
            model.check_tokens(blocks.block(index).unwrap_or_default())?;
        }
        Ok(Self::of_stream(model, config, stream::Stream::of(model, blocks.clone(), config)?))
    }

    fn of_stream(model: &Model, config: &StreamConfig, stream: stream::Stream) -> Self {
        Activations(Arc::new(Inner {
            layers: model.layers(),
            width: model.width(),
            input: config.input,
            output: model.output(),
            model_name: model.name().to_string(),
            model_fingerprint: model.fingerprint().to_string(),
            text: stream.text(),
            source: Source::Stream(stream),
        }))
    }

    /// Activations that are already there: for each layer the encoder's inputs and the targets,
    /// `[tokens, width]` row by row.
    ///
    /// # Errors
    /// `BadInput` when there is no layer or no token, or arrays differ in length.
    pub fn from_memory(inputs: Vec<Vec<f32>>, targets: Vec<Vec<f32>>, width: usize) -> Result<Self> {
        let length = inputs.first().map_or(0, Vec::len);
        if width == 0 || length == 0 || length % width != 0 {
            return Err(Error::expected(ErrorKind::BadInput, "Activations::from_memory: values of layer 0", length, format_args!("a multiple of the width, {width}, above 0")));
        }
        if inputs.len() != targets.len() {
            return Err(Error::expected(ErrorKind::BadInput, "Activations::from_memory: target layers", targets.len(), inputs.len()));
        }
        if let Some(odd) = inputs.iter().chain(&targets).position(|values| values.len() != length) {
            return Err(Error::expected(ErrorKind::BadInput, format_args!("Activations::from_memory: values of array {odd}"), "another length", length));
        }
        Ok(Activations(Arc::new(Inner {
            layers: inputs.len(),
            width,
            input: InputSite::default(),
            output: OutputSite::default(),
            model_name: String::new(),
            model_fingerprint: String::new(),
            text: String::new(),
            source: Source::Memory(Arc::new(Filling::Host(Batch { tokens: length / width, inputs, targets }))),
        })))
    }

    /// Layers, L.
    pub fn layers(&self) -> usize {
        self.0.layers
    }

    /// Width of the residual stream, d.
    pub fn width(&self) -> usize {
        self.0.width
    }

    /// Which site the inputs are.
    pub fn input(&self) -> InputSite {
        self.0.input
    }

    /// Which site the targets are: the model's, as it was given.
    pub fn output(&self) -> OutputSite {
        self.0.output
    }

    /// Fingerprint of the model that runs; empty for activations in memory.
    #[doc(hidden)]
    pub fn model_fingerprint(&self) -> &str {
        &self.0.model_fingerprint
    }

    /// Different tokens that can be served before the corpus begins again.
    pub fn tokens(&self) -> u64 {
        match &self.0.source {
            Source::Stream(stream) => stream.tokens(),
            Source::Store(store) => store.tokens(),
            Source::Memory(filling) => filling.tokens() as u64,
        }
    }

    /// Where the model runs that makes them; the CPU for those in memory or on disk.
    pub fn device(&self) -> candle_core::Device {
        match &self.0.source {
            Source::Stream(stream) => stream.device(),
            Source::Store(_) | Source::Memory(_) => candle_core::Device::Cpu,
        }
    }

    /// Puts filling number `index` into `buffer`, silently when it can be cancelled.
    fn fill(&self, index: u64, buffer: &mut Filling, cancel: Option<&AtomicBool>) -> Result<()> {
        match &self.0.source {
            Source::Stream(stream) => return stream.fill(index, buffer, cancel),
            Source::Store(store) => {
                if let Filling::Held(_) = buffer {
                    *buffer = Filling::default();
                }
                if let Filling::Host(batch) = buffer {
                    return store.fill(index, batch, cancel);
                }
            }
            Source::Memory(filling) => buffer.clone_from(filling),
        }
        Ok(())
    }

    /// Whether a training on `device` has its fillings there from the start.
    pub(crate) fn stay_on(&self, device: &candle_core::Device) -> bool {
        matches!(self.0.source, Source::Stream(_)) && !device.is_cpu() && self.device().same_device(device)
    }

    /// All that fixes which tokens come when: a place in it means the same only where this is the same.
    pub(crate) fn course(&self) -> Course {
        let text = |value: &dyn std::fmt::Display| value.to_string();
        let mut course = Course::from([("tokens".to_string(), text(&self.tokens()))]);
        if let Some(rounds) = self.rounds() {
            let fields: [(&str, &dyn std::fmt::Display); 5] = [
                ("text", &self.0.text),
                ("blocks of text", &rounds.blocks),
                ("blocks of a filling (buffer_tokens)", &rounds.chunk),
                ("seed", &rounds.seed),
                ("passes", &rounds.passes),
            ];
            course.extend(fields.map(|(name, value)| (name.to_string(), text(value))));
        }
        course
    }

    /// Bytes of the buffer that a training fills; 0 for activations in memory.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        self.rounds().map_or(0, |rounds| rounds.bytes(self.layers(), self.width(), self.served(), self.ahead()))
    }

    /// The same for a training whose fillings stay where the model runs, and what the model takes to make them.
    pub(crate) fn held_bytes(&self) -> u64 {
        match &self.0.source {
            // While a filling is measured the next one may be on its way.
            Source::Stream(stream) => self.buffer_bytes() / 4 * stream.held_bytes() + stream.working_bytes() + Held::measuring_bytes(self.filling_tokens(), self.width()),
            _ => self.buffer_bytes(),
        }
    }

    /// The model that runs for them, and how; `None` for those in memory or on disk.
    pub(crate) fn streamed(&self) -> Option<(&Model, StreamConfig)> {
        match &self.0.source {
            Source::Stream(stream) => Some((stream.model(), stream.config())),
            Source::Store(_) | Source::Memory(_) => None,
        }
    }

    /// Tokens of one filling.
    pub(crate) fn filling_tokens(&self) -> u64 {
        self.rounds().map_or(self.tokens(), |rounds| (rounds.chunk * self.served()) as u64)
    }

    /// Tokens that are served of each block; 0 for activations in memory.
    fn served(&self) -> usize {
        match &self.0.source {
            Source::Stream(stream) => stream.served(),
            Source::Store(store) => store.served(),
            Source::Memory(_) => 0,
        }
    }

    /// How fillings follow each other; activations in memory have one, used without end.
    fn rounds(&self) -> Option<&Rounds> {
        match &self.0.source {
            Source::Stream(stream) => Some(stream.rounds()),
            Source::Store(store) => Some(store.rounds()),
            Source::Memory(_) => None,
        }
    }

    /// Whether the next filling is made while the present one is used.
    fn ahead(&self) -> bool {
        match &self.0.source {
            Source::Stream(stream) => stream.ahead(),
            Source::Store(store) => store.ahead(),
            Source::Memory(_) => false,
        }
    }
}

impl std::fmt::Display for Activations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if self.0.model_name.is_empty() { "memory" } else { &self.0.model_name };
        write!(f, "Activations of {name}: {} layers, d {}, {} tokens, {}", self.layers(), self.width(), self.tokens(), self.input().hook())
    }
}

impl std::fmt::Debug for Activations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
