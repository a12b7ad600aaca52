//! What cannot be trained is refused before anything is allocated: the field and the remedy are named.

use crate::support::{small_model, words};
use cltlab::device::{free_memory, require_memory};
use cltlab::prelude::*;

#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    words.iter().for_each(|word| assert!(error.to_string().contains(word), "'{error}' does not say '{word}'"));
}

fn activations() -> Activations {
    let wave = |phase: f32| (0..64 * 8).map(|i| (i as f32 * phase).sin()).collect::<Vec<f32>>();
    Activations::from_memory(vec![wave(0.7), wave(0.9)], vec![wave(0.3), wave(0.5)], 8).unwrap()
}

fn shape(features: usize, activation: Activation) -> CltConfig {
    CltConfig { layers: 2, width: 8, features, activation, ..CltConfig::default() }
}

/// Predictions far beyond any memory: each says which field is the cause, and about what would fit.
#[test]
fn the_largest_part_is_named() {
    let config = TrainConfig { steps: 2, batch_tokens: 32, ..TrainConfig::default() };
    let refused = |shape: &CltConfig, config: &TrainConfig| Trainer::new(&activations(), shape, config).unwrap_err();
    let top = Activation::TopK { k: 4 };
    let error = refused(&shape(2_000_000_000, top.clone()), &config);
    println!("{error}");
    says(&error, ErrorKind::OutOfMemory, &["CltConfig::features 2000000000", "weights and moments", "free", "fewer features", "fit", "EightBit"]);
    let compact = TrainConfig { moments: Moments::EightBit, ..config.clone() };
    assert!(!refused(&shape(2_000_000_000, top), &compact).to_string().contains("EightBit"));
    let error = refused(&shape(100_000, Activation::Relu), &TrainConfig { batch_tokens: 100_000_000, ..config.clone() });
    println!("{error}");
    says(&error, ErrorKind::OutOfMemory, &["TrainConfig::batch_tokens 100000000", "for a step", "fewer tokens", "fit"]);
    // What it says would fit does: the number in the remedy, less what others took meanwhile.
    let fits: f64 = error.to_string().split("about ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let fewer = TrainConfig { batch_tokens: (0.5 * fits) as usize, ..config.clone() };
    let need = MemoryNeed::of(&shape(100_000, Activation::Relu), &fewer);
    assert!(need.total() < free_memory().unwrap() && need.total() > free_memory().unwrap() / 4, "{need}");
    says(&require_memory("a task", u64::MAX, "do less").unwrap_err(), ErrorKind::OutOfMemory, &["a task", "free", "do less"]);
}

/// Weights and moments as counted by hand; the buffer of a stream is part of the need.
#[test]
fn the_need_is_counted() {
    // Encoders, decoders to three targets, biases: 12 bytes each.
    let weights = 2 * 100 * 8 + 3 * 100 * 8 + 2 * (100 + 8);
    let config = TrainConfig { batch_tokens: 32, ..TrainConfig::default() };
    let need = MemoryNeed::of(&shape(100, Activation::Relu), &config);
    assert_eq!((need.weights, need.buffer), (12 * weights, 0));
    let wider = MemoryNeed::of(&shape(100, Activation::Relu), &TrainConfig { batch_tokens: 64, ..config.clone() });
    assert_eq!((wider.weights, wider.step), (need.weights, 2 * need.step));
    assert_eq!(need.buffered(&activations()).buffer, 0, "is in memory already");
    let model = small_model();
    let text = Corpus::from_texts(vec![words(1500, 1)]).unwrap();
    for (ahead, times) in [(false, 1), (true, 2)] {
        let stream = StreamConfig { context: 16, buffer_tokens: Some(300), ahead: Some(ahead), ..StreamConfig::default() };
        let activations = Activations::stream(&model, &text, &stream).unwrap();
        // Twenty blocks of fifteen tokens, two sides of three layers of 32 numbers.
        assert_eq!(need.buffered(&activations).buffer, times * 300 * 2 * 3 * 32 * 4);
    }
}

#[test]
fn shapes_and_texts_that_cannot_be() {
    let config = TrainConfig { steps: 2, batch_tokens: 32, ..TrainConfig::default() };
    let refused = |shape: CltConfig| Trainer::new(&activations(), &shape, &config).unwrap_err();
    for k in [0, 17] {
        for activation in [Activation::TopK { k }, Activation::BatchTopK { k }] {
            says(&refused(shape(16, activation)), ErrorKind::BadConfig, &["Activation::k", &k.to_string(), "1 to 16"]);
        }
    }
    says(&refused(shape(0, Activation::Relu)), ErrorKind::BadConfig, &["CltConfig::features", "at least 1"]);
    let model = small_model();
    let short = Corpus::from_texts(vec![words(3, 1)]).unwrap();
    says(&Activations::stream(&model, &short, &StreamConfig { context: 64, ..StreamConfig::default() }).unwrap_err(), ErrorKind::BadInput, &["corpus", "at least one context of 63", "longer text or a shorter context"]);
}

/// A place in the data means something in the same data only.
#[test]
fn going_on_with_other_data_is_refused() {
    let model = small_model();
    let text = |seed: u64| Corpus::from_texts(vec![words(1700, seed)]).unwrap();
    let stream = StreamConfig { context: 16, buffer_tokens: Some(300), max_tokens: Some(1600), ..StreamConfig::default() };
    let folder = crate::support::scratch("other-data");
    let shape = CltConfig { features: 32, activation: Activation::TopK { k: 4 }, ..CltConfig::for_model(&model) };
    let config = TrainConfig { steps: 3, batch_tokens: 48, ..TrainConfig::default() };
    let streamed = |seed: u64, stream: &StreamConfig| Activations::stream(&model, &text(seed), stream).unwrap();
    let mut trainer = Trainer::new(&streamed(1, &stream), &shape, &config).unwrap();
    trainer.run().unwrap();
    trainer.save(&folder).unwrap();
    for (activations, words) in [
        (streamed(2, &stream), ["text", "from_clt"]),
        (streamed(1, &StreamConfig { seed: 1, ..stream.clone() }), ["seed", "got 1"]),
        (streamed(1, &StreamConfig { passes: 2, ..stream.clone() }), ["passes", "got 2"]),
        (streamed(1, &StreamConfig { buffer_tokens: Some(600), ..stream.clone() }), ["buffer_tokens", "got 40"]),
    ] {
        says(&Trainer::resume(&folder, &activations).unwrap_err(), ErrorKind::Mismatch, &words);
    }
    Trainer::resume(&folder, &streamed(1, &StreamConfig { ahead: Some(true), ..stream })).unwrap();
}
