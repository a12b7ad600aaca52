//! What a training is, in a line above its progress.

use super::{MemoryNeed, Trainer};
use crate::device::format_bytes;
use crate::progress::count;

impl Trainer {
    /// Model, CLT, corpus, passes over it and memory.
    pub(super) fn head(&self) -> String {
        let clt = &self.live.config;
        let model = if clt.model_name.is_empty() { "an unnamed model" } else { &clt.model_name };
        let (corpus, all) = (self.activations.tokens(), self.target as f64 * self.config.batch_tokens as f64);
        let memory = MemoryNeed::of(clt, &self.config).buffered(&self.activations).total();
        format!(
            "CLT of {model}, {} layers of {} features, {}; {} tokens in {} passes over a corpus of {}; {} of memory",
            clt.layers, clt.features, clt.activation.label(), count(all), passes(all, corpus), count(corpus as f64), format_bytes(memory)
        )
    }
}

fn passes(all: f64, corpus: u64) -> String {
    let passes = all / corpus.max(1) as f64;
    if passes < 10.0 { format!("{passes:.2}") } else { format!("{passes:.0}") }
}
