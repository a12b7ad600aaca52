//! Supernodes: does changing a group of features do what the graph says?
//!
//! In: a graph and groups of its features. Out: a [`SupernodeCheck`]: for each group and factor, the change
//! of every output's logit that the graph predicts, the change that is measured when its features are set
//! to that multiple in the model, and controls: random active features, as many in each layer, their
//! activations summing to about the same. A graph that knows nothing would predict what the controls do as
//! well as what its groups do. Source: *Circuit Tracing*, section on validating by interventions. Cost: a
//! forward pass a group and factor, and two a control.

use super::agreement::Agreement;
use super::effect::demeaned;
use super::pass::Plan;
use super::{Intervention, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::graph::{Graph, LogitTarget, Supernode};
use crate::progress::{stop_requested, Task};
use crate::replacement::{last_uncapped, FeatureNode, LocalReplacement, Replacement};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::SeedableRng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Random groups that are drawn for one control; the nearest in activation is taken.
const DRAWS: usize = 64;

/// How groups are changed and compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupernodeConfig {
    /// What may respond. Default [`Mode::FrozenAttention`]. A graph's edges are not split by the layers that
    /// they are written to: with [`Mode::Layers`] the linear model predicts for the groups too.
    pub mode: Mode,
    /// Features of a group are set to these multiples of their activations. Default 0, ablation, and 2.
    pub factors: Vec<f64>,
    /// Random groups for each group and factor. Default 4.
    pub controls: usize,
    /// Controls stand at the same positions too, not only in the same layers. Default false.
    pub same_positions: bool,
    /// Seed of the random groups. Default 0.
    pub seed: u64,
}

impl Default for SupernodeConfig {
    fn default() -> Self {
        SupernodeConfig { mode: Mode::default(), factors: vec![0.0, 2.0], controls: 4, same_positions: false, seed: 0 }
    }
}

impl SupernodeConfig {
    /// Checks the fields.
    ///
    /// # Errors
    /// `BadConfig` naming the field.
    #[doc(hidden)]
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, got: String, expected: &str| Err(Error::expected(ErrorKind::BadConfig, format_args!("SupernodeConfig::{field}"), got, expected));
        match self.factors.iter().find(|factor| !factor.is_finite() || **factor == 1.0) {
            Some(factor) => bad("factors", factor.to_string(), "finite numbers other than 1, which changes nothing"),
            None if self.factors.is_empty() => bad("factors", "none".into(), "at least one"),
            // Each is a run of the model.
            None => Error::at_most(ErrorKind::BadConfig, "SupernodeConfig::controls", self.controls, 10_000),
        }
    }
}

/// Random features that were changed in a group's place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Which.
    pub features: Vec<FeatureNode>,
    /// Sum of their activations.
    pub mass: f64,
    /// What the linear model predicts for them, a logit each, as [`SupernodeEffect::predicted`].
    pub predicted: Vec<f64>,
    /// What they did, as [`SupernodeEffect::measured`].
    pub measured: Vec<f64>,
}

/// One group set to one multiple of its activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupernodeEffect {
    /// The group.
    pub group: Supernode,
    /// Multiple that its activations were set to.
    pub factor: f64,
    /// Sum of its activations.
    pub mass: f64,
    /// Change of each output's logit, less the mean logit's, that the graph predicts, `[K]`, before any cap.
    pub predicted: Vec<f64>,
    /// The change that was measured, `[K]`.
    pub measured: Vec<f64>,
    /// Random features in its place.
    pub controls: Vec<Control>,
}

/// Predicted and measured effects of groups of features, with controls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupernodeCheck {
    /// The prompt.
    pub prompt: String,
    /// What was free to respond.
    pub mode: Mode,
    /// The outputs, most probable first, K: id, text, probability.
    pub outputs: Vec<(u32, String, f32)>,
    /// Each group with each factor, groups in the order given.
    pub effects: Vec<SupernodeEffect>,
}

impl SupernodeCheck {
    /// Correlation of predicted and measured changes over groups, factors and outputs.
    pub fn agreement(&self) -> Agreement {
        let pairs = self.effects.iter().flat_map(|effect| effect.predicted.iter().copied().zip(effect.measured.iter().copied()));
        Agreement::of(pairs.collect())
    }

    /// The same of the groups' predictions with what random features in their place did: near 0 when it
    /// matters which features were changed.
    #[doc(hidden)]
    pub fn control_agreement(&self) -> Agreement {
        let pairs = self.effects.iter().flat_map(|effect| {
            effect.controls.iter().flat_map(|control| effect.predicted.iter().copied().zip(control.measured.iter().copied()))
        });
        Agreement::of(pairs.collect())
    }

    /// The same of what the linear model predicts for the random features with what they did.
    #[doc(hidden)]
    pub fn control_own_agreement(&self) -> Agreement {
        let controls = self.effects.iter().flat_map(|effect| &effect.controls);
        Agreement::of(controls.flat_map(|control| control.predicted.iter().copied().zip(control.measured.iter().copied())).collect())
    }

