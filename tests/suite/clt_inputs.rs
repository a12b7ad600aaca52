//! CLTs whose files name other places, differ between layers, or lack a layer: refused before anything is asked or read.

use crate::foreign::folder;
use crate::support::{copy_all, fixture, says, scratch, tensors};
use cltlab::candle::safetensors::save;
use cltlab::candle::{DType, Device, Tensor};
use cltlab::clt::{Clt, CltLoadConfig};
use cltlab::ErrorKind;
use std::io::Write;
use std::path::{Path, PathBuf};

fn copied(from: &Path, name: &str) -> PathBuf {
    let to = scratch(&format!("clt-inputs-{name}"));
    copy_all(from, &to);
    to
}

fn load(folder: &Path) -> cltlab::Result<Clt> {
    Clt::load(folder, &CltLoadConfig::on(&Device::Cpu))
}

#[track_caller]
fn refused(folder: &Path, kind: ErrorKind, words: &[&str]) {
    says(&load(folder).err().expect("it was read"), kind, words);
}

fn alter(path: &Path, change: impl FnOnce(&mut std::collections::HashMap<String, Tensor>)) {
    let mut all = tensors(path);
    change(&mut all);
    save(&all, path).unwrap();
}

fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn names_of_layers_stay_below_the_folder() {
    let place = copied(&fixture("per_layer/gpt2"), "names");
    let yaml = std::fs::read_to_string(place.join("config.yaml")).unwrap();
    let list = |first: &str| std::fs::write(place.join("config.yaml"), format!("{yaml}transcoders: [{first}, layer_1.safetensors, layer_2.safetensors]\n")).unwrap();
    for name in ["/dev/zero", "../layer_0.safetensors", "a/../layer_0.safetensors", "./layer_0.safetensors", "a//b", "''", "\"a\\0b\"", "\"a\\nb\"", "'x?/../../y'", "'a#b'", "'%2e%2e/a'", "'a\\b'", "'C:/a'", "'hf://owner/name/../../x'", "'hf://owner/name//abs'", "'hf://owner/name/x?y'"] {
        list(name);
        refused(&place, ErrorKind::BadFile, &["config.yaml: transcoders"]);
    }
    // Before anything is fetched, and only when that is asked for.
    list("'hf://owner/name/file.safetensors'");
    refused(&place, ErrorKind::Unsupported, &["config.yaml: transcoders", "hf://owner/name/file.safetensors", "CltLoadConfig::fetch"]);
    let fetch = CltLoadConfig { fetch: true, ..CltLoadConfig::default() };
    list("'hf://owner/../x'");
    assert!(Clt::load(&place, &CltLoadConfig { device: Some(Device::Cpu), ..fetch.clone() }).is_err());
    list("layer_0.safetensors");
    assert_eq!(load(&place).unwrap().layers(), 3);
}

#[test]
fn a_missing_layer_is_not_the_end() {
    let place = copied(&fixture("per_layer/llama"), "gap");
    std::fs::remove_file(place.join("layer_1.safetensors")).unwrap();
    refused(&place, ErrorKind::MissingFile, &["layer_1.safetensors", "layer_2.safetensors"]);
    std::fs::remove_file(place.join("layer_2.safetensors")).unwrap();
    assert_eq!(load(&place).unwrap().layers(), 1);
    let place = copied(&fixture("attribution/llama/clt"), "gap-clt");
    std::fs::remove_file(place.join("W_enc_1.safetensors")).unwrap();
    refused(&place, ErrorKind::MissingFile, &["W_enc_1"]);
}

