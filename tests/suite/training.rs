//! Training as a whole: it learns, it serves each token once, it folds what it normalised.

use crate::numbers::Numbers;
use candle_core::{Device, Tensor};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, Clt, CltConfig, LayerWeights, SparseCode, Tied};
use cltlab::train::{TrainConfig, Trainer};
use cltlab::ErrorKind;

const L: usize = 2;
const WIDTH: usize = 32;

/// Tokens made of a few of 48 planted directions; the targets are other directions of the same.
pub fn planted(tokens: usize, seed: u64) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut fixed = Numbers::new(99);
    let directions: Vec<Vec<f32>> = (0..48).map(|_| fixed.take(WIDTH)).collect();
    let writes: Vec<Vec<f32>> = (0..48 * L).map(|_| fixed.take(WIDTH)).collect();
    let mut numbers = Numbers::new(seed);
    let (mut x, mut y) = (vec![Vec::new(); L], vec![Vec::new(); L]);
    for _ in 0..tokens {
        let active: Vec<(usize, f32)> = (0..3).map(|_| (((numbers.next() + 1.0) * 24.0) as usize % 48, 1.5 + numbers.next())).collect();
        for l in 0..L {
            for c in 0..WIDTH {
                x[l].push(0.5 + active.iter().map(|(f, a)| a * directions[*f][c]).sum::<f32>());
                y[l].push(3.0 * active.iter().map(|(f, a)| a * writes[l * 48 + f][c]).sum::<f32>() - 1.0);
            }
        }
    }
    (x, y)
}

pub fn shape(activation: Activation) -> CltConfig {
    CltConfig { layers: L, width: WIDTH, features: 128, activation, ..CltConfig::default() }
}

fn activations(tokens: usize) -> Activations {
    let (x, y) = planted(tokens, 1);
    Activations::from_memory(x, y, WIDTH).unwrap()
}

/// FVU of a saved CLT on raw data, all layers together.
fn fvu(clt: &Clt, x: &[Vec<f32>], y: &[Vec<f32>]) -> (f64, f64) {
    let tensor = |v: &Vec<f32>| Tensor::from_slice(v, (v.len() / WIDTH, WIDTH), &Device::Cpu).unwrap();
    let code = SparseCode { layers: x.iter().enumerate().map(|(l, x)| clt.encode_layer(l, &tensor(x)).unwrap()).collect() };
    let mut total = 0.0;
    for (decoded, y) in clt.decode(&code, &[]).unwrap().iter().zip(y) {
        let y = tensor(y);
        let error = (&y - decoded).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let spread = y.broadcast_sub(&y.mean_keepdim(0).unwrap()).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        total += (error / spread) as f64 / L as f64;
    }
    (total, code.l0())
}

#[test]
fn planted_features_are_learnt() {
    let activations = activations(4096);
    let (x, y) = planted(1024, 2);
    for (activation, sparsity, highest) in [
        (Activation::TopK { k: 4 }, None, 0.2),
        (Activation::BatchTopK { k: 4 }, None, 0.2),
        (Activation::Relu, Some(1.0), 0.3),
        (Activation::JumpRelu { threshold: 0.05, bandwidth: 0.5 }, Some(1.0), 0.3),
    ] {
        let config = TrainConfig { steps: 500, batch_tokens: 256, lr: 3e-3, sparsity, dead_window: 4096, ..TrainConfig::default() };
        let mut trainer = Trainer::new(&activations, &shape(activation.clone()), &config).unwrap();
        let history = trainer.run().unwrap();
        assert!(history.falls(|s| s.reconstruction) && history.falls(|s| s.fvu));
        let (held_out, l0) = fvu(&trainer.clt().unwrap(), &x, &y);
        println!("{activation:?}: {history}; held out FVU {held_out:.4}, L0 {l0:.2}");
        assert!(held_out < highest, "{activation:?}: {held_out}");
        assert!(l0 < 24.0, "{activation:?}: L0 {l0}");
    }
}

