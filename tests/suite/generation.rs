//! Generation against runs without a cache, brute-force distributions, and itself under a seed.

use crate::support::{self, max_difference, values};
use cltlab::candle::{Device, Tensor};
use cltlab::model::{Capture, GenerateConfig, LoadConfig, Stop};
use cltlab::{ErrorKind, Model};

fn tiny(family: &str) -> Model {
    Model::load(support::fixture(&format!("attribution/{family}/model")), &LoadConfig::on(&Device::Cpu)).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateConfig {
    GenerateConfig { max_tokens, ..GenerateConfig::default() }
}

/// The logits of each step, made through the cache, against one run over the whole text.
#[test]
fn the_cache_changes_nothing() {
    for model in [tiny("gpt2"), tiny("llama")] {
        let prompt: Vec<u32> = (1..6).collect();
        let mut seen = Vec::new();
        let config = GenerateConfig { temperature: 1.0, seed: 3, ..greedy(40.min(model.context() - prompt.len())) };
        let made = model.stream(&prompt, &config, &mut |step| {
            if !step.logits.is_empty() {
                seen.push(step.logits.to_vec());
            }
            true
        });
        let made = made.unwrap();
        assert_eq!(made.tokens.len(), seen.len());
        let all: Vec<u32> = prompt.iter().chain(&made.tokens).copied().collect();
        let logits: Tensor = model.run(&all[..all.len() - 1], &Capture::default()).unwrap().logits.unwrap();
        let whole = values(&logits.narrow(0, prompt.len() - 1, seen.len()).unwrap());
        let difference = max_difference(&seen.concat(), &whole);
        println!("{}: {} steps, largest difference {difference:.2e} (allowed 1e-4)", model.name(), seen.len());
        assert!(difference <= 1e-4);
    }
}

fn logits(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 2_654_435_761 + seed * 40_503) % 997) as f32 / 100.0 - 5.0).collect()
}

/// By definition, over all tokens at once: temperature, then the k best, then the smallest set of
/// best tokens that reaches p.
fn brute_force(logits: &[f32], config: &GenerateConfig) -> Vec<f64> {
    let n = logits.len();
    let better = |a: usize, b: usize| logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
    let rank = |i: usize| (0..n).filter(|j| better(*j, i)).count();
    let softmax = |keep: &dyn Fn(usize) -> bool| -> Vec<f64> {
        let weights: Vec<f64> = (0..n).map(|i| if keep(i) { (f64::from(logits[i]) / config.temperature).exp() } else { 0.0 }).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    };
    let k = if config.top_k == 0 { n } else { config.top_k };
    let first = softmax(&|i| rank(i) < k);
    softmax(&|i| rank(i) < k && (0..n).filter(|j| better(*j, i)).map(|j| first[j]).sum::<f64>() < config.top_p)
}

#[test]
fn distributions_equal_brute_force() {
    for (seed, temperature) in [(1, 0.3), (2, 1.0), (3, 2.5)] {
        let logits = logits(200, seed);
        for top_k in [0, 1, 7, 200, 500] {
            for top_p in [1e-9, 0.1, 0.5, 0.93, 1.0] {
                let config = GenerateConfig { temperature, top_k, top_p, ..greedy(1) };
                let expected = brute_force(&logits, &config);
                let got = config.distribution(&logits).unwrap();
                let mut dense = vec![0.0; logits.len()];
                got.iter().for_each(|(id, probability)| dense[*id as usize] = *probability);
                let difference = max_difference(&dense, &expected);
                assert!(difference < 1e-9, "k {top_k}, p {top_p}, temperature {temperature}: {difference}");
                assert!(got.windows(2).all(|pair| pair[0].1 >= pair[1].1), "likeliest first");
            }
        }
    }
    let config = greedy(1);
    assert_eq!(config.distribution(&[0.0, 3.0, 3.0, 1.0]).unwrap(), [(1, 1.0)], "greedy takes the first of equals");
    assert_eq!(config.distribution(&[f32::NAN, 1.0]).unwrap_err().kind(), ErrorKind::NotFinite);
    assert_eq!(GenerateConfig { temperature: 1.0, ..config }.distribution(&[f32::NEG_INFINITY, 1.0]).unwrap(), [(1, 1.0)], "what cannot come is left out");
}

/// Draws follow the distribution: many seeds against the probabilities, within five standard deviations.
#[test]
fn draws_follow_the_distribution() {
    let model = tiny("llama");
    let config = GenerateConfig { temperature: 1.5, top_k: 4, ..greedy(1) };
    let mut probabilities = Vec::new();
    let mut counts = std::collections::HashMap::new();
    let draws = 2_000;
    for seed in 0..draws {
        let config = GenerateConfig { seed, ..config.clone() };
        let made = model.stream(&[1, 2, 3], &config, &mut |step| {
            probabilities = config.distribution(step.logits).unwrap();
            true
        });
        *counts.entry(made.unwrap().tokens[0]).or_insert(0.0) += 1.0;
    }
    assert_eq!(probabilities.len(), 4);
    for (id, probability) in &probabilities {
        let share = counts.get(id).copied().unwrap_or(0.0) / draws as f64;
        let allowed = 5.0 * (probability * (1.0 - probability) / draws as f64).sqrt();
        println!("token {id}: {share:.3} drawn, {probability:.3} expected");
        assert!((share - probability).abs() <= allowed);
    }
    assert_eq!(counts.values().sum::<f64>(), draws as f64);
}

