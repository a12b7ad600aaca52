//! Devices: the self-test passes here, and what a machine or build cannot do is said, not tried.
//!
//! The GPU's side is checked by `tests/cuda/check.py` on an emulated one.

use crate::support::{root, says};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, CltConfig};
use cltlab::selftest::SelfTest;
use cltlab::train::{TrainConfig, TrainDevice, Trainer, Weights};
use cltlab::{auto_device, ErrorKind};

fn noise(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8_388_608.0) - 1.0).collect()
}

fn trainer(config: TrainConfig) -> cltlab::Result<Trainer> {
    let activations = Activations::from_memory(vec![noise(64 * 16, 1)], vec![noise(64 * 16, 2)], 16)?;
    let shape = CltConfig { layers: 1, width: 16, features: 32, activation: Activation::TopK { k: 4 }, ..CltConfig::default() };
    Trainer::new(&activations, &shape, &TrainConfig { steps: 4, batch_tokens: 16, ..config })
}

#[test]
fn the_cpu_passes_its_self_test() {
    let test = SelfTest::run(&cltlab::candle::Device::Cpu).unwrap();
    assert!(test.passed(), "{test}");
    assert!(test.checks.len() >= 12);
}

#[test]
fn a_check_can_fail() {
    let mut test = SelfTest::run(&cltlab::candle::Device::Cpu).unwrap();
    test.checks[0].deviation = f64::NAN;
    assert!(!test.passed());
    assert!(test.to_string().contains("FAILED"));
}

#[test]
fn without_a_gpu_the_cpu_is_taken_and_a_gpu_refused() {
    let gpus = cltlab::device::cuda_devices().unwrap_or(0);
    assert_eq!(auto_device().unwrap().is_cpu(), gpus == 0);
    let error = cltlab::device::cuda(gpus).unwrap_err();
    assert!(error.advice().is_some() && (error.kind() == ErrorKind::Unsupported || gpus > 0), "{error}");
    let trained = trainer(TrainConfig { device: TrainDevice::Cuda, ..TrainConfig::default() });
    assert_eq!(trained.err().map(|error| error.kind()), Some(ErrorKind::Unsupported).filter(|_| gpus == 0));
}

#[test]
fn weights_in_bf16_are_for_gpus() {
    let error = trainer(TrainConfig { weights: Weights::Bf16, device: TrainDevice::Cpu, ..TrainConfig::default() }).err().unwrap();
    says(&error, ErrorKind::Unsupported, &["TrainConfig::weights", "bf16", "f32"]);
    assert!(trainer(TrainConfig { device: TrainDevice::Cpu, ..TrainConfig::default() }).is_ok());
}

/// The compiler that made the committed PTX is not everywhere; that it is of today's kernels is.
#[test]
fn every_kernel_that_is_called_is_in_the_ptx() {
    let folder = root().join("crate/src/clt/kernels/cuda");
    let ptx = std::fs::read_to_string(folder.join("kernels.ptx")).unwrap();
    let entries: Vec<&str> = ptx.split(".visible .entry ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
    assert!(entries.len() > 40);
    let mut called = 0;
    for file in ["encode.rs", "step.rs", "store.rs", "training.rs"] {
        let text = std::fs::read_to_string(root().join("crate/src/clt/live/cuda").join(file)).unwrap();
        for name in text.split('"').filter(|word| entries.contains(word)) {
            called += usize::from(!name.is_empty());
        }
        for name in text.split("launch(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(entries.contains(&name), "{file} starts {name}, which kernels.ptx does not have: ./x build-cuda --ptx");
        }
    }
    assert!(called > 15, "only {called} calls were found: the reader of calls is broken");
}
