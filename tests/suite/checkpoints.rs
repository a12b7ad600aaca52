//! Nothing is lost: changed bytes, killed processes, full disks, and data that goes round.

use crate::support::{says, scratch, small_model, words};
use crate::train_command::{lines, recipe, said};
use cltlab::candle::Device;
use cltlab::internal::files::lock::FolderLock;
use cltlab::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn tiny() -> Activations {
    let wave = |phase: f32| (0..40).map(|i| (i as f32 * phase).sin()).collect::<Vec<f32>>();
    Activations::from_memory(vec![wave(0.7)], vec![wave(0.3)], 2).unwrap()
}

fn tiny_shape() -> CltConfig {
    CltConfig { layers: 1, width: 2, features: 4, activation: Activation::JumpRelu { threshold: 0.1, bandwidth: 0.2 }, ..CltConfig::default() }
}

/// Two checkpoints of a tiny training; the newer one's path.
fn two_checkpoints(name: &str) -> (PathBuf, PathBuf) {
    let folder = scratch(name);
    let config = TrainConfig { steps: 2, batch_tokens: 8, checkpoint_every: 1, checkpoint_dir: Some(folder.clone()), ..TrainConfig::default() };
    Trainer::new(&tiny(), &tiny_shape(), &config).unwrap().run().unwrap();
    let newest = folder.join("step-00000002.safetensors");
    (folder, newest)
}

/// Each byte in turn is changed, and the file cut at many lengths: always found, the one before offered.
#[test]
fn every_changed_byte_is_found() {
    let (folder, newest) = two_checkpoints("flipped");
    let whole = std::fs::read(&newest).unwrap();
    let activations = tiny();
    let refused = |what: String, bytes: &[u8]| {
        std::fs::write(&newest, bytes).unwrap();
        let error = Trainer::resume(&folder, &activations).err().unwrap_or_else(|| panic!("{what}: taken for whole"));
        assert!(matches!(error.kind(), ErrorKind::BadFile | ErrorKind::BadTensor), "{what}: {:?} {error}", error.kind());
        assert!(error.to_string().contains("step-00000002") && error.to_string().contains("step-00000001"), "{what}: {error}");
    };
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(format!("byte {at} of {}", whole.len()), &bytes);
    }
    for length in (0..whole.len()).step_by(61).chain([1, 7, 8, 9, whole.len() - 1]) {
        refused(format!("cut at {length}"), &whole[..length]);
    }
    println!("{} bytes changed, each found", whole.len());
    // The one before is taken when asked; the broken one is set aside by the next save.
    let (mut trainer, damaged) = Trainer::resume_or_earlier(&folder, &activations).unwrap();
    assert_eq!((trainer.steps(), damaged.len()), (1, 1));
    trainer.save(&folder).unwrap();
    assert!(newest.with_extension("safetensors.aside").exists() && !newest.exists());
    trainer.run().unwrap();
    let again = cltlab::candle::safetensors::load(&newest, &Device::Cpu).unwrap();
    std::fs::write(&newest, &whole).unwrap();
    let first = cltlab::candle::safetensors::load(&newest, &Device::Cpu).unwrap();
    let weights = |all: &std::collections::HashMap<String, Tensor>| all["0.decoder.w"].to_vec1::<f32>().unwrap();
    assert!(weights(&again) == weights(&first));
    // Both broken: the newest one's error, and that there is no other.
    for name in ["step-00000001", "step-00000002"] {
        std::fs::write(folder.join(format!("{name}.safetensors")), &whole[..100]).unwrap();
    }
    let error = Trainer::resume(&folder, &activations).unwrap_err();
    assert!(error.to_string().contains("no earlier one"), "{error}");
    assert!(Trainer::resume_or_earlier(&folder, &activations).unwrap_err().to_string().contains("step-00000002"));
}

#[test]
fn as_many_as_asked_for_are_kept() {
    let folder = scratch("keep-three");
    let config = TrainConfig { steps: 6, batch_tokens: 8, checkpoint_every: 1, checkpoint_keep: 3, checkpoint_dir: Some(folder.clone()), ..TrainConfig::default() };
    Trainer::new(&tiny(), &tiny_shape(), &config).unwrap().run().unwrap();
    // No process of this number lives here, but it may be one of another machine that shares the folder.
    let left = folder.join(".step-00000009.safetensors.999999999.0123456789abcdef.0123456789abcdef.tmp");
    std::fs::write(&left, "half").unwrap();
    Trainer::resume(folder.join("step-00000004.safetensors"), &tiny()).unwrap().save(&folder).unwrap();
    let mut names: Vec<String> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.remove(0).ends_with(".tmp"), "what is not surely ours was removed");
    assert_eq!(names, ["step-00000004.safetensors", "step-00000005.safetensors.aside", "step-00000006.safetensors.aside"]);
}

