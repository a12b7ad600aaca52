//! Checks of the training step.

use super::{deviation, margins, naive, worse, Check};
use crate::activations::Batch;
use crate::clt::live::{LiveClt, Scratch, StepOptions, StepReport};
use crate::clt::{Activation, CltConfig, Tied};
use crate::error::Result;
use candle_core::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One shape and loss.
struct Case {
    name: &'static str,
    config: CltConfig,
    options: StepOptions,
    tokens: usize,
    data: Data,
}

/// What a case is trained on.
#[derive(Clone, Copy, PartialEq)]
enum Data {
    Random,
    /// Inputs and encoders so even that pre-activations are exact in any order of summation, and many of them equal.
    Even,
    /// Even, and each step's inputs a quarter of the last one's, so that the last cut says nothing about the next.
    Fading,
    /// Features as differently active as on real text: the first on every token, half of them on hardly any.
    Skewed,
}

impl Data {
    fn is_even(self) -> bool {
        matches!(self, Data::Even | Data::Fading)
    }
}

fn cases() -> Vec<Case> {
    let config = |activation: Activation| CltConfig { layers: 3, width: 64, features: 200, activation, ..CltConfig::default() };
    // With an ε like this Adam's step is smooth in the gradient, so that weights after it tell how equal gradients were.
    let options = StepOptions {
        step: 1,
        lr: 0.5,
        betas: (0.9, 0.999),
        eps: 1.0,
        weight_decay: 0.0,
        clip: None,
        lazy: false,
        fvu: false,
        groups: vec![200],
        sparsity: 0.0,
        tanh_scale: 1.0,
        dead: 0.0,
        dead_window: 100,
        aux: 0.0,
        aux_k: 0,
    };
    let case = |name, config, options| Case { name, config, options, tokens: 72, data: Data::Random };
    let even = |case: Case| Case { data: Data::Even, ..case };
    // Lists of more than 512 entries, which blocks walk along instead of warps.
    let skewed = |case: Case| Case { data: Data::Skewed, tokens: 560, ..case };
    let penalties = StepOptions { sparsity: 2.0, dead: 1e-2, ..options.clone() };
    vec![
        case("relu, sparsity and dead terms", config(Activation::Relu), penalties.clone()),
        case("jump_relu, clipped", config(Activation::JumpRelu { threshold: 0.6, bandwidth: 0.5 }), StepOptions { clip: Some(0.5), ..penalties.clone() }),
        case("top_k 8", config(Activation::TopK { k: 8 }), StepOptions { dead: 1e-2, ..options.clone() }),
        case("top_k 1, decaying, fvu", config(Activation::TopK { k: 1 }), StepOptions { weight_decay: 0.1, fvu: true, ..options.clone() }),
        even(case("batch_top_k 8, clipped", config(Activation::BatchTopK { k: 8 }), StepOptions { clip: Some(0.1), dead: 1e-2, ..options.clone() })),
        case("top_k 8, skip connections, clipped", CltConfig { skip: true, ..config(Activation::TopK { k: 8 }) }, StepOptions { clip: Some(0.5), weight_decay: 0.1, ..options.clone() }),
        case("relu, tied per source, skip connections, sparsity and dead terms", CltConfig { tied: Tied::PerSource, skip: true, ..config(Activation::Relu) }, StepOptions { lr: 0.2, ..penalties.clone() }),
        even(case("top_k 8, three groups, sparsity term", config(Activation::TopK { k: 8 }), StepOptions { groups: vec![30, 90, 200], sparsity: 2.0, ..options.clone() })),
        case("batch_top_k 8, tied per source, two groups, clipped", CltConfig { tied: Tied::PerSource, ..config(Activation::BatchTopK { k: 8 }) }, StepOptions { groups: vec![64, 200], clip: Some(0.5), ..options.clone() }),
        case("top_k 4, auxiliary loss", config(Activation::TopK { k: 4 }), StepOptions { aux: 0.5, aux_k: 12, dead_window: 60, dead: 1e-2, sparsity: 2.0, lr: 0.2, ..options.clone() }),
        case(
            "batch_top_k 4, auxiliary loss, tied per source, two groups, clipped",
            CltConfig { tied: Tied::PerSource, ..config(Activation::BatchTopK { k: 4 }) },
            StepOptions { aux: 0.5, aux_k: 12, dead_window: 60, groups: vec![80, 200], clip: Some(0.5), lr: 0.2, ..options.clone() },
        ),
        case("top_k 8, tied per target, two groups, skip connections", CltConfig { tied: Tied::PerTarget, skip: true, ..config(Activation::TopK { k: 8 }) }, StepOptions { groups: vec![50, 200], fvu: true, dead: 1e-2, ..options.clone() }),
        case("jump_relu, tied per target, clipped", CltConfig { tied: Tied::PerTarget, ..config(Activation::JumpRelu { threshold: 0.6, bandwidth: 0.5 }) }, StepOptions { clip: Some(0.5), ..penalties.clone() }),
        even(case("global_top_k 6, clipped", config(Activation::GlobalTopK { k: 6 }), StepOptions { clip: Some(0.5), dead: 1e-2, sparsity: 2.0, ..options.clone() })),
        Case {
            data: Data::Fading,
            ..case(
                "global_batch_top_k 4, auxiliary loss, tied per source, two groups",
                CltConfig { tied: Tied::PerSource, ..config(Activation::GlobalBatchTopK { k: 4 }) },
                StepOptions { aux: 0.5, aux_k: 12, dead_window: 60, groups: vec![80, 200], lr: 0.2, ..options.clone() },
            )
        },
        case("global_batch_top_k 190, more than there are", config(Activation::GlobalBatchTopK { k: 190 }), StepOptions { lr: 0.2, ..options.clone() }),
        skewed(case("top_k 6, a feature on every token", CltConfig { layers: 2, features: 72, ..config(Activation::TopK { k: 6 }) }, StepOptions { groups: vec![72], sparsity: 2.0, dead: 1e-2, lr: 0.1, ..options.clone() })),
        skewed(case(
            "jump_relu, a feature on every token, clipped",
            CltConfig { layers: 2, features: 72, ..config(Activation::JumpRelu { threshold: 0.6, bandwidth: 0.5 }) },
            StepOptions { groups: vec![72], clip: Some(0.5), lr: 0.1, ..penalties.clone() },
        )),
        case("batch_top_k 1, per layer", CltConfig { per_layer: true, ..config(Activation::BatchTopK { k: 1 }) }, options),
    ]
}

