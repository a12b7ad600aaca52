//! Rankings over all layers together: each layer finds what could stay, then what is below the common cut goes.
//!
//! A batch's ranking looks above 0.8 of the last steps' cut. Whether that was enough is known once all layers are encoded: the answer
//! travels while the device decodes, and is waited for before anything is changed. If it was not, the step begins anew.

use super::encode::{ROW, WIDE};
use super::CudaClt;
use crate::clt::kernels::cuda::{At, Buffer, Gpu, Kernel, Sent};
use crate::clt::Activation;
use crate::error::Result;

/// What such a ranking needs of all layers.
pub(super) struct Across {
    /// Entries that equal the cut, of each layer and token.
    ties: Buffer<u32>,
    /// Where each layer's tokens were cut before the others were looked at, `[L, T]`; where a token is ranked.
    found: Buffer<f32>,
    /// 1 where too little lay above the hint, and that on its way here.
    too_few: Buffer<u32>,
    told: Sent,
}

impl Across {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Across { ties: gpu.zeros(0)?, found: gpu.zeros(0)?, too_few: gpu.zeros(1)?, told: Sent::new(gpu)? })
    }
}

impl CudaClt {
    /// Makes room for batches of `tokens`.
    pub(super) fn fit_across(&mut self, tokens: usize) -> Result<()> {
        let n = self.config.layers * tokens;
        if self.config.activation.ranks_layers() {
            self.across.ties.fit(n)?;
        }
        if self.ranks_tokens_across() {
            self.across.found.fit(n)?;
        }
        Ok(())
    }

    /// Whether each token is ranked over all layers.
    fn ranks_tokens_across(&self) -> bool {
        matches!(self.config.activation, Activation::GlobalTopK { .. })
    }

    /// Where a layer alone is cut, `[T]`.
    pub(super) fn own_cuts(&self, index: usize, tokens: usize) -> At {
        if self.ranks_tokens_across() { self.across.found.from(index * tokens) } else { self.layers[index].entries.cuts.at() }
    }

    /// Drops what is not among the largest of all layers; nothing to do where each layer is ranked alone.
    pub(super) fn rank_layers(&mut self, tokens: usize, hinted: bool) -> Result<()> {
        if !self.config.activation.ranks_layers() {
            return Ok(());
        }
        let l = self.config.layers;
        self.tell_layers(tokens)?;
        let (l32, t) = (l as u32, tokens as u32);
        let (shared, across, layers) = (&self.shared, &self.across, self.tables.layers.at());
        let (ties, ranking, histogram) = (across.ties.at(), shared.ranking.at(), shared.histogram.at());
        // SAFETY: runs begin and end where each layer's entries were written; `ties` is [L, T], the histogram has 2,048 bins.
        unsafe {
            match self.config.activation {
                Activation::GlobalBatchTopK { k } => {
                    let (wanted, hint) = ((k * l * tokens) as u32, if hinted { shared.hints.at() } else { 0 });
                    self.gpu.launch(Kernel::RANKING_BEGIN, (1, 1), ROW, &[&ranking, &wanted, &0u64, &0u32, &histogram, &self.found()])?;
                    for round in 0..3u32 {
                        self.gpu.launch(Kernel::COUNT_ACROSS, (WIDE, l), ROW, &[&layers, &ranking, &round, &histogram])?;
                        self.gpu.launch(Kernel::RANKING_PICK, (1, 1), ROW, &[&ranking, &round, &0u32, &histogram])?;
                    }
                    self.gpu.launch(Kernel::TIES_ACROSS, (tokens.div_ceil(8), l), ROW, &[&layers, &t, &ranking, &ties])?;
                    self.gpu.launch(Kernel::SCAN_TIES, (1, 1), 1024, &[&ties, &(l32 * t), &ranking, &hint, &across.too_few.at()])?;
                    self.gpu.launch(Kernel::CUT_BATCH, (tokens.div_ceil(8), l), ROW, &[&layers, &t, &ranking, &ties])?;
                    self.across.told.send(&self.across.too_few)
                }
                Activation::GlobalTopK { k } => self.gpu.launch(Kernel::CUT_TOKENS, (tokens, 1), ROW, &[&layers, &l32, &t, &((k * l) as u32), &ties]),
                _ => Ok(()),
            }
        }
    }

    /// Whether the ranking of this step found all that it looked for.
    pub(super) fn is_whole(&self) -> Result<bool> {
        match self.config.activation {
            Activation::GlobalBatchTopK { .. } => Ok(self.across.told.wait()? == 0),
            _ => Ok(true),
        }
    }
}
