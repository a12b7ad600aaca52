//! Sources: the vectors whose dot products with a carried direction are the edges.
//!
//! Active features write `a · W_dec[s][f, t − s]` at (t, p) for every t ≥ s (a PLT's for t = s only);
//! errors write themselves at (t, p); token embeddings stand at p. For one MLP output and position all decoder rows are one
//! matrix `[n, d]`, sources in ascending layers, so that a batch of targets is one GEMM; they are multiplied
//! where they lie, in memory or in the decoders' files, and the activations come after.

use crate::clt::{Clt, CltConfig, Decoder, SparseCode};
use crate::error::{Error, ErrorKind, Result};
use crate::replacement::LocalReplacement;
use candle_core::Tensor;
use std::ops::Range;

pub(crate) struct Sources {
    pub tokens: usize,
    pub layers: usize,
    pub width: usize,
    config: CltConfig,
    code: SparseCode,
    /// First feature number of each (layer, position), `[L·T + 1]`.
    starts: Vec<usize>,
    decoders: Vec<Decoder>,
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
        Ok(Sources {
            tokens,
            layers,
            width: clt.config().width,
            config: clt.config().clone(),
            code: local.code().clone(),
            starts,
            decoders: (0..layers).map(|l| clt.decoder_store(l).on_cpu()).collect::<Result<_>>()?,
            errors: (0..layers).map(|l| host(local.errors(l))).collect::<Result<_>>()?,
            embeddings: host(local.embeddings())?,
            positions: if positions { host(&learnt_positions(local)?)? } else { Vec::new() },
        })
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

    /// `work` on the decoder rows that write to MLP output `t` at position `p`, `[d]` each, and on the
    /// activations that they are to be scaled with: columns `first_column(t, p)` to `below(t + 1, p)`.
    pub fn decoder_rows<R>(&self, t: usize, p: usize, work: impl FnOnce(&[&[f32]], &[f32]) -> R) -> Result<R> {
        let sources = self.config.first_source(t)..t + 1;
        let lent = sources.clone().map(|s| self.decoders[s].lend()).collect::<Result<Vec<_>>>()?;
        let (mut rows, mut activations) = (Vec::new(), Vec::new());
        for (s, lent) in sources.zip(&lent) {
            let (weights, row) = (lent.values()?, self.config.slots(s) * self.width);
            let (features, values) = self.code.layers[s].token(p);
            rows.extend(features.iter().map(|&feature| &weights[feature as usize * row + (t - s) * self.width..][..self.width]));
            activations.extend_from_slice(values);
        }
        Ok(work(&rows, &activations))
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
