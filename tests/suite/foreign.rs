//! Other programs' formats: their own activations and reconstructions (`tests/fixtures/make/formats.py`),
//! and what goes out and comes in again.

use crate::clt::random_clt;
use crate::numbers::Numbers;
use crate::support::{assert_close, fixture, scratch, tensors, values};
use cltlab::activations::InputSite;
use cltlab::candle::safetensors::save;
use cltlab::candle::{DType, Device, Tensor};
use cltlab::clt::{Activation, Clt, CltConfig, CltLoadConfig, CltSaveConfig, Format, LayerWeights, SparseCode};
use cltlab::model::OutputSite;
use cltlab::ErrorKind;

/// Every fixture with its format, whether it is a PLT, and whether it has skip connections.
const CASES: [(&str, Format, bool, bool); 18] = [
    ("crosslayer_coding_jumprelu", Format::CrosslayerCoding, false, true),
    ("crosslayer_coding_per_target", Format::CrosslayerCoding, false, false),
    ("crosslayer_coding_per_source", Format::CrosslayerCoding, false, true),
    ("sparsify_untied", Format::Sparsify, false, true),
    ("sparsify_concat", Format::Sparsify, false, false),
    ("sparsify_per_layer", Format::Sparsify, false, false),
    ("sparsify_window", Format::Sparsify, false, false),
    ("sparsify_plt", Format::Sparsify, true, true),
    ("clt_forge_clt", Format::CltForge, false, false),
    ("clt_forge_plt", Format::CltForge, true, false),
    ("clt_forge_shards", Format::CltForge, false, false),
    ("crosslayer_transcoder_folded", Format::CrosslayerTranscoder, false, false),
    ("crosslayer_transcoder_unfolded", Format::CrosslayerTranscoder, false, false),
    ("crosslayer_transcoder_plt", Format::CrosslayerTranscoder, true, false),
    ("gemma_scope", Format::GemmaScope, true, false),
    ("gemma_scope_2_plt", Format::GemmaScope2, true, true),
    ("gemma_scope_2_clt", Format::GemmaScope2, false, true),
    ("saelens_jumprelu_skip", Format::SaeLens, true, true),
];

pub fn folder(case: &str) -> String {
    fixture(&format!("formats/{case}")).to_string_lossy().into_owned()
}

fn load(case: &str) -> Clt {
    Clt::load(&folder(case), &CltLoadConfig::on(&Device::Cpu)).unwrap()
}

/// The code of inputs, layer by layer, and what it decodes to.
pub fn run(clt: &Clt, x: &[Tensor]) -> (SparseCode, Vec<Tensor>) {
    let layers = x.iter().enumerate().map(|(l, x)| clt.encode_layer(l, x).unwrap()).collect();
    let code = SparseCode { layers };
    let decoded = clt.decode(&code, x).unwrap();
    (code, decoded)
}

pub fn dense(code: &SparseCode, layer: usize, features: usize) -> Vec<f32> {
    let code = &code.layers[layer];
    (0..code.tokens()).flat_map(|p| (0..features as u32).map(move |f| code.value(p, f))).collect()
}

fn assert_equals_program(case: &str, clt: &Clt) {
    let want = tensors(&fixture(&format!("formats/{case}/expected.safetensors")));
    let x: Vec<Tensor> = (0..clt.layers()).map(|l| want[&format!("x.{l}")].clone()).collect();
    let (code, decoded) = run(clt, &x);
    let (mut a, mut y, mut want_a, mut want_y) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for l in 0..clt.layers() {
        a.extend(dense(&code, l, clt.features()));
        want_a.extend(values(&want[&format!("a.{l}")]));
        y.extend(values(&decoded[l]));
        want_y.extend(values(&want[&format!("y.{l}")]));
    }
    // Of the largest value: sums of f32 are rounded in another order on another machine.
    let allowed = |want: &[f32]| 1e-5 * want.iter().fold(1f32, |top, value| top.max(value.abs()));
    assert_close(&format!("{case}: activations"), &a, &want_a, allowed(&want_a));
    assert_close(&format!("{case}: reconstruction"), &y, &want_y, allowed(&want_y));
}

