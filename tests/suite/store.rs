//! Stores of activations, and fillings made ahead: the same tokens as streaming, and every fault named.

use crate::support::{max_difference, scratch, small_folder, small_model, tensors, words};
use cltlab::prelude::*;
use safetensors::{Dtype, SafeTensors};
use std::io::Write;
use std::path::{Path, PathBuf};

const L: usize = 3;
const D: usize = 32;

fn setting() -> (Model, Corpus) {
    (small_model(), Corpus::from_texts(vec![words(2500, 1)]).unwrap())
}

fn config() -> StoreConfig {
    // Some forty blocks of fifteen tokens a shard.
    StoreConfig { context: 16, shard_bytes: 8 * (L * D) as u64 * 15 * 40, ..StoreConfig::default() }
}

const READ: ReadConfig = ReadConfig { buffer_tokens: Some(300), passes: 2, seed: 3, ahead: false };

fn trained(model: &Model, activations: &Activations) -> (Vec<f64>, Vec<f32>) {
    let shape = CltConfig { features: 96, activation: Activation::TopK { k: 6 }, ..CltConfig::for_model(model) };
    let config = TrainConfig { steps: 24, batch_tokens: 70, ..TrainConfig::default() };
    let mut trainer = Trainer::new(activations, &shape, &config).unwrap();
    let losses = trainer.run().unwrap().samples.iter().map(|sample| sample.reconstruction).collect();
    (losses, trainer.clt().unwrap().decoder(0).unwrap().flatten_all().unwrap().to_vec1().unwrap())
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
    max_difference(&ratios, &vec![1.0; b.len()])
}

#[test]
fn a_store_trains_as_the_stream_does() {
    let (model, text) = setting();
    let stream = |ahead| StreamConfig { context: 16, buffer_tokens: Some(300), passes: 2, seed: 3, ahead: Some(ahead), ..StreamConfig::default() };
    let streamed = trained(&model, &Activations::stream(&model, &text, &stream(false)).unwrap());
    let on_a_thread = trained(&model, &Activations::stream(&model, &text, &stream(true)).unwrap());
    assert!(streamed == on_a_thread, "fillings made ahead are others");
    let folder = scratch("store");
    Activations::store(&model, &text, &folder, &config()).unwrap();
    assert!(folder.join("shard-00003.safetensors").exists());
    let stored = trained(&model, &Activations::load(&folder, &READ).unwrap());
    println!("f32: losses differ by {:.1e}, weights equal: {}", farthest(&stored.0, &streamed.0), stored.1 == streamed.1);
    assert!(farthest(&stored.0, &streamed.0) < 1e-6);
    assert!(stored == trained(&model, &Activations::load(&folder, &ReadConfig { ahead: true, ..READ }).unwrap()));
    for (format, bound) in [(StoreFormat::F16, 1e-3), (StoreFormat::Bf16, 1e-2), (StoreFormat::Int8, 3e-2)] {
        let mut losses = Vec::new();
        for zstd in [None, Some(3)] {
            let folder = scratch("store-format");
            Activations::store(&model, &text, &folder, &StoreConfig { format, zstd, ..config() }).unwrap();
            losses.push(trained(&model, &Activations::load(&folder, &READ).unwrap()));
        }
        println!("{format:?}: losses differ by {:.1e}", farthest(&losses[0].0, &stored.0));
        assert!(farthest(&losses[0].0, &stored.0) < bound, "{format:?}");
        assert!(losses[0] == losses[1], "{format:?}: zstd changes values");
    }
}

