//! The saved CLT is the one in training: the same reconstruction in the model's own units.

use crate::support::scratch;
use crate::training::{planted, shape};
use cltlab::candle::Device;
use cltlab::clt::SparseCode;
use cltlab::prelude::*;

const TOKENS: usize = 300;
const WIDTH: usize = 32;

fn rows(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, (TOKENS, WIDTH), &Device::Cpu).unwrap()
}

/// Squared error of a CLT per token, summed over layers, by its own encode and decode.
fn error_of(clt: &Clt, x: &[Vec<f32>], y: &[Vec<f32>]) -> f64 {
    let code = SparseCode { layers: x.iter().enumerate().map(|(l, x)| clt.encode_layer(l, &rows(x)).unwrap()).collect() };
    let mut total = 0.0;
    let inputs: Vec<Tensor> = x.iter().map(|x| rows(x)).collect();
    for (l, decoded) in clt.decode(&code, &inputs).unwrap().iter().enumerate() {
        let decoded = decoded.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        total += decoded.iter().zip(&y[l]).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / TOKENS as f64;
    }
    total
}

/// Train, save, load. Without normalisation the next step's loss is the loaded CLT's own error; with
/// it, a training that begins with the loaded CLT has the loss of the one that was saved.
#[test]
fn a_saved_clt_reconstructs_as_the_live_one() {
    let (x, y) = planted(TOKENS, 1);
    let activations = Activations::from_memory(x.clone(), y.clone(), WIDTH).unwrap();
    let mut shapes = Vec::new();
    for activation in [Activation::TopK { k: 4 }, Activation::Relu, Activation::JumpRelu { threshold: 0.05, bandwidth: 0.5 }] {
        shapes.push(shape(activation.clone()));
        shapes.push(CltConfig { skip: true, ..shape(activation.clone()) });
        shapes.push(CltConfig { per_layer: true, ..shape(activation) });
    }
    for shape in shapes {
        for normalise in [false, true] {
            let name = format!("{} skip {} per layer {} normalised {normalise}", shape.activation.label(), shape.skip, shape.per_layer);
            // All tokens in each step, so that losses of different trainings compare.
            let config = TrainConfig { steps: 60, batch_tokens: TOKENS, normalise, ..TrainConfig::default() };
            let mut live = Trainer::new(&activations, &shape, &config).unwrap();
            live.run_steps(30).unwrap();
            let folder = scratch("saved");
            live.clt().unwrap().save(&folder, &Default::default()).unwrap();
            let clt = Clt::load(folder, &CltLoadConfig::on(&Device::Cpu)).unwrap();
            let next = live.run_steps(1).unwrap().samples[30].reconstruction;
            let again = Trainer::from_clt(&activations, &clt, clt.config(), &config).unwrap().run_steps(1).unwrap().samples[0].reconstruction;
            println!("{name}: live {next}, loaded {again}: {:.1e}", again / next - 1.0);
            assert!((again / next - 1.0).abs() < 1e-5, "{name}: {next} against {again}");
            if !normalise {
                let own = error_of(&clt, &x, &y);
                assert!((own / next - 1.0).abs() < 1e-5, "{name}: {next} against {own}");
            }
        }
    }
}
