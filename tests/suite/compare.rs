//! Differences and merges of graphs, by what must be conserved.

use crate::attribution::{replacement, TOKENS};
use crate::support::scratch;
use cltlab::graph::{Alignment, AttributeConfig, Graph, Node, NodeKind, PruneConfig};
use cltlab::ErrorKind;
use std::collections::BTreeMap;

fn graph(arch: &str, tokens: &[u32]) -> Graph {
    replacement(arch).attribute(tokens, &AttributeConfig { max_features: None, ..AttributeConfig::default() }).unwrap()
}

/// The same prompt with other tokens in the middle, and one that is shorter at the start.
const OTHER: [u32; 12] = [0, 17, 5, 99, 42, 80, 63, 8, 120, 5, 77, 31];
const SHORT: [u32; 9] = [0, 42, 17, 63, 8, 120, 5, 77, 31];

/// Edges by names of their ends, positions counted from the end.
fn named(graph: &Graph, last: usize) -> BTreeMap<(String, String), f32> {
    let name = |node: &Node| match node.kind {
        NodeKind::Feature { layer, feature, .. } => format!("f {layer} {feature} {}", last - node.position),
        NodeKind::Error { layer } => format!("e {layer} {}", last - node.position),
        NodeKind::Token { .. } => format!("t {}", last - node.position),
        NodeKind::Position => format!("p {}", last - node.position),
        NodeKind::Logit { token, .. } => format!("l {token}"),
        _ => panic!("{node:?}"),
    };
    graph.edges().iter().filter(|edge| edge.weight != 0.0).map(|edge| ((name(&graph.nodes[edge.source]), name(&graph.nodes[edge.target])), edge.weight)).collect()
}

#[test]
fn a_graph_and_itself() {
    for arch in ["gpt2", "llama"] {
        let whole = graph(arch, &TOKENS);
        for graph in [whole.prune(&PruneConfig::default()).unwrap(), whole] {
            for alignment in [Alignment::FromEnd, Alignment::FromStart, Alignment::Slots(vec![(0..12).rev().map(Some).collect(); 2])] {
                let difference = graph.difference(&graph, &alignment).unwrap();
                assert!(difference.is_empty() && difference.graph.edges().is_empty());
                assert!(difference.graph.nodes.iter().all(|node| node.kind.is_end()));
                assert!(difference.only().concat().is_empty());
            }
            let merged = Graph::merge(&[graph.clone()], &Alignment::FromEnd).unwrap();
            assert_eq!(merged.graph.nodes, graph.nodes);
            assert_eq!(named(&merged.graph, 11), named(&graph, 11));
            assert_eq!((merged.graph.scores(), merged.graph.logits(), merged.graph.pruned()), (graph.scores(), graph.logits(), graph.pruned()));
            assert_eq!((merged.graph.tokens(), merged.graph.token_text()), (graph.tokens(), graph.token_text()));
            // Twice the same is the same.
            let twice = Graph::merge(&[graph.clone(), graph.clone()], &Alignment::FromStart).unwrap();
            assert_eq!(named(&twice.graph, 11), named(&graph, 11));
            assert!((0..twice.graph.nodes.len()).all(|node| twice.overlay.count(node) == 2));
        }
    }
}

#[test]
fn weights_add_up() {
    for arch in ["gpt2", "llama"] {
        let graphs = [graph(arch, &TOKENS), graph(arch, &OTHER), graph(arch, &SHORT)];
        let names: Vec<_> = graphs.iter().map(|graph| named(graph, graph.tokens().len() - 1)).collect();
        let of = |which: usize, key: &(String, String)| f64::from(names[which].get(key).copied().unwrap_or(0.0));
        for other in [1, 2] {
            let difference = graphs[0].difference(&graphs[other], &Alignment::FromEnd).unwrap();
            assert!(!difference.is_empty());
            let changes = named(&difference.graph, 11);
            for key in names[0].keys().chain(names[other].keys()).chain(changes.keys()) {
                let change = f64::from(changes.get(key).copied().unwrap_or(0.0));
                assert!((of(0, key) - of(other, key) - change).abs() < 1e-6, "{key:?}");
            }
            for (edge, [first, second]) in difference.strongest(50) {
                assert!((first - second - edge.weight).abs() < 1e-6 && difference.overlay.weights(&edge) == [first, second]);
            }
            // A feature is in one, or in both, as the graphs say.
            let [first, second] = difference.only();
            assert!(!first.is_empty() && !second.is_empty());
            let places: Vec<_> = first.iter().map(|node| difference.graph.nodes[*node].feature().unwrap()).collect();
            assert!(places.iter().all(|place| graphs[0].places(&[*place]).is_ok()));
            // The other way round everything is turned round.
            let back = graphs[other].difference(&graphs[0], &Alignment::FromEnd).unwrap();
            let turned: BTreeMap<_, _> = named(&back.graph, 11).into_iter().map(|(key, weight)| (key, -weight)).collect();
            assert_eq!(turned, changes);
        }
        let merged = Graph::merge(&graphs, &Alignment::FromEnd).unwrap();
        let means = named(&merged.graph, 11);
        for key in names.iter().flat_map(|names| names.keys()) {
            let sum: f64 = (0..3).map(|which| of(which, key)).sum();
            assert!((3.0 * f64::from(means.get(key).copied().unwrap_or(0.0)) - sum).abs() < 1e-5, "{key:?}");
        }
        let total = |graph: &Graph| graph.nodes.iter().map(|node| f64::from(node.influence)).sum::<f64>();
        assert!((3.0 * total(&merged.graph) - graphs.iter().map(total).sum::<f64>()).abs() < 1e-4);
        assert!(merged.graph.prune(&PruneConfig::default()).unwrap().edges().len() < merged.graph.edges().len());
        println!("{arch}: {merged}\n{}", graphs[0].difference(&graphs[1], &Alignment::FromEnd).unwrap());
    }
}