/// Type, shape and bytes of one tensor of a file.
fn tensor(path: &Path, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    (view.dtype(), view.shape().to_vec(), view.data().to_vec())
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// The formats as documented, decoded by hand, against the f32 store; sizes as predicted.
#[test]
fn formats_and_sizes() {
    let (model, text) = setting();
    let shard = |folder: &Path| folder.join("shard-00000.safetensors");
    let (plain, half, brain, byte, packed) = (scratch("f32"), scratch("f16"), scratch("bf16"), scratch("int8"), scratch("int8-zstd"));
    let mut sizes = Vec::new();
    for (folder, format, zstd) in [(&plain, StoreFormat::F32, None), (&half, StoreFormat::F16, None), (&brain, StoreFormat::Bf16, None), (&byte, StoreFormat::Int8, None), (&packed, StoreFormat::Int8, Some(9))] {
        let config = StoreConfig { format, zstd, ..config() };
        let tokens = Activations::store(&model, &text, folder, &config).unwrap().tokens() as usize;
        let size: u64 = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        let predicted = config.bytes(L, D, tokens);
        println!("{format:?} {zstd:?}: {size} bytes, predicted {predicted}, {:.3}", size as f64 / predicted as f64);
        // A block is 15 tokens of 32 numbers, each side and layer with a header of its own in zstd.
        let above = if zstd.is_some() { 1.1 } else { 1.06 };
        assert!(size as f64 <= above * predicted as f64 && (zstd.is_some() || size >= predicted), "{format:?}: {size} against {predicted}");
        sizes.push(size);
    }
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[3], "{sizes:?}");
    for name in ["input.0", "target.2"] {
        let (dtype, shape, bytes) = tensor(&shard(&plain), name);
        assert_eq!((dtype, shape[1]), (Dtype::F32, D));
        let exact = f32s(&bytes);
        let near = |got: f32, exact: f32, relative: f32| (got - exact).abs() <= relative * exact.abs() + 1e-7;
        let (dtype, _, bytes) = tensor(&shard(&half), name);
        assert_eq!(dtype, Dtype::F16);
        assert!(bytes.as_chunks().0.iter().zip(&exact).all(|(two, &exact)| near(half::f16::from_le_bytes(*two).to_f32(), exact, 1.0 / 2048.0)));
        let (dtype, _, bytes) = tensor(&shard(&brain), name);
        assert_eq!(dtype, Dtype::BF16);
        assert!(bytes.as_chunks().0.iter().zip(&exact).all(|(two, &exact)| near(half::bf16::from_le_bytes(*two).to_f32(), exact, 1.0 / 256.0)));
        let (dtype, _, bytes) = tensor(&shard(&byte), name);
        let scales = f32s(&tensor(&shard(&byte), &format!("{name}.scale")).2);
        assert_eq!((dtype, scales.len()), (Dtype::I8, D));
        for (at, (&byte, &exact)) in bytes.iter().zip(&exact).enumerate() {
            assert!((f32::from(byte as i8) * scales[at % D] - exact).abs() <= 0.5001 * scales[at % D], "{name}: value {at}");
        }
        // Frames of zstd, one a block: the library's own reader gives the bytes that are stored plainly.
        let ends: Vec<usize> = tensor(&shard(&packed), &format!("{name}.ends")).2.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four) as usize).collect();
        let frames = tensor(&shard(&packed), name).2;
        let unpacked: Vec<u8> = ends.windows(2).flat_map(|pair| zstd::bulk::decompress(&frames[pair[0]..pair[1]], 15 * D).unwrap()).collect();
        assert!(unpacked == bytes, "{name}: zstd");
    }
}

fn bytes_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn a_store_goes_on_and_says_what_is_wrong() {
    let (model, text) = setting();
    let folder = scratch("store-faults");
    Activations::store(&model, &text, &folder, &config()).unwrap();
    let whole = bytes_of(&folder);
    let second: PathBuf = folder.join("shard-00001.safetensors");
    let original = std::fs::read(&second).unwrap();
    #[track_caller]
    fn says(error: Error, kind: ErrorKind, words: &[&str]) {
        assert_eq!(error.kind(), kind, "{error}");
        words.iter().for_each(|word| assert!(error.to_string().contains(word), "'{error}' does not say '{word}'"));
    }

    // Interrupted: a shard is missing, another half-written. The same call makes the rest.
    std::fs::remove_file(&second).unwrap();
    says(Activations::load(&folder, &Default::default()).unwrap_err(), ErrorKind::MissingFile, &["shard-00001", "Activations::store"]);
    Activations::store(&model, &text, &folder, &config()).unwrap();
    assert!(bytes_of(&folder) == whole, "another store after going on");

    // Another text or configuration is not mixed in.
    let other = Corpus::from_texts(vec![words(2500, 2)]).unwrap();
    says(Activations::store(&model, &other, &folder, &config()).unwrap_err(), ErrorKind::Mismatch, &["activations.json", "another"]);
    says(Activations::store(&model, &text, &folder, &StoreConfig { format: StoreFormat::Bf16, ..config() }).unwrap_err(), ErrorKind::Mismatch, &["format", "f32", "bf16"]);

    // A shard of another model's store.
    let text_of = |bytes: &[u8], from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
    };
    let elsewhere = scratch("store-elsewhere");
    Activations::store(&model, &other, &elsewhere, &config()).unwrap();
    std::fs::copy(elsewhere.join("shard-00001.safetensors"), &second).unwrap();
    says(Activations::load(&folder, &Default::default()).unwrap_err(), ErrorKind::Mismatch, &["shard-00001", "another store"]);
    let manifest = folder.join("activations.json");
    let told = std::fs::read(&manifest).unwrap();
    std::fs::write(&second, &original).unwrap();
    std::fs::write(&manifest, text_of(&told, model.fingerprint(), &"0".repeat(model.fingerprint().len()))).unwrap();
    says(Activations::load(&folder, &Default::default()).unwrap_err(), ErrorKind::Mismatch, &["shard-00000", "model_fingerprint"]);
    std::fs::write(&manifest, &told).unwrap();

    // The store is of this model, so a CLT for another is refused.
    let activations = Activations::load(&folder, &READ).unwrap();
    let foreign = CltConfig { model_fingerprint: "another".into(), ..CltConfig::for_model(&model) };
    says(Trainer::new(&activations, &foreign, &TrainConfig::default()).unwrap_err(), ErrorKind::Mismatch, &["model_fingerprint"]);

    // Cut off, or a header that changed: found when opened. A changed value: found when read, on a thread or not.
    std::fs::write(&second, &original[..original.len() / 2]).unwrap();
    says(Activations::load(&folder, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["shard-00001", "delete this shard"]);
    for at in [0, 30, 400] {
        let mut bytes = original.clone();
        bytes[at] ^= 4;
        std::fs::write(&second, &bytes).unwrap();
        assert_eq!(Activations::load(&folder, &Default::default()).unwrap_err().kind(), ErrorKind::BadFile, "byte {at}");
    }
    let mut bytes = original.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    for ahead in [false, true] {
        std::fs::write(&second, &bytes).unwrap();
        let activations = Activations::load(&folder, &ReadConfig { ahead, ..READ }).unwrap();
        let shape = CltConfig { features: 96, activation: Activation::TopK { k: 6 }, ..CltConfig::for_model(&model) };
        // More than a round through the corpus.
        let config = TrainConfig { steps: 200, batch_tokens: 70, ..TrainConfig::default() };
        let (error, steps) = match Trainer::new(&activations, &shape, &config) {
            Ok(mut trainer) => (trainer.run().unwrap_err(), trainer.steps()),
            Err(error) => (error, 0),
        };
        println!("ahead {ahead}: after {steps} steps: {error}");
        says(error, ErrorKind::BadFile, &["shard-00001", "block", "checksum", "delete this shard"]);
    }
    std::fs::remove_file(&second).unwrap();
    Activations::store(&model, &text, &folder, &config()).unwrap();
    assert!(bytes_of(&folder) == whole);
    trained(&model, &Activations::load(&folder, &READ).unwrap());
}

