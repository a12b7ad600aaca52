//! Interventions against circuit-tracer's logits, and circuit-tracer's own test of edges: changing
//! one source with everything held moves every target by exactly its edge.

use crate::attribution::{replacement, TOKENS};
use crate::attribution_speed::random_clt;
use crate::support::{assert_close, fixture, smollm2, tensors, values};
use cltlab::graph::{AttributeConfig, PruneConfig};
use cltlab::intervene::{InterveneConfig, Intervention, Mode, Positions};
use cltlab::clt::{Activation, Clt, CltConfig, InputSite, LayerWeights};
use cltlab::replacement::{FeatureNode, Replacement};
use cltlab::{ErrorKind, Model};

#[test]
fn logits_of_circuit_tracer() {
    for arch in ["gpt2", "llama"] {
        let replacement = replacement(arch);
        let folder = fixture(&format!("attribution/{arch}"));
        let want = tensors(&folder.join("expected_interventions.safetensors"));
        let listed: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let listed = listed["interventions"].as_array().unwrap();
        assert_eq!(listed.len(), want.len());
        for one in listed {
            let number = |field: &str| one[field].as_u64().unwrap() as usize;
            let node = FeatureNode { layer: number("layer"), position: number("pos"), feature: number("feature") };
            let mode = match one["mode"].as_str().unwrap() {
                "direct" => Mode::Direct,
                "frozen_attn" => Mode::FrozenAttention,
                _ => Mode::Open,
            };
            let value = one["value"].as_f64().unwrap() as f32;
            let config = InterveneConfig { mode, ..InterveneConfig::default() };
            let effect = replacement.intervene(&TOKENS, &[Intervention::set(node, value)], &config).unwrap();
            let key = one["key"].as_str().unwrap();
            assert_close(&format!("{arch} {key} {mode:?}"), effect.logits_after(), &values(&want[key]), 1e-4);
        }
    }
}

#[test]
fn edges_are_effects() {
    for arch in ["gpt2", "llama"] {
        let replacement = replacement(arch);
        let config = AttributeConfig { max_features: None, ..AttributeConfig::default() };
        let graph = replacement.attribute(&TOKENS, &config).unwrap();
        let check = replacement.verify_edges(&graph, 100, 7).unwrap();
        println!("{arch}: {check}; absolute {:.1e} and {:.1e}", check.features.max_abs, check.logits.max_abs);
        assert_eq!(check.sources, 100 + 25 + 12);
        // circuit-tracer allows 5e-4 on pre-activations, 1e-5 (and 1e-3 relative) on logits.
        assert!(check.features.max_abs <= 5e-4 && check.logits.max_abs <= 1e-5, "{check}");
        assert!(check.holds(1e-5));
        let few = AttributeConfig { max_features: Some(50), batch: 16, ..AttributeConfig::default() };
        let graph = replacement.attribute(&TOKENS, &few).unwrap();
        assert!(replacement.verify_edges(&graph, 20, 8).unwrap().holds(1e-5));
        let pruned = graph.prune(&PruneConfig::default()).unwrap();
        assert_eq!(replacement.verify_edges(&pruned, 20, 8).unwrap_err().kind(), ErrorKind::BadInput);
    }
}

/// The same for CLTs that read after the norm, and for TopK.
#[test]
fn edges_are_effects_for_other_inputs_and_activations() {
    for arch in ["gpt2", "llama"] {
        let given = replacement(arch);
        let clt = given.clt();
        let layers: Vec<LayerWeights> = (0..clt.layers())
            .map(|l| LayerWeights {
                encoder: clt.encoder(l).unwrap().clone(),
                encoder_bias: clt.encoder_bias(l).unwrap().clone(),
                threshold: None,
                decoder: clt.decoder(l).unwrap().clone(),
                decoder_bias: clt.decoder_bias(l).unwrap().clone(),
                skip: None,
            })
            .collect();
        for (input, activation) in [(InputSite::MlpIn, Activation::Relu), (InputSite::ResidMid, Activation::TopK { k: 4 }), (InputSite::MlpIn, Activation::TopK { k: 3 })] {
            let config = CltConfig { input, activation, ..clt.config().clone() };
            let replacement = Replacement::new(given.model(), &Clt::new(config.clone(), layers.clone()).unwrap()).unwrap();
            let graph = replacement.attribute(&TOKENS, &AttributeConfig::default()).unwrap();
            let check = replacement.verify_edges(&graph, 40, 3).unwrap();
            println!("{arch} {:?} {}: {check}", input, config.activation.label());
            assert!(check.holds(1e-5) && check.features.effects > 1_000, "{check}");
        }
    }
}

#[test]
fn strangers_do_not_belong_together() {
    let (gpt2, llama) = (replacement("gpt2"), replacement("llama"));
    let layers: Vec<LayerWeights> = (0..2)
        .map(|l| LayerWeights {
            encoder: gpt2.clt().encoder(l).unwrap().clone(),
            encoder_bias: gpt2.clt().encoder_bias(l).unwrap().clone(),
            threshold: None,
            decoder: gpt2.clt().decoder(l).unwrap().narrow(1, 0, 2 - l).unwrap().contiguous().unwrap(),
            decoder_bias: gpt2.clt().decoder_bias(l).unwrap().clone(),
            skip: None,
        })
        .collect();
    let two = Clt::new(CltConfig { layers: 2, ..gpt2.clt().config().clone() }, layers).unwrap();
    let error = Replacement::new(gpt2.model(), &two).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("layers"), "{error}");
    let graph = gpt2.attribute(&TOKENS, &AttributeConfig::default()).unwrap();
    assert_eq!(llama.verify_edges(&graph, 5, 1).unwrap_err().kind(), ErrorKind::Mismatch);
}

