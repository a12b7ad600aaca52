//! What a training will take and last: bytes and flops against counts one by one, memory against `MemoryNeed`, the CPU's time against
//! a training's, the table of cards against what must hold of it; `cltlab train --dry-run` writes nothing.

use crate::support::small_folder;
use crate::train_command::{cltlab, recipe, said};
use cltlab::candle::Device;
use cltlab::model::{LoadConfig, Summary};
use cltlab::prelude::*;
use cltlab::selftest::RandomModel;
use cltlab::text::Blocks;
use cltlab::train::{PlanPart, Prediction, TrainDevice, Weights, RESERVE};
use std::time::Instant;

const MEMORY: PlanSource = PlanSource::Memory { tokens: None };

fn shape(layers: usize, width: usize, features: usize, activation: Activation) -> CltConfig {
    CltConfig { layers, width, features, activation, ..CltConfig::default() }
}

fn card<'a>(plan: &'a Plan, name: &str) -> &'a Prediction {
    plan.cards.iter().find(|card| card.device == name).unwrap()
}

fn part<'a>(prediction: &'a Prediction, name: &str) -> &'a PlanPart {
    prediction.parts.iter().find(|part| part.name == name).unwrap_or_else(|| panic!("{name} is not in {:?}", prediction.parts))
}

/// A step by lists, each number that moves and each operation counted by itself.
#[test]
fn a_step_is_counted_number_by_number() {
    let (l, d, f, k, t) = (3, 64, 128, 2, 32);
    for (clip, weights, moments) in [(None, Weights::F32, Moments::F32), (Some(1.0), Weights::F32, Moments::F32), (None, Weights::Bf16, Moments::EightBit)] {
        let config = TrainConfig { batch_tokens: t, clip, weights, moments, ..TrainConfig::default() };
        let plan = Plan::new(&shape(l, d, f, Activation::TopK { k }), &config, &MEMORY).unwrap();
        let weight = if weights == Weights::Bf16 { 2.0 } else { 4.0 };
        // Two f32, or two bytes and two exponents of a byte for 64 neighbours.
        let moment_bytes = if moments == Moments::EightBit { 2.0 + 2.0 / 64.0 } else { 8.0 };
        let (reads, updates) = (if clip.is_some() { 1.0 } else { 0.0 }, 2.0 * weight + 2.0 * moment_bytes);
        let [mut flops, mut encoder, mut selection, mut decoding, mut decoders, mut encoders] = [0.0; 6];
        for layer in 0..l {
            for _feature in 0..f {
                for _column in 0..d {
                    encoder += weight;
                    // The norm of the gradient is measured before.
                    encoders += reads * weight + updates;
                    for _target in layer..l {
                        // Products and the norm, before the update.
                        decoders += 2.0 * reads * weight + updates;
                    }
                }
            }
            for _token in 0..t {
                encoder += d as f64 * weight + f as f64 * 4.0;
                flops += 2.0 * (f * d) as f64;
                selection += f as f64 * 4.0;
                // The target is read, the gradient there written.
                decoding += 2.0 * d as f64 * weight;
                for _entry in 0..k {
                    for _target in layer..l {
                        decoding += d as f64 * weight;
                    }
                }
            }
        }
        for card in &plan.cards {
            for (name, counted_flops, counted_bytes) in [
                ("encoder products", flops, encoder),
                ("selection", 0.0, selection),
                ("decoding", 0.0, decoding),
                ("decoder gradients and Adam", 0.0, decoders),
                ("encoder gradients and Adam", 0.0, encoders),
            ] {
                let part = part(card, name);
                assert!(part.flops == counted_flops && (part.bytes / counted_bytes - 1.0).abs() < 1e-12, "{name}: {part:?}, counted {counted_flops} and {counted_bytes}");
                let rate = |half: bool| if half { 165.2e12 } else { 82.6e12 };
                if card.device == "RTX 4090" {
                    let floor = (part.flops / rate(weights == Weights::Bf16)).max(part.bytes / 1_008e9);
                    assert!((part.seconds * part.share / floor - 1.0).abs() < 1e-12, "{part:?}");
                }
            }
        }
    }
}

