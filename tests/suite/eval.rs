//! Streaming, training and evaluation on a small random model and texts drawn from its own distribution, which no other
//! predictor expects better (Gibbs' inequality).

use crate::support::small_model;
use candle_core::{DType, Device, Tensor};
use cltlab::activations::{Activations, StoreConfig, StreamConfig};
use cltlab::clt::{Activation, Clt, CltConfig, LayerWeights};
use cltlab::eval::{evaluate, EvalConfig};
use cltlab::model::{Capture, GenerateConfig};
use cltlab::train::{TrainConfig, Trainer};
use cltlab::{Corpus, ErrorKind, Model};

/// Texts drawn from the model's own distribution after its special token.
fn corpus(model: &Model) -> Corpus {
    let text = |seed: u64| {
        let config = GenerateConfig { max_tokens: model.context() - 1, temperature: 1.0, seed, ..GenerateConfig::default() };
        let ids = model.generate(&[model.special_token().unwrap()], &config).unwrap().tokens;
        ids.iter().filter(|id| Some(**id) != model.special_token()).map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
    };
    Corpus::from_texts((0..60).map(text).filter(|text| !text.is_empty()).collect()).unwrap()
}

fn stream() -> StreamConfig {
    StreamConfig { context: 64, buffer_tokens: Some(512), ..StreamConfig::default() }
}

fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * b.abs().max(1e-3), "{what}: {a} {b}");
}

#[test]
fn a_clt_is_trained_and_measured() {
    let model = small_model();
    let corpus = corpus(&model);
    let (train, test) = corpus.split(0.8).unwrap();
    let activations = Activations::stream(&model, &train, &StreamConfig { passes: 4, ..stream() }).unwrap();
    let shape = CltConfig { features: 256, activation: Activation::BatchTopK { k: 16 }, ..CltConfig::for_model(&model) };
    let config = TrainConfig { steps: 300, batch_tokens: 128, lr: 2e-3, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations, &shape, &config).unwrap();
    let history = trainer.run().unwrap();
    assert!(history.falls(|s| s.fvu));
    let clt = trainer.clt().unwrap();
    let settings = EvalConfig { context: 64, ..EvalConfig::default() };
    let report = evaluate(&model, &clt, &test, &settings).unwrap();
    println!("{history}\n{report}");
    assert!(report.layers.iter().all(|layer| layer.fvu < 1.0));
    assert!(report.cross_entropy < report.replacement_cross_entropy && report.replacement_cross_entropy < report.zero_ablation_ce);
    assert!(report.kl > 0.0 && report.top1 > 0.2 && report.loss_recovered() > 0.3);

    // The same by hand: one context at a time, all in f64.
    let blocks = test.blocks(model.tokenizer().unwrap(), model.special_token(), 64, None).unwrap();
    let (mut error, mut ys, mut active, mut tokens, mut loss, mut predictions) = (0f64, Vec::new(), 0, 0, 0f64, 0);
    let layer = model.layers() - 1;
    for block in (0..blocks.len()).map(|i| blocks.block(i).unwrap()) {
        let run = model.run(block, &Capture::default()).unwrap();
        let code = clt.encode(&run).unwrap();
        let decoded = clt.decode(&code, &[]).unwrap()[layer].to_vec2::<f32>().unwrap();
        let output = run.layers[layer].mlp_out.as_ref().unwrap().to_vec2::<f32>().unwrap();
        let logits = run.logits.as_ref().unwrap().to_vec2::<f32>().unwrap();
        for p in 1..block.len() {
            if p + 1 < block.len() {
                let total: f64 = logits[p].iter().map(|&v| (v as f64).exp()).sum();
                loss += total.ln() - logits[p][block[p + 1] as usize] as f64;
                predictions += 1;
            }
            if model.special_token() == Some(block[p]) {
                continue;
            }
            error += decoded[p].iter().zip(&output[p]).map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>();
            active += code.layers[layer].token(p).0.len();
            ys.push(output[p].clone());
            tokens += 1;
        }
    }
    let mean: Vec<f64> = (0..model.width()).map(|c| ys.iter().map(|y| y[c] as f64).sum::<f64>() / tokens as f64).collect();
    let spread: f64 = ys.iter().map(|y| y.iter().zip(&mean).map(|(&y, m)| (y as f64 - m).powi(2)).sum::<f64>()).sum();
    assert_eq!((tokens, predictions), (report.tokens, report.fidelity_tokens));
    close(report.layers[layer].fvu, error / spread, 1e-4, "FVU");
    close(report.layers[layer].l0, active as f64 / tokens as f64, 1e-3, "L0");
    close(report.cross_entropy, loss / predictions as f64, 1e-4, "cross-entropy");
}

/// All weights 0.
fn empty(model: &Model) -> Clt {
    let shape = CltConfig { features: 8, activation: Activation::Relu, ..CltConfig::for_model(model) };
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let (l, d) = (shape.layers, shape.width);
    let weights = (0..l)
        .map(|i| LayerWeights { encoder: zeros(&[8, d]), encoder_bias: zeros(&[8]), threshold: None, decoder: zeros(&[8, l - i, d]), decoder_bias: zeros(&[d]), skip: None })
        .collect();
    Clt::new(shape, weights).unwrap()
}

