//! Position embeddings as nodes, and edges in files.

use crate::attribution::{dense, replacement};
use crate::attribution_speed::{random_clt, save_random_gpt2};
use crate::support::{fixture, scratch};
use cltlab::candle::{safetensors, Device};
use cltlab::clt::{Clt, CltLoadConfig};
use cltlab::graph::{AttributeConfig, Graph, NodeKind, PruneConfig};
use cltlab::model::LoadConfig;
use cltlab::replacement::Replacement;
use cltlab::{ErrorKind, Model};
use std::path::Path;
use std::process::{Command, Output};

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
    let model = Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap();
    Replacement::new(&model, &Clt::load(from.join("clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap()).unwrap()
}

/// Where nodes of a kind begin.
fn first(graph: &Graph, wanted: fn(&NodeKind) -> bool) -> usize {
    graph.nodes.iter().position(|node| wanted(&node.kind)).unwrap()
}

#[test]
fn a_position_adds_to_its_token() {
    let gpt2 = replacement("gpt2");
    let plain = gpt2.attribute(&TOKENS, &whole()).unwrap();
    let both = gpt2.attribute(&TOKENS, &AttributeConfig { position_nodes: true, ..whole() }).unwrap();
    let moved = moved().attribute(&TOKENS, &whole()).unwrap();
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
    pruned.save(&file, &Default::default()).unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains("\"P_3_3\"") && text.contains("position 3"));
}

#[test]
fn rotary_positions_are_no_nodes() {
    let error = replacement("llama").attribute(&TOKENS, &AttributeConfig { position_nodes: true, ..whole() }).unwrap_err();
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
        let held = gpt2.attribute(&TOKENS, &config).unwrap();
        let spilled = gpt2.attribute(&TOKENS, &AttributeConfig { spill: Some(folder.clone()), ..config }).unwrap();
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
    let error = gpt2.attribute(&TOKENS, &AttributeConfig { spill: Some(scratch("none").join("not-there")), ..whole() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingFile);
    assert!(error.to_string().contains("spill"), "{error}");
}

/// Runs a command in a name space of its own in which `folder` is a disk of so many megabytes, and says how it ended.
/// What is left in the folder goes to standard output.
fn on_a_disk(megabytes: usize, folder: &Path, command: &mut Command) -> Output {
    const SCRIPT: &str = r#"mount -t tmpfs -o size="$1"m none "$2" || exit 99; at=$2; shift 2; "$@"; code=$?; ls -A "$at"; exit $code"#;
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh", &megabytes.to_string()]).arg(folder);
    inside.arg(command.get_program()).args(command.get_args()).output().unwrap()
}

#[test]
#[ignore = "needs a small disk that a user may mount (unshare --user --mount)"]
fn a_full_disk_stops_spilling() {
    let folder = scratch("spill-full");
    let (spill, out) = (folder.join("spill"), folder.join("graph.json"));
    std::fs::create_dir_all(&spill).unwrap();
    std::fs::write(&out, "before").unwrap();
    let model = save_random_gpt2(4, 64, 200, 64, &folder.join("model"));
    random_clt(4, 64, 512, 24).save(folder.join("clt"), &Default::default()).unwrap();
    let ids: Vec<String> = (0..48).map(|i| (i * 7 % 200).to_string()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cltlab"));
    command.args(["attribute", "--tokens", &ids.join(",")]);
    for (name, path) in [("--model", &model), ("--clt", &folder.join("clt")), ("--spill", &spill), ("--output", &out)] {
        command.arg(name).arg(path);
    }
    // The edges take 40 MB; the files that hold them begin with a megabyte each and double.
    for megabytes in [2, 12] {
        let output = on_a_disk(megabytes, &spill, &mut command);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.status.code() != Some(99), "{megabytes} MB: {text}");
        assert!(text.contains("No space left") && text.contains("free some"), "{megabytes} MB: {text}");
        assert!(output.stdout.is_empty(), "{megabytes} MB: something was left: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "before");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 4, "a temporary file was left");
    }
    // With room enough it is done.
    let output = on_a_disk(400, &spill, &mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read_to_string(&out).unwrap().starts_with('{'));
}