fn arrays(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().filter(|(name, _)| name != "history").map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// Passes and fillings of the buffer end in the middle of steps; a rate that JSON would round.
#[test]
fn a_stream_goes_on_where_it_was() {
    let model = small_model();
    let stream = StreamConfig { context: 16, buffer_tokens: Some(100), passes: 2, ..StreamConfig::default() };
    let activations = Activations::stream(&model, &Corpus::from_texts(vec![words(1500, 1)]).unwrap(), &stream).unwrap();
    for activation in [Activation::BatchTopK { k: 4 }, Activation::TopK { k: 4 }, Activation::Relu, Activation::JumpRelu { threshold: 0.1, bandwidth: 0.3 }] {
        let shape = CltConfig { features: 32, activation: activation.clone(), ..CltConfig::for_model(&model) };
        let config = TrainConfig { steps: 14, batch_tokens: 48, lr: 0.0012345678901234567, dead_window: 100, ..TrainConfig::default() };
        let folder = scratch("stream-resume");
        let mut whole = Trainer::new(&activations, &shape, &config).unwrap();
        whole.run().unwrap();
        whole.save(&folder).unwrap();
        let expected = arrays(&folder.join("step-00000014.safetensors"));
        for stop in [1, 4, 5, 9, 13] {
            let folder = scratch("stream-resume-part");
            let mut first = Trainer::new(&activations, &shape, &config).unwrap();
            first.run_steps(stop).unwrap();
            first.save(&folder).unwrap();
            drop(first);
            let mut second = Trainer::resume(&folder, &activations).unwrap();
            second.run().unwrap();
            second.save(&folder).unwrap();
            assert!(arrays(&folder.join("step-00000014.safetensors")) == expected, "{activation:?}: other weights after a resume at {stop}");
        }
    }
}

pub fn start(folder: &Path, more: &[&str]) -> Child {
    let file = folder.join("train.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cltlab"));
    command.arg("train").arg(file).args(more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

pub fn clt_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder.join("run/clt")).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())).collect()
}

