//! Summary: what a model and a CLT for it need, before anything is allocated.
//!
//! In: a configuration (`config.json`, a GGUF header). Out: every kind of tensor with its shape, the
//! parameters, bytes by dtype, and the same for a CLT of any width. Cost: none worth naming; no
//! weight is read.

use super::config::{ModelConfig, NormKind, NormPlaces, Positions, QkNorm};
use super::load::{self, Source};
use super::weights::Weights;
use super::{family, Model};
use crate::device::format_bytes;
use crate::error::Result;
use crate::files;
use crate::hub::{HubConfig, HubRepo};
use crate::included;
use candle_core::DType;

/// All tensors of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is: `query`, `MLP down`.
    pub name: &'static str,
    /// Shape of the weight, `[out, in]` for maps.
    pub shape: Vec<usize>,
    /// How many there are in the model.
    pub count: usize,
    /// Numbers in all of them, biases included.
    pub parameters: u64,
}

/// How weights are moved in training, for the memory it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Optimizer {
    /// No moments.
    Sgd,
    /// Two moments in f32.
    Adam,
    /// Two moments of a byte each.
    Adam8Bit,
}

/// What a CLT takes. From [`Summary::clt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CltNeed {
    /// Features per layer F.
    pub features: usize,
    /// Weights in all: encoders `L·F·d`, decoders `L(L+1)/2·F·d`, biases `L·(F + d)`.
    pub parameters: u64,
}

impl CltNeed {
    /// Bytes of the weights, which is what using it takes.
    pub fn memory(&self, dtype: DType) -> u64 {
        self.parameters * dtype.size_in_bytes() as u64
    }

    /// Bytes of weights and gradients in `dtype` and the optimiser's moments, as a framework with
    /// dense gradients holds them. The batch comes on top: at most `tokens · L · (3d + 3F)` numbers.
    pub fn training(&self, dtype: DType, optimizer: Optimizer) -> u64 {
        let moments = match optimizer {
            Optimizer::Sgd => 0,
            Optimizer::Adam => 8,
            Optimizer::Adam8Bit => 2,
        };
        2 * self.memory(dtype) + moments * self.parameters
    }

    /// Bytes that the `Trainer` of this library holds: f32 weights and Adam's two moments. Gradients
    /// are used up row by row and never stored.
    #[doc(hidden)]
    pub fn training_here(&self) -> u64 {
        12 * self.parameters
    }

    /// The usual cases for a table, each a heading and bytes: use by dtype, training here, training
    /// with stored gradients by dtype and optimiser.
    pub(crate) fn figures(&self) -> [(&'static str, u64); 7] {
        [
            ("f32", self.memory(DType::F32)),
            ("bf16", self.memory(DType::BF16)),
            ("training here", self.training_here()),
            ("f32 Adam", self.training(DType::F32, Optimizer::Adam)),
            ("bf16 Adam", self.training(DType::BF16, Optimizer::Adam)),
            ("bf16 8-bit Adam", self.training(DType::BF16, Optimizer::Adam8Bit)),
            ("f32 SGD", self.training(DType::F32, Optimizer::Sgd)),
        ]
    }
}

/// A model's parts and needs.
///
/// ```no_run
/// use cltlab::model::Summary;
/// let summary = Summary::read("gpt2")?;
/// println!("{summary}");
/// println!("{} bytes to train a CLT of 24,576 features per layer", summary.clt(24_576).training_here());
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Name for people.
    pub name: String,
    /// Shape and parts.
    pub config: ModelConfig,
    /// Every kind of tensor.
    pub parts: Vec<Part>,
    /// The type in which a loaded model holds its maps and embeddings; `None` when only the
    /// configuration was read.
    pub dtype: Option<DType>,
}

impl Summary {
    /// Reads only the configuration of what [`Model::load`] would load; of a hub's repository one
    /// small file is fetched. (A llama2.c checkpoint is read whole.)
    ///
    /// # Errors
    /// As [`Model::load`], without those of the weights.
    pub fn read(source: &str) -> Result<Summary> {
        let config = match load::find(source)? {
            Source::Folder(folder) => json(&folder.join("config.json"))?,
            Source::Gguf(path) => match Weights::open_gguf(path)? {
                Weights::Gguf(parts) => family::config_from_gguf(&parts.content, source)?,
                _ => return Err(load::not_gguf(path)),
            },
            Source::Llama2c(path) => family::llama2c::open(path)?.0,
            Source::Included => family::config_from_json(&included::json("config.json", included::CONFIG)?, included::STATES)?,
            Source::Hub => json(&HubRepo::open(source, &HubConfig::default())?.file("config.json")?)?,
        };
        config.validate().map_err(|error| error.context(source))?;
        Ok(Self::new(load::short_name(source), config, None))
    }

    fn new(name: String, config: ModelConfig, dtype: Option<DType>) -> Self {
        Summary { name, parts: parts(&config), config, dtype }
    }

    /// Parameters in all, embedding, norms and biases included.
    pub fn parameters(&self) -> u64 {
        self.parts.iter().map(|part| part.parameters).sum()
    }