/// The figures of a review of the kernels for one shape, and how many products a dense code takes.
#[test]
fn large_steps_have_the_sizes_that_were_measured() {
    let config = TrainConfig { batch_tokens: 4096, clip: None, weights: Weights::Bf16, moments: Moments::EightBit, ..TrainConfig::default() };
    let plan = Plan::new(&shape(12, 768, 24_576, Activation::TopK { k: 16 }), &config, &MEMORY).unwrap();
    // Milliseconds of each part on an H200, kernel by kernel.
    let h200 = card(&plan, "H200");
    for (name, flops, bytes, ms) in [
        ("encoder products", 1.86e12, 5.4e9, 3.18),
        ("selection", 0.0, 4.8e9, 1.77),
        ("decoding", 0.0, 8.0e9, 1.63),
        ("decoder gradients and Adam", 0.0, 11.8e9, 6.73),
        ("encoder gradients and Adam", 0.0, 1.8e9, 0.89),
        ("lists, terms and figures", 0.0, 0.45e9, 0.72),
    ] {
        let part = part(h200, name);
        println!("{name}: {:.3e} flops, {:.3e} bytes, {:.2} ms", part.flops, part.bytes, 1e3 * part.seconds);
        assert!((part.flops - flops).abs() <= 0.01 * flops && (part.bytes / bytes - 1.0).abs() < 0.1, "{part:?}");
        assert!((1e3 * part.seconds / ms - 1.0).abs() < 0.1, "{ms} ms: {part:?}");
    }
    let ms = 1e3 * h200.seconds_per_step.unwrap();
    println!("H200: {ms:.1} ms a step");
    assert!((15.02 / ms - 1.0).abs() < 0.1, "{ms} ms");
    // openCLT's density with many tokens: dense forward, lists backward, which a card was faster with.
    let one = 9_216.0 * 768.0;
    let flops = |k: usize, clip: Option<f64>| {
        let plan = Plan::new(&shape(12, 768, 9_216, Activation::TopK { k }), &TrainConfig { clip, ..config.clone() }, &MEMORY).unwrap();
        part(card(&plan, "H100"), "products of dense codes").flops / (2.0 * 4096.0 * one)
    };
    let pairs = 78.0;
    assert!((flops(184, None) / pairs - 1.0).abs() < 1e-12, "{}", flops(184, None));
    // Denser codes: dense both ways, five products of decoders and encoders in all; a limit on the norm forms gradients twice.
    for (clip, expected) in [(None, 3.0 * pairs + 12.0), (Some(1.0), 4.0 * pairs + 24.0)] {
        assert!((flops(400, clip) / expected - 1.0).abs() < 1e-12, "{clip:?}: {}, {expected}", flops(400, clip));
    }
}

