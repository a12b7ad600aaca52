//! The forward passes of an intervention: the measured one, and the linear one that predicts.
//!
//! Both go through [`Model::run_spliced`](crate::Model::run_spliced) and add `writes [L, T, d]`, what
//! changed features write, to each MLP's output. In the linear pass patterns and scales are held and
//! every active feature responds by its pre-activation's change, as the local replacement model says:
//! that is the sum over all paths of the graph.

use super::effect::{demeaned, shown, Effect, OutputEffect};
use super::{InterveneConfig, Intervention, Mode};
use crate::clt::{values, LayerCode};
use crate::error::Result;
use crate::graph::targets::{directions, softmax};
use crate::model::{Capture, Freeze, MlpSite, Run};
use crate::replacement::{last_logits, last_uncapped, LocalReplacement, Replacement, Site};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;

/// Runs `interventions` on a prompt and compares.
pub(super) fn effect(local: &LocalReplacement, interventions: &[Intervention], config: &InterveneConfig) -> Result<Effect> {
    let plan = Plan { replacement: local.replacement(), interventions, mode: config.mode };
    let changed = plan.measured(local.run(), if config.every_position { Capture::logits() } else { Capture::last_logits() })?;
    let (before, after) = (local.last_logits()?, last_logits(&changed)?);
    let tokens = shown(&before, &after, config.top);
    let (logits_before, logits_after) = (demeaned(&last_uncapped(local.run())?), demeaned(&last_uncapped(&changed)?));
    let predicted = plan.predicted(local, &tokens)?;
    let model = local.replacement().model();
    let (p_before, p_after) = (softmax(&before), softmax(&after));
    let outputs = tokens.iter().zip(predicted).map(|(token, predicted)| {
        let t = *token as usize;
        let measured = logits_after[t] - logits_before[t];
        OutputEffect { token: *token, text: model.token_text(*token), before: p_before[t], after: p_after[t], predicted, measured }
    });
    Ok(Effect {
        token_text: local.run().token_text.clone(),
        interventions: interventions.to_vec(),
        mode: config.mode,
        outputs: outputs.collect(),
        before,
        after,
        everywhere: changed.logits.filter(|_| config.every_position),
    })
}

/// Predicted and measured changes of some outputs.
pub(crate) struct Comparison {
    /// Change of each token's demeaned logit that the linear model predicts.
    pub predicted: Vec<f64>,
    /// The change that was measured.
    pub measured: Vec<f64>,
    /// The likeliest next token after the interventions.
    pub likeliest: u32,
}

impl Comparison {
    pub fn of(local: &LocalReplacement, interventions: &[Intervention], mode: Mode, tokens: &[u32]) -> Result<Self> {
        let (replacement, length) = (local.replacement(), local.run().tokens.len());
        replacement.check(interventions, length, length)?;
        let plan = Plan { replacement, interventions, mode };
        let (before, after) = (demeaned(&last_uncapped(local.run())?), plan.logits(local)?);
        let likeliest = crate::graph::targets::top_tokens(&softmax(&after), 1)[0];
        let after = demeaned(&after);
        let measured = tokens.iter().map(|token| after[*token as usize] - before[*token as usize]).collect();
        Ok(Comparison { predicted: plan.predicted(local, tokens)?, measured, likeliest })
    }
}

/// Interventions on passes of a model.
pub(super) struct Plan<'a> {
    pub replacement: &'a Replacement,
    pub interventions: &'a [Intervention],
    pub mode: Mode,
}

impl<'a> Plan<'a> {
    fn layers(&self) -> usize {
        self.replacement.model().layers()
    }

    /// Layers whose MLP output is held, and which alone are written to.
    fn held(&self) -> Range<usize> {
        match self.mode {
            Mode::Direct => 0..self.layers(),
            Mode::Layers { start, end } => start..end,
            Mode::FrozenAttention | Mode::Open => 0..0,
        }
    }

    fn is_written(&self, layer: usize) -> bool {
        self.held().is_empty() || self.held().contains(&layer)
    }

