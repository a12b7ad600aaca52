//! What a graph predicts for groups of features, against forward passes; controls as they should be.

use crate::attribution::{replacement, TOKENS};
use crate::support::{assert_close, scratch};
use cltlab::graph::{AttributeConfig, Edges, Graph, GraphParts, GraphSaveConfig, LogitTarget, NodeKind, PruneConfig, Supernode};
use cltlab::intervene::{Control, InterveneConfig, Intervention, Mode, SupernodeCheck, SupernodeConfig, SupernodeEffect};
use cltlab::replacement::FeatureNode;
use cltlab::ErrorKind;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

fn whole(arch: &str) -> Graph {
    replacement(arch).attribute(&TOKENS, &AttributeConfig { max_features: None, ..AttributeConfig::default() }).unwrap()
}

/// Propagation over the edges of a whole graph is the linear forward pass, and with nothing responding it is
/// the forward pass of the model itself with everything held.
#[test]
fn edges_predict_what_linear_passes_give() {
    let mut random = StdRng::seed_from_u64(3);
    for arch in ["gpt2", "llama"] {
        let (graph, replacement) = (whole(arch), replacement(arch));
        let features: Vec<FeatureNode> = graph.nodes.iter().filter_map(|node| node.feature()).collect();
        let activations = replacement.local(&TOKENS, &Default::default()).unwrap().activations();
        for trial in 0..12 {
            let group: Vec<FeatureNode> = features.choose_multiple(&mut random, 1 + trial).copied().collect();
            let changed: Vec<(usize, f64)> = graph.places(&group).unwrap().into_iter().map(|place| (place, random.random_range(-2.0..3.0))).collect();
            let set: Vec<Intervention> =
                changed.iter().zip(&group).map(|((place, factor), feature)| Intervention::set(*feature, activations[*place] * *factor as f32)).collect();
            for (mode, respond) in [(Mode::Direct, false), (Mode::FrozenAttention, true)] {
                let config = InterveneConfig { mode, top: replacement.model().vocab(), ..InterveneConfig::default() };
                let effect = replacement.intervene(&TOKENS, &set, &config).unwrap();
                let of = |token: u32| effect.outputs.iter().find(|output| output.token == token).unwrap();
                let got: Vec<f32> = graph.predicted(&changed, respond).unwrap().into_iter().map(|change| change as f32).collect();
                let linear: Vec<f32> = graph.logits().iter().map(|logit| of(logit.token).predicted as f32).collect();
                let top = linear.iter().fold(0.1_f32, |top, change| top.max(change.abs()));
                assert_close(&format!("{arch} {mode:?} {} features", group.len()), &got, &linear, 2e-5 * top);
                if mode == Mode::Direct {
                    let measured: Vec<f32> = graph.logits().iter().map(|logit| of(logit.token).measured as f32).collect();
                    assert_close(&format!("{arch} measured"), &got, &measured, 2e-5 * top.max(1.0));
                }
            }
        }
    }
}

