//! Checkpoints: 20 steps are 10, a save, a load and 10 more, bit for bit.

use crate::support::scratch;
use crate::training::{planted, shape};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, CltConfig, Tied};
use cltlab::train::{History, Moments, TrainConfig, Trainer};
use cltlab::ErrorKind;
use std::path::Path;

fn activations() -> Activations {
    let (x, y) = planted(600, 1);
    Activations::from_memory(x, y, 32).unwrap()
}

fn bytes(folder: &Path, step: usize) -> Vec<u8> {
    let all = candle_core::safetensors::load(folder.join(format!("step-{step:08}.safetensors")), &candle_core::Device::Cpu).unwrap();
    // The history holds times.
    let mut names: Vec<_> = all.keys().filter(|name| *name != "history").cloned().collect();
    names.sort();
    names.iter().flat_map(|name| all[name].to_dtype(candle_core::DType::F64).unwrap().to_vec1::<f64>().unwrap()).flat_map(|v| v.to_bits().to_le_bytes()).collect()
}

#[test]
fn twenty_steps_are_ten_and_ten() {
    let activations = activations();
    let (plain, target) = (Tied::No, Tied::PerTarget);
    for (activation, tied, aux) in [
        (Activation::BatchTopK { k: 4 }, plain, 0.0),
        (Activation::TopK { k: 4 }, plain, 0.0),
        (Activation::Relu, plain, 0.0),
        (Activation::JumpRelu { threshold: 0.1, bandwidth: 0.3 }, plain, 0.0),
        (Activation::GlobalTopK { k: 4 }, plain, 0.1),
        (Activation::GlobalBatchTopK { k: 4 }, Tied::PerSource, 0.1),
        (Activation::TopK { k: 2 }, target, 0.0),
        (Activation::JumpRelu { threshold: 0.1, bandwidth: 0.3 }, target, 0.0),
    ] {
        let shape = CltConfig { tied, ..shape(activation.clone()) };
        let (whole, split) = (scratch("resume-whole"), scratch("resume-split"));
        let moments = if matches!(activation, Activation::TopK { .. }) { Moments::EightBit } else { Moments::F32 };
        let config = TrainConfig { steps: 20, batch_tokens: 100, dead_window: 300, moments, aux, ..TrainConfig::default() };
        let mut one = Trainer::new(&activations, &shape, &config).unwrap();
        one.run().unwrap();
        one.save(&whole).unwrap();

        let part = TrainConfig { checkpoint_every: 10, checkpoint_dir: Some(split.clone()), ..config.clone() };
        let mut first = Trainer::new(&activations, &shape, &part).unwrap();
        first.run().unwrap();
        std::fs::remove_file(split.join("step-00000020.safetensors")).unwrap();
        drop(first);
        let mut second = Trainer::resume(&split, &activations).unwrap();
        assert_eq!(second.steps(), 10);
        let history = second.run().unwrap();
        second.save(&split).unwrap();
        assert!(bytes(&whole, 20) == bytes(&split, 20), "{activation:?} {tied:?}: weights or moments differ");
        let written = whole.join("history.json");
        one.history().save(&written).unwrap();
        let read = History::load(&written).unwrap();
        assert_eq!(read.steps(), 20);
        for (a, b) in one.history().samples.iter().zip(&read.samples) {
            assert!(a.step == b.step && (a.fvu - b.fvu).abs() <= 1e-12, "{a:?} {b:?}");
        }
        for (a, b) in one.history().samples.iter().zip(&history.samples) {
            assert_eq!((a.step, a.tokens), (b.step, b.tokens));
            // JSON keeps all but the last bit of a sample.
            for (a, b) in [(a.l0, b.l0), (a.reconstruction, b.reconstruction)] {
                assert!((a / b - 1.0).abs() < 1e-14, "{a} against {b}");
            }
        }
    }
}

#[test]
fn the_newest_two_are_kept_and_broken_ones_are_named() {
    let activations = activations();
    let place = scratch("resume-keep");
    let config = TrainConfig { steps: 8, batch_tokens: 50, checkpoint_every: 2, checkpoint_dir: Some(place.clone()), ..TrainConfig::default() };
    Trainer::new(&activations, &shape(Activation::TopK { k: 2 }), &config).unwrap().run().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["step-00000006.safetensors", "step-00000008.safetensors"]);
    let newest = place.join(&names[1]);
    let whole = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &whole[..whole.len() - 100]).unwrap();
    let error = Trainer::resume(&place, &activations).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadFile);
    assert!(error.to_string().contains("step-00000008") && error.to_string().contains("step-00000006"), "{error}");
    assert_eq!(Trainer::resume(place.join(&names[0]), &activations).unwrap().steps(), 6);
    assert_eq!(Trainer::resume(scratch("resume-none"), &activations).unwrap_err().kind(), ErrorKind::MissingFile);
    let (x, y) = planted(10, 1);
    let narrow = Activations::from_memory(vec![x[0].clone()], vec![y[0].clone()], 32).unwrap();
    assert_eq!(Trainer::resume(place.join(&names[0]), &narrow).unwrap_err().kind(), ErrorKind::Mismatch);
}