/// The 50 steps' case.
#[cfg(any(feature = "cuda", test))]
fn curve() -> Case {
    let case = cases().swap_remove(2);
    Case { options: StepOptions { lr: 1e-3, eps: 1e-8, dead: 0.0, ..case.options }, ..case }
}

/// Rounds to what bf16 holds.
fn round(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
}

/// A CLT before its first step; `rounded`: its matrices hold what bf16 can.
fn fresh(case: &Case, eight: bool, rounded: bool) -> Result<LiveClt> {
    let mut live = LiveClt::new(&case.config, eight, 1)?;
    if case.data == Data::Skewed {
        for layer in &mut live.layers {
            let features = layer.encoder_bias.w.len();
            layer.encoder_bias.w.iter_mut().enumerate().for_each(|(feature, bias)| *bias = if feature == 0 { 6.0 } else { 0.5 - 3.0 * feature as f32 / features as f32 });
        }
    }
    if case.data.is_even() {
        live.layers.iter_mut().flat_map(|layer| &mut layer.encoder.w).for_each(|w| *w = (*w * 64.0).round() / 64.0);
    }
    if rounded {
        for layer in &mut live.layers {
            round(&mut layer.encoder.w);
            round(&mut layer.decoder.w);
            layer.measure();
        }
    }
    Ok(live)
}

/// A step's batch, at a distance from where the step of `live` jumps; `rounded`: of numbers that bf16 holds.
fn batch(case: &Case, live: &LiveClt, options: &StepOptions, rounded: bool, rng: &mut StdRng) -> Result<Batch> {
    let mut batch = drawn(case, options.step, rounded, rng);
    margins::widen(live, &mut batch, options, case.data.is_even())?;
    Ok(batch)
}

fn drawn(case: &Case, step: u64, rounded: bool, rng: &mut StdRng) -> Batch {
    let mut side = || (0..case.config.layers).map(|_| (0..case.tokens * case.config.width).map(|_| rng.random_range(-1.7..1.7f32)).collect()).collect();
    let mut batch = Batch { tokens: case.tokens, inputs: side(), targets: side() };
    let scale = if case.data == Data::Fading { 0.25f32.powi(step as i32 - 1) } else { 1.0 };
    if case.data.is_even() {
        batch.inputs.iter_mut().flatten().for_each(|x| *x = x.round() * scale);
    }
    if rounded {
        batch.inputs.iter_mut().chain(&mut batch.targets).for_each(|values| round(values));
    }
    batch
}

/// Hands each comparison to `done`; the name of the device.
pub(super) fn checks(device: &Device, done: &mut dyn FnMut(Check)) -> Result<String> {
    match device {
        Device::Cpu => cpu(done).map(|()| "the CPU".into()),
        _ => other(device, done),
    }
}