/// Only features at the changed position and after it can differ: effects go forward.
#[test]
fn what_comes_before_a_change_is_the_same() {
    let (first, second) = (graph("llama", &TOKENS), graph("llama", &OTHER));
    let difference = first.difference(&second, &Alignment::FromStart).unwrap();
    let differs = |node: &Node| node.influence != 0.0 || matches!(node.kind, NodeKind::Feature { activation, .. } if activation != 0.0);
    let only = difference.only().concat();
    assert!(!only.is_empty() && only.iter().all(|node| difference.graph.nodes[*node].position >= 5));
    for edge in difference.graph.edges().iter().filter(|edge| difference.graph.nodes[edge.target].position < 5) {
        assert!(edge.weight.abs() < 1e-5, "{edge:?}");
    }
    assert!(difference.graph.nodes.iter().any(|node| differs(node) && node.position >= 5));
    assert_eq!(difference.graph.token_text()[5], format!("{} |{}", first.token_text()[5], second.token_text()[5]));
    // By hand: the same slots in another order, the changed position without a counterpart.
    let slots: Vec<Option<usize>> = (0..12).map(|position| (position != 5).then_some(100 + position)).collect();
    let apart = first.difference(&second, &Alignment::Slots(vec![slots.clone(), slots])).unwrap();
    assert_eq!(apart.graph.token_text().len(), 13);
    let sum = |graph: &Graph| graph.edges().iter().map(|edge| f64::from(edge.weight)).sum::<f64>();
    assert!((sum(&apart.graph) - (sum(&first) - sum(&second))).abs() < 1e-3);
}

#[test]
fn files_and_graphs_that_do_not_fit() {
    let (first, second) = (graph("gpt2", &TOKENS), graph("gpt2", &SHORT));
    let folder = scratch("compare");
    let difference = first.difference(&second, &Alignment::FromEnd).unwrap();
    difference.save(folder.join("raw.json")).unwrap();
    difference.graph.prune(&PruneConfig::default()).unwrap().save(folder.join("viewer.json"), &Default::default()).unwrap();
    let raw: serde_json::Value = cltlab::internal::files::read_json(folder.join("raw.json")).unwrap();
    assert_eq!(raw["edges"].as_array().unwrap().len(), difference.graph.edges().len());
    for edge in raw["edges"].as_array().unwrap().iter().take(200) {
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        assert!((number(&edge["weights"][0]) - number(&edge["weights"][1]) - number(&edge["weight"])).abs() < 1e-6);
    }
    let viewer: serde_json::Value = cltlab::internal::files::read_json(folder.join("viewer.json")).unwrap();
    assert!(!viewer["links"].as_array().unwrap().is_empty());
    Graph::merge(&[first.clone(), second.clone()], &Alignment::FromEnd).unwrap().save(folder.join("merged.json")).unwrap();

    let kind = |alignment: Alignment, word: &str| {
        let error = first.difference(&second, &alignment).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        error.kind()
    };
    let all = |n: usize| (0..n).map(Some).collect::<Vec<_>>();
    assert_eq!(kind(Alignment::Slots(vec![all(12)]), "1 lists"), ErrorKind::BadInput);
    assert_eq!(kind(Alignment::Slots(vec![all(12), all(12)]), "12 slots for graph 1"), ErrorKind::BadInput);
    assert_eq!(kind(Alignment::Slots(vec![all(12), vec![Some(3); 9]]), "slot 3 twice"), ErrorKind::BadInput);
    assert_eq!(Graph::merge(&[], &Alignment::FromEnd).unwrap_err().kind(), ErrorKind::BadInput);
    let parts = crate::pictures::hostile_graph();
    assert_eq!(first.difference(&parts, &Alignment::FromEnd).unwrap_err().kind(), ErrorKind::Mismatch);
}
