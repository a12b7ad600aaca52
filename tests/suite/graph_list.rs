//! `graph-metadata.json` beside graphs, and graphs read back from their files.

use crate::attribution::{replacement, TOKENS};
use crate::command_line::{done, refused, run};
use crate::support::{assert_close, scratch};
use cltlab::prelude::*;
use serde_json::{json, Value};
use std::path::Path;

fn pruned() -> Graph {
    replacement("gpt2").attribute(&TOKENS, &AttributeConfig::default()).unwrap().prune(&PruneConfig::default()).unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn slugs(folder: &Path) -> Vec<String> {
    let list = json_of(&folder.join("graph-metadata.json"));
    list["graphs"].as_array().unwrap().iter().map(|graph| graph["slug"].as_str().unwrap().to_string()).collect()
}

#[test]
fn every_graph_is_listed_once() {
    let (graph, folder) = (pruned(), scratch("graph-list"));
    let list = folder.join("graph-metadata.json");
    std::fs::write(&list, json!({"graphs": [{"slug": "other", "title_prefix": "kept"}, {"slug": "a", "old": true}, {"slug": "a"}], "more": 1}).to_string()).unwrap();
    for name in ["a", "b", "a"] {
        graph.save(folder.join(format!("{name}.json")), &GraphSaveConfig::default()).unwrap();
    }
    assert_eq!(slugs(&folder), ["other", "a", "b"]);
    let all = json_of(&list);
    assert_eq!((&all["more"], &all["graphs"][0]["title_prefix"]), (&json!(1), &json!("kept")));
    // An entry is the file's metadata, which circuit-tracer's page reads.
    assert_eq!(all["graphs"][1], json_of(&folder.join("a.json"))["metadata"]);
    let json = GraphSaveConfig { format: Some(GraphFormat::Json), ..GraphSaveConfig::default() };
    // What the page could not ask for by its slug is not listed; nor is what is no file.
    graph.save(folder.join("a b.json"), &GraphSaveConfig::default()).unwrap();
    graph.save(folder.join("graph.txt"), &json).unwrap();
    graph.save("/dev/null", &json).unwrap();
    assert_eq!(slugs(&folder), ["other", "a", "b"]);
    assert_eq!(graph.save(&list, &GraphSaveConfig::default()).unwrap_err().kind(), ErrorKind::BadInput);
    // A list that cannot be read stays.
    for text in ["{\"graphs\": [", "[]", "{\"graphs\": {}}"] {
        std::fs::write(&list, text).unwrap();
        let error = graph.save(folder.join("c.json"), &GraphSaveConfig::default()).unwrap_err();
        assert!(error.kind() == ErrorKind::BadFile && error.to_string().contains("graph-metadata.json"), "{error}");
        assert_eq!(std::fs::read_to_string(&list).unwrap(), text);
    }
}

#[test]
fn writers_at_one_time_lose_no_entry() {
    let (graph, folder) = (pruned(), scratch("graph-list-many"));
    std::thread::scope(|threads| {
        for i in 0..8 {
            let (graph, folder) = (&graph, &folder);
            threads.spawn(move || (0..4).for_each(|k| graph.save(folder.join(format!("g{i}-{}.json", k % 2)), &GraphSaveConfig::default()).unwrap()));
        }
    });
    let mut found = slugs(&folder);
    found.sort();
    let wanted: Vec<String> = (0..8).flat_map(|i| (0..2).map(move |k| format!("g{i}-{k}"))).collect();
    assert_eq!(found, wanted);
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_graph_reads_back() {
    let (graph, folder) = (pruned(), scratch("graph-load"));
    let file = folder.join("g.json");
    graph.save(&file, &GraphSaveConfig::default()).unwrap();
    let back = Graph::load(&file).unwrap();
    // Errors and features without an edge are not in the file.
    let linked: Vec<usize> = graph.edges().iter().flat_map(|edge| [edge.source, edge.target]).collect();
    let kept: Vec<&_> = graph.nodes.iter().enumerate().filter(|(i, node)| node.kind.is_end() || linked.contains(i)).map(|(_, node)| node).collect();
    assert_eq!(back.nodes.len(), kept.len());
    for (own, read) in kept.iter().zip(&back.nodes) {
        assert_eq!((graph.node_id(own), own.position), (back.node_id(read), read.position));
    }
    assert_eq!((back.layers(), back.prompt(), back.tokens(), back.token_text()), (graph.layers(), graph.prompt(), graph.tokens(), graph.token_text()));
    assert_eq!(back.pruned(), graph.pruned());
    assert_eq!(back.logits().iter().map(|logit| logit.token).collect::<Vec<_>>(), graph.logits().iter().map(|logit| logit.token).collect::<Vec<_>>());
    let effects = |graph: &Graph| {
        let mut effects: Vec<(String, f32)> = graph.edges().iter().map(|edge| (format!("{} {}", graph.node_id(&graph.nodes[edge.source]), graph.node_id(&graph.nodes[edge.target])), edge.weight)).collect();
        effects.sort_by(|a, b| a.0.cmp(&b.0));
        effects
    };
    let (own, read) = (effects(&graph), effects(&back));
    assert!(own.iter().map(|(ids, _)| ids).eq(read.iter().map(|(ids, _)| ids)));
    assert_close("weights", &read.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), &own.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), 1e-6);
    // The order of influence is the graph's.
    let order = |graph: &Graph| graph.top_features(10).iter().map(|place| format!("{place:?}")).collect::<Vec<_>>();
    assert_eq!(order(&back), order(&graph));
    assert!(back.picture().svg().contains("<svg"));
}

