//! Rankings over all layers, and thresholds that stand in for a k, against sorting by hand.

use crate::numbers::Numbers;
use candle_core::{Device, Tensor};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, Calibration, Clt, CltConfig, LayerWeights, Scope};
use cltlab::train::{TrainConfig, Trainer};
use cltlab::ErrorKind;

const L: usize = 3;
const D: usize = 12;
const F: usize = 40;
const TOKENS: usize = 50;

/// Layers whose pre-activations differ in size, so that a ranking of all favours the last.
fn clt(activation: Activation) -> Clt {
    let tensor = |seed: u64, shape: &[usize]| Tensor::from_vec(Numbers::new(seed).take(shape.iter().product()), shape, &Device::Cpu).unwrap();
    let layer = |l: usize| LayerWeights {
        encoder: (tensor(l as u64, &[F, D]) * (1.0 + l as f64)).unwrap(),
        encoder_bias: tensor(10 + l as u64, &[F]),
        threshold: None,
        decoder: tensor(20 + l as u64, &[F, L - l, D]),
        decoder_bias: tensor(30 + l as u64, &[D]),
        skip: None,
    };
    let config = CltConfig { layers: L, width: D, features: F, activation, ..CltConfig::default() };
    Clt::new(config, (0..L).map(layer).collect()).unwrap()
}

fn inputs() -> Vec<Vec<f32>> {
    (0..L).map(|l| Numbers::new(70 + l as u64).take(TOKENS * D)).collect()
}

fn tensors() -> Vec<Tensor> {
    inputs().into_iter().map(|x| Tensor::from_vec(x, (TOKENS, D), &Device::Cpu).unwrap()).collect()
}

fn activations() -> Activations {
    Activations::from_memory(inputs(), inputs(), D).unwrap()
}

#[test]
fn a_token_spends_its_features_over_all_layers() {
    let k = 4;
    let clt = clt(Activation::GlobalTopK { k });
    let x = tensors();
    let code = clt.encode_inputs(&x).unwrap();
    let pre: Vec<Vec<Vec<f32>>> = (0..L).map(|l| clt.pre_activations(l, &x[l]).unwrap().to_vec2().unwrap()).collect();
    let mut per_layer = [0; L];
    for p in 0..TOKENS {
        let mut all: Vec<(f32, usize, u32)> = (0..L).flat_map(|l| pre[l][p].iter().enumerate().map(move |(f, &h)| (h, l, f as u32))).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut expected: Vec<_> = all[..k * L].iter().filter(|entry| entry.0 > 0.0).map(|&(h, l, f)| (l, f, h)).collect();
        expected.sort_by_key(|&(l, f, _)| (l, f));
        let found: Vec<_> = (0..L).flat_map(|l| { let (f, v) = code.layers[l].token(p); f.iter().zip(v).map(move |(&f, &v)| (l, f, v)).collect::<Vec<_>>() }).collect();
        assert_eq!(found, expected, "token {p}");
        found.iter().for_each(|&(l, _, _)| per_layer[l] += 1);
    }
    assert!(per_layer[2] > 2 * per_layer[0], "{per_layer:?}");
    let alone = clt.encode_layer(0, &x[0]).unwrap_err();
    assert!(alone.kind() == ErrorKind::Unsupported && alone.to_string().contains("calibrate"), "{alone}");
}

#[test]
fn thresholds_leave_as_many_as_asked_for() {
    let x = tensors();
    for (activation, scope) in [(Activation::TopK { k: 4 }, None), (Activation::GlobalTopK { k: 4 }, None), (Activation::Relu, Some(Scope::AllLayers)), (Activation::Relu, Some(Scope::Layer))] {
        let l0 = if activation == Activation::Relu { 2.52 } else { 4.0 };
        let config = Calibration { l0: (activation == Activation::Relu).then_some(l0), scope, tokens: TOKENS };
        let jump = clt(activation.clone()).calibrate(&activations(), &config).unwrap();
        let code = jump.encode_inputs(&x).unwrap();
        let counts: Vec<usize> = code.layers.iter().map(|layer| layer.active()).collect();
        let wanted = (l0 * TOKENS as f64).round() as usize;
        let thresholds: Vec<f32> = (0..L).map(|l| jump.threshold(l).unwrap().unwrap().to_vec1::<f32>().unwrap()[0]).collect();
        println!("{activation:?} {scope:?}: {counts:?} of {wanted}, thresholds {thresholds:?}");
        let together = scope == Some(Scope::AllLayers) || matches!(activation, Activation::GlobalTopK { .. });
        match together {
            true => assert!(counts.iter().sum::<usize>() == L * wanted && thresholds.iter().all(|t| *t == thresholds[0]), "{counts:?}"),
            false => assert!(counts.iter().all(|&count| count == wanted), "{counts:?}"),
        }
        assert!(matches!(jump.config().activation, Activation::JumpRelu { .. }));
    }
}

