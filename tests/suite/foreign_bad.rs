//! Other programs' formats with something wrong, and content that cannot be represented: each is refused
//! by kind, with the file and the field.

use crate::foreign::folder;
use crate::support::{copy_all, scratch, tensors};
use cltlab::candle::safetensors::save;
use cltlab::candle::{DType, Device, Tensor};
use cltlab::clt::{Clt, Format, CltLoadConfig};
use cltlab::ErrorKind;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A copy of a fixture.
fn copy(case: &str, name: &str) -> PathBuf {
    let to = scratch(&format!("foreign-{case}-{name}"));
    copy_all(Path::new(&folder(case)), &to);
    to
}

fn refused(folder: &Path, kind: ErrorKind, words: &[&str]) {
    let error = Clt::load(&folder, &CltLoadConfig::on(&Device::Cpu)).unwrap_err();
    let text = error.to_string();
    assert!(error.kind() == kind, "{kind:?} expected: {:?}: {text}", error.kind());
    words.iter().for_each(|word| assert!(text.contains(word), "'{text}' does not say '{word}'"));
}

fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn alter(path: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut all = tensors(path);
    change(&mut all);
    save(&all, path).unwrap();
}

fn set(path: &Path, name: &str, value: Tensor) {
    alter(path, |all| drop(all.insert(name.to_string(), value)));
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

/// Case, a file of weights, a tensor in it, its configuration.
const READERS: [(&str, &str, &str, &str); 7] = [
    ("crosslayer_coding_jumprelu", "clt_checkpoint_latest.safetensors", "decoder_module.decoders.0->2.weight", "cfg.json"),
    ("sparsify_untied", "h.1.mlp/sae.safetensors", "W_decs.1", "h.1.mlp/cfg.json"),
    ("clt_forge_clt", "clt_weights.safetensors", "W_dec", "clt_cfg.json"),
    ("crosslayer_transcoder_folded", "checkpoint.safetensors", "decoder.W_1", "config.yaml"),
    ("gemma_scope_2_plt", "layer_1_width_12_l0_small_affine/params.safetensors", "w_dec", "layer_0_width_12_l0_small_affine/config.json"),
    ("gemma_scope_2_clt", "params_layer_2.safetensors", "threshold", ""),
    ("saelens_jumprelu_skip", "number_6/sae_weights.safetensors", "W_skip", "number_6/cfg.json"),
];

#[test]
fn broken_files_of_every_reader() {
    for (case, file, name, config) in READERS {
        let place = copy(case, "broken");
        let weights = place.join(file);
        let whole = std::fs::read(&weights).unwrap();
        let short = Path::new(file).file_name().unwrap().to_string_lossy().into_owned();
        for length in [0, 7, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&weights, &whole[..length]).unwrap();
            refused(&place, ErrorKind::BadFile, &[&short, "truncated"]);
        }
        let restore = || std::fs::write(&weights, &whole).unwrap();
        restore();
        alter(&weights, |all| drop(all.remove(name)));
        refused(&place, ErrorKind::BadTensor, &[&short, name, "missing"]);
        restore();
        set(&weights, name, ones(&[5, 5]));
        refused(&place, ErrorKind::BadTensor, &[&short, name, "[5, 5]"]);
        restore();
        let shape = tensors(&weights)[name].dims().to_vec();
        set(&weights, name, Tensor::zeros(shape, DType::I64, &Device::Cpu).unwrap());
        refused(&place, ErrorKind::BadTensor, &[&short, name, "I64"]);
        restore();
        set(&weights, "mystery", ones(&[2]));
        refused(&place, ErrorKind::Unsupported, &[&short, "'mystery'"]);
        restore();
        if !config.is_empty() {
            std::fs::write(place.join(config), "{").unwrap();
            refused(&place, ErrorKind::BadFile, &[Path::new(config).file_name().unwrap().to_str().unwrap()]);
        }
    }
}

