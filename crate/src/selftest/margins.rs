//! Keeps a check's data away from where a training step jumps.
//!
//! In: weights and a batch. Out: the batch with signs of some inputs turned, so that no pre-activation lies near a value at
//! which what is kept changes: thresholds, the edges of their windows, 0, the cut of a ranking. A device that sums in another
//! order would keep other entries there, and both would be right.

use super::naive;
use crate::activations::Batch;
use crate::clt::live::{LiveClt, StepOptions};
use crate::clt::Activation;
use crate::error::{Error, ErrorKind, Result};

/// The least distance allowed, relative to the largest pre-activation of the layers concerned: some 100 times what f32 sums round.
const MARGIN: f64 = 1e-5;

/// How many inputs of a token are turned in search of a distance.
const TRIES: usize = 64;

/// How near the pre-activations of one token, or of one ranking, come to a jump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Distance {
    /// Relative to the largest pre-activation.
    pub value: f64,
    /// Whose pre-activation comes so near.
    layer: usize,
    token: usize,
}

/// Turns signs of inputs, which leaves them as even and as rounded as they were, until `live` on `batch` is [`MARGIN`] away from
/// all jumps. `ties`: pre-activations that are equal here are exact, and may lie at a cut.
///
/// # Errors
/// `BadInput` where no sign helps.
pub(super) fn widen(live: &LiveClt, batch: &mut Batch, options: &StepOptions, ties: bool) -> Result<()> {
    let d = live.config.width;
    let mut near = Vec::new();
    for attempt in 0..TRIES {
        near = distances(live, batch, options, ties);
        near.retain(|distance| distance.value < MARGIN);
        if near.is_empty() {
            return Ok(());
        }
        // A token may be near in two ways, and is turned once.
        near.sort_by_key(|distance| (distance.layer, distance.token));
        near.dedup_by_key(|distance| (distance.layer, distance.token));
        for distance in &near {
            let input = &mut batch.inputs[distance.layer][distance.token * d + attempt % d];
            *input = -*input;
        }
    }
    Err(Error::new(ErrorKind::BadInput, format!("self-test, step {}: {TRIES} signs turned, and still {:?}", options.step, near[0])))
}

/// How near each token and layer, or each ranking, comes to a jump.
pub(super) fn distances(live: &LiveClt, batch: &Batch, options: &StepOptions, ties: bool) -> Vec<Distance> {
    let (l, f, tokens) = (live.config.layers, live.config.features, batch.tokens);
    let h = &naive::pre_activations(live, batch);
    let mut found = Vec::new();
    let mut rank = |layers: std::ops::Range<usize>, of: std::ops::Range<usize>, keep: usize| {
        let entries = layers.flat_map(|layer| of.clone().flat_map(move |p| h[layer][p * f..(p + 1) * f].iter().map(move |&value| (value, layer, p))));
        found.extend(at_cut(entries.collect(), keep, ties));
    };
    match live.config.activation {
        Activation::TopK { k } => (0..l * tokens).for_each(|at| rank(at / tokens..at / tokens + 1, at % tokens..at % tokens + 1, k)),
        Activation::BatchTopK { k } => (0..l).for_each(|layer| rank(layer..layer + 1, 0..tokens, k * tokens)),
        Activation::GlobalTopK { k } => (0..tokens).for_each(|p| rank(0..l, p..p + 1, k * l)),
        Activation::GlobalBatchTopK { k } => rank(0..l, 0..tokens, k * l * tokens),
        Activation::Relu => found.extend(thresholds(h, f, |_, _| vec![0.0])),
        Activation::JumpRelu { bandwidth, .. } => found.extend(thresholds(h, f, |layer, feature| {
            let theta = naive::theta(&live.layers[layer], feature);
            vec![theta - 0.5 * bandwidth, theta, theta + 0.5 * bandwidth]
        })),
    }
    // Dead features are ranked by themselves.
    for (layer, h) in h.iter().enumerate().filter(|_| options.aux > 0.0) {
        let dead: Vec<usize> = (0..f).filter(|&feature| live.layers[layer].idle[feature] >= options.dead_window).collect();
        if !dead.is_empty() {
            found.extend(h.chunks_exact(f).enumerate().filter_map(|(p, row)| at_cut(dead.iter().map(|&feature| (row[feature], layer, p)).collect(), options.aux_k, ties)));
        }
    }
    found
}

