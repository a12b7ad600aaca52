//! Adam's settings as `Trainer::clt()` shows them: `betas`, `eps` and `lazy` against Adam in f64, written out, on one layer
//! of TopK.

use crate::numbers::Numbers;
use crate::support::{max_difference, scratch};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, Clt, CltConfig};
use cltlab::train::{Moments, TrainConfig, Trainer};

const D: usize = 9;
const F: usize = 40;
const T: usize = 16;
const K: usize = 2;
const STEPS: usize = 25;
const LR: f64 = 0.02;

fn side(seed: u64) -> Vec<f32> {
    Numbers::new(seed).take(T * D)
}

fn trainer(config: TrainConfig) -> Trainer {
    let activations = Activations::from_memory(vec![side(1)], vec![side(2)], D).unwrap();
    let shape = CltConfig { layers: 1, width: D, features: F, activation: Activation::TopK { k: K }, ..CltConfig::default() };
    Trainer::new(&activations, &shape, &config).unwrap()
}

/// Every step takes all tokens, at one rate, in the activations' own units.
fn config(betas: (f64, f64), eps: f64, lazy: bool) -> TrainConfig {
    TrainConfig { steps: STEPS, batch_tokens: T, lr: LR, betas, eps, lazy, warmup: 0.0, decay: 0.0, clip: None, dead: 0.0, normalise: false, ..TrainConfig::default() }
}

/// Encoder, its bias, decoder, its bias.
type Arrays = [Vec<f64>; 4];

fn arrays(clt: &Clt) -> Arrays {
    [clt.encoder(0).unwrap(), clt.encoder_bias(0).unwrap(), clt.decoder(0).unwrap(), clt.decoder_bias(0).unwrap()].map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect())
}

/// Gradients of the mean over tokens of ‖ŷ − y‖², and which features fired.
fn gradients([we, be, wd, bd]: &Arrays, x: &[f64], y: &[f64]) -> (Arrays, Vec<bool>) {
    let mut all = [vec![0.0; F * D], vec![0.0; F], vec![0.0; F * D], vec![0.0; D]];
    let mut fired = vec![false; F];
    for p in 0..T {
        let (x, y) = (&x[p * D..][..D], &y[p * D..][..D]);
        let h: Vec<f64> = (0..F).map(|f| be[f] + (0..D).map(|c| we[f * D + c] * x[c]).sum::<f64>()).collect();
        let mut order: Vec<usize> = (0..F).filter(|&f| h[f] > 0.0).collect();
        order.sort_by(|&a, &b| h[b].total_cmp(&h[a]));
        order.truncate(K);
        let e: Vec<f64> = (0..D).map(|c| 2.0 / T as f64 * (bd[c] + order.iter().map(|&f| h[f] * wd[f * D + c]).sum::<f64>() - y[c])).collect();
        (0..D).for_each(|c| all[3][c] += e[c]);
        for &f in &order {
            fired[f] = true;
            let back: f64 = (0..D).map(|c| e[c] * wd[f * D + c]).sum();
            all[1][f] += back;
            for c in 0..D {
                all[0][f * D + c] += back * x[c];
                all[2][f * D + c] += e[c] * h[f];
            }
        }
    }
    (all, fired)
}

/// All steps of Adam; also how many decoder rows rested at the end with a moment that still moves them.
fn adam(mut w: Arrays, (b1, b2): (f64, f64), eps: f64) -> (Arrays, usize) {
    let wide = |seed: u64| side(seed).into_iter().map(f64::from).collect::<Vec<f64>>();
    let (x, y) = (wide(1), wide(2));
    let mut m = w.clone().map(|w| vec![0.0; w.len()]);
    let mut v = m.clone();
    let mut resting = 0;
    for t in 1..=STEPS as i32 {
        let (g, fired) = gradients(&w, &x, &y);
        resting = (0..F).filter(|&f| !fired[f] && m[2][f * D] != 0.0).count();
        for at in 0..4 {
            for i in 0..g[at].len() {
                let g = g[at][i];
                m[at][i] = b1 * m[at][i] + (1.0 - b1) * g;
                v[at][i] = b2 * v[at][i] + (1.0 - b2) * g * g;
                let (mh, vh) = (m[at][i] / (1.0 - b1.powi(t)), v[at][i] / (1.0 - b2.powi(t)));
                w[at][i] -= LR * mh / (vh.sqrt() + eps);
            }
        }
    }
    (w, resting)
}

