//! Training towards an L0: it is met, the end moves there, and a resumed run does the same.

use crate::support::scratch;
use crate::training::{planted, shape};
use cltlab::activations::Activations;
use cltlab::clt::Activation;
use cltlab::train::{TrainConfig, Trainer};
use cltlab::ErrorKind;

fn activations() -> Activations {
    let (x, y) = planted(4096, 1);
    Activations::from_memory(x, y, 32).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig { steps: 3_000, batch_tokens: 256, lr: 3e-3, sparsity: Some(6.0), sparsity_ramp: 1.0, decay: 0.1, target_l0: Some(6.0), ..TrainConfig::default() }
}

const JUMP: Activation = Activation::JumpRelu { threshold: 0.05, bandwidth: 0.5 };

/// Decay 0 ends where CLT-Forge does.
#[test]
fn sparsity_rises_until_the_l0_is_reached() {
    let activations = activations();
    for (activation, decay) in [(JUMP, 0.1), (JUMP, 0.0), (Activation::Relu, 0.1)] {
        let config = TrainConfig { decay, ..config() };
        let mut trainer = Trainer::new(&activations, &shape(activation.clone()), &config).unwrap();
        let history = trainer.run().unwrap();
        let reached = trainer.reached_l0().unwrap();
        let mean = |to: usize| history.samples[to - 20..to].iter().map(|sample| sample.l0).sum::<f64>() / 20.0;
        println!("{activation:?}, decay {decay}: reached at {reached}, ended at {}, L0 {:.2} then, {:.2} at the end; {history}", history.steps(), mean(reached), mean(history.steps()));
        assert!(mean(reached) <= 6.0 && mean(reached - 1) > 6.0);
        assert_eq!((history.steps(), trainer.is_done()), (reached + (decay * 3_000.0) as usize, true));
        assert!((mean(history.steps()) - 6.0).abs() < 0.6, "{}", mean(history.steps()));
        if decay > 0.0 {
            assert!(history.last().unwrap().lr < 0.02 * config.lr, "the rate has fallen at the new end");
        }
    }
}

#[test]
fn a_resumed_run_reaches_it_at_the_same_step() {
    let activations = activations();
    let config = config();
    let mut whole = Trainer::new(&activations, &shape(JUMP), &config).unwrap();
    whole.run().unwrap();
    let reached = whole.reached_l0().unwrap();
    for at in [reached - 1, reached, reached + 7] {
        let place = scratch(&format!("target-l0-{}", at - (reached - 1)));
        let mut first = Trainer::new(&activations, &shape(JUMP), &config).unwrap();
        first.run_steps(at).unwrap();
        first.save(&place).unwrap();
        let mut second = Trainer::resume(&place, &activations).unwrap();
        second.set_config(&config).unwrap();
        second.run().unwrap();
        assert_eq!((second.reached_l0(), second.steps()), (Some(reached), whole.steps()));
        let weights = |trainer: &Trainer| trainer.clt().unwrap().encoder(1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(weights(&second) == weights(&whole), "resumed at {at}: other weights");
    }
}

#[test]
fn targets_that_nothing_pulls_towards() {
    let activations = activations();
    for (activation, change, word) in [
        (Activation::TopK { k: 4 }, config(), "top_k 4"),
        (JUMP, TrainConfig { sparsity: Some(0.0), ..config() }, "sparsity is 0"),
        (JUMP, TrainConfig { target_l0: Some(0.0), ..config() }, "above 0"),
        (JUMP, TrainConfig { target_l0: Some(128.0), ..config() }, "less than 128"),
    ] {
        let error = Trainer::new(&activations, &shape(activation), &change).unwrap_err();
        assert!(error.kind() == ErrorKind::BadConfig && error.to_string().contains("TrainConfig::target_l0") && error.to_string().contains(word), "{error}");
    }
}