/// Waits until `condition` holds or the process ended.
pub fn wait(child: &mut Child, condition: impl Fn() -> bool) {
    while !condition() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// SIGKILL before, between and within saves; `tests/kill_train.py` does it 50 times at random moments.
#[test]
fn killed_processes_lose_nothing() {
    let settings = "checkpoint_every = 1\n";
    let (whole, killed) = (recipe("kill-whole", settings), recipe("kill-killed", settings));
    assert!(start(&whole, &["--set", "train.steps=40"]).wait().unwrap().success());
    let checkpoints = killed.join("run/checkpoints");
    let whole_ones = || names(&checkpoints).into_iter().filter(|name| name.starts_with("step-")).max();
    let mut kills = 0;
    for moment in 0..8 {
        let mut child = start(&killed, &["--resume", "--set", "train.steps=40"]);
        let before = whole_ones();
        match moment % 4 {
            0 => wait(&mut child, || killed.join("run/metrics.jsonl").exists()),
            1 => wait(&mut child, || names(&checkpoints).iter().any(|name| name.ends_with(".tmp"))),
            2 => wait(&mut child, || whole_ones() > before),
            _ => {}
        }
        child.kill().unwrap();
        kills += usize::from(!child.wait().unwrap().success());
    }
    let output = crate::train_command::cltlab(&["train", killed.join("train.toml").to_str().unwrap(), "--resume", "--set", "train.steps=40"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(clt_files(&whole) == clt_files(&killed), "other weights after {kills} kills");
    assert_eq!(lines(&killed).iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert!(names(&checkpoints).iter().all(|name| !name.ends_with(".tmp")), "{:?}", names(&checkpoints));
    println!("{kills} kills");
}

/// SIGTERM: the step is finished, a checkpoint and the CLT so far are written, and it can go on.
#[test]
fn a_polite_stop_writes_everything() {
    let (whole, stopped) = (recipe("term-whole", ""), recipe("term-stopped", ""));
    let steps = ["--set", "train.steps=4000", "--set", "train.checkpoint_every=100000"];
    let mut child = start(&stopped, &steps);
    wait(&mut child, || stopped.join("run/metrics.jsonl").exists());
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    assert_eq!(child.wait().unwrap().code(), Some(75), "an early stop shows in the status");
    let report: serde_json::Value = cltlab::internal::files::read_json(stopped.join("run/report.json")).unwrap();
    let done = report["steps"].as_u64().unwrap();
    assert!(done >= 1, "{report}");
    assert_eq!(report["stopped"].as_bool().unwrap(), done < 4000);
    Clt::load(stopped.join("run/clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    assert!(start(&stopped, &[&["--resume"], &steps[..]].concat()).wait().unwrap().success());
    assert!(start(&whole, &steps).wait().unwrap().success());
    assert!(clt_files(&whole) == clt_files(&stopped), "other weights after a stop at step {done}");
}

/// A limit on the size of files stands for a full disk: the write fails, what was there stays, and
/// with room again the training goes on to the same weights.
#[test]
fn a_full_disk_keeps_the_last_checkpoint() {
    let (whole, full) = (recipe("disk-whole", ""), recipe("disk-full", ""));
    assert!(start(&whole, &[]).wait().unwrap().success());
    assert!(start(&full, &["--set", "train.steps=12", "--set", "train.checkpoint_every=4"]).wait().unwrap().success());
    let checkpoints = full.join("run/checkpoints");
    // As if it had ended after step 8.
    std::fs::remove_file(checkpoints.join("step-00000012.safetensors")).unwrap();
    std::fs::remove_dir_all(full.join("run/clt")).unwrap();
    let before = std::fs::read(checkpoints.join("step-00000008.safetensors")).unwrap();
    let file = full.join("train.toml");
    let limited = format!("ulimit -f 20; exec {} train {} --resume --set train.checkpoint_every=2", env!("CARGO_BIN_EXE_cltlab"), file.display());
    let output = Command::new("bash").args(["-c", &limited]).output().unwrap();
    let text = said(&output);
    assert!(!output.status.success() && text.contains("step-00000010") && text.contains("free some space"), "{text}");
    assert_eq!(names(&checkpoints), ["step-00000008.safetensors"]);
    assert!(std::fs::read(checkpoints.join("step-00000008.safetensors")).unwrap() == before);
    assert!(start(&full, &["--resume"]).wait().unwrap().success());
    assert!(clt_files(&whole) == clt_files(&full));
}

/// A loss that is not finite: the program ends with an error, and the weights before it are written.
#[test]
fn the_last_good_weights_are_written() {
    let folder = recipe("train-nan", "lr = 1e30\nwarmup = 0.0");
    let output = crate::train_command::cltlab(&["train", folder.join("train.toml").to_str().unwrap()]);
    assert!(!output.status.success() && said(&output).contains("training step") && said(&output).contains("lr"), "{}", said(&output));
    let clt = Clt::load(folder.join("run/clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    assert!(clt.encoder(0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|w| w.is_finite()));
    let steps = lines(&folder).len();
    assert_eq!(names(&folder.join("run/checkpoints")), [format!("step-{steps:08}.safetensors")]);
    let activations = Activations::load(folder.join("activations.safetensors"), &Default::default()).unwrap();
    assert_eq!(Trainer::resume(folder.join("run/checkpoints"), &activations).unwrap().steps(), steps);
}

#[test]
fn two_trainers_of_one_process_do_not_write_into_one_folder() {
    let folder = scratch("one-folder");
    let config = TrainConfig { steps: 2, batch_tokens: 8, checkpoint_every: 1, checkpoint_dir: Some(folder.clone()), ..TrainConfig::default() };
    let trainer = |config: &TrainConfig| Trainer::new(&tiny(), &tiny_shape(), config).unwrap();
    let names = || std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    // By another path to the same folder.
    let mut first = trainer(&config);
    first.set_lock(FolderLock::take(folder.join("..").join(folder.file_name().unwrap())).unwrap());
    let mut second = trainer(&config);
    for error in [second.run().unwrap_err(), second.run_steps(1).unwrap_err(), second.save(&folder).unwrap_err()] {
        says(&error, ErrorKind::BadInput, &["another training writes here", "this one", "one-folder"]);
    }
    assert_eq!((second.steps(), names()), (0, vec![".cltlab.lock".to_string()]));
    first.run().unwrap();
    first.save(&folder).unwrap();
    assert!(second.run().is_err());
    drop(first);
    second.run().unwrap();
    assert!(!folder.join(".cltlab.lock").exists() && folder.join("step-00000002.safetensors").exists());
    // What writes no checkpoints needs no folder.
    let _held = FolderLock::take(&folder).unwrap();
    trainer(&TrainConfig { checkpoint_every: 0, ..config }).run().unwrap();
}