#[test]
fn thresholds_are_in_every_layer_or_in_none() {
    for (kind, file, name) in [("attribution/gpt2/clt", "W_enc_1.safetensors", "threshold_1"), ("per_layer/gpt2", "layer_1.safetensors", "activation_function.threshold")] {
        let place = copied(&fixture(kind), "threshold");
        let path = place.join(file);
        let features = tensors(&path).values().map(|tensor| tensor.dims()[0]).max().unwrap();
        alter(&path, |all| drop(all.insert(name.to_string(), ones(&[features]))));
        let error = load(&place).err().expect("it was read");
        assert!(matches!(error.kind(), ErrorKind::BadTensor | ErrorKind::Unsupported) && error.to_string().contains(name) && error.to_string().contains(file), "{error}");
    }
    for (kind, file, name) in [("attribution/llama/clt", "W_enc_1.safetensors", "threshold_1"), ("per_layer/llama", "layer_1.safetensors", "activation_function.threshold")] {
        let place = copied(&fixture(kind), "threshold-gone");
        alter(&place.join(file), |all| drop(all.remove(name)));
        refused(&place, ErrorKind::BadTensor, &[file, name, "missing"]);
    }
    for (kind, file) in [("attribution/llama/clt", "W_enc_0.safetensors"), ("attribution/llama/clt", "W_dec_2.safetensors"), ("per_layer/llama", "layer_2.safetensors")] {
        let place = copied(&fixture(kind), "unknown");
        alter(&place.join(file), |all| drop(all.insert("mystery".into(), ones(&[2]))));
        refused(&place, ErrorKind::Unsupported, &[file, "'mystery'"]);
    }
    let place = copied(&fixture("attribution/llama/clt"), "skips");
    save(&[("W_skip_1".to_string(), ones(&[32, 32]))].into(), place.join("W_skip_1.safetensors")).unwrap();
    refused(&place, ErrorKind::BadFile, &["W_skip_1.safetensors", "present"]);
}

#[test]
fn every_layers_configuration_is_read() {
    let layer = |l: usize| format!("layer_{l}_width_12_l0_small_affine/config.json");
    let cases: [(&str, serde_json::Value, &[&str]); 6] = [
        ("architecture", "topk".into(), &["architecture", "topk"]),
        ("hf_hook_point_in", "model.layers.1.mlp.output".into(), &["input"]),
        ("hf_hook_point_in", "model.layers.1.pre_feedforward_layernorm.input".into(), &["hf_hook_point_in", "as in the layers before"]),
        ("hf_hook_point_out", "model.layers.2.post_feedforward_layernorm.output".into(), &["hf_hook_point_out", "layer 1"]),
        ("model_name", "another".into(), &["model_name", "another"]),
        ("affine_connection", false.into(), &["affine_connection"]),
    ];
    for (field, value, words) in cases {
        let place = copied(Path::new(&folder("gemma_scope_2_plt")), "gemma-scope-2");
        edit(&place.join(layer(1)), |config| config[field] = value);
        refused(&place, ErrorKind::Unsupported, words);
    }
    for l in 0..3 {
        for text in ["{", "[]", "3", ""] {
            let place = copied(Path::new(&folder("gemma_scope_2_plt")), "gemma-scope-2-json");
            std::fs::write(place.join(layer(l)), text).unwrap();
            refused(&place, ErrorKind::BadFile, &["config.json"]);
        }
    }
    let cases: [(&str, serde_json::Value, &[&str]); 3] = [
        ("hook_name", "blocks.1.hook_resid_mid".into(), &["cfg.json", "as in the first layer"]),
        ("hook_name_out", "blocks.2.hook_mlp_out".into(), &["cfg.json", "layers 1 and 2"]),
        ("model_name", "another".into(), &["model_name", "another"]),
    ];
    for (field, value, words) in cases {
        let place = copied(Path::new(&folder("saelens_jumprelu_skip")), "saelens");
        edit(&place.join("number_6/cfg.json"), |config| config["metadata"][field] = value);
        refused(&place, ErrorKind::Unsupported, words);
    }
}

#[test]
fn a_list_is_not_an_object() {
    let files = [("sparsify_untied", "config.json"), ("sparsify_untied", "h.1.mlp/cfg.json"), ("saelens_relu", "*/cfg.json"), ("clt_forge_clt", "clt_cfg.json"), ("crosslayer_coding_jumprelu", "cfg.json")];
    for (case, file) in files {
        let place = copied(Path::new(&folder(case)), "list");
        let path = match file.strip_prefix("*/") {
            Some(name) => std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path().join(name)).find(|path| path.exists()).unwrap(),
            None => place.join(file),
        };
        std::fs::write(&path, "[]").unwrap();
        refused(&place, ErrorKind::BadFile, &[path.file_name().unwrap().to_str().unwrap(), "a JSON list"]);
    }
    for metadata in [serde_json::json!([]), serde_json::json!(["m", "blocks.0.hook_mlp_in", "h", "h", "h"]), "x".into()] {
        let place = copied(Path::new(&folder("saelens_relu")), "list-metadata");
        let layer = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path().join("cfg.json")).find(|path| path.exists()).unwrap();
        edit(&layer, |config| config["metadata"] = metadata);
        refused(&place, ErrorKind::BadFile, &["cfg.json", "metadata", "an object"]);
    }
    let place = copied(&fixture("attribution/llama/clt"), "list-yaml");
    std::fs::write(place.join("config.yaml"), "[m, cross_layer_transcoder, hook_resid_mid, hook_mlp_out]").unwrap();
    refused(&place, ErrorKind::BadFile, &["config.yaml", "mapping"]);
}

