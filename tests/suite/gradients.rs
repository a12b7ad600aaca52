//! The step written by hand against three references: a loss in f64 with finite differences,
//! candle's autograd in f64, and Adam in ten lines. The step keeps no gradient, but after its first step Adam's first moment is (1 − β₁) times the
//! gradient, and a checkpoint shows it.

use crate::numbers::Numbers;
use crate::support::{largest, max_difference, scratch, seal, worse};
use candle_core::{DType, Device, Tensor, Var, D};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, CltConfig};
use cltlab::train::{TrainConfig, Trainer};
use std::collections::BTreeMap;

const L: usize = 3;

type Arrays = BTreeMap<String, Vec<f64>>;

/// The shape of a case: width, features, tokens.
#[derive(Clone, Copy, PartialEq)]
struct Shape {
    width: usize,
    features: usize,
    tokens: usize,
}

/// Not multiples of anything.
const SMALL: Shape = Shape { width: 13, features: 11, tokens: 9 };
/// Two whole tiles of columns and a rest.
const WIDE: Shape = Shape { width: 150, features: 40, tokens: 20 };
/// More features than one round of the decoder's kernel takes.
const MANY: Shape = Shape { width: 70, features: 2100, tokens: 12 };

/// Few of many features fire, on tokens of unequal norm: entries are looked for in bfloat16 first.
const FEW: Shape = Shape { width: 64, features: 330, tokens: 70 };

/// What the loss is made of.
struct Case {
    shape: Shape,
    /// Enter the first step as a CLT whose last code was sparse: ReLU and JumpReLU begin dense.
    sparse: bool,
    activation: Activation,
    lambda: f64,
    c: f64,
    dead: f64,
}

struct Data {
    x: Vec<Vec<f64>>,
    y: Vec<Vec<f64>>,
}

fn raw(shape: Shape, seed: u64) -> Vec<Vec<f32>> {
    let large = |i: usize| if shape == FEW && (i / shape.width) % 9 == 5 { 6.0 } else { 1.0 };
    let values = |l: usize| Numbers::new(seed + l as u64).take(shape.tokens * shape.width).into_iter().enumerate();
    (0..L).map(|l| values(l).map(|(i, v)| large(i) * v * (1.0 + l as f32) + 0.3).collect()).collect()
}

/// Centred, and scaled to a mean squared norm of the width.
fn normalised(Shape { width, tokens, .. }: Shape, values: &[f32]) -> Vec<f64> {
    let mut out: Vec<f64> = values.iter().map(|&v| v as f64).collect();
    for c in 0..width {
        let mean = (0..tokens).map(|p| out[p * width + c]).sum::<f64>() / tokens as f64;
        (0..tokens).for_each(|p| out[p * width + c] -= mean);
    }
    let square: f64 = out.iter().map(|v| v * v).sum();
    let factor = (width as f64 * tokens as f64 / square).sqrt();
    out.iter().map(|v| v * factor).collect()
}

/// Weights before the first step, the same after `steps`, and the first moments after them.
fn train(case: &Case, config: TrainConfig, steps: usize) -> (Data, Arrays, Arrays) {
    let Shape { width, features, tokens } = case.shape;
    let (inputs, targets) = (raw(case.shape, 1), raw(case.shape, 50));
    let data = Data { x: inputs.iter().map(|v| normalised(case.shape, v)).collect(), y: targets.iter().map(|v| normalised(case.shape, v)).collect() };
    let activations = Activations::from_memory(inputs, targets, width).unwrap();
    let clt = CltConfig { layers: L, width, features, activation: case.activation.clone(), ..CltConfig::default() };
    let config = TrainConfig {
        steps,
        batch_tokens: tokens,
        sparsity: Some(case.lambda),
        tanh_scale: case.c,
        sparsity_ramp: 0.0,
        dead: case.dead,
        dead_window: 0,
        ..config
    };
    let mut trainer = Trainer::new(&activations, &clt, &config).unwrap();
    let read = |trainer: &Trainer| -> Arrays {
        let place = scratch(&format!("gradients-{}", std::thread::current().name().unwrap_or("").replace("::", "-")));
        trainer.save(&place).unwrap();
        let file = std::fs::read_dir(&place).unwrap().next().unwrap().unwrap().path();
        let all = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        all.into_iter().filter(|(_, t)| t.dtype() == DType::F32).map(|(name, t)| (name, t.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect())).collect()
    };
    let before = read(&trainer);
    if case.sparse {
        trainer = as_sparse(&trainer, &activations);
    }
    trainer.run().unwrap();
    (data, before, read(&trainer))
}

