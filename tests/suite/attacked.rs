//! What attacks on the readers found (`tests/attacks`): each kind with its twins.

use crate::support::{copy_all, fixture, says, scratch};
use cltlab::candle::Device;
use cltlab::clt::CltConfig;
use cltlab::{Clt, Error, ErrorKind};
use std::path::{Path, PathBuf};

/// A copy of a fixture's folder.
fn copied(from: &str, name: &str) -> PathBuf {
    let to = scratch(name);
    copy_all(&fixture(from), &to);
    let _ = std::fs::remove_file(to.join("expected.safetensors"));
    to
}

fn load(folder: &Path) -> Error {
    Clt::load(folder, &cltlab::clt::CltLoadConfig::on(&Device::Cpu)).err().expect("it was read")
}

/// The parser's time grows with the square of the open brackets: 100,000 took an hour.
#[test]
fn deeply_nested_yaml_is_refused_at_once() {
    let started = std::time::Instant::now();
    for from in ["attribution/llama/clt", "per_layer/llama", "formats/crosslayer_transcoder_plt"] {
        for bracket in ["[", "{a: ", "[{b: "] {
            let place = copied(from, "yaml-nested");
            let path = place.join("config.yaml");
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, format!("{text}\nmore: {}\n", bracket.repeat(100_000))).unwrap();
            says(&load(&place), ErrorKind::BadFile, &["config.yaml", "brackets open at once"]);
        }
    }
    assert!(started.elapsed().as_secs() < 60);
}

/// What is made for each layer is made for layers that the weights have.
#[test]
fn layers_that_the_weights_do_not_have() {
    for (from, file, key) in [
        ("formats/crosslayer_coding_per_source", "cfg.json", "num_layers"),
        ("formats/crosslayer_coding_jumprelu", "cfg.json", "num_layers"),
        ("formats/clt_forge_clt", "clt_cfg.json", "n_layers"),
        ("formats/clt_forge_plt", "clt_cfg.json", "n_layers"),
    ] {
        for count in [4u64, 1 << 14, 1 << 31, 1 << 63] {
            let place = copied(from, "many-layers");
            let path = place.join(file);
            let mut config: serde_json::Value = cltlab::internal::files::read_json(&path).unwrap();
            config[key] = count.into();
            std::fs::write(&path, config.to_string()).unwrap();
            let error = load(&place);
            assert!(error.to_string().contains(&count.to_string()) || error.to_string().contains("layers"), "{from} {count}: {error}");
        }
    }
}

#[test]
fn configurations_whose_weights_cannot_be_counted() {
    let small = CltConfig::default();
    for (config, field) in [
        (CltConfig { layers: usize::MAX, ..small.clone() }, "layers"),
        (CltConfig { layers: (1 << 14) + 1, ..small.clone() }, "layers"),
        (CltConfig { width: 1 << 40, ..small.clone() }, "width"),
        (CltConfig { layers: 1 << 14, width: 1 << 24, features: 1 << 30, ..small.clone() }, "features"),
        (CltConfig { features: usize::MAX, ..small.clone() }, "features"),
    ] {
        says(&config.validate().unwrap_err(), ErrorKind::BadConfig, &[field]);
    }
    let large = CltConfig { layers: 128, width: 1 << 14, features: 1 << 22, ..small };
    large.validate().unwrap();
    assert_eq!(large.parameters(), 128 * (1 << 36) + 64 * 129 * (1 << 36) + 128 * ((1 << 22) + (1 << 14)));
}

/// A model's files of texts, in UTF-16 and with a mark, as its config.json may be.
#[test]
fn tokenizers_in_other_encodings() {
    let folder = copied("attribution/llama/model", "wide-tokenizer");
    std::fs::write(folder.join("tokenizer_config.json"), "{\"add_bos_token\": false}").unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        for mark in ["", "\u{feff}"] {
            let wide: Vec<u8> = format!("{mark}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
            for bytes in [format!("{mark}{text}").into_bytes(), wide] {
                std::fs::write(folder.join(name), bytes).unwrap();
                let tokenizer = cltlab::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(tokenizer.encode("w1 w2").unwrap(), [1, 2]);
            }
        }
        std::fs::write(folder.join(name), text).unwrap();
    }
}

/// What follows a value on a line of its own was dropped.
#[test]
fn an_override_is_one_value() {
    let folder = crate::train_command::recipe("attacked-override", "");
    let path = folder.join("train.toml");
    for set in ["train.steps=1\n[x]\ny=1", "train.steps=1\nother=2"] {
        let output = crate::train_command::cltlab(&["train", path.to_str().unwrap(), "--set", set]);
        let said = crate::train_command::said(&output);
        assert!(output.status.code() == Some(1) && said.contains("steps"), "{said}");
    }
}
