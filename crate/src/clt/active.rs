//! Decoder rows of the features that are active on a prompt, each read once: the reconstruction needs
//! them, and attribution needs them again.
//!
//! In: a [`SparseCode`] of T tokens. Out: [`ActiveRows`], `[entries, slots, d]` for each token and source
//! layer, as the decoders have them (not yet times the activations). Cost: the bytes of these rows, read
//! once from the decoders' files, which is what bounds a short attribution.

use super::{Clt, SparseCode};
use crate::device::free_memory;
use crate::error::Result;
use rayon::prelude::*;

/// Bytes of rows that are kept on any machine; half of the free memory if that is more.
const KEPT_BYTES: u64 = 1 << 30;

/// What the active features of a code write, token by token.
pub(crate) struct ActiveRows {
    tokens: Vec<TokenRows>,
    width: usize,
}

/// The rows of one token: source layer after source layer, feature after feature.
pub(super) struct TokenRows {
    pub values: Vec<f32>,
    /// Where each source layer's begin.
    pub starts: Vec<usize>,
}

impl ActiveRows {
    pub(super) fn of(tokens: Vec<TokenRows>, width: usize) -> Self {
        ActiveRows { tokens, width }
    }

    /// What the active features of source layer `s` at token `p` write to slot `slot` of `slots`, in the
    /// order of the code, `[d]` each.
    pub fn of_slot(&self, p: usize, s: usize, (slot, slots): (usize, usize)) -> impl Iterator<Item = &[f32]> {
        let rows = &self.tokens[p];
        let end = rows.starts.get(s + 1).copied().unwrap_or(rows.values.len());
        rows.values[rows.starts[s]..end].chunks_exact(slots * self.width).map(move |row| &row[slot * self.width..(slot + 1) * self.width])
    }
}

impl Clt {
    /// Whether the rows of a code's active features are few enough to be kept.
    pub(crate) fn active_rows_fit(&self, code: &SparseCode) -> bool {
        let rows: usize = code.layers.iter().enumerate().map(|(s, code)| code.active() * self.config().slots(s)).sum();
        let bytes = (rows * self.config().width * 4) as u64;
        bytes <= KEPT_BYTES || free_memory().is_some_and(|free| bytes <= free / 2)
    }

    /// The rows of a code's active features.
    ///
    /// # Errors
    /// `Io` when a file cannot be read.
    pub(crate) fn active_rows(&self, code: &SparseCode) -> Result<ActiveRows> {
        let tokens = (0..code.tokens()).into_par_iter().map(|p| self.rows_at(code, p)).collect::<Result<_>>()?;
        Ok(ActiveRows::of(tokens, self.config().width))
    }

    /// The rows of the features that are active at token `p`.
    pub(super) fn rows_at(&self, code: &SparseCode, p: usize) -> Result<TokenRows> {
        let row = |s: usize| self.config().slots(s) * self.config().width;
        let mut starts = Vec::with_capacity(code.layers.len());
        let mut size = 0;
        for (s, code) in code.layers.iter().enumerate() {
            starts.push(size);
            size += code.token(p).0.len() * row(s);
        }
        // Not in large pages: clearing one that the system has to find first costs more than it saves (measured: twice).
        let mut values = vec![0.0; size];
        for ((s, code), start) in code.layers.iter().enumerate().zip(&starts) {
            let features = code.token(p).0;
            for (feature, row) in features.iter().zip(values[*start..].chunks_exact_mut(row(s))) {
                self.decoder_store(s).row(*feature, 0, row)?;
            }
        }
        Ok(TokenRows { values, starts })
    }
}