/// Against the formula, and one thread against all.
fn cpu(done: &mut dyn FnMut(Check)) -> Result<()> {
    for case in cases() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut live = fresh(&case, false, false)?;
        let mut alone = live.clone();
        let (mut scratch, mut second) = (Scratch::default(), Scratch::default());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| crate::Error::wrap(crate::ErrorKind::Unsupported, "threads", error))?;
        let (mut worst, mut apart) = (0f64, 0f64);
        for step in 1..=3 {
            let options = StepOptions { step, ..case.options.clone() };
            let batch = batch(&case, &live, &options, false, &mut rng)?;
            let expected = naive::report(&live, &batch, &options);
            let got = live.step(&batch, &mut scratch, &options)?;
            pool.install(|| alone.step(&batch, &mut second, &options))?;
            worst = worse(worst, forward(&got, &expected));
            apart = worse(apart, weights(&alone, &live));
        }
        done(Check { name: format!("{}: loss and L0 as the formula has them", case.name), deviation: worst, bound: 1e-5 });
        done(Check { name: format!("{}: weights by one thread as by all", case.name), deviation: apart, bound: 0.0 });
    }
    Ok(())
}

/// Errors, variances, sparsity and L0 of two reports.
fn forward(got: &StepReport, expected: &StepReport) -> f64 {
    let errors = |report: &StepReport| report.layers.iter().map(|layer| layer.0).collect::<Vec<_>>();
    let variances = |report: &StepReport| report.layers.iter().map(|layer| layer.1).collect::<Vec<_>>();
    let rest = |report: &StepReport| vec![report.sparsity];
    [deviation(errors(got), errors(expected)), deviation(variances(got), variances(expected)), deviation(rest(got), rest(expected)), deviation(got.l0.clone(), expected.l0.clone())]
        .into_iter()
        .fold(0.0, worse)
}

/// The largest deviation of any array of weights.
fn weights(got: &LiveClt, expected: &LiveClt) -> f64 {
    let mut worst = 0f64;
    for (got, expected) in got.layers.iter().zip(&expected.layers) {
        let pairs = [
            (&got.encoder.w, &expected.encoder.w),
            (&got.encoder_bias.w, &expected.encoder_bias.w),
            (&got.decoder.w, &expected.decoder.w),
            (&got.decoder_bias.w, &expected.decoder_bias.w),
        ];
        let optional = [got.log_threshold.as_ref().zip(expected.log_threshold.as_ref()), got.skip.as_ref().zip(expected.skip.as_ref())];
        for (got, expected) in pairs.into_iter().chain(optional.into_iter().flatten().map(|(got, expected)| (&got.w, &expected.w))) {
            let next = deviation(got.iter().map(|&w| f64::from(w)), expected.iter().map(|&w| f64::from(w)));
            worst = worse(worst, next);
        }
    }
    worst
}

#[cfg(not(feature = "cuda"))]
fn other(_: &Device, _: &mut dyn FnMut(Check)) -> Result<String> {
    // Opening it says that this build has none.
    crate::device::cuda(0).map(|_| String::new())
}

/// Against the CPU's step.
#[cfg(feature = "cuda")]
fn other(device: &Device, done: &mut dyn FnMut(Check)) -> Result<String> {
    use crate::clt::kernels::cuda::{Gpu, Stored};
    use crate::clt::live::GpuPath;
    let gpu = Gpu::of(device)?;
    // With weights in bf16 one step: after it other entries are kept here and there.
    let kinds = [(Stored::F32, false, 3, 3e-5), (Stored::F32, true, 3, 1e-2), (Stored::Bf16, true, 1, 1e-2), (Stored::Bf16, false, 1, 1e-2)];
    for case in cases() {
        // The long lists' cases are about sums, not about ways to store: the two extremes.
        let kinds = if case.data == Data::Skewed { &kinds[..3] } else { &kinds[..] };
        for &(stored, eight, steps, bound) in kinds.iter().filter(|kind| case.data != Data::Skewed || kind.1 == (kind.0 == Stored::Bf16)) {
            // Both ways, whichever would be taken.
            let [lists, dense] = [compare(&case, &gpu, stored, eight, steps, GpuPath::Lists)?, compare(&case, &gpu, stored, eight, steps, GpuPath::Dense)?];
            let (report, weights) = (worse(lists[0], dense[0]), worse(lists[1], dense[1]));
            let kind = format!("{}, weights {}, moments {}", case.name, stored.name(), if eight { "8 bits" } else { "f32" });
            done(Check { name: format!("{kind}: report"), deviation: report, bound: if stored == Stored::F32 && !eight { 1e-5 } else { 1e-2 } });
            done(Check { name: format!("{kind}: weights"), deviation: weights, bound });
        }
    }
    let curve = curve();
    for (stored, eight, bound) in [(Stored::F32, false, 1e-3), (Stored::Bf16, true, 2e-2)] {
        let [report, _] = compare(&curve, &gpu, stored, eight, 50, GpuPath::Auto)?;
        done(Check { name: format!("50 steps of {}, weights {}: loss", curve.name, stored.name()), deviation: report, bound });
    }
    gpu.name()
}