    /// Only the groups whose features all lie in `layers`.
    #[doc(hidden)]
    pub fn of_layers(&self, layers: impl std::ops::RangeBounds<usize>) -> SupernodeCheck {
        let inside = |effect: &&SupernodeEffect| effect.group.features.iter().all(|feature| layers.contains(&feature.layer));
        SupernodeCheck { effects: self.effects.iter().filter(inside).cloned().collect(), ..self.clone() }
    }

    /// Size (root mean square over groups, factors and outputs) of measured changes: groups', controls'.
    #[doc(hidden)]
    pub fn sizes(&self) -> (f64, f64) {
        let size = |changes: Vec<f64>| (changes.iter().map(|change| change * change).sum::<f64>() / changes.len().max(1) as f64).sqrt();
        let own = self.effects.iter().flat_map(|effect| effect.measured.clone()).collect();
        (size(own), size(self.effects.iter().flat_map(|effect| effect.controls.iter().flat_map(|control| control.measured.clone())).collect()))
    }

    /// The correlations in a sentence.
    #[doc(hidden)]
    pub fn summary(&self) -> String {
        self.lines().join("; ")
    }

    /// What was compared, how well the graph predicts it, and how large the changes are.
    pub(crate) fn lines(&self) -> [String; 3] {
        let (own, random) = self.sizes();
        [
            format!("{} changes of groups, {} outputs: predicted against measured {}", self.effects.len(), self.outputs.len(), self.agreement()),
            format!("random features in their place: the groups' prediction against what these do {}; their own prediction against it {}", self.control_agreement(), self.control_own_agreement()),
            format!("size of the changes, root mean square in logits: groups {own:.3}, random features {random:.3}"),
        ]
    }

    /// Writes effects, controls and the correlations as JSON.
    ///
    /// # Errors
    /// `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let correlations = serde_json::json!({
            "predicted_measured": self.agreement(),
            "predicted_control_measured": self.control_agreement(),
            "control_predicted_control_measured": self.control_own_agreement(),
        });
        files::write_json(path, &serde_json::json!({"correlations": correlations, "check": self}))
    }
}

impl Replacement {
    /// Compares what a graph predicts for groups of its features with what the model does, and with random
    /// features in their place. An interrupt leaves out groups not begun.
    ///
    /// ```no_run
    /// # use cltlab::{graph::AttributeConfig, intervene::SupernodeConfig, replacement::Replacement};
    /// # fn f(replacement: Replacement) -> cltlab::Result<()> {
    /// let graph = replacement.attribute("The capital of the state containing Dallas is", &AttributeConfig::default())?;
    /// let check = replacement.check_supernodes(&graph, &graph.supernodes(6), &SupernodeConfig::default())?;
    /// println!("{check}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `BadConfig` naming the field; `BadInput` for no group, one without a feature or with one twice, a
    /// feature that is no node of the graph, or outputs other than tokens; `Mismatch` when the graph is of
    /// another model or CLT; `NotFinite`.
    pub fn check_supernodes(&self, graph: &Graph, groups: &[Supernode], config: &SupernodeConfig) -> Result<SupernodeCheck> {
        config.validate()?;
        config.mode.check(self.model().layers(), "SupernodeConfig::mode")?;
        let local = self.local_of(graph, "check_supernodes")?;
        let places = groups.iter().map(|group| distinct(graph, group)).collect::<Result<Vec<_>>>()?;
        if places.is_empty() {
            return Err(Error::expected(ErrorKind::BadInput, "check_supernodes: groups", "none", "at least one"));
        }
        let check = Check::new(&local, graph, config)?;
        let mut random = StdRng::seed_from_u64(config.seed);
        let mut effects = Vec::with_capacity(groups.len() * config.factors.len());
        let mut task = Task::new("supernodes", (groups.len() * config.factors.len()) as u64, "changes");
        for (group, places) in groups.iter().zip(&places) {
            for factor in &config.factors {
                if stop_requested() {
                    break;
                }
                effects.push(check.effect(group, places, *factor, &mut random)?);
                task.advance(effects.len() as u64);
            }
        }
        let outputs = graph.logits().iter().map(|LogitTarget { token, text, probability }| (*token, text.clone(), *probability)).collect();
        let check = SupernodeCheck { prompt: graph.prompt().to_string(), mode: config.mode, outputs, effects };
        task.finish(check.summary());
        Ok(check)
    }
}

/// Places of a group's features in the graph.
fn distinct(graph: &Graph, group: &Supernode) -> Result<Vec<usize>> {
    let refuse = |got: &str| Err(Error::expected(ErrorKind::BadInput, format_args!("supernode '{}'", group.name), got, "at least one feature, each once"));
    let places = graph.places(&group.features).map_err(|error| error.context(format_args!("supernode '{}'", group.name)))?;
    let mut sorted = places.clone();
    sorted.sort_unstable();
    sorted.dedup();
    match (places.is_empty(), sorted.len() < places.len()) {
        (true, _) => refuse("no feature"),
        (_, true) => refuse("a feature twice"),
        _ => Ok(places),
    }
}

