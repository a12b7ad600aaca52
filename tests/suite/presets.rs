//! Presets: the figures of their sources, trainings that run, and `preset = "..."` in a file.

use crate::train_command::{cltlab, lines, recipe, said};
use crate::training::planted;
use cltlab::clt::Tied;
use cltlab::prelude::*;
use cltlab::train::Loss;

/// Shapes for GPT-2 small, and rates, as the sources have them.
#[test]
fn presets_say_what_their_sources_say() {
    let gpt2 = CltConfig { layers: 12, width: 768, ..CltConfig::default() };
    let of = |name: &str| {
        let preset = Preset::named(name).unwrap();
        (preset.shape(&gpt2), preset.train(), preset.stream())
    };
    let jump = Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 };
    let (clt, train, stream) = of("anthropic");
    assert_eq!((clt.activation, clt.input, stream.input), (jump.clone(), InputSite::ResidMid, InputSite::ResidMid));
    assert_eq!((train.sparsity_ramp, train.tanh_scale, train.dead, train.decay), (1.0, 4.0, 3e-6, 0.2));
    let (clt, train, stream) = of("clt_forge_gpt2");
    assert_eq!((clt.features, clt.activation, clt.input, stream.context), (24_576, jump, InputSite::Normalized, 16));
    assert_eq!((train.steps, train.batch_tokens, train.lr, train.sparsity, train.dead, train.target_l0), (300_000, 1_024, 4e-4, Some(2.0), 1e-5, Some(10.0)));
    let (clt, train, stream) = of("eleuther_topk");
    assert_eq!((clt.features, clt.activation, clt.tied, clt.skip), (98_304, Activation::TopK { k: 16 }, Tied::PerTarget, true));
    assert_eq!((train.loss, train.lr, train.clip, stream.context, stream.input), (Loss::Fvu, 2e-4, None, 128, InputSite::MlpIn));
    let (clt, train, _) = of("openclt");
    assert_eq!((clt.features, clt.activation, train.lr, train.clip), (9_216, Activation::TopK { k: 184 }, 1e-4, Some(1.0)));
    for preset in Preset::ALL {
        assert_eq!(Preset::named(preset.name()).unwrap(), preset);
        preset.shape(&gpt2).validate().unwrap();
        preset.train().validate().unwrap();
    }
    let close = Preset::named("antropic").unwrap_err();
    assert!(close.kind() == ErrorKind::BadConfig && close.to_string().contains("did you mean 'anthropic'?"), "{close}");
    let far = Preset::named("zzzzzzzzzzzzz").unwrap_err().to_string();
    assert!(far.contains("clt_forge_gpt2") && !far.contains("did you mean"), "{far}");
}

#[test]
fn presets_train() {
    let (x, y) = planted(600, 1);
    let activations = Activations::from_memory(x, y, 32).unwrap();
    for preset in Preset::ALL {
        let shape = CltConfig { input: InputSite::default(), ..preset.shape(&CltConfig { layers: 2, width: 32, ..CltConfig::default() }) };
        let config = TrainConfig { steps: 60, batch_tokens: 200, lr: 2e-3, ..preset.train() };
        let mut trainer = Trainer::new(&activations, &shape, &config).unwrap();
        let history = trainer.run().unwrap();
        println!("{preset}: {history}");
        assert!(history.steps() == 60 && history.samples.iter().all(|sample| sample.reconstruction.is_finite() && sample.l0 > 0.0), "{preset}: {history}");
        trainer.clt().unwrap();
    }
}

#[test]
fn a_file_names_its_preset() {
    let folder = recipe("preset-file", "");
    let text = std::fs::read_to_string(folder.join("train.toml")).unwrap();
    let path = folder.join("train.toml");
    std::fs::write(&path, format!("preset = \"openclt\"\n{}", text.replace("features = 64\nactivation = { top_k = { k = 4 } }\n", "tied = \"per_target\"\n"))).unwrap();
    let file = path.to_str().unwrap();
    let done = |arguments: &[&str]| {
        let output = cltlab(&[&["train", file], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
    };
    done(&["--set", "train.seed=3"]);
    // The preset's rate without warm-up, and its shape: 12 · 32 features, of which 7 are 2 %.
    assert!(lines(&folder).iter().all(|line| line["lr"] == 1e-4 && line["l0"] == 7.0));
    let clt = Clt::load(folder.join("run/clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    assert_eq!((clt.features(), &clt.config().activation), (384, &Activation::TopK { k: 7 }));
    // What was written beside it names the preset too, and trains the same.
    let again = folder.join("run/config.toml");
    let written = std::fs::read_to_string(&again).unwrap();
    assert!(written.starts_with("preset = \"openclt\""), "{written}");
    let other = format!("output.folder={}", folder.join("again").display());
    let output = cltlab(&["train", again.to_str().unwrap(), "--set", &other]);
    assert!(output.status.success(), "{}", said(&output));
    let second = Clt::load(folder.join("again/clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    let weights = |clt: &Clt| clt.decoder(0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(weights(&clt) == weights(&second));
    done(&["--set", "preset=anthropic", "--set", "clt.features=64", "--set", "clt.tied=no", "--set", "clt.input=mlp_in", "--set", &format!("output.folder={}", folder.join("third").display())]);
    for (set, words) in [("preset=opencl", ["'opencl'", "did you mean 'openclt'?"]), ("preset=", ["preset", "anthropic"]), ("presett.x=1", ["[presett]", "'preset'"])] {
        let output = cltlab(&["train", file, "--set", set, "--set", &format!("output.folder={}", folder.join("never").display())]);
        let text = said(&output);
        assert!(!output.status.success() && words.iter().all(|word| text.contains(word)), "{set}: {text}");
    }
}
