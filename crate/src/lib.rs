//! cltlab: cross-layer transcoders (CLTs) and attribution graphs, from a Rust notebook.
//!
//! A CLT replaces a language model's MLPs by sparse features that read one layer and write to it and
//! all later ones (Anthropic, *Circuit Tracing*, 2025). This crate trains one, says how faithful it
//! is, explains an answer as a graph of exact direct effects between features, and tests the
//! explanation by interventions.
//!
//! ```no_run
//! use cltlab::prelude::*;
//! let model = Model::load("states", &LoadConfig::default())?; // comes with the library; or "gpt2", a folder, a .gguf file
//! let (train, test) = Corpus::load("states", &TextConfig::default())?.split(0.95)?;
//! let activations = Activations::stream(&model, &train, &StreamConfig::default())?;
//! let mut trainer = Trainer::new(&activations, &CltConfig::for_model(&model), &TrainConfig::default())?;
//! trainer.run()?;
//! let clt = trainer.clt()?;
//! println!("{}", evaluate(&model, &clt, &test, &EvalConfig::default())?);
//! let replacement = Replacement::new(&model, &clt)?;
//! let graph = replacement.attribute("The capital of the state containing Dallas is", &AttributeConfig::default())?;
//! graph.prune(&PruneConfig::default())?.save("dallas.json", &GraphSaveConfig::default())?;
//! # Ok::<(), cltlab::Error>(())
//! ```
//!
//! # The walk
//! Reading order is data flow is import order; each arrow hands on one type.
//!
//! | module | in | out |
//! |---|---|---|
//! | [`text`] | files | [`Corpus`], blocks of token ids |
//! | [`model`] | token ids | [`Run`]: sites, patterns, norm scales, logits |
//! | [`activations`] | model and corpus | [`Activations`]: shuffled batches of MLP inputs and outputs |
//! | [`clt`] | activations | [`Clt`], sparse codes, and their gradients |
//! | [`train`] | activations | [`Trainer`], [`train::History`] |
//! | [`replacement`] | model and CLT | [`Replacement`]: the spliced model, errors, the frozen linear model |
//! | [`eval`] | model, CLT, held-out text | [`eval::Report`] |
//! | [`graph`] | replacement and prompt | [`Graph`]: attribution, influence, pruning, scores, JSON |
//! | [`intervene`] | replacement, prompt, changes | [`intervene::Effect`], text, [`intervene::EdgeCheck`], [`intervene::SupernodeCheck`] |
//! | [`states`] | replacement of the model that comes with the library | [`states::StateFeatures`], [`states::SwapCheck`]: features against what is known |
//! | [`picture`] | any of these | charts and graph pictures |
//! | [`selftest`] | a device | whether it computes what it should |
//! | [`notebook`] | any of these | displays, live progress, parameters |
//!
//! Below them all lie [`error`], [`environment`], [`device`], [`progress`] and [`hub`].
//!
//! # Grammar
//! One word for each thing, in the library, on the command line and in recipes:
//!
//! - `X::load(source, &config)` reads, `x.save(path, &config)` writes; a source is a path, or a name of the hub for what
//!   can come from there. Configurations have defaults (`&Default::default()`); [`model::LoadConfig::on`] and
//!   [`clt::CltLoadConfig::on`] name a device, the default is what [`auto_device`] finds.
//! - A verb that takes a prompt takes text or token ids: [`Prompt`] says which special tokens a text gets.
//! - A feature at a position is `layer_feature_position` as text, [`replacement::FeatureNode`]; a token is its id or its
//!   text, [`text::Token`].
//! - The option `--text` of a command, the key `source` of a recipe's table `[text]` and [`Corpus::load`]'s `source` are
//!   the same; so are `--targets` and [`graph::AttributeConfig::targets`], and all the others.
//!
//! # Features
//! | feature | default | what it adds |
//! |---|---|---|
//! | `hub` | on | models, CLTs and datasets fetched from the Hugging Face hub; without it only what is in its cache is read |
//! | `parquet` | on | texts from parquet files |
//! | `cuda` | off | NVIDIA GPUs (needs nvcc: `./x build-cuda`); the same program still runs where there is none |
//!
//! What a build leaves out is an error of kind [`ErrorKind::Unsupported`] that names the feature.

#![deny(missing_docs)]
#![warn(rustdoc::broken_intra_doc_links)]

pub mod activations;
pub mod clt;
pub mod device;
pub mod environment;
pub mod error;
pub mod eval;
mod files;
pub mod graph;
pub mod hub;
mod included;
pub mod intervene;
pub mod model;
pub mod notebook;
pub mod picture;
pub mod prelude;
pub mod progress;
pub mod replacement;
pub mod selftest;
pub mod states;
pub mod text;
pub mod train;

pub use activations::Activations;
pub use clt::{Clt, CltConfig};
pub use device::auto_device;
pub use error::{Error, ErrorKind, Result};
pub use graph::Graph;
pub use model::{Model, Run};
pub use replacement::Replacement;
pub use text::{Blocks, Corpus, Prompt, Tokenizer};
pub use train::{TrainConfig, Trainer};

pub use candle_core as candle;
pub use candle_nn;

/// What the program `cltlab` and the tests use beside the public interface; like all that is `#[doc(hidden)]` no part of
/// it, and changed without notice.
#[doc(hidden)]
pub mod internal {
    pub use crate::notebook::live::install as install_live;

    /// Reading and writing of files.
    pub mod files {
        pub use crate::files::*;
    }
}
