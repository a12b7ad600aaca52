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
use crate::model::{Capture, Freeze, Run};
use crate::replacement::{last_logits, last_uncapped, LocalReplacement, Site};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Runs `interventions` on a prompt and compares.
pub(super) fn effect(local: &LocalReplacement, interventions: &[Intervention], config: &InterveneConfig) -> Result<Effect> {
    let plan = Plan { local, interventions, mode: config.mode };
    let changed = plan.measured(if config.every_position { Capture::logits() } else { Capture::last_logits() })?;
    let (before, after) = (local.last_logits()?, last_logits(&changed)?);
    let tokens = shown(&before, &after, config.top);
    let (logits_before, logits_after) = (demeaned(&last_uncapped(local.run())?), demeaned(&last_uncapped(&changed)?));
    let predicted = match plan.mode {
        Mode::Direct => plan.direct(&tokens)?,
        _ => plan.all_paths(&tokens)?,
    };
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

struct Plan<'a> {
    local: &'a LocalReplacement,
    interventions: &'a [Intervention],
    mode: Mode,
}

impl Plan<'_> {
    fn layers(&self) -> usize {
        self.local.replacement().model().layers()
    }

    /// Layers whose MLP output is held, and which alone are written to.
    fn held(&self) -> std::ops::Range<usize> {
        match self.mode {
            Mode::Direct => 0..self.layers(),
            Mode::Layers { start, end } => start..end,
            Mode::FrozenAttention | Mode::Open => 0..0,
        }
    }

    fn is_written(&self, layer: usize) -> bool {
        self.held().is_empty() || self.held().contains(&layer)
    }

    /// Changes of activations at `layer`, by (position, feature), given the current activations.
    fn changes(&self, layer: usize, current: impl Fn(usize, u32) -> f32) -> BTreeMap<(usize, u32), f32> {
        let mut now: BTreeMap<(usize, u32), f32> = BTreeMap::new();
        let tokens = self.local.run().tokens.len();
        for Intervention { place, change } in self.interventions.iter().filter(|intervention| intervention.place.layer == layer) {
            for position in place.positions.within(tokens).into_iter().flatten() {
                let key = (position, place.feature as u32);
                let activation = now.get(&key).copied().unwrap_or_else(|| current(position, key.1));
                now.insert(key, change.apply(activation));
            }
        }
        now.into_iter().map(|(key, value)| (key, value - current(key.0, key.1))).collect()
    }

    fn touches(&self, layer: usize) -> bool {
        self.interventions.iter().any(|intervention| intervention.place.layer == layer)
    }

    /// The activations on the model's own run, with position 0.
    fn original(&self, layer: usize) -> Result<LayerCode> {
        let clt = self.local.replacement().clt();
        clt.encode_layer(layer, clt.input(&self.local.run().layers[layer])?)
    }

    /// The model with the interventions.
    fn measured(&self, capture: Capture) -> Result<Run> {
        let (replacement, run) = (self.local.replacement(), self.local.run());
        let held = self.held();
        let scales = held.len() == self.layers();
        let freeze = Freeze { run: Some(run), patterns: self.mode != Mode::Open, scales };
        let mut writes = Writes::new(self.local);
        replacement.model().run_spliced(&run.tokens, capture, freeze, &mut |layer, site| {
            if self.touches(layer) {
                let code = if held.is_empty() { replacement.clt().encode_layer(layer, &replacement.read(site)?)? } else { self.original(layer)? };
                writes.add(layer, &self.changes(layer, |p, feature| code.value(p, feature)))?;
            }
            let kept = if held.contains(&layer) { self.local.held_output(layer, site)? } else { site.mlp_out.clone() };
            if self.is_written(layer) { writes.onto(layer, &kept).map(Some) } else { Ok(Some(kept)) }
        })
    }

    /// Predicted changes of `tokens`' demeaned logits by the direct effects alone: the graph's edges.
    fn direct(&self, tokens: &[u32]) -> Result<Vec<f64>> {
        let mut writes = Writes::new(self.local);
        for layer in (0..self.layers()).filter(|layer| self.touches(*layer)) {
            let code = self.original(layer)?;
            writes.add(layer, &self.changes(layer, |p, feature| code.value(p, feature)))?;
        }
        let frozen = self.local.frozen();
        let g = frozen.from_output(&directions(self.local.replacement().model(), tokens)?)?;
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
    fn all_paths(&self, tokens: &[u32]) -> Result<Vec<f64>> {
        let (replacement, run) = (self.local.replacement(), self.local.run());
        let held = self.held();
        let linear = |change: bool| -> Result<Vec<f64>> {
            let mut writes = Writes::new(self.local);
            let out = replacement.model().run_spliced(&run.tokens, Capture::last_logits(), Freeze::all(run), &mut |layer, site| {
                let kept = self.local.held_output(layer, site)?;
                if !change {
                    return Ok(Some(kept));
                }
                let mut moved = BTreeMap::new();
                if !held.contains(&layer) {
                    let before = replacement.clt().input(&run.layers[layer])?;
                    moved = self.responses(layer, &(replacement.read(site)? - before)?)?;
                }
                if self.touches(layer) {
                    let (code, zero) = (self.original(layer)?, moved.clone());
                    let current = |p: usize, feature: u32| code.value(p, feature) + zero.get(&(p, feature)).copied().unwrap_or(0.0);
                    let set = self.changes(layer, current);
                    for (key, change) in set {
                        *moved.entry(key).or_insert(0.0) += change;
                    }
                }
                writes.add(layer, &moved)?;
                if self.is_written(layer) { writes.onto(layer, &kept).map(Some) } else { Ok(Some(kept)) }
            })?;
            Ok(demeaned(&last_uncapped(&out)?))
        };
        let (before, after) = (linear(false)?, linear(true)?);
        Ok(tokens.iter().map(|token| after[*token as usize] - before[*token as usize]).collect())
    }

    /// How the active features of `layer` respond to a change `[T, d]` of what they read.
    fn responses(&self, layer: usize, change: &Tensor) -> Result<BTreeMap<(usize, u32), f32>> {
        let change = change.to_vec2::<f32>()?;
        let encoder = self.local.replacement().clt().encoder(layer).to_device(&Device::Cpu)?;
        let encoder = encoder.storage_and_layout();
        let (encoder, width) = (values(&encoder)?, change.first().map_or(0, Vec::len));
        let mut moved = BTreeMap::new();
        for (p, change) in change.iter().enumerate().filter(|(_, change)| change.iter().any(|c| *c != 0.0)) {
            for feature in self.local.code().layers[layer].token(p).0 {
                let row = &encoder[*feature as usize * width..(*feature as usize + 1) * width];
                moved.insert((p, *feature), row.iter().zip(change).map(|(w, c)| w * c).sum());
            }
        }
        Ok(moved)
    }
}

/// What changed features write to each MLP output, `[L][T·d]`.
pub(super) struct Writes<'a> {
    local: &'a LocalReplacement,
    pub layers: Vec<Vec<f32>>,
}

impl<'a> Writes<'a> {
    pub fn new(local: &'a LocalReplacement) -> Self {
        let (model, tokens) = (local.replacement().model(), local.run().tokens.len());
        Writes { local, layers: vec![vec![0.0; tokens * model.width()]; model.layers()] }
    }

    /// Adds what changes of features of `source` write.
    pub fn add(&mut self, source: usize, changes: &BTreeMap<(usize, u32), f32>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let features: Vec<u32> = changes.keys().map(|key| key.1).collect();
        let rows = self.local.replacement().clt().decoder_rows(source, &features)?.to_vec3::<f32>()?;
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
