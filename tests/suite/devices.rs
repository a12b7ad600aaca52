//! Devices: the self-test passes here, and what a machine or build cannot do is said, not tried.
//!
//! The GPU's side is checked by `tests/cuda/check.py` on an emulated one.

use crate::support::{root, says};
use cltlab::activations::Activations;
use cltlab::clt::{Activation, CltConfig};
use cltlab::selftest::SelfTest;
use cltlab::train::{TrainConfig, TrainDevice, Trainer, Weights};
use cltlab::{auto_device, ErrorKind};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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

/// All Rust files below a folder with their text.
fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

/// What is wrong between the PTX's kernels, the table of their names and the launches.
fn faults(ptx: &str, table: &str, others: &[(PathBuf, String)]) -> Vec<String> {
    let entries: BTreeSet<&str> = ptx.split(".visible .entry ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("    ") && line.trim_start().starts_with(|c: char| c.is_ascii_uppercase()) && line.trim_end().ends_with('"'))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let names: BTreeSet<&str> = rows.iter().flat_map(|row| &row[1..]).map(|name| name.trim_matches('"')).collect();
    let mut faults: Vec<String> = names.difference(&entries).map(|name| format!("{name} is in kernel.rs, not in kernels.ptx: ./x build-cuda --ptx")).collect();
    faults.extend(entries.difference(&names).map(|name| format!("{name} is in kernels.ptx, not in kernel.rs: nothing can launch it")));
    for row in &rows {
        let constant = format!("{}::{}", if row.len() == 2 { "Kernel" } else { "Kernels" }, row[0]);
        let used = |text: &str| text.match_indices(&constant).any(|(at, _)| !text[at + constant.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'));
        if !others.iter().any(|(_, text)| used(text)) {
            faults.push(format!("{constant} is launched by nothing"));
        }
    }
    // Other ways to a kernel than `Gpu::launch`, which takes a `Kernel`.
    for (path, text) in others {
        for way in ["get_or_load_func", "get_or_load_custom_func", "load_function", "load_module", "launch_builder", "kernels.ptx\""] {
            let found = text.matches(way).count();
            let allowed = usize::from(path.ends_with("device/gpu/mod.rs") && matches!(way, "get_or_load_custom_func" | "launch_builder" | "kernels.ptx\""));
            if found != allowed {
                faults.push(format!("{} has {way} {found} times, expected {allowed}: launches go through Gpu::launch", path.display()));
            }
        }
    }
    faults
}

/// The compiler that made the committed PTX is not everywhere; that it has today's kernels is checked, and that all are launched.
#[test]
fn the_ptx_has_the_kernels_that_are_launched_and_no_others() {
    let table = Path::new("crate/src/device/gpu/kernel.rs");
    let ptx = std::fs::read_to_string(root().join("crate/src/clt/kernels/cuda/kernels.ptx")).unwrap();
    let mut others = Vec::new();
    sources(&root().join("crate/src"), &mut others);
    let at = others.iter().position(|(path, _)| path.ends_with(table)).unwrap();
    let (_, table) = others.swap_remove(at);
    assert_eq!(faults(&ptx, &table, &others), Vec::<String>::new());
    // Each kind of fault is seen.
    let fault = |ptx: &str, table: &str, others: &[(PathBuf, String)]| faults(ptx, table, others).join("\n");
    assert!(fault(&ptx.replacen(".entry top_rows(", ".entry top_lines(", 1), &table, &others).contains("top_rows is in kernel.rs, not"));
    assert!(fault(&ptx, &table.replace("decode_tied_bf16", "decode_tide_bf16"), &others).contains("decode_tied_bf16 is in kernels.ptx, not"));
    assert!(fault(&format!("{ptx}\n.visible .entry unused("), &table, &others).contains("unused is in kernels.ptx, not"));
    let removed: Vec<(PathBuf, String)> = others.iter().map(|(path, text)| (path.clone(), text.replace("Kernels::DECODE_TIED.", "Kernels::DECODE."))).collect();
    assert_eq!(fault(&ptx, &table, &removed), "Kernels::DECODE_TIED is launched by nothing");
    others.push((PathBuf::from("another.rs"), "device.get_or_load_custom_func(name, \"cltlab\", PTX)".into()));
    assert!(fault(&ptx, &table, &others).contains("another.rs has get_or_load_custom_func"));
}

/// A device that candle opened has a stream for each thread, and a kernel would overtake the copy that it needs. Such a device
/// cannot be made without a card; that none gets past [`Gpu::of`] and the public constructors is read in the code.
#[test]
fn a_device_that_was_opened_elsewhere_is_refused_at_every_way_in() {
    let mut all = Vec::new();
    sources(&root().join("crate/src"), &mut all);
    sources(&root().join("cli/src"), &mut all);
    let text = |end: &str| all.iter().find(|(path, _)| path.ends_with(end)).map(|(_, text)| text.clone()).unwrap();
    let body = |file: &str, start: &str| text(file).split(start).nth(1).unwrap_or_else(|| panic!("{file}: no {start}")).split("\n    }\n").next().unwrap().to_string();
    // What reads candle's device: where ours are opened and asked, and where a card's name is looked up.
    for (path, text) in &all {
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let allowed = ["device/mod.rs", "device/gpu/mod.rs", "train/plan.rs"].iter().any(|end| path.ends_with(end));
        for way in ["Device::Cuda(", "as_cuda_device", "new_cuda_with_stream("] {
            assert!(allowed || !code.contains(way), "{}: {way}", path.display());
        }
        for way in ["Device::new_cuda(", "cuda_if_available", "CudaDevice::new("] {
            assert!(!code.contains(way), "{}: {way}", path.display());
        }
    }
    // The ways in: each asks before anything else looks at the device.
    for (file, start) in [
        ("device/gpu/mod.rs", "pub fn of(device: &Device)"),
        ("model/load.rs", "fn open(source"),
        ("clt/mod.rs", "pub(crate) fn from_layers("),
        ("clt/mod.rs", "pub fn to_device("),
        ("model/load.rs", "pub fn from_tensors("),
        ("clt/io/import.rs", "fn open(source"),
        ("selftest/mod.rs", "pub fn observed("),
    ] {
        let body = body(file, start);
        assert!(body.contains("require_own("), "{file} {start}: takes any device");
    }
    assert!(text("device/mod.rs").contains("OPENED.lock()"), "devices that are opened are no longer kept");
}