#[test]
fn formats_equal_their_programs() {
    for (case, format, per_layer, skip) in CASES {
        assert_eq!(Format::of(&folder(case)).unwrap(), format, "{case}");
        let clt = load(case);
        let c = clt.config();
        assert_eq!((c.layers, c.width, c.features, c.per_layer, c.skip), (3, 8, 12, per_layer, skip), "{case}");
        assert_equals_program(case, &clt);
        let said = CltLoadConfig { format: Some(format), model_name: Some("mine".into()), input: Some(InputSite::MlpIn), ..CltLoadConfig::default() };
        let again = Clt::load(&folder(case), &CltLoadConfig { device: Some(Device::Cpu), ..said.clone() }).unwrap();
        assert_eq!((again.config().model_name.as_str(), again.config().input), ("mine", InputSite::MlpIn), "{case}");
    }
    assert_equals_program("saelens_relu", &load("saelens_relu"));
}

#[test]
fn formats_say_their_sites_and_models() {
    let said = |case: &str| {
        let c = load(case).config().clone();
        (c.input, c.output, c.model_name)
    };
    let gpt2 = || "gpt2".to_string();
    assert_eq!(said("crosslayer_coding_jumprelu"), (InputSite::ResidMid, OutputSite::BeforeNorm, gpt2()));
    assert_eq!(said("sparsify_untied"), (InputSite::ResidMid, OutputSite::BeforeNorm, gpt2()));
    assert_eq!(said("clt_forge_clt"), (InputSite::Normalized, OutputSite::AfterNorm, gpt2()));
    assert_eq!(said("crosslayer_transcoder_folded"), (InputSite::ResidMid, OutputSite::AfterNorm, String::new()));
    assert_eq!(said("gemma_scope"), (InputSite::Normalized, OutputSite::AfterNorm, String::new()));
    assert_eq!(said("gemma_scope_2_plt"), (InputSite::MlpIn, OutputSite::AfterNorm, "google/gemma-3-1b-pt".into()));
    assert_eq!(said("saelens_relu"), (InputSite::Normalized, OutputSite::AfterNorm, gpt2()));
    assert_eq!(load("sparsify_untied").config().activation, Activation::TopK { k: 4 });
    assert!(matches!(load("crosslayer_transcoder_plt").config().activation, Activation::JumpRelu { .. }));
}

/// A CLT or PLT of 3 layers, 8 wide, with 12 features; thresholds 0 or above.
pub fn sample(activation: Activation, per_layer: bool, skip: bool, input: InputSite, output: OutputSite) -> Clt {
    let clt = random_clt(activation, 3, 8, 12, 5);
    let mut numbers = Numbers::new(9);
    let layers = (0..3).map(|l| LayerWeights {
        encoder: clt.encoder(l).unwrap().clone(),
        encoder_bias: clt.encoder_bias(l).unwrap().clone(),
        threshold: clt.threshold(l).unwrap().cloned(),
        decoder: if per_layer { clt.decoder(l).unwrap().narrow(1, 0, 1).unwrap().contiguous().unwrap() } else { clt.decoder(l).unwrap().clone() },
        decoder_bias: clt.decoder_bias(l).unwrap().clone(),
        skip: skip.then(|| Tensor::from_vec(numbers.take(64), (8, 8), &Device::Cpu).unwrap()),
    });
    let config = CltConfig { per_layer, skip, input, output, model_name: "gpt2".into(), ..clt.config().clone() };
    Clt::new(config, layers.collect()).unwrap()
}

const RELU: Activation = Activation::Relu;
const TOP: Activation = Activation::TopK { k: 4 };
const JUMP: Activation = Activation::JumpRelu { threshold: 0.1, bandwidth: 0.1 };

