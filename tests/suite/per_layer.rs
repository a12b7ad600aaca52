//! Per-layer transcoders (PLTs) against circuit-tracer 0.5.0 on the tiny models of the attribution
//! fixtures (`tests/fixtures/make/per_layer.py`): the same nodes, effects, scores and interventions;
//! with and without skip connections.

use crate::attribution::{dense, TOKENS};
use crate::support::{assert_close, fixture, largest, max_difference, scratch, tensors, values, worse};
use cltlab::candle::safetensors::save;
use cltlab::candle::{DType, Device, Tensor};
use cltlab::clt::{Activation, Clt, CltConfig, CltLoadConfig, LayerWeights};
use cltlab::graph::{AttributeConfig, PruneConfig};
use cltlab::intervene::{InterveneConfig, Intervention, Mode};
use cltlab::model::LoadConfig;
use cltlab::replacement::{FeatureNode, LocalConfig, Replacement};
use cltlab::{ErrorKind, Model};
use std::collections::HashMap;

fn folder(arch: &str) -> String {
    fixture(&format!("per_layer/{arch}")).to_string_lossy().into_owned()
}

const KINDS: [&str; 4] = ["gpt2", "llama", "gpt2_skip", "llama_skip"];

fn model(arch: &str) -> Model {
    let arch = arch.trim_end_matches("_skip");
    Model::load(fixture(&format!("attribution/{arch}/model")), &LoadConfig::on(&Device::Cpu)).unwrap()
}