struct Check<'a> {
    local: &'a LocalReplacement,
    graph: &'a Graph,
    config: &'a SupernodeConfig,
    tokens: Vec<u32>,
    before: Vec<f64>,
    activations: HashMap<FeatureNode, f32>,
    /// Active features by layer, or by layer and position.
    pools: BTreeMap<(usize, usize), Vec<FeatureNode>>,
}

impl<'a> Check<'a> {
    fn new(local: &'a LocalReplacement, graph: &'a Graph, config: &'a SupernodeConfig) -> Result<Self> {
        let active = local.active();
        let activations = active.iter().copied().zip(local.activations()).collect();
        let mut check = Check {
            local, graph, config, activations,
            tokens: graph.logits().iter().map(|logit| logit.token).collect(),
            before: demeaned(&last_uncapped(local.run())?),
            pools: BTreeMap::new(),
        };
        for feature in active {
            check.pools.entry(check.pool(&feature)).or_default().push(feature);
        }
        Ok(check)
    }

    /// Which pool a feature's stand-ins are drawn from.
    fn pool(&self, feature: &FeatureNode) -> (usize, usize) {
        (feature.layer, if self.config.same_positions { feature.position } else { 0 })
    }

    fn mass(&self, features: &[FeatureNode]) -> f64 {
        features.iter().map(|feature| f64::from(self.activations.get(feature).copied().unwrap_or(0.0).abs())).sum()
    }

    fn plan<T>(&self, features: &[FeatureNode], factor: f64, work: impl FnOnce(&Plan<'_>) -> Result<T>) -> Result<T> {
        let set = |feature: &FeatureNode| Intervention::set(*feature, (factor * f64::from(self.activations.get(feature).copied().unwrap_or(0.0))) as f32);
        let interventions: Vec<Intervention> = features.iter().map(set).collect();
        work(&Plan { replacement: self.local.replacement(), interventions: &interventions, mode: self.config.mode })
    }

    fn measured(&self, plan: &Plan<'_>) -> Result<Vec<f64>> {
        let after = demeaned(&plan.logits(self.local)?);
        Ok(self.tokens.iter().map(|token| after[*token as usize] - self.before[*token as usize]).collect())
    }

    fn effect(&self, group: &Supernode, places: &[usize], factor: f64, random: &mut StdRng) -> Result<SupernodeEffect> {
        let (linear, measured) = self.plan(&group.features, factor, |plan| {
            let linear = if matches!(plan.mode, Mode::Layers { .. }) { Some(plan.predicted(self.local, &self.tokens)?) } else { None };
            Ok((linear, self.measured(plan)?))
        })?;
        let changed: Vec<(usize, f64)> = places.iter().map(|place| (*place, factor)).collect();
        let predicted = linear.map_or_else(|| self.graph.predicted(&changed, self.config.mode != Mode::Direct), Ok)?;
        let mass = self.mass(&group.features);
        let mut controls = Vec::new();
        for _ in 0..self.config.controls {
            let features = self.stand_ins(&group.features, mass, random);
            if features.is_empty() {
                break;
            }
            let (predicted, measured) =
                self.plan(&features, factor, |plan| Ok((plan.predicted(self.local, &self.tokens)?, self.measured(plan)?)))?;
            controls.push(Control { mass: self.mass(&features), features, predicted, measured });
        }
        Ok(SupernodeEffect { group: group.clone(), factor, mass, predicted, measured, controls })
    }

    /// Random active features, as many in each pool as the group has there, or all there are, none of the
    /// group's own: of several draws the one nearest in activation.
    fn stand_ins(&self, group: &[FeatureNode], mass: f64, random: &mut StdRng) -> Vec<FeatureNode> {
        let mut wanted: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        group.iter().for_each(|feature| *wanted.entry(self.pool(feature)).or_default() += 1);
        let pools: Vec<(Vec<FeatureNode>, usize)> = wanted.into_iter().map(|(pool, count)| {
            let others = self.pools.get(&pool).into_iter().flatten().filter(|feature| !group.contains(feature));
            (others.copied().collect(), count)
        }).collect();
        let off = |features: &[FeatureNode]| (self.mass(features) - mass).abs();
        let draw = |random: &mut StdRng| -> Vec<FeatureNode> {
            pools.iter().flat_map(|(pool, count)| pool.choose_multiple(random, *count).copied().collect::<Vec<_>>()).collect()
        };
        let draws: Vec<Vec<FeatureNode>> = (0..DRAWS).map(|_| draw(random)).collect();
        draws.into_iter().min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or_default()
    }
}
