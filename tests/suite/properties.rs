//! What holds for all values of a shape: sparse codes against dense arrays, and what is written is read back. Values
//! are drawn by `proptest` from one fixed seed, so that every run tries the same ones; a failure is shrunk and printed.

use crate::clt::random_clt;
use crate::numbers::Numbers;
use crate::support::{assert_close, scratch, values};
use cltlab::candle::Device;
use cltlab::clt::{Format, LayerCode, SparseCode};
use cltlab::graph::Supernode;
use cltlab::prelude::*;
use proptest::collection::vec;
use proptest::prelude::{any, prop, prop_oneof, Just, Strategy};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest::{prop_assert, prop_assert_eq};

type Checked = std::result::Result<(), proptest::test_runner::TestCaseError>;

/// `test` on `cases` values.
fn holds<S: Strategy>(cases: u32, values: S, test: impl Fn(S::Value) -> Checked) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)).run(&values, test).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_changed_code_is_the_dense_array() {
    let change = (0usize..5, 0u32..7, prop_oneof![Just(0f32), -2f32..2.0], any::<prop::sample::Index>());
    holds(200, vec(change, 0..60), |changes| {
        let (mut code, mut dense) = (LayerCode::empty(4), [[0f32; 7]; 4]);
        for (p, feature, value, clear) in changes {
            if clear.index(9) == 0 {
                code.clear_token(p);
                if let Some(row) = dense.get_mut(p) {
                    *row = [0.0; 7];
                }
                continue;
            }
            prop_assert_eq!(code.set(p, feature, value).is_ok(), p < 4);
            if p < 4 {
                dense[p][feature as usize] = value;
            }
        }
        prop_assert_eq!(code.offsets().len(), 5);
        prop_assert_eq!(code.active(), dense.iter().flatten().filter(|value| **value != 0.0).count());
        for (p, row) in dense.iter().enumerate() {
            let (features, kept) = code.token(p);
            prop_assert!(features.is_sorted_by(|a, b| a < b) && features.len() == kept.len());
            for (feature, value) in row.iter().enumerate() {
                prop_assert_eq!(code.value(p, feature as u32), *value);
            }
        }
        prop_assert!(code.token(4).0.is_empty());
        Ok(())
    });
}

fn activation(features: usize) -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::Relu), (0.01..0.5f64).prop_map(|threshold| Activation::JumpRelu { threshold, bandwidth: 0.1 }), (1..=features).prop_map(|k| Activation::TopK { k })]
}

/// Layers, width, features, tokens, activation, seed.
fn clts() -> impl Strategy<Value = (usize, usize, usize, usize, Activation, u64)> {
    (1..4usize, 1..20usize, 1..24usize, 1..6usize, any::<u64>()).prop_flat_map(|(l, d, f, t, seed)| (Just(l), Just(d), Just(f), Just(t), activation(f), Just(seed)))
}