/// The CLT in the model's units reports the very loss that the trainer did.
#[test]
fn folded_weights_reconstruct_as_in_training() {
    let (x, y) = planted(512, 1);
    let activations = Activations::from_memory(x.clone(), y.clone(), WIDTH).unwrap();
    for activation in [Activation::TopK { k: 4 }, Activation::Relu, Activation::JumpRelu { threshold: 0.05, bandwidth: 0.5 }] {
        let config = TrainConfig { steps: 40, batch_tokens: 512, ..TrainConfig::default() };
        let mut trainer = Trainer::new(&activations, &shape(activation.clone()), &config).unwrap();
        trainer.run().unwrap();
        let (folded, l0) = fvu(&trainer.clt().unwrap(), &x, &y);
        trainer.run().unwrap();
        // The 41st step's report is that of the weights after 40.
        let live = &trainer.history().samples[40];
        assert!((folded - live.fvu).abs() < 1e-5 * live.fvu, "{activation:?}: {folded} {}", live.fvu);
        assert!((l0 - live.l0).abs() < 0.01, "{activation:?}: {l0} {}", live.l0);
    }
}

/// BatchTopK's fixed threshold gives about the same number of active features.
#[test]
fn batch_top_k_becomes_a_jump_relu() {
    let config = TrainConfig { steps: 300, batch_tokens: 256, lr: 3e-3, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations(4096), &shape(Activation::BatchTopK { k: 4 }), &config).unwrap();
    let history = trainer.run().unwrap();
    assert_eq!(history.last().unwrap().l0, 4.0);
    let clt = trainer.clt().unwrap();
    assert!(matches!(clt.config().activation, Activation::JumpRelu { .. }));
    let (x, y) = planted(1024, 3);
    let (_, l0) = fvu(&clt, &x, &y);
    assert!((l0 - 4.0).abs() < 0.8, "{l0}");
}

/// The dense and the sparse path are one computation: a CLT whose L0 crosses the border trains on.
#[test]
fn going_on_trains_as_many_steps_more() {
    let config = TrainConfig { steps: 5, batch_tokens: 64, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations(256), &shape(Activation::Relu), &config).unwrap();
    assert_eq!(trainer.run().unwrap().steps(), 5);
    assert_eq!(trainer.run().unwrap().steps(), 10);
    assert_eq!(trainer.history().last().unwrap().tokens, 640);
}

/// A wide gate makes every token recognisable: each is served once in every pass.
#[test]
fn each_token_is_served_once_a_pass() {
    // Targets are one-hot-like: after a pass over all tokens the sum of errors is that of each once.
    let tokens = 96;
    let values: Vec<f32> = (0..tokens).flat_map(|p| [p as f32, (p * p) as f32]).collect();
    let activations = Activations::from_memory(vec![values.clone()], vec![values], 2).unwrap();
    let clt = CltConfig { layers: 1, width: 2, features: 4, activation: Activation::TopK { k: 1 }, ..CltConfig::default() };
    // No learning to speak of, so the reconstruction summed over a pass is independent of the order.
    let config = TrainConfig { steps: 12, batch_tokens: 32, lr: 1e-30, dead: 0.0, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations, &clt, &config).unwrap();
    let history = trainer.run().unwrap();
    let passes: Vec<f64> = history.samples.chunks(3).map(|pass| pass.iter().map(|s| s.reconstruction).sum()).collect();
    for pass in &passes {
        assert!((pass / passes[0] - 1.0).abs() < 1e-6, "{passes:?}");
    }
    let orders: Vec<f64> = history.samples.chunks(3).map(|pass| pass[0].reconstruction).collect();
    assert!(orders.windows(2).any(|pair| pair[0] != pair[1]), "each pass has an order of its own");
}

