//! A run: what one forward pass over one prompt left behind.
//!
//! In: token ids. Out: for each layer the residual before and after attention, what the MLP read
//! and wrote, the attention patterns and the norm scales; the logits. This is all that a CLT, the
//! frozen linear model and the interventions need; the weights stay in the [`Model`](crate::Model).

use super::forward::MlpSite;
use crate::error::{Error, ErrorKind, Result};
use crate::text::Tokenizer;
use candle_core::{Tensor, D};

/// What a forward pass keeps. The default keeps everything; [`Capture::mlp`] only what a CLT is
/// trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// `resid_pre`, `mlp_in`, `mlp_normalized` and the norm scales of each layer.
    pub residuals: bool,
    /// `resid_mid` and `mlp_out` of each layer.
    pub mlp: bool,
    /// `attn_pattern` of each layer, `[heads, tokens, tokens]`.
    pub patterns: bool,
    /// The logits. Without them the unembedding is not computed.
    pub logits: Logits,
}

/// Which positions' logits a pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Logits {
    /// None.
    None,
    /// The last position's, `[1, vocab]`.
    Last,
    /// Every position's, `[tokens, vocab]`.
    All,
}

impl Default for Capture {
    fn default() -> Self {
        Capture { residuals: true, mlp: true, patterns: true, logits: Logits::All }
    }
}

impl Capture {
    /// Keeps `resid_mid` and `mlp_out` only: a CLT's input and target.
    pub const fn mlp() -> Self {
        Capture { residuals: false, mlp: true, patterns: false, logits: Logits::None }
    }

    /// Keeps the last position's logits only.
    pub const fn last_logits() -> Self {
        Capture { residuals: false, mlp: false, patterns: false, logits: Logits::Last }
    }

    /// Keeps the logits only.
    pub const fn logits() -> Self {
        Capture { residuals: false, mlp: false, patterns: false, logits: Logits::All }
    }
}

/// Which value of each layer the encoders read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InputSite {
    /// The residual stream before the MLP's norm (`hook_resid_mid`).
    #[default]
    ResidMid,
    /// What the MLP reads, after its norm (`mlp.hook_in`).
    MlpIn,
    /// The same for LayerNorm; before the norm's weight for RMSNorm (`ln2.hook_normalized`).
    Normalized,
}

impl InputSite {
    /// The site's name in circuit-tracer's `config.yaml`.
    pub fn hook(self) -> &'static str {
        match self {
            InputSite::ResidMid => "hook_resid_mid",
            InputSite::MlpIn => "mlp.hook_in",
            InputSite::Normalized => "ln2.hook_normalized",
        }
    }

    /// The site with this hook name, if it is one that we capture.
    #[doc(hidden)]
    pub fn from_hook(name: &str) -> Option<Self> {
        [InputSite::ResidMid, InputSite::MlpIn, InputSite::Normalized].into_iter().find(|site| site.hook() == name)
    }

    /// The value of this site, `[T, d]`.
    ///
    /// # Errors
    /// `Tensor` when the device fails.
    #[doc(hidden)]
    pub fn of(self, site: &MlpSite<'_>) -> Result<Tensor> {
        match self {
            InputSite::ResidMid => Ok(site.resid_mid.clone()),
            InputSite::MlpIn => Ok(site.mlp_in.clone()),
            InputSite::Normalized => site.normalized(),
        }
    }
}

/// Which output of an MLP is `mlp_out`. The two differ only in families with a norm after the MLP
/// (Gemma 2 and 3, OLMo 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutputSite {
    /// What the MLP writes, before the norm (`mlp.hook_out`).
    BeforeNorm,
    /// What is added to the residual stream, after the norm (`hook_mlp_out`).
    #[default]
    AfterNorm,
}

impl OutputSite {
    /// The site's name in circuit-tracer's `config.yaml`.
    pub fn hook(self) -> &'static str {
        match self {
            OutputSite::BeforeNorm => "mlp.hook_out",
            OutputSite::AfterNorm => "hook_mlp_out",
        }
    }

    /// The site with this hook name, if it is one.
    #[doc(hidden)]
    pub fn from_hook(name: &str) -> Option<Self> {
        [OutputSite::BeforeNorm, OutputSite::AfterNorm].into_iter().find(|site| site.hook() == name)
    }
}

