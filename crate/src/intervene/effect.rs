//! The effect of an intervention on the outputs: predicted beside measured.

use super::agreement::correlation;
use super::{Intervention, Mode};
use crate::graph::targets::{softmax, top_tokens};
use candle_core::Tensor;

/// One output token before and after. Logits are demeaned over the vocabulary where they change:
/// `predicted` and `measured` are changes of the logit less the change of the mean logit, both before
/// the cap in models that cap their logits.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputEffect {
    /// Vocabulary id.
    pub token: u32,
    /// The token as text, for people.
    pub text: String,
    /// Probability before, 0 to 1.
    pub before: f64,
    /// Probability after, 0 to 1.
    pub after: f64,
    /// Change of the demeaned logit that the linear model predicts.
    pub predicted: f64,
    /// Change of the demeaned logit that was measured.
    pub measured: f64,
}

/// What an intervention did to the outputs of the last position.
#[derive(Clone)]
pub struct Effect {
    /// The prompt's tokens as text.
    pub token_text: Vec<String>,
    /// What was changed.
    pub interventions: Vec<Intervention>,
    /// What was free to respond.
    pub mode: Mode,
    /// The most probable outputs before or after, most probable before first.
    pub outputs: Vec<OutputEffect>,
    pub(super) before: Vec<f32>,
    pub(super) after: Vec<f32>,
    pub(super) everywhere: Option<Tensor>,
}

impl Effect {
    /// Logits before, `[V]`.
    pub fn logits_before(&self) -> &[f32] {
        &self.before
    }

    /// Logits after, `[V]`.
    pub fn logits_after(&self) -> &[f32] {
        &self.after
    }

    /// Logits after at every position, `[T, V]`, when
    /// [`InterveneConfig::every_position`](super::InterveneConfig::every_position) asked for them.
    pub fn logits_everywhere(&self) -> Option<&Tensor> {
        self.everywhere.as_ref()
    }

    /// Correlation (Pearson) of predicted and measured changes over [`Effect::outputs`]; `None` when
    /// either does not vary.
    pub fn agreement(&self) -> Option<f64> {
        correlation(self.outputs.iter().map(|o| (o.predicted, o.measured)))
    }

    /// Kullback-Leibler divergence of the outputs after from those before, in nats.
    #[doc(hidden)]
    pub fn divergence(&self) -> f64 {
        let (before, after) = (softmax(&self.before), softmax(&self.after));
        before.iter().zip(&after).filter(|(b, _)| **b > 0.0).map(|(b, a)| b * (b / a.max(f64::MIN_POSITIVE)).ln()).sum()
    }
}

/// The tokens to show: the `top` most probable before, then those after that are new.
pub(super) fn shown(before: &[f32], after: &[f32], top: usize) -> Vec<u32> {
    let mut tokens = top_tokens(&softmax(before), top);
    for token in top_tokens(&softmax(after), top) {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    tokens
}

/// Logits less their mean.
pub(super) fn demeaned(logits: &[f32]) -> Vec<f64> {
    let mean = logits.iter().map(|logit| f64::from(*logit)).sum::<f64>() / logits.len().max(1) as f64;
    logits.iter().map(|logit| f64::from(*logit) - mean).collect()
}

impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:>16} {:>8} {:>8} {:>10} {:>10}", "output", "before", "after", "predicted", "measured")?;
        for o in &self.outputs {
            writeln!(f, "{:>16} {:>8.4} {:>8.4} {:>+10.3} {:>+10.3}", format!("{:?}", o.text), o.before, o.after, o.predicted, o.measured)?;
        }
        match self.agreement() {
            Some(r) => write!(f, "predicted against measured: r = {r:.3}"),
            None => write!(f, "nothing changed"),
        }
    }
}

impl std::fmt::Debug for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
