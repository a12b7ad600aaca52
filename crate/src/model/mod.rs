//! Model: the language model that is explained.
//!
//! In: token ids. Out: a [`Run`] with every site that transcoders, attribution and interventions
//! need. One transformer described by data ([`ModelConfig`]); a family says how its files map to
//! it. Symbols used throughout: L layers, d width of the residual stream, T tokens, V vocabulary.
//! The frozen backward of a part stands beside its forward, so attribution knows no architecture.

mod attention;
pub(crate) mod back;
mod batch;
mod config;
#[cfg_attr(not(feature = "cuda"), path = "no_device_pass.rs")]
mod device_pass;
pub(crate) mod family;
pub(crate) mod fast;
pub(crate) mod flow;
mod forward;
mod frozen;
mod generate;
mod gguf_parts;
mod load;
mod norm;
mod parts;
mod prompt;
mod qk;
mod rotary;
mod run;
mod sample;
mod shards;
mod softmax;
mod summary;
mod weights;

pub(crate) use attention::Past;
pub(crate) use device_pass::{DevicePass, Sites};
pub(crate) use prompt::Front;
pub(crate) use qk::Side;
pub use batch::Padding;
pub use config::{Biases, LocalAttention, MlpActivation, ModelConfig, NormKind, NormPlaces, Positions, QkNorm, RotaryScaling};
#[doc(hidden)]
pub use family::ARCHITECTURES;
pub use forward::{Freeze, MlpSite};
pub use generate::{Generation, Step, Stop};
pub use load::LoadConfig;
pub use run::{Capture, InputSite, LayerRun, Logits, OutputSite, Run};
pub use sample::GenerateConfig;
pub(crate) use weights::{check_safetensors, release};
pub use summary::{CltNeed, Optimizer, Part, Summary};

use crate::error::{Error, ErrorKind, Result};
use crate::text::{Prompt, Tokenizer};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// A language model with its tokenizer. Cheap to clone; the weights are shared.
///
/// ```no_run
/// # use cltlab::{model::Capture, Model};
/// let model = Model::load("gpt2", &Default::default())?;
/// let run = model.run("The capital of France is", &Capture::default())?;
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone)]
pub struct Model(Arc<Inner>, OutputSite);

struct Inner {
    name: String,
    config: ModelConfig,
    parts: family::Parts,
    rotaries: rotary::Rotaries,
    tokenizer: Option<Tokenizer>,
    device: Device,
    dtype: DType,
    sampling: GenerateConfig,
    fingerprint: String,
}

impl Model {
    /// Name for people: the hub's, or the file's or folder's.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The description of its shape and parts.
    pub fn config(&self) -> &ModelConfig {
        &self.0.config
    }

    /// Number of layers L.
    pub fn layers(&self) -> usize {
        self.0.config.layers
    }

    /// Width of the residual stream d.
    pub fn width(&self) -> usize {
        self.0.config.width
    }

    /// Vocabulary V.
    pub fn vocab(&self) -> usize {
        self.0.config.vocab
    }