#[test]
fn calibrations_that_cannot_be() {
    let refused = |activation: Activation, config: Calibration, words: &[&str]| {
        let error = clt(activation).calibrate(&activations(), &config).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "'{error}' does not say '{word}'"));
    };
    let usual = Calibration { tokens: TOKENS, ..Calibration::default() };
    refused(Activation::Relu, usual.clone(), &["Calibration::l0", "no k"]);
    refused(Activation::TopK { k: 4 }, Calibration { l0: Some(0.0), ..usual.clone() }, &["Calibration::l0", "above 0"]);
    refused(Activation::TopK { k: 4 }, Calibration { tokens: 0, ..usual.clone() }, &["Calibration::tokens"]);
    refused(Activation::TopK { k: 4 }, Calibration { l0: Some(39.0), ..usual.clone() }, &["above 0 in layer", "39.00 a token", "lower"]);
    let other = Activations::from_memory(inputs()[..2].to_vec(), inputs()[..2].to_vec(), D).unwrap();
    assert_eq!(clt(Activation::TopK { k: 4 }).calibrate(&other, &usual).unwrap_err().kind(), ErrorKind::Mismatch);
}

/// A batch that is ranked as a whole ends with one threshold, the cut's running mean; calibrated, L0 is k.
#[test]
fn a_ranked_batch_becomes_a_threshold() {
    let (k, train) = (4, TrainConfig { steps: 40, batch_tokens: TOKENS, lr: 2e-3, ..TrainConfig::default() });
    let shape = CltConfig { layers: L, width: D, features: F, activation: Activation::GlobalBatchTopK { k }, ..CltConfig::default() };
    let mut trainer = Trainer::new(&activations(), &shape, &train).unwrap();
    let last = trainer.run().unwrap().last().unwrap().clone();
    assert!((last.l0 - k as f64).abs() < 1e-9, "{}", last.l0);
    let jump = trainer.clt().unwrap();
    let first: Vec<f32> = (0..L).map(|l| jump.threshold(l).unwrap().unwrap().to_vec1::<f32>().unwrap()[0]).collect();
    assert!(first.iter().all(|t| *t == first[0] && *t > 0.0), "{first:?}");
    let running = jump.encode_inputs(&tensors()).unwrap().l0();
    let again = jump.calibrate(&activations(), &Calibration { l0: Some(k as f64), scope: Some(Scope::AllLayers), tokens: TOKENS }).unwrap();
    let exact = again.encode_inputs(&tensors()).unwrap().l0();
    println!("L0 {running} by the running mean, {exact} calibrated");
    // The mean lags behind weights that still grow.
    assert!((running - k as f64).abs() < 1.5 && (exact - k as f64).abs() < 1e-9, "{running} {exact}");
}

#[test]
fn activations_as_json() {
    for (text, activation) in [
        (r#"{"top_k":{"k":4}}"#, Activation::TopK { k: 4 }),
        (r#"{"batch_top_k":{"k":4}}"#, Activation::BatchTopK { k: 4 }),
        (r#"{"global_top_k":{"k":4}}"#, Activation::GlobalTopK { k: 4 }),
        (r#"{"global_batch_top_k":{"k":4}}"#, Activation::GlobalBatchTopK { k: 4 }),
        (r#""relu""#, Activation::Relu),
    ] {
        assert_eq!(serde_json::from_str::<Activation>(text).unwrap(), activation);
        assert_eq!(serde_json::to_string(&activation).unwrap(), text);
    }
}
