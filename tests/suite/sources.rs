//! Position embeddings as nodes, and edges in files.

use crate::attribution::{dense, replacement};
use crate::support::{fixture, scratch};
use cltlab::candle::{safetensors, Device};
use cltlab::clt::Clt;
use cltlab::graph::{AttributeConfig, Graph, NodeKind, PruneConfig};
use cltlab::replacement::Replacement;
use cltlab::{ErrorKind, Model};

/// No token twice.
const TOKENS: [u32; 9] = [0, 42, 17, 63, 8, 120, 5, 77, 31];

fn whole() -> AttributeConfig {
    AttributeConfig { max_features: None, ..AttributeConfig::default() }
}

/// The fixture's GPT-2 with each position's embedding moved into that of the token that stands there: it computes
/// the same on these tokens, up to the logits, whose matrix is the embedding's.
fn moved() -> Replacement {
    let from = fixture("attribution/gpt2");
    let folder = scratch("positions-moved");
    std::fs::create_dir_all(&folder).unwrap();
    for file in std::fs::read_dir(from.join("model")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let path = folder.join("model.safetensors");
    let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
    let name = |end: &str| tensors.keys().find(|name| name.ends_with(end)).unwrap().clone();
    let (tokens, positions) = (name("wte.weight"), name("wpe.weight"));
    let mut wte = tensors[&tokens].to_vec2::<f32>().unwrap();
    let mut wpe = tensors[&positions].to_vec2::<f32>().unwrap();
    for (p, token) in TOKENS.iter().enumerate() {
        for (token, position) in wte[*token as usize].iter_mut().zip(&mut wpe[p]) {
            *token += std::mem::take(position);
        }
    }
    tensors.insert(tokens, cltlab::candle::Tensor::new(wte, &Device::Cpu).unwrap());
    tensors.insert(positions, cltlab::candle::Tensor::new(wpe, &Device::Cpu).unwrap());
    safetensors::save(&tensors, &path).unwrap();
    let model = Model::load(&folder.to_string_lossy(), &Device::Cpu).unwrap();
    Replacement::new(&model, &Clt::load(&from.join("clt").to_string_lossy(), &Device::Cpu).unwrap()).unwrap()
}

/// Where nodes of a kind begin.
fn first(graph: &Graph, wanted: fn(&NodeKind) -> bool) -> usize {
    graph.nodes.iter().position(|node| wanted(&node.kind)).unwrap()
}

#[test]
fn a_position_adds_to_its_token() {
    let gpt2 = replacement("gpt2");
    let plain = gpt2.attribute_tokens(&TOKENS, &whole()).unwrap();
    let both = gpt2.attribute_tokens(&TOKENS, &AttributeConfig { position_nodes: true, ..whole() }).unwrap();
    let moved = moved().attribute_tokens(&TOKENS, &whole()).unwrap();
    let (tokens, count) = (first(&plain, |kind| matches!(kind, NodeKind::Token { .. })), TOKENS.len());
    assert_eq!(first(&both, |kind| *kind == NodeKind::Position), tokens + count);
    assert_eq!(first(&both, |kind| matches!(kind, NodeKind::Logit { .. })), tokens + 2 * count);
    assert_eq!(both.nodes.len(), plain.nodes.len() + count);
    let top = plain.edges().iter().fold(0f32, |top, edge| top.max(edge.weight.abs()));
    let (mut seen, mut most) = (0, 0f32);
    for target in 0..plain.nodes.len() - plain.logits().len() {
        for p in 0..count {
            let [token, position] = [tokens + p, tokens + count + p].map(|source| both.edges().weight(source, target));
            assert_eq!(token, plain.edges().weight(tokens + p, target));
            let together = moved.edges().weight(tokens + p, target);
            assert!((token + position - together).abs() <= 1e-5 * top, "target {target} at {p}: {token} + {position} is not {together}");
            seen += usize::from(position != 0.0);
            most = most.max(position.abs());
        }
    }
    assert!(seen > 100 && most > 1e-3 * top, "{seen} effects of positions, the largest {most} of {top}");
    // What is not a position is as without.
    let logit = |graph: &Graph| first(graph, |kind| matches!(kind, NodeKind::Logit { .. }));
    for source in 0..tokens + count {
        assert_eq!(both.edges().weight(source, logit(&both)), plain.edges().weight(source, logit(&plain)));
    }
    assert!(both.scores().replacement > 0.0 && both.scores().replacement <= 1.0);
    let pruned = both.prune(&PruneConfig::default()).unwrap();
    assert_eq!(pruned.nodes.iter().filter(|node| node.kind == NodeKind::Position).count(), count);
    let file = scratch("positions").join("graph.json");
    pruned.save_json(&file).unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains("\"P_3_3\"") && text.contains("position 3"));
}

#[test]
fn rotary_positions_are_no_nodes() {
    let error = replacement("llama").attribute_tokens(&TOKENS, &AttributeConfig { position_nodes: true, ..whole() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadConfig);
    assert!(error.to_string().contains("position_nodes"), "{error}");
}

#[test]
fn edges_in_files_are_the_same() {
    for budget in [None, Some(40)] {
        let folder = scratch("spill");
        std::fs::create_dir_all(&folder).unwrap();
        let config = AttributeConfig { max_features: budget, ..AttributeConfig::default() };
        let gpt2 = replacement("gpt2");
        let held = gpt2.attribute_tokens(&TOKENS, &config).unwrap();
        let spilled = gpt2.attribute_tokens(&TOKENS, &AttributeConfig { spill: Some(folder.clone()), ..config }).unwrap();
        assert_eq!(dense(&held), dense(&spilled));
        assert_eq!(held.edges(), spilled.edges());
        let masks = [&held, &spilled].map(|graph| graph.prune_mask(&PruneConfig::default()).unwrap());
        assert_eq!(masks[0], masks[1]);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "files without names leave none");
        let copy = spilled.clone();
        drop(spilled);
        assert_eq!(dense(&held), dense(&copy));
    }
}

#[test]
fn folders_that_cannot_be_spilled_to() {
    let gpt2 = replacement("gpt2");
    let error = gpt2.attribute_tokens(&TOKENS, &AttributeConfig { spill: Some(scratch("none").join("not-there")), ..whole() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingFile);
    assert!(error.to_string().contains("spill"), "{error}");
}
