//! Text under interventions: circuit-tracer's greedy tokens and their logits, runs without a cache, and
//! plain generation where nothing is changed.

use crate::attribution::{replacement, TOKENS};
use crate::families::{tiny, FAMILIES};
use crate::attribution_speed::random_clt;
use crate::support::{assert_close, fixture, max_difference, tensors, values};
use cltlab::candle::DType;
use cltlab::intervene::{InterveneConfig, Intervention, Mode, Positions};
use cltlab::model::{Capture, GenerateConfig};
use cltlab::replacement::Replacement;
use cltlab::ErrorKind;

fn greedy(max_tokens: usize) -> GenerateConfig {
    GenerateConfig { max_tokens, ..GenerateConfig::default() }
}

fn in_mode(mode: Mode) -> InterveneConfig {
    InterveneConfig { mode, ..InterveneConfig::default() }
}

/// Tokens that are made, each with the logits it was chosen by.
fn made(replacement: &Replacement, tokens: &[u32], changes: &[Intervention], mode: Mode, n: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut seen = Vec::new();
    let made = replacement.stream(tokens, changes, &in_mode(mode), &greedy(n), &mut |step| {
        if !step.logits.is_empty() {
            seen.push(step.logits.to_vec());
        }
        true
    });
    (made.unwrap().tokens, seen)
}

/// `circuit_tracer.feature_intervention_generate` on the two fixtures, in its three modes.
#[test]
fn text_of_circuit_tracer() {
    for arch in ["gpt2", "llama"] {
        let replacement = replacement(arch);
        let folder = fixture(&format!("attribution/{arch}"));
        let want = tensors(&folder.join("expected_generation.safetensors"));
        let listed: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("expected_generation.json")).unwrap()).unwrap();
        let plain: Vec<u32> = want["plain.tokens"].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let mut differ = 0;
        for case in listed.as_array().unwrap() {
            let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
            let changes = case["changes"].as_array().unwrap().iter().map(|one| {
                let positions = match one["positions"].as_array() {
                    None => Positions::At(number(&one["positions"])),
                    Some(ends) if ends[1].is_null() => Positions::From(number(&ends[0])),
                    Some(ends) => Positions::Range { start: number(&ends[0]), end: number(&ends[1]) },
                };
                Intervention::set((number(&one["layer"]), number(&one["feature"]), positions), one["value"].as_f64().unwrap() as f32)
            });
            let mode = match case["mode"].as_str().unwrap() {
                "direct" => Mode::Direct,
                "frozen_attn" => Mode::FrozenAttention,
                _ => Mode::Open,
            };
            let key = case["key"].as_str().unwrap();
            let (tokens, logits) = made(&replacement, &TOKENS, &changes.collect::<Vec<_>>(), mode, 12);
            let theirs: Vec<u32> = want[&format!("{key}.tokens")].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
            // Ours ends at token 0, which stands for the end of the text.
            assert!(tokens.len() == 12 || tokens.last() == Some(&0), "{arch} {key}: {tokens:?}");
            assert_eq!(tokens, theirs[TOKENS.len()..][..tokens.len()], "{arch} {key}");
            let steps = want[&format!("{key}.logits")].narrow(0, 0, logits.len()).unwrap();
            assert_close(&format!("{arch} {key}"), &logits.concat(), &values(&steps), 1e-4);
            differ += usize::from(theirs != plain);
        }
        assert!(differ >= 3, "{arch}: the interventions change next to nothing");
    }
}

