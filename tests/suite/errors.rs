//! Errors keep what they came from, and their kind follows from its type and code, never from its text.

use crate::support::scratch;
use cltlab::candle;
use cltlab::prelude::*;
use std::error::Error as _;
use std::io;

/// The innermost error of the chain.
fn root_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    error.source().map_or(error, root_of)
}

fn code_of(error: &Error) -> Option<i32> {
    root_of(error).downcast_ref::<io::Error>().and_then(io::Error::raw_os_error)
}

#[test]
fn a_system_error_is_the_source() {
    let folder = scratch("error-source");
    let error = Corpus::load(folder.join("none.txt"), &Default::default()).unwrap_err().context("outer").help("what to do");
    assert_eq!(error.kind(), ErrorKind::MissingFile);
    assert_eq!(code_of(&error), Some(libc::ENOENT));
    assert_eq!(code_of(&error.clone()), Some(libc::ENOENT), "a copy keeps its source");
    assert_eq!(format!("{error:?}"), error.to_string());
    let blocked = folder.join("file");
    std::fs::write(&blocked, "x").unwrap();
    let error = cltlab::internal::files::write_atomic(blocked.join("below"), b"y").unwrap_err();
    assert_eq!((error.kind(), code_of(&error)), (ErrorKind::Io, Some(libc::ENOTDIR)));
    for (code, kind) in [
        (libc::ENOSPC, ErrorKind::DiskFull),
        (libc::EDQUOT, ErrorKind::DiskFull),
        (libc::EFBIG, ErrorKind::DiskFull),
        (libc::ENOMEM, ErrorKind::OutOfMemory),
        (libc::EACCES, ErrorKind::Io),
    ] {
        let error = Error::io("a/file", io::Error::from_raw_os_error(code));
        assert_eq!((error.kind(), code_of(&error)), (kind, Some(code)), "{error}");
        assert!(error.to_string().starts_with("a/file: "), "{error}");
    }
}

#[test]
fn a_reader_s_error_is_the_source() {
    let folder = scratch("error-reader");
    let file = folder.join("groups.json");
    std::fs::write(&file, "[1, ").unwrap();
    let error = Supernode::load(&file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadFile);
    let cause = root_of(&error).downcast_ref::<serde_json::Error>();
    assert!(cause.is_some_and(serde_json::Error::is_eof), "{error}");
    std::fs::write(&file, "[[1]]").unwrap();
    let error = Supernode::load(&file).unwrap_err();
    assert!(root_of(&error).downcast_ref::<serde_json::Error>().is_some_and(serde_json::Error::is_data), "{error}");
    std::fs::write(folder.join("activations.safetensors"), b"\x02\0\0\0\0\0\0\0xx").unwrap();
    let error = Activations::load(folder.join("activations.safetensors"), &Default::default()).unwrap_err();
    assert!(error.source().is_some(), "{error}");
}

/// candle's errors, layer by layer.
#[test]
fn the_kind_of_candle_s_error_is_that_of_its_code() {
    let system = |code: i32| io::Error::from_raw_os_error(code);
    let full = libc::ENOSPC;
    let wrapped = |error: io::Error| candle::Error::WrappedContext { wrapped: Box::new(error), context: "while writing".into() };
    for error in [
        candle::Error::Io(system(full)),
        candle::Error::Io(system(full)).with_path("weights.safetensors").context("outer"),
        candle::Error::SafeTensor(safetensors::SafeTensorError::IoError(system(full))),
        wrapped(system(full)),
        candle::Error::Cuda(Box::new(candle::Error::Io(system(full)))),
    ] {
        let text = error.to_string();
        let error = Error::from(error);
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{text}");
        assert!(error.source().is_some_and(|cause| cause.is::<candle::Error>()), "{text}");
    }
    let error = Error::from(candle::Error::Cuda(Box::new(system(libc::ENOMEM))).context("a product"));
    assert!(error.is_out_of_memory() && error.advice().is_some(), "{error}");
    assert_eq!(Error::from(candle::Error::Io(system(libc::ENOENT))).kind(), ErrorKind::MissingFile);
    // Words alone say nothing: a tensor may be called anything.
    for text in ["out of memory", "CUDA_ERROR_OUT_OF_MEMORY", "No space left on device", "quota exceeded"] {
        assert_eq!(Error::from(candle::Error::Msg(format!("cannot find tensor {text}"))).kind(), ErrorKind::Tensor);
        assert_eq!(Error::from(candle::Error::Cuda(text.into())).kind(), ErrorKind::Tensor);
    }
}

/// The driver's own codes need neither driver nor device.
#[cfg(feature = "cuda")]
#[test]
fn a_full_gpu_is_known_by_its_code() {
    use candle::cuda_backend::cudarc::cublas::{result::CublasError, sys::cublasStatus_t};
    use candle::cuda_backend::cudarc::driver::{sys::CUresult, DriverError};
    use candle::cuda_backend::CudaError;
    let driver = || DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    for error in [
        CudaError::Cuda(driver()),
        CudaError::Load { cuda: driver(), module_name: "m".into() },
        CudaError::Cublas(CublasError(cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED)),
    ] {
        assert!(Error::from(candle::Error::from(error)).is_out_of_memory());
    }
    assert!(Error::from(candle::Error::Cuda(Box::new(driver()))).is_out_of_memory());
}