/// The largest deviations of reports and of the last weights over some steps.
#[cfg(feature = "cuda")]
fn compare(case: &Case, gpu: &crate::clt::kernels::cuda::Gpu, stored: crate::clt::kernels::cuda::Stored, eight: bool, steps: u64, path: crate::clt::live::GpuPath) -> Result<[f64; 2]> {
    use crate::clt::live::cuda::{CudaClt, DeviceBatch};
    let mut rng = StdRng::seed_from_u64(3);
    // Both begin with numbers that either can hold.
    let mut live = fresh(case, eight, true)?;
    let mut on_gpu = CudaClt::upload(&live, gpu, stored)?;
    on_gpu.take(path);
    let mut scratch = Scratch::default();
    let mut there = DeviceBatch::new(gpu, stored)?;
    let mut worst = 0f64;
    for step in 1..=steps {
        let options = StepOptions { step, ..case.options.clone() };
        let batch = batch(case, &live, &options, true, &mut rng)?;
        there.write(&batch)?;
        on_gpu.step(&there, &options)?;
        let expected = live.step(&batch, &mut scratch, &options)?;
        // A step whose numbers are not finite has no report.
        let (reports, broken) = on_gpu.reports()?;
        if broken.is_some() || reports.is_empty() {
            worst = f64::INFINITY;
        }
        for got in reports {
            let more = |report: &StepReport| [report.dead_term, report.grad_norm, report.dead as f64, report.aux];
            let (a, b) = (more(&got), more(&expected));
            let rest = (0..4).map(|i| deviation([a[i]], [b[i]])).fold(0.0, worse);
            // A long training is about its loss: which of two equal features stays is not.
            let next = if steps > 3 { deviation(got.layers.iter().map(|layer| layer.0), expected.layers.iter().map(|layer| layer.0)) } else { worse(forward(&got, &expected), rest) };
            worst = worse(worst, next);
        }
    }
    Ok([worst, weights(&on_gpu.download()?, &live)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a step makes of inputs a rounding apart, every other one up or down: whether L0 is the same, and how far the
    /// weights come apart.
    fn apart(live: &LiveClt, batch: &Batch, options: &StepOptions) -> (bool, f64) {
        let [(one, l0), (other, other_l0)] = [5e-7, -5e-7].map(|by| {
            let (mut live, mut batch) = (live.clone(), batch.clone());
            batch.inputs.iter_mut().flatten().enumerate().for_each(|(at, x)| *x *= if at % 2 == 0 { 1.0 + by } else { 1.0 - by });
            let report = live.step(&batch, &mut Scratch::default(), options).unwrap();
            (live, report.l0)
        });
        (l0 == other_l0, weights(&other, &one))
    }

    #[test]
    fn rounding_flips_no_entry() {
        for (rounded, eight) in [(false, false), (true, false), (true, true)] {
            for (case, steps) in cases().into_iter().map(|case| (case, 3)).chain([(curve(), 50)]) {
                let (mut live, mut scratch, mut rng) = (fresh(&case, eight, rounded).unwrap(), Scratch::default(), StdRng::seed_from_u64(3));
                for step in 1..=steps {
                    let options = StepOptions { step, ..case.options.clone() };
                    let batch = batch(&case, &live, &options, rounded, &mut rng).unwrap();
                    let near = margins::distances(&live, &batch, &options, case.data.is_even()).iter().map(|distance| distance.value).fold(f64::INFINITY, f64::min);
                    assert!(near >= 1e-5, "{}, step {step}: {near:.1e}", case.name);
                    // Equal pre-activations would come apart; moments in eight bits and Adam with a small ε have jumps of their own.
                    if !case.data.is_even() && !eight && steps == 3 {
                        let (same, apart) = apart(&live, &batch, &options);
                        assert!(same && apart < 1e-4, "{}, step {step}: weights {apart:.1e}", case.name);
                    }
                    live.step(&batch, &mut scratch, &options).unwrap();
                }
            }
        }
    }

    #[test]
    fn what_flipped_on_an_h200_is_moved() {
        // As drawn, a pre-activation of this case lies 6e-8 above its threshold: one entry of L0, and weights that differ by 2e-2.
        let case = cases().swap_remove(1);
        let live = fresh(&case, false, true).unwrap();
        let mut batch = drawn(&case, 1, true, &mut StdRng::seed_from_u64(3));
        let (same, far) = apart(&live, &batch, &case.options);
        assert!(!same && far > 1e-2, "{far:.1e}");
        margins::widen(&live, &mut batch, &case.options, false).unwrap();
        let (same, far) = apart(&live, &batch, &case.options);
        assert!(same && far < 1e-5, "{far:.1e}");
    }
}