#[test]
fn encode_and_decode_are_the_dense_sums() {
    holds(60, clts(), |(l, d, f, t, activation, seed)| {
        let clt = random_clt(activation.clone(), l, d, f, seed);
        let x: Vec<Vec<f32>> = (0..l).map(|layer| Numbers::new(seed ^ (layer as u64 + 1)).take(t * d)).collect();
        let mut dense = vec![vec![0f64; t * f]; l];
        let mut layers = Vec::new();
        for layer in 0..l {
            let code = clt.encode_layer(layer, &Tensor::from_slice(&x[layer], (t, d), &Device::Cpu).unwrap()).unwrap();
            let (encoder, bias) = (values(clt.encoder(layer).unwrap()), values(clt.encoder_bias(layer)));
            let cuts = clt.threshold(layer).map(values);
            for p in 0..t {
                let h: Vec<f64> = (0..f).map(|j| f64::from(bias[j]) + (0..d).map(|c| f64::from(encoder[j * d + c]) * f64::from(x[layer][p * d + c])).sum::<f64>()).collect();
                let mut order = h.clone();
                order.sort_by(|a, b| b.total_cmp(a));
                for j in 0..f {
                    let least = match &activation {
                        Activation::TopK { k } => order[*k - 1],
                        _ => cuts.as_ref().map_or(0.0, |cuts| f64::from(cuts[j])),
                    };
                    let on = h[j] > 0.0 && if matches!(activation, Activation::TopK { .. }) { h[j] >= least } else { h[j] > least };
                    let got = f64::from(code.value(p, j as u32));
                    // Within rounding of its threshold a feature may be either.
                    if (h[j] - least).abs() > 1e-5 && h[j].abs() > 1e-5 {
                        prop_assert!((got - if on { h[j] } else { 0.0 }).abs() < 3e-5, "layer {layer}, token {p}, feature {j}: {got}, h {}, least {least}", h[j]);
                    }
                    dense[layer][p * f + j] = got;
                }
            }
            layers.push(code);
        }
        let decoded = clt.decode(&SparseCode { layers }, &[]).unwrap();
        for target in 0..l {
            let mut sum: Vec<f64> = (0..t).flat_map(|_| values(clt.decoder_bias(target))).map(f64::from).collect();
            for source in 0..=target {
                let (decoder, slots) = (values(clt.decoder(source).unwrap()), l - source);
                for (at, sum) in sum.iter_mut().enumerate() {
                    let (p, c) = (at / d, at % d);
                    *sum += (0..f).map(|j| dense[source][p * f + j] * f64::from(decoder[(j * slots + target - source) * d + c])).sum::<f64>();
                }
            }
            let sum: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
            assert_close("decoded", &values(&decoded[target]), &sum, 1e-3);
        }
        Ok(())
    });
}