#[test]
fn what_cannot_be_stored() {
    let error = cltlab::device::require_disk("a store", std::env::temp_dir().join("not/there/yet"), u64::MAX / 2, "store fewer tokens").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskFull);
    assert!(error.to_string().contains("TiB") && error.to_string().contains("free") && error.to_string().contains("fewer"), "{error}");
    assert_eq!(Activations::load("/nowhere", &Default::default()).unwrap_err().kind(), ErrorKind::MissingFile);
    let (model, text) = setting();
    let folder = scratch("store-refused");
    for (config, field) in [
        (StoreConfig { context: 1, ..config() }, "context"),
        (StoreConfig { context: 1 << 20, ..config() }, "context"),
        (StoreConfig { exclude_first: 16, ..config() }, "exclude_first"),
        (StoreConfig { batch: 0, ..config() }, "batch"),
        (StoreConfig { zstd: Some(40), ..config() }, "zstd"),
        (StoreConfig { shard_bytes: 1 << 40, ..config() }, "shard_bytes"),
    ] {
        let error = Activations::store(&model, &text, &folder, &config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(field), "{error}");
    }
    // A model that gives NaN from finite weights: int8 would keep it as 0.
    let spoilt = scratch("store-spoilt");
    crate::support::copy_all(&small_folder(), &spoilt);
    let mut all = tensors(&spoilt.join("model.safetensors"));
    let up = all.get_mut("model.layers.1.mlp.up_proj.weight").unwrap();
    *up = up.ones_like().unwrap().affine(3e38, 0.0).unwrap();
    cltlab::candle::safetensors::save(&all, spoilt.join("model.safetensors")).unwrap();
    let nan = Model::load(spoilt.to_str().unwrap(), &cltlab::model::LoadConfig::on(&cltlab::candle::Device::Cpu)).unwrap();
    for format in [StoreFormat::F32, StoreFormat::Int8] {
        let error = Activations::store(&nan, &text, scratch("store-nan"), &StoreConfig { format, ..config() }).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFinite && error.to_string().contains("shard-00000"), "{error}");
    }
    let short = Corpus::from_texts(vec![words(3, 1)]).unwrap();
    assert_eq!(Activations::store(&model, &short, &folder, &config()).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "something was written");
    Activations::store(&model, &text, &folder, &config()).unwrap();
    for read in [ReadConfig { passes: 0, ..READ }, ReadConfig { buffer_tokens: Some(0), ..READ }] {
        assert_eq!(Activations::load(&folder, &read).unwrap_err().kind(), ErrorKind::BadConfig);
    }
}