#[test]
fn exports_come_in_as_they_went_out() {
    use InputSite::{MlpIn, Normalized, ResidMid};
    use OutputSite::{AfterNorm, BeforeNorm};
    let cases = [
        (Format::CircuitTracer, JUMP, false, false, ResidMid, AfterNorm),
        (Format::CircuitTracer, RELU, false, false, MlpIn, BeforeNorm),
        (Format::CircuitTracer, TOP, true, true, MlpIn, AfterNorm),
        (Format::CrosslayerCoding, JUMP, false, true, ResidMid, AfterNorm),
        (Format::CrosslayerCoding, RELU, true, false, Normalized, BeforeNorm),
        (Format::Sparsify, TOP, false, true, ResidMid, BeforeNorm),
        (Format::Sparsify, RELU, true, false, MlpIn, BeforeNorm),
        (Format::CltForge, JUMP, false, false, Normalized, AfterNorm),
        (Format::CltForge, RELU, true, false, Normalized, AfterNorm),
        (Format::CrosslayerTranscoder, JUMP, false, false, ResidMid, AfterNorm),
        (Format::CrosslayerTranscoder, TOP, true, false, ResidMid, AfterNorm),
        (Format::CrosslayerTranscoder, RELU, false, false, ResidMid, AfterNorm),
        (Format::GemmaScope, JUMP, true, false, Normalized, AfterNorm),
        (Format::GemmaScope2, RELU, true, true, MlpIn, AfterNorm),
        (Format::GemmaScope2, JUMP, false, true, ResidMid, BeforeNorm),
        (Format::SaeLens, JUMP, true, true, ResidMid, AfterNorm),
        (Format::SaeLens, RELU, true, false, MlpIn, BeforeNorm),
    ];
    for (number, (format, activation, per_layer, skip, input, output)) in cases.into_iter().enumerate() {
        let what = format!("{format} {} {per_layer} {skip}", activation.label());
        let clt = sample(activation, per_layer, skip, input, output);
        let out = scratch(&format!("export-{number}"));
        clt.save(&out, &CltSaveConfig { format: Some(format), ..Default::default() }).unwrap();
        // Twice: what is there is replaced.
        clt.save(&out, &CltSaveConfig { format: Some(format), ..Default::default() }).unwrap();
        let path = out.to_string_lossy();
        assert_eq!(Format::of(&path).unwrap(), format, "{what}");
        let back = Clt::load(&*path, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        assert_eq!((back.config().input, back.config().output), (input, output), "{what}");
        // A PLT in a format of CLTs is the CLT whose other decoders are zero.
        assert_eq!(back.config().per_layer, per_layer && format != Format::CrosslayerCoding, "{what}");
        let x: Vec<Tensor> = (0..3).map(|l| Tensor::from_vec(Numbers::new(30 + l).take(80), (10, 8), &Device::Cpu).unwrap()).collect();
        let (code, decoded) = run(&clt, &x);
        let (code_back, decoded_back) = run(&back, &x);
        for l in 0..3 {
            assert_close(&format!("{what}: a {l}"), &dense(&code_back, l, 12), &dense(&code, l, 12), 1e-6);
            assert_close(&format!("{what}: y {l}"), &values(&decoded_back[l]), &values(&decoded[l]), 1e-5);
        }
    }
}

#[test]
fn what_a_format_has_no_place_for_is_named() {
    use InputSite::{MlpIn, Normalized, ResidMid};
    use OutputSite::{AfterNorm, BeforeNorm};
    let cases = [
        (Format::CircuitTracer, TOP, false, false, ResidMid, AfterNorm, "activation: got top_k 4"),
        (Format::CircuitTracer, RELU, false, true, ResidMid, AfterNorm, "skip"),
        (Format::CrosslayerCoding, TOP, false, false, ResidMid, AfterNorm, "activation: got top_k 4"),
        (Format::Sparsify, JUMP, false, false, MlpIn, BeforeNorm, "activation: got jump_relu"),
        (Format::Sparsify, TOP, false, false, Normalized, BeforeNorm, "input: got ln2.hook_normalized"),
        (Format::CltForge, TOP, false, false, Normalized, AfterNorm, "activation"),
        (Format::CltForge, JUMP, false, true, Normalized, AfterNorm, "skip"),
        (Format::CltForge, JUMP, false, false, ResidMid, AfterNorm, "input and output: got hook_resid_mid"),
        (Format::CrosslayerTranscoder, JUMP, false, true, ResidMid, AfterNorm, "skip"),
        (Format::CrosslayerTranscoder, JUMP, false, false, MlpIn, AfterNorm, "input and output"),
        (Format::GemmaScope, JUMP, false, false, Normalized, AfterNorm, "per_layer"),
        (Format::GemmaScope, JUMP, true, true, Normalized, AfterNorm, "skip"),
        (Format::GemmaScope, TOP, true, false, Normalized, AfterNorm, "activation"),
        (Format::GemmaScope, JUMP, true, false, Normalized, BeforeNorm, "input and output"),
        (Format::GemmaScope2, TOP, true, false, MlpIn, AfterNorm, "activation"),
        (Format::GemmaScope2, JUMP, true, false, Normalized, AfterNorm, "input"),
        (Format::SaeLens, JUMP, false, false, MlpIn, AfterNorm, "per_layer"),
        (Format::SaeLens, TOP, true, false, MlpIn, AfterNorm, "activation"),
    ];
    let out = scratch("no-place").join("clt");
    for (format, activation, per_layer, skip, input, output, words) in cases {
        let error = sample(activation, per_layer, skip, input, output).save(&out, &CltSaveConfig { format: Some(format), ..Default::default() }).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains(&format!("export to {format}: {words}")), "{error}");
        assert!(!out.exists(), "{format} left files");
    }
    // Activations below 0, which only circuit-tracer's formats have.
    let clt = sample(JUMP, false, false, ResidMid, AfterNorm);
    let below = (0..3).map(|l| LayerWeights {
        encoder: clt.encoder(l).unwrap().clone(),
        encoder_bias: clt.encoder_bias(l).unwrap().clone(),
        threshold: Some(clt.threshold(l).unwrap().unwrap().neg().unwrap()),
        decoder: clt.decoder(l).unwrap().clone(),
        decoder_bias: clt.decoder_bias(l).unwrap().clone(),
        skip: None,
    });
    let below = Clt::new(clt.config().clone(), below.collect()).unwrap();
    for format in [Format::CrosslayerCoding, Format::CrosslayerTranscoder, Format::GemmaScope2] {
        let error = below.save(&out, &CltSaveConfig { format: Some(format), ..Default::default() }).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("threshold of feature 0_"), "{error}");
    }
    below.save(&out, &CltSaveConfig { format: Some(Format::CircuitTracer), ..Default::default() }).unwrap();
    assert!("clt_forge".parse::<Format>().unwrap_err().to_string().contains("clt-forge"));
}

