//! Parameters of a notebook, so that one notebook serves a laptop, a test and a batch job.
//!
//! The default stands in the notebook. A JSON file named by `CLTLAB_PARAMS` changes it, and an
//! environment variable `CLTLAB_<NAME>` changes that.

use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use std::str::FromStr;

/// Names whose variables mean something else.
const TAKEN: [&str; 5] = ["params", "kernel", "tf32", "cuda_path", "cuda_decoders"];

/// The parameter `name`: `default`, unless the file or the environment says otherwise.
///
/// ```
/// let steps: usize = cltlab::notebook::param("doc_steps", 200)?;
/// assert_eq!(steps, 200);
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `BadInput` naming the parameter, the text that was given and what was expected; for a name that
/// is not made of letters, digits and `_`. `MissingFile` or `BadFile` for the file.
pub fn param<T: FromStr>(name: &str, default: T) -> Result<T> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || TAKEN.iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
        return Err(Error::expected(ErrorKind::BadInput, "param: name", format_args!("{name:?}"), "letters, digits and _, not params, kernel, tf32, cuda_path or cuda_decoders"));
    }
    if let Some((variable, text)) = environment::parameter(name) {
        return parse(name, &text, &variable);
    }
    let Some(path) = environment::parameter_file() else { return Ok(default) };
    let place = path.to_string_lossy().into_owned();
    let given: serde_json::Map<String, serde_json::Value> = files::read_json(&path).map_err(|error| error.context("CLTLAB_PARAMS"))?;
    match given.get(name) {
        None => Ok(default),
        Some(serde_json::Value::String(text)) => parse(name, text, &place),
        Some(value) => parse(name, &value.to_string(), &place),
    }
}

fn parse<T: FromStr>(name: &str, text: &str, place: &str) -> Result<T> {
    text.parse().or_else(|_| text.trim().parse()).map_err(|_: T::Err| {
        let kind = std::any::type_name::<T>().rsplit("::").next().unwrap_or("value");
        Error::expected(ErrorKind::BadInput, format_args!("parameter {name} ({place})"), format_args!("{text:?}"), format_args!("a value of type {kind}"))
    })
}
