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

/// A value of a file may be of any length, an error about it may not.
#[test]
fn long_values_are_cut_in_errors() {
    let long = "\u{e9}".repeat(1_000_000);
    let cut = |error: &Error, words: &[&str]| {
        says(error, error.kind(), words);
        assert!(error.to_string().chars().count() < 4_500, "{}", error.to_string().len());
    };
    for key in ["model_kind", "feature_input_hook", "feature_output_hook"] {
        let place = copied("attribution/llama/clt", "long-values");
        let path = place.join("config.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<String> = text.lines().map(|line| if line.starts_with(key) { format!("{key}: {long}") } else { line.into() }).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        cut(&load(&place), &["config.yaml", "characters left out", "expected"]);
    }
    cut(&Error::new(ErrorKind::BadFile, format!("a{long}b")), &["a\u{e9}", "992001 characters left out", "\u{e9}b"]);
    cut(&Error::new(ErrorKind::BadFile, "a").context(&long), &["characters left out", ": a"]);
    let exact = "x".repeat(4000);
    assert_eq!(Error::new(ErrorKind::BadFile, exact.clone()).to_string(), exact);
}

/// `max(NaN, 0)` is 0: a threshold of NaN was one of 0.
#[test]
fn weights_that_are_no_numbers_are_named() {
    for (from, file, tensor) in [
        ("formats/saelens_jumprelu_skip", "number_6/sae_weights.safetensors", "threshold"),
        ("formats/saelens_jumprelu_skip", "number_6/sae_weights.safetensors", "W_enc"),
        ("formats/crosslayer_coding_jumprelu", "clt_checkpoint_latest.safetensors", "theta_manager.log_threshold"),
        ("formats/crosslayer_transcoder_plt", "checkpoint.safetensors", "nonlinearity.threshold"),
        ("formats/clt_forge_clt", "clt_weights.safetensors", "log_threshold"),
        ("formats/gemma_scope_2_plt", "layer_1_width_12_l0_small_affine/params.safetensors", "threshold"),
        ("formats/sparsify_plt", "h.1.mlp/sae.safetensors", "encoder.weight"),
    ] {
        for value in [f32::NAN, f32::INFINITY] {
            let place = copied(from, "not-finite");
            let path = place.join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = {
                let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
                let view = tensors.tensor(tensor).unwrap_or_else(|_| panic!("{from}: {:?}", tensors.names()));
                assert_eq!(view.dtype(), safetensors::Dtype::F32, "{from} {tensor}");
                view.data().as_ptr() as usize - bytes.as_ptr() as usize
            };
            bytes[at + 4..at + 8].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            says(&load(&place), ErrorKind::NotFinite, &[path.file_name().unwrap().to_str().unwrap(), tensor, "NaN or infinity at 1"]);
        }
    }
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
            let mut config: serde_json::Value = cltlab::files::read_json(&path).unwrap();
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

/// A device that never ends is no file.
#[test]
fn devices_without_an_end() {
    let place = copied("attribution/llama/clt", "endless");
    std::fs::remove_file(place.join("config.yaml")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.join("config.yaml")).unwrap();
    says(&load(&place), ErrorKind::BadFile, &["config.yaml", "1 GiB"]);
}