#[test]
fn a_seed_is_a_text() {
    let model = tiny("gpt2");
    let with = |seed: u64| model.generate(&[1, 2, 3], &GenerateConfig { temperature: 1.0, seed, ..greedy(20) }).unwrap().tokens;
    assert_eq!(with(7), with(7));
    assert!((0..8).any(|seed| with(seed) != with(7)), "other seeds give other texts");
}

#[test]
fn generations_end_where_they_should() {
    let (model, prompt) = (tiny("llama"), "w17 w5 w90");
    let whole = model.stream(prompt, &greedy(40), &mut |_| true).unwrap();
    assert_eq!(whole.stop, Stop::Length);
    assert_eq!(whole.text, model.generate(prompt, &greedy(40)).unwrap().text);
    let words: Vec<String> = whole.tokens.iter().map(|id| format!("w{id}")).collect();
    assert_eq!(whole.text, format!(" {}", words.join(" ")));
    // Parts of the text, stopped at: what is before them, in one piece and streamed.
    for stop in [&words[3], &format!(" {} {}", words[4], words[5]), " w", "w", &words[8][1..], "x"] {
        let config = GenerateConfig { stop: vec!["never this".to_string(), stop.to_string()], ..greedy(40) };
        let mut streamed = String::new();
        let made = model.stream(prompt, &config, &mut |step| {
            streamed += step.text;
            true
        });
        let made = made.unwrap();
        assert_eq!(made.text, streamed);
        match whole.text.find(stop) {
            Some(at) => {
                assert_eq!((made.text.as_str(), made.stop), (&whole.text[..at], Stop::Text(stop.to_string())));
                assert!(made.tokens.len() <= whole.tokens.len());
            }
            None => assert_eq!((made.text, made.stop), (whole.text.clone(), Stop::Length)),
        }
    }
    let third = whole.tokens[2];
    let made = model.stream(prompt, &GenerateConfig { stop_tokens: vec![third], ..greedy(40) }, &mut |_| true).unwrap();
    let first = whole.tokens.iter().position(|id| *id == third).unwrap();
    assert_eq!((made.stop, &made.tokens[..]), (Stop::Token(third), &whole.tokens[..=first]));
    assert!(whole.text.starts_with(&made.text) && made.text.len() < whole.text.len());
    let mut left = 4;
    let made = model.stream(prompt, &greedy(40), &mut |_| {
        left -= 1;
        left > 0
    });
    let made = made.unwrap();
    assert_eq!((made.stop, made.tokens.len()), (Stop::Asked, 4));
}

#[test]
fn generations_end_at_the_context_and_refuse_what_cannot_be() {
    let model = tiny("gpt2");
    let prompt = vec![1; model.context() - 3];
    let made = model.stream(&prompt, &greedy(100), &mut |_| true).unwrap();
    assert!(made.stop == Stop::Context && made.tokens.len() == 3 || matches!(made.stop, Stop::Token(_)), "{:?}", made.stop);
    let refused = |config: GenerateConfig| model.generate(&[1], &config).unwrap_err();
    for (config, field) in [
        (GenerateConfig { temperature: -1.0, ..greedy(1) }, "temperature"),
        (GenerateConfig { temperature: f64::NAN, ..greedy(1) }, "temperature"),
        (GenerateConfig { top_p: 0.0, ..greedy(1) }, "top_p"),
        (GenerateConfig { top_p: 1.1, ..greedy(1) }, "top_p"),
        (GenerateConfig { stop: vec![String::new()], ..greedy(1) }, "stop"),
    ] {
        let error = refused(config);
        assert!(error.kind() == ErrorKind::BadConfig && error.to_string().contains(field), "{error}");
    }
    assert!(model.generate(&[1], &greedy(0)).unwrap().tokens.is_empty());
}

#[test]
#[ignore = "needs .cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
fn a_chat_is_answered() {
    let model = Model::load(&support::smollm2(), &cltlab::model::LoadConfig::on(&cltlab::candle::Device::Cpu)).unwrap();
    let answer = model.chat(&[("user", "What is the capital of France? Answer in one word.")], &greedy(24)).unwrap();
    println!("{:?} ({})", answer.text, answer.stop);
    assert!(answer.text.contains("Paris"), "{answer}");
    assert!(!answer.text.contains("<|im_end|>"), "the stop token is not text");
    let start = model.tokenizer().unwrap().id("<|im_start|>").unwrap();
    assert_eq!(answer.prompt.iter().filter(|id| **id == start).count(), 3, "system, user, assistant");
}