/// With everything held the graph's edges are the whole effect, so predicted is measured.
#[test]
fn direct_effects_are_predicted_exactly() {
    for arch in ["gpt2", "llama"] {
        let replacement = replacement(arch);
        let graph = replacement.attribute(&TOKENS, &AttributeConfig::default()).unwrap();
        let top = graph.top_features(4);
        let both = [Intervention::scale(top[0], -2.0), Intervention::ablate(top[1]), Intervention::add(top[2], 0.5), Intervention::scale(top[3], 0.5)];
        let config = InterveneConfig { mode: Mode::Direct, ..InterveneConfig::default() };
        let effect = replacement.intervene(&TOKENS, &both, &config).unwrap();
        let (predicted, measured): (Vec<f32>, Vec<f32>) = effect.outputs.iter().map(|o| (o.predicted as f32, o.measured as f32)).unzip();
        assert_close(&format!("{arch}: predicted against measured"), &predicted, &measured, 1e-5);
        assert!(effect.agreement().unwrap() > 0.9999);
        assert!(effect.divergence() > 1e-4);
        // One feature doubled moves each output by its edge.
        let one = replacement.intervene(&TOKENS, &[Intervention::scale(top[0], 2.0)], &config).unwrap();
        let source = graph.nodes.iter().position(|node| node.feature() == Some(top[0])).unwrap();
        let first = graph.nodes.len() - graph.logits().len();
        for (k, logit) in graph.logits().iter().enumerate() {
            let shown = one.outputs.iter().find(|output| output.token == logit.token).unwrap();
            let edge = f64::from(graph.edges().weight(source, first + k));
            assert!((shown.predicted - edge).abs() < 1e-5, "{shown:?}, edge {edge}");
        }
    }
}

/// With all layers constrained a range is the direct mode; with a part, later layers respond.
#[test]
fn constrained_layers() {
    let replacement = replacement("llama");
    let run = |mode: Mode, change: Intervention| {
        replacement.intervene(&TOKENS, &[change], &InterveneConfig { mode, ..InterveneConfig::default() }).unwrap()
    };
    let change = Intervention::set((0, 25, Positions::From(3)), 2.0);
    let direct = run(Mode::Direct, change);
    let all = run(Mode::Layers { start: 0, end: 3 }, change);
    assert_close("all layers", all.logits_after(), direct.logits_after(), 1e-6);
    let some = run(Mode::Layers { start: 0, end: 2 }, change);
    assert!(some.logits_after() != direct.logits_after());
    // Small changes follow the linear model even where MLPs respond; nothing to respond: no change.
    let nothing = run(Mode::FrozenAttention, Intervention::scale((1, 17, Positions::All), 1.0));
    assert_close("doing nothing", nothing.logits_after(), nothing.logits_before(), 1e-5);
    assert!(format!("{nothing}").contains("predicted"));
}

#[test]
fn bad_interventions() {
    let replacement = replacement("gpt2");
    let refused = |interventions: &[Intervention], word: &str| {
        let error = replacement.intervene(&TOKENS, interventions, &InterveneConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
        assert!(error.to_string().contains(word), "'{error}' does not say '{word}'");
    };
    refused(&[], "none");
    refused(&[Intervention::ablate((3, 0, Positions::All))], "layer");
    refused(&[Intervention::ablate((0, 128, Positions::All))], "feature");
    refused(&[Intervention::ablate((0, 0, Positions::At(12)))], "positions");
    refused(&[Intervention::ablate((0, 0, Positions::Range { start: 4, end: 4 }))], "positions");
    refused(&[Intervention::scale((0, 0, Positions::All), f32::NAN)], "value");
    let mode = Mode::Layers { start: 2, end: 5 };
    let one = [Intervention::ablate((0, 0, Positions::All))];
    let error = replacement.intervene(&TOKENS, &one, &InterveneConfig { mode, ..InterveneConfig::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadConfig);
}

/// The same on SmolLM2-135M, with a random CLT: 30 layers, grouped heads, activations of all sizes.
#[test]
#[ignore = "needs .cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"]
fn edges_are_effects_on_smollm2() {
    let model = Model::load(&smollm2(), &cltlab::model::LoadConfig::on(&cltlab::candle::Device::Cpu)).unwrap();
    let replacement = Replacement::new(&model, &random_clt(model.layers(), model.width(), 128, 8)).unwrap();
    let start = std::time::Instant::now();
    let graph = replacement.attribute("The capital of the state containing Dallas is", &AttributeConfig::default()).unwrap();
    println!("{graph}; {:.1} s", start.elapsed().as_secs_f64());
    let check = replacement.verify_edges(&graph, 20, 5).unwrap();
    println!("{check}; absolute {:.1e} and {:.1e}, largest {:.1e} and {:.1e}", check.features.max_abs, check.logits.max_abs, check.features.largest, check.logits.largest);
    assert!(check.holds(1e-3), "{check}");
    let effect = replacement.intervene(graph.prompt(), &[Intervention::ablate(graph.top_features(1)[0])], &InterveneConfig::default()).unwrap();
    println!("{effect}");
}
