//! Reading and writing CLTs, one format per file; safetensors, JSON and YAML only.

mod circuit_tracer;
pub(crate) mod tensors;
