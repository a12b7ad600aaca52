//! Dense products on the device, by cuBLAS; sums in f32 whatever the factors are.

use super::{At, Gpu, Stored};
use crate::error::{Error, ErrorKind, Result};
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use std::ffi::c_void;

/// A factor: row-major, rows `stride` apart, read as it lies or turned.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub at: At,
    pub stored: Stored,
    pub stride: usize,
    pub turned: bool,
}

/// `out [rows, columns] (f32, rows `stride` apart) = left · right (+ out)`.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    pub rows: usize,
    pub depth: usize,
    pub columns: usize,
    pub left: Operand,
    pub right: Operand,
    pub out: At,
    pub stride: usize,
    pub add: bool,
}

impl Gpu {
    /// # Safety
    /// Factors and result must lie within buffers that outlive the product.
    pub unsafe fn product(&self, product: &Product) -> Result<()> {
        let (device, tf32) = self.inner();
        let (one, beta) = (1f32, if product.add { 1f32 } else { 0f32 });
        let kind = |operand: &Operand| match operand.stored {
            Stored::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Stored::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let turn = |operand: &Operand| if operand.turned { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N };
        let compute = match product.left.stored {
            Stored::F32 if tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let number = |n: usize| i32::try_from(n).map_err(|_| Error::expected(ErrorKind::Unsupported, "GPU: product", n, "at most 2^31 rows or columns"));
        // cuBLAS reads columns first: the same memory is the transpose of everything.
        let Product { rows, depth, columns, left, right, out, stride, .. } = *product;
        result::gemm_ex(
            *device.cublas_handle().handle(),
            turn(&right),
            turn(&left),
            number(columns)?,
            number(rows)?,
            number(depth)?,
            (&one as *const f32).cast::<c_void>(),
            right.at as *const c_void,
            kind(&right),
            number(right.stride)?,
            left.at as *const c_void,
            kind(&left),
            number(left.stride)?,
            (&beta as *const f32).cast::<c_void>(),
            out as *mut c_void,
            sys::cudaDataType_t::CUDA_R_32F,
            number(stride)?,
            compute,
            // Up to Turing the tensor-core variant may round f32 factors to f16.
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
        )
        .map_err(|error| Error::from(candle_core::Error::Cuda(Box::new(error))).context(format_args!("GPU: product of [{rows}, {depth}] and [{depth}, {columns}]")))
    }
}