/// A numpy archive of these members, zeros of so many bytes each, after an array's header.
fn archive(path: &Path, members: &[(&str, usize)]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options: zip::write::FileOptions<()> = zip::write::FileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}\n", bytes / 4);
        zip.start_file(*name, options).unwrap();
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
        zip.write_all(header.as_bytes()).unwrap();
        zip.write_all(&vec![0; *bytes]).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn members_of_numpy_archives_are_known_and_there_once() {
    let place = copied(Path::new(&folder("gemma_scope")), "npz");
    let path = place.join("layer_0/width_12/average_l0_3/params.npz");
    archive(&path, &[("W_enc.npy", 384), ("mystery.npy", 8)]);
    refused(&place, ErrorKind::Unsupported, &["params.npz", "'mystery'"]);
    // The same name twice: two names of one length, of which the second is then overwritten everywhere.
    archive(&path, &[("b_enc.npy", 48), ("b_dec.npy", 48)]);
    let mut bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() - 9 {
        if &bytes[at..at + 9] == b"b_dec.npy" {
            bytes[at..at + 9].copy_from_slice(b"b_enc.npy");
        }
    }
    std::fs::write(&path, bytes).unwrap();
    let error = load(&place).err().expect("it was read");
    assert!(error.kind() == ErrorKind::BadFile && error.to_string().contains("params.npz"), "{error}");
    // The sizes that the archive gives are enough to refuse it.
    archive(&path, &[("W_enc.npy", 384)]);
    let mut bytes = std::fs::read(&path).unwrap();
    let record = bytes.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    bytes[record + 24..record + 28].copy_from_slice(&0xF000_0000u32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    refused(&place, ErrorKind::BadFile, &["params.npz", "3.8 GiB"]);
}

/// A number that is none is named where it lies, when the CLT is loaded or, where its file stays mapped, when it is used.
#[test]
fn weights_are_finite_floats_in_every_format() {
    let spoil = |path: &Path, name: &str, odd: f32| {
        alter(path, |all| {
            let tensor = all[name].clone();
            let mut values = crate::support::values(&tensor);
            let last = values.len() - 1;
            values[last] = odd;
            all.insert(name.to_string(), Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap());
        });
    };
    let integers = |path: &Path, name: &str| alter(path, |all| drop(all.insert(name.to_string(), all[name].to_dtype(DType::U32).unwrap())));
    let cases = ["clt_forge_clt", "clt_forge_shards", "crosslayer_coding_jumprelu", "crosslayer_transcoder_folded", "gemma_scope_2_clt", "gemma_scope_2_plt", "saelens_jumprelu_skip", "sparsify_untied"];
    let mut tried = 0;
    for case in cases {
        let from = Path::new(&folder(case)).to_path_buf();
        let mut files = Vec::new();
        let mut open = vec![from.clone()];
        while let Some(at) = open.pop() {
            for entry in std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() { open.push(entry) } else if entry.extension().is_some_and(|end| end == "safetensors") { files.push(entry) }
            }
        }
        let file = files.iter().min().unwrap().strip_prefix(&from).unwrap().to_path_buf();
        let ending = file.file_name().unwrap().to_str().unwrap().to_string();
        let mut names: Vec<String> = tensors(&from.join(&file)).keys().filter(|name| name.to_lowercase().contains("enc")).cloned().collect();
        names.sort();
        for name in &names {
            let place = copied(&from, "numbers");
            spoil(&place.join(&file), name, f32::NAN);
            refused(&place, ErrorKind::NotFinite, &[&ending, name, "NaN"]);
            let place = copied(&from, "numbers");
            integers(&place.join(&file), name);
            refused(&place, ErrorKind::BadTensor, &[&ending, name, "U32", "BF16"]);
            tried += 1;
        }
    }
    assert!(tried >= cases.len());
    // Ours: small tensors at once, encoders and decoders when they are used.
    let model = cltlab::Model::load(fixture("attribution/llama/model"), &cltlab::model::LoadConfig::on(&Device::Cpu)).unwrap();
    for odd in [f32::NAN, f32::INFINITY] {
        for name in ["b_enc_1", "b_dec_1", "threshold_1"] {
            let place = copied(&fixture("attribution/llama/clt"), "numbers-own");
            spoil(&place.join("W_enc_1.safetensors"), name, odd);
            refused(&place, ErrorKind::NotFinite, &["W_enc_1.safetensors", name]);
        }
        for name in ["W_enc_1", "W_dec_1"] {
            let place = copied(&fixture("attribution/llama/clt"), "numbers-mapped");
            let path = place.join(format!("{name}.safetensors"));
            alter(&path, |all| {
                let tensor = all[name].clone();
                all.insert(name.to_string(), Tensor::full(odd, tensor.dims(), &Device::Cpu).unwrap());
            });
            let replacement = cltlab::Replacement::new(&model, &load(&place).unwrap()).unwrap();
            let error = replacement.attribute("w1 w2 w3 w4", &cltlab::graph::AttributeConfig::default()).err().expect("NaN was taken");
            says(&error, ErrorKind::NotFinite, &[&format!("{name}.safetensors"), name]);
        }
    }
}

