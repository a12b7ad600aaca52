//! The model that comes with the library: equal to transformers, as accurate as PyTorch found it, and with the circuit that
//! its card describes.

use crate::support::{assert_close, fixture, root, says, tensors, values};
use cltlab::candle::{DType, Device, IndexOp, Tensor};
use cltlab::model::{Capture, Freeze};
use cltlab::prelude::*;
use cltlab::states::{Facts, QuestionToken, StateFeatures, SwapConfig};
use std::collections::HashMap;

fn model() -> Model {
    Model::load("states", &LoadConfig::on(&Device::Cpu)).unwrap()
}

fn top(run: &Run) -> u32 {
    let logits = values(run.logits.as_ref().unwrap());
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

fn id(model: &Model, name: &str) -> u32 {
    model.tokenizer().unwrap().encode(&format!(" {name}")).unwrap()[0]
}

/// Every (city, attribute) with its answer's token, of the held-out questions.
fn held_out(model: &Model, facts: &Facts) -> HashMap<String, Vec<(String, String, u32)>> {
    let answered = |(city, attribute): &(String, String)| (city.clone(), attribute.clone(), id(model, facts.answer(attribute, city).unwrap()));
    facts.held_out.iter().map(|(name, questions)| (name.clone(), questions.iter().map(answered).collect())).collect()
}

#[test]
fn it_equals_transformers_in_f32() {
    let path = fixture("states/expected.safetensors");
    let expected = tensors(&path);
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let prompts = header.metadata().clone().unwrap();
    assert_eq!(prompts.len(), 4);
    let model = model();
    for (number, prompt) in prompts {
        let run = model.run(&prompt, &Capture::default()).unwrap();
        let ids: Vec<u32> = expected[&format!("{number}.ids")].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        assert_eq!(run.tokens, ids, "{prompt}");
        let logits = run.logits.as_ref().unwrap();
        assert_close(&prompt, &values(&logits.get(ids.len() - 1).unwrap()), &values(&expected[&format!("{number}.logits")]), 1e-4);
        for (l, layer) in run.layers.iter().enumerate() {
            assert_close(&format!("resid_mid {l}"), &values(layer.resid_mid.as_ref().unwrap()), &values(&expected[&format!("{number}.resid_mid.{l}")]), 1e-4);
            assert_close(&format!("mlp_out {l}"), &values(layer.mlp_out.as_ref().unwrap()), &values(&expected[&format!("{number}.mlp_out.{l}")]), 1e-4);
        }
    }
}

#[test]
fn by_name_it_is_the_committed_folder_and_text() {
    let folder = root().join("models/states");
    let (named, loaded) = (model(), Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap());
    assert_eq!((named.fingerprint(), named.name()), (loaded.fingerprint(), "states"));
    let size: u64 = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap()).filter(|data| data.is_file()).map(|data| data.len()).sum();
    assert!(size < 6_000_000, "{size} bytes");
    assert_eq!(cltlab::model::Summary::read("states").unwrap().parameters(), named.summary().parameters());
    let text = Corpus::load("states", &Default::default()).unwrap();
    let few = Corpus::load("states", &TextConfig { max_bytes: Some(10_000), ..TextConfig::default() }).unwrap();
    assert!(text.documents() > 13_000 && (100..2_000).contains(&few.documents()), "{} and {}", text.documents(), few.documents());
}

/// What PyTorch measured on the same questions is in known.json.
#[test]
fn held_out_questions_are_answered_as_often_as_pytorch_found() {
    let (model, facts) = (model(), Facts::load().unwrap());
    let figures = facts.measured.iter().find(|figures| figures["seed"].as_u64() == Some(facts.seed)).unwrap();
    for (name, questions) in held_out(&model, &facts) {
        let right = questions.iter().filter(|(city, attribute, answer)| top(&model.run(facts.question(attribute, city), &Capture::last_logits()).unwrap()) == *answer).count();
        let (got, expected) = (right as f64 / questions.len() as f64, figures["accuracy"][format!("two_hop_{name}")].as_f64().unwrap());
        println!("{name}: {got:.4} of {}, PyTorch {expected:.4}", questions.len());
        // A tie within rounding may fall either way.
        assert!((got - expected).abs() < 0.01 && got >= 0.95, "{name}: {got}, PyTorch {expected}");
    }
    for seed in &facts.measured {
        for name in ["two_hop_pairs", "two_hop_attributes", "two_hop_cities"] {
            assert!(seed["accuracy"][name].as_f64().unwrap() >= 0.95, "{seed}");
        }
        assert!(seed["accuracy"]["one_hop"].as_f64().unwrap() >= 0.99, "{seed}");
    }
    assert!(facts.measured.len() >= 3, "{} seeds", facts.measured.len());
}

