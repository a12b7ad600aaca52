//! What stands for the GPU's bodies in a build without CUDA: nothing that can be made.

use crate::clt::{Clt, LayerCode, SparseCode};
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

/// Which entries of a row are kept: nobody looks here.
#[allow(dead_code)]
pub(crate) enum Keep<'a> {
    Top(usize),
    Above(Option<&'a Tensor>),
}

pub(crate) fn select(_: &Tensor, _: &Tensor, _: &Keep<'_>) -> Result<LayerCode> {
    none()
}

pub(crate) fn decode(_: &Clt, _: &[LayerCode], _: Range<usize>) -> Result<Option<Vec<Tensor>>> {
    none()
}

/// Says that this build has none.
fn none<T>() -> Result<T> {
    crate::device::cuda(0).and_then(|_| Err(crate::Error::new(crate::ErrorKind::Unsupported, "CUDA: this build has none")))
}

pub(crate) enum Effects {}

impl Effects {
    pub fn new(_: &Clt, _: &SparseCode, _: impl Fn(usize, usize) -> usize, _: Vec<DenseRows>) -> Result<Self> {
        none()
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