/// Faster cards take less time; older ones say what they lack; what does not fit says so.
#[test]
fn cards_differ_as_they_must() {
    let openclt = shape(12, 768, 9_216, Activation::TopK { k: 184 });
    let config = TrainConfig { batch_tokens: 240, ..Preset::OpenClt.train() };
    let plan = Plan::new(&openclt, &config, &MEMORY).unwrap();
    println!("{plan}");
    let hours: Vec<f64> = plan.cards.iter().map(|card| card.hours.unwrap()).collect();
    for pair in ["T4", "V100 32 GB", "RTX 4090"].windows(2) {
        assert!(card(&plan, pair[0]).hours > card(&plan, pair[1]).hours, "{pair:?}: {hours:?}");
    }
    assert!(card(&plan, "A100 40 GB").hours > card(&plan, "A100 80 GB").hours && card(&plan, "A100 80 GB").hours > card(&plan, "H100").hours);
    // 12 bytes a weight: 640 million fit on a T4, 1.7 billion do not, but in 4 bytes they do.
    assert!(plan.cards.iter().all(|card| card.fits == Some(true)));
    let wide = shape(12, 768, 24_576, Activation::TopK { k: 16 });
    let fits = |config: &TrainConfig| Plan::new(&wide, config, &MEMORY).unwrap().cards.iter().map(|card| card.fits.unwrap()).collect::<Vec<_>>();
    assert_eq!(fits(&TrainConfig::default()), [false, true, true, true, true, true, true]);
    let compact = TrainConfig { weights: Weights::Bf16, moments: Moments::EightBit, ..TrainConfig::default() };
    assert_eq!(fits(&compact), [true; 7]);
    let said = |plan: &Plan, name: &str, word: &str| card(plan, name).notes.iter().any(|note| note.contains(word));
    assert!(said(&plan, "V100 32 GB", "not supported by CUDA 13") && !said(&plan, "T4", "CUDA 13") && !said(&plan, "T4", "bf16"));
    let half = Plan::new(&wide, &compact, &MEMORY).unwrap();
    assert!(said(&half, "T4", "no bf16") && said(&half, "V100 32 GB", "no bf16") && !said(&half, "A100 40 GB", "bf16"));
    assert_eq!((card(&half, "T4").products, card(&half, "A100 40 GB").products), (Some(8.1e12), Some(312e12)));
    // The CPU has no bf16, a GPU no widths that are no multiple of 8.
    assert!(half.here.seconds_per_step.is_none() && half.here.fits == Some(false) && half.to_string().contains("bf16"));
    let odd = Plan::new(&shape(2, 36, 64, Activation::TopK { k: 4 }), &TrainConfig::default(), &MEMORY).unwrap();
    assert!(odd.cards.iter().all(|card| card.fits == Some(false) && card.hours.is_none()) && odd.here.hours.is_some());
}

/// Every number is one, whatever is asked for.
#[test]
fn every_prediction_is_a_number() {
    let activations = [Activation::Relu, Activation::JumpRelu { threshold: 0.03, bandwidth: 1.0 }, Activation::TopK { k: 1 }, Activation::BatchTopK { k: 8 }, Activation::GlobalTopK { k: 8 }, Activation::GlobalBatchTopK { k: 8 }];
    let mut count = 0;
    for activation in activations {
        for tied in [cltlab::clt::Tied::No, cltlab::clt::Tied::PerSource, cltlab::clt::Tied::PerTarget] {
            for (layers, width, features) in [(1, 8, 8), (2, 64, 256), (48, 8192, 1 << 20)] {
                for (steps, batch_tokens, clip) in [(1, 1, None), (1_000_000_000, 1 << 16, Some(1.0))] {
                    for skip in [false, true] {
                        let clt = CltConfig { tied, skip, ..shape(layers, width, features, activation.clone()) };
                        let plan = Plan::new(&clt, &TrainConfig { steps, batch_tokens, clip, ..TrainConfig::default() }, &MEMORY).unwrap();
                        for prediction in std::iter::once(&plan.here).chain(&plan.cards) {
                            let (seconds, hours) = (prediction.seconds_per_step.unwrap(), prediction.hours.unwrap());
                            assert!(seconds.is_finite() && seconds > 0.0 && hours.is_finite() && hours > 0.0, "{clt:?}: {prediction:?}");
                            assert!(prediction.parts.iter().all(|part| part.seconds.is_finite() && part.seconds >= 0.0 && part.share > 0.0 && part.share <= 1.0), "{prediction:?}");
                        }
                        assert!(!plan.to_string().contains("NaN") && !plan.to_string().contains("inf"));
                        count += 1;
                    }
                }
            }
        }
    }
    assert_eq!(count, 6 * 3 * 3 * 2 * 2);
    let refused = Plan::new(&shape(1, 8, 8, Activation::TopK { k: 9 }), &TrainConfig::default(), &MEMORY).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BadConfig);
    let refused = Plan::new(&shape(1, 8, 8, Activation::Relu), &TrainConfig { aux: 0.5, ..TrainConfig::default() }, &MEMORY).unwrap_err();
    assert!(refused.to_string().contains("TrainConfig::aux"), "{refused}");
}

