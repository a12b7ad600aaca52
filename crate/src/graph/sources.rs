//! Sources: the vectors whose dot products with a carried direction are the edges.
//!
//! Active features write `a · W_dec[s][f, t − s]` at (t, p) for every t ≥ s; errors write themselves
//! at (t, p); token embeddings stand at p. For one MLP output and position all decoder rows are one
//! matrix `[n, d]`, sources in ascending layers, so that a batch of targets is one GEMM. The matrices
//! are kept when they are small enough, else gathered again for each block of targets.

use crate::clt::{Clt, Decoder, SparseCode};
use crate::error::Result;
use crate::replacement::LocalReplacement;
use candle_core::Tensor;
use std::borrow::Cow;
use std::ops::Range;

/// Most values of gathered decoder rows that are kept: 1 GiB.
const KEPT_VALUES: usize = 256 << 20;

pub(crate) struct Sources {
    pub tokens: usize,
    pub layers: usize,
    pub width: usize,
    code: SparseCode,
    /// First feature number of each (layer, position), `[L·T + 1]`.
    starts: Vec<usize>,
    decoders: Vec<Decoder>,
    kept: Vec<Vec<f32>>,
    errors: Vec<Vec<f32>>,
    embeddings: Vec<f32>,
}

impl Sources {
    pub fn new(local: &LocalReplacement) -> Result<Self> {
        let clt: &Clt = local.replacement().clt();
        let (layers, tokens) = (clt.layers(), local.code().tokens());
        let mut starts = vec![0];
        for code in &local.code().layers {
            for p in 0..tokens {
                starts.push(starts[starts.len() - 1] + code.token(p).0.len());
            }
        }
        let host = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1::<f32>()?) };
        let mut sources = Sources {
            tokens,
            layers,
            width: clt.config().width,
            code: local.code().clone(),
            starts,
            decoders: (0..layers).map(|l| clt.decoder_store(l).on_cpu()).collect::<Result<_>>()?,
            kept: Vec::new(),
            errors: (0..layers).map(|l| host(local.errors(l))).collect::<Result<_>>()?,
            embeddings: host(local.embeddings())?,
        };
        let rows: usize = sources.code.layers.iter().enumerate().map(|(s, code)| code.active() * (layers - s)).sum();
        if rows * sources.width <= KEPT_VALUES {
            for at in 0..layers * tokens {
                let rows = sources.gather(at / tokens, at % tokens)?;
                sources.kept.push(rows);
                sources.decoders.iter().for_each(Decoder::forget);
            }
        }
        Ok(sources)
    }

    /// Features in all.
    pub fn features(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Feature numbers of source layer `s` at position `p`.
    pub fn numbers(&self, s: usize, p: usize) -> Range<usize> {
        let at = s * self.tokens + p;
        self.starts[at]..self.starts[at + 1]
    }

    /// Features of source layers below `s` at position `p`: columns before those of layer `s`.
    pub fn below(&self, s: usize, p: usize) -> usize {
        (0..s).map(|s| self.numbers(s, p).len()).sum()
    }

    /// Scaled decoder rows that write to MLP output `t` at position `p`, `[below(t + 1, p), d]`.
    pub fn decoder_rows(&self, t: usize, p: usize) -> Result<Cow<'_, [f32]>> {
        match self.kept.get(t * self.tokens + p) {
            Some(rows) => Ok(Cow::Borrowed(rows)),
            None => Ok(Cow::Owned(self.gather(t, p)?)),
        }
    }

    fn gather(&self, t: usize, p: usize) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(self.below(t + 1, p) * self.width);
        for (s, code) in self.code.layers.iter().enumerate().take(t + 1) {
            let (features, activations) = code.token(p);
            self.decoders[s].with(|weights| {
                for (feature, activation) in features.iter().zip(activations) {
                    let at = (*feature as usize * (self.layers - s) + t - s) * self.width;
                    rows.extend(weights[at..at + self.width].iter().map(|weight| weight * activation));
                }
                Ok(())
            })?;
        }
        Ok(rows)
    }

    /// Error vector of MLP output `t` at position `p`, `[d]`.
    pub fn error(&self, t: usize, p: usize) -> &[f32] {
        &self.errors[t][p * self.width..(p + 1) * self.width]
    }

    /// Token embedding at position `p`, `[d]`.
    pub fn embedding(&self, p: usize) -> &[f32] {
        &self.embeddings[p * self.width..(p + 1) * self.width]
    }
}
