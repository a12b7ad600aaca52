//! Files of graphs: JSON against circuit-tracer's own file of the same prompt, arrays read back.

use crate::attribution::{replacement, TOKENS};
use crate::support::{assert_close, fixture, scratch, tensors, values};
use cltlab::graph::{AttributeConfig, Edges, Graph, GraphFormat, GraphParts, GraphSaveConfig, LogitTarget, PruneConfig};
use cltlab::ErrorKind;
use serde_json::Value;
use std::collections::BTreeMap;

fn whole(arch: &str) -> Graph {
    replacement(arch).attribute(&TOKENS, &AttributeConfig::default()).unwrap()
}

fn written(graph: &Graph, name: &str) -> Value {
    let path = scratch(&format!("json {name}")).join(format!("{name}.json"));
    graph.save(&path, &Default::default()).unwrap();
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Our id of a node of circuit-tracer's file: only errors are named differently.
fn our_id(node: &Value) -> String {
    match node["feature_type"].as_str().unwrap() {
        "mlp reconstruction error" => format!("{}_error_mlp_{}", node["layer"].as_str().unwrap(), node["ctx_idx"]),
        _ => node["node_id"].as_str().unwrap().to_string(),
    }
}

#[test]
fn file_of_circuit_tracer() {
    for arch in ["gpt2", "llama"] {
        let ours = written(&whole(arch).prune(&PruneConfig::default()).unwrap(), arch);
        let path = fixture(&format!("attribution/{arch}/graph/fixture-{arch}.json"));
        let theirs: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let list = |file: &Value, field: &str| file[field].as_array().unwrap().clone();
        let mine: BTreeMap<String, Value> = list(&ours, "nodes").into_iter().map(|node| (node["node_id"].as_str().unwrap().into(), node)).collect();
        assert_eq!(mine.len(), list(&theirs, "nodes").len(), "{arch}: nodes");
        for node in list(&theirs, "nodes") {
            let own = mine.get(&our_id(&node)).unwrap_or_else(|| panic!("{arch}: no node {}", our_id(&node)));
            for (field, value) in node.as_object().unwrap() {
                match (field.as_str(), value.as_f64()) {
                    ("node_id", _) => {}
                    ("jsNodeId", _) if node["feature_type"] == "mlp reconstruction error" => {}
                    (_, Some(number)) => assert!((own[field].as_f64().unwrap() - number).abs() < 1e-5, "{field}: {own} {node}"),
                    (_, None) => assert_eq!(&own[field], value, "{field}: {own} {node}"),
                }
            }
        }
        // Their id of an error, `0_{layer}_{position}`, is also that of a feature of layer 0, and in this
        // very file feature 0/1 and the error of layer 1 meet at position 11. So their ids are compared.
        let their_id = |id: &str| match id.split_once("_error_mlp_") {
            Some((layer, position)) => format!("0_{layer}_{position}"),
            None => id.to_string(),
        };
        let links = |file: &Value, rename: &dyn Fn(&str) -> String| -> Vec<(String, String, f64)> {
            let id = |link: &Value, field: &str| rename(link[field].as_str().unwrap());
            let mut links: Vec<_> =
                list(file, "links").iter().map(|link| (id(link, "source"), id(link, "target"), link["weight"].as_f64().unwrap())).collect();
            links.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)).then(a.2.total_cmp(&b.2)));
            links
        };
        let (mine, theirs) = (links(&ours, &their_id), links(&theirs, &str::to_string));
        assert_eq!(mine.len(), theirs.len(), "{arch}: links");
        for (a, b) in mine.iter().zip(&theirs) {
            assert!(a.0 == b.0 && a.1 == b.1 && (a.2 - b.2).abs() < 1e-5, "{arch}: {a:?} {b:?}");
        }
    }
}

#[test]
fn metadata_and_view() {
    let file = written(&whole("gpt2").prune(&PruneConfig::default()).unwrap(), "two words!");
    let metadata = &file["metadata"];
    assert_eq!(metadata["slug"], "two-words-");
    assert_eq!(metadata["schema_version"], 1);
    assert_eq!(metadata["node_threshold"], 0.8);
    assert_eq!(metadata["prompt_tokens"].as_array().unwrap().len(), 12);
    assert_eq!(file["qParams"]["linkType"], "both");
    for field in ["pinnedIds", "supernodes", "clickedId", "sg_pos"] {
        assert!(!file["qParams"][field].is_null(), "{field}");
    }
}

