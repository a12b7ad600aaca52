//! Reading and writing CLTs, one format per file; safetensors, JSON and YAML only.

mod circuit_tracer;
mod per_layer;
pub(crate) mod tensors;