#[test]
fn missing_files_and_pickles() {
    for (case, file, _, _) in READERS {
        let place = copy(case, "missing");
        let weights = place.join(file);
        std::fs::rename(&weights, weights.with_extension("pt")).unwrap();
        let format = Format::of(&folder(case)).unwrap();
        let said = CltLoadConfig { format: Some(format), ..CltLoadConfig::default() };
        let error = Clt::load(&place, &CltLoadConfig { device: Some(Device::Cpu), ..said.clone() }).unwrap_err();
        // One layer's file is missed; where all are gone, the pickle is named.
        let gap = matches!(format, Format::Sparsify | Format::GemmaScope2 | Format::SaeLens);
        if gap {
            assert!(matches!(error.kind(), ErrorKind::BadFile | ErrorKind::BadTensor) && (error.to_string().contains("no file for layer") || error.to_string().contains("[12, 3, 8]")), "{error}");
        } else {
            assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("pickle"), "{error}");
        }
    }
    let place = scratch("foreign-pickle");
    refused(&place, ErrorKind::BadFile, &["no known format", "clt-forge"]);
    std::fs::write(place.join("clt.pt"), b"x").unwrap();
    refused(&place, ErrorKind::Unsupported, &["clt.pt", "a pickle", "safetensors"]);
    refused(&place.join("clt.pt"), ErrorKind::Unsupported, &["a pickle"]);
    std::fs::write(place.join("notes.txt"), b"x").unwrap();
    refused(&place.join("notes.txt"), ErrorKind::BadInput, &["the folder"]);
    refused(&place.join("nothing"), ErrorKind::MissingFile, &["no such folder"]);
}

#[test]
fn crosslayer_coding_that_cannot_be_represented() {
    let place = copy("crosslayer_coding_jumprelu", "content");
    let weights = place.join("clt_checkpoint_latest.safetensors");
    let cfg = place.join("cfg.json");
    let whole = std::fs::read(&weights).unwrap();
    set(&weights, "decoder_module.skip_weights.0->1", ones(&[8, 8]));
    refused(&place, ErrorKind::Unsupported, &["skip_weights.0->1", "from one layer to another"]);
    std::fs::write(&weights, whole).unwrap();
    for kind in ["topk", "batchtopk"] {
        edit(&cfg, |cfg| cfg["activation_fn"] = kind.into());
        refused(&place, ErrorKind::Unsupported, &["activation_fn", kind, "convert_batchtopk_to_jumprelu.py"]);
    }
    edit(&cfg, |cfg| cfg["activation_fn"] = "jumprelu".into());
    edit(&place.join("norm_stats.json"), |stats| stats["1"]["targets"]["std"][3] = (-2.0).into());
    refused(&place, ErrorKind::BadFile, &["norm_stats.json", "1.targets", "above 0"]);
    edit(&place.join("norm_stats.json"), |stats| {
        stats["1"]["targets"]["std"][3] = 2.0.into();
        stats.as_object_mut().unwrap().remove("2");
    });
    refused(&place, ErrorKind::BadFile, &["norm_stats.json", "no layer 2"]);
    std::fs::remove_file(place.join("norm_stats.json")).unwrap();
    refused(&place, ErrorKind::MissingFile, &["norm_stats.json", "copy it"]);
    edit(&cfg, |cfg| cfg["mlp_input_template"] = "transformer.h.{}.attn.input".into());
    refused(&place, ErrorKind::Unsupported, &["attn.input", "CltLoadConfig::input"]);
    edit(&cfg, |cfg| cfg["num_features"] = 0.into());
    refused(&place, ErrorKind::Unsupported, &["CltLoadConfig::input"]);
    // Sizes that no memory holds are compared, not reserved.
    let place = copy("crosslayer_coding_jumprelu", "huge");
    edit(&place.join("cfg.json"), |cfg| cfg["num_layers"] = (1u64 << 60).into());
    refused(&place, ErrorKind::BadFile, &["cfg.json: num_layers", "1152921504606846976"]);
    edit(&place.join("cfg.json"), |cfg| cfg["activation_fn"] = "relu".into());
    refused(&place, ErrorKind::BadFile, &["cfg.json: num_layers", "1152921504606846976"]);

    let place = copy("crosslayer_coding_per_target", "content");
    set(&place.join("latest/model.safetensors"), "decoder_module.feature_offset.2", ones(&[12]));
    refused(&place, ErrorKind::Unsupported, &["feature_offset", "target 2", "not a linear function"]);
    edit(&place.join("cfg.json"), |cfg| cfg["num_features"] = 0.into());
    refused(&place, ErrorKind::BadConfig, &["cfg.json", "features"]);
}

