//! What a notebook cell sees: `use cltlab::prelude::*;`, done by the kernel.

pub use crate::activations::{Activations, InputSite, ReadConfig, StoreConfig, StoreFormat, StreamConfig};
pub use crate::clt::{Activation, Calibration, Clt, CltConfig, CltLoadConfig, CltSaveConfig, FeatureId, Format, Tied};
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::eval::{evaluate, EvalConfig, Report};
pub use crate::graph::{Alignment, AttributeConfig, Graph, GraphDifference, GraphFormat, GraphSaveConfig, MergedGraph, Node, NodeKind, PruneConfig, QkAttribution, QkConfig, Scores, Supernode, Target};
pub use crate::intervene::{EdgeCheck, Effect, InterveneConfig, Intervention, Mode, Positions, SupernodeCheck, SupernodeConfig};
pub use crate::model::{Capture, Freeze, GenerateConfig, Generation, LoadConfig, Model, ModelConfig, OutputSite, Run, Summary};
pub use crate::notebook::{display, param};
pub use crate::picture::{self, ChartConfig, Html, Picture, Show};
pub use crate::replacement::{FeatureNode, LocalConfig, LocalReplacement, Replacement};
pub use crate::states::{StateFeatures, SwapConfig};
pub use crate::text::{Blocks, ChatConfig, Corpus, Prompt, TextConfig, Token, Tokenizer};
pub use crate::train::{History, Loss, MemoryNeed, Moments, Plan, PlanSource, Preset, TrainConfig, Trainer};
pub use crate::{auto_device, progress};
pub use candle_core::{DType, Device, IndexOp, Tensor, Var};