    /// Bytes of the weights of a model that is held in `dtype`: maps and embeddings in it; norms,
    /// biases and positions, which are small, in f32.
    pub fn memory(&self, dtype: DType) -> u64 {
        let small = |part: &&Part| part.shape.len() == 1 || part.name == POSITIONS;
        let numbers = |part: &Part| part.count as u64 * part.shape.iter().product::<usize>() as u64;
        let matrices: u64 = self.parts.iter().filter(|part| !small(part)).map(numbers).sum();
        matrices * dtype.size_in_bytes() as u64 + (self.parameters() - matrices) * DType::F32.size_in_bytes() as u64
    }

    /// Bytes of keys and values in f32 that a generation holds for `tokens` tokens.
    #[doc(hidden)]
    pub fn cache(&self, tokens: usize) -> u64 {
        let c = &self.config;
        (4 * 2 * (c.layers * c.kv_heads * c.head_dim) as u64).saturating_mul(tokens as u64)
    }

    /// What a CLT of this model with `features` features per layer takes.
    pub fn clt(&self, features: usize) -> CltNeed {
        let (l, d, f) = (self.config.layers as u64, self.config.width as u64, features as u64);
        CltNeed { features, parameters: f.saturating_mul(l * d + l * (l + 1) / 2 * d + l).saturating_add(l * d) }
    }

    /// CLTs that the pictures show: 2 features per unit of width (a start), 8, and 32 (as published).
    pub(crate) fn usual_clts(&self) -> [CltNeed; 3] {
        [2, 8, 32].map(|times| self.clt(times * self.config.width))
    }
}

fn json(path: &std::path::Path) -> Result<ModelConfig> {
    if let Some(error) = crate::text::placeholder::stands_in(path) {
        return Err(error);
    }
    family::config_from_json(&files::read_json_object(path)?, &path.display().to_string())
}

impl Model {
    /// Parts and needs of this model, and of CLTs for it.
    pub fn summary(&self) -> Summary {
        Summary::new(self.name().to_string(), self.config().clone(), Some(self.dtype()))
    }
}

const POSITIONS: &str = "positions";

/// Every kind of tensor that such a model has.
pub(super) fn parts(c: &ModelConfig) -> Vec<Part> {
    let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let part = |name, shape: &[usize], bias: usize, count: usize| {
        let numbers = shape.iter().product::<usize>() + bias;
        Part { name, shape: shape.to_vec(), count, parameters: numbers as u64 * count as u64 }
    };
    let map = |name, out: usize, inner: usize, bias: bool| part(name, &[out, inner], if bias { out } else { 0 }, c.layers);
    let norm = |name, count| part(name, &[c.width], if c.norm == NormKind::Layer { c.width } else { 0 }, count);
    let norms = if c.norm_places == NormPlaces::Sandwich { 2 * c.layers } else { c.layers };
    let mut all = vec![part("embedding", &[c.vocab, c.width], 0, 1)];
    if c.positions == Positions::Learned {
        all.push(part(POSITIONS, &[c.context, c.width], 0, 1));
    }
    all.push(norm("attention norms", norms));
    all.push(map("query", queries, c.width, c.biases.qkv));
    all.push(map("key", keys, c.width, c.biases.qkv));
    all.push(map("value", keys, c.width, c.biases.qkv));
    for (name, width) in [("query norm", queries), ("key norm", keys)] {
        if let Some(kind) = c.qk_norm {
            all.push(part(name, &[if kind == QkNorm::Whole { width } else { c.head_dim }], 0, c.layers));
        }
    }
    all.push(map("attention output", c.width, queries, c.biases.output));
    if !family::one_norm(&c.architecture) {
        all.push(norm("MLP norms", norms));
    }
    if c.gated {
        all.push(map("MLP gate", c.mlp_width, c.width, c.biases.mlp));
    }
    all.push(map("MLP up", c.mlp_width, c.width, c.biases.mlp));
    all.push(map("MLP down", c.width, c.mlp_width, c.biases.mlp));
    all.push(norm("final norm", 1));
    if !c.tied {
        all.push(part("unembedding", &[c.vocab, c.width], 0, 1));
    }
    if c.biases.unembedding {
        all.push(part("unembedding bias", &[c.vocab], 0, 1));
    }
    all
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &self.config;
        writeln!(f, "{}: {}, {} layers, d {}, context {}", self.name, c.architecture, c.layers, c.width, c.context)?;
        for part in &self.parts {
            writeln!(f, "  {:<18} {:>4} x {:<16} {:>13}", part.name, part.count, format!("{:?}", part.shape), part.parameters)?;
        }
        writeln!(f, "  {:<18} {:>37}", "parameters", self.parameters())?;
        let (single, half) = (format_bytes(self.memory(DType::F32)), format_bytes(self.memory(DType::BF16)));
        let held = self.dtype.map_or(String::new(), |dtype| format!(" (held in {})", dtype.as_str()));
        writeln!(f, "  weights {single} in f32, {half} in bf16 or f16{held}; keys and values of a full context {}", format_bytes(self.cache(c.context)))?;
        for clt in self.usual_clts() {
            let figures = clt.figures().map(|(heading, bytes)| format!("{heading} {}", format_bytes(bytes)));
            writeln!(f, "  CLT of {} features per layer: {} weights; {}", clt.features, clt.parameters, figures.join(", "))?;
        }
        Ok(())
    }
}