/// The state is not in the city's embedding; block 0's MLP writes most of it there, block 1 completes it; without that MLP the
/// questions cannot be answered; another city's residual stream in its place gives the other answer, until attention took it.
#[test]
fn the_circuit_is_the_one_that_the_card_describes() {
    let (model, facts) = (model(), Facts::load().unwrap());
    let cities: Vec<(&str, usize, usize)> = facts.states.iter().enumerate().flat_map(|(s, state)| state.cities.iter().enumerate().map(move |(k, city)| (city.as_str(), s, k))).collect();
    let runs: Vec<Run> = cities.iter().map(|(city, ..)| model.run(facts.question("capital", city), &Capture::default()).unwrap()).collect();
    let place = runs[0].tokens.len() - 2;
    let at = |run: &Run, layer: usize| -> Vec<f32> { values(&run.layers[layer].resid_pre.as_ref().unwrap().get(place).unwrap()) };
    // Nearest mean of the state's first five cities, for its other cities.
    let probe = |layer: usize| {
        let means: Vec<Vec<f32>> = (0..facts.states.len()).map(|state| {
            let own: Vec<Vec<f32>> = cities.iter().zip(&runs).filter(|((_, s, k), _)| *s == state && *k < 5).map(|(_, run)| at(run, layer)).collect();
            (0..model.width()).map(|i| own.iter().map(|x| x[i]).sum::<f32>() / own.len() as f32).collect()
        }).collect();
        let rest: Vec<_> = cities.iter().zip(&runs).filter(|((_, _, k), _)| *k >= 5).collect();
        let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() / (a.iter().map(|a| a * a).sum::<f32>() * b.iter().map(|b| b * b).sum::<f32>()).sqrt();
        let right = rest.iter().filter(|((_, s, _), run)| {
            let x = at(run, layer);
            (0..means.len()).max_by(|a, b| cosine(&x, &means[*a]).total_cmp(&cosine(&x, &means[*b]))).unwrap() == *s
        });
        right.count() as f64 / rest.len() as f64
    };
    let probes = [probe(0), probe(1), probe(2), probe(3)];
    println!("state by nearest mean at the city: embedding {:.3}, after block 0 {:.3}, 1 {:.3}, 2 {:.3}", probes[0], probes[1], probes[2], probes[3]);
    assert!(probes[0] < 0.1 && probes[1] > 0.5 && probes[3] > 0.9, "{probes:?}");

    let asked: Vec<usize> = (0..cities.len()).step_by(4).collect();
    let answer = |state: usize| id(&model, &facts.states[state].attributes["capital"]);
    let replaced = |what: &Tensor, by: &Tensor| Tensor::cat(&[&what.i(..place).unwrap(), &by.reshape((1, ())).unwrap(), &what.i(place + 1..).unwrap()], 0).unwrap();
    let outs: Vec<Tensor> = runs.iter().map(|run| run.layers[0].mlp_out.as_ref().unwrap().get(place).unwrap()).collect();
    let mean = Tensor::stack(&outs, 0).unwrap().mean(0).unwrap();
    let share = |right: usize| right as f64 / asked.len() as f64;
    let ablated = share(asked.iter().filter(|at| {
        let run = model.run_spliced(&runs[**at].tokens, &Capture::last_logits(), Freeze::none(), &mut |layer, site| Ok((layer == 0).then(|| replaced(site.mlp_out, &mean))));
        top(&run.unwrap()) == answer(cities[**at].1)
    }).count());
    // The next block's input becomes the other's.
    let patched = |block: usize| share(asked.iter().filter(|at| {
        let other = (**at + 157) % cities.len();
        let wanted = runs[other].layers[block + 1].resid_pre.as_ref().unwrap().get(place).unwrap();
        let run = model.run_spliced(&runs[**at].tokens, &Capture::last_logits(), Freeze::none(), &mut |layer, site| {
            Ok((layer == block).then(|| replaced(site.mlp_out, &(&wanted - site.resid_mid.get(place).unwrap()).unwrap())))
        });
        top(&run.unwrap()) == answer(cities[other].1)
    }).count());
    let patches = [patched(0), patched(1), patched(4)];
    println!("without block 0's MLP at the city {ablated:.3} right; another city's stream there after block 0, 1, 4: {patches:?}");
    assert!(ablated < 0.4 && patches[0] > 0.9 && patches[1] > 0.9 && patches[2] < 0.3, "{ablated}, {patches:?}");
}