/// The parts of memory are those by which a training is refused; the model's flops are those of its maps and its attention.
#[test]
fn a_streamed_model_is_part_of_the_plan() {
    let random = RandomModel::default();
    let model = random.load(&LoadConfig { device: Some(Device::Cpu), ..LoadConfig::default() }).unwrap();
    let blocks = Blocks::from_ids((0..1600).map(|i| i * 7 % 50).collect(), 16).unwrap();
    for (ahead, passes) in [(None, 1), (Some(true), 2)] {
        let stream = StreamConfig { context: 16, buffer_tokens: Some(300), ahead, passes, ..StreamConfig::default() };
        let activations = Activations::stream_blocks(&model, &blocks, &stream).unwrap();
        let clt = CltConfig { features: 128, activation: Activation::TopK { k: 4 }, ..CltConfig::for_model(&model) };
        let config = TrainConfig { steps: 3, batch_tokens: 48, ..TrainConfig::default() };
        let plan = Trainer::new(&activations, &clt, &config).unwrap().plan();
        let need = MemoryNeed::of(&clt, &config).buffered(&activations);
        assert_eq!((plan.cpu.weights, plan.cpu.step, plan.cpu.buffer), (need.weights, need.step, need.buffer));
        assert_eq!((plan.tokens, plan.text_tokens, plan.here.fits), (144, Some(1500), Some(true)));
        // Twenty blocks of fifteen tokens; a GPU holds two fillings, in bf16 where the model runs in it; as here it runs in f32.
        let measuring = 12 * 300 * 64;
        assert_eq!(plan.gpu.buffer, 2 * 300 * 2 * 3 * 64 * 4 + measuring);
        assert_eq!((plan.gpu.weights, plan.gpu.reserve), (12 * plan.weights, RESERVE));
        assert!(plan.cpu.model > model.summary().memory(DType::F32));
        let (d, keys) = (random.width, random.width / random.heads * random.kv_heads);
        let mut attention = 0.0;
        for position in 0..16 {
            // Scores and mixtures with this key and all before it.
            attention += 2.0 * 2.0 * (position + 1) as f64 * d as f64 / 16.0;
        }
        let token = random.layers as f64 * (2.0 * (d * (2 * d + 2 * keys + 3 * random.inner)) as f64 + attention);
        let expected = 48.0 * token * 16.0 / 15.0 / passes as f64;
        let flops = part(&plan.here, "model").flops;
        assert!((flops / expected - 1.0).abs() < 1e-12, "{flops} and {expected}");
        // The same from configurations alone, whatever the text holds.
        let source = PlanSource::Stream { model: Box::new(model.summary()), dtype: Some(DType::F32), stream, tokens: None };
        let alone = Plan::new(&clt, &TrainConfig { device: TrainDevice::Cpu, ..config }, &source).unwrap();
        assert_eq!((alone.cpu, alone.gpu), (plan.cpu, plan.gpu));
        assert_eq!(serde_json::to_value(&alone.cards).unwrap(), serde_json::to_value(&plan.cards).unwrap());
    }
}

