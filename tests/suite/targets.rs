//! Targets other than the likeliest tokens: differences, features, directions; several prompts.

use crate::attribution::{replacement, TOKENS};
use crate::support::{assert_close, scratch, values};
use cltlab::candle::Tensor;
use cltlab::graph::{AttributeConfig, Graph, PruneConfig, Target};
use cltlab::replacement::FeatureNode;
use cltlab::ErrorKind;

fn explain(arch: &str, targets: Vec<Target>) -> Graph {
    let config = AttributeConfig { targets: Some(targets), max_features: None, ..AttributeConfig::default() };
    replacement(arch).attribute(&TOKENS, &config).unwrap()
}

/// The effects on output `k`, one value a node.
fn row(graph: &Graph, k: usize) -> Vec<f32> {
    let first = graph.nodes.len() - graph.logits().len();
    (0..first).map(|source| graph.edges().weight(source, first + k)).collect()
}

#[test]
fn differences_are_differences() {
    for arch in ["gpt2", "llama"] {
        let graph = explain(arch, vec![Target::logit(80), Target::logit(3), Target::difference(80, 3)]);
        let expected: Vec<f32> = row(&graph, 0).iter().zip(row(&graph, 1)).map(|(a, b)| a - b).collect();
        assert_close(arch, &row(&graph, 2), &expected, 1e-6);
        let outputs: Vec<u32> = graph.logits().iter().map(|logit| logit.token).collect();
        assert_eq!(outputs, [80, 3, 130], "the third gets an id beyond the vocabulary");
        assert!(graph.logits().iter().all(|logit| logit.probability == 1.0 / 3.0));
        assert!(graph.scores().replacement > 0.0);
        graph.prune(&PruneConfig::default()).unwrap().save(scratch(&format!("difference-{arch}")).join("graph.json"), &Default::default()).unwrap();
        let error = replacement(arch).verify_edges(&graph, 5, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        // Plain logits keep their probabilities, as without the list.
        let config = AttributeConfig { targets: Some(vec![Target::logit("w80"), Target::logit("w3")]), max_features: None, ..AttributeConfig::default() };
        let tokens = replacement(arch).attribute(&TOKENS, &config).unwrap();
        let listed = explain(arch, vec![Target::logit(80), Target::logit(3)]);
        assert_eq!((tokens.edges(), tokens.logits()), (listed.edges(), listed.logits()));
    }
}

#[test]
fn features_are_targets_like_others() {
    for arch in ["gpt2", "llama"] {
        let whole = explain(arch, vec![Target::logit(80)]);
        for n in [0, whole.active_features().len() / 2, whole.active_features().len() - 1] {
            let place = whole.active_features()[n];
            let graph = explain(arch, vec![Target::Feature(place)]);
            let own: Vec<f32> = (0..graph.nodes.len() - 1).map(|source| whole.edges().weight(source, n)).collect();
            assert_close(&format!("{arch} {place}"), &row(&graph, 0), &own, 1e-6);
        }
    }
}

/// A direction before a block sees exactly what was written to the stream before it.
#[test]
fn directions_in_the_stream() {
    for arch in ["gpt2", "llama"] {
        let given = replacement(arch);
        let (width, last) = (given.model().width(), TOKENS.len() - 1);
        let local = given.local(&TOKENS, &Default::default()).unwrap();
        let direction: Vec<f32> = (0..width).map(|i| ((i * 37 % 11) as f32 - 5.0) / 7.0).collect();

        // Before block 0 only the token at the position is there.
        let graph = explain(arch, vec![Target::Residual { layer: 0, position: 4, direction: direction.clone() }]);
        let tokens = graph.nodes.len() - 1 - TOKENS.len();
        let embedding = values(&local.embeddings().get(4).unwrap());
        let product: f32 = embedding.iter().zip(&direction).map(|(a, b)| a * b).sum();
        assert_close("token", &[graph.edges().weight(tokens + 4, tokens + TOKENS.len())], &[product], 1e-5);
        assert_eq!(graph.edges().into(tokens + TOKENS.len()).0.len(), 1);

        // After the last block, a logit's direction taken back through the final norm is the logit.
        let unembedding = given.model().unembedding();
        let u = (unembedding.narrow(0, 80, 1).unwrap() - unembedding.mean_keepdim(0).unwrap()).unwrap();
        let at_end: Tensor = local.frozen().from_output(&u).unwrap().get(0).unwrap().get(last).unwrap();
        let both = explain(arch, vec![Target::logit(80), Target::Residual { layer: 3, position: last, direction: values(&at_end) }]);
        assert_close(&format!("{arch}: logit as a direction"), &row(&both, 1), &row(&both, 0), 1e-6);
    }
}

/// All paths by brute force on a pruned graph: the strongest ones, and their sum.
#[test]
fn strongest_paths() {
    for arch in ["gpt2", "llama"] {
        let config = AttributeConfig { max_features: Some(32), max_logits: 3, ..AttributeConfig::default() };
        let graph = replacement(arch).attribute(&TOKENS, &config).unwrap();
        let mut all: Vec<(f64, Vec<usize>)> = Vec::new();
        let mut open: Vec<(f64, Vec<usize>)> = Vec::new();
        for (k, logit) in graph.logits().iter().enumerate() {
            open.push((f64::from(logit.probability), vec![graph.nodes.len() - graph.logits().len() + k]));
        }
        while let Some((share, nodes)) = open.pop() {
            let (sources, effects) = graph.edges().into(nodes[0]);
            let sum: f64 = effects.iter().map(|effect| f64::from(effect.abs())).sum();
            if sources.is_empty() {
                all.push((share, nodes));
                continue;
            }
            for (source, effect) in sources.iter().zip(effects) {
                open.push((share * f64::from(effect.abs()) / sum, [&[*source as usize], &nodes[..]].concat()));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total: f64 = all.iter().map(|path| path.0).sum();
        let weight: f64 = graph.logits().iter().map(|logit| f64::from(logit.probability)).sum();
        assert!((total - weight).abs() < 1e-6, "shares add up to {total}, outputs to {weight}");
        let found = graph.paths(50);
        println!("{arch}: {} paths\n{}", all.len(), graph.explain(3));
        assert_eq!(found.len(), 50);
        for (path, (share, nodes)) in found.iter().zip(&all) {
            assert!((path.share - share).abs() < 1e-9 && (path.nodes == *nodes || (path.share - share).abs() < 1e-12), "{path:?}, expected {share} {nodes:?}");
        }
        assert_eq!(graph.explain(2).lines().count(), 2);
        assert!(graph.paths(0).is_empty());
    }
}

#[test]
fn targets_that_do_not_exist() {
    let replacement = replacement("gpt2");
    let refused = |target: Target, word: &str| {
        let config = AttributeConfig { targets: Some(vec![target]), ..AttributeConfig::default() };
        let error = replacement.attribute(&TOKENS, &config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains(word), "'{error}' does not say '{word}'");
    };
    refused(Target::logit(128), "vocabulary");
    refused(Target::difference(1, 128), "vocabulary");
    refused(Target::difference(1, "w1"), "itself");
    refused(Target::Feature(FeatureNode { layer: 3, position: 0, feature: 0 }), "layer");
    refused(Target::Feature(FeatureNode { layer: 0, position: 12, feature: 0 }), "position");
    refused(Target::Feature(FeatureNode { layer: 0, position: 1, feature: 128 }), "feature");
    refused(Target::Residual { layer: 4, position: 0, direction: vec![0.0; 32] }, "layer");
    refused(Target::Residual { layer: 3, position: 0, direction: vec![0.0; 31] }, "31 values");
    refused(Target::Residual { layer: 3, position: 0, direction: vec![f32::NAN; 32] }, "finite");
    refused(Target::logit("w1 w2"), "2 tokens: \"w1\", \"w2\"");
    refused(Target::logit(""), "0 tokens");
    refused(Target::difference("w1", "\"1\""), "token");
    let twice = AttributeConfig { targets: Some(vec![Target::logit(80), Target::logit("w80")]), ..AttributeConfig::default() };
    assert_eq!(replacement.attribute(&TOKENS, &twice).unwrap_err().kind(), ErrorKind::BadConfig);
    let config = AttributeConfig { targets: Some(Vec::new()), ..AttributeConfig::default() };
    assert_eq!(replacement.attribute(&TOKENS, &config).unwrap_err().kind(), ErrorKind::BadConfig);
}