/// The same training, resumed from a checkpoint that says the last code was sparse.
fn as_sparse(trainer: &Trainer, activations: &Activations) -> Trainer {
    let place = scratch(&format!("sparse-{}", std::thread::current().name().unwrap_or("").replace("::", "-")));
    trainer.save(&place).unwrap();
    let file = place.join("step-00000000.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let (from, to) = (b"densities\\\":[1.0,1.0,1.0]", b"densities\\\":[0.0,0.0,0.0]");
    if let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + to.len()].copy_from_slice(to);
        seal(&mut bytes);
    }
    std::fs::write(&file, &bytes).unwrap();
    Trainer::resume(&file, activations).unwrap()
}

/// The code and the pre-activations, and what each entry had to exceed.
fn forward(case: &Case, w: &Arrays, data: &Data) -> (Vec<Vec<f64>>, Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let Shape { width, features, tokens } = case.shape;
    let (mut h, mut a, mut theta) = (Vec::new(), Vec::new(), Vec::new());
    for l in 0..L {
        let (we, be) = (&w[&format!("{l}.encoder.w")], &w[&format!("{l}.encoder_bias.w")]);
        let hl: Vec<f64> = (0..tokens * features)
            .map(|i| be[i % features] + (0..width).map(|c| we[(i % features) * width + c] * data.x[l][(i / features) * width + c]).sum::<f64>())
            .collect();
        let least = |values: &[f64], k: usize| {
            let mut sorted = values.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted[k - 1].max(0.0)
        };
        let tl: Vec<f64> = match case.activation {
            Activation::Relu => vec![0.0; tokens * features],
            Activation::JumpRelu { .. } => (0..tokens * features).map(|i| w[&format!("{l}.log_threshold.w")][i % features].exp()).collect(),
            Activation::TopK { k } => (0..tokens * features).map(|i| least(&hl[i / features * features..(i / features + 1) * features], k)).collect(),
            Activation::BatchTopK { k } => vec![least(&hl, k * tokens); tokens * features],
            _ => unimplemented!("over layers: see variants"),
        };
        let kept = matches!(case.activation, Activation::TopK { .. } | Activation::BatchTopK { .. });
        a.push(hl.iter().zip(&tl).map(|(&h, &t)| if h > t || (kept && h == t && h > 0.0) { h } else { 0.0 }).collect());
        h.push(hl);
        theta.push(tl);
    }
    (h, a, theta)
}

