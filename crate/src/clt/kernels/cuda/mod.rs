//! CUDA bodies of the CLT's kernels: codes and their reconstructions, and what attribution needs. The kernels themselves lie beside
//! (`*.cu`, and `kernels.ptx` as it is compiled from them); [`crate::device::gpu`] launches them.

mod code;
mod effects;

pub(crate) use crate::device::gpu::*;
pub(crate) use code::{decode, select, Keep};
pub(crate) use effects::{DenseRows, Effects};
