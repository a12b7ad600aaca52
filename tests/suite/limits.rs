//! Counts from which memory or time is computed, and numbers of layers, features and nodes that do not exist.

use crate::attribution::{replacement, TOKENS};
use crate::support::{fixture, largest, says, scratch, small_folder, tensors, values, words};
use crate::train_command::{cltlab, recipe, said};
use candle_core::{Device, Tensor};
use cltlab::activations::{InputSite, StoreConfig, StreamConfig};
use cltlab::candle as candle_core;
use cltlab::clt::Calibration;
use cltlab::graph::{Alignment, AttributeConfig, Edge};
use cltlab::intervene::SupernodeConfig;
use cltlab::model::Capture;
use cltlab::prelude::*;

const HUGE: [usize; 4] = [1 << 40, 1 << 62, usize::MAX / 2, usize::MAX];

#[test]
fn counts_of_a_configuration_are_bounded() {
    let refused = |result: Result<()>, words: &[&str]| says(&result.expect_err(words[0]), ErrorKind::BadConfig, words);
    let (model, text_of) = (crate::support::small_model(), Corpus::from_texts(vec![words(500, 1)]).unwrap());
    let streamed = |config: &StreamConfig| Activations::stream(&model, &text_of, config).map(|_| ());
    for huge in HUGE {
        let text = huge.to_string();
        refused(TrainConfig { steps: huge, ..Default::default() }.validate(), &["TrainConfig::steps", &text, "at most"]);
        refused(TrainConfig { batch_tokens: huge, ..Default::default() }.validate(), &["TrainConfig::batch_tokens", &text, "at most"]);
        refused(TrainConfig { aux_k: Some(huge), ..Default::default() }.validate(), &["TrainConfig::aux_k", &text, "at most"]);
        refused(streamed(&StreamConfig { context: 16, batch: huge, ..Default::default() }), &["StreamConfig::batch", &text, "at most"]);
        refused(streamed(&StreamConfig { context: 16, buffer_tokens: Some(huge), ..Default::default() }), &["StreamConfig::buffer_tokens", &text, "at most"]);
        refused(Activations::store(&model, &text_of, scratch("limits-store"), &StoreConfig { context: 16, batch: huge, ..Default::default() }).map(|_| ()), &["StoreConfig::batch", &text, "at most"]);
        refused(SupernodeConfig { controls: huge, ..Default::default() }.validate(), &["SupernodeConfig::controls", &text, "at most"]);
        refused(CltConfig { layers: huge, ..Default::default() }.validate(), &["CltConfig::layers", &text, "at most"]);
        refused(CltConfig { width: huge, layers: 2, features: 4, ..Default::default() }.validate(), &["CltConfig::width", &text, "at most"]);
    }
    let activations = crate::forged::tiny();
    let clt = crate::clt::random_clt(Activation::TopK { k: 2 }, 1, 2, 4, 1);
    let calibrated = |tokens| clt.calibrate(&activations, &Calibration { tokens, l0: Some(0.5), ..Default::default() }).map(|_| ());
    calibrated(16).unwrap();
    HUGE.into_iter().for_each(|huge| refused(calibrated(huge), &["Calibration::tokens", "at most"]));
    // Estimates of what cannot be are large, and no panic.
    let summary = Summary::read(fixture("attribution/gpt2/model").to_str().unwrap()).unwrap();
    assert!(summary.clt(usize::MAX).parameters > 1 << 63 && summary.cache(usize::MAX) > 1 << 62);
    assert!(StoreConfig::default().bytes(1 << 14, 1 << 24, usize::MAX) > 1 << 62);
}

/// Every key of the example that holds a whole number, given numbers that no machine has room or time for: the plan of a training
/// is made or refused, in no time.
#[test]
fn recipes_with_huge_numbers_are_planned_or_refused() {
    let folder = recipe("limits", "");
    let (model, text) = (small_folder(), folder.join("a.txt"));
    std::fs::write(&text, words(4_000, 1)).unwrap();
    let streamed = format!("[model]\nsource = {:?}\n[text]\nsource = {:?}\n[stream]\ncontext = 64\n[clt]\nfeatures = 64\nactivation = \"top_k\"\nk = 4\n[output]\nfolder = \"other\"\n", model.to_str().unwrap(), text.to_str().unwrap());
    std::fs::write(folder.join("streamed.toml"), streamed).unwrap();
    let example = String::from_utf8(cltlab(&["train", "--example"]).stdout).unwrap();
    let (mut table, mut tried) = (String::new(), 0);
    for line in example.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = name.to_string();
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        if table.is_empty() || value.split_whitespace().next().is_none_or(|value| value.replace('_', "").parse::<u64>().is_err()) {
            continue;
        }
        for file in if matches!(table.as_str(), "clt" | "train") { &["train.toml", "streamed.toml"][..] } else { &["streamed.toml"] } {
            for huge in ["9223372036854775807", "4611686018427387905", "1099511627776"] {
                let begin = std::time::Instant::now();
                let output = cltlab(&["train", folder.join(file).to_str().unwrap(), "--dry-run", "--set", &format!("{table}.{key}={huge}")]);
                let text = said(&output);
                assert!(matches!(output.status.code(), Some(0 | 1)) && begin.elapsed().as_secs() < 20, "{file} {table}.{key}={huge}: {:?} {text}", output.status);
                tried += 1;
            }
        }
    }
    assert!(tried > 60, "{tried}");
    // And where it would begin.
    for set in ["train.steps=9223372036854775807", "train.batch_tokens=9223372036854775807", "train.aux_k=9223372036854775807"] {
        let output = cltlab(&["train", folder.join("train.toml").to_str().unwrap(), "--set", set]);
        let key = format!("TrainConfig::{}", &set["train.".len()..set.find('=').unwrap()]);
        assert!(output.status.code() == Some(1) && said(&output).contains(&key), "{set}: {}", said(&output));
    }
    assert!(!folder.join("run").exists(), "a training began");
}

