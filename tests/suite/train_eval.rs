//! Evaluation between steps: the figures of a separate evaluation, and weights that do not know of it.

use crate::support::{scratch, small_model, words};
use cltlab::prelude::*;

fn setting() -> (Model, Corpus, Corpus) {
    let (train, test) = Corpus::from_texts(vec![words(2000, 1)]).unwrap().split(0.8).unwrap();
    (small_model(), train, test)
}

#[test]
fn evaluations_are_those_of_the_same_clt() {
    let (model, train, test) = setting();
    let stream = StreamConfig { context: 32, buffer_tokens: Some(500), ..StreamConfig::default() };
    let activations = Activations::stream(&model, &train, &stream).unwrap();
    let shape = CltConfig { features: 64, activation: Activation::TopK { k: 4 }, ..CltConfig::for_model(&model) };
    let eval = EvalConfig { context: 32, tokens: 256, fidelity_tokens: 64, ..EvalConfig::default() };
    let metrics = scratch("train-eval").join("metrics.jsonl");
    let config = TrainConfig { steps: 6, batch_tokens: 64, eval_every: 3, metrics: Some(metrics.clone()), ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations, &shape, &config).unwrap().held_out(&model, &test, &eval).unwrap();
    let history = trainer.run().unwrap();
    assert_eq!(history.evals.iter().map(|eval| eval.step).collect::<Vec<_>>(), [3, 6]);
    let report = evaluate(&model, &trainer.clt().unwrap(), &test, &eval).unwrap();
    let last = &history.evals[1];
    let fidelity = last.fidelity.as_ref().unwrap();
    assert_eq!((last.fvu, last.l0, last.dead, last.tokens), (report.fvu(), report.l0(), report.dead(), report.tokens));
    assert_eq!((fidelity.kl, fidelity.top1, fidelity.replacement_cross_entropy), (report.kl, report.top1, report.replacement_cross_entropy));
    assert!(last.fvu < history.evals[0].fvu, "six steps are better than three: {history}");
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(&metrics).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    for (step, line) in (1..).zip(&lines) {
        assert_eq!(line.get("held_out").is_some(), step % 3 == 0, "{line}");
    }
    assert!((lines[5]["held_out"]["fidelity"]["kl"].as_f64().unwrap() / fidelity.kl - 1.0).abs() < 1e-12);

    // The same training without it ends with the same weights.
    let plain = TrainConfig { eval_every: 0, metrics: None, ..config };
    let mut other = Trainer::new(&activations, &shape, &plain).unwrap();
    other.run().unwrap();
    let weights = |trainer: &Trainer| trainer.clt().unwrap().decoder(0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(weights(&trainer) == weights(&other));
}

#[test]
fn what_cannot_be_evaluated_is_refused_before_the_first_step() {
    let (x, y) = crate::training::planted(64, 1);
    let activations = Activations::from_memory(x, y, 32).unwrap();
    let config = TrainConfig { steps: 2, batch_tokens: 32, eval_every: 1, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations, &crate::training::shape(Activation::TopK { k: 2 }), &config).unwrap();
    let error = trainer.run().unwrap_err();
    assert_eq!((error.kind(), trainer.steps()), (ErrorKind::BadConfig, 0));
    assert!(error.to_string().contains("TrainConfig::eval_every") && error.to_string().contains("held_out"), "{error}");
    let (model, train, _) = setting();
    let stream = StreamConfig { context: 32, buffer_tokens: Some(100), ..StreamConfig::default() };
    let activations = Activations::stream(&model, &train, &stream).unwrap();
    let shape = CltConfig { features: 64, activation: Activation::TopK { k: 4 }, ..CltConfig::for_model(&model) };
    let trainer = || Trainer::new(&activations, &shape, &config).unwrap();
    let short = Corpus::from_texts(vec![words(3, 1)]).unwrap();
    assert_eq!(trainer().held_out(&model, &short, &EvalConfig { context: 32, ..EvalConfig::default() }).unwrap_err().kind(), ErrorKind::BadInput);
    let wide = EvalConfig { context: 1 << 20, ..EvalConfig::default() };
    assert_eq!(trainer().held_out(&model, &train, &wide).unwrap_err().kind(), ErrorKind::BadConfig);
}

/// A ranking of all layers is measured on the model's own run; the replacement model needs thresholds.
#[test]
fn what_ranks_layers_is_evaluated_without_the_replacement_model() {
    let (model, train, test) = setting();
    let activations = Activations::stream(&model, &train, &StreamConfig { context: 32, buffer_tokens: Some(500), ..StreamConfig::default() }).unwrap();
    let shape = CltConfig { features: 64, activation: Activation::GlobalTopK { k: 4 }, ..CltConfig::for_model(&model) };
    let config = TrainConfig { steps: 6, batch_tokens: 64, ..TrainConfig::default() };
    let eval = EvalConfig { context: 32, tokens: 256, fidelity_tokens: 64, ..EvalConfig::default() };
    let mut trainer = Trainer::new(&activations, &shape, &config).unwrap();
    trainer.run().unwrap();
    let clt = trainer.clt().unwrap();
    let error = evaluate(&model, &clt, &test, &eval).unwrap_err();
    assert!(error.kind() == ErrorKind::BadConfig && error.to_string().contains("EvalConfig::fidelity_tokens"), "{error}");
    assert_eq!(trainer.held_out(&model, &test, &eval).unwrap_err().kind(), ErrorKind::BadConfig);
    let report = evaluate(&model, &clt, &test, &EvalConfig { fidelity_tokens: 0, ..eval.clone() }).unwrap();
    assert!((report.l0() - 4.0).abs() < 1e-9, "{report}");
    let jump = clt.calibrate(&activations, &Calibration { tokens: 400, ..Calibration::default() }).unwrap();
    let other = evaluate(&model, &jump, &test, &eval).unwrap();
    println!("ranked:\n{report}\ncalibrated:\n{other}");
    assert!((other.l0() - 4.0).abs() < 1.0 && (other.fvu() - report.fvu()).abs() < 0.1 && other.kl.is_finite());
}
