//! Fillings of the buffer: on the host, or held where the model runs.
//!
//! A training on the same GPU as the model takes its batches from where they were made: nothing but each token's
//! norms is copied to the host. Both kinds hold the same tokens in the same order.

use super::scale::Affine;
use super::{stream, Batch, Outliers};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Rows that are summed together in f32; such sums are added in f64.
const RUN: usize = 4096;

/// One filling of the buffer.
#[derive(Clone)]
pub(crate) enum Filling {
    Host(Batch),
    Held(Held),
}

impl Default for Filling {
    fn default() -> Self {
        Filling::Host(Batch::default())
    }
}

impl Filling {
    /// An empty one, of the kind that is wanted.
    pub fn new(held: bool) -> Self {
        if held { Filling::Held(Held::default()) } else { Filling::default() }
    }

    pub fn tokens(&self) -> usize {
        match self {
            Filling::Host(batch) => batch.tokens,
            Filling::Held(held) => held.tokens,
        }
    }
}

/// Inputs and targets of the same tokens, of which the first `tokens` rows count: `[room, d]` each; in bf16 where the model
/// runs in it, else f32.
#[derive(Clone, Default)]
pub(crate) struct Held {
    pub tokens: usize,
    pub inputs: Vec<Tensor>,
    pub targets: Vec<Tensor>,
}

impl Held {
    /// How it holds what a model that runs in `dtype` makes.
    pub fn dtype_for(dtype: DType) -> DType {
        if dtype == DType::BF16 { dtype } else { DType::F32 }
    }

    /// Empties it, with room for `room` tokens.
    pub fn fit(&mut self, layers: usize, room: usize, d: usize, dtype: DType, device: &Device) -> Result<()> {
        self.tokens = 0;
        let fits = |side: &[Tensor]| side.len() == layers && side.iter().all(|held| held.dims() == [room, d] && held.dtype() == dtype);
        if fits(&self.inputs) && fits(&self.targets) {
            return Ok(());
        }
        for side in [&mut self.inputs, &mut self.targets] {
            // The old ones first: both may not fit.
            side.clear();
            for _ in 0..layers {
                side.push(Tensor::zeros((room, d), dtype, device)?);
            }
        }
        Ok(())
    }

    /// Appends those tokens of `sites`, each layer's input and target, that are `kept` and no outliers in their
    /// contexts; the others are left out of `kept` too.
    pub fn append(&mut self, sites: &[Tensor], max_norm: Option<f64>, kept: &mut [bool], context: usize) -> Result<()> {
        let rows = kept.len();
        let sites = sites.iter().map(|site| Ok(site.reshape((rows, ()))?)).collect::<Result<Vec<_>>>()?;
        if max_norm.is_some() {
            let mut outliers = Outliers::new(max_norm, stream::counts(kept, context));
            let squares = sites.iter().map(|site| Ok(site.to_dtype(DType::F32)?.sqr()?.sum(1)?)).collect::<Result<Vec<_>>>()?;
            for squares in Tensor::cat(&squares, 0)?.to_vec1::<f32>()?.chunks_exact(rows) {
                let norms: Vec<f32> = squares.iter().zip(&*kept).filter(|(_, &kept)| kept).map(|(square, _)| square.sqrt()).collect();
                outliers.see_norms(&norms);
            }
            outliers.narrow(kept);
        }
        let index: Vec<u32> = (0..).zip(&*kept).filter(|(_, &kept)| kept).map(|(row, _)| row).collect();
        if let (Some(first), false) = (sites.first(), index.is_empty()) {
            let (count, index) = (index.len(), Tensor::new(index, first.device())?);
            for (layer, pair) in sites.chunks_exact(2).enumerate() {
                for (side, site) in [&self.inputs, &self.targets].into_iter().zip(pair) {
                    side[layer].slice_set(&site.index_select(&index, 0)?.to_dtype(side[layer].dtype())?, 0, self.tokens)?;
                }
            }
            self.tokens += count;
        }
        Ok(())
    }

    /// Takes those tokens out that `out` marks, of all that it holds; the others keep their order.
    pub fn leave_out(&mut self, out: &[bool]) -> Result<()> {
        let index: Vec<u32> = (0..).zip(out).filter(|(_, &out)| !out).map(|(row, _)| row).collect();
        let (Some(first), true) = (self.inputs.first(), index.len() < self.tokens) else { return Ok(()) };
        let (count, index) = (index.len(), Tensor::new(index, first.device())?);
        for side in self.inputs.iter().chain(&self.targets).filter(|_| count > 0) {
            side.slice_set(&side.index_select(&index, 0)?, 0, 0)?;
        }
        self.tokens = count;
        Ok(())
    }

    /// Bytes that [`Held::measure`] takes of `tokens`: a run of rows in f32, the same centred, and squared.
    pub fn measuring_bytes(tokens: u64, d: usize) -> u64 {
        12 * tokens.min(RUN as u64) * d as u64
    }

    /// Means and scale of one side of one layer, of which sums alone are read: of each run of rows by dimension, and one a token.
    pub fn measure(&self, side: &Tensor, d: usize) -> Result<Affine> {
        let runs = || (0..self.tokens).step_by(RUN).map(|from| Ok::<_, Error>(side.narrow(0, from, RUN.min(self.tokens - from))?.to_dtype(DType::F32)?));
        let mut sums = vec![0f64; d];
        for run in runs() {
            sums.iter_mut().zip(run?.sum(0)?.to_vec1::<f32>()?).for_each(|(sum, part)| *sum += f64::from(part));
        }
        let mean = Affine::mean(&sums, self.tokens);
        let (centre, mut square) = (Tensor::new(mean.as_slice(), side.device())?, 0f64);
        for run in runs() {
            square += run?.broadcast_sub(&centre)?.sqr()?.sum(1)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(Affine::of(mean, square, self.tokens))
    }
}