fn farthest(a: &Arrays, b: &Arrays) -> f64 {
    a.iter().zip(b).map(|(a, b)| max_difference(a, b)).fold(0.0, crate::support::worse)
}

#[test]
fn betas_eps_and_lazy_equal_adam_written_out() {
    let usual = (0.9, 0.999);
    let mut ends: Vec<Arrays> = Vec::new();
    for (betas, eps) in [(usual, 1e-8), ((0.5, 0.9), 1e-8), ((0.8, 0.95), 1e-6), (usual, 1e-3), ((0.5, 0.9), 1e-3), ((0.0, 0.99), 1e-3)] {
        let start = arrays(&trainer(config(betas, eps, true)).clt().unwrap());
        let (expected, resting) = adam(start.clone(), betas, eps);
        let moved = farthest(&expected, &start);
        for lazy in [false, true] {
            let mut trainer = trainer(config(betas, eps, lazy));
            trainer.run().unwrap();
            let off = farthest(&arrays(&trainer.clt().unwrap()), &expected) / moved;
            println!("betas {betas:?}, eps {eps:e}, lazy {lazy}: {off:.1e} of the largest move; {resting} rows rest");
            // Rows at rest add eps to another √v: see `TrainConfig::lazy`.
            let allowed = if lazy && eps > 1e-6 { 0.3 } else { 1e-4 };
            assert!(off < allowed, "betas {betas:?}, eps {eps:e}, lazy {lazy}: {off}");
        }
        assert!(resting > 0 || betas.0 == 0.0, "no row rests");
        // Each setting matters.
        assert!(ends.iter().all(|other| farthest(other, &expected) > 1e-3 * moved), "betas {betas:?}, eps {eps:e}: the weights of another setting");
        ends.push(expected);
    }
}

/// What `Trainer::clt()` gives is what a checkpoint gives: the same bits in every file.
#[test]
fn a_clt_is_that_of_its_checkpoint_at_every_setting() {
    let activations = Activations::from_memory(vec![side(1)], vec![side(2)], D).unwrap();
    let files = |clt: &Clt, name: &str| -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let place = scratch(name).join("clt");
        clt.save(&place, &Default::default()).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap()).map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect();
        files.sort();
        files
    };
    for eps in [1e-3, 1e-8] {
        for betas in [(0.9, 0.999), (0.5, 0.9)] {
            for (lazy, moments) in [(true, Moments::F32), (false, Moments::F32), (true, Moments::EightBit), (false, Moments::EightBit)] {
                for normalise in [false, true] {
                    // Batches that are not all tokens, and a rate that rises and falls.
                    let config = TrainConfig { batch_tokens: 5, normalise, moments, warmup: 0.2, decay: 0.3, clip: Some(1.0), ..config(betas, eps, lazy) };
                    let mut trainer = trainer(config);
                    trainer.run().unwrap();
                    let folder = scratch("adam-checkpoint");
                    trainer.save(&folder).unwrap();
                    let resumed = Trainer::resume(&folder, &activations).unwrap();
                    let (own, again) = (files(&trainer.clt().unwrap(), "adam-own"), files(&resumed.clt().unwrap(), "adam-again"));
                    assert!(own.len() >= 3 && own == again, "eps {eps:e}, betas {betas:?}, lazy {lazy}, {moments:?}, normalise {normalise}");
                }
            }
        }
    }
}