    /// What is held of the model's own run.
    pub fn freeze<'r>(&self, run: &'r Run) -> Freeze<'r> {
        Freeze { run: Some(run), patterns: self.mode != Mode::Open, scales: self.held().len() == self.layers() }
    }

    /// Changes of activations at `layer` by (row, feature), rows standing at positions `span` of the
    /// text, given the current activations by row.
    fn changes(&self, layer: usize, span: &Range<usize>, current: impl Fn(usize, u32) -> f32) -> BTreeMap<(usize, u32), f32> {
        let mut now: BTreeMap<(usize, u32), f32> = BTreeMap::new();
        for Intervention { place, change } in self.interventions.iter().filter(|intervention| intervention.place.layer == layer) {
            for position in place.positions.between(span) {
                let key = (position - span.start, place.feature as u32);
                let activation = now.get(&key).copied().unwrap_or_else(|| current(key.0, key.1));
                now.insert(key, change.apply(activation));
            }
        }
        now.into_iter().map(|(key, value)| (key, value - current(key.0, key.1))).collect()
    }

    fn touches(&self, layer: usize) -> bool {
        self.interventions.iter().any(|intervention| intervention.place.layer == layer)
    }

    /// The activations on the model's own run, with position 0.
    fn original(&self, layer: usize, run: &Run) -> Result<LayerCode> {
        let clt = self.replacement.clt();
        clt.encode_layer(layer, clt.input(&run.layers[layer])?)
    }

    /// The model with the interventions.
    fn measured(&self, run: &Run, capture: Capture) -> Result<Run> {
        let span = 0..run.tokens.len();
        let mut writes = Writes::new(self.replacement, span.len());
        let mut splice = |layer: usize, site: &MlpSite<'_>| self.written(layer, site, Some(run), &span, &mut writes).map(Some);
        self.replacement.model().run_spliced(&run.tokens, &capture, self.freeze(run), &mut splice)
    }

    /// The last position's logits with the interventions, `[V]`, before any cap.
    pub fn logits(&self, local: &LocalReplacement) -> Result<Vec<f32>> {
        last_uncapped(&self.measured(local.run(), Capture::last_logits())?)
    }

    /// Changes of `tokens`' demeaned logits that the linear model predicts.
    pub fn predicted(&self, local: &LocalReplacement, tokens: &[u32]) -> Result<Vec<f64>> {
        match self.mode {
            Mode::Direct => self.direct(local, tokens),
            _ => self.all_paths(local, tokens),
        }
    }

    /// What the MLP of `layer` writes at positions `span` under the interventions; `run` is the model's own,
    /// whose MLP outputs may be held, and `writes` are those of the layers below in this pass.
    pub fn written(&self, layer: usize, site: &MlpSite<'_>, run: Option<&Run>, span: &Range<usize>, writes: &mut Writes<'a>) -> Result<Tensor> {
        let held = self.held();
        if self.touches(layer) {
            let code = match run.filter(|_| !held.is_empty()) {
                Some(run) => self.original(layer, run)?,
                None => self.replacement.clt().encode_layer(layer, &self.replacement.read(site)?)?,
            };
            writes.add(layer, &self.changes(layer, span, |row, feature| code.value(row, feature)))?;
        }
        let kept = match run.filter(|_| held.contains(&layer)) {
            Some(run) => self.replacement.held_output(run, layer, site)?,
            None => site.mlp_out.clone(),
        };
        if self.is_written(layer) { writes.onto(layer, &kept) } else { Ok(kept) }
    }

    /// Predicted changes of `tokens`' demeaned logits by the direct effects alone: the graph's edges.
    fn direct(&self, local: &LocalReplacement, tokens: &[u32]) -> Result<Vec<f64>> {
        let span = 0..local.run().tokens.len();
        let mut writes = Writes::new(self.replacement, span.len());
        for layer in (0..self.layers()).filter(|layer| self.touches(*layer)) {
            let code = self.original(layer, local.run())?;
            writes.add(layer, &self.changes(layer, &span, |p, feature| code.value(p, feature)))?;
        }
        let frozen = local.frozen();
        let g = frozen.from_output(&directions(self.replacement.model(), tokens)?)?;
        let mut sums = vec![0.0; tokens.len()];
        frozen.carry(self.layers(), g, &mut |site, g| {
            if let Site::MlpOut(layer) = site {
                for (sum, g) in sums.iter_mut().zip(g.flatten_from(1)?.to_vec2::<f32>()?) {
                    *sum += g.iter().zip(&writes.layers[layer]).map(|(g, write)| f64::from(g * write)).sum::<f64>();
                }
            }
            Ok(())
        })?;
        Ok(sums)
    }

    /// Predicted changes along all paths of the local replacement model.
    fn all_paths(&self, local: &LocalReplacement, tokens: &[u32]) -> Result<Vec<f64>> {
        let (replacement, run) = (self.replacement, local.run());
        let (held, span) = (self.held(), 0..run.tokens.len());
        let linear = |change: bool| -> Result<Vec<f64>> {
            // What is set is written to held layers only, if there are any; what answers to it goes everywhere.
            let (mut writes, mut answers) = (Writes::new(replacement, span.len()), Writes::new(replacement, span.len()));
            let out = replacement.model().run_spliced(&run.tokens, &Capture::last_logits(), Freeze::all(run), &mut |layer, site| {
                let kept = local.held_output(layer, site)?;
                if !change {
                    return Ok(Some(kept));
                }
                let mut moved = BTreeMap::new();
                if !held.contains(&layer) {
                    let before = replacement.clt().input(&run.layers[layer])?;
                    moved = responses(local, layer, &(replacement.read(site)? - before)?)?;
                }
                if self.touches(layer) {
                    let code = self.original(layer, run)?;
                    let current = |p: usize, feature: u32| code.value(p, feature) + moved.get(&(p, feature)).copied().unwrap_or(0.0);
                    writes.add(layer, &self.changes(layer, &span, current))?;
                }
                answers.add(layer, &moved)?;
                let kept = if self.is_written(layer) { writes.onto(layer, &kept)? } else { kept };
                answers.onto(layer, &kept).map(Some)
            })?;
            Ok(demeaned(&last_uncapped(&out)?))
        };
        let (before, after) = (linear(false)?, linear(true)?);
        Ok(tokens.iter().map(|token| after[*token as usize] - before[*token as usize]).collect())
    }
}