/// The largest magnitude.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::MIN_POSITIVE, |most, h| most.max(h.abs()))
}

/// Each token's and layer's distance from the values that `edges` has of a layer and feature.
fn thresholds(h: &[Vec<f64>], f: usize, edges: impl Fn(usize, usize) -> Vec<f64>) -> Vec<Distance> {
    let mut found = Vec::new();
    for (layer, h) in h.iter().enumerate() {
        let edges: Vec<Vec<f64>> = (0..f).map(|feature| edges(layer, feature)).collect();
        let scale = largest(h.iter().copied());
        found.extend(h.chunks_exact(f).enumerate().map(|(token, row)| {
            let least = row.iter().zip(&edges).flat_map(|(h, edges)| edges.iter().map(move |edge| (h - edge).abs())).fold(f64::INFINITY, f64::min);
            Distance { value: least / scale, layer, token }
        }));
    }
    found
}

/// How near one of these (pre-activation, layer, token) comes to where a ranking that keeps the `keep` largest above 0 would keep
/// others.
fn at_cut(mut entries: Vec<(f64, usize, usize)>, keep: usize, ties: bool) -> Option<Distance> {
    let scale = largest(entries.iter().map(|entry| entry.0));
    let distance = |apart: f64, (_, layer, token): (f64, usize, usize)| Distance { value: apart / scale, layer, token };
    entries.sort_by(|a, b| b.0.total_cmp(&a.0));
    let value = |at: usize| entries.get(at).map_or(0.0, |entry| entry.0.max(0.0));
    let (cut, next) = (value(keep - 1), value(keep));
    if cut > next {
        return Some(distance(cut - next, entries[keep - 1]));
    }
    // All above 0 stay, or equal ones lie at the cut: which of them stay is known where they are exact, but nothing else may come near.
    entries.iter().filter(|entry| !(ties && entry.0 == cut)).map(|&entry| distance((entry.0 - cut).abs(), entry)).min_by(|a, b| a.value.total_cmp(&b.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clt::CltConfig;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const TOKENS: usize = 6;

    fn trial(activation: Activation, aux_k: usize) -> (LiveClt, Batch, StepOptions) {
        let config = CltConfig { layers: 2, width: 16, features: 24, activation, ..CltConfig::default() };
        let options = StepOptions {
            step: 1,
            lr: 0.1,
            betas: (0.9, 0.999),
            eps: 1.0,
            weight_decay: 0.0,
            clip: None,
            lazy: false,
            fvu: false,
            groups: vec![24],
            sparsity: 0.0,
            tanh_scale: 1.0,
            dead: 0.0,
            dead_window: 1,
            aux: if aux_k > 0 { 0.5 } else { 0.0 },
            aux_k,
        };
        let mut live = LiveClt::new(&config, false, 1).unwrap();
        // Every second feature is dead.
        live.layers.iter_mut().for_each(|layer| layer.idle.iter_mut().step_by(2).for_each(|idle| *idle = 9));
        let mut rng = StdRng::seed_from_u64(2);
        let mut side = || (0..2).map(|_| (0..TOKENS * 16).map(|_| rng.random_range(-1.7..1.7f32)).collect()).collect();
        let mut batch = Batch { tokens: TOKENS, inputs: side(), targets: side() };
        widen(&live, &mut batch, &options, false).unwrap();
        (live, batch, options)
    }

    fn least(live: &LiveClt, batch: &Batch, options: &StepOptions) -> f64 {
        distances(live, batch, options, false).iter().map(|distance| distance.value).fold(f64::INFINITY, f64::min)
    }

    /// Puts one pre-activation at `value` by its feature's bias, and checks that this is found and moved.
    fn planted(activation: Activation, aux_k: usize, (layer, token, feature): (usize, usize, usize), value: f64) {
        let (mut live, mut batch, options) = trial(activation.clone(), aux_k);
        let h = |live: &LiveClt, batch: &Batch| naive::pre_activations(live, batch)[layer][token * 24 + feature];
        let by = value - h(&live, &batch);
        live.layers[layer].encoder_bias.w[feature] += by as f32;
        assert!(least(&live, &batch, &options) < 1e-6, "{activation:?}");
        let before = batch.inputs.clone();
        widen(&live, &mut batch, &options, false).unwrap();
        assert!(least(&live, &batch, &options) >= MARGIN, "{activation:?}");
        assert!(before.iter().flatten().zip(batch.inputs.iter().flatten()).all(|(a, b)| a.abs() == b.abs()), "{activation:?}: only signs are turned");
        if !activation.is_ranked() && aux_k == 0 {
            assert!((h(&live, &batch) - value).abs() > MARGIN, "{activation:?}");
        }
    }

    #[test]
    fn a_pre_activation_at_a_jump_is_moved() {
        let jump = Activation::JumpRelu { threshold: 0.6, bandwidth: 0.5 };
        for edge in [0.35, 0.6, 0.85] {
            planted(jump.clone(), 0, (1, 4, 7), edge);
        }
        planted(Activation::Relu, 0, (0, 2, 23), 0.0);
        // Layers and tokens that are ranked together, and what they keep.
        let rankings = [
            (Activation::TopK { k: 3 }, 1..2, 4..5, 3),
            (Activation::BatchTopK { k: 3 }, 1..2, 0..TOKENS, 3 * TOKENS),
            (Activation::GlobalTopK { k: 3 }, 0..2, 4..5, 6),
            (Activation::GlobalBatchTopK { k: 3 }, 0..2, 0..TOKENS, 6 * TOKENS),
        ];
        for (activation, layers, tokens, keep) in rankings {
            let (live, batch, _) = trial(activation.clone(), 0);
            let h = naive::pre_activations(&live, &batch);
            let mut entries: Vec<(f64, usize, usize, usize)> = layers.flat_map(|l| tokens.clone().flat_map(move |p| (0..24).map(move |f| (l, p, f)))).map(|(l, p, f)| (h[l][p * 24 + f], l, p, f)).collect();
            entries.sort_by(|a, b| b.0.total_cmp(&a.0));
            let (_, layer, token, feature) = entries[keep];
            planted(activation, 0, (layer, token, feature), entries[keep - 1].0);
        }
        // The third of the dead features is put where the second is; thresholds are far away.
        let far = Activation::JumpRelu { threshold: 50.0, bandwidth: 0.5 };
        let (live, batch, _) = trial(far.clone(), 2);
        let row = naive::pre_activations(&live, &batch)[1][4 * 24..5 * 24].to_vec();
        let mut dead: Vec<usize> = (0..24).step_by(2).collect();
        dead.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        planted(far, 2, (1, 4, dead[2]), row[dead[1]]);
    }

    #[test]
    fn where_a_ranking_jumps() {
        let at = |values: &[f64], keep: usize, ties: bool| at_cut(values.iter().map(|&h| (h, 0, 0)).collect(), keep, ties).map(|distance| distance.value);
        assert_eq!(at(&[1.0, 4.0, 3.0, -2.0], 2, false), Some(0.5));
        // Below 0 nothing is kept.
        assert_eq!(at(&[1.0, 4.0, -0.1, -2.0], 2, false), Some(0.25));
        assert_eq!(at(&[1.0, 4.0, -0.1, -2.0], 3, false), Some(0.025));
        assert_eq!(at(&[1.0, 4.0, -0.1, -2.0], 9, false), Some(0.025));
        assert_eq!(at(&[4.0, 3.0, 3.0, 1.0], 2, false), Some(0.0));
        assert_eq!(at(&[4.0, 3.0, 3.0, 1.0], 2, true), Some(0.25));
        assert_eq!(at(&[4.0, 3.0, 3.0, 2.0 + 0.5], 2, true), Some(0.125));
        assert_eq!(at(&[2.0, 2.0], 1, true), None);
    }

    #[test]
    fn where_no_sign_helps_is_an_error() {
        let (mut live, mut batch, options) = trial(Activation::JumpRelu { threshold: 0.6, bandwidth: 0.5 }, 0);
        live.layers[0].encoder.w.fill(0.0);
        live.layers[0].encoder_bias.w.fill(0.6);
        let error = widen(&live, &mut batch, &options, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
    }
}
