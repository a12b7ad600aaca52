//! Weights in files: which types hold them, and where one is no number.

use super::names::shown;
use crate::error::{Error, ErrorKind, Result};
use std::fmt::Display;

/// Types of floating point, as safetensors and the tensor library name them.
const FLOATS: [&str; 4] = ["F32", "F16", "BF16", "F64"];

/// Refuses a type that holds no weights by itself: integers are codes of a quantised model.
///
/// # Errors
/// `BadTensor` with the type.
pub(crate) fn floating(place: impl Display, dtype: &str) -> Result<()> {
    let dtype = dtype.to_uppercase();
    if FLOATS.contains(&dtype.as_str()) {
        return Ok(());
    }
    Err(Error::expected(ErrorKind::BadTensor, format_args!("{place}: type"), shown(&dtype), "F32, F16, BF16 or F64").help("integers are codes of a quantised model or no weights; take the file in floating point"))
}

/// Where the first NaN or infinity is. One pass without branches where there is none.
pub(crate) fn odd(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 4096;
    let is_odd = |value: &f32| value.to_bits() & 0x7f80_0000 == 0x7f80_0000;
    let chunk = values.chunks(CHUNK).position(|chunk| chunk.iter().fold(false, |any, value| any | is_odd(value)))?;
    let start = chunk * CHUNK;
    values[start..].iter().position(is_odd).map(|at| start + at)
}

/// Refuses NaN and infinity where they lie; `place` names the file and the tensor, `shape` is the tensor's.
///
/// # Errors
/// `NotFinite` with the place.
pub(crate) fn finite(place: impl Display, values: &[f32], shape: &[usize]) -> Result<()> {
    let Some(at) = odd(values) else { return Ok(()) };
    Err(Error::expected(ErrorKind::NotFinite, format_args!("{place}: number {at} of {shape:?}"), values[at], "a finite number").help("the weights are spoilt: a training that diverged, or a damaged file"))
}
