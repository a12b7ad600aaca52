//! cltlab: cross-layer transcoders and attribution graphs, from a Rust notebook.
#![deny(missing_docs)]
#![warn(rustdoc::broken_intra_doc_links)]

pub mod activations;
pub mod clt;
pub mod device;
pub mod error;
pub mod eval;
pub mod files;
pub mod graph;
pub mod hub;
pub mod intervene;
pub mod model;
pub mod notebook;
pub mod picture;
pub mod prelude;
pub mod progress;
pub mod replacement;
pub mod text;
pub mod train;

pub use device::auto_device;
pub use error::{Error, ErrorKind, Result};
pub use model::{Model, Run};
pub use text::{Blocks, Corpus, Tokenizer};

pub use candle_core as candle;
pub use candle_nn;