/// With everything held, prediction is measurement, for groups and for random features alike; a group's
/// prediction says nothing of what others do. Controls are as they are promised.
#[test]
fn groups_beside_random_features() {
    for arch in ["gpt2", "llama"] {
        let (graph, replacement) = (whole(arch), replacement(arch));
        let groups = graph.supernodes(6);
        let names: BTreeSet<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names.len(), groups.len(), "names tell groups apart");
        let activations = replacement.local(&TOKENS, &Default::default()).unwrap().activations();
        for same_positions in [false, true] {
            let config = SupernodeConfig { mode: Mode::Direct, factors: vec![0.0, -1.0, 3.0], controls: 3, same_positions, seed: 5 };
            let check = replacement.check_supernodes(&graph, &groups, &config).unwrap();
            println!("{arch}:\n{check}");
            assert_eq!(check.effects.len(), groups.len() * 3);
            assert!(check.agreement().pearson.unwrap() > 0.999_99 && check.control_own_agreement().pearson.unwrap() > 0.999_99);
            assert!(check.agreement().spearman.unwrap() > 0.999 && check.control_agreement().pearson.unwrap().abs() < 0.9);
            let later = check.of_layers(1..);
            assert!(later.effects.iter().all(|effect| effect.group.features.iter().all(|feature| feature.layer > 0)));
            assert_eq!(check.of_layers(..).effects.len(), check.effects.len());
            for effect in &check.effects {
                for control in &effect.controls {
                    let place = |feature: &FeatureNode| (feature.layer, if same_positions { feature.position } else { 0 });
                    let count = |features: &[FeatureNode]| {
                        features.iter().fold(BTreeMap::new(), |mut all: BTreeMap<_, usize>, feature| {
                            *all.entry(place(feature)).or_default() += 1;
                            all
                        })
                    };
                    let (own, theirs) = (count(&effect.group.features), count(&control.features));
                    assert!(theirs.iter().all(|(place, n)| own.get(place).is_some_and(|own| n <= own)));
                    if !same_positions {
                        assert_eq!(own, theirs);
                    }
                    assert!(control.features.iter().all(|feature| !effect.group.features.contains(feature) && graph.active_features().contains(feature)));
                    let at = |feature: &FeatureNode| graph.active_features().binary_search(feature).unwrap();
                    let sum: f64 = control.features.iter().map(|feature| f64::from(activations[at(feature)])).sum();
                    assert!((sum - control.mass).abs() < 1e-4);
                }
            }
            // The measured effect is the intervention's.
            let effect = &check.effects[0];
            let set: Vec<Intervention> = effect.group.features.iter().map(|feature| Intervention::ablate(*feature)).collect();
            let config = InterveneConfig { mode: Mode::Direct, ..InterveneConfig::default() };
            let one = replacement.intervene(&TOKENS, &set, &config).unwrap();
            let shown = one.outputs.iter().find(|output| output.token == check.outputs[0].0).unwrap();
            assert!((shown.measured - effect.measured[0]).abs() < 1e-5);
        }
        let free = replacement.check_supernodes(&graph, &groups, &SupernodeConfig::default()).unwrap();
        println!("{arch}, attention held:\n{free}");
        let file = scratch(&format!("supernodes-{arch}")).join("check.json");
        free.save(&file).unwrap();
        let saved: serde_json::Value = cltlab::internal::files::read_json(&file).unwrap();
        assert!((saved["correlations"]["predicted_measured"]["pearson"].as_f64().unwrap() - free.agreement().pearson.unwrap()).abs() < 1e-12);
        let pruned = graph.prune(&PruneConfig::default()).unwrap();
        assert!(replacement.check_supernodes(&pruned, &pruned.supernodes(2), &SupernodeConfig::default()).unwrap().agreement().pearson.is_some());
    }
}

/// With the outputs of all layers held nothing but the edges is left; with those of a few held, a group does and is
/// predicted to do what the same intervention does by itself.
#[test]
fn groups_with_layers_held() {
    for arch in ["gpt2", "llama"] {
        let (graph, replacement) = (whole(arch), replacement(arch));
        let groups = graph.supernodes(4);
        let layers = replacement.model().layers();
        let check = |mode| replacement.check_supernodes(&graph, &groups, &SupernodeConfig { mode, controls: 1, ..SupernodeConfig::default() }).unwrap();
        let (all, direct) = (check(Mode::Layers { start: 0, end: layers }), check(Mode::Direct));
        let changes = |check: &SupernodeCheck| -> Vec<f32> {
            check.effects.iter().flat_map(|effect| effect.predicted.iter().chain(&effect.measured)).map(|change| *change as f32).collect()
        };
        let top = changes(&direct).iter().fold(0.1_f32, |top, change| top.max(change.abs()));
        assert_close(&format!("{arch} all layers"), &changes(&all), &changes(&direct), 2e-5 * top);
        let mode = Mode::Layers { start: 0, end: 1 };
        let some = check(mode);
        for effect in &some.effects {
            let activation = |feature: &FeatureNode| {
                graph.nodes.iter().find(|node| node.feature() == Some(*feature)).and_then(|node| match node.kind {
                    NodeKind::Feature { activation, .. } => Some(activation),
                    _ => None,
                })
            };
            let set = |feature: &FeatureNode| Intervention::set(*feature, activation(feature).unwrap() * effect.factor as f32);
            let set: Vec<Intervention> = effect.group.features.iter().map(set).collect();
            let config = InterveneConfig { mode, top: replacement.model().vocab(), ..InterveneConfig::default() };
            let alone = replacement.intervene(&TOKENS, &set, &config).unwrap();
            for ((token, ..), (predicted, measured)) in some.outputs.iter().zip(effect.predicted.iter().zip(&effect.measured)) {
                let one = alone.outputs.iter().find(|output| output.token == *token).unwrap();
                let apart = (one.predicted - predicted).abs().max((one.measured - measured).abs());
                assert!(apart <= 2e-5 * f64::from(top), "{arch}, {}: {apart:e} apart", effect.group.name);
            }
        }
        let moved = |check: &SupernodeCheck| check.effects.iter().flat_map(|effect| effect.measured.clone()).fold(0.0, |most: f64, change| most.max(change.abs()));
        assert!(moved(&some) > 0.0);
    }
}