/// Each step through the cache is the last position of a run over the whole text so far, with nothing held.
#[test]
fn the_cache_changes_nothing_under_interventions() {
    let given = ["gpt2", "llama"].map(replacement);
    let random = FAMILIES.iter().map(|family| {
        let model = tiny(family);
        Replacement::new(&model, &random_clt(model.layers(), model.width(), 24, 8)).unwrap()
    });
    for replacement in given.into_iter().chain(random) {
        let prompt: Vec<u32> = TOKENS.iter().map(|id| id % replacement.model().vocab() as u32).collect();
        let changes = [
            Intervention::set((0, 5, Positions::From(3)), 2.0),
            Intervention::scale((1, 11, Positions::All), -1.0),
            Intervention::add((1, 3, Positions::From(15)), 1.5),
            Intervention::ablate((0, 7, Positions::Range { start: 1, end: 12 })),
        ];
        let (tokens, logits) = made(&replacement, &prompt, &changes, Mode::Open, 10);
        let mut text = prompt.clone();
        for (step, (next, logits)) in tokens.iter().zip(&logits).enumerate() {
            let applying: Vec<Intervention> = changes.into_iter().filter(|change| change.place.positions != Positions::From(15) || text.len() > 15).collect();
            let whole = replacement.intervene(&text, &applying, &in_mode(Mode::Open)).unwrap();
            let off = max_difference(logits, whole.logits_after());
            assert!(off <= 1e-4, "{} step {step}: logits differ by {off}", replacement.model().name());
            let best = whole.logits_after().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            assert_eq!(*next as usize, best);
            text.push(*next);
        }
        println!("{}: {tokens:?}", replacement.model().name());
    }
}

/// The first step is the intervention itself, whatever is held; changes that change nothing, or none, give
/// the model's own text.
#[test]
fn the_first_step_and_no_change() {
    for arch in ["gpt2", "llama"] {
        let replacement = replacement(arch);
        let own = replacement.model().generate(&TOKENS, &greedy(12)).unwrap().tokens;
        let (none, _) = made(&replacement, &TOKENS, &[], Mode::FrozenAttention, 12);
        assert_eq!(none, own);
        let once = Intervention::scale((1, 17, Positions::All), 1.0);
        let big = [Intervention::set((0, 25, Positions::From(2)), 4.0), Intervention::ablate((1, 3, Positions::At(5)))];
        for mode in [Mode::Direct, Mode::FrozenAttention, Mode::Open, Mode::Layers { start: 0, end: 2 }] {
            assert_eq!(made(&replacement, &TOKENS, &[once], mode, 12).0, own, "{arch} {mode:?}");
            let (_, logits) = made(&replacement, &TOKENS, &big, mode, 3);
            let effect = replacement.intervene(&TOKENS, &big, &in_mode(mode)).unwrap();
            assert_close(&format!("{arch} {mode:?}: first step"), &logits[0], effect.logits_after(), 1e-5);
        }
        // Only on what is made: the first token is the model's own, the second is not chosen as it would be.
        let later = Intervention::set((0, 25, Positions::From(TOKENS.len())), 6.0);
        let (_, logits) = made(&replacement, &TOKENS, &[later], Mode::Open, 2);
        let text: Vec<u32> = TOKENS.iter().copied().chain([own[0]]).collect();
        let last = |tokens: &[u32]| values(&replacement.model().run(tokens, &Capture::last_logits()).unwrap().logits.unwrap());
        assert_close("before it applies", &logits[0], &last(&TOKENS), 1e-5);
        assert!(max_difference(&logits[1], &last(&text)) > 1e-2);
    }
}

#[test]
fn what_cannot_be_changed_in_text() {
    let replacement = replacement("gpt2");
    let refused = |change: Intervention| {
        let error = replacement.stream(&TOKENS, &[change], &InterveneConfig::default(), &greedy(4), &mut |_| true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
        error.to_string()
    };
    assert!(refused(Intervention::ablate((0, 0, Positions::At(12)))).contains("positions 0 to 11, those of the prompt"));
    assert!(refused(Intervention::ablate((0, 0, Positions::Range { start: 3, end: 14 }))).contains("positions 0 to 11, those of the prompt"));
    assert!(refused(Intervention::ablate((0, 0, Positions::From(16)))).contains("positions 0 to 15, those of the text"));
    assert!(refused(Intervention::ablate((7, 0, Positions::All))).contains("layer"));
    assert!(refused(Intervention::set((0, 0, Positions::All), f32::INFINITY)).contains("value"));
    let none = replacement.stream(Vec::new(), &[], &InterveneConfig::default(), &greedy(4), &mut |_| true);
    assert_eq!(none.unwrap_err().kind(), ErrorKind::BadInput);
    let mode = in_mode(Mode::Layers { start: 3, end: 3 });
    assert_eq!(replacement.stream(&TOKENS, &[], &mode, &greedy(4), &mut |_| true).unwrap_err().kind(), ErrorKind::BadConfig);
}
