//! The loss of a training step from its formula (`clt::live` states it), in f64 and without kernels.

use crate::activations::Batch;
use crate::clt::live::{LiveClt, LiveLayer, StepOptions, StepReport};
use crate::clt::{Activation, Tied};

/// What [`LiveClt::step`] should report of the forward pass on `batch`.
pub(super) fn report(live: &LiveClt, batch: &Batch, options: &StepOptions) -> StepReport {
    let config = &live.config;
    let (l, d, f, tokens) = (config.layers, config.width, config.features, batch.tokens);
    let mut report = StepReport::default();
    // Activations `[token][feature]` of each layer.
    let mut codes = pre_activations(live, batch);
    codes.iter_mut().zip(&live.layers).for_each(|(h, layer)| keep(&config.activation, layer, h, f));
    match config.activation {
        Activation::GlobalTopK { k } => (0..tokens).for_each(|p| keep_largest(codes.iter_mut().map(|code| &mut code[p * f..(p + 1) * f]).collect(), k * l)),
        Activation::GlobalBatchTopK { k } => keep_largest(codes.iter_mut().map(Vec::as_mut_slice).collect(), k * l * tokens),
        _ => {}
    }
    for (target, y) in batch.targets.iter().enumerate() {
        let mut sums = vec![0f64; d];
        let (mut error, mut squares) = (0f64, 0f64);
        for p in 0..tokens {
            let mut sum: Vec<f64> = live.layers[target].decoder_bias.w.iter().map(|&b| f64::from(b)).collect();
            for source in config.first_source(target)..=target {
                let (owner, column) = match config.tied {
                    Tied::No => (source, (target - source) * d),
                    Tied::PerSource => (source, 0),
                    Tied::PerTarget => (target, 0),
                };
                let decoder = &live.layers[owner].decoder;
                for (j, &a) in codes[source][p * f..(p + 1) * f].iter().enumerate().filter(|(_, &a)| a != 0.0) {
                    let row = &decoder.w[j * decoder.row + column..][..d];
                    sum.iter_mut().zip(row).for_each(|(sum, &w)| *sum += a * f64::from(w));
                }
            }
            if let Some(skip) = &live.layers[target].skip {
                for (i, &x) in batch.inputs[target][p * d..(p + 1) * d].iter().enumerate() {
                    sum.iter_mut().zip(&skip.w[i * d..(i + 1) * d]).for_each(|(sum, &w)| *sum += f64::from(x) * f64::from(w));
                }
            }
            for (i, (sum, &y)) in sum.iter().zip(&y[p * d..(p + 1) * d]).enumerate() {
                error += (sum - f64::from(y)).powi(2);
                squares += f64::from(y).powi(2);
                sums[i] += f64::from(y);
            }
        }
        let variance = squares - sums.iter().map(|sum| sum * sum).sum::<f64>() / tokens as f64;
        report.layers.push((error / tokens as f64, variance / tokens as f64));
    }
    // Squared norms of rows over all targets that a source writes to.
    let square = |decoder: &[f32], row: usize| decoder.chunks_exact(row).map(|row| row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>()).collect::<Vec<_>>();
    for (index, (code, layer)) in codes.iter().zip(&live.layers).enumerate() {
        report.l0.push(code.iter().filter(|&&a| a > 0.0).count() as f64 / tokens as f64);
        let mut squares = square(&layer.decoder.w, layer.decoder.row);
        match config.tied {
            Tied::No => {}
            Tied::PerSource => squares.iter_mut().for_each(|square| *square *= config.slots(index) as f64),
            Tied::PerTarget => live.layers[index + 1..].iter().for_each(|later| squares.iter_mut().zip(square(&later.decoder.w, d)).for_each(|(sum, square)| *sum += square)),
        }
        let norms: Vec<f64> = squares.into_iter().map(f64::sqrt).collect();
        let tanh: f64 = code.chunks_exact(f).flat_map(|row| row.iter().zip(&norms)).map(|(a, norm)| (options.tanh_scale * norm * a).tanh()).sum();
        report.sparsity += options.sparsity * tanh / tokens as f64;
    }
    report
}

/// Pre-activations `[token][feature]` of each layer.
pub(super) fn pre_activations(live: &LiveClt, batch: &Batch) -> Vec<Vec<f64>> {
    let d = live.config.width;
    let product = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
    let rows = |layer: &LiveLayer, x: &[f32]| layer.encoder_bias.w.iter().zip(layer.encoder.w.chunks_exact(d)).map(|(&bias, w)| f64::from(bias) + product(x, w)).collect::<Vec<_>>();
    live.layers.iter().zip(&batch.inputs).map(|(layer, inputs)| inputs.chunks_exact(d).flat_map(|x| rows(layer, x)).collect()).collect()
}

/// The threshold of a feature: 0 where the layer has none.
pub(super) fn theta(layer: &LiveLayer, feature: usize) -> f64 {
    layer.log_threshold.as_ref().map_or(0.0, |log| f64::from(log.w[feature].exp()))
}

/// Sets what is not kept to 0.
fn keep(activation: &Activation, layer: &LiveLayer, h: &mut [f64], f: usize) {
    match *activation {
        Activation::TopK { k } => h.chunks_exact_mut(f).for_each(|row| keep_largest(vec![row], k)),
        Activation::BatchTopK { k } => {
            let tokens = h.len() / f;
            keep_largest(vec![h], k * tokens);
        }
        // Ranked once all layers are there.
        Activation::GlobalTopK { .. } | Activation::GlobalBatchTopK { .. } => {}
        Activation::Relu | Activation::JumpRelu { .. } => {
            h.iter_mut().enumerate().filter(|(at, h)| **h <= theta(layer, at % f)).for_each(|(_, h)| *h = 0.0);
        }
    }
}

/// Sets all to 0 but the `n` largest, which are above 0; of equal ones the first stay.
fn keep_largest(parts: Vec<&mut [f64]>, n: usize) {
    let mut sorted: Vec<f64> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let least = sorted.get(n - 1).copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
    let mut ties = n - sorted.iter().take(n).filter(|&&h| h > least).count();
    for h in parts.into_iter().flatten() {
        let tie = *h == least && ties > 0;
        ties -= usize::from(tie);
        if *h <= least && !tie {
            *h = 0.0;
        }
    }
}
