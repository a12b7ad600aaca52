//! Sources: the vectors whose dot products with a carried direction are the edges.
//!
//! Active features write `a · W_dec[s][f, t − s]` at (t, p) for every t ≥ s (a PLT's for t = s only);
//! errors write themselves at (t, p); token embeddings stand at p. For one MLP output and position all decoder rows are one
//! matrix `[n, d]`, sources in ascending layers, so that a batch of targets is one GEMM. The matrices
//! are kept when they are small enough, else gathered again for each block of targets.

use crate::clt::{Clt, CltConfig, Decoder, SparseCode};
use crate::device::free_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::replacement::LocalReplacement;
use candle_core::Tensor;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Bytes of gathered decoder rows that are kept on any machine; half of the free memory if that is more.
const KEPT_BYTES: u64 = 1 << 30;

pub(crate) struct Sources {
    pub tokens: usize,
    pub layers: usize,
    pub width: usize,
    config: CltConfig,
    code: SparseCode,
    /// First feature number of each (layer, position), `[L·T + 1]`.
    starts: Vec<usize>,
    decoders: Vec<Decoder>,
    /// By position, then target; empty when there are too many.
    kept: Vec<Vec<f32>>,
    errors: Vec<Vec<f32>>,
    embeddings: Vec<f32>,
    /// `[T, d]`; empty when positions are no sources.
    positions: Vec<f32>,
}

impl Sources {
    /// With `positions` their learnt embeddings are sources too.
    ///
    /// # Errors
    /// `BadConfig` when the model has none.
    pub fn new(local: &LocalReplacement, positions: bool) -> Result<Self> {
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
            config: clt.config().clone(),
            code: local.code().clone(),
            starts,
            decoders: (0..layers).map(|l| clt.decoder_store(l).on_cpu()).collect::<Result<_>>()?,
            kept: Vec::new(),
            errors: (0..layers).map(|l| host(local.errors(l))).collect::<Result<_>>()?,
            embeddings: host(local.embeddings())?,
            positions: if positions { host(&learnt_positions(local)?)? } else { Vec::new() },
        };
        let rows: usize = sources.code.layers.iter().enumerate().map(|(s, code)| code.active() * sources.config.slots(s)).sum();
        let most = free_memory().map_or(KEPT_BYTES, |free| KEPT_BYTES.max(free / 2));
        if (rows * sources.width * 4) as u64 <= most {
            let kept: Vec<Vec<Vec<f32>>> = (0..tokens).into_par_iter().map(|p| sources.gather_position(p)).collect::<Result<_>>()?;
            sources.kept = kept.into_iter().flatten().collect();
        }
        Ok(sources)
    }

    /// [`Sources::gather`] for every target, each feature's row read once.
    fn gather_position(&self, p: usize) -> Result<Vec<Vec<f32>>> {
        let count = |t: usize| self.below(t + 1, p) - self.first_column(t, p);
        let mut rows: Vec<Vec<f32>> = (0..self.layers).map(|t| Vec::with_capacity(count(t) * self.width)).collect();
        for (s, code) in self.code.layers.iter().enumerate() {
            let mut row = vec![0.0; self.config.slots(s) * self.width];
            let (features, activations) = code.token(p);
            for (feature, activation) in features.iter().zip(activations) {
                self.decoders[s].row(*feature, 0, &mut row)?;
                for (rows, slot) in rows[s..].iter_mut().zip(row.chunks_exact(self.width)) {
                    rows.extend(slot.iter().map(|weight| weight * activation));
                }
            }
        }
        Ok(rows)
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

    /// The column of the first of [`Sources::decoder_rows`]: 0, but in a PLT only layer `t` writes to `t`.
    pub fn first_column(&self, t: usize, p: usize) -> usize {
        self.below(self.config.first_source(t), p)
    }

    /// Scaled decoder rows that write to MLP output `t` at position `p`, `[n, d]`: columns
    /// `first_column(t, p)` to `below(t + 1, p)`.
    pub fn decoder_rows(&self, t: usize, p: usize) -> Result<Cow<'_, [f32]>> {
        match self.kept.get(p * self.layers + t) {
            Some(rows) => Ok(Cow::Borrowed(rows)),
            None => Ok(Cow::Owned(self.gather(t, p)?)),
        }
    }

    fn gather(&self, t: usize, p: usize) -> Result<Vec<f32>> {
        let mut rows = vec![0.0; (self.below(t + 1, p) - self.first_column(t, p)) * self.width];
        let mut next = rows.chunks_exact_mut(self.width);
        for (s, code) in self.code.layers.iter().enumerate().take(t + 1).skip(self.config.first_source(t)) {
            let (features, activations) = code.token(p);
            for ((feature, activation), row) in features.iter().zip(activations).zip(&mut next) {
                self.decoders[s].row(*feature, t - s, row)?;
                row.iter_mut().for_each(|weight| *weight *= activation);
            }
        }
        Ok(rows)
    }

    /// Error vector of MLP output `t` at position `p`, `[d]`.
    pub fn error(&self, t: usize, p: usize) -> &[f32] {
        &self.errors[t][p * self.width..(p + 1) * self.width]
    }

    /// Whether learnt position embeddings are sources.
    pub fn has_positions(&self) -> bool {
        !self.positions.is_empty()
    }

    /// The learnt embedding of position `p`, `[d]`, if it is a source.
    pub fn position(&self, p: usize) -> Option<&[f32]> {
        self.positions.get(p * self.width..(p + 1) * self.width)
    }

    /// Token embedding at position `p`, `[d]`.
    pub fn embedding(&self, p: usize) -> &[f32] {
        &self.embeddings[p * self.width..(p + 1) * self.width]
    }
}

/// The prompt's learnt position embeddings, `[T, d]`.
///
/// # Errors
/// `BadConfig` when the model has none.
pub(crate) fn learnt_positions(local: &LocalReplacement) -> Result<Tensor> {
    let model = local.replacement().model();
    local.position_embeddings()?.ok_or_else(|| {
        Error::expected(ErrorKind::BadConfig, "AttributeConfig::position_nodes", "true", format_args!("false: {} has no learnt position embeddings", model.name()))
            .help("only families such as GPT-2 and GPT-Neo add one to the embedding of each token")
    })
}
