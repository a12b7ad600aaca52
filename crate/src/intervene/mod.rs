//! Interventions: is the graph's story true?
//!
//! In: a prompt and changes to features. Out: an [`Effect`], the outputs before and after, with the
//! change that the linear model predicts beside the one measured. A feature is changed by adding
//! `(new − current) · W_dec` to the MLP outputs that it writes to; the model's own MLPs stay, so
//! errors stay in (*Circuit Tracing*, section on interventions; circuit-tracer's
//! `feature_intervention`, logits equal to 1e-4). Cost: two forward passes and a linear one. Or, by
//! [`Replacement::generate`], the text that the changed model goes on with.

mod agreement;
mod check;
mod effect;
mod generate;
mod parse;
mod pass;
mod supernodes;

pub use agreement::Agreement;
#[doc(hidden)]
pub use check::Deviation;
pub use check::EdgeCheck;
pub use effect::{Effect, OutputEffect};
pub(crate) use agreement::correlation;
pub(crate) use pass::Comparison;
pub use supernodes::{Control, SupernodeCheck, SupernodeConfig, SupernodeEffect};

use crate::error::{Error, ErrorKind, Result};
use crate::replacement::{FeatureNode, Replacement};
use crate::text::Prompt;
use std::ops::Range;

/// At which positions a feature is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Positions {
    /// At one.
    At(usize),
    /// From `start` up to, not including, `end`.
    Range {
        /// First position.
        start: usize,
        /// Position after the last.
        end: usize,
    },
    /// From this one to the end, and at every token that is generated.
    From(usize),
    /// At every one, generated ones too.
    All,
}

impl Positions {
    /// Whether they are some of `tokens` positions, and none beyond them.
    fn within(&self, tokens: usize) -> bool {
        let end = match *self {
            Positions::At(position) => position.saturating_add(1),
            Positions::Range { end, .. } => end,
            Positions::From(_) | Positions::All => tokens,
        };
        end <= tokens && !self.between(&(0..tokens)).is_empty()
    }

    /// Those of them that lie in `span`.
    fn between(&self, span: &Range<usize>) -> Range<usize> {
        let (start, end) = match *self {
            Positions::At(position) => (position, position.saturating_add(1)),
            Positions::Range { start, end } => (start, end),
            Positions::From(start) => (start, span.end),
            Positions::All => (0, span.end),
        };
        start.max(span.start)..end.min(span.end)
    }

    /// True for slices without an end, which go on over tokens that are made.
    fn is_open(&self) -> bool {
        matches!(self, Positions::From(_) | Positions::All)
    }
}

/// A feature of a layer, at positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// Layer that the feature reads.
    pub layer: usize,
    /// Number within the layer.
    pub feature: usize,
    /// Where.
    pub positions: Positions,
}

impl From<FeatureNode> for Place {
    fn from(node: FeatureNode) -> Self {
        Place { layer: node.layer, feature: node.feature, positions: Positions::At(node.position) }
    }
}

impl From<(usize, usize, usize)> for Place {
    /// From (layer, feature, position), the order of the id.
    fn from((layer, feature, position): (usize, usize, usize)) -> Self {
        FeatureNode::from((layer, feature, position)).into()
    }
}

impl From<(usize, usize, Positions)> for Place {
    /// From (layer, feature, positions), the order of the id.
    fn from((layer, feature, positions): (usize, usize, Positions)) -> Self {
        Place { layer, feature, positions }
    }
}

/// What happens to an activation.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// It becomes this.
    Set(f32),
    /// It is multiplied by this.
    Scale(f32),
    /// This is added.
    Add(f32),
}

impl Change {
    fn apply(&self, activation: f32) -> f32 {
        match *self {
            Change::Set(value) => value,
            Change::Scale(factor) => activation * factor,
            Change::Add(amount) => activation + amount,
        }
    }

    fn number(&self) -> f32 {
        match *self {
            Change::Set(number) | Change::Scale(number) | Change::Add(number) => number,
        }
    }
}

/// A change of one feature.
///
/// ```
/// use cltlab::intervene::{Intervention, Positions};
/// use cltlab::replacement::FeatureNode;
/// let one = Intervention::ablate("3_120_7".parse::<FeatureNode>()?);
/// let everywhere = Intervention::scale((3, 120, Positions::From(1)), -2.0);
/// # let _ = (one, everywhere);
/// # Ok::<(), cltlab::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Intervention {
    /// Which feature, where.
    pub place: Place,
    /// What happens to it.
    pub change: Change,
}

impl Intervention {
    /// Sets the feature to 0.
    pub fn ablate(place: impl Into<Place>) -> Self {
        Intervention::set(place, 0.0)
    }

    /// Multiplies the feature by `factor`; 2 doubles it, −1 turns it round.
    pub fn scale(place: impl Into<Place>, factor: f32) -> Self {
        Intervention { place: place.into(), change: Change::Scale(factor) }
    }