/// A batch that begins one filling and fails in the next is read whole when the training goes on, from memory or from a checkpoint.
#[test]
fn a_batch_cut_by_an_error_is_read_again() {
    let (model, text) = setting();
    let folder = scratch("store-cut");
    Activations::store(&model, &text, &folder, &config()).unwrap();
    let shape = CltConfig { features: 96, activation: Activation::TopK { k: 6 }, ..CltConfig::for_model(&model) };
    let config = TrainConfig { steps: 24, batch_tokens: 70, ..TrainConfig::default() };
    let read = |ahead| Activations::load(&folder, &ReadConfig { passes: 1, ahead, ..READ }).unwrap();
    let weights = |trainer: &Trainer| -> Vec<f32> { trainer.clt().unwrap().decoder(0).unwrap().flatten_all().unwrap().to_vec1().unwrap() };
    let mut whole = Trainer::new(&read(false), &shape, &config).unwrap();
    whole.run().unwrap();
    let shards: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
    // In place: the readers have the files open.
    let spoil = || {
        for shard in &shards {
            let mut bytes = std::fs::read(shard).unwrap();
            let half = bytes.len() / 2;
            bytes[half..].iter_mut().for_each(|byte| *byte ^= 1);
            std::fs::File::options().write(true).open(shard).unwrap().write_all(&bytes).unwrap();
        }
    };
    for (ahead, resumed) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut trainer = Trainer::new(&read(ahead), &shape, &config).unwrap();
        trainer.run_steps(1).unwrap();
        spoil();
        let error = trainer.run().unwrap_err();
        spoil();
        // 300 tokens: four batches of 70 and a part of the fifth; the filling after them may have been made ahead.
        let done = trainer.steps();
        assert!(error.kind() == ErrorKind::BadFile && (done == 4 || ahead && done > 4) && (300 * (1 + done / 5) - 70 * done) < 70, "{done} steps: {error}");
        if resumed {
            let saved = scratch("store-cut-saved");
            trainer.save(&saved).unwrap();
            trainer = Trainer::resume(&saved, &read(ahead)).unwrap();
        }
        trainer.run().unwrap();
        assert!(trainer.steps() == 24 && weights(&trainer) == weights(&whole), "ahead {ahead}, resumed {resumed}: other weights");
    }
}

/// The program makes the store it trains from; a stop while a thread reads ahead loses nothing.
#[test]
fn the_program_stores_and_is_stopped() {
    use crate::checkpoints::{clt_files, start, wait};
    let model = small_folder();
    let make = |name: &str| {
        let folder = scratch(name);
        std::fs::write(folder.join("words.txt"), words(2500, 1)).unwrap();
        let recipe = format!(
            "[model]\nsource = {:?}\n[text]\nsource = \"words.txt\"\nheld_out = 0\n[activations]\nstore = \"activations\"\n[store]\ncontext = 16\nformat = \"int8\"\nzstd = 3\nshard_bytes = 20000\n[stream]\nbuffer_tokens = 100\nahead = true\n[clt]\nfeatures = 64\nactivation = {{ top_k = {{ k = 4 }} }}\n[train]\nsteps = 600\nbatch_tokens = 64\n[output]\nfolder = \"run\"\n",
            model.to_str().unwrap()
        );
        std::fs::write(folder.join("train.toml"), recipe).unwrap();
        folder
    };
    let (whole, stopped) = (make("store-run"), make("store-stopped"));
    let file = whole.join("train.toml");
    let output = crate::train_command::cltlab(&["train", file.to_str().unwrap(), "--set", "stream.context=32"]);
    let text = crate::train_command::said(&output);
    assert!(!output.status.success() && text.contains("[stream] context") && text.contains("[store]"), "{text}");
    assert!(start(&whole, &[]).wait().unwrap().success());
    let shards = |folder: &Path| std::fs::read_dir(folder.join("activations")).map_or(0, |files| files.filter(|file| file.as_ref().is_ok_and(|file| file.file_name().to_string_lossy().starts_with("shard-"))).count());
    assert!(shards(&whole) > 20, "{}", shards(&whole));
    // Killed while it stores: the next one makes the rest.
    for made in [1, 6, 11] {
        let mut child = start(&stopped, &["--resume"]);
        wait(&mut child, || shards(&stopped) >= made);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for _ in 0..3 {
        let mut child = start(&stopped, &["--resume"]);
        wait(&mut child, || stopped.join("run/metrics.jsonl").exists());
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        child.wait().unwrap();
    }
    assert!(start(&stopped, &["--resume"]).wait().unwrap().success());
    assert!(bytes_of(&whole.join("activations")) == bytes_of(&stopped.join("activations")), "another store after kills");
    assert!(clt_files(&whole) == clt_files(&stopped), "other weights after stops");
}
