//! What stands for the GPU's bodies in a build without CUDA: nothing that can be made.

use crate::clt::{Clt, SparseCode};
use crate::error::Result;
use candle_core::Tensor;
use std::ops::Range;

/// Dense vectors that write at one site: nobody reads them here.
#[allow(dead_code)]
pub(crate) struct DenseRows {
    pub site: usize,
    pub rows: Tensor,
    pub node: usize,
}

pub(crate) enum Effects {}

impl Effects {
    pub fn new(_: &Clt, _: &SparseCode, _: impl Fn(usize, usize) -> usize, _: Vec<DenseRows>) -> Result<Self> {
        // Says that this build has none.
        crate::device::cuda(0).and_then(|_| Err(crate::Error::new(crate::ErrorKind::Unsupported, "CUDA: this build has none")))
    }

    pub fn begin(&mut self, _: usize, _: usize) -> Result<()> {
        match *self {}
    }

    pub fn add(&mut self, _: usize, _: &Tensor, _: &[Range<usize>]) -> Result<()> {
        match *self {}
    }

    pub fn edges(&mut self) -> Result<(Vec<usize>, Vec<u32>, Vec<f32>)> {
        match *self {}
    }
}
