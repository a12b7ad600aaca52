//! Model: the language model that is explained.
//!
//! In: token ids. Out: a [`Run`] with every site that transcoders, attribution and interventions
//! need. One transformer described by data ([`ModelConfig`]); a family says how its files map to
//! it. Symbols used throughout: L layers, d width of the residual stream, T tokens, V vocabulary.
//! The frozen backward of a part stands beside its forward, so attribution knows no architecture.

mod attention;
pub(crate) mod back;
mod config;
pub(crate) mod family;
mod fast;
mod forward;
mod generate;
mod load;
mod norm;
mod parts;
mod run;
mod weights;

pub use config::{MlpActivation, ModelConfig, NormKind, Positions, RotaryScaling};
pub use family::ARCHITECTURES;
pub use forward::{Freeze, MlpSite};
pub use generate::GenerateConfig;
pub use run::{Capture, LayerRun, Logits, Run};

use crate::error::{Error, ErrorKind, Result};
use crate::text::Tokenizer;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// A language model with its tokenizer. Cheap to clone; the weights are shared.
///
/// ```no_run
/// # use cltlab::{auto_device, Model};
/// let model = Model::load("gpt2", &auto_device()?)?;
/// let run = model.run("The capital of France is")?;
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    name: String,
    config: ModelConfig,
    parts: family::Parts,
    rotary: Option<attention::Rotary>,
    tokenizer: Option<Tokenizer>,
    device: Device,
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

    /// A short id of the shape and of a sample of the weights. A CLT keeps it, so that it is not
    /// used with another model.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
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

    /// The special token at position 0 of contexts and prompts, if the model has one.
    pub fn special_token(&self) -> Option<u32> {
        self.0.config.special_token
    }

    /// Ids of `text` as the model is usually run: with the special first token only where its
    /// files ask for it.
    ///
    /// # Errors
    /// `BadInput` when the text tokenises to nothing or is longer than the context.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let special = self.special_token().filter(|_| self.0.config.add_special);
        self.encode(text, special)
    }

    /// Ids of `text` with the special first token in front, unless the text begins with it. This is
    /// the form of training contexts and of attribution: the first position is an attention sink
    /// whose features are left out.
    ///
    /// # Errors
    /// `BadInput` when the text tokenises to nothing or is longer than the context.
    pub fn prompt_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, self.special_token())
    }

    fn encode(&self, text: &str, special: Option<u32>) -> Result<Vec<u32>> {
        let ids = self.tokenizer()?.encode(text)?;
        if ids.is_empty() {
            return Err(Error::expected(ErrorKind::BadInput, "prompt", "no tokens", "at least one").help("give a text that is not empty"));
        }
        let special = special.filter(|special| ids.first() != Some(special));
        let tokens: Vec<u32> = special.into_iter().chain(ids).collect();
        self.check_tokens(&tokens)?;
        Ok(tokens)
    }

    /// Refuses ids that cannot be run.
    ///
    /// # Errors
    /// `BadInput` for none, too many, or an id outside the vocabulary.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
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

    /// Runs a prompt and keeps everything.
    ///
    /// # Errors
    /// As [`Model::tokens`] and [`Model::run_tokens`].
    pub fn run(&self, text: &str) -> Result<Run> {
        self.run_tokens(&self.tokens(text)?, Capture::default())
    }

    /// Runs ids and keeps what `capture` asks for.
    ///
    /// # Errors
    /// `BadInput` for ids that cannot be run; `OutOfMemory`.
    pub fn run_tokens(&self, tokens: &[u32], capture: Capture) -> Result<Run> {
        self.run_spliced(tokens, capture, Freeze::none(), &mut |_, _| Ok(None))
    }

    /// Runs ids with parts of an earlier run held constant, and with each MLP's output shown to
    /// `splice(layer, site)`, which may return what is written instead, `[T, d]`.
    ///
    /// # Errors
    /// `BadInput` for ids that cannot be run; `Mismatch` for a run of another model; what `splice`
    /// returns.
    pub fn run_spliced(
        &self,
        tokens: &[u32],
        capture: Capture,
        freeze: Freeze<'_>,
        splice: &mut dyn FnMut(usize, &MlpSite<'_>) -> Result<Option<Tensor>>,
    ) -> Result<Run> {
        self.check_tokens(tokens)?;
        if let Some(run) = freeze.run.filter(|run| run.tokens.len() != tokens.len()) {
            return Err(Error::expected(ErrorKind::Mismatch, "frozen run: tokens", run.tokens.len(), tokens.len()));
        }
        let ids = Tensor::from_slice(tokens, (1, tokens.len()), self.device())?;
        let passed = self.pass(&ids, capture, freeze, splice, None)?;
        Ok(Run {
            tokens: tokens.to_vec(),
            token_text: tokens.iter().map(|id| self.token_text(*id)).collect(),
            layers: passed.layers,
            final_scale: passed.final_scale,
            logits: passed.logits.map(|logits| logits.squeeze(0)).transpose()?,
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
    pub fn visit_mlp(&self, tokens: &Tensor, visit: &mut dyn FnMut(usize, &MlpSite<'_>) -> Result<()>) -> Result<()> {
        let nothing = Capture { residuals: false, mlp: false, patterns: false, logits: Logits::None };
        self.pass(tokens, nothing, Freeze::none(), &mut |layer, site| visit(layer, site).map(|()| None), None)?;
        Ok(())
    }

    /// Gradient at `resid_pre` of a layer that comes *through* its attention, given the gradient
    /// `g [batch, T', d]` at the attention's output, with the pattern and norm scale of `run` held.
    /// The residual path around the attention is the caller's. T' may be a prefix of the run.
    ///
    /// Source: *Circuit Tracing*, local replacement model; agrees with circuit-tracer's detached
    /// backward (adjacency, 1e-4 of its largest entry).
    ///
    /// # Errors
    /// `BadInput` when the run lacks patterns or scales.
    pub fn back_attention(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        let (site, part) = (self.layer_run(layer, run)?, &self.parts().layers[layer]);
        let pattern = forward::needed(&site.attn_pattern, "attn_pattern")?;
        let at_normed = attention::back(self.config(), part, pattern, g)?;
        part.attn_norm.back_frozen(&at_normed, &prefix(&site.attn_scale, "attn_scale", g)?)
    }

    /// Gradient at `resid_mid` given the gradient `g [batch, T', d]` at what the MLP reads, through
    /// the norm before the MLP with its scale held.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub fn back_mlp_norm(&self, layer: usize, run: &Run, g: &Tensor) -> Result<Tensor> {
        let site = self.layer_run(layer, run)?;
        self.parts().layers[layer].mlp_norm.back_frozen(g, &prefix(&site.mlp_scale, "mlp_scale", g)?)
    }

    /// Gradient at the last residual stream given the gradient `g [batch, T', d]` after the final
    /// norm, its scale held.
    ///
    /// # Errors
    /// `BadInput` when the run lacks scales.
    pub fn back_final_norm(&self, run: &Run, g: &Tensor) -> Result<Tensor> {
        self.parts().final_norm.back_frozen(g, &prefix(&run.final_scale, "final_scale", g)?)
    }

    /// Whether attention and MLP of a block both read the block's input, as in GPT-NeoX.
    pub fn parallel_blocks(&self) -> bool {
        false
    }

    /// The unembedding W_U, `[V, d]`.
    pub fn unembedding(&self) -> &Tensor {
        &self.parts().unembedding
    }

    /// Token embeddings as they enter the residual stream, without positions, `[T, d]`.
    ///
    /// # Errors
    /// `BadInput` for ids that cannot be run.
    pub fn embedding(&self, tokens: &[u32]) -> Result<Tensor> {
        self.check_tokens(tokens)?;
        let ids = Tensor::from_slice(tokens, tokens.len(), self.device())?;
        Ok(self.parts().embedding.index_select(&ids, 0)?)
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

    pub(crate) fn rotary(&self) -> Option<&attention::Rotary> {
        self.0.rotary.as_ref()
    }
}

/// The scales of the first T' tokens, where `g` is `[batch, T', d]`.
fn prefix(scale: &Option<Tensor>, name: &str, g: &Tensor) -> Result<Tensor> {
    Ok(forward::needed(scale, name)?.narrow(0, 0, g.dim(1)?)?)
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = self.config();
        write!(
            f,
            "Model {}: {}, {} layers, d {}, {} heads, vocabulary {}, context {}, {:.1} M parameters",
            self.name(), c.architecture, c.layers, c.width, c.heads, c.vocab, c.context, c.parameters() as f64 / 1e6
        )
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