fn norm(w: &Arrays, width: usize, l: usize, f: usize) -> f64 {
    let stride = (L - l) * width;
    w[&format!("{l}.decoder.w")][f * stride..(f + 1) * stride].iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// `2 (ŷ − y) / tokens` at each target, and the loss.
fn residuals(Shape { width, features, tokens }: Shape, w: &Arrays, data: &Data, a: &[Vec<f64>]) -> (Vec<Vec<f64>>, f64) {
    let (mut all, mut loss) = (Vec::new(), 0.0);
    for t in 0..L {
        let mut e: Vec<f64> = (0..tokens * width).map(|i| w[&format!("{t}.decoder_bias.w")][i % width] - data.y[t][i]).collect();
        for s in 0..=t {
            let wd = &w[&format!("{s}.decoder.w")];
            for (p, f) in (0..tokens).flat_map(|p| (0..features).map(move |f| (p, f))) {
                for c in 0..width {
                    e[p * width + c] += a[s][p * features + f] * wd[(f * (L - s) + t - s) * width + c];
                }
            }
        }
        loss += e.iter().map(|v| v * v).sum::<f64>() / tokens as f64;
        all.push(e.iter().map(|v| 2.0 * v / tokens as f64).collect());
    }
    (all, loss)
}

fn loss(case: &Case, w: &Arrays, data: &Data) -> f64 {
    loss_with(case, w, data, None)
}

/// The loss; `held` fixes θ where it counts as a constant (the least kept value).
fn loss_with(case: &Case, w: &Arrays, data: &Data, held: Option<&[Vec<f64>]>) -> f64 {
    let Shape { width, features, tokens } = case.shape;
    let (h, a, theta) = forward(case, w, data);
    let theta = held.unwrap_or(&theta);
    let (_, mut total) = residuals(case.shape, w, data, &a);
    for l in 0..L {
        for i in 0..tokens * features {
            let n = norm(w, width, l, i % features);
            total += case.lambda * (case.c * n * a[l][i]).tanh() / tokens as f64;
            if a[l][i] == 0.0 {
                total += case.dead * (theta[l][i] - h[l][i]).max(0.0) * n / tokens as f64;
            }
        }
    }
    total
}

fn worst(found: &Arrays, expected: &BTreeMap<String, Vec<f64>>) -> f64 {
    let mut worst = 0f64;
    for (name, values) in expected {
        let got = &found[&format!("{name}.m")];
        let scaled: Vec<f64> = got.iter().map(|g| g / 0.1).collect();
        worst = worse(worst, max_difference(&scaled, values) / largest(values).max(1e-6));
    }
    worst
}

fn gradients_only() -> TrainConfig {
    TrainConfig { clip: None, ..TrainConfig::default() }
}

#[test]
fn gradients_equal_finite_differences() {
    let cases = [
        (Activation::Relu, 0.0, 0.0),
        (Activation::Relu, 0.7, 0.05),
        (Activation::TopK { k: 4 }, 0.0, 0.0),
        (Activation::TopK { k: 1 }, 0.3, 0.05),
        (Activation::BatchTopK { k: 2 }, 0.4, 0.05),
        (Activation::JumpRelu { threshold: 0.2, bandwidth: 0.01 }, 0.6, 0.05),
    ];
    for (activation, lambda, dead) in cases {
        // The first step of ReLU and JumpReLU both ways.
        for sparse in [true, false] {
            let case = Case { shape: SMALL, sparse, activation: activation.clone(), lambda, c: 1.7, dead };
            let (data, before, after) = train(&case, gradients_only(), 1);
            let (_, _, theta) = forward(&case, &before, &data);
            let jumps = matches!(case.activation, Activation::JumpRelu { .. });
            let mut expected = BTreeMap::new();
            for name in before.keys().filter_map(|name| name.strip_suffix(".w")).filter(|name| !name.contains("threshold")) {
                let key = format!("{name}.w");
                let mut w = before.clone();
                let values = (0..w[&key].len())
                    .map(|i| {
                        let step = 1e-5;
                        let at = before[&key][i];
                        let mut side = |delta: f64| {
                            w.get_mut(&key).unwrap()[i] = at + delta;
                            // A jump's own threshold moves with nothing here; a least kept value is held.
                            loss_with(&case, &w, &data, if jumps { None } else { Some(&theta) })
                        };
                        let difference = (side(step) - side(-step)) / (2.0 * step);
                        side(0.0);
                        difference
                    })
                    .collect::<Vec<f64>>();
                expected.insert(name.to_string(), values);
            }
            let worst = worst(&after, &expected);
            println!("{:?} λ {lambda} λ_P {dead} sparse {sparse}: {worst:.1e}", case.activation);
            assert!(worst < 1e-5, "{:?} sparse {sparse}: {worst}", case.activation);
        }
    }
}

/// The straight-through estimator is no derivative: its formula, by loops.
#[test]
fn thresholds_follow_the_straight_through_formula() {
    for (bandwidth, sparse) in [(2.0, false), (2.0, true), (0.1, false), (0.1, true)] {
        let Shape { width, features, tokens } = SMALL;
        let case = Case { shape: SMALL, sparse, activation: Activation::JumpRelu { threshold: 0.2, bandwidth }, lambda: 0.6, c: 1.3, dead: 0.04 };
        let (data, before, after) = train(&case, gradients_only(), 1);
        let (h, a, theta) = forward(&case, &before, &data);
        let (e, _) = residuals(case.shape, &before, &data, &a);
        let mut expected = BTreeMap::new();
        for l in 0..L {
            let mut gradient = vec![0f64; features];
            for i in 0..tokens * features {
                let (p, f) = (i / features, i % features);
                let (n, g) = (norm(&before, width, l, f), gradient_of(&case, &before, &e, l, p, f, a[l][i]));
                let t = theta[l][i];
                if (h[l][i] - t).abs() < bandwidth / 2.0 {
                    gradient[f] += t * (-(t / bandwidth) * g);
                }
                if h[l][i] <= t {
                    gradient[f] += t * case.dead * n / tokens as f64;
                }
            }
            expected.insert(format!("{l}.log_threshold"), gradient);
        }
        let worst = worst(&after, &expected);
        assert!(worst < 1e-5, "bandwidth {bandwidth} sparse {sparse}: {worst}");
    }
}

/// The bias of a feature gets the gradients of the tokens on which it fires: of all these, and of no other.
#[test]
fn what_is_kept_is_found() {
    let jump = Activation::JumpRelu { threshold: 2.0, bandwidth: 0.1 };
    for (activation, sparse) in [(Activation::TopK { k: 7 }, false), (Activation::TopK { k: 1 }, false), (jump, true)] {
        let Shape { width, features, tokens } = FEW;
        let case = Case { shape: FEW, sparse, activation: activation.clone(), lambda: 0.6, c: 1.3, dead: 0.0 };
        let (data, before, after) = train(&case, gradients_only(), 1);
        let (_, a, _) = forward(&case, &before, &data);
        let (e, _) = residuals(case.shape, &before, &data, &a);
        let mut expected = BTreeMap::new();
        for l in 0..L {
            let mut gradient = vec![0f64; features];
            for (p, f) in (0..tokens * features).filter(|&i| a[l][i] > 0.0).map(|i| (i / features, i % features)) {
                gradient[f] += gradient_of(&case, &before, &e, l, p, f, a[l][p * features + f]);
            }
            assert!(gradient.iter().filter(|&&g| g != 0.0).count() > 20);
            expected.insert(format!("{l}.encoder_bias"), gradient);
        }
        let worst = worst(&after, &expected);
        assert!(worst < 1e-5, "{activation:?}, width {width}: {worst}");
    }
}

/// `∂loss/∂a` of one entry, without dead features.
fn gradient_of(case: &Case, w: &Arrays, e: &[Vec<f64>], l: usize, p: usize, f: usize, a: f64) -> f64 {
    let Shape { width, tokens, .. } = case.shape;
    let (wd, n) = (&w[&format!("{l}.decoder.w")], norm(w, width, l, f));
    let sparsity = case.lambda * case.c * n * (1.0 - (case.c * n * a).tanh().powi(2)) / tokens as f64;
    sparsity + (l..L).map(|t| (0..width).map(|c| e[t][p * width + c] * wd[(f * (L - l) + t - l) * width + c]).sum::<f64>()).sum::<f64>()
}

/// The loss in candle, f64, ReLU, all features dead.
fn candle_loss(vars: &BTreeMap<String, Var>, data: &Data, case: &Case) -> candle_core::Result<Tensor> {
    let Shape { width, features, tokens } = case.shape;
    let device = &Device::Cpu;
    let matrix = |values: &[f64]| Tensor::from_slice(values, (tokens, width), device);
    let mut total = Tensor::zeros((), DType::F64, device)?;
    let mut codes = Vec::new();
    for l in 0..L {
        let we = vars[&format!("{l}.encoder")].reshape((features, width))?;
        let h = matrix(&data.x[l])?.matmul(&we.t()?)?.broadcast_add(vars[&format!("{l}.encoder_bias")].as_tensor())?;
        let a = h.relu()?;
        let norms = vars[&format!("{l}.decoder")].reshape((features, (L - l) * width))?.sqr()?.sum(D::Minus1)?.sqrt()?;
        total = (total + (a.broadcast_mul(&norms)? * case.c)?.tanh()?.sum_all()?.affine(case.lambda, 0.0)?)?;
        total = (total + h.neg()?.relu()?.broadcast_mul(&norms)?.sum_all()?.affine(case.dead, 0.0)?)?;
        codes.push(a);
    }
    for t in 0..L {
        let mut out = vars[&format!("{t}.decoder_bias")].broadcast_as((tokens, width))?;
        for (s, code) in codes[..=t].iter().enumerate() {
            let w = vars[&format!("{s}.decoder")].reshape((features, L - s, width))?.narrow(1, t - s, 1)?.squeeze(1)?;
            out = (out + code.matmul(&w)?)?;
        }
        total = (total + (out - matrix(&data.y[t])?)?.sqr()?.sum_all()?)?;
    }
    total / tokens as f64
}

fn variables(w: &Arrays) -> BTreeMap<String, Var> {
    w.iter()
        .filter_map(|(name, values)| name.strip_suffix(".w").map(|name| (name.to_string(), Var::from_slice(values, values.len(), &Device::Cpu).unwrap())))
        .collect()
}

#[test]
fn gradients_equal_candle_autograd() {
    for (shape, sparse) in [(WIDE, false), (WIDE, true), (MANY, false), (MANY, true)] {
        let case = Case { shape, sparse, activation: Activation::Relu, lambda: 0.7, c: 2.0, dead: 0.05 };
        let (data, before, after) = train(&case, gradients_only(), 1);
        let vars = variables(&before);
        let total = candle_loss(&vars, &data, &case).unwrap();
        let reference = loss(&case, &before, &data);
        assert!((total.to_scalar::<f64>().unwrap() - reference).abs() < 1e-9 * reference);
        let store = total.backward().unwrap();
        let expected = vars.iter().map(|(name, var)| (name.clone(), store.get(var).unwrap().to_vec1::<f64>().unwrap())).collect();
        let worst = worst(&after, &expected);
        println!("width {}, {} features, sparse {sparse}: {worst:.1e}", shape.width, shape.features);
        assert!(worst < 1e-5, "{worst}");
    }
}

/// Seven whole steps, with clip, warm-up and decay, against autograd and a plain Adam in f64.
#[test]
fn steps_equal_autograd_and_plain_adam() {
    let case = Case { shape: WIDE, sparse: false, activation: Activation::Relu, lambda: 0.4, c: 1.0, dead: 0.01 };
    let config = TrainConfig { lr: 0.02, clip: Some(0.5), warmup: 0.4, decay: 0.3, ..TrainConfig::default() };
    let steps = 7;
    let (data, before, after) = train(&case, config.clone(), steps);
    let mut w = before.clone();
    let (mut m, mut v): (Arrays, Arrays) = Default::default();
    for t in 1..=steps as i32 {
        let vars = variables(&w);
        let store = candle_loss(&vars, &data, &case).unwrap().backward().unwrap();
        let g: Arrays = vars.iter().map(|(name, var)| (name.clone(), store.get(var).unwrap().to_vec1::<f64>().unwrap())).collect();
        let total = g.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let clip = (0.5 / (total + 1e-6)).min(1.0);
        let (step, n) = (t as f64, steps as f64);
        let lr = 0.02 * (step / (0.4 * n)).min((n - step + 1.0) / (0.3 * n)).min(1.0);
        for (name, g) in &g {
            let m = m.entry(name.clone()).or_insert_with(|| vec![0.0; g.len()]);
            let v = v.entry(name.clone()).or_insert_with(|| vec![0.0; g.len()]);
            for (i, g) in g.iter().map(|g| g * clip).enumerate() {
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
                w.get_mut(&format!("{name}.w")).unwrap()[i] -= lr * mh / (vh.sqrt() + 1e-8);
            }
        }
    }
    // A gradient near zero has no sign that f32 and f64 agree on, and Adam spends the sign: the
    // bulk of the weights is compared, not the single worst.
    let mut errors: Vec<f64> = w.iter().filter(|(name, _)| name.ends_with(".w")).flat_map(|(name, w)| w.iter().zip(&after[name]).map(|(a, b)| (a - b).abs())).collect();
    errors.sort_by(f64::total_cmp);
    let (middle, high) = (errors[errors.len() / 2], errors[errors.len() * 999 / 1000]);
    println!("median {middle:.1e}, 99.9 % {high:.1e}, of weights moved by {:.1e}", 0.02);
    assert!(middle < 1e-6 && high < 1e-4, "{middle} {high}");
}