#[test]
fn sparsify_that_cannot_be_represented() {
    let place = copy("sparsify_untied", "content");
    let (weights, cfg) = (place.join("h.0.mlp/sae.safetensors"), place.join("h.0.mlp/cfg.json"));
    let whole = std::fs::read(&weights).unwrap();
    set(&weights, "post_encs.1", ones(&[12]));
    refused(&place, ErrorKind::Unsupported, &["post_encs.1", "got 1 for feature 0", "not a linear function"]);
    std::fs::write(&weights, &whole).unwrap();
    set(&weights, "W_skips.2", ones(&[8, 8]));
    refused(&place, ErrorKind::Unsupported, &["W_skips.2", "from one layer to another"]);
    std::fs::write(&weights, &whole).unwrap();
    set(&weights, "out_norm", Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    refused(&place, ErrorKind::BadTensor, &["out_norm", "above 0"]);
    std::fs::write(&weights, &whole).unwrap();
    let text = std::fs::read(&cfg).unwrap();
    for (field, value, words) in [
        ("transcode", false.into(), ["transcode", "autoencoder"]),
        ("activation", "groupmax".into(), ["activation", "groupmax"]),
        ("secondary_target_tied", true.into(), ["secondary_target_tied", "true"]),
        ("coalesce_topk", "group".into(), ["coalesce_topk", "group"]),
        ("k", 5.into(), ["k", "as in layer 0"]),
    ] {
        edit(&cfg, |cfg| cfg[field] = value);
        refused(&place, ErrorKind::Unsupported, &words);
        std::fs::write(&cfg, &text).unwrap();
    }
    edit(&cfg, |cfg| cfg["n_targets"] = 4.into());
    refused(&place, ErrorKind::BadFile, &["n_targets", "at most 3"]);
    edit(&cfg, |cfg| cfg["k"] = 13.into());
    std::fs::rename(place.join("h.2.mlp"), place.join("h.3.mlp")).unwrap();
    refused(&place, ErrorKind::BadFile, &["no file for layer 2", "one for layer 3"]);

    let place = copy("sparsify_concat", "content");
    edit(&place.join("h.2.mlp/cfg.json"), |cfg| cfg["topk_coalesced"] = true.into());
    refused(&place, ErrorKind::Unsupported, &["coalesce_topk", "topk_coalesced"]);
}

#[test]
fn the_others_that_cannot_be_represented() {
    let place = copy("clt_forge_shards", "content");
    std::fs::remove_file(place.join("rank1_clt_weights.safetensors")).unwrap();
    refused(&place, ErrorKind::BadTensor, &["6 features in 1 files", "d_latent 12", "a shard is missing"]);
    let place = copy("clt_forge_clt", "content");
    set(&place.join("clt_weights.safetensors"), "estimated_norm_scaling_factor_in", Tensor::new(&[1f32, 0.0, 1.0], &Device::Cpu).unwrap());
    refused(&place, ErrorKind::BadTensor, &["estimated_norm_scaling_factor_in", "above 0"]);
    edit(&place.join("clt_cfg.json"), |cfg| cfg["d_in"] = 9.into());
    refused(&place, ErrorKind::BadTensor, &["W_enc", "[3, 9, features]"]);

    let place = copy("crosslayer_transcoder_unfolded", "content");
    let yaml = std::fs::read_to_string(place.join("config.yaml")).unwrap();
    for (from, to, words) in [
        ("DimensionwiseInputStandardizer", "SamplewiseInputStandardizer", "each token by itself"),
        ("PerLayerTopK", "Softmax", "Softmax"),
        ("CrosslayerDecoder", "OtherDecoder", "OtherDecoder"),
    ] {
        std::fs::write(place.join("config.yaml"), yaml.replace(from, to)).unwrap();
        refused(&place, ErrorKind::Unsupported, &["config.yaml", words]);
    }
    std::fs::write(place.join("config.yaml"), yaml.replace("k: 4", "j: 4")).unwrap();
    refused(&place, ErrorKind::BadFile, &["nonlinearity.k"]);
    std::fs::write(place.join("config.yaml"), yaml.replace("k: 4", "k: 40")).unwrap();
    refused(&place, ErrorKind::BadConfig, &["Activation::k", "40"]);
    std::fs::write(place.join("config.yaml"), &yaml).unwrap();
    set(&place.join("checkpoint.safetensors"), "input_standardizer.std", Tensor::zeros((3, 8), DType::F32, &Device::Cpu).unwrap());
    refused(&place, ErrorKind::BadTensor, &["input_standardizer.std", "above 0"]);

    let place = copy("saelens_relu", "content");
    let cfg = place.join("number_6/cfg.json");
    let text = std::fs::read(&cfg).unwrap();
    for (field, value) in [("architecture", "topk"), ("normalize_activations", "layer_norm"), ("reshape_activations", "hook_z")] {
        edit(&cfg, |cfg| cfg[field] = value.into());
        refused(&place, ErrorKind::Unsupported, &[field, value]);
        std::fs::write(&cfg, &text).unwrap();
    }
    edit(&cfg, |cfg| cfg["d_out"] = 4.into());
    refused(&place, ErrorKind::Unsupported, &["8 to 4", "as wide out as in"]);
    edit(&cfg, |cfg| cfg["metadata"]["hook_name"] = "blocks.0.ln2.hook_normalized".into());
    refused(&place, ErrorKind::BadFile, &["two files for layer 0"]);
}

/// An `.npz` of one array, header and values as given.
fn npz(path: &Path, header: &str, values: &[u8]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options: zip::write::FileOptions<()> = zip::write::FileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("W_enc.npy", options).unwrap();
    zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
    zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    zip.write_all(header.as_bytes()).unwrap();
    zip.write_all(values).unwrap();
    zip.finish().unwrap();
}

#[test]
fn numpy_files() {
    let place = copy("gemma_scope", "numpy");
    let [plain, packed] = [0, 1].map(|l| place.join(format!("layer_{l}/width_12/average_l0_{}/params.npz", 3 + l)));
    for path in [&plain, &packed] {
        let whole = std::fs::read(path).unwrap();
        for length in [0, 10, whole.len() / 2, whole.len() - 1] {
            std::fs::write(path, &whole[..length]).unwrap();
            refused(&place, ErrorKind::BadFile, &["params.npz"]);
        }
        // A bit of the first array, after the local header and the array's own.
        let mut damaged = whole.clone();
        damaged[250] ^= 16;
        std::fs::write(path, &damaged).unwrap();
        refused(&place, ErrorKind::BadFile, &["params.npz", "W_enc"]);
        std::fs::write(path, &whole).unwrap();
    }
    let text = |descr: &str, order: &str, shape: &str| format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let cases = [
        (text("|O", "False", "(8, 12)"), ErrorKind::Unsupported, "pickle"),
        (text("<f4", "True", "(8, 12)"), ErrorKind::Unsupported, "Fortran"),
        (text("<i8", "False", "(8, 12)"), ErrorKind::BadTensor, "<i8"),
        (text(">f4", "False", "(8, 12)"), ErrorKind::BadTensor, ">f4"),
        (text("<f4", "False", "(9223372036854775807, 12)"), ErrorKind::BadFile, "shape [9223372036854775807, 12]"),
        (text("<f4", "False", "(8, 13)"), ErrorKind::BadFile, "384 bytes"),
        (text("<f4", "False", "(8, 1x)"), ErrorKind::BadFile, "shape"),
        ("{'shape': (8, 12)}".to_string(), ErrorKind::BadFile, "descr"),
    ];
    for (header, kind, word) in cases {
        npz(&plain, &header, &[0; 8 * 12 * 4]);
        refused(&place, kind, &["params.npz: W_enc", word]);
    }
    npz(&plain, &text("<f4", "False", "(8, 12)"), &[0; 8 * 12 * 4]);
    refused(&place, ErrorKind::BadTensor, &["W_dec", "missing"]);
    std::fs::copy(&packed, place.join("layer_0/params.npz")).unwrap();
    refused(&place, ErrorKind::BadFile, &["two files for layer 0"]);
}
