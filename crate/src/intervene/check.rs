//! The proof that edges are what they say: change one source with everything else held, and every
//! target moves by its edge.
//!
//! Doubling an active feature adds `a · W_dec` to the MLP outputs it writes to, doubling an error adds
//! the error; a token is exchanged for another. Then each feature's pre-activation and each demeaned
//! logit must move by exactly its effect. This is circuit-tracer's own test (`acceptance.md` §5.1);
//! forward passes only, so it shares nothing with the backward that made the edges. Cost: a forward
//! pass a source.

use super::effect::demeaned;
use super::pass::Writes;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::targets::directions;
use crate::graph::{Graph, NodeKind};
use crate::files;
use crate::model::{Capture, Freeze};
use crate::progress::{stop_requested, Task};
use crate::replacement::{last_uncapped, FeatureNode, LocalReplacement, Replacement, Site};
use candle_core::{Device, Tensor};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// How far measured effects lie from the edges.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deviation {
    /// Effects compared.
    pub effects: usize,
    /// Largest effect, absolute.
    pub largest: f64,
    /// Largest difference, absolute.
    pub max_abs: f64,
}

/// The larger of two; NaN when one of them is.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

impl Deviation {
    /// Takes in one effect as the graph has it and as it was measured.
    #[doc(hidden)]
    pub fn see(&mut self, effect: f64, measured: f64) {
        self.effects += 1;
        self.largest = worse(self.largest, effect.abs());
        self.max_abs = worse(self.max_abs, (effect - measured).abs());
    }

    /// Largest difference relative to the largest effect; NaN when one of the effects was NaN or infinite.
    #[doc(hidden)]
    pub fn relative(&self) -> f64 {
        let finite = self.largest.is_finite() && self.max_abs.is_finite();
        match self.largest > 0.0 {
            _ if !finite => f64::NAN,
            true => self.max_abs / self.largest,
            false => self.max_abs,
        }
    }
}

/// The outcome of [`Replacement::verify_edges`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EdgeCheck {
    /// Sources that were changed.
    pub sources: usize,
    /// Effects on pre-activations of features.
    pub features: Deviation,
    /// Effects on demeaned logits.
    pub logits: Deviation,
}

impl EdgeCheck {
    /// True when no effect is further off than `tolerance`, relative to the largest of its kind; false when
    /// one is NaN or infinite.
    pub fn holds(&self, tolerance: f64) -> bool {
        self.sources > 0 && self.features.relative() <= tolerance && self.logits.relative() <= tolerance
    }

    /// Writes the figures as JSON; `relative_error` is the larger of the two kinds'.
    ///
    /// # Errors
    /// `NotFinite` when a difference is NaN, which JSON cannot hold; `DiskFull` or `Io`, with the path.
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let worst = worse(self.features.relative(), self.logits.relative());
        if !worst.is_finite() {
            return Err(Error::expected(ErrorKind::NotFinite, "EdgeCheck: relative error", worst, "a number: an effect is NaN or infinite"));
        }
        let kind = |deviation: &Deviation| {
            serde_json::json!({"effects": deviation.effects, "largest": deviation.largest, "max_abs_error": deviation.max_abs, "relative_error": deviation.relative()})
        };
        let (features, logits) = (kind(&self.features), kind(&self.logits));
        files::write_json(path, &serde_json::json!({"sources": self.sources, "features": features, "logits": logits, "relative_error": worst}))
    }
}

impl std::fmt::Display for EdgeCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} sources: {} effects on features off by at most {:.1e} of the largest, {} on logits by {:.1e}",
            self.sources, self.features.effects, self.features.relative(), self.logits.effects, self.logits.relative()
        )
    }
}

impl Replacement {
    /// Changes up to `n` random features, and a quarter as many errors and tokens, each alone with
    /// everything else held, and compares what moves with the graph's edges.
    ///
    /// # Errors
    /// `BadInput` for a pruned graph, n = 0 or outputs other than tokens; `Mismatch` when the graph is of another model or CLT.
    pub fn verify_edges(&self, graph: &Graph, n: usize, seed: u64) -> Result<EdgeCheck> {
        if graph.pruned().is_some() || n == 0 {
            return Err(Error::expected(ErrorKind::BadInput, "verify_edges", "a pruned graph, or n = 0", "a whole graph and n of at least 1"));
        }
        let local = self.local_of(graph, "verify_edges")?;
        let check = Check { local: &local, graph, targets: targets(self, graph)?, base: frozen(&local, graph.tokens(), None)? };
        check.all(n, &mut StdRng::seed_from_u64(seed))
    }

