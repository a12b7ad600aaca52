//! What stands for a training on a GPU in a build without CUDA: nothing that can be made.

pub(crate) use super::room::Wanted;

use super::{GpuPath, LiveClt, StepOptions, StepReport};
use crate::activations::{Reader, Scale};
use crate::clt::CltConfig;
use crate::error::Result;
use candle_core::Device;

pub(crate) enum CudaTraining {}

impl CudaTraining {
    pub fn require(_: &CltConfig, _: &Device, _: bool, _: bool, _: usize, _: Wanted, _: u64) -> Result<()> {
        Ok(())
    }

    pub fn begin(_: LiveClt, _: &Device, _: bool, _: Wanted, _: usize, _: (f64, f64), _: f64) -> Result<Self> {
        // Says that this build has none.
        crate::device::cuda(0).and_then(|_| Err(crate::Error::new(crate::ErrorKind::Unsupported, "CUDA: this build has none")))
    }

    pub fn next(&mut self, _: &mut Reader, _: usize, _: &Scale) -> Result<()> {
        match *self {}
    }

    pub fn step(&mut self, _: &StepOptions) -> Result<Vec<StepReport>> {
        match *self {}
    }

    pub fn flush(&mut self) -> Result<Vec<StepReport>> {
        match *self {}
    }

    pub fn steps(&self) -> u64 {
        match *self {}
    }

    pub fn download(&self) -> Result<LiveClt> {
        match *self {}
    }

    pub fn take(&mut self, _: GpuPath) {
        match *self {}
    }

    pub fn used(&self) -> Result<u64> {
        match *self {}
    }
}
