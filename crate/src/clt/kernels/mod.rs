//! Kernels of the CLT: the only device-specific code. Bodies for the CPU lie in `cpu`, those for CUDA in `cuda`.

pub(crate) mod cpu;
#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
pub(crate) mod cuda;

pub(crate) use cpu::adam::{adam_rows, rest_row, AdamStep, Gradient, MomentRows, Rest, Rows};
pub(crate) use cpu::gemm::{gemm, Matrix};
pub(crate) use cpu::select::{keep_above, keep_above_each, keep_top, trim_top};
pub(crate) use cpu::moments::{unpack_block, Scales, BLOCK};
pub(crate) use cpu::sparse::{add_rows, decode_rows, decode_tile, dots, gather_rows, meet, Columns, Part, Shared, Slab};
pub(crate) use cpu::terms::{residual, square_rows, tanh_terms, ColumnSums, Residual, TILE};