/// How the active features of `layer` respond to a change `[T, d]` of what they read.
fn responses(local: &LocalReplacement, layer: usize, change: &Tensor) -> Result<BTreeMap<(usize, u32), f32>> {
    let change = change.to_vec2::<f32>()?;
    let encoder = local.replacement().clt().encoder(layer)?.to_device(&Device::Cpu)?;
    let encoder = encoder.storage_and_layout();
    let (encoder, width) = (values(&encoder)?, change.first().map_or(0, Vec::len));
    let mut moved = BTreeMap::new();
    for (p, change) in change.iter().enumerate().filter(|(_, change)| change.iter().any(|c| *c != 0.0)) {
        for feature in local.code().layers[layer].token(p).0 {
            let row = &encoder[*feature as usize * width..(*feature as usize + 1) * width];
            moved.insert((p, *feature), row.iter().zip(change).map(|(w, c)| w * c).sum());
        }
    }
    Ok(moved)
}

/// What changed features write to each MLP output, `[L][T·d]`.
pub(super) struct Writes<'a> {
    replacement: &'a Replacement,
    pub layers: Vec<Vec<f32>>,
}

impl<'a> Writes<'a> {
    pub fn new(replacement: &'a Replacement, tokens: usize) -> Self {
        let model = replacement.model();
        Writes { replacement, layers: vec![vec![0.0; tokens * model.width()]; model.layers()] }
    }

    /// Adds what changes of features of `source` write.
    pub fn add(&mut self, source: usize, changes: &BTreeMap<(usize, u32), f32>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let features: Vec<u32> = changes.keys().map(|key| key.1).collect();
        let rows = self.replacement.clt().decoder_rows(source, &features)?.to_vec3::<f32>()?;
        for (((position, _), change), slots) in changes.iter().zip(rows) {
            for (slot, row) in slots.iter().enumerate() {
                let start = position * row.len();
                self.layers[source + slot][start..start + row.len()].iter_mut().zip(row).for_each(|(write, weight)| *write += change * weight);
            }
        }
        Ok(())
    }

    /// An MLP output with what is written to it added.
    pub fn onto(&self, layer: usize, mlp_out: &Tensor) -> Result<Tensor> {
        Ok((mlp_out + Tensor::from_slice(&self.layers[layer], mlp_out.dims(), mlp_out.device())?)?)
    }
}