    /// The local replacement model that a graph of tokens' logits was made from.
    pub(super) fn local_of(&self, graph: &Graph, whom: &str) -> Result<LocalReplacement> {
        if let Some(other) = graph.logits().iter().find(|logit| logit.token as usize >= self.model().vocab()) {
            return Err(Error::expected(ErrorKind::BadInput, format_args!("{whom}: output"), &other.text, "tokens' logits only"));
        }
        let local = self.local_at(graph.tokens(), graph.zero_positions())?;
        if local.active() != graph.active_features() {
            let (got, expected) = (graph.active_features().len(), local.active().len());
            return Err(Error::expected(ErrorKind::Mismatch, format_args!("{whom}: active features"), got, expected)
                .help("give the graph to the model and CLT that made it"));
        }
        Ok(local)
    }
}

/// A target feature: its number in the graph, its place and its encoder row.
type Target = (usize, FeatureNode, Vec<f32>);

fn targets(replacement: &Replacement, graph: &Graph) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for layer in 0..graph.layers() {
        let places: Vec<(usize, FeatureNode)> =
            graph.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, node.feature()?))).filter(|(_, place)| place.layer == layer).collect();
        if !places.is_empty() {
            let features: Vec<u32> = places.iter().map(|(_, place)| place.feature as u32).collect();
            let rows = replacement.clt().encoder_rows(layer, &features)?.to_vec2::<f32>()?;
            targets.extend(places.into_iter().zip(rows).map(|((node, place), row)| (node, place, row)));
        }
    }
    Ok(targets)
}

/// What encoders read at each layer, `[L][T·d]`, and the demeaned logits, of a frozen forward pass.
struct Reads {
    inputs: Vec<Vec<f32>>,
    logits: Vec<f64>,
}

fn frozen(local: &LocalReplacement, tokens: &[u32], writes: Option<&Writes<'_>>) -> Result<Reads> {
    let (replacement, run) = (local.replacement(), local.run());
    let mut inputs = Vec::new();
    let out = replacement.model().run_spliced(tokens, &Capture::last_logits(), Freeze::all(run), &mut |layer, site| {
        inputs.push(replacement.read(site)?.flatten_all()?.to_vec1::<f32>()?);
        let kept = local.held_output(layer, site)?;
        Ok(Some(match writes {
            Some(writes) => writes.onto(layer, &kept)?,
            None => kept,
        }))
    })?;
    Ok(Reads { inputs, logits: demeaned(&last_uncapped(&out)?) })
}

struct Check<'a> {
    local: &'a LocalReplacement,
    graph: &'a Graph,
    targets: Vec<Target>,
    base: Reads,
}