#[test]
fn layers_that_are_not_there() {
    let wrong = |error: Error| says(&error, ErrorKind::BadInput, &["layer"]);
    for family in ["gpt2", "llama"] {
        let replacement = replacement(family);
        let (clt, model) = (replacement.clt(), replacement.model());
        let local = replacement.local(&TOKENS, &Default::default()).unwrap();
        let run = model.run(&TOKENS, &Capture::default()).unwrap();
        let g = Tensor::ones((1, TOKENS.len(), model.width()), candle_core::DType::F32, &Device::Cpu).unwrap();
        let directions = g.get(0).unwrap().narrow(0, 0, 1).unwrap();
        assert!(clt.encoder_bias(clt.layers() - 1).is_ok() && local.errors(clt.layers() - 1).is_ok());
        for layer in [clt.layers(), clt.layers() + 1, usize::MAX] {
            wrong(clt.encoder(layer).err().unwrap());
            wrong(clt.encoder_bias(layer).err().unwrap());
            wrong(clt.threshold(layer).err().unwrap());
            wrong(clt.decoder(layer).err().unwrap());
            wrong(clt.decoder_bias(layer).err().unwrap());
            wrong(clt.skip(layer).err().unwrap());
            wrong(clt.encoder_rows(layer, &[0]).err().unwrap());
            wrong(clt.decoder_rows(layer, &[0]).err().unwrap());
            wrong(clt.pre_activations(layer, &directions).err().unwrap());
            wrong(clt.encode_layer(layer, &directions).err().unwrap());
            wrong(local.errors(layer).err().unwrap());
            wrong(model.back_attention(layer, &run, &g).err().unwrap());
            for site in [InputSite::MlpIn, InputSite::Normalized] {
                wrong(local.frozen().before_attention(layer, site, &[0], &directions).err().unwrap());
            }
            assert_eq!(clt.config().slots(layer), 0);
        }
        says(&clt.encoder_rows(0, &[u32::MAX]).err().unwrap(), ErrorKind::BadInput, &["feature of layer 0"]);
        assert_eq!(clt.encode(&run).unwrap().value(usize::MAX, (usize::MAX, usize::MAX).into()), 0.0);
    }
}

#[test]
fn nodes_that_are_not_there() {
    let graph = replacement("gpt2").attribute(&TOKENS, &AttributeConfig { max_features: Some(40), ..Default::default() }).unwrap();
    let nodes = graph.nodes.len();
    let target = nodes - 1;
    let source = graph.edges().into(target).0[0] as usize;
    assert!(graph.edges().weight(source, target) != 0.0);
    for shift in [1usize << 32, 1 << 40, usize::MAX - (u32::MAX as usize)] {
        // Numbers that are the same in 32 bits.
        assert_eq!(graph.edges().weight(source + shift, target), 0.0);
        assert_eq!(graph.edges().into(target + shift), (&[][..], &[][..]));
    }
    assert_eq!(graph.node_text(usize::MAX), "");
    let overlay = graph.difference(&graph, &Alignment::FromEnd).unwrap().overlay;
    assert_eq!((overlay.count(0), overlay.count(usize::MAX)), (2, 0));
    assert_eq!(overlay.weights(&Edge { source: nodes, target: usize::MAX, weight: 1.0 }), [0.0, 0.0]);
    says(&replacement("gpt2").split_edge(&graph, nodes, target).err().unwrap(), ErrorKind::BadInput, &[]);
    says(&replacement("gpt2").split_edge(&graph, source, usize::MAX).err().unwrap(), ErrorKind::BadInput, &[]);
}

/// Formats that hold the thresholds' logarithms: that of 0 is -infinity, and what is no threshold is refused with its place.
#[test]
fn logarithms_of_thresholds() {
    for (case, file, name) in [("crosslayer_coding_jumprelu", "clt_checkpoint_latest.safetensors", "log_threshold"), ("clt_forge_clt", "clt_weights.safetensors", "log_threshold")] {
        let folder = scratch(&format!("logarithms-{case}"));
        crate::support::copy_all(&fixture(&format!("formats/{case}")), &folder);
        let path = folder.join(file);
        let whole = tensors(&path);
        let name = whole.keys().find(|key| key.ends_with(name)).unwrap_or_else(|| panic!("{case}: {:?}", whole.keys())).clone();
        let with = |value: f32| {
            let mut logs = values(&whole[&name]);
            logs[1] = value;
            let mut all = whole.clone();
            all.insert(name.clone(), Tensor::from_vec(logs, whole[&name].dims(), &Device::Cpu).unwrap());
            candle_core::safetensors::save(&all, &path).unwrap();
            Clt::load(&folder, &CltLoadConfig::on(&Device::Cpu))
        };
        let before = values(with(-2.0).unwrap().threshold(0).unwrap().unwrap());
        let after = values(with(f32::NEG_INFINITY).unwrap().threshold(0).unwrap().unwrap());
        assert!(before[1] > 0.0 && after[1] == 0.0 && before[0] == after[0] && largest(&after) > 0.0, "{case}: {before:?} {after:?}");
        for value in [f32::NAN, f32::INFINITY, 100.0] {
            says(&with(value).err().unwrap_or_else(|| panic!("{case}: {value} was taken")), ErrorKind::NotFinite, &[file, "log_threshold"]);
        }
    }
}