/// Both correlations by hand, with ties: ranks of (1, 4, 4, 9) are 0, 1.5, 1.5, 3.
#[test]
fn correlations_by_hand() {
    let control = |predicted: &[f64], measured: &[f64]| Control { features: vec![], mass: 0.0, predicted: predicted.to_vec(), measured: measured.to_vec() };
    let effect = |predicted: &[f64], measured: &[f64]| SupernodeEffect {
        group: Supernode::new("a", &[]), factor: 0.0, mass: 0.0, predicted: predicted.to_vec(), measured: measured.to_vec(),
        controls: vec![control(&[0.0, 1.0], &[1.0, -1.0]), control(&[5.0, 5.0], &[0.5, 0.5])],
    };
    let effects = vec![effect(&[1.0, 2.0], &[1.0, 4.0]), effect(&[3.0, 4.0], &[4.0, 9.0])];
    let mut check = SupernodeCheck { prompt: String::new(), mode: Mode::Open, outputs: vec![], effects };
    // x: 1 2 3 4, y: 1 4 4 9: sums of products 12, 5, 33.
    assert!((check.agreement().pearson.unwrap() - 12.0 / (5.0_f64 * 33.0).sqrt()).abs() < 1e-12);
    // Ranks: 0 1 2 3 and 0 1.5 1.5 3: 4.5, 5, 4.5.
    assert!((check.agreement().spearman.unwrap() - 4.5 / (5.0_f64 * 4.5).sqrt()).abs() < 1e-12);
    let (own, random) = check.sizes();
    assert!((own - (114.0_f64 / 4.0).sqrt()).abs() < 1e-12 && (random - (2.5_f64 / 4.0).sqrt()).abs() < 1e-12);
    check.effects.truncate(1);
    check.effects[0].measured = vec![2.0, 2.0];
    assert!(check.agreement().pearson.is_none() && check.summary().contains('–'));
}

/// Features 0 and 1 do the same, feature 2 something else, feature 3 the same as 0 at another position.
#[test]
fn likes_are_grouped() {
    let feature = |layer, position, feature| FeatureNode { layer, position, feature };
    let active = vec![feature(0, 1, 4), feature(0, 1, 9), feature(0, 1, 11), feature(0, 2, 4)];
    // Nodes: 4 features | 2·3 errors | 3 tokens | 2 logits.
    let n = 15;
    let mut matrix = vec![0.0; n * n];
    for (target, source, weight) in [
        (0, 11, 1.0), (1, 11, 2.0), (2, 10, 1.0), (3, 12, 1.0),
        (13, 0, 0.5), (13, 1, 0.25), (14, 2, 2.0), (13, 3, 0.125),
    ] {
        matrix[target * n + source] = weight;
    }
    let graph = Graph::new(GraphParts {
        model_name: "hand".into(),
        prompt: "a b c".into(),
        tokens: vec![0, 1, 2],
        token_text: vec!["a".into(), "b".into(), "c".into()],
        layers: 2,
        activations: vec![1.0, 2.0, 4.0, 1.0],
        selected: vec![0, 1, 2, 3],
        active: active.clone(),
        logits: vec![LogitTarget { token: 5, text: "x".into(), probability: 0.6 }, LogitTarget { token: 6, text: "y".into(), probability: 0.3 }],
        position_nodes: false,
        edges: Edges::from_dense(&matrix, n).unwrap(),
        zero_positions: vec![0],
        complete: true,
    })
    .unwrap();
    let groups = graph.supernodes(10);
    let members: BTreeSet<Vec<FeatureNode>> = groups.iter().map(|group| group.features.clone()).collect();
    assert_eq!(members, BTreeSet::from([vec![active[0], active[1]], vec![active[2]], vec![active[3]]]));
    assert_eq!(groups[0].features.len(), 2, "the most influential first");
    assert_eq!(groups[0].name, "\"b\" at 1, layer 0");
    assert_eq!(graph.supernodes(1).len(), 1);
    // Ablating both takes their edges away; the other output stays.
    assert_eq!(graph.predicted(&[(0, 0.0), (1, 0.0)], true).unwrap(), [-0.75, 0.0]);
}