/// F1 and means against a count by hand; swaps and their faults.
#[test]
fn state_features_are_counted_and_swapped() {
    let (model, facts) = (model(), Facts::load().unwrap());
    let text = Corpus::load("states", &TextConfig { max_bytes: Some(200_000), ..TextConfig::default() }).unwrap();
    let activations = Activations::stream(&model, &text, &StreamConfig { context: 64, passes: 2, buffer_tokens: Some(8192), ..StreamConfig::default() }).unwrap();
    let shape = CltConfig { features: 256, activation: Activation::BatchTopK { k: 12 }, ..CltConfig::for_model(&model) };
    let mut trainer = Trainer::new(&activations, &shape, &TrainConfig { steps: 150, batch_tokens: 512, lr: 3e-3, ..TrainConfig::default() }).unwrap();
    trainer.run().unwrap();
    let clt = trainer.clt().unwrap();
    let replacement = Replacement::new(&model, &clt).unwrap();
    let features = StateFeatures::find(&replacement).unwrap();
    println!("{features}");
    assert_eq!(features.best().len(), 6 * 2 * 50);
    let best = features.best().iter().filter(|feature| feature.place == QuestionToken::City).max_by(|a, b| a.f1.total_cmp(&b.f1)).unwrap();
    let (mut own, mut fired, mut sum, mut members) = (0.0, 0.0, 0.0, 0.0);
    for state in &facts.states {
        for city in &state.cities {
            let code = clt.encode(&model.run(facts.question("capital", city), &Capture::mlp()).unwrap()).unwrap();
            let value = f64::from(code.layers[best.layer].value(7, best.feature as u32));
            let here = if state.name == best.state { 1.0 } else { 0.0 };
            (own, fired, sum, members) = (own + here * f64::from(u8::from(value > 0.0)), fired + f64::from(u8::from(value > 0.0)), sum + here * value, members + here);
        }
    }
    let (precision, recall) = (own / fired, own / members);
    assert_close("F1 and mean", &[best.f1, f64::from(best.mean)], &[2.0 * precision * recall / (precision + recall), sum / members], 1e-5);

    let question = facts.question("capital", "Dallas");
    let swap = features.swap(&question, "Texas", "California", &SwapConfig { features: 3, ..SwapConfig::default() }).unwrap();
    assert!(swap.changes.len() == swap.control.len() && (12..=24).contains(&swap.changes.len()), "{} changes", swap.changes.len());
    assert!(swap.changes.iter().chain(&swap.control).all(|change| change.place.layer < 4 && change.place.positions == Positions::At(7)));
    let check = features.check_swaps(6, &SwapConfig::default()).unwrap();
    assert!(check == features.check_swaps(6, &SwapConfig::default()).unwrap(), "another course from one seed");
    // The first swap again, by the public verbs.
    let first = &check.swaps[0];
    let asked = facts.question(&first.attribute, &first.city);
    let from = &facts.states.iter().find(|state| state.cities.contains(&first.city)).unwrap().name;
    let changes = features.swap(&asked, from, &first.state, &SwapConfig::default()).unwrap().changes;
    let effect = replacement.intervene(&asked, &changes, &InterveneConfig { top: model.vocab(), ..InterveneConfig::default() }).unwrap();
    let of = |answer: &String| effect.outputs.iter().find(|output| output.token == id(&model, answer)).unwrap();
    let (predicted, measured): (Vec<f64>, Vec<f64>) = first.answers.iter().map(|answer| (of(answer).predicted, of(answer).measured)).unzip();
    assert_close("predicted", &first.predicted, &predicted, 1e-4);
    assert_close("measured", &first.measured, &measured, 1e-4);
    let likeliest = effect.outputs.iter().max_by(|a, b| a.after.total_cmp(&b.after)).unwrap();
    assert_eq!(first.after, likeliest.text.trim());

    says(&features.swap(&question, "Texas", "Cascadia", &Default::default()).unwrap_err(), ErrorKind::BadInput, &["Cascadia", "Texas"]);
    says(&features.swap("Dallas is", "Texas", "Ohio", &Default::default()).unwrap_err(), ErrorKind::BadInput, &["question", "9"]);
    says(&features.swap(&question, "Texas", "Ohio", &SwapConfig { layers: 7, ..Default::default() }).unwrap_err(), ErrorKind::BadConfig, &["SwapConfig::layers", "7", "1 to 6"]);
    says(&features.swap(&question, "Texas", "Ohio", &SwapConfig { features: 0, ..Default::default() }).unwrap_err(), ErrorKind::BadConfig, &["SwapConfig::features"]);
    says(&features.check_swaps(0, &Default::default()).unwrap_err(), ErrorKind::BadInput, &["at least 1"]);
    says(&facts.answer("mayor", "Dallas").unwrap_err(), ErrorKind::BadInput, &["mayor", "capital"]);
    let small = crate::support::small_model();
    let other = Replacement::new(&small, &crate::support::lively_clt(&small, false, |_| ())).unwrap();
    assert_ne!(StateFeatures::find(&other).unwrap_err().kind(), ErrorKind::Tensor);
}

#[test]
fn the_command_prints_what_is_known() {
    let text = String::from_utf8(crate::train_command::cltlab(&["states"]).stdout).unwrap();
    for words in ["50 states, 405 cities, 10 attributes", "(this model)", "probe city", "ablation mlp_at_city", "skills agreement"] {
        assert!(text.contains(words), "'{words}' is not in {text}");
    }
}
