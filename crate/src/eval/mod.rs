//! Evaluation: how good is a CLT on text it was not trained on.
//!
//! In: model, CLT, corpus. Out: a [`Report`]: for each layer the fraction of variance unexplained
//! and how sparse the code is (`reconstruction`), and how close the replacement model's next-token
//! distribution is to the model's (`fidelity`). Special tokens and first positions are left out,
//! as in training. Cost: a pass of the model and of the CLT for the first part, three passes with
//! logits for the second.

mod fidelity;
mod reconstruction;
mod training;

use crate::activations::Outliers;
use crate::clt::{Activation, Clt};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::model::Model;
use crate::replacement::Replacement;
use crate::text::Corpus;

/// How much text is evaluated.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Tokens in a context, the special first one included. Default 128.
    pub context: usize,
    /// Tokens for FVU, L0 and dead features, at most. Default 16,384.
    pub tokens: usize,
    /// Tokens for cross-entropy, KL and top-1, at most; 0 leaves them out. Default 2,048.
    pub fidelity_tokens: usize,
    /// Tokens left out of FVU, L0 and dead features for their length, as in
    /// [`StreamConfig::max_norm`](crate::activations::StreamConfig::max_norm). Default 100.
    pub max_norm: Option<f64>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig { context: 128, tokens: 16_384, fidelity_tokens: 2_048, max_norm: Some(100.0) }
    }
}

impl EvalConfig {
    /// Checks the fields against the model's longest context.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    #[doc(hidden)]
    pub fn validate(&self, longest: usize) -> Result<()> {
        if self.context < 3 || self.context > longest {
            return Err(Error::expected(ErrorKind::BadConfig, "EvalConfig::context", self.context, format_args!("3 to {longest}, the model's context")));
        }
        if self.tokens == 0 {
            return Err(Error::expected(ErrorKind::BadConfig, "EvalConfig::tokens", 0, "at least 1"));
        }
        Outliers::validate(self.max_norm, "EvalConfig::max_norm")
    }

    /// Checks that a CLT with `activation` can be evaluated so: the replacement model computes layer
    /// after layer, and a ranking of all layers cannot be made there.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    #[doc(hidden)]
    pub fn fits(&self, activation: &Activation) -> Result<()> {
        if self.fidelity_tokens == 0 || !matches!(activation, Activation::GlobalTopK { .. }) {
            return Ok(());
        }
        Err(Error::expected(ErrorKind::BadConfig, "EvalConfig::fidelity_tokens", self.fidelity_tokens, format_args!("0, because {} ranks layers that the replacement model has not reached", activation.label()))
            .help("or evaluate what Clt::calibrate makes of it"))
    }
}

/// One layer of a [`Report`].
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LayerReport {
    /// Fraction of the MLP output's variance unexplained, `Σ‖y − ŷ‖² / Σ‖y − ȳ‖²`: 0 is perfect, 1
    /// no better than the mean.
    pub fvu: f64,
    /// Active features of this layer per token.
    pub l0: f64,
    /// Share of this layer's features that never fired, 0 to 1.
    pub dead: f64,
}

/// What [`evaluate`] found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Reconstruction, layer by layer.
    pub layers: Vec<LayerReport>,
    /// Tokens behind `layers`.
    pub tokens: usize,
    /// Predictions behind the figures below; 0 when they were left out.
    pub fidelity_tokens: usize,
    /// Cross-entropy of the model, nats per token.
    pub cross_entropy: f64,
    /// Cross-entropy with every MLP replaced by the CLT's reconstruction.
    pub replacement_cross_entropy: f64,
    /// Cross-entropy with every MLP's output set to zero.
    pub zero_ablation_ce: f64,
    /// KL divergence of the replacement's next-token distribution from the model's, nats.
    pub kl: f64,
    /// Share of positions where both have the same likeliest next token.
    pub top1: f64,
}

impl Report {
    /// Writes the report as JSON, whole or not at all; the folder is made.
    ///
    /// # Errors
    /// `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        files::write_json(path, self)
    }

    /// Mean FVU over layers.
    pub fn fvu(&self) -> f64 {
        self.mean(|layer| layer.fvu)
    }

    /// Mean L0 over layers.
    pub fn l0(&self) -> f64 {
        self.mean(|layer| layer.l0)
    }

    /// Mean share of dead features.
    pub fn dead(&self) -> f64 {
        self.mean(|layer| layer.dead)
    }

    /// Share of the loss between zero ablation and the model that the replacement keeps: 1 is the
    /// model itself, 0 no better than no MLPs.
    pub fn loss_recovered(&self) -> f64 {
        let span = self.zero_ablation_ce - self.cross_entropy;
        if span == 0.0 { 0.0 } else { (self.zero_ablation_ce - self.replacement_cross_entropy) / span }
    }

    fn mean(&self, of: impl Fn(&LayerReport) -> f64) -> f64 {
        self.layers.iter().map(of).sum::<f64>() / self.layers.len().max(1) as f64
    }
}

/// Evaluates `clt` on held-out text. After a stop request the report covers what was done so far.
///
/// ```no_run
/// use cltlab::{clt::Clt, eval::{evaluate, EvalConfig}, Corpus, Model};
/// let model = Model::load("gpt2", &Default::default())?;
/// let clt = Clt::load("runs/first", &Default::default())?;
/// let report = evaluate(&model, &clt, &Corpus::load("held_out.txt", &Default::default())?, &EvalConfig::default())?;
/// println!("{report}");
/// # Ok::<(), cltlab::Error>(())
/// ```
///
/// # Errors
/// `Mismatch` when the CLT belongs to another model; `BadConfig`; `BadInput` for text shorter than
/// one context; `NotFinite` when the replacement's stream overflows; `Interrupted` when there was
/// nothing to report yet.
pub fn evaluate(model: &Model, clt: &Clt, corpus: &Corpus, config: &EvalConfig) -> Result<Report> {
    config.validate(model.context())?;
    config.fits(&clt.config().activation)?;
    let replacement = Replacement::new(model, clt)?;
    let wanted = config.tokens.max(config.fidelity_tokens);
    let blocks = corpus.blocks(model.tokenizer()?, model.special_token(), config.context, Some(wanted))?;
    let mut report = Report::default();
    reconstruction::measure(&replacement, &blocks, config, &mut report)?;
    fidelity::measure(&replacement, &blocks, config.fidelity_tokens, &mut report)?;
    Ok(report)
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "layer    FVU     L0   dead %")?;
        for (l, layer) in self.layers.iter().enumerate() {
            writeln!(f, "{l:5}  {:.3}  {:5.1}   {:5.1}", layer.fvu, layer.l0, 100.0 * layer.dead)?;
        }
        write!(f, " mean  {:.3}  {:5.1}   {:5.1}   on {} tokens", self.fvu(), self.l0(), 100.0 * self.dead(), self.tokens)?;
        if self.fidelity_tokens > 0 {
            write!(
                f,
                "\ncross-entropy {:.3} (model), {:.3} (replacement), {:.3} (no MLPs); KL {:.3} nats, top-1 {:.1} % on {} predictions",
                self.cross_entropy,
                self.replacement_cross_entropy,
                self.zero_ablation_ce,
                self.kl,
                100.0 * self.top1,
                self.fidelity_tokens
            )?;
        }
        Ok(())
    }
}
