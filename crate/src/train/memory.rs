//! Memory: what a training needs, told before anything is allocated.
//!
//! In: configurations. Out: bytes of weights and moments, of a step's buffers and of the buffer of
//! activations; refused when they exceed what is free, with the field to change. Cost: none.

use super::{Moments, TrainConfig};
use crate::activations::Activations;
use crate::clt::live::LiveClt;
use crate::clt::CltConfig;
use crate::device::{format_bytes, free_memory};
use crate::error::{Error, ErrorKind, Result};

/// What a training holds in memory, in bytes. Five trainings (TopK and ReLU, f32 and eight-bit
/// moments, 3 to 29 million weights) peaked at 0.99 to 1.05 times this, beside the program and its inputs.
///
/// ```
/// use cltlab::clt::{Activation, CltConfig};
/// use cltlab::train::{MemoryNeed, Moments, TrainConfig};
/// // GPT-2 small with 9,216 features a layer: 640 million weights.
/// let shape = CltConfig { layers: 12, width: 768, features: 9_216, activation: Activation::TopK { k: 184 }, ..CltConfig::default() };
/// let full = MemoryNeed::of(&shape, &TrainConfig::default());
/// let compact = MemoryNeed::of(&shape, &TrainConfig { moments: Moments::EightBit, ..TrainConfig::default() });
/// assert!(full.weights > 7_600_000_000 && compact.weights < 4_000_000_000);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Weights and moments: 12 bytes a weight, 6.1 with moments in eight bits.
    pub weights: u64,
    /// What one step works in, in proportion to [`TrainConfig::batch_tokens`].
    pub step: u64,
    /// The buffer of activations; 0 for activations that are in memory already.
    pub buffer: u64,
}

impl MemoryNeed {
    /// The need of a training without its buffer of activations.
    pub fn of(clt: &CltConfig, config: &TrainConfig) -> Self {
        let eight = config.moments == Moments::EightBit;
        MemoryNeed {
            weights: LiveClt::weight_bytes(clt, eight),
            step: LiveClt::step_bytes(clt, config.batch_tokens, config.matryoshka.len() + 1, config.aux_k_for(clt.width)),
            buffer: 0,
        }
    }

    /// The same with the buffer that `activations` will fill.
    #[must_use]
    #[doc(hidden)]
    pub fn buffered(self, activations: &Activations) -> Self {
        MemoryNeed { buffer: activations.buffer_bytes(), ..self }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.step).saturating_add(self.buffer)
    }

    /// Refuses a training that does not fit; the remedy is for the largest part.
    ///
    /// # Errors
    /// `OutOfMemory` naming the field, with the need, what is free, and what would fit.
    pub(super) fn require(&self, clt: &CltConfig, config: &TrainConfig) -> Result<()> {
        match free_memory() {
            Some(free) if self.total() > free => Err(self.refusal(clt, config, free)),
            _ => Ok(()),
        }
    }

    fn refusal(&self, clt: &CltConfig, config: &TrainConfig, free: u64) -> Error {
        let largest = self.weights.max(self.step).max(self.buffer);
        let rest = self.total() - largest;
        // Each part is in proportion to its field, or nearly.
        let fits = |value: usize| (value as f64 * free.saturating_sub(rest) as f64 / largest as f64) as usize;
        let (field, remedy) = if largest == self.weights {
            let moments = if config.moments == Moments::F32 { ", or take Moments::EightBit (6.1 bytes a weight instead of 12)" } else { "" };
            (format!("CltConfig::features {}", clt.features), format!("use fewer features: about {} fit{moments}", fits(clt.features)))
        } else if largest == self.step {
            (format!("TrainConfig::batch_tokens {}", config.batch_tokens), format!("use fewer tokens in a step: about {} fit", fits(config.batch_tokens)))
        } else {
            ("StreamConfig::buffer_tokens or ReadConfig::buffer_tokens".to_string(), "lower it, or set `ahead` to false".to_string())
        };
        Error::expected(ErrorKind::OutOfMemory, field, format_args!("a need of {self}"), format_args!("at most the {} that are free", format_bytes(free))).help(remedy)
    }
}

impl std::fmt::Display for MemoryNeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [total, weights, step, buffer] = [self.total(), self.weights, self.step, self.buffer].map(format_bytes);
        write!(f, "{total} ({weights} weights and moments, {step} for a step, {buffer} of activations)")
    }
}

impl std::fmt::Debug for MemoryNeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
