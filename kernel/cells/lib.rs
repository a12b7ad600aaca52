//! The library, whole, as one shared object.

pub use cltlab::*;