impl Check<'_> {
    fn all(&self, n: usize, random: &mut StdRng) -> Result<EdgeCheck> {
        let mut pick = |wanted: fn(&NodeKind) -> bool, n: usize| -> Vec<usize> {
            let all: Vec<usize> = (0..self.graph.nodes.len()).filter(|&i| wanted(&self.graph.nodes[i].kind)).collect();
            all.choose_multiple(random, n).copied().collect()
        };
        let mut sources = pick(|kind| matches!(kind, NodeKind::Feature { .. }), n);
        sources.extend(pick(|kind| matches!(kind, NodeKind::Error { .. }), n.div_ceil(4)));
        let tokens = pick(|kind| matches!(kind, NodeKind::Token { .. }), n.div_ceil(4));
        let mut outcome = EdgeCheck::default();
        let mut task = Task::new("verify edges", (sources.len() + tokens.len()) as u64, "sources");
        for source in sources {
            if stop_requested() {
                return Ok(outcome);
            }
            let moved = frozen(self.local, self.graph.tokens(), Some(&self.doubled(source)?))?;
            let edges = self.graph.edges();
            self.compare(&moved, &mut outcome, |target| Some(f64::from(edges.weight(source, target))));
            task.advance(outcome.sources as u64);
        }
        self.tokens(&tokens, random, &mut outcome)?;
        task.finish(outcome.to_string());
        Ok(outcome)
    }

    /// What doubling a feature or an error writes.
    fn doubled(&self, source: usize) -> Result<Writes<'_>> {
        let mut writes = Writes::new(self.local.replacement(), self.graph.tokens().len());
        let node = &self.graph.nodes[source];
        match node.kind {
            NodeKind::Feature { layer, feature, activation } => {
                writes.add(layer, &BTreeMap::from([((node.position, feature as u32), activation)]))?;
            }
            NodeKind::Error { layer } => {
                let error = self.local.errors(layer)?.get(node.position)?.to_vec1::<f32>()?;
                let start = node.position * error.len();
                writes.layers[layer][start..start + error.len()].copy_from_slice(&error);
            }
            NodeKind::Token { .. } | NodeKind::Position | NodeKind::Logit { .. } => {}
        }
        Ok(writes)
    }

    /// Compares a pass with the base; `effect` of a target is `None` where it is not known.
    fn compare(&self, moved: &Reads, outcome: &mut EdgeCheck, effect: impl Fn(usize) -> Option<f64>) {
        outcome.sources += 1;
        for (node, place, row) in &self.targets {
            if let Some(effect) = effect(*node) {
                let range = place.position * row.len()..(place.position + 1) * row.len();
                let (after, before) = (&moved.inputs[place.layer][range.clone()], &self.base.inputs[place.layer][range]);
                outcome.features.see(effect, row.iter().zip(after.iter().zip(before)).map(|(w, (a, b))| f64::from(*w) * f64::from(a - b)).sum());
            }
        }
        let first = self.graph.nodes.len() - self.graph.logits().len();
        for (k, logit) in self.graph.logits().iter().enumerate() {
            if let Some(effect) = effect(first + k) {
                let token = logit.token as usize;
                outcome.logits.see(effect, moved.logits[token] - self.base.logits[token]);
            }
        }
    }

    /// A token's edge is `g · w` with g the direction carried down to the embedding. For the outputs
    /// and some features g is carried again: `g · w` must be the edge, and exchanging the token for
    /// another, `w'`, must move the target by `g · (w' − w)`.
    fn tokens(&self, sources: &[usize], random: &mut StdRng, outcome: &mut EdgeCheck) -> Result<()> {
        const FEATURES: usize = 32;
        let (model, clt) = (self.local.replacement().model(), self.local.replacement().clt());
        let mut carried: BTreeMap<usize, Vec<Vec<f32>>> = BTreeMap::new();
        let frozen_model = self.local.frozen();
        let mut carry = |nodes: &[usize], below: usize, g: Tensor| {
            frozen_model.carry(below, g, &mut |site, g| {
                if site == Site::Embedding {
                    carried.extend(nodes.iter().copied().zip(g.to_device(&Device::Cpu)?.to_vec3::<f32>()?));
                }
                Ok(())
            })
        };
        for (node, place, row) in self.targets.choose_multiple(random, FEATURES) {
            let row = Tensor::from_slice(row, (1, row.len()), model.device())?;
            carry(&[*node], place.layer, frozen_model.from_input(place.layer, clt.config().input, &[place.position], &row)?)?;
        }
        let outputs: Vec<u32> = self.graph.logits().iter().map(|logit| logit.token).collect();
        let first = self.graph.nodes.len() - outputs.len();
        carry(&(first..first + outputs.len()).collect::<Vec<_>>(), model.layers(), frozen_model.from_output(&directions(model, &outputs)?)?)?;
        for &source in sources {
            let position = self.graph.nodes[source].position;
            let mut tokens = self.graph.tokens().to_vec();
            tokens[position] = random.random_range(0..model.vocab() as u32);
            let (old, new) = (self.local.embeddings().get(position)?.to_vec1::<f32>()?, model.embedding(&tokens)?.get(position)?.to_vec1::<f32>()?);
            let product = |target: usize, by: &dyn Fn(usize) -> f32| -> Option<f64> {
                let g = carried.get(&target)?.get(position)?;
                Some(g.iter().enumerate().map(|(k, g)| f64::from(*g) * f64::from(by(k))).sum())
            };
            for &target in carried.keys() {
                let kind = if target < first { &mut outcome.features } else { &mut outcome.logits };
                kind.see(f64::from(self.graph.edges().weight(source, target)), product(target, &|k| old[k]).unwrap_or(0.0));
            }
            let moved = frozen(self.local, &tokens, None)?;
            self.compare(&moved, outcome, |target| product(target, &|k| new[k] - old[k]));
        }
        Ok(())
    }
}
