//! The loss of a training step from its formula (`clt::live` states it), in f64 and without kernels.

use crate::activations::Batch;
use crate::clt::live::{LiveClt, StepOptions, StepReport};
use crate::clt::{Activation, Tied};

/// What [`LiveClt::step`] should report of the forward pass on `batch`.
pub(super) fn report(live: &LiveClt, batch: &Batch, options: &StepOptions) -> StepReport {
    let config = &live.config;
    let (l, d, f, tokens) = (config.layers, config.width, config.features, batch.tokens);
    let mut report = StepReport::default();
    // Activations `[token][feature]` of each layer.
    let mut codes: Vec<Vec<f64>> = (0..l)
        .map(|index| {
            let layer = &live.layers[index];
            let mut h = vec![0f64; tokens * f];
            for (p, row) in h.chunks_exact_mut(f).enumerate() {
                for (j, h) in row.iter_mut().enumerate() {
                    let x = &batch.inputs[index][p * d..(p + 1) * d];
                    *h = f64::from(layer.encoder_bias.w[j]) + x.iter().zip(&layer.encoder.w[j * d..(j + 1) * d]).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                }
            }
            keep(&config.activation, layer.log_threshold.as_ref().map(|log| log.w.as_slice()), &mut h, f);
            h
        })
        .collect();
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

/// Sets what is not kept to 0.
fn keep(activation: &Activation, logs: Option<&[f32]>, h: &mut [f64], f: usize) {
    match *activation {
        Activation::TopK { k } => h.chunks_exact_mut(f).for_each(|row| keep_largest(vec![row], k)),
        Activation::BatchTopK { k } => {
            let tokens = h.len() / f;
            keep_largest(vec![h], k * tokens);
        }
        // Ranked once all layers are there.
        Activation::GlobalTopK { .. } | Activation::GlobalBatchTopK { .. } => {}
        Activation::Relu | Activation::JumpRelu { .. } => {
            let theta = |j: usize| logs.map_or(0.0, |logs| f64::from(logs[j].exp()));
            h.iter_mut().enumerate().filter(|(at, h)| **h <= theta(at % f)).for_each(|(_, h)| *h = 0.0);
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
