//! Reading and writing CLTs, one format per file; safetensors, npz, JSON and YAML only.

mod circuit_tracer;
mod clt_forge;
mod crosslayer_coding;
mod crosslayer_transcoder;
mod export;
mod gemma_scope;
mod gemma_scope_2;
mod import;
mod npz;
mod per_layer;
mod sae_lens;
mod sites;
mod source;
mod sparsify;
mod staged;
pub(crate) mod tensors;
mod weights;

pub use export::CltSaveConfig;
pub use import::{CltLoadConfig, Format};
