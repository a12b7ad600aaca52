//! Sources: the vectors whose dot products with a carried direction are the edges, and their numbers.
//!
//! Active features write `a · W_dec[s][f, t − s]` at (t, p) for every t ≥ s (a PLT's for t = s only);
//! errors write themselves at (t, p); token embeddings stand at p. For one MLP output and position all decoder rows are one
//! matrix `[n, d]`, sources in ascending layers, so that a batch of targets is one GEMM; they are multiplied
//! where they lie, in memory or in the decoders' files, and the activations come after.

use crate::clt::{CltConfig, Decoder, SparseCode};
use crate::error::{Error, ErrorKind, Result};
use crate::replacement::LocalReplacement;
use candle_core::Tensor;
use std::ops::Range;

/// Numbers of a prompt's sources: features by (layer, position, feature), errors by (layer, position), tokens, and
/// positions where they are sources.
pub(crate) struct Sources {
    pub tokens: usize,
    pub layers: usize,
    pub width: usize,
    pub has_positions: bool,
    /// First feature number of each (layer, position), `[L·T + 1]`.
    starts: Vec<usize>,
}

impl Sources {
    /// With `positions` their learnt embeddings are sources too.
    pub fn new(local: &LocalReplacement, positions: bool) -> Self {
        let (clt, tokens) = (local.replacement().clt(), local.code().tokens());
        let mut starts = vec![0];
        for code in &local.code().layers {
            for p in 0..tokens {
                starts.push(starts[starts.len() - 1] + code.token(p).0.len());
            }
        }
        Sources { tokens, layers: clt.layers(), width: clt.config().width, has_positions: positions, starts }
    }

    /// Features in all.
    pub fn features(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Number of the first feature of layer `s` at positions from `p` on.
    pub fn first(&self, s: usize, p: usize) -> usize {
        self.starts[s * self.tokens + p]
    }

    /// Feature numbers of source layer `s` at position `p`.
    pub fn numbers(&self, s: usize, p: usize) -> Range<usize> {
        self.first(s, p)..self.first(s, p + 1)
    }

    /// Features of source layers below `s` at position `p`: columns before those of layer `s`.
    pub fn below(&self, s: usize, p: usize) -> usize {
        (0..s).map(|s| self.numbers(s, p).len()).sum()
    }

    /// Node of the error of MLP output `t` at position 0; those of others follow.
    pub fn error(&self, t: usize) -> usize {
        self.features() + t * self.tokens
    }

    /// Node of the token at position 0; those of others follow.
    pub fn token(&self) -> usize {
        self.error(self.layers)
    }

    /// Node of position 0, where positions are sources; those of others follow.
    pub fn position(&self) -> usize {
        self.error(self.layers + 1)
    }

    /// Nodes before the logits.
    pub fn nodes(&self) -> usize {
        self.error(self.layers + 1 + usize::from(self.has_positions))
    }
}

/// The vectors themselves, on the CPU.
pub(crate) struct Vectors {
    width: usize,
    config: CltConfig,
    code: SparseCode,
    decoders: Vec<Decoder>,
    errors: Vec<Vec<f32>>,
    embeddings: Vec<f32>,
    /// `[T, d]`; empty when positions are no sources.
    positions: Vec<f32>,
}

impl Vectors {
    /// # Errors
    /// `BadConfig` when positions are sources and the model has none.
    pub fn new(local: &LocalReplacement, sources: &Sources) -> Result<Self> {
        let clt = local.replacement().clt();
        let host = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1::<f32>()?) };
        Ok(Vectors {
            width: sources.width,
            config: clt.config().clone(),
            code: local.code().clone(),
            decoders: (0..sources.layers).map(|l| clt.decoder_store(l).on_cpu()).collect::<Result<_>>()?,
            errors: (0..sources.layers).map(|l| host(local.errors(l)?)).collect::<Result<_>>()?,
            embeddings: host(local.embeddings())?,
            positions: if sources.has_positions { host(&learnt_positions(local)?)? } else { Vec::new() },
        })
    }

    /// Source layers that write to MLP output `t`: all up to it, but in a PLT only itself.
    pub fn writing(&self, t: usize) -> Range<usize> {
        self.config.first_source(t)..t + 1
    }

    /// `work` on the decoder rows that write to MLP output `t` at position `p`, `[d]` each, and on the
    /// activations that they are to be scaled with: columns of the layers [`Vectors::writing`] to `t`.
    pub fn decoder_rows<R>(&self, t: usize, p: usize, work: impl FnOnce(&[&[f32]], &[f32]) -> R) -> Result<R> {
        let sources = self.writing(t);
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