/// What a file of CLT-Forge keeps beside the weights says in which order they stand.
#[test]
fn bookkeeping_that_contradicts_the_weights() {
    for case in ["clt_forge_clt", "clt_forge_shards"] {
        let folder = scratch(&format!("bookkeeping-{case}"));
        crate::support::copy_all(&fixture(&format!("formats/{case}")), &folder);
        let path = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.to_str().unwrap().ends_with("clt_weights.safetensors")).unwrap();
        let whole = tensors(&path);
        let load = |name: &str, tensor: Tensor| {
            let mut all = whole.clone();
            all.insert(name.into(), tensor.contiguous().unwrap());
            save(&all, &path).unwrap();
            Clt::load(&folder, &CltLoadConfig::on(&Device::Cpu))
        };
        let (mask, count) = (&whole["layer_mask"], &whole["feature_count"]);
        load("layer_mask", mask.clone()).unwrap();
        let rows: Vec<Tensor> = (0..3).rev().map(|row| mask.narrow(0, row, 1).unwrap()).collect();
        for (name, other) in [("layer_mask", mask.t().unwrap()), ("layer_mask", mask.reshape((6, 3)).unwrap()), ("layer_mask", Tensor::cat(&rows, 0).unwrap()), ("layer_mask", (mask * 0.5).unwrap()), ("feature_count", count.t().unwrap())] {
            says(&load(name, other).err().unwrap_or_else(|| panic!("{case}: {name} was taken")), ErrorKind::BadTensor, &["clt_weights.safetensors", name]);
        }
    }
}

/// A folder that links to itself many times is read once.
#[test]
fn folders_that_link_to_themselves() {
    let place = copied(Path::new(&folder("sparsify_plt")), "loops");
    for n in 0..60 {
        std::os::unix::fs::symlink(".", place.join(format!("again{n}"))).unwrap();
    }
    let started = std::time::Instant::now();
    assert!(load(&place).is_ok());
    assert!(started.elapsed().as_secs() < 10);
}

#[test]
fn the_folder_of_a_run_names_its_clt() {
    let run = scratch("run1");
    copy_all(&fixture("attribution/llama/clt"), &run.join("clt"));
    refused(&run, ErrorKind::BadFile, &["run1", "the folder of a training", "give the CLT in it", "run1/clt"]);
}

#[test]
fn as_many_controls_as_a_model_can_run() {
    use cltlab::intervene::SupernodeConfig;
    let config = SupernodeConfig { controls: 1_000_000_000_000, ..SupernodeConfig::default() };
    says(&config.validate().unwrap_err(), ErrorKind::BadConfig, &["SupernodeConfig::controls", "10000"]);
}