#[test]
fn bad_configurations_name_the_field() {
    let activations = activations(64);
    let good = TrainConfig { steps: 2, batch_tokens: 32, ..TrainConfig::default() };
    for (config, field) in [
        (TrainConfig { lr: 0.0, ..good.clone() }, "lr"),
        (TrainConfig { lr: f64::NAN, ..good.clone() }, "lr"),
        (TrainConfig { steps: 0, ..good.clone() }, "steps"),
        (TrainConfig { batch_tokens: 0, ..good.clone() }, "batch_tokens"),
        (TrainConfig { warmup: 1.5, ..good.clone() }, "warmup"),
        (TrainConfig { clip: Some(0.0), ..good.clone() }, "clip"),
        (TrainConfig { checkpoint_every: 1, ..good.clone() }, "checkpoint_dir"),
        (TrainConfig { aux: -1.0, ..good.clone() }, "aux"),
        (TrainConfig { aux: 0.1, aux_k: Some(0), ..good.clone() }, "aux_k"),
        (TrainConfig { aux: 0.1, ..good.clone() }, "relu has no k"),
    ] {
        let error = Trainer::new(&activations, &shape(Activation::Relu), &config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(field), "{error}");
    }
    let lent = TrainConfig { aux: 0.1, ..good.clone() };
    let shared = CltConfig { tied: Tied::PerTarget, ..shape(Activation::TopK { k: 2 }) };
    let error = Trainer::new(&activations, &shared, &lent).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("per_target"), "{error}");
    let alone = CltConfig { per_layer: true, ..shared };
    assert!(Trainer::new(&activations, &alone, &good).unwrap_err().to_string().contains("CltConfig::tied"));
    let narrow = CltConfig { width: 31, ..shape(Activation::Relu) };
    assert_eq!(Trainer::new(&activations, &narrow, &good).unwrap_err().kind(), ErrorKind::Mismatch);
    let huge = CltConfig { features: 1 << 30, activation: Activation::Relu, ..shape(Activation::Relu) };
    assert_eq!(Trainer::new(&activations, &huge, &good).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_eq!(Activations::from_memory(vec![], vec![], 4).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(Activations::from_memory(vec![vec![0.0; 8]], vec![vec![0.0; 4]], 4).unwrap_err().kind(), ErrorKind::BadInput);
    let unknown = serde_json::from_str::<TrainConfig>(r#"{"steps": 3, "lerning_rate": 1}"#).unwrap_err();
    assert!(unknown.to_string().contains("lerning_rate"));
}

/// NaN in the data is found before training; a loss that explodes leaves the weights of the step before.
#[test]
fn nan_stops_training_and_keeps_the_last_good_state() {
    let (mut x, y) = planted(64, 1);
    x[1][5] = f32::NAN;
    let error = Trainer::new(&Activations::from_memory(x, y, WIDTH).unwrap(), &shape(Activation::Relu), &TrainConfig::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFinite);
    assert!(error.to_string().contains("layer 1"), "{error}");
    let config = TrainConfig { steps: 50, batch_tokens: 64, lr: 1e30, warmup: 0.0, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations(64), &shape(Activation::Relu), &config).unwrap();
    let error = trainer.run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFinite);
    assert!(error.to_string().contains("step") && error.to_string().contains("layer"), "{error}");
    assert_eq!(trainer.steps(), trainer.history().steps());
    let clt = trainer.clt().unwrap();
    let finite = clt.encoder(0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|w| w.is_finite());
    assert!(finite, "the weights are those before the step");
}

/// Most features begin too weak to be among the largest, and would get no gradient ever: the auxiliary
/// loss brings them back.
#[test]
fn an_auxiliary_loss_revives_dead_features() {
    let activations = activations(4096);
    let (features, alive) = (128, 24);
    let shape = CltConfig { features, ..shape(Activation::TopK { k: 3 }) };
    let tensor = |seed: u64, dims: &[usize], scale: f32| {
        let values: Vec<f32> = Numbers::new(seed).take(dims.iter().product()).iter().map(|v| v * scale).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    };
    let layer = |l: usize| {
        let seed = l as u64;
        let rows = Tensor::cat(&[tensor(seed, &[alive, WIDTH], 0.3), tensor(10 + seed, &[features - alive, WIDTH], 0.001)], 0).unwrap();
        let zeros = |n: usize| Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu).unwrap();
        LayerWeights { encoder: rows, encoder_bias: zeros(features), threshold: None, decoder: tensor(20 + seed, &[features, L - l, WIDTH], 0.05), decoder_bias: zeros(WIDTH), skip: None }
    };
    let start = Clt::new(shape.clone(), (0..L).map(layer).collect()).unwrap();
    let train = |aux: f64| {
        let config = TrainConfig { steps: 600, batch_tokens: 256, lr: 3e-3, dead: 0.0, dead_window: 4_096, aux, ..TrainConfig::default() };
        let mut trainer = Trainer::from_clt(&activations, &start, &shape, &config).unwrap();
        let last = trainer.run().unwrap().last().unwrap().clone();
        println!("α {aux}: {:.1} % dead, FVU {:.4}, auxiliary loss {:.4}", 100.0 * last.dead, last.fvu, last.aux);
        last
    };
    let (without, with) = (train(0.0), train(1.0 / 32.0));
    assert!(without.dead > 0.6 && with.dead < 0.8 * without.dead && with.fvu < 0.5 * without.fvu);
}