fn replacement(arch: &str) -> (Replacement, HashMap<String, Tensor>) {
    let clt = Clt::load(&folder(arch), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    (Replacement::new(&model(arch), &clt).unwrap(), tensors(&fixture(&format!("per_layer/{arch}/expected.safetensors"))))
}

fn ids(tensor: &Tensor) -> Vec<usize> {
    let ids: Vec<u32> = tensor.to_dtype(DType::U32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    ids.into_iter().map(|id| id as usize).collect()
}

#[test]
fn graphs_of_circuit_tracer() {
    for arch in KINDS {
        let (replacement, want) = replacement(arch);
        let config = replacement.clt().config();
        assert!(config.per_layer && config.slots(0) == 1 && config.decoders() == 3);
        assert_eq!(matches!(config.activation, Activation::JumpRelu { .. }), arch.starts_with("llama"));
        assert_eq!((config.activation == Activation::TopK { k: 4 }, config.skip), (arch == "gpt2_skip", arch.ends_with("skip")));
        let graph = replacement.attribute(&TOKENS, &AttributeConfig { max_features: None, ..AttributeConfig::default() }).unwrap();
        println!("{arch}: {graph}");
        let active: Vec<usize> = graph.active_features().iter().flat_map(|f| [f.layer, f.position, f.feature]).collect();
        assert_eq!(active, ids(&want["active_features"]));
        assert_eq!(graph.logits().iter().map(|logit| logit.token as usize).collect::<Vec<_>>(), ids(&want["logit_token_ids"]));
        let expected = values(&want["adjacency_matrix"]);
        let top = expected.iter().fold(0.0_f32, |top, value| top.max(value.abs()));
        assert_close(&format!("{arch}: adjacency, largest entry {top:.2}"), &dense(&graph), &expected, 1e-5 * top);
        let scores = graph.scores();
        assert_close("scores", &[scores.replacement as f32, scores.completeness as f32], &values(&want["scores"]), 1e-5);
        assert!(graph.prune(&PruneConfig::default()).unwrap().nodes.len() < graph.nodes.len());
        let check = replacement.verify_edges(&graph, 30, 3).unwrap();
        assert!(check.holds(1e-5), "{check}");
        // A budget ranks and selects as for CLTs.
        let few = AttributeConfig { max_features: Some(40), ..AttributeConfig::default() };
        assert!(replacement.verify_edges(&replacement.attribute(&TOKENS, &few).unwrap(), 10, 4).unwrap().holds(1e-5));
    }
}

#[test]
fn interventions_of_circuit_tracer() {
    for arch in KINDS {
        let (replacement, want) = replacement(arch);
        let [layer, position, feature] = ids(&want["chosen"])[..] else { panic!("one place") };
        let set = Intervention::set(FeatureNode { layer, position, feature }, values(&want["value"])[0]);
        let modes = [("logits_after", Mode::FrozenAttention), ("logits_direct", Mode::Direct), ("logits_layers", Mode::Layers { start: 0, end: 2 })];
        for (name, mode) in modes.into_iter().take(if arch.ends_with("skip") { 3 } else { 1 }) {
            let effect = replacement.intervene(&TOKENS, &[set], &InterveneConfig { mode, ..InterveneConfig::default() }).unwrap();
            assert_close(&format!("{arch} {name}"), effect.logits_after(), &values(&want[name]), 1e-4);
            // Held all through, the outputs follow the edges exactly.
            let exact = effect.outputs.iter().fold(0.0, |worst, output| worse(worst, (output.predicted - output.measured).abs()));
            assert!(mode != Mode::Direct || exact < 1e-4, "{arch}: predicted and measured differ by {exact}");
        }
    }
}

/// A PLT's feature writes to its own layer only: with that layer alone held, all that comes later answers, as
/// when nothing is held.
#[test]
fn later_layers_answer_in_predictions() {
    for arch in KINDS {
        let (replacement, want) = replacement(arch);
        let [layer, position, feature] = ids(&want["chosen"])[..] else { panic!("one place") };
        let add = Intervention::add(FeatureNode { layer, position, feature }, 1.5);
        let predicted = |mode| -> Vec<f64> {
            let config = InterveneConfig { mode, top: 200, ..InterveneConfig::default() };
            let mut outputs = replacement.intervene(&TOKENS, &[add], &config).unwrap().outputs;
            outputs.sort_by_key(|output| output.token);
            outputs.iter().map(|output| output.predicted).collect()
        };
        let [open, one, none] = [Mode::FrozenAttention, Mode::Layers { start: layer, end: layer + 1 }, Mode::Direct].map(predicted);
        assert_eq!(open.len(), one.len());
        let top = largest(&open);
        let apart = |a: &[f64], b: &[f64]| max_difference(a, b);
        assert!(apart(&open, &one) < 1e-4 * top, "{arch}: {}", apart(&open, &one) / top);
        let last = layer + 1 == replacement.model().layers();
        assert!(last || apart(&open, &none) > 1e-3 * top, "{arch}: nothing answers");
    }
}

/// A PLT is the CLT whose other decoders are zero; it is written as it was read.
#[test]
fn a_plt_is_a_clt_with_zeros() {
    for arch in KINDS {
        let (given, _) = replacement(arch);
        let plt = given.clt();
        let out = scratch(&format!("per-layer-{arch}"));
        plt.save(&out, &Default::default()).unwrap();
        std::fs::remove_file(out.join("cltlab.json")).unwrap();
        let layers = plt.layers();
        let padded = (0..layers).map(|l| LayerWeights {
            encoder: plt.encoder(l).unwrap().clone(),
            encoder_bias: plt.encoder_bias(l).unwrap().clone(),
            threshold: plt.threshold(l).unwrap().cloned(),
            decoder: plt.decoder(l).unwrap().pad_with_zeros(1, 0, layers - l - 1).unwrap(),
            decoder_bias: plt.decoder_bias(l).unwrap().clone(),
            skip: plt.skip(l).unwrap().cloned(),
        });
        let clt = Clt::new(CltConfig { per_layer: false, ..plt.config().clone() }, padded.collect()).unwrap();
        let config = AttributeConfig::default();
        let graph = given.attribute(&TOKENS, &config).unwrap();
        for other in [clt, Clt::load(&out, &CltLoadConfig::on(&Device::Cpu)).unwrap()] {
            let again = Replacement::new(given.model(), &other).unwrap();
            let other = again.attribute(&TOKENS, &config).unwrap();
            assert_eq!(other.active_features(), graph.active_features());
            assert_close("effects", &dense(&other), &dense(&graph), 1e-5);
            assert_close("logits", &values(&again.logits(&TOKENS).unwrap()), &values(&given.logits(&TOKENS).unwrap()), 1e-5);
        }
    }
}

#[test]
fn plts_that_cannot_be_read() {
    let (given, _) = replacement("gpt2");
    let out = scratch("per-layer-bad");
    let load = || Clt::load(&out, &CltLoadConfig::on(&Device::Cpu));
    let yaml = |more: &str| {
        let head = "model_name: m\nmodel_kind: transcoder_set\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n";
        std::fs::write(out.join("config.yaml"), format!("{head}{more}")).unwrap();
    };
    yaml("");
    assert_eq!(load().unwrap_err().kind(), ErrorKind::MissingFile);
    for l in 0..3 {
        std::fs::copy(fixture(&format!("per_layer/gpt2/layer_{l}.safetensors")), out.join(format!("layer_{l}.safetensors"))).unwrap();
    }
    assert_eq!(load().unwrap().layers(), 3);
    // Fewer layers than the model has.
    yaml("transcoders: [layer_0.safetensors, layer_1.safetensors]\n");
    assert_eq!(Replacement::new(given.model(), &load().unwrap()).unwrap_err().kind(), ErrorKind::Mismatch);
    yaml("activation: topk\nk: 4\n");
    assert_eq!(load().unwrap().config().activation, Activation::TopK { k: 4 });
    let refused = |kind: ErrorKind, word: &str| {
        let error = load().unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(word), "{error}");
    };
    yaml("activation: topk\n");
    refused(ErrorKind::BadFile, "k");
    yaml("activation: swish\n");
    refused(ErrorKind::Unsupported, "swish");
    yaml("transcoders: []\n");
    refused(ErrorKind::BadFile, "transcoders");
    yaml("transcoders: ['hf://nothing']\n");
    refused(ErrorKind::BadFile, "hf://owner/name/file");
    yaml("");
    let mut weights = tensors(&out.join("layer_1.safetensors"));
    let width = given.model().width();
    weights.insert("W_skip".into(), Tensor::zeros((width, width), DType::F32, &Device::Cpu).unwrap());
    save(&weights, out.join("layer_1.safetensors")).unwrap();
    refused(ErrorKind::BadTensor, "W_skip");
    save(&weights, out.join("layer_0.safetensors")).unwrap();
    refused(ErrorKind::BadTensor, "W_skip");
}

/// A CLT's skip connections have files of their own; without them it is another CLT.
#[test]
fn skip_connections_of_a_clt() {
    let (given, _) = replacement("llama_skip");
    let plt = given.clt();
    let layers = plt.layers();
    let weights = |skip: bool| {
        let layer = |l: usize| LayerWeights {
            encoder: plt.encoder(l).unwrap().clone(),
            encoder_bias: plt.encoder_bias(l).unwrap().clone(),
            threshold: plt.threshold(l).unwrap().cloned(),
            decoder: plt.decoder(l).unwrap().repeat((1, layers - l, 1)).unwrap(),
            decoder_bias: plt.decoder_bias(l).unwrap().clone(),
            skip: plt.skip(l).unwrap().cloned().filter(|_| skip),
        };
        (0..layers).map(layer).collect::<Vec<_>>()
    };
    let config = CltConfig { per_layer: false, ..plt.config().clone() };
    let clt = Clt::new(config.clone(), weights(true)).unwrap();
    assert_eq!(clt.config().parameters(), CltConfig { skip: false, ..config.clone() }.parameters() + (layers * plt.config().width * plt.config().width) as u64);
    let folder = scratch("skip-clt");
    clt.save(&folder, &Default::default()).unwrap();
    for own in [true, false] {
        if !own {
            std::fs::remove_file(folder.join("cltlab.json")).unwrap();
        }
        let again = Clt::load(&folder, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        assert!(again.config().skip && !again.config().per_layer);
        (0..layers).for_each(|l| assert_eq!(values(again.skip(l).unwrap().unwrap()), values(clt.skip(l).unwrap().unwrap())));
    }
    // What the skip adds, by loops; and what lacks it is refused.
    let local = Replacement::new(given.model(), &clt).unwrap().local(&TOKENS, &LocalConfig { zero_positions: Vec::new() }).unwrap();
    let inputs: Vec<Tensor> = local.run().layers.iter().map(|layer| clt.input(layer).unwrap().clone()).collect();
    let plain = Clt::new(CltConfig { skip: false, ..config.clone() }, weights(false)).unwrap();
    let (with, without) = (clt.decode(local.code(), &inputs).unwrap(), plain.decode(local.code(), &[]).unwrap());
    let width = config.width;
    for (l, (with, without)) in with.iter().zip(&without).enumerate() {
        let (skip, x, mut expected) = (values(clt.skip(l).unwrap().unwrap()), values(&inputs[l]), values(without));
        for (p, row) in expected.chunks_exact_mut(width).enumerate() {
            for (o, value) in row.iter_mut().enumerate() {
                *value += (0..width).map(|i| x[p * width + i] * skip[i * width + o]).sum::<f32>();
            }
        }
        assert_close("skip added", &values(with), &expected, 1e-5);
        assert_close("one target", &values(&clt.decode_target(&local.code().layers[..=l], l, Some(&inputs[l])).unwrap()), &values(with), 1e-6);
        assert_eq!(clt.decode_target(&local.code().layers[..=l], l, None).unwrap_err().kind(), ErrorKind::BadInput);
    }
    assert_eq!(clt.decode(local.code(), &[]).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(clt.decode(local.code(), &inputs[1..]).unwrap_err().kind(), ErrorKind::BadInput);
    let short = inputs[0].narrow(0, 0, 3).unwrap();
    assert_eq!(clt.decode_target(&local.code().layers[..1], 0, Some(&short)).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(Clt::new(config.clone(), weights(false)).unwrap_err().kind(), ErrorKind::BadTensor);
    assert_eq!(Clt::new(CltConfig { skip: false, ..config }, weights(true)).unwrap_err().kind(), ErrorKind::BadTensor);
}
