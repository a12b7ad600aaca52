//! What stands for a forward pass on a GPU in a build without CUDA: nothing that can be made.

use super::config::ModelConfig;
use super::rotary::Rotary;
use super::{InputSite, Model};
use crate::error::{Error, ErrorKind, Result};
use candle_core::Tensor;

/// Where the sites of a batch go: nothing writes them here.
#[allow(dead_code)]
pub(crate) struct Sites<'a> {
    pub inputs: &'a [Tensor],
    pub targets: &'a [Tensor],
    pub places: &'a [Option<u32>],
    pub max_norm: Option<f64>,
}

pub(crate) enum DevicePass {}

impl DevicePass {
    pub fn new(_: &Model, _: InputSite, _: usize, _: usize, _: usize) -> Result<Option<Self>> {
        Ok(None)
    }

    pub fn run(&mut self, _: &Tensor, _: &Sites<'_>) -> Result<()> {
        match *self {}
    }

    pub fn outliers(&self, _: usize) -> Result<Vec<bool>> {
        match *self {}
    }
}

pub(super) fn has_attention(_: &ModelConfig, _: &Tensor) -> bool {
    false
}

pub(super) fn attention(_: &ModelConfig, _: Option<&Rotary>, _: [&Tensor; 3]) -> Result<Tensor> {
    Err(Error::new(ErrorKind::Unsupported, "attention on a GPU: this build has no CUDA"))
}