    /// Sets the feature to `value`.
    pub fn set(place: impl Into<Place>, value: f32) -> Self {
        Intervention { place: place.into(), change: Change::Set(value) }
    }

    /// Adds `amount` to the feature.
    pub fn add(place: impl Into<Place>, amount: f32) -> Self {
        Intervention { place: place.into(), change: Change::Add(amount) }
    }
}

/// What may respond to an intervention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mode {
    /// Nothing: patterns, norm scales and MLP outputs are held. Measures the graph's edges.
    Direct,
    /// MLPs and norms respond, attention patterns are held.
    #[default]
    FrozenAttention,
    /// Everything responds.
    Open,
    /// Attention patterns are held, and the MLP outputs of layers `start` to `end − 1`, the only ones
    /// that the intervention writes to; later layers respond. All layers is [`Mode::Direct`].
    Layers {
        /// First layer.
        start: usize,
        /// Layer after the last.
        end: usize,
    },
}

impl Mode {
    /// `BadConfig` naming `field` for layers that a model of `layers` does not have.
    pub(super) fn check(self, layers: usize, field: &str) -> Result<()> {
        match self {
            Mode::Layers { start, end } if start >= end || end > layers => Err(Error::expected(
                ErrorKind::BadConfig,
                field,
                format_args!("layers {start}..{end}"),
                format_args!("a range within 0..{layers} that is not empty"),
            )),
            _ => Ok(()),
        }
    }
}

/// How an intervention is run and how much of its effect is shown.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InterveneConfig {
    /// What may respond. Default [`Mode::FrozenAttention`].
    pub mode: Mode,
    /// Outputs shown: this many of the most probable before and after. Default 10.
    pub top: usize,
    /// Keep the changed logits of every position ([`Effect::logits_everywhere`]), not only of the
    /// last. Default false.
    pub every_position: bool,
}

impl Default for InterveneConfig {
    fn default() -> Self {
        InterveneConfig { mode: Mode::default(), top: 10, every_position: false }
    }
}

impl InterveneConfig {
    /// Checks the fields.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    pub(crate) fn validate(&self, layers: usize) -> Result<()> {
        if self.top == 0 {
            return Err(Error::expected(ErrorKind::BadConfig, "InterveneConfig::top", 0, "at least 1"));
        }
        self.mode.check(layers, "InterveneConfig::mode")
    }
}

impl Replacement {
    /// Runs a prompt with features changed; by default attention patterns are held and everything else responds.
    /// Interventions on the same feature and position apply in order.
    ///
    /// ```no_run
    /// # use cltlab::{graph::AttributeConfig, intervene::{InterveneConfig, Intervention}, replacement::Replacement};
    /// # fn f(replacement: Replacement) -> cltlab::Result<()> {
    /// let prompt = "The capital of the state containing Dallas is";
    /// let top = replacement.attribute(prompt, &AttributeConfig::default())?.top_features(1);
    /// let effect = replacement.intervene(prompt, &[Intervention::ablate(top[0])], &InterveneConfig::default())?;
    /// println!("{effect}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `BadInput` for no intervention, a layer, feature or position that does not exist, or a value that
    /// is not finite; as [`Replacement::local`]; `BadConfig` naming the field; `NotFinite` when the
    /// model's logits are not finite.
    pub fn intervene(&self, prompt: impl Into<Prompt>, interventions: &[Intervention], config: &InterveneConfig) -> Result<Effect> {
        config.validate(self.model().layers())?;
        if interventions.is_empty() {
            return Err(Error::expected(ErrorKind::BadInput, "interventions", "none", "at least one"));
        }
        let tokens = self.tokens(prompt)?;
        self.check(interventions, tokens.len(), tokens.len())?;
        let local = self.local_at(&tokens, &[0])?;
        pass::effect(&local, interventions, config)
    }

    /// Refuses places that are not there; open slices may begin among the positions to be made, up to `end`.
    fn check(&self, interventions: &[Intervention], tokens: usize, end: usize) -> Result<()> {
        for (i, Intervention { place, change }) in interventions.iter().enumerate() {
            let bad = |field: &str, got: String, expected: String| {
                Err(Error::expected(ErrorKind::BadInput, format_args!("intervention {i}: {field}"), got, expected))
            };
            let (layers, features) = (self.clt().layers(), self.clt().features());
            if place.layer >= layers {
                return bad("layer", place.layer.to_string(), format!("less than {layers}"));
            }
            if place.feature >= features {
                return bad("feature", place.feature.to_string(), format!("less than {features}"));
            }
            let last = if place.positions.is_open() { end } else { tokens };
            if !place.positions.within(last) {
                let whose = if last > tokens { "the text" } else { "the prompt" };
                return bad("positions", place.positions.to_string(), format!("positions 0 to {}, those of {whose}", last.saturating_sub(1)));
            }
            if !change.number().is_finite() {
                return bad("value", change.number().to_string(), "a finite number".into());
            }
        }
        Ok(())
    }
}
