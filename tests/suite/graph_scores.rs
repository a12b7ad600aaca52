//! Influence, pruning and scores against circuit-tracer's numbers: its hand-made 12-node graph, and
//! its output on two tiny random models (`tests/fixtures/attribution`, made by circuit-tracer 0.4.1).

use crate::support::{assert_close, fixture, tensors, values};
use cltlab::candle::{DType, Tensor};
use cltlab::graph::influence::{edge_influence, node_influence};
use cltlab::graph::{Edges, Graph, GraphParts, LogitTarget, NodeKind, PruneConfig};
use cltlab::replacement::FeatureNode;
use cltlab::ErrorKind;
use std::collections::HashMap;

/// circuit-tracer's `test_small_graph`, with its fractions.
#[test]
fn hand_graph() {
    let mut dense = vec![0.0; 144];
    let mut set = |target: usize, sources: &[usize]| sources.iter().for_each(|source| dense[target * 12 + source] = 10.0);
    set(11, &[1, 3, 6, 8]);
    set(3, &[0, 1, 6]);
    set(1, &[9, 10]);
    set(0, &[9]);
    let mut weights = vec![0.0; 12];
    weights[11] = 1.0;
    let influence: Vec<f32> = node_influence(&Edges::from_dense(&dense, 12).unwrap(), &weights).iter().map(|i| *i as f32).collect();
    let t = 1.0_f32 / 12.0;
    assert_close("node influence", &influence, &[t, 4.0 * t, 0.0, 3.0 * t, 0.0, 0.0, 4.0 * t, 0.0, 3.0 * t, 3.0 * t, 2.0 * t, 0.0], 1e-7);

    dense[9] = 0.0; // effect of 9 on 0
    dense[3 * 12] = 0.0; // effect of 0 on 3
    let pruned = Edges::from_dense(&dense, 12).unwrap();
    let scores = edge_influence(&pruned, &weights);
    for (edge, score) in pruned.iter().zip(scores) {
        let expected = match edge.target {
            11 => 1.0 / 4.0,
            3 => 1.0 / 8.0,
            _ => 3.0 / 16.0,
        };
        assert!((score - expected).abs() < 1e-7, "{edge:?}: {score}, expected {expected}");
    }
    assert_eq!(pruned.len(), 8);
}

fn numbers(tensor: &Tensor) -> Vec<i64> {
    tensor.to_dtype(DType::I64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The fixture's graph rebuilt from circuit-tracer's adjacency.
fn rebuilt(arch: &str, file: &str) -> (Graph, HashMap<String, Tensor>) {
    let whole = tensors(&fixture(&format!("attribution/{arch}/expected.safetensors")));
    let part = tensors(&fixture(&format!("attribution/{arch}/{file}.safetensors")));
    let tokens: Vec<u32> = numbers(&whole["input_tokens"]).iter().map(|token| *token as u32).collect();
    let active = numbers(&whole["active_features"]);
    let probabilities = values(&part["logit_probabilities"]);
    let nodes = part["adjacency_matrix"].dim(0).unwrap();
    let parts = GraphParts {
        model_name: format!("fixture-{arch}"),
        prompt: String::new(),
        token_text: tokens.iter().map(|token| format!("w{token}")).collect(),
        tokens,
        layers: 3,
        active: active.chunks(3).map(|a| FeatureNode { layer: a[0] as usize, position: a[1] as usize, feature: a[2] as usize }).collect(),
        activations: values(&whole["activation_values"]),
        selected: numbers(&part["selected_features"]).iter().map(|index| *index as u32).collect(),
        logits: numbers(&part["logit_token_ids"])
            .iter()
            .zip(probabilities)
            .map(|(token, probability)| LogitTarget { token: *token as u32, text: format!("w{token}"), probability })
            .collect(),
        position_nodes: false,
        edges: Edges::from_dense(&values(&part["adjacency_matrix"]), nodes).unwrap(),
        zero_positions: vec![0],
        complete: true,
    };
    (Graph::new(parts).unwrap(), part)
}

fn json(arch: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(&format!("attribution/{arch}/expected.json"))).unwrap()).unwrap()
}

