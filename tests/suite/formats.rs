//! Files of CLTs: ours, circuit-tracer's, and broken ones.

use crate::clt::random_clt;
use crate::numbers::Numbers;
use crate::support::{fixture, scratch};
use candle_core::{Device, Tensor};
use cltlab::clt::{Activation, Clt, CltConfig, CltLoadConfig, InputSite, LayerCode, LayerWeights};
use cltlab::model::OutputSite;
use cltlab::ErrorKind;

fn same(a: &Clt, b: &Clt) {
    assert_eq!(a.config(), b.config());
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for l in 0..a.layers() {
        assert_eq!(bits(a.encoder(l).unwrap()), bits(b.encoder(l).unwrap()));
        assert_eq!(bits(a.encoder_bias(l).unwrap()), bits(b.encoder_bias(l).unwrap()));
        assert_eq!(bits(a.decoder(l).unwrap()), bits(b.decoder(l).unwrap()));
        assert_eq!(bits(a.decoder_bias(l).unwrap()), bits(b.decoder_bias(l).unwrap()));
        assert_eq!(a.threshold(l).unwrap().map(bits), b.threshold(l).unwrap().map(bits));
    }
}

#[test]
fn saved_and_loaded_is_identical() {
    for activation in [Activation::Relu, Activation::JumpRelu { threshold: 0.1, bandwidth: 0.2 }, Activation::TopK { k: 3 }] {
        let place = scratch("round_trip").join("clt");
        let clt = random_clt(activation, 3, 8, 12, 1);
        clt.save(&place, &Default::default()).unwrap();
        let path = place.to_str().unwrap();
        same(&clt, &Clt::load(path, &CltLoadConfig::on(&Device::Cpu)).unwrap());
        // A second save over the first keeps what else lies there.
        std::fs::write(place.join("notes.txt"), "mine").unwrap();
        let other = random_clt(clt.config().activation.clone(), 3, 8, 12, 2);
        other.save(&place, &Default::default()).unwrap();
        same(&other, &Clt::load(path, &CltLoadConfig::on(&Device::Cpu)).unwrap());
        assert_eq!(std::fs::read_to_string(place.join("notes.txt")).unwrap(), "mine");
        let leftovers = std::fs::read_dir(place.parent().unwrap()).unwrap().count();
        assert_eq!(leftovers, 1, "nothing but the folder itself");
    }
}

