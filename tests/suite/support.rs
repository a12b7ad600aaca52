//! Where reference data lies, and small helpers that several tests share.

use std::collections::BTreeMap;
use candle_core::Tensor;
use cltlab::candle as candle_core;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A path under `shared/` beside the project, or `None` with a printed reason: reference data from
/// public repositories is not committed, so a test that needs it is skipped where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    present(root().join("../shared").join(path))
}

/// A path under `tests/fixtures`, committed.
pub fn fixture(path: &str) -> PathBuf {
    root().join("tests/fixtures").join(path)
}

/// The SmolLM2 model that `./x` sets up, or `None` with a printed reason.
pub fn smollm2() -> Option<PathBuf> {
    present(root().join(".cltlab/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

fn present(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not here", path.display());
    None
}

/// All tensors of a safetensors file.
pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Values as f32, flattened.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest absolute difference; the shapes must hold equally many values.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "different numbers of values");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |top, next| if next.is_nan() { f32::NAN } else { top.max(next) })
}

/// Asserts that two lists of values differ by at most `tolerance`, and prints by how much.
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    let difference = max_difference(got, expected);
    println!("{what}: largest difference {difference:.2e} (allowed {tolerance:.0e})");
    assert!(difference <= tolerance, "{what}: largest difference {difference:e}, allowed {tolerance:e}");
}

/// A new folder for one test, removed by the next run of it.
pub fn scratch(name: &str) -> PathBuf {
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