/// Asserts that pruning keeps exactly what circuit-tracer keeps.
pub fn assert_masks(graph: &Graph, expected: &HashMap<String, Tensor>, thresholds: &str, config: &PruneConfig) {
    let mask = graph.prune_mask(config).unwrap();
    let kept: Vec<i64> = mask.nodes.iter().map(|kept| i64::from(*kept)).collect();
    assert_eq!(kept, numbers(&expected[&format!("node_mask_{thresholds}")]), "kept nodes at {thresholds}");
    let edges: Vec<i64> =
        graph.edges().iter().zip(&mask.edges).filter(|(_, kept)| **kept).flat_map(|(edge, _)| [edge.target as i64, edge.source as i64]).collect();
    assert_eq!(edges, numbers(&expected[&format!("kept_edges_{thresholds}")]), "kept edges at {thresholds}");
}

#[test]
fn whole_graphs_of_circuit_tracer() {
    for arch in ["gpt2", "llama"] {
        let (graph, expected) = rebuilt(arch, "expected");
        let influence: Vec<f32> = graph.nodes.iter().map(|node| node.influence).collect();
        let cumulative: Vec<f32> = graph.nodes.iter().map(|node| node.cumulative).collect();
        assert_close(&format!("{arch} influence"), &influence, &values(&expected["node_influence"]), 1e-5);
        assert_close(&format!("{arch} cumulative"), &cumulative, &values(&expected["cumulative_scores"]), 1e-5);
        assert_masks(&graph, &expected, "0.8_0.98", &PruneConfig::default());
        assert_masks(&graph, &expected, "0.6_0.9", &PruneConfig { node_threshold: 0.6, edge_threshold: 0.9 });
        let (scores, wanted) = (graph.scores(), json(arch));
        assert!((scores.replacement - wanted["replacement_score"].as_f64().unwrap()).abs() < 1e-5, "{scores:?}");
        assert!((scores.completeness - wanted["completeness_score"].as_f64().unwrap()).abs() < 1e-5, "{scores:?}");
    }
}

#[test]
fn budgeted_graphs_of_circuit_tracer() {
    for arch in ["gpt2", "llama"] {
        let (graph, expected) = rebuilt(arch, "expected_top96");
        assert_masks(&graph, &expected, "0.8_0.98", &PruneConfig::default());
        let (scores, wanted) = (graph.scores(), json(arch));
        assert!((scores.replacement - wanted["top96"]["replacement_score"].as_f64().unwrap()).abs() < 1e-5, "{scores:?}");
        assert!((scores.completeness - wanted["top96"]["completeness_score"].as_f64().unwrap()).abs() < 1e-5, "{scores:?}");
    }
}

#[test]
fn pruned_graph_is_closed() {
    let (graph, _) = rebuilt("llama", "expected");
    let pruned = graph.prune(&PruneConfig::default()).unwrap();
    assert_eq!(pruned.scores(), graph.scores());
    assert!(pruned.nodes.len() < graph.nodes.len() && pruned.edges().len() < graph.edges().len());
    for (number, node) in pruned.nodes.iter().enumerate() {
        let (sources, _) = pruned.edges().into(number);
        if matches!(node.kind, NodeKind::Feature { .. }) {
            assert!(!sources.is_empty(), "{node:?} has no incoming edge");
        }
        assert!(sources.iter().all(|source| (*source as usize) < pruned.nodes.len()));
    }
    // The same effects between the same nodes.
    let place: HashMap<String, usize> = graph.nodes.iter().enumerate().map(|(i, node)| (graph.node_id(node), i)).collect();
    for edge in pruned.edges().iter() {
        let [source, target] = [edge.source, edge.target].map(|node| place[&pruned.node_id(&pruned.nodes[node])]);
        assert_eq!(graph.edges().weight(source, target), edge.weight);
    }
    let top = pruned.top_features(3);
    assert_eq!(top, graph.top_features(3));
}

#[test]
fn bad_graphs_and_thresholds() {
    let (graph, _) = rebuilt("gpt2", "expected_top96");
    for (node_threshold, edge_threshold, field) in [(1.5, 0.9, "node_threshold"), (0.8, f64::NAN, "edge_threshold"), (-0.1, 0.9, "node_threshold")] {
        let error = graph.prune(&PruneConfig { node_threshold, edge_threshold }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(field), "{error}");
    }
    assert_eq!(Edges::from_dense(&[0.0; 5], 2).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(Edges::from_dense(&[0.0, f32::NAN, 0.0, 0.0], 2).unwrap_err().kind(), ErrorKind::NotFinite);
    assert_eq!(Edges::from_dense(&[0.0, 1.0, 1.0, 0.0], 2).unwrap_err().kind(), ErrorKind::BadInput);
}
