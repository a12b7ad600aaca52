//! Stores and checkpoints with right checksums and wrong numbers.

use crate::support::{fixture, largest, says, scratch, seal, values};
use cltlab::candle::Device;
use cltlab::prelude::*;
use std::path::{Path, PathBuf};

/// Changes a note in the header of a sealed file, whose checksum is made anew.
fn forge(path: &Path, note: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let whole = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    let text = header["__metadata__"][note].as_str().unwrap();
    let mut value = serde_json::from_str(text).unwrap();
    change(&mut value);
    header["__metadata__"][note] = value.to_string().into();
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.extend(&whole[8 + length..]);
    seal(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Puts the checksum of tensor `name` right, whose bytes were changed from those of `whole`, and that of the header.
fn reseal(bytes: &mut [u8], whole: &[u8], name: &str) {
    let (start, header) = safetensors::SafeTensors::read_metadata(whole).unwrap();
    let (from, to) = header.info(name).unwrap().data_offsets;
    let sum = |bytes: &[u8]| format!("{:016x}", twox_hash::XxHash64::oneshot(0, &bytes[start + 8 + from..start + 8 + to])).into_bytes();
    let (old, new) = (sum(whole), sum(bytes));
    let place = format!("{name}\\\":\\\"");
    let at = bytes.windows(place.len()).position(|window| window == place.as_bytes()).unwrap() + place.len();
    assert_eq!(bytes[at..at + 16], old[..]);
    bytes[at..at + 16].copy_from_slice(&new);
    seal(bytes);
}

pub fn tiny() -> Activations {
    let wave = |phase: f32| (0..40).map(|i| (i as f32 * phase).sin()).collect::<Vec<f32>>();
    Activations::from_memory(vec![wave(0.7)], vec![wave(0.3)], 2).unwrap()
}

pub fn checkpoint(name: &str, activations: &Activations, shape: &CltConfig) -> PathBuf {
    let folder = scratch(name);
    let config = TrainConfig { steps: 2, batch_tokens: 8, checkpoint_every: 2, checkpoint_dir: Some(folder.clone()), ..TrainConfig::default() };
    Trainer::new(activations, shape, &config).unwrap().run().unwrap();
    folder.join("step-00000002.safetensors")
}

#[test]
fn numbers_of_a_checkpoint() {
    let activations = tiny();
    let shape = shape(Activation::JumpRelu { threshold: 0.1, bandwidth: 0.2 });
    let path = checkpoint("forged-checkpoint", &activations, &shape);
    let whole = std::fs::read(&path).unwrap();
    forge(&path, "cltlab_training", |_| {});
    assert!(Trainer::resume(&path, &activations).is_ok(), "a forged file that says the same is whole");
    for steps in [u64::MAX, 1 << 60, 1 << 40] {
        forge(&path, "cltlab_training", |state| state["steps"] = steps.into());
        says(&Trainer::resume(&path, &activations).err().unwrap(), ErrorKind::BadFile, &["step-00000002", "steps", &steps.to_string()]);
        std::fs::write(&path, &whole).unwrap();
    }
    for offset in [21u64, 1 << 40, u64::MAX] {
        forge(&path, "cltlab_training", |state| state["position"]["offset"] = offset.into());
        says(&Trainer::resume(&path, &activations).err().unwrap(), ErrorKind::BadFile, &["step-00000002", "offset", &offset.to_string()]);
        std::fs::write(&path, &whole).unwrap();
    }
}

/// More steps to come than a training may have.
#[test]
fn target_of_a_checkpoint() {
    let activations = tiny();
    let path = checkpoint("forged-target", &activations, &shape(Activation::Relu));
    let whole = std::fs::read(&path).unwrap();
    for target in [u64::MAX, 1 << 62, 1_000_000_003] {
        forge(&path, "cltlab_training", |state| state["target"] = target.into());
        says(&Trainer::resume(&path, &activations).err().unwrap(), ErrorKind::BadFile, &["step-00000002", "target", &target.to_string()]);
        std::fs::write(&path, &whole).unwrap();
    }
}

/// exp(-infinity) is 0 in IEEE arithmetic: such a feature is a ReLU, and no step makes it anything else.
#[test]
fn a_logarithm_of_minus_infinity_is_a_threshold_of_0() {
    let activations = tiny();
    let path = checkpoint("forged-threshold", &activations, &shape(Activation::JumpRelu { threshold: 0.1, bandwidth: 0.2 }));
    let whole = std::fs::read(&path).unwrap();
    let (start, header) = safetensors::SafeTensors::read_metadata(&whole).unwrap();
    let name = "0.log_threshold.w";
    let (from, _) = header.info(name).unwrap().data_offsets;
    let mut bytes = whole.clone();
    bytes[start + 8 + from..start + 12 + from].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    reseal(&mut bytes, &whole, name);
    std::fs::write(&path, bytes).unwrap();
    let mut trainer = Trainer::resume(&path, &activations).unwrap();
    for value in [f32::NAN, f32::INFINITY, 100.0] {
        let mut bytes = whole.clone();
        bytes[start + 8 + from..start + 12 + from].copy_from_slice(&value.to_le_bytes());
        reseal(&mut bytes, &whole, name);
        std::fs::write(&path, bytes).unwrap();
        says(&Trainer::resume(&path, &activations).err().expect("it was taken"), ErrorKind::BadFile, &["step-00000002", name]);
    }
    for steps in [0, 3] {
        trainer.run_steps(steps).unwrap();
        let clt = trainer.clt().unwrap();
        let thresholds = values(clt.threshold(0).unwrap().unwrap());
        assert!(thresholds[0] == 0.0 && thresholds[1..].iter().all(|value| *value > 0.05), "{thresholds:?}");
        for tensor in [clt.encoder(0), clt.encoder_bias(0), clt.decoder(0), clt.decoder_bias(0)] {
            largest(&values(tensor.unwrap()));
        }
    }
}

fn shape(activation: Activation) -> CltConfig {
    CltConfig { layers: 1, width: 2, features: 4, activation, ..CltConfig::default() }
}

/// With scales of 0 every value would be the mean, and the FVU 0.
#[test]
fn scales_of_a_checkpoint() {
    let activations = tiny();
    let shape = shape(Activation::Relu);
    let path = checkpoint("forged-scales", &activations, &shape);
    let whole = std::fs::read(&path).unwrap();
    let (start, header) = safetensors::SafeTensors::read_metadata(&whole).unwrap();
    for name in ["0.scale.input", "0.scale.target"] {
        for value in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
            let mut bytes = whole.clone();
            let end = start + 8 + header.info(name).unwrap().data_offsets.1;
            bytes[end - 4..end].copy_from_slice(&value.to_le_bytes());
            reseal(&mut bytes, &whole, name);
            std::fs::write(&path, bytes).unwrap();
            says(&Trainer::resume(&path, &activations).err().expect("it was taken"), ErrorKind::BadFile, &["step-00000002", name]);
        }
    }
}

fn tiny_model() -> Model {
    Model::load(fixture("attribution/gpt2/model"), &LoadConfig::on(&Device::Cpu)).unwrap()
}

/// A store of a tiny model's activations.
pub fn store(name: &str) -> PathBuf {
    let words: Vec<String> = (0..900).map(|n| format!("w{}", 1 + n * 7 % 120)).collect();
    let text = Corpus::from_texts(vec![words.join(" ")]).unwrap();
    let folder = scratch(name);
    Activations::store(&tiny_model(), &text, &folder, &StoreConfig { context: 16, ..StoreConfig::default() }).unwrap();
    folder
}

#[test]
fn numbers_of_a_store() {
    let folder = store("forged-store");
    let activations = Activations::load(&folder, &Default::default()).unwrap();
    let shape = CltConfig { features: 24, activation: Activation::TopK { k: 4 }, ..CltConfig::for_model(&tiny_model()) };
    let path = checkpoint("forged-place", &activations, &shape);
    let whole = std::fs::read(&path).unwrap();
    for (field, value) in [("filling", u64::MAX), ("filling", u64::MAX / 2), ("pass", 1), ("pass", u64::MAX), ("offset", 1 << 33)] {
        forge(&path, "cltlab_training", |state| state["position"][field] = value.into());
        says(&Trainer::resume(&path, &activations).err().unwrap(), ErrorKind::BadFile, &["step-00000002", field, &value.to_string()]);
        std::fs::write(&path, &whole).unwrap();
    }
    let manifest = folder.join("activations.json");
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    let shard = folder.join("shard-00000.safetensors");
    let original = std::fs::read(&shard).unwrap();
    for (field, value) in [("width", 0u64), ("width", 1 << 62), ("layers", 0), ("layers", 1 << 60), ("context", 0), ("context", 1 << 63), ("blocks", 0), ("shard_blocks", 0), ("blocks", u64::MAX), ("shard_blocks", u64::MAX), ("exclude_first", 16)] {
        let mut other = told.clone();
        other[field] = value.into();
        std::fs::write(&manifest, other.to_string()).unwrap();
        forge(&shard, "cltlab_store", |note| note[0][field] = value.into());
        says(&Activations::load(&folder, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["activations.json", field]);
        std::fs::write(&shard, &original).unwrap();
    }
    std::fs::write(&manifest, "[]").unwrap();
    says(&Activations::load(&folder, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["activations.json", "a JSON list"]);
}