/// crosslayer-coding's features are active at their threshold, everybody else's above it only.
#[test]
fn at_the_threshold() {
    for (case, file, active) in [("crosslayer_coding_jumprelu", "clt_checkpoint_latest.safetensors", 12), ("clt_forge_clt", "clt_weights.safetensors", 0)] {
        let out = scratch(&format!("threshold-{case}"));
        for name in ["cfg.json", "norm_stats.json", "clt_cfg.json"] {
            let _ = std::fs::copy(format!("{}/{name}", folder(case)), out.join(name));
        }
        // h = 1 = θ whatever is read.
        let level = |name: &str| match name {
            name if name.ends_with("encoder_module.encoders.0.bias_param") || name == "b_enc" || name.starts_with("estimated") => 1.0,
            _ => 0.0,
        };
        let all = tensors(&fixture(&format!("formats/{case}/{file}"))).into_iter().map(|(name, old)| {
            let new = (old.zeros_like().unwrap().to_dtype(DType::F32).unwrap() + level(&name)).unwrap();
            // Held against the order of the decoders.
            let new = if name == "layer_mask" { old } else { new };
            (name, new)
        });
        save(&all.collect(), out.join(file)).unwrap();
        let clt = Clt::load(&out, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        let code = clt.encode_layer(0, &Tensor::ones((1, 8), DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(code.values(), vec![1.0; active], "{case}");
    }
}

/// Weights of every float type; numbers that a type has exactly give the same CLT.
#[test]
fn float_types() {
    let out = scratch("float-types");
    let path = |l: usize| out.join(format!("layer_{l}/sae_weights.safetensors"));
    for (dtype, exact) in [(DType::F64, true), (DType::F16, false), (DType::BF16, false)] {
        for l in 0..3 {
            let from = format!("{}/number_{}", folder("saelens_relu"), 7 - l);
            std::fs::create_dir_all(path(l).parent().unwrap()).unwrap();
            std::fs::copy(format!("{from}/cfg.json"), path(l).with_file_name("cfg.json")).unwrap();
            let cast = tensors(format!("{from}/sae_weights.safetensors").as_ref()).into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()));
            save(&cast.collect(), path(l)).unwrap();
        }
        let (clt, want) = (Clt::load(&out, &CltLoadConfig::on(&Device::Cpu)).unwrap(), load("saelens_relu"));
        let nearest = |tensor: &Tensor| values(&tensor.to_dtype(dtype).unwrap());
        for l in 0..3 {
            assert_eq!(values(clt.decoder(l).unwrap()), nearest(want.decoder(l).unwrap()), "{dtype:?}");
            assert!(!exact || values(clt.encoder(l).unwrap()) == values(want.encoder(l).unwrap()));
        }
    }
}

/// The commands, and a repository of the hub that lies in the cache.
#[test]
fn on_the_command_line() {
    let place = scratch("clt-commands");
    let run = |args: &[&str]| {
        let hub = [("HF_HUB_CACHE", place.to_str().unwrap()), ("HF_HUB_OFFLINE", "1")];
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cltlab")).arg("clt").args(args).envs(hub).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    };
    let (source, snapshot) = (folder("clt_forge_clt"), place.join("models--a--b/snapshots/c/sub/folder"));
    let text = run(&["convert", &source, snapshot.to_str().unwrap(), "--model-name", "tiny"]).unwrap();
    assert!(text.contains("CLT of tiny: 3 layers x 12 features") && text.contains("our own format"), "{text}");
    std::fs::create_dir_all(place.join("models--a--b/refs")).unwrap();
    std::fs::write(place.join("models--a--b/refs/main"), "c").unwrap();
    let text = run(&["check", "a/b//sub/folder"]).unwrap();
    assert!(text.contains("format circuit-tracer, writes hook_mlp_out, cross-layer"), "{text}");
    assert!(run(&["check", "a/b"]).unwrap_err().contains("config.yaml"));
    assert!(run(&["check", &source, "--from", "x"]).unwrap_err().contains("clt-forge"));
    assert!(run(&["check", &source, "--input", "x"]).unwrap_err().contains("--input"));
    assert!(run(&["convert", &source, place.join("out").to_str().unwrap(), "--format", "saelens"]).unwrap_err().contains("per_layer"));

    // What is encoded is what circuit-tracer encodes, and decodes to what it decodes to.
    let own = |part: &str| fixture(&format!("attribution/llama/{part}")).to_string_lossy().into_owned();
    let raw = place.join("raw.safetensors");
    let text = run(&["encode", &own("clt"), "--model", &own("model"), "--tokens", "0,17,5,99", "--raw", raw.to_str().unwrap()]).unwrap();
    assert!(text.starts_with("4 tokens"), "{text}");
    let (raw, clt) = (tensors(&raw), Clt::load(&own("clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap());
    let x: Vec<Tensor> = (0..3).map(|l| raw[&format!("x.{l}")].clone()).collect();
    let (code, decoded) = self::run(&clt, &x);
    for l in 0..3 {
        assert_eq!(values(&raw[&format!("a.{l}")]), dense(&code, l, clt.features()));
        assert_close("reconstruction", &values(&raw[&format!("y.{l}")]), &values(&decoded[l]), 1e-6);
        assert_eq!(raw[&format!("t.{l}")].dims(), raw[&format!("y.{l}")].dims());
    }
}

/// The list of files that `config.yaml` gives may be Gemma Scope's own, as circuit-tracer's repositories have it.
#[test]
fn listed_files_of_gemma_scope() {
    for (case, kind, file) in [
        ("gemma_scope", "transcoder_set", "layer_{}/width_12/average_l0_{+3}/params.npz"),
        ("gemma_scope_2_plt", "transcoder_set", "layer_{}_width_12_l0_small_affine/params.safetensors"),
        ("gemma_scope_2_clt", "cross_layer_transcoder", "params_layer_{}.safetensors"),
    ] {
        let out = scratch(&format!("listed-{case}"));
        std::os::unix::fs::symlink(folder(case), out.join("files")).unwrap();
        let place = |l: usize| format!("files/{}", file.replace("{}", &l.to_string()).replace("{+3}", &(l + 3).to_string()));
        let list: Vec<String> = (0..3).map(|l| format!("- {}", place(l))).collect();
        let yaml = format!("model_name: g\nmodel_kind: {kind}\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\ntranscoders:\n{}\n", list.join("\n"));
        std::fs::write(out.join("config.yaml"), yaml).unwrap();
        let clt = Clt::load(&out, &CltLoadConfig::on(&Device::Cpu)).unwrap();
        assert_eq!((clt.config().input, clt.config().model_name.as_str()), (InputSite::MlpIn, "g"));
        assert_equals_program(case, &clt);
    }
}