#[test]
fn files_that_are_no_graphs_are_refused() {
    let (graph, folder) = (pruned(), scratch("graph-load-bad"));
    let file = folder.join("g.json");
    graph.save(&file, &GraphSaveConfig::default()).unwrap();
    let whole = json_of(&file);
    let refuses = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let mut changed = whole.clone();
        change(&mut changed);
        std::fs::write(&file, changed.to_string()).unwrap();
        let error = Graph::load(&file).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "'{error}' does not say '{word}'"));
    };
    refuses(&|graph| graph["nodes"][0]["ctx_idx"] = json!(4_000_000_000_u64), &["ctx_idx", "g.json"]);
    refuses(&|graph| graph["nodes"][0]["layer"] = json!("99999999999"), &["layer", "99999999999"]);
    refuses(&|graph| graph["nodes"][0]["node_id"] = graph["nodes"][1]["node_id"].clone(), &["twice"]);
    refuses(&|graph| graph["nodes"][0]["feature_type"] = json!("lorsa"), &["feature_type", "lorsa"]);
    refuses(&|graph| graph["links"][0]["source"] = json!("nowhere"), &["links", "nowhere"]);
    refuses(&|graph| graph["links"][0]["weight"] = json!(1e39), &["too large"]);
    refuses(&|graph| graph["links"] = Value::Null, &["null", "g.json"]);
    refuses(&|graph| *graph = json!([]), &["list", "object"]);
}

#[test]
fn attribute_lists_and_draws_its_graph() {
    let folder = scratch("attribute-list");
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    done(&run("gpt2", "attribute", &["-o", &at("dallas.json"), "--picture", &at("dallas.svg")]));
    assert_eq!(slugs(&folder), ["dallas"]);
    let svg = std::fs::read_to_string(folder.join("dallas.svg")).unwrap();
    assert!(svg.contains("<svg") && svg.contains("Attribution graph"));
    refused(&run("gpt2", "attribute", &["-o", &at("none/x.json")]), &["no folder", "make the folder"]);
    refused(&run("gpt2", "attribute", &["-o", &at("x.json"), "--picture", &at("x.bmp")]), &[".svg"]);
}
