//! Where reference data lies, and small helpers that several tests share.

use candle_core::Tensor;
use cltlab::candle as candle_core;
use cltlab::clt::{Activation, Clt, CltConfig, LayerWeights};
use cltlab::Model;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli/ lies in the project")
}

/// A path under `shared/` beside the project: reference data from public repositories, which is not committed. A test
/// that needs it is `#[ignore = "needs ../shared/..."]` and stands in `tests/skips.txt`.
#[track_caller]
pub fn shared(path: &str) -> PathBuf {
    present(root().join("../shared").join(path))
}

/// A path under `tests/fixtures`, committed.
pub fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// The SmolLM2 model that `./x` sets up; a test that needs it is marked as [`shared`] says.
#[track_caller]
pub fn smollm2() -> PathBuf {
    present(root().join(".cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

#[track_caller]
fn present(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is not here: a test that needs it is marked #[ignore = \"needs ...\"] and stands in tests/skips.txt", path.display());
    path
}

/// Folder of the committed model that has a tokenizer: random weights, 3 layers, width 32, context 64, words "w1" to "w127".
pub fn small_folder() -> PathBuf {
    fixture("attribution/llama/model")
}

/// The model of [`small_folder`].
pub fn small_model() -> Model {
    Model::load(small_folder().to_str().unwrap(), &cltlab::model::LoadConfig::on(&cltlab::candle::Device::Cpu)).unwrap()
}

/// So many random words of [`small_folder`]'s model, ten a line.
pub fn words(count: usize, seed: u64) -> String {
    let mut numbers = crate::numbers::Numbers::new(seed);
    let word = |at: usize, number: f32| format!("w{}{}", 1 + ((number + 1.0) * 63.5).min(126.0) as usize, if at % 10 == 9 { '\n' } else { ' ' });
    numbers.take(count).into_iter().enumerate().map(|(at, number)| word(at, number)).collect()
}

/// All tensors of a safetensors file.
pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Values as f32, flattened.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest absolute difference of two lists, and where it is. The one comparator of this suite: other
/// lengths, empty lists and NaN anywhere are faults, not differences. Equal infinities are equal.
///
/// # Errors
/// What is wrong with the lists, and where.
pub fn compare<T: Number>(got: &[T], expected: &[T]) -> Result<(f64, usize), String> {
    if got.len() != expected.len() {
        return Err(format!("{} values, expected {}", got.len(), expected.len()));
    }
    let mut worst = (-1.0, 0);
    for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let (got, expected): (f64, f64) = (got.into(), expected.into());
        let difference = if got == expected { 0.0 } else { (got - expected).abs() };
        if difference.is_nan() {
            return Err(format!("{got} at {at}, expected {expected}"));
        }
        if difference > worst.0 {
            worst = (difference, at);
        }
    }
    if worst.0 < 0.0 { Err("no values".into()) } else { Ok(worst) }
}

/// A type of numbers that tests compare.
pub trait Number: Copy + Into<f64> {
    fn of(value: f64) -> Self;
}

impl Number for f32 {
    fn of(value: f64) -> f32 {
        value as f32
    }
}

impl Number for f64 {
    fn of(value: f64) -> f64 {
        value
    }
}

/// Largest absolute difference, as [`compare`] finds it.
#[track_caller]
pub fn max_difference<T: Number>(got: &[T], expected: &[T]) -> T {
    T::of(compare(got, expected).unwrap_or_else(|fault| panic!("{fault}")).0)
}

/// Asserts that two lists of values differ by at most `tolerance`, and prints by how much.
#[track_caller]
pub fn assert_close<T: Number>(what: &str, got: &[T], expected: &[T], tolerance: f32) {
    let (difference, at) = compare(got, expected).unwrap_or_else(|fault| panic!("{what}: {fault}"));
    println!("{what}: largest difference {difference:.2e} at {at} (allowed {tolerance:.0e})");
    let (got, expected): (f64, f64) = (got[at].into(), expected[at].into());
    assert!(difference <= f64::from(tolerance), "{what}: largest difference {difference:e} at {at} ({got}, expected {expected}), allowed {tolerance:e}");
}

/// Largest absolute value; at least one value, none NaN.
#[track_caller]
pub fn largest<T: Number>(values: &[T]) -> T {
    assert!(!values.is_empty(), "no values");
    T::of(values.iter().fold(0.0, |top, &value| worse(top, value.into().abs())))
}

/// The larger of the worst so far and the next, which must be a number.
#[track_caller]
pub fn worse<T: Number>(worst: T, next: T) -> T {
    let (before, after): (f64, f64) = (worst.into(), next.into());
    assert!(!before.is_nan() && !after.is_nan(), "{after} after {before}");
    T::of(before.max(after))
}

/// A new folder for one test. It stays, so that a failure can be looked at. The first call in a process removes the folders that are
/// older than ten minutes and whose process has ended; otherwise they fill the disk.
pub fn scratch(name: &str) -> PathBuf {
    static SWEPT: std::sync::Once = std::sync::Once::new();
    SWEPT.call_once(|| {
        for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_prefix("cltlab-test-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok()) else { continue };
            let old = entry.metadata().and_then(|data| data.modified()).is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 600));
            if old && !Path::new(&format!("/proc/{id}")).exists() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    });
    let path = std::env::temp_dir().join(format!("cltlab-test-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Makes the header of a sealed safetensors file, altered without a change of length, say its own checksum.
pub fn seal(bytes: &mut [u8]) {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    let mut infos: Vec<_> = header.tensors().into_iter().map(|(name, info)| (name, info.dtype, info.shape.clone())).collect();
    infos.sort_by(|a, b| a.0.cmp(&b.0));
    let notes: BTreeMap<_, _> = header.metadata().as_ref().unwrap().iter().filter(|(name, _)| *name != "seal").collect();
    let seal = format!("{:016x}", twox_hash::XxHash64::oneshot(0, format!("{notes:?}{infos:?}").as_bytes()));
    let at = bytes.windows(8).position(|window| window == b"\"seal\":\"").unwrap() + 8;
    bytes[at..at + seal.len()].copy_from_slice(seal.as_bytes());
}

/// That an error is of a kind and has these words.
#[track_caller]
pub fn says(error: &cltlab::Error, kind: cltlab::ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "'{error}' does not say '{word}'");
    }
}

/// A random CLT of 24 features a layer for a tiny model, many of them often active, as `change` has its configuration;
/// without biases in its decoders if `bare`.
pub fn lively_clt(model: &Model, bare: bool, change: impl Fn(&mut CltConfig)) -> Clt {
    let mut config = CltConfig { layers: model.layers(), width: model.width(), features: 24, activation: Activation::Relu, ..CltConfig::default() };
    change(&mut config);
    let (layers, d, features) = (config.layers, config.width, config.features);
    let normal = |std: f64, shape: &[usize]| (Tensor::randn(0_f32, 1.0, shape, &candle_core::Device::Cpu).unwrap() * std).unwrap();
    let weights = (0..layers).map(|l| LayerWeights {
        encoder: normal(1.0 / (d as f64).sqrt(), &[features, d]),
        encoder_bias: normal(0.1, &[features]),
        threshold: None,
        decoder: normal(0.2 / (d as f64).sqrt(), &[features, layers - l, d]),
        decoder_bias: normal(if bare { 0.0 } else { 0.1 }, &[d]),
        skip: config.skip.then(|| normal(0.5 / (d as f64).sqrt(), &[d, d])),
    });
    let weights = weights.collect();
    Clt::new(config, weights).unwrap()
}

/// Copies a folder with everything in it.
pub fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy_all(&entry.path(), &to) } else { std::fs::copy(entry.path(), to).map(|_| ()).unwrap() }
    }
}