/// A CLT that says nothing is zero ablation.
#[test]
fn an_empty_clt_is_zero_ablation() {
    let model = small_model();
    let clt = empty(&model);
    let (shape, l) = (clt.config().clone(), clt.layers());
    let text = corpus(&model);
    let report = evaluate(&model, &clt, &text, &EvalConfig { context: 64, tokens: 512, fidelity_tokens: 256, ..EvalConfig::default() }).unwrap();
    assert_eq!(report.replacement_cross_entropy, report.zero_ablation_ce);
    assert!(report.layers.iter().all(|layer| layer.fvu >= 1.0 && layer.l0 == 0.0 && layer.dead == 1.0));
    let other = Clt::new(CltConfig { model_fingerprint: "another".into(), ..shape }, (0..l).map(|i| LayerWeights {
        encoder: clt.encoder(i).unwrap().clone(),
        encoder_bias: clt.encoder_bias(i).unwrap().clone(),
        threshold: None,
        decoder: clt.decoder(i).unwrap().clone(),
        decoder_bias: clt.decoder_bias(i).unwrap().clone(),
        skip: None,
    }).collect()).unwrap();
    assert_eq!(evaluate(&model, &other, &text, &EvalConfig { context: 64, ..EvalConfig::default() }).unwrap_err().kind(), ErrorKind::Mismatch);
    let long = evaluate(&model, &clt, &text, &EvalConfig { context: 100_000, ..EvalConfig::default() }).unwrap_err();
    assert!(long.kind() == ErrorKind::BadConfig && long.to_string().contains("context"));
}

/// A streamed training that stops and resumes is the one that did not, over several fillings of the buffer.
#[test]
fn streams_resume_bit_for_bit() {
    let model = small_model();
    let corpus = corpus(&model);
    let activations = Activations::stream(&model, &corpus, &StreamConfig { passes: 2, ..stream() }).unwrap();
    let shape = CltConfig { features: 64, activation: Activation::TopK { k: 8 }, ..CltConfig::for_model(&model) };
    let config = TrainConfig { steps: 24, batch_tokens: 100, ..TrainConfig::default() };
    let mut whole = Trainer::new(&activations, &shape, &config).unwrap();
    whole.run().unwrap();
    let place = crate::support::scratch("stream-resume");
    let part = TrainConfig { checkpoint_every: 11, checkpoint_dir: Some(place.clone()), ..config };
    let mut first = Trainer::new(&activations, &shape, &part).unwrap();
    first.run().unwrap();
    let mut second = Trainer::resume(place.join("step-00000011.safetensors"), &activations).unwrap();
    second.run().unwrap();
    let bits = |trainer: &Trainer| -> Vec<u32> {
        let clt = trainer.clt().unwrap();
        (0..clt.layers()).flat_map(|l| clt.decoder(l).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()).map(f32::to_bits).collect()
    };
    assert!(bits(&whole) == bits(&second));
    for (field, config) in [
        ("context", StreamConfig { context: 1, ..stream() }),
        ("passes", StreamConfig { passes: 0, ..stream() }),
        ("exclude_first", StreamConfig { exclude_first: 64, ..stream() }),
    ] {
        let error = Activations::stream(&model, &corpus, &config).unwrap_err();
        assert!(error.kind() == ErrorKind::BadConfig && error.to_string().contains(field), "{error}");
    }
    let short = Corpus::from_texts(vec!["Hi".into()]).unwrap();
    assert_eq!(Activations::stream(&model, &short, &stream()).unwrap_err().kind(), ErrorKind::BadInput);
}

/// Tokens that are long at any layer, found by hand in the runs of whole contexts.
#[test]
fn long_tokens_are_left_out() {
    let model = small_model();
    let corpus = corpus(&model);
    let blocks = corpus.blocks(model.tokenizer().unwrap(), model.special_token(), 64, None).unwrap();
    let multiple = 1.8;
    let (mut stay, mut all) = (0, 0);
    for block in (0..blocks.len()).map(|i| blocks.block(i).unwrap()) {
        let run = model.run(block, &Capture::default()).unwrap();
        let kept: Vec<usize> = (1..block.len()).filter(|&p| Some(block[p]) != model.special_token()).collect();
        let mut out = vec![false; block.len()];
        for site in run.layers.iter().flat_map(|layer| [layer.resid_mid.as_ref().unwrap(), layer.mlp_out.as_ref().unwrap()]) {
            let rows = site.to_vec2::<f32>().unwrap();
            let norms: Vec<f32> = kept.iter().map(|&p| rows[p].iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
            let mut sorted = norms.clone();
            sorted.sort_by(f32::total_cmp);
            kept.iter().zip(&norms).for_each(|(&p, &norm)| out[p] |= norm > sorted[sorted.len() / 2] * multiple);
        }
        all += kept.len();
        stay += kept.iter().filter(|&&p| !out[p]).count();
    }
    assert!(stay > all / 4 && stay < all, "{stay} of {all} stay");
    let clt = empty(&model);
    let report = |max_norm| evaluate(&model, &clt, &corpus, &EvalConfig { context: 64, tokens: 1 << 20, fidelity_tokens: 0, max_norm }).unwrap().tokens;
    assert_eq!((report(Some(f64::from(multiple))), report(None)), (stay, all));
    let config = StoreConfig { context: 64, max_norm: Some(f64::from(multiple)), ..StoreConfig::default() };
    let store = Activations::store(&model, &corpus, crate::support::scratch("long-tokens"), &config).unwrap();
    assert_eq!(store.tokens(), stay as u64);
    let bad = StreamConfig { max_norm: Some(0.5), ..stream() };
    assert_eq!(Activations::stream(&model, &corpus, &bad).unwrap_err().kind(), ErrorKind::BadConfig);
}
