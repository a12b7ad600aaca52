//! cltlab: cross-layer transcoders and attribution graphs, from a Rust notebook.
#![deny(missing_docs)]
#![warn(rustdoc::broken_intra_doc_links)]

pub mod clt;
pub mod device;
pub mod error;
pub mod files;
pub mod model;
pub mod progress;

pub use device::auto_device;
pub use error::{Error, ErrorKind, Result};