/// The prediction for this machine beside the time that steps take; other tests run meanwhile, so within a factor of 5.
#[test]
fn the_cpu_takes_about_the_time_that_is_predicted() {
    let (l, d, t) = (6, 256, 512);
    let clt = shape(l, d, 2048, Activation::TopK { k: 32 });
    let config = TrainConfig { steps: 8, batch_tokens: t, clip: None, dead: 0.0, normalise: false, ..TrainConfig::default() };
    let mut seed = 1u32;
    let mut noise = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut side = || (0..l).map(|_| (0..2 * t * d).map(|_| 1.7 * noise()).collect()).collect::<Vec<Vec<f32>>>();
    let activations = Activations::from_memory(side(), side(), d).unwrap();
    let mut trainer = Trainer::new(&activations, &clt, &config).unwrap();
    trainer.run_steps(2).unwrap();
    let start = Instant::now();
    trainer.run_steps(4).unwrap();
    let measured = start.elapsed().as_secs_f64() / 4.0;
    let plan = trainer.plan();
    let predicted = plan.here.seconds_per_step.unwrap();
    println!("{}: predicted {:.1} ms, measured {:.1} ms", plan.here.device, 1e3 * predicted, 1e3 * measured);
    assert!((0.2..5.0).contains(&(predicted / measured)), "predicted {predicted}, measured {measured}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = recipe("dry-run", "");
    let file = folder.join("train.toml");
    let before = std::fs::read_dir(&folder).unwrap().count();
    let run = |more: &[&str]| cltlab(&[&["train", file.to_str().unwrap(), "--dry-run"], more].concat());
    let output = run(&[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    assert!(output.status.success(), "{}", said(&output));
    for word in ["prediction", "weights and moments", "T4", "V100", "RTX 4090", "A100", "H100", "H200", "not supported by CUDA 13", "here: CPU", "expected, not measured"] {
        assert!(text.contains(word), "no '{word}' in\n{text}");
    }
    let json: serde_json::Value = serde_json::from_slice(&run(&["--json", "--set", "train.steps=7"]).stdout).unwrap();
    // Encoders, decoders to three targets, biases: the need as the library has it.
    let weights = 2 * 64 * 32 + 3 * 64 * 32 + 2 * (64 + 32);
    assert_eq!((json["steps"].as_u64(), json["tokens"].as_u64(), json["text_tokens"].as_u64(), json["weights"].as_u64()), (Some(7), Some(700), Some(300), Some(weights)));
    assert_eq!((json["cpu"]["weights"].as_u64(), json["cards"].as_array().map(Vec::len)), (Some(12 * weights), Some(7)));
    assert!(json["here"]["seconds_per_step"].as_f64().unwrap() > 0.0);
    // What would be refused is refused here too; a device that is not here is no fault of the recipe.
    for (set, words) in [("clt.features=0", "CltConfig::features"), ("train.stepps=3", "'steps'"), ("clt.width=8", "[clt] features"), ("activations.file=nowhere.safetensors", "nowhere.safetensors")] {
        let output = run(&["--set", set]);
        assert!(!output.status.success() && said(&output).contains(words), "{set}: {}", said(&output));
    }
    if cltlab::device::cuda_devices().unwrap_or(0) == 0 {
        let output = run(&["--set", "train.device=cuda"]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("TrainConfig::device is not here"), "{}", said(&output));
    }
    assert!(!cltlab(&["train", file.to_str().unwrap(), "--json"]).status.success());
    std::fs::write(folder.join("cut.safetensors"), [9, 0, 0, 0, 0, 0, 0, 0, b'{']).unwrap();
    let output = run(&["--set", &format!("activations.file={}", folder.join("cut.safetensors").display())]);
    assert!(!output.status.success() && said(&output).contains("cut.safetensors: not a whole"), "{}", said(&output));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), before + 1, "something was written");
    assert!(!folder.join("run").exists());
}

/// A model by name: only its configuration is read.
#[test]
fn a_dry_run_reads_no_weights() {
    let folder = crate::support::scratch("dry-run-model");
    // A Hugging Face folder with a configuration and no weights.
    let config = serde_json::json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024});
    std::fs::create_dir(folder.join("gpt2")).unwrap();
    cltlab::internal::files::write_json(folder.join("gpt2/config.json"), &config).unwrap();
    let parameters = Summary::read(folder.join("gpt2").to_str().unwrap()).unwrap().parameters();
    for (name, layers, width) in [(folder.join("gpt2"), 12, 768), (small_folder(), 3, 32)] {
        let text = format!("preset = \"openclt\"\n[model]\nsource = {:?}\n[text]\nsource = \"stories.txt\"\n[stream]\ncontext = 64\nbuffer_tokens = 4000\n[output]\nfolder = \"run\"\n", name.to_str().unwrap());
        std::fs::write(folder.join("train.toml"), text).unwrap();
        let output = cltlab(&["train", folder.join("train.toml").to_str().unwrap(), "--dry-run", "--json"]);
        assert!(output.status.success(), "{}", said(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(json["clt"].as_str().unwrap().contains(&format!("L {layers}, d {width}, F {}", 12 * width)), "{}", json["clt"]);
        assert!(json["gpu"]["model"].as_u64().unwrap() > 0 && json["here"]["parts"].as_array().unwrap().iter().any(|part| part["name"] == "model"));
        if layers == 12 {
            assert!(json["cpu"]["model"].as_u64().unwrap() > 4 * parameters && json["gpu"]["model"].as_u64().unwrap() > 2 * parameters);
        }
    }
    assert!(!folder.join("run").exists());
}