#[test]
fn groups_in_files_and_groups_that_are_refused() {
    let folder = scratch("groups");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        Supernode::load(folder.join(name))
    };
    let group = Supernode::new("say \"x\"", &[FeatureNode { layer: 2, position: 7, feature: 31 }, FeatureNode { layer: 0, position: 1, feature: 0 }]);
    let text = r#"[["say \"x\"", "2_31_7", "0_0_1"]]"#;
    assert_eq!(write("plain.json", text).unwrap(), [group.clone()]);
    assert_eq!(write("viewer.json", &format!(r#"{{"metadata": {{}}, "qParams": {{"pinnedIds": [], "supernodes": {text}}}}}"#)).unwrap(), [group]);
    for (name, text) in [("object.json", "{}"), ("id.json", r#"[["a", "1_error_mlp_3"]]"#), ("empty.json", "[[]]"), ("broken.json", "[[")] {
        assert_eq!(write(name, text).unwrap_err().kind(), ErrorKind::BadFile, "{name}");
    }

    let (graph, given) = (whole("gpt2"), replacement("gpt2"));
    // A graph's file keeps groups: what is written is read.
    let pruned = graph.prune(&PruneConfig::default()).unwrap();
    let groups = pruned.supernodes(4);
    pruned.save(folder.join("graph.json"), &GraphSaveConfig { supernodes: groups.to_vec(), ..Default::default() }).unwrap();
    assert_eq!(Supernode::load(folder.join("graph.json")).unwrap(), groups);
    let saved: serde_json::Value = cltlab::internal::files::read_json(folder.join("graph.json")).unwrap();
    let pinned = groups.iter().map(|group| group.features.len()).sum::<usize>() + graph.logits().len();
    assert_eq!(saved["qParams"]["pinnedIds"].as_array().unwrap().len(), pinned);
    let gone = [Supernode::new("gone", &[FeatureNode { layer: 0, position: 0, feature: 1 }])];
    assert_eq!(pruned.save(folder.join("graph.json"), &GraphSaveConfig { supernodes: gone.to_vec(), ..Default::default() }).unwrap_err().kind(), ErrorKind::BadInput);
    let top = graph.top_features(2);
    let refused = |groups: &[Supernode], config: SupernodeConfig, kind: ErrorKind, word: &str| {
        let error = given.check_supernodes(&graph, groups, &config).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(word), "{error}");
    };
    let usual = SupernodeConfig::default;
    let one = [Supernode::new("one", &top)];
    refused(&[], usual(), ErrorKind::BadInput, "none");
    refused(&[Supernode::new("nothing", &[])], usual(), ErrorKind::BadInput, "nothing");
    refused(&[Supernode::new("twice", &[top[0], top[0]])], usual(), ErrorKind::BadInput, "twice");
    refused(&[Supernode::new("gone", &[FeatureNode { layer: 0, position: 0, feature: 1 }])], usual(), ErrorKind::BadInput, "gone");
    refused(&one, SupernodeConfig { factors: vec![], ..usual() }, ErrorKind::BadConfig, "factors");
    refused(&one, SupernodeConfig { factors: vec![1.0], ..usual() }, ErrorKind::BadConfig, "factors");
    refused(&one, SupernodeConfig { factors: vec![f64::NAN], ..usual() }, ErrorKind::BadConfig, "factors");
    refused(&one, SupernodeConfig { mode: Mode::Layers { start: 1, end: 1 }, ..usual() }, ErrorKind::BadConfig, "mode");
    assert_eq!(replacement("llama").check_supernodes(&graph, &one, &usual()).unwrap_err().kind(), ErrorKind::Mismatch);
    assert_eq!(graph.predicted(&[(graph.nodes.len() - 1, 0.0)], true).unwrap_err().kind(), ErrorKind::BadInput);
}