/// Cantor numbers that the field knows: Neuronpedia's fixture and circuit-tracer's issue 77.
#[test]
fn cantor_numbers() {
    assert_eq!(cltlab::graph::cantor(0, 18_753), 175_865_634);
    assert_eq!(cltlab::graph::cantor(1, 57_794), 1_670_217_704);
    assert_eq!(cltlab::graph::cantor(47, 4_000_000_000), 8_000_000_194_000_001_128);
}

fn tiny(text: &str, probability: f32) -> GraphParts {
    GraphParts {
        model_name: "tiny".into(),
        prompt: "a".into(),
        tokens: vec![0, 1],
        token_text: vec!["<s>".into(), "a".into()],
        layers: 1,
        active: vec![],
        activations: vec![],
        selected: vec![],
        logits: vec![LogitTarget { token: 5, text: text.into(), probability }],
        position_nodes: false,
        edges: Edges::default(),
        zero_positions: vec![0],
        complete: true,
    }
}

/// Readers take what stands between the first quotes, and what follows `(p=`.
#[test]
fn labels_survive_readers() {
    for text in ["\"", "a\"b\"", " (p=0.9)", "\n", "\\", "</script>", "é"] {
        let file = written(&Graph::new(tiny(text, 0.25)).unwrap(), "label");
        let nodes = file["nodes"].as_array().unwrap();
        let clerp = nodes.iter().find(|node| node["feature_type"] == "logit").unwrap()["clerp"].as_str().unwrap();
        let number = clerp.split("(p=").nth(1).unwrap().split(')').next().unwrap();
        assert_eq!(number, "0.250", "{clerp}");
        assert_eq!(clerp.matches('"').count(), 2, "{clerp}");
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    assert_eq!(Graph::new(tiny("a", f32::NAN)).unwrap_err().kind(), ErrorKind::NotFinite);
    let graph = Graph::new(tiny("a", 0.5)).unwrap();
    let mut broken = graph.clone();
    broken.nodes[2].cumulative = f32::INFINITY;
    let path = scratch("nan").join("graph.json");
    std::fs::write(&path, "before").unwrap();
    assert_eq!(broken.save(&path, &Default::default()).unwrap_err().kind(), ErrorKind::NotFinite);
    assert_eq!(graph.save(path.with_extension("svg"), &Default::default()).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
    assert_eq!(graph.save(path.with_file_name("missing").join("graph.json"), &Default::default()).unwrap_err().kind(), ErrorKind::MissingFile);
}

#[test]
fn arrays_read_back() {
    let graph = whole("llama");
    let path = scratch("raw").join("graph.safetensors");
    graph.save(&path, &GraphSaveConfig { format: Some(GraphFormat::Arrays), ..Default::default() }).unwrap();
    let (got, want) = (tensors(&path), tensors(&fixture("attribution/llama/expected.safetensors")));
    for name in ["active_features", "activation_values", "selected_features", "logit_token_ids", "logit_probabilities", "adjacency_matrix", "node_influence"] {
        assert_eq!(got[name].dims(), want[name].dims(), "{name}");
        assert_eq!(got[name].dtype(), want[name].dtype(), "{name}");
        assert_close(name, &values(&got[name]), &values(&want[name]), 1e-4);
    }
    assert_eq!(values(&got["node_mask"]), values(&want["node_mask_0.8_0.98"]));
    let n = graph.nodes.len();
    let kept: Vec<f32> = values(&got["edge_mask"]).iter().enumerate().filter(|(_, kept)| **kept > 0.0).flat_map(|(i, _)| [(i / n) as f32, (i % n) as f32]).collect();
    assert_eq!(kept, values(&want["kept_edges_0.8_0.98"]));
    assert!((f64::from(values(&got["replacement_score"])[0]) - graph.scores().replacement).abs() < 1e-6);
    assert!((f64::from(values(&got["completeness_score"])[0]) - graph.scores().completeness).abs() < 1e-6);
    let pruned = graph.prune(&PruneConfig::default()).unwrap();
    assert_eq!(pruned.save(&path, &GraphSaveConfig { format: Some(GraphFormat::Arrays), ..Default::default() }).unwrap_err().kind(), ErrorKind::BadInput);
}