/// Threads that save to one folder, which is there or not: it holds one of the CLTs whole.
#[test]
fn of_two_writers_one_is_kept_whole() {
    let writers: Vec<Clt> = (1..=2).map(|seed| random_clt(Activation::Relu, 6, 8, 12, seed)).collect();
    for round in 0..40 {
        let place = scratch("two-writers").join("clt");
        if round % 2 == 1 {
            random_clt(Activation::Relu, 6, 8, 12, 3).save(&place, &Default::default()).unwrap();
        }
        let start = std::sync::Barrier::new(writers.len());
        std::thread::scope(|scope| {
            for clt in &writers {
                let (place, start) = (&place, &start);
                scope.spawn(move || {
                    start.wait();
                    clt.save(place, &Default::default()).unwrap();
                });
            }
        });
        let kept = Clt::load(&place, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        let bits = |clt: &Clt| -> Vec<f32> { (0..6).flat_map(|l| clt.encoder(l).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect() };
        let one = writers.iter().find(|clt| bits(clt) == bits(&kept)).unwrap_or_else(|| panic!("round {round}: a mixture of both"));
        same(&kept, one);
        assert_eq!(std::fs::read_dir(place.parent().unwrap()).unwrap().count(), 1, "a temporary folder was left");
    }
}

#[test]
fn without_our_json_the_activation_comes_from_the_tensors() {
    for (activation, jumps) in [(Activation::Relu, false), (Activation::JumpRelu { threshold: 0.1, bandwidth: 0.2 }, true)] {
        let place = scratch("foreign").join("clt");
        let clt = random_clt(activation, 2, 8, 12, 1);
        clt.save(&place, &Default::default()).unwrap();
        std::fs::remove_file(place.join("cltlab.json")).unwrap();
        let loaded = Clt::load(place, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        assert_eq!(matches!(loaded.config().activation, Activation::JumpRelu { .. }), jumps);
        let x = Tensor::from_vec(Numbers::new(5).take(24), (3, 8), &Device::Cpu).unwrap();
        assert_eq!(loaded.encode_layer(1, &x).unwrap(), clt.encode_layer(1, &x).unwrap());
    }
}

/// circuit-tracer 0.4.1 wrote these folders and the activations beside them.
#[test]
fn circuit_tracer_folders_load_and_encode_the_same() {
    for name in ["gpt2", "llama"] {
        let root = fixture(&format!("attribution/{name}"));
        let clt = Clt::load(root.join("clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
        assert_eq!(matches!(clt.config().activation, Activation::JumpRelu { .. }), name == "llama");
        let expected = candle_core::safetensors::load(root.join("expected.safetensors"), &Device::Cpu).unwrap();
        let resid = &expected["resid_mid"];
        let outputs = &expected["mlp_out"];
        let errors = expected["error_vectors"].to_vec3::<f32>().unwrap();
        let mut codes: Vec<LayerCode> = (0..clt.layers()).map(|l| clt.encode_layer(l, &resid.get(l).unwrap().contiguous().unwrap()).unwrap()).collect();
        codes.iter_mut().for_each(|code| code.clear_token(0));
        let mut found = Vec::new();
        for (l, code) in codes.iter().enumerate() {
            for p in 0..code.tokens() {
                let (features, values) = code.token(p);
                found.extend(features.iter().zip(values).map(|(&f, &v)| ([l as i64, p as i64, f as i64], v)));
            }
        }
        let active = expected["active_features"].to_vec2::<i64>().unwrap();
        let values = expected["activation_values"].to_vec1::<f32>().unwrap();
        assert_eq!(found.len(), active.len(), "{name}: active features");
        for ((id, value), (row, expected)) in found.iter().zip(active.iter().zip(&values)) {
            assert_eq!(&id[..], &row[..]);
            assert!((value - expected).abs() < 1e-5 * expected.abs().max(1.0), "{name} {id:?}: {value} {expected}");
        }
        let decoded = clt.decode(&cltlab::clt::SparseCode { layers: codes }, &[]).unwrap();
        for (l, decoded) in decoded.iter().enumerate() {
            let error = (outputs.get(l).unwrap() - decoded).unwrap().to_vec2::<f32>().unwrap();
            // Position 0 is left out there.
            for p in 1..error.len() {
                for (got, expected) in error[p].iter().zip(&errors[l][p]) {
                    assert!((got - expected).abs() < 1e-5, "{name} layer {l} token {p}: {got} {expected}");
                }
            }
        }
    }
}

#[test]
fn broken_folders_are_named() {
    let place = scratch("broken").join("clt");
    let clt = random_clt(Activation::Relu, 2, 8, 12, 1);
    let path = place.to_str().unwrap();
    let kind = || {
        let error = Clt::load(path, &CltLoadConfig::on(&Device::Cpu)).unwrap_err();
        (error.kind(), error.to_string())
    };
    assert_eq!(kind().0, ErrorKind::MissingFile);
    clt.save(&place, &Default::default()).unwrap();
    let decoder = place.join("W_dec_1.safetensors");
    let bytes = std::fs::read(&decoder).unwrap();
    std::fs::write(&decoder, &bytes[..bytes.len() / 2]).unwrap();
    let (found, text) = kind();
    assert_eq!(found, ErrorKind::BadFile);
    assert!(text.contains("W_dec_1.safetensors"), "{text}");
    std::fs::copy(place.join("W_dec_0.safetensors"), &decoder).unwrap();
    let (found, text) = kind();
    assert!(found == ErrorKind::BadTensor && text.contains("W_dec_1"), "{text}");
    std::fs::write(&decoder, &bytes).unwrap();
    random_clt(Activation::Relu, 2, 8, 13, 1).save(place.with_file_name("other"), &Default::default()).unwrap();
    std::fs::copy(place.with_file_name("other").join("W_enc_0.safetensors"), place.join("W_enc_0.safetensors")).unwrap();
    let (found, text) = kind();
    assert!(found == ErrorKind::BadTensor && text.contains("[13, 8]") && text.contains("[12, 8]"), "{text}");
    clt.save(&place, &Default::default()).unwrap();
    std::fs::remove_file(place.join("cltlab.json")).unwrap();
    std::fs::write(place.join("config.yaml"), "model_name: x\nmodel_kind: transcoder_set\nfeature_input_hook: a\nfeature_output_hook: b\n").unwrap();
    assert_eq!(kind().0, ErrorKind::Unsupported);
    std::fs::write(place.join("config.yaml"), "model_name: [").unwrap();
    assert_eq!(kind().0, ErrorKind::BadFile);
}

/// Which of the MLP's outputs is written to goes through circuit-tracer's names, and back.
#[test]
fn output_sites_keep_their_hooks() {
    for (output, hook) in [(OutputSite::BeforeNorm, "mlp.hook_out"), (OutputSite::AfterNorm, "hook_mlp_out")] {
        let given = random_clt(Activation::Relu, 3, 8, 12, 1);
        let layers = (0..3).map(|l| LayerWeights {
            encoder: given.encoder(l).unwrap().clone(),
            encoder_bias: given.encoder_bias(l).unwrap().clone(),
            threshold: None,
            decoder: given.decoder(l).unwrap().clone(),
            decoder_bias: given.decoder_bias(l).unwrap().clone(),
            skip: None,
        });
        let config = CltConfig { output, input: InputSite::Normalized, ..given.config().clone() };
        let folder = scratch(&format!("hook-{hook}"));
        Clt::new(config, layers.collect()).unwrap().save(&folder, &Default::default()).unwrap();
        let text = std::fs::read_to_string(folder.join("config.yaml")).unwrap();
        assert!(text.contains(&format!("feature_output_hook: {hook}")) && text.contains("feature_input_hook: ln2.hook_normalized"), "{text}");
        std::fs::remove_file(folder.join("cltlab.json")).unwrap();
        let clt = Clt::load(&folder, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        assert_eq!((clt.config().output, clt.config().input), (output, InputSite::Normalized));
    }
}
