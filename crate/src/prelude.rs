//! What a notebook cell sees: `use cltlab::prelude::*;`, done by the kernel.

pub use crate::error::{Error, ErrorKind, Result};
pub use crate::model::{Capture, Freeze, GenerateConfig, Model, ModelConfig, Run};
pub use crate::notebook::param::param;
pub use crate::text::{Blocks, Corpus, Tokenizer};
pub use crate::{auto_device, progress};
pub use candle_core::{DType, Device, IndexOp, Tensor, Var};
