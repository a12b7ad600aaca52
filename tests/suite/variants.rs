//! The variants of a CLT and of its training against candle's autograd in f64: PLTs, rankings over layers, rows tied over
//! targets, skip connections, FVU, Matryoshka groups, the auxiliary loss; the gradient's norm by pairs of tokens; rows
//! that rest, and moments in eight bits, against Adam as it is.

use crate::numbers::Numbers;
use crate::support::{scratch, worse};
use candle_core::{DType, Device, Tensor, Var};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, CltConfig, Tied};
use cltlab::train::{Loss, Moments, TrainConfig, Trainer};
use std::collections::BTreeMap;

const L: usize = 3;
const D: usize = 20;
const F: usize = 70;
const K: usize = 5;

type Arrays = BTreeMap<String, Tensor>;

fn raw(tokens: usize, seed: u64) -> Vec<Vec<f32>> {
    (0..L).map(|l| Numbers::new(seed + l as u64).take(tokens * D).iter().map(|v| v * (1.0 + l as f32) + 0.3).collect()).collect()
}

/// Centred, and scaled to a mean squared norm of the width.
fn normalised(values: &[f32]) -> Tensor {
    let x = Tensor::from_slice(values, (values.len() / D, D), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let x = x.broadcast_sub(&x.mean_keepdim(0).unwrap()).unwrap();
    let square = x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    (x * ((values.len()) as f64 / square).sqrt()).unwrap()
}

/// All f32 arrays of a checkpoint, in f64.
fn arrays(trainer: &Trainer) -> Arrays {
    let place = scratch(&format!("variants-{}", std::thread::current().name().unwrap_or("").replace("::", "-")));
    trainer.save(&place).unwrap();
    let file = std::fs::read_dir(&place).unwrap().next().unwrap().unwrap().path();
    let all = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    all.into_iter().filter(|(name, t)| t.dtype() == DType::F32 || name.ends_with(".idle")).map(|(name, t)| (name, t.to_dtype(DType::F64).unwrap())).collect()
}

/// What the activation keeps of the pre-activations, found by sorting all that it ranks together, and by
/// how much the rest misses the least that is kept (which counts as a constant).
fn kept(activation: &Activation, pre: &[Tensor]) -> candle_core::Result<Vec<(Tensor, Tensor)>> {
    let rows = pre.iter().map(|h| h.to_vec2::<f64>()).collect::<candle_core::Result<Vec<_>>>()?;
    let tokens = rows[0].len();
    let cut = |layers: std::ops::Range<usize>, tokens: std::ops::Range<usize>, count: usize| {
        let mut all: Vec<f64> = layers.flat_map(|l| rows[l][tokens.clone()].iter().flatten().copied().collect::<Vec<_>>()).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        all[count - 1].max(f64::MIN_POSITIVE)
    };
    (0..L)
        .map(|l| {
            let of = |p: usize| match *activation {
                Activation::TopK { k } => cut(l..l + 1, p..p + 1, k),
                Activation::BatchTopK { k } => cut(l..l + 1, 0..tokens, k * tokens),
                Activation::GlobalTopK { k } => cut(0..L, p..p + 1, k * L),
                Activation::GlobalBatchTopK { k } => cut(0..L, 0..tokens, k * L * tokens),
                _ => 0.0,
            };
            let cuts: Vec<f64> = (0..tokens).map(of).collect();
            let keep: Vec<f64> = rows[l].iter().zip(&cuts).flat_map(|(row, &cut)| row.iter().map(move |&h| if h >= cut { 1.0 } else { 0.0 })).collect();
            let keep = Tensor::from_vec(keep, (tokens, F), &Device::Cpu)?;
            let gap = Tensor::from_vec(cuts, (tokens, 1), &Device::Cpu)?.broadcast_sub(&pre[l])?;
            Ok(((&pre[l] * &keep)?, (gap * keep.affine(-1.0, 1.0)?)?))
        })
        .collect()
}

/// The `k` largest of each row that are above 0 and whose column is 1 in `columns`; which, is held.
fn largest(h: &Tensor, columns: &Tensor, k: usize) -> candle_core::Result<Tensor> {
    let masked = h.broadcast_mul(columns)?;
    let keep: Vec<f64> = masked
        .to_vec2::<f64>()?
        .into_iter()
        .flat_map(|row| {
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let cut = sorted[k.min(F) - 1].max(f64::MIN_POSITIVE);
            row.into_iter().map(move |h| if h >= cut { 1.0 } else { 0.0 })
        })
        .collect();
    masked * Tensor::from_vec(keep, h.dims2()?, &Device::Cpu)?
}

/// The loss in candle; activations that TopK keeps are found by value and held. `idle` says which
/// features are dead.
fn loss(vars: &BTreeMap<String, Var>, idle: &[Tensor], clt: &CltConfig, train: &TrainConfig, x: &[Tensor], y: &[Tensor]) -> candle_core::Result<Tensor> {
    let tokens = x[0].dim(0)?;
    let var = |name: String, shape: &[usize]| vars[&name].reshape(shape);
    let pre = (0..L)
        .map(|l| x[l].matmul(&var(format!("{l}.encoder"), &[F, D])?.t()?)?.broadcast_add(&var(format!("{l}.encoder_bias"), &[F])?))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let (codes, gaps): (Vec<_>, Vec<_>) = kept(&clt.activation, &pre)?.into_iter().unzip();
    let dead = idle.iter().map(|idle| idle.ge(f64::from(train.dead_window))?.to_dtype(DType::F64)).collect::<candle_core::Result<Vec<_>>>()?;
    let aux_k = train.aux_k_for(D);
    let lent = pre.iter().zip(&dead).map(|(h, dead)| largest(h, dead, aux_k.max(1))).collect::<candle_core::Result<Vec<_>>>()?;
    let count = dead.iter().map(|dead| dead.sum_all()?.to_scalar::<f64>()).sum::<candle_core::Result<f64>>()?;
    let share = (count / (L * aux_k.max(1)) as f64).min(1.0);
    let ends: Vec<usize> = train.matryoshka.iter().copied().chain([F]).collect();
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for t in 0..L {
        for &end in &ends {
            let mut out = var(format!("{t}.decoder_bias"), &[D])?.broadcast_as((tokens, D))?;
            let mut on_error = Tensor::zeros((tokens, D), DType::F64, &Device::Cpu)?;
            for (s, code) in codes[..=t].iter().enumerate() {
                if clt.per_layer && s != t {
                    continue;
                }
                let slots = if clt.per_layer || clt.tied != Tied::No { 1 } else { L - s };
                let slot = if slots == 1 { 0 } else { t - s };
                let of = if clt.tied == Tied::PerTarget { t } else { s };
                let w = var(format!("{of}.decoder"), &[F, slots, D])?.narrow(1, slot, 1)?.squeeze(1)?;
                out = (out + code.narrow(1, 0, end)?.matmul(&w.narrow(0, 0, end)?)?)?;
                on_error = (on_error + lent[s].matmul(&w)?)?;
            }
            if clt.skip {
                out = (out + x[t].matmul(&var(format!("{t}.skip"), &[D, D])?)?)?;
            }
            let left = (&y[t] - &out)?.detach();
            let mut error = ((out - &y[t])?.sqr()?.sum_all()? / (tokens * ends.len()) as f64)?;
            if train.aux > 0.0 && end == F {
                error = (error + ((on_error - left)?.sqr()?.sum_all()? * (train.aux * share / tokens as f64))?)?;
            }
            if train.loss == Loss::Fvu {
                let variance = y[t].broadcast_sub(&y[t].mean_keepdim(0)?)?.sqr()?.sum_all()?.to_scalar::<f64>()? / tokens as f64;
                error = (error / variance)?;
            }
            total = (total + error)?;
        }
    }
    for (s, code) in codes.iter().enumerate() {
        let copies = if clt.tied == Tied::PerSource { (L - s) as f64 } else { 1.0 };
        let square = |l: usize| {
            let w = &vars[&format!("{l}.decoder")];
            w.reshape((F, w.elem_count() / F))?.sqr()?.sum(1)
        };
        let norms = match clt.tied {
            Tied::PerTarget => (s..L).map(square).reduce(|a, b| a? + b?).unwrap()?.sqrt()?,
            _ => (square(s)? * copies)?.sqrt()?,
        };
        let scaled = (code.broadcast_mul(&norms)? * train.tanh_scale)?;
        total = (total + (scaled.tanh()?.sum_all()? * (train.sparsity.unwrap_or(0.0) / tokens as f64))?)?;
        let missing = gaps[s].broadcast_mul(&(&norms * &dead[s])?)?;
        total = (total + (missing.sum_all()? * (train.dead / tokens as f64))?)?;
    }
    Ok(total)
}

fn shape(change: impl Fn(&mut CltConfig)) -> CltConfig {
    let mut config = CltConfig { layers: L, width: D, features: F, activation: Activation::TopK { k: K }, ..CltConfig::default() };
    change(&mut config);
    config
}

fn variants() -> Vec<(&'static str, CltConfig, TrainConfig)> {
    let plain = TrainConfig { steps: 1, lazy: false, sparsity: Some(0.6), sparsity_ramp: 0.0, tanh_scale: 1.3, dead: 0.0, clip: None, ..TrainConfig::default() };
    // One feature a token: many have rested for the one step before.
    let lone = |activation: Activation| shape(|c| c.activation = activation.clone());
    let aux = TrainConfig { aux: 0.3, dead: 0.02, dead_window: 1, ..plain.clone() };
    let nested = |loss| TrainConfig { matryoshka: vec![9, 40], loss, ..plain.clone() };
    vec![
        ("plain", shape(|_| ()), plain.clone()),
        ("over layers", shape(|c| c.activation = Activation::GlobalTopK { k: K }), plain.clone()),
        ("over layers and batch", shape(|c| c.activation = Activation::GlobalBatchTopK { k: K }), plain.clone()),
        ("plt", shape(|c| c.per_layer = true), plain.clone()),
        ("tied", shape(|c| c.tied = Tied::PerSource), plain.clone()),
        ("tied per target", shape(|c| c.tied = Tied::PerTarget), plain.clone()),
        ("tied per target, dead, lone", shape(|c| (c.tied, c.activation) = (Tied::PerTarget, Activation::TopK { k: 1 })), TrainConfig { dead: 0.02, dead_window: 1, lazy: true, ..plain.clone() }),
        ("tied per target, relu", shape(|c| (c.tied, c.activation) = (Tied::PerTarget, Activation::Relu)), plain.clone()),
        ("skip", shape(|c| c.skip = true), plain.clone()),
        ("fvu", shape(|_| ()), TrainConfig { loss: Loss::Fvu, ..plain.clone() }),
        ("matryoshka", shape(|_| ()), nested(Loss::SquaredError)),
        ("dead", lone(Activation::TopK { k: 1 }), TrainConfig { aux: 0.0, ..aux.clone() }),
        ("aux", lone(Activation::TopK { k: 1 }), aux.clone()),
        ("aux of a batch, four", lone(Activation::BatchTopK { k: 1 }), TrainConfig { aux_k: Some(4), ..aux.clone() }),
        ("aux over layers", lone(Activation::GlobalTopK { k: 1 }), TrainConfig { aux_k: Some(200), dead: 0.0, ..aux.clone() }),
        ("aux, tied, nested, fvu", shape(|c| (c.tied, c.skip, c.activation) = (Tied::PerSource, true, Activation::TopK { k: 1 })), TrainConfig { aux: 0.3, dead_window: 1, ..nested(Loss::Fvu) }),
        ("aux, plt", shape(|c| (c.per_layer, c.activation) = (true, Activation::TopK { k: 1 })), aux.clone()),
        ("all of it, tied", shape(|c| (c.tied, c.skip) = (Tied::PerSource, true)), nested(Loss::Fvu)),
        ("all of it, tied per target", shape(|c| (c.tied, c.skip) = (Tied::PerTarget, true)), nested(Loss::Fvu)),
        ("all of it, plt", shape(|c| (c.per_layer, c.skip) = (true, true)), nested(Loss::Fvu)),
    ]
}

/// Two steps, so that skips are not 0 when they are measured. Few tokens stream decoder rows, many
/// have them tile by tile.
#[test]
fn gradients_and_their_norm_equal_autograd() {
    for (name, clt, train) in variants() {
        for (tokens, clip) in [(8, None), (60, None), (8, Some(0.3)), (60, Some(0.3)), (60, Some(1e9))] {
            let (inputs, targets) = (raw(tokens, 1), raw(tokens, 50));
            let (x, y): (Vec<_>, Vec<_>) = (inputs.iter().map(|v| normalised(v)).collect(), targets.iter().map(|v| normalised(v)).collect());
            let activations = Activations::from_memory(inputs, targets, D).unwrap();
            let config = TrainConfig { batch_tokens: tokens, clip, ..train.clone() };
            let mut trainer = Trainer::new(&activations, &clt, &config).unwrap();
            trainer.run().unwrap();
            let before = arrays(&trainer);
            trainer.run().unwrap();
            let after = arrays(&trainer);
            let vars: BTreeMap<String, Var> =
                before.iter().filter_map(|(name, t)| name.strip_suffix(".w").map(|name| (name.to_string(), Var::from_tensor(t).unwrap()))).collect();
            let idle: Vec<Tensor> = (0..L).map(|l| before[&format!("{l}.idle")].clone()).collect();
            let total = loss(&vars, &idle, &clt, &config, &x, &y).unwrap();
            let gradients = total.backward().unwrap();
            let terms = |s: &cltlab::progress::TrainSample| s.aux + s.dead_term;
            if train.aux > 0.0 {
                let lone = TrainConfig { aux: 0.0, dead: 0.0, ..config.clone() };
                let expected = (&total - loss(&vars, &idle, &clt, &lone, &x, &y).unwrap()).unwrap().to_scalar::<f64>().unwrap();
                let found = terms(trainer.history().last().unwrap());
                assert!(expected > 0.0 && (found / expected - 1.0).abs() < 1e-5, "{name}, {tokens} tokens: {found} against {expected}");
            }
            let square: f64 = vars.values().map(|var| gradients.get(var).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()).sum();
            let last = trainer.history().last().unwrap().clone();
            assert!((last.grad_norm / square.sqrt() - 1.0).abs() < 1e-5, "{name}, {tokens} tokens, {clip:?}: norm {} against {}", last.grad_norm, square.sqrt());
            let clipped = clip.map_or(1.0, |clip: f64| (clip / (square.sqrt() + 1e-6)).min(1.0));
            let mut worst = 0f64;
            for (part, var) in &vars {
                let key = format!("{part}.m");
                let found = ((&after[&key] - (&before[&key] * 0.9).unwrap()).unwrap() * (10.0 / clipped)).unwrap();
                let expected = gradients.get(var).unwrap().flatten_all().unwrap();
                // Targets are centred: a bias's gradient is what is left of a sum that cancels.
                let least = if part.contains("decoder_bias") { 0.005 * square.sqrt() } else { 0.0 };
                let size = expected.abs().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap().max(least);
                let error = (found - expected).unwrap().abs().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
                worst = worse(worst, error / size);
            }
            println!("{name}, {tokens} tokens, {clip:?}: {worst:.1e}");
            assert!(worst < 1e-5, "{name}, {tokens} tokens, {clip:?}: {worst}");
        }
    }
}

/// The folded CLT reconstructs what the one in training does: an FVU of its own, measured by loops.
#[test]
fn folded_variants_reconstruct_as_in_training() {
    // What ranks a batch has thresholds afterwards, and is another function.
    for (name, clt, train) in variants().into_iter().filter(|(_, clt, _)| !matches!(clt.activation, Activation::BatchTopK { .. } | Activation::GlobalBatchTopK { .. })) {
        let (inputs, targets) = (raw(60, 1), raw(60, 50));
        let activations = Activations::from_memory(inputs.clone(), targets.clone(), D).unwrap();
        let config = TrainConfig { steps: 30, batch_tokens: 60, lr: 5e-3, decay: 0.0, warmup: 0.0, ..train };
        let mut trainer = Trainer::new(&activations, &clt, &config).unwrap();
        trainer.run().unwrap();
        let folded = trainer.clt().unwrap();
        assert_eq!(folded.config().tied, Tied::No);
        // One more step reports the FVU of the weights that were folded.
        let fvu = trainer.run_steps(1).unwrap().last().unwrap().fvu;
        let tensor = |values: &[f32]| Tensor::from_slice(values, (60, D), &Device::Cpu).unwrap();
        let x: Vec<Tensor> = inputs.iter().map(|v| tensor(v)).collect();
        let code = folded.encode_inputs(&x).unwrap();
        let out = folded.decode(&code, &x).unwrap();
        let mut mean = 0.0;
        for (out, y) in out.iter().zip(&targets) {
            let y = tensor(y).to_dtype(DType::F64).unwrap();
            let error = (out.to_dtype(DType::F64).unwrap() - &y).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let variance = y.broadcast_sub(&y.mean_keepdim(0).unwrap()).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            mean += error / variance / L as f64;
        }
        println!("{name}: {mean} folded, {fvu} in training");
        assert!((mean / fvu - 1.0).abs() < 1e-5, "{name}: {mean} folded, {fvu} in training");
    }
}

fn course(train: &TrainConfig, tokens: usize) -> (Vec<f64>, Trainer) {
    let (inputs, targets) = (raw(4 * tokens, 1), raw(4 * tokens, 50));
    let activations = Activations::from_memory(inputs, targets, D).unwrap();
    let mut trainer = Trainer::new(&activations, &shape(|c| c.activation = Activation::TopK { k: 1 }), train).unwrap();
    let losses = trainer.run().unwrap().samples.iter().map(|sample| sample.reconstruction).collect();
    (losses, trainer)
}

/// With few tokens and k = 1 most features rest most of the time; with a rate that rises and falls.
#[test]
fn rows_that_rest_end_as_if_they_had_not() {
    let eager = TrainConfig { steps: 120, batch_tokens: 6, lr: 5e-3, clip: None, lazy: false, ..TrainConfig::default() };
    let (one, plain) = course(&eager, 6);
    let (two, lazy) = course(&TrainConfig { lazy: true, ..eager }, 6);
    for (step, (a, b)) in one.iter().zip(&two).enumerate() {
        assert!((a / b - 1.0).abs() < 2e-5, "step {step}: {a} against {b}");
    }
    let (plain, lazy) = (plain.clt().unwrap(), lazy.clt().unwrap());
    for l in 0..L {
        let (a, b) = (plain.decoder(l).unwrap(), lazy.decoder(l).unwrap());
        let size = a.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let error = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        println!("layer {l}: {:.1e}", error / size);
        assert!(error < 1e-4 * size, "layer {l}: {error} of {size}");
    }
}

#[test]
fn moments_in_eight_bits_learn_alike() {
    for lazy in [false, true] {
        let plain = TrainConfig { steps: 300, batch_tokens: 64, lr: 2e-3, lazy, ..TrainConfig::default() };
        let (one, _) = course(&plain, 64);
        let (two, _) = course(&TrainConfig { moments: Moments::EightBit, ..plain }, 64);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (a, b) = (mean(&one[250..]), mean(&two[250..]));
        println!("last 50 steps: {a} in f32, {b} in eight bits; first step {}", one[0]);
        assert!(b < a + 0.01 * (one[0] - a) && a < 0.9 * one[0], "{a} in f32, {b} in eight bits");
    }
}