#[test]
fn every_format_gives_back_what_was_saved() {
    let place = scratch("properties-formats");
    holds(20, clts(), |(l, d, f, _, activation, seed)| {
        let clt = random_clt(activation, l, d, f, seed);
        for format in Format::ALL {
            let folder = place.join(format.name());
            let _ = std::fs::remove_dir_all(&folder);
            match clt.save(&folder, &CltSaveConfig { format: Some(format), ..Default::default() }) {
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", error);
                    prop_assert!(!folder.exists(), "{format} was half written");
                    continue;
                }
                Ok(()) => {}
            }
            let import = CltLoadConfig { device: Some(Device::Cpu), format: Some(format), input: Some(clt.config().input), output: Some(clt.config().output), ..Default::default() };
            let again = Clt::load(&folder, &import).map_err(|error| proptest::test_runner::TestCaseError::fail(format!("{format}: {error}")))?;
            prop_assert_eq!((again.layers(), again.config().width, again.features()), (l, d, f), "{}", format);
            for layer in 0..l {
                prop_assert_eq!(values(again.encoder(layer).unwrap()), values(clt.encoder(layer).unwrap()), "{} encoder {}", format, layer);
                prop_assert_eq!(values(again.encoder_bias(layer)), values(clt.encoder_bias(layer)), "{} bias {}", format, layer);
                prop_assert_eq!(values(again.decoder(layer).unwrap()), values(clt.decoder(layer).unwrap()), "{} decoder {}", format, layer);
                prop_assert_eq!(values(again.decoder_bias(layer)), values(clt.decoder_bias(layer)), "{} decoder bias {}", format, layer);
                if let (Some(a), Some(b)) = (again.threshold(layer), clt.threshold(layer)) {
                    assert_close("threshold", &values(a), &values(b), 1e-6);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn configurations_are_read_back_from_json_and_toml() {
    let numbers = (1e-9..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 1..100_000usize, any::<u32>());
    holds(100, (numbers, clts()), |((lr, b1, b2, steps, seed), (layers, width, features, _, activation, _))| {
        let train = TrainConfig { lr, betas: (b1, b2), steps, seed: u64::from(seed), ..TrainConfig::default() };
        let json: TrainConfig = serde_json::from_str(&serde_json::to_string(&train).unwrap()).unwrap();
        let toml: TrainConfig = toml::from_str(&toml::to_string(&train).unwrap()).unwrap();
        prop_assert_eq!(&toml, &train);
        // serde_json may miss the last bit of a number; recipes and checkpoints are not read by it.
        prop_assert!((json.lr - train.lr).abs() <= f64::EPSILON * lr && json.steps == steps && json.seed == train.seed);
        let clt = CltConfig { layers, width, features, activation, model_name: format!("m {seed} \"\u{e9}\u{1b}\n"), ..CltConfig::default() };
        let json: CltConfig = serde_json::from_str(&serde_json::to_string(&clt).unwrap()).unwrap();
        let toml: CltConfig = toml::from_str(&toml::to_string(&clt).unwrap()).unwrap();
        prop_assert_eq!(&toml, &clt);
        prop_assert_eq!(CltConfig { activation: clt.activation.clone(), ..json }, clt);
        Ok(())
    });
}

#[test]
fn groups_are_read_back_whatever_they_are_called() {
    let path = scratch("properties-groups").join("groups.json");
    let group = (".*", vec((0..100usize, any::<u32>(), 0..1000usize), 0..6));
    holds(100, vec(group, 0..5), |groups| {
        let groups: Vec<Supernode> = groups
            .into_iter()
            .map(|(name, features)| {
                let features: Vec<FeatureNode> = features.into_iter().map(|(layer, feature, position)| FeatureNode { layer, feature: feature as usize, position }).collect();
                Supernode::new(name, &features)
            })
            .collect();
        let lists: Vec<Vec<String>> = groups.iter().map(|group| std::iter::once(group.name.clone()).chain(group.features.iter().map(|f| format!("{}_{}_{}", f.layer, f.feature, f.position))).collect()).collect();
        for file in [serde_json::json!(lists), serde_json::json!({"qParams": {"supernodes": lists}})] {
            std::fs::write(&path, file.to_string()).unwrap();
            prop_assert_eq!(&Supernode::load(&path).unwrap(), &groups);
        }
        Ok(())
    });
}

/// Every byte has a token: any text comes back.
#[test]
fn a_byte_level_tokenizer_gives_back_every_text() {
    // GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut other = 256;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        let letter = if printable(byte) { byte } else { other += 1; other - 1 };
        vocab.insert(char::from_u32(letter).unwrap().to_string(), byte.into());
    }
    vocab.insert("th".into(), 256.into());
    vocab.insert("the".into(), 257.into());
    vocab.insert("\u{120}the".into(), 258.into());
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [["t", "h"], ["th", "e"], ["\u{120}", "the"]]}});
    let path = scratch("properties-bytes").join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let text = prop_oneof!["\\PC*", "(the| the|th|e| |\n|[a-zA-Z]){0,40}", any::<String>()];
    holds(300, text, |text| {
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|id| *id < 259));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        Ok(())
    });
}

#[test]
fn lines_of_json_are_the_texts_that_were_written() {
    let folder = scratch("properties-lines");
    holds(60, vec("\\PC*[a-z]\\PC*", 1..6), |texts| {
        let lines: String = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
        std::fs::write(folder.join("a.jsonl"), &lines).unwrap();
        std::fs::write(folder.join("b.jsonl.zst"), zstd::bulk::compress(lines.as_bytes(), 1).unwrap()).unwrap();
        std::fs::write(folder.join("c.json"), serde_json::json!(texts).to_string()).unwrap();
        let table: String = texts.iter().map(|text| format!("\"{}\"\n", text.replace('"', "\"\""))).collect();
        std::fs::write(folder.join("d.csv"), format!("text\n{table}")).unwrap();
        for file in ["a.jsonl", "b.jsonl.zst", "c.json", "d.csv"] {
            let read = Corpus::load(folder.join(file), &Default::default()).map_err(|error| proptest::test_runner::TestCaseError::fail(format!("{file}: {error}")))?;
            prop_assert_eq!(read.texts(), &texts[..], "{}", file);
        }
        Ok(())
    });
}