/// One layer of a [`Run`]. A site that was not captured is `None`.
#[derive(Clone, Debug, Default)]
pub struct LayerRun {
    /// Residual stream entering the layer, `[tokens, d]`.
    pub resid_pre: Option<Tensor>,
    /// Residual stream before the MLP's norm, `[tokens, d]` (for a parallel block the layer's input).
    pub resid_mid: Option<Tensor>,
    /// What the MLP reads, after its norm if it has one, `[tokens, d]`.
    pub mlp_in: Option<Tensor>,
    /// What the norm before the MLP makes, for RMSNorm before its weight (`ln2.hook_normalized`), `[tokens, d]`.
    pub mlp_normalized: Option<Tensor>,
    /// What the MLP writes, `[tokens, d]`: into the residual stream, or into the norm that follows
    /// it in some families; see [`LoadConfig::output`](crate::model::LoadConfig::output).
    pub mlp_out: Option<Tensor>,
    /// Attention patterns, `[heads, tokens (query), tokens (key)]`.
    pub attn_pattern: Option<Tensor>,
    /// 1/σ of the norm before attention, `[tokens, 1]`; `None` too where there is no such norm.
    pub attn_scale: Option<Tensor>,
    /// 1/σ of the norm after attention, likewise.
    pub attn_post_scale: Option<Tensor>,
    /// 1/σ of the norm before the MLP, likewise.
    pub mlp_scale: Option<Tensor>,
    /// 1/σ of the norm after the MLP, likewise.
    pub mlp_post_scale: Option<Tensor>,
}

/// What one forward pass over one prompt left behind.
#[derive(Clone, Debug)]
pub struct Run {
    /// The token ids, first the special token if the model has one.
    pub tokens: Vec<u32>,
    /// Each token as text, for people.
    pub token_text: Vec<String>,
    /// The layers, first to last.
    pub layers: Vec<LayerRun>,
    /// 1/σ of the final norm, `[tokens, 1]`.
    pub final_scale: Option<Tensor>,
    /// Logits, `[tokens, vocab]`.
    pub logits: Option<Tensor>,
    /// The last position's logits before the cap, `[1, vocab]`, of a model that caps its logits
    /// (Gemma 2). They, not the capped ones, are linear in the last residual stream, so they are what
    /// edges and predicted effects speak of, as in circuit-tracer.
    pub uncapped: Option<Tensor>,
    /// For the text of next tokens.
    pub(crate) tokenizer: Option<Tokenizer>,
}

impl Run {
    /// The `n` likeliest next tokens after the last position, with their probabilities, likeliest
    /// first; empty when no logits were kept.
    ///
    /// # Errors
    /// `NotFinite` for logits that are no numbers; `Tensor` when the device fails.
    pub fn top_next(&self, n: usize) -> Result<Vec<(u32, f32)>> {
        let Some(logits) = &self.logits else { return Ok(Vec::new()) };
        let last = logits.get(logits.dim(0)? - 1)?;
        let values = last.to_vec1::<f32>()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::expected(ErrorKind::NotFinite, format_args!("logits after the last token: of token id {at}"), values[at], "a finite number")
                .help("the weights or the configuration are spoilt; or take f32 (LoadConfig::dtype) where f16 overflows"));
        }
        let probabilities = candle_nn::ops::softmax(&last, D::Minus1)?.to_vec1::<f32>()?;
        let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
        order.sort_by(|a, b| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]));
        Ok(order.into_iter().take(n).map(|id| (id, probabilities[id as usize])).collect())
    }
}

impl Run {
    /// As [`Run::top_next`], each with its text; `⟨id⟩` where the model has no tokenizer.
    ///
    /// # Errors
    /// As [`Run::top_next`].
    pub(crate) fn top_next_text(&self, n: usize) -> Result<Vec<(String, f32)>> {
        let text = |id: u32| self.tokenizer.as_ref().map_or_else(|| format!("⟨{id}⟩"), |tokenizer| tokenizer.token_text(id));
        Ok(self.top_next(n)?.into_iter().map(|(id, probability)| (text(id), probability)).collect())
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Run of {} tokens, {} layers", self.tokens.len(), self.layers.len())?;
        match self.top_next_text(5) {
            Ok(top) if top.is_empty() => Ok(()),
            Ok(top) => {
                let next: Vec<String> = top.iter().map(|(text, probability)| format!("{text:?} {:.1} %", 100.0 * probability)).collect();
                write!(f, "; next: {}", next.join(", "))
            }
            Err(error) => write!(f, "; next: {error}"),
        }
    }
}