    /// Longest context in tokens.
    pub fn context(&self) -> usize {
        self.0.config.context
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The type in which maps and embeddings are held. Sites and logits are f32 whatever it is.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// How its makers sample, by `generation_config.json`; greedy where there is none. Nothing samples
    /// so unless it is given this: `model.chat(&messages, &model.generate_config())`.
    pub fn generate_config(&self) -> GenerateConfig {
        self.0.sampling.clone()
    }

    /// A short id of the shape and of a sample of the weights. A CLT keeps it, so that it is not
    /// used with another model.
    #[doc(hidden)]
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// The same model with `mlp_out` at another site, see [`LoadConfig::output`].
    pub(crate) fn at(&self, output: OutputSite) -> Model {
        Model(self.0.clone(), output)
    }

    /// Where `mlp_out` is; always after where no norm follows the MLP.
    pub fn output(&self) -> OutputSite {
        if self.config().norm_places == NormPlaces::Pre { OutputSite::AfterNorm } else { self.1 }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `MissingFile` when the model came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::MissingFile, format!("{}: got no tokenizer, expected tokenizer.json beside the weights", self.name()))
                .help("add it, or give token ids")
        })
    }

    /// The special token at position 0 of training contexts, if the model has one.
    pub fn special_token(&self) -> Option<u32> {
        self.0.config.special_token
    }

    /// Refuses ids that cannot be run.
    ///
    /// # Errors
    /// `BadInput` for none, too many, or an id outside the vocabulary.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::expected(ErrorKind::BadInput, "tokens", "none", "at least one"));
        }
        if tokens.len() > self.context() {
            return Err(Error::expected(
                ErrorKind::BadInput,
                "prompt",
                format_args!("{} tokens", tokens.len()),
                format_args!("at most the context of {}", self.context()),
            )
            .help("shorten the prompt"));
        }
        match tokens.iter().find(|id| **id as usize >= self.vocab()) {
            Some(id) => Err(Error::expected(ErrorKind::BadInput, "token id", id, format_args!("below the vocabulary of {}", self.vocab()))),
            None => Ok(()),
        }
    }

    /// One token as text for people.
    pub fn token_text(&self, id: u32) -> String {
        self.0.tokenizer.as_ref().map_or_else(|| format!("⟨{id}⟩"), |tokenizer| tokenizer.token_text(id))
    }

    /// Runs a prompt and keeps what `capture` asks for; the default keeps everything.
    ///
    /// ```
    /// use cltlab::{model::{Capture, LoadConfig}, selftest::RandomModel};
    /// let model = RandomModel::default().load(&LoadConfig::default())?;
    /// let run = model.run([1, 2, 3], &Capture::default())?;
    /// assert_eq!(run.tokens.len(), 3);
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::tokens`]; `OutOfMemory`.
    pub fn run(&self, prompt: impl Into<Prompt>, capture: &Capture) -> Result<Run> {
        self.run_ids(&self.tokens(prompt)?, *capture, Freeze::none(), &mut |_, _| Ok(None))
    }

    /// Runs a prompt with parts of an earlier run held constant, and with each MLP's output shown to
    /// `splice(layer, site)`, which may return what is written instead, `[T, d]`.
    ///
    /// ```
    /// use cltlab::{model::{Capture, Freeze, LoadConfig}, selftest::RandomModel};
    /// let model = RandomModel::default().load(&LoadConfig::default())?;
    /// let without_mlps = model.run_spliced([1, 2, 3], &Capture::logits(), Freeze::none(), &mut |_, site| Ok(Some(site.mlp_out.zeros_like()?)))?;
    /// assert_eq!(without_mlps.logits.map(|logits| logits.dims()[0]), Some(3));
    /// # Ok::<(), cltlab::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::tokens`]; `Mismatch` for a run of another model or length; what `splice` returns.
    pub fn run_spliced(
        &self,
        prompt: impl Into<Prompt>,
        capture: &Capture,
        freeze: Freeze<'_>,
        splice: &mut dyn FnMut(usize, &MlpSite<'_>) -> Result<Option<Tensor>>,
    ) -> Result<Run> {
        self.run_ids(&self.tokens(prompt)?, *capture, freeze, splice)
    }

    fn run_ids(&self, tokens: &[u32], capture: Capture, freeze: Freeze<'_>, splice: &mut dyn FnMut(usize, &MlpSite<'_>) -> Result<Option<Tensor>>) -> Result<Run> {
        if let Some(run) = freeze.run.filter(|run| run.tokens.len() != tokens.len()) {
            return Err(Error::expected(ErrorKind::Mismatch, "frozen run: tokens", run.tokens.len(), tokens.len()));
        }
        let ids = Tensor::from_slice(tokens, (1, tokens.len()), self.device())?;
        let passed = self.pass(&ids, capture, freeze, splice, None)?;
        let mut layers = passed.layers;
        for layer in &mut layers {
            layer.attn_pattern = layer.attn_pattern.take().map(|pattern| pattern.squeeze(0)).transpose()?;
        }
        let logits = passed.logits.map(|logits| logits.squeeze(0)).transpose()?;
        let uncapped = passed.uncapped.map(|logits| logits.squeeze(0)).transpose()?;
        self.made(tokens, layers, passed.final_scale, logits, uncapped)
    }

    /// A run of these tokens; `logits` and `uncapped` are `[T or 1, V]`.
    fn made(&self, tokens: &[u32], layers: Vec<LayerRun>, final_scale: Option<Tensor>, logits: Option<Tensor>, uncapped: Option<Tensor>) -> Result<Run> {
        let last = |logits: Tensor| -> Result<Tensor> { Ok(logits.narrow(0, logits.dim(0)? - 1, 1)?.force_contiguous()?) };
        Ok(Run {
            tokens: tokens.to_vec(),
            token_text: tokens.iter().map(|id| self.token_text(*id)).collect(),
            layers,
            final_scale,
            logits,
            uncapped: uncapped.map(last).transpose()?,
            tokenizer: self.0.tokenizer.clone(),
        })
    }

    /// Runs a batch and shows each layer's MLP to `visit(layer, site)`; nothing is kept and no
    /// logits are computed, so a large model's activations never all sit in memory.
    ///
    /// # Shapes
    /// `tokens` `[batch, context]` u32; each site `[batch·context, d]`.
    ///
    /// # Errors
    /// `Tensor` for ids outside the vocabulary; what `visit` returns.
    #[doc(hidden)]
    pub fn visit_mlp(&self, tokens: &Tensor, visit: &mut dyn FnMut(usize, &MlpSite<'_>) -> Result<()>) -> Result<()> {
        let nothing = Capture { residuals: false, mlp: false, patterns: false, logits: Logits::None };
        self.pass(tokens, nothing, Freeze::none(), &mut |layer, site| visit(layer, site).map(|()| None), None)?;
        Ok(())
    }

    /// Whether attention and MLP of a block both read the block's input, as in GPT-NeoX.
    pub(crate) fn parallel_blocks(&self) -> bool {
        self.config().parallel
    }

    /// The unembedding W_U, `[V, d]`, as it is held: in the model's [`dtype`](Model::dtype).
    pub fn unembedding(&self) -> &Tensor {
        &self.parts().unembedding
    }

    /// Token embeddings as they enter the residual stream, without positions, `[T, d]`.
    ///
    /// # Errors
    /// `BadInput` for ids that cannot be run.
    pub(crate) fn embedding(&self, tokens: &[u32]) -> Result<Tensor> {
        self.check_tokens(tokens)?;
        let ids = Tensor::from_slice(tokens, tokens.len(), self.device())?;
        self.embedded(&ids)
    }

    /// Learnt position embeddings of the first `count` positions, `[count, d]`, as GPT-2 and GPT-Neo add them to
    /// the token embeddings; `None` for models without.
    ///
    /// # Errors
    /// `BadInput` for more positions than the context has.
    pub(crate) fn position_embeddings(&self, count: usize) -> Result<Option<Tensor>> {
        let Some(positions) = &self.parts().positions else { return Ok(None) };
        if count > positions.dim(0)? {
            return Err(Error::expected(ErrorKind::BadInput, "positions", count, format_args!("at most {}", positions.dim(0)?)));
        }
        Ok(Some(positions.narrow(0, 0, count)?.to_dtype(DType::F32)?))
    }

    fn layer_run<'a>(&self, layer: usize, run: &'a Run) -> Result<&'a LayerRun> {
        if run.layers.len() != self.layers() {
            return Err(forward::wrong_run(run.layers.len(), self.layers()));
        }
        run.layers.get(layer).ok_or_else(|| Error::expected(ErrorKind::BadInput, "layer", layer, format_args!("below {}", self.layers())))
    }

    pub(crate) fn parts(&self) -> &family::Parts {
        &self.0.parts
    }

    pub(crate) fn rotaries(&self) -> &rotary::Rotaries {
        &self.0.rotaries
    }

    /// Embeddings of `ids [n]`, scaled, `[n, d]`.
    fn embedded(&self, ids: &Tensor) -> Result<Tensor> {
        let rows = self.parts().embedding.index_select(ids, 0)?.to_dtype(DType::F32)?;
        let scale = self.config().embedding_scale;
        Ok(if scale == 1.0 { rows } else { (rows * scale)? })
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = self.config();
        write!(
            f,
            "Model {}: {}, {} layers, d {}, {} heads, vocabulary {}, context {}, {:.1} M parameters in {}",
            self.name(), c.architecture, c.layers, c.width, c.heads, c.vocab, c.context, c.parameters() as f64 / 1e6, self.dtype().as_str()
        )
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
