//! The program's graph commands against circuit-tracer 0.4.1 on the two fixtures, array by array.

use crate::attribution::TOKENS;
use crate::support::{assert_close, fixture, scratch, tensors, values};
use cltlab::candle::{DType, Tensor};
use std::path::Path;
use std::process::{Command, Output};

pub fn run(arch: &str, command: &str, more: &[&str]) -> Output {
    let folder = fixture(&format!("attribution/{arch}"));
    let tokens = TOKENS.map(|token| token.to_string()).join(",");
    let tokens: &[&str] = if more.contains(&"--tokens") || more.contains(&"--prompt") { &[] } else { &["--tokens", &tokens] };
    Command::new(env!("CARGO_BIN_EXE_cltlab"))
        .arg(command)
        .args(["--model".as_ref(), folder.join("model").as_os_str(), "--clt".as_ref(), folder.join("clt").as_os_str()])
        .args(tokens)
        .args(more)
        .output()
        .unwrap()
}

pub fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "not refused: {words:?}");
    assert!(!text.contains("panicked"), "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "'{text}' does not say '{word}'"));
}

fn numbers(tensor: &Tensor) -> Vec<i64> {
    tensor.to_dtype(DType::I64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn expected(arch: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(&format!("attribution/{arch}/expected.json"))).unwrap()).unwrap()
}

/// The arrays of `--raw` against circuit-tracer's.
fn assert_raw(what: &str, raw: &Path, arch: &str, file: &str, masks: &str, scores: Option<&serde_json::Value>) {
    let got = tensors(raw);
    let want = tensors(&fixture(&format!("attribution/{arch}/{file}.safetensors")));
    for name in ["input_tokens", "active_features", "selected_features", "logit_token_ids"] {
        if let Some(want) = want.get(name) {
            assert_eq!(got[name].dims(), want.dims(), "{what}: shape of {name}");
            assert_eq!(numbers(&got[name]), numbers(want), "{what}: {name}");
        }
    }
    for (name, tolerance) in [("activation_values", 1e-4), ("logit_probabilities", 1e-5), ("node_influence", 1e-5), ("cumulative_scores", 1e-5)] {
        if let Some(want) = want.get(name) {
            assert_eq!(got[name].dims(), want.dims(), "{what}: shape of {name}");
            assert_close(&format!("{what}: {name}"), &values(&got[name]), &values(want), tolerance);
        }
    }
    let (adjacency, wanted) = (&got["adjacency_matrix"], &want["adjacency_matrix"]);
    assert_eq!(adjacency.dims(), wanted.dims(), "{what}: shape of the adjacency");
    let top = values(wanted).iter().fold(0.0_f32, |top, value| top.max(value.abs()));
    assert_close(&format!("{what}: adjacency"), &values(adjacency), &values(wanted), 1e-4 * top);
    assert_eq!(numbers(&got["node_mask"]), numbers(&want[&format!("node_mask_{masks}")]), "{what}: node_mask");
    let n = adjacency.dim(0).unwrap() as i64;
    let kept = numbers(&got["edge_mask"]).into_iter().zip(0..).filter(|(kept, _)| *kept == 1).flat_map(|(_, at): (i64, i64)| [at / n, at % n]);
    assert_eq!(kept.collect::<Vec<_>>(), numbers(&want[&format!("kept_edges_{masks}")]), "{what}: edge_mask");
    for name in ["replacement_score", "completeness_score"] {
        if let Some(scores) = scores {
            assert_close(&format!("{what}: {name}"), &values(&got[name]), &[scores[name].as_f64().unwrap() as f32], 1e-5);
        }
    }
}

#[test]
fn attribute_equals_circuit_tracer() {
    for arch in ["gpt2", "llama"] {
        let folder = scratch(&format!("attribute-{arch}"));
        let (json, raw) = (folder.join("graph.json"), folder.join("raw.safetensors"));
        let (json_text, raw_text) = (json.to_str().unwrap(), raw.to_str().unwrap());
        let all = expected(arch);
        let text = done(&run(arch, "attribute", &["-o", json_text, "--raw", raw_text]));
        assert_raw(arch, &raw, arch, "expected", "0.8_0.98", Some(&all));
        assert!(text.contains("replacement score") && text.contains("rows"), "{text}");
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(file["links"].as_array().unwrap().len() as u64, all["kept_edges"].as_u64().unwrap());
        assert_eq!(file["metadata"]["slug"], "graph");

        done(&run(arch, "attribute", &["-o", json_text, "--raw", raw_text, "--node-threshold", "0.6", "--edge-threshold", "0.9"]));
        assert_raw(&format!("{arch} 0.6 0.9"), &raw, arch, "expected", "0.6_0.9", Some(&all));

        // The budgeted run: circuit-tracer's batches of 16 ranked anew every 2; the default step is the same.
        let budget = ["-o", json_text, "--raw", raw_text, "--max-features", "96", "--max-logits", "5", "--logit-mass", "0.8"];
        for more in [&[][..], &["--batch", "16", "--rank-every", "32"]] {
            done(&run(arch, "attribute", &[&budget[..], more].concat()));
            assert_raw(&format!("{arch} 96 features {more:?}"), &raw, arch, "expected_top96", "0.8_0.98", Some(&all["top96"]));
        }

        // The prompt as text is the same prompt.
        let words = TOKENS[1..].iter().map(|token| format!("w{token}")).collect::<Vec<_>>().join(" ");
        done(&run(arch, "attribute", &["--prompt", &words, "-o", json_text, "--raw", raw_text]));
        assert_raw(&format!("{arch} as text"), &raw, arch, "expected", "0.8_0.98", Some(&all));
    }
}

#[test]
fn intervene_equals_circuit_tracer() {
    for arch in ["gpt2", "llama"] {
        let raw = scratch(&format!("intervene-{arch}")).join("logits.safetensors");
        let want = tensors(&fixture(&format!("attribution/{arch}/expected_interventions.safetensors")));
        let tokens = TOKENS.len();
        for one in expected(arch)["interventions"].as_array().unwrap() {
            let place = format!("{}_{}_{}={}", one["layer"], one["feature"], one["pos"], one["value"]);
            let mode = one["mode"].as_str().unwrap().replace("frozen_attn", "frozen-attention");
            let text = done(&run(arch, "intervene", &["--set", &place, "--mode", &mode, "--raw", raw.to_str().unwrap()]));
            let logits = &tensors(&raw)["logits"];
            assert_eq!(logits.dims(), [tokens, 128]);
            let last = values(&logits.get(tokens - 1).unwrap());
            assert_close(&format!("{arch} {place} {mode}"), &last, &values(&want[one["key"].as_str().unwrap()]), 1e-4);
            assert!(text.contains("predicted"), "{text}");
        }
        let last = |more: &[&str]| {
            done(&run(arch, "intervene", &[more, &["--mode", "open", "--raw", raw.to_str().unwrap()]].concat()));
            values(&tensors(&raw)["logits"])
        };
        // Slices are their positions one by one; scale and add are what they say.
        let some = last(&["--set", "1_5_4:7=1.5"]);
        assert_eq!(some, last(&["--set", "1_5_4=1.5", "--set", "1_5_5=1.5", "--set", "1_5_6=1.5"]));
        assert_eq!(last(&["--add", "1_5_9:=-1e-1"]), last(&["--add", "1_5_9:12=-0.1"]));
        assert_eq!(last(&["--scale", "0_5_:=0"]), last(&["--set", "0_5_0:12=0"]));
        // Every layer constrained is the direct mode.
        let mode = |more: &[&str]| {
            done(&run(arch, "intervene", &[&["--set", "0_25_3:=2", "--raw", raw.to_str().unwrap()], more].concat()));
            values(&tensors(&raw)["logits"])
        };
        assert_eq!(mode(&["--layers", "0:3"]), mode(&["--mode", "direct"]));
    }
}

/// `--generate` prints circuit-tracer's tokens beside the model's own.
#[test]
fn intervene_goes_on() {
    for arch in ["gpt2", "llama"] {
        let want = tensors(&fixture(&format!("attribution/{arch}/expected_generation.safetensors")));
        let text = done(&run(arch, "intervene", &["--set", "0_25_4:=3", "--mode", "direct", "--generate", "12"]));
        let ids: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("token ids ")).collect();
        for (ids, name) in ids.iter().zip(["plain.tokens", "slice_direct.tokens"]) {
            let all: Vec<String> = numbers(&want[name])[TOKENS.len()..].iter().map(i64::to_string).collect();
            assert_eq!(*ids, all.join(","), "{arch} {name}");
        }
        assert_eq!(ids.len(), 2, "{text}");
    }
}

/// With everything held, `check` finds what the graph predicts; its groups may come from a file.
#[test]
fn check_compares_groups() {
    let folder = scratch("check");
    let (file, groups, picture) = (folder.join("check.json"), folder.join("groups.json"), folder.join("check.svg"));
    let (file, groups, picture) = (file.to_str().unwrap(), groups.to_str().unwrap(), picture.to_str().unwrap());
    let text = done(&run("gpt2", "check", &["--mode", "direct", "--supernodes", "3", "--factors=-1,0", "-o", file, "--picture", picture]));
    assert!(text.contains("predicted against measured r = 1.000") && text.contains("graph"), "{text}");
    let saved: serde_json::Value = cltlab::internal::files::read_json(file).unwrap();
    let effects = saved["check"]["effects"].as_array().unwrap();
    assert_eq!(effects.len(), 6);
    // Groups of a graph's own file are checked too.
    let graph = folder.join("graph.json");
    let graph = graph.to_str().unwrap();
    done(&run("gpt2", "attribute", &["-o", graph, "--supernodes", "2"]));
    assert!(done(&run("gpt2", "check", &["--groups", graph, "--factors", "0", "--controls", "1"])).contains("2 changes"));
    let feature = &effects[0]["group"]["features"][0];
    std::fs::write(groups, format!("[[\"mine\", \"{}_{}_{}\"]]", feature["layer"], feature["feature"], feature["position"])).unwrap();
    let text = done(&run("gpt2", "check", &["--groups", groups, "--controls", "0"]));
    assert!(text.contains("mine × 0") && text.contains("mine × 2"), "{text}");
    refused(&run("gpt2", "check", &["--factors", "1"]), &["factors"]);
    refused(&run("gpt2", "check", &["--groups", "/nonexistent/groups.json"]), &["nonexistent"]);
    refused(&run("llama", "check", &["--groups", groups, "--max-features", "1"]), &["mine"]);
}

#[test]
fn attention_and_comparisons() {
    let folder = scratch("attention");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let which = ["--layer", "2", "--head", "1", "--query", "9", "--key", "5"];
    let text = done(&run("gpt2", "attention", &[&which[..], &["--pairs", "4", "-o", &path("qk.json"), "--picture", &path("qk.svg")]].concat()));
    assert!(text.starts_with("Head 2.1 at 9") && text.lines().count() == 6, "{text}");
    let saved: serde_json::Value = cltlab::internal::files::read_json(path("qk.json")).unwrap();
    let sum: f64 = saved["queries"].as_array().unwrap().iter().map(|part| part["weight"].as_f64().unwrap()).sum();
    assert!((sum - saved["score"].as_f64().unwrap()).abs() < 1e-5);
    refused(&run("gpt2", "attention", &["--layer", "2", "--head", "1", "--query", "5", "--key", "9"]), &["key"]);

    let compare = |more: &[&str]| run("llama", "compare", &[&["-o", &path("compare.json"), "--raw", &path("raw.json"), "--picture", &path("compare.svg")], more].concat());
    let text = done(&compare(&["--other", "0,17,5,99,42,80,63,8,120,5,77,31"]));
    assert!(text.starts_with("Difference of") && text.contains("only in the second"), "{text}");
    let text = done(&compare(&["--other", "0,17,5,99,42,80,63,8,120,5,77,31", "--other", "0,5,77,31", "--merge", "--align", "end"]));
    assert!(text.starts_with("Mean of 3 graphs"), "{text}");
    refused(&compare(&["--other", "0,1", "--other", "0,2"]), &["--merge"]);
    refused(&compare(&["--other", "a b"]), &["--other", "ids"]);
    refused(&compare(&["--other", "0,5,77", "--edge-threshold", "3"]), &["edge_threshold"]);
}

#[test]
fn what_cannot_be_explained_is_refused() {
    let out = scratch("refused-graph").join("graph.json");
    let out = out.to_str().unwrap();
    let attribute = |more: &[&str]| run("gpt2", "attribute", &[&["-o", out][..], more].concat());
    refused(&attribute(&["--tokens", "0"]), &["one token"]);
    refused(&attribute(&["--tokens", "0,128"]), &["vocabulary"]);
    refused(&attribute(&["--prompt", ""]), &["no tokens"]);
    refused(&attribute(&["--max-features", "0"]), &["max_features"]);
    refused(&attribute(&["--max-logits", "0"]), &["max_logits"]);
    refused(&attribute(&["--logit-mass", "1.5"]), &["logit_mass"]);
    refused(&attribute(&["--logit-mass", "NaN"]), &["logit_mass"]);
    refused(&attribute(&["--node-threshold", "1.1"]), &["node_threshold"]);
    refused(&attribute(&["--edge-threshold=-0.1"]), &["edge_threshold"]);
    refused(&attribute(&["--rank-every", "0"]), &["rank_every"]);
    refused(&attribute(&["--update-interval", "2"]), &["--update-interval", "--rank-every"]);
    refused(&attribute(&["--batch-size", "2"]), &["--batch-size", "is now --batch"]);
    refused(&attribute(&["--max-features", "some"]), &["a number or all"]);
    refused(&attribute(&["--targets", "500"]), &["AttributeConfig::targets", "vocabulary"]);
    refused(&attribute(&["--targets", "w1 w2"]), &["2 tokens"]);
    assert!(!Path::new(out).exists(), "a refused graph left a file");
    let intervene = |more: &[&str]| run("gpt2", "intervene", more);
    refused(&intervene(&[]), &["none"]);
    refused(&intervene(&["--set", "0,1"]), &["layer_feature_position"]);
    refused(&intervene(&["--set", "0,2:5,1=2"]), &["layer_feature_position", "write 0_1_2:5"]);
    refused(&intervene(&["--set", "0_1_a=2"]), &["positions"]);
    refused(&intervene(&["--set", "9_1_1=2"]), &["layer"]);
    refused(&intervene(&["--set", "0_1_12=2"]), &["positions"]);
    refused(&intervene(&["--set", "0_1_1=NaN"]), &["value"]);
    refused(&intervene(&["--set", "0_1_12=2", "--generate", "3"]), &["positions"]);
    refused(&intervene(&["--set", "0_1_20:=2", "--generate", "3"]), &["positions", "14"]);
    refused(&intervene(&["--set", "0_1_1=2", "--layers", "2"]), &["--layers", "A:B"]);
    refused(&intervene(&["--set", "0_1_1=2", "--layers", "2:9"]), &["mode", "2..9"]);
}

/// A CLT of another model, by shape; NaN in the CLT's and in the model's weights.
#[test]
fn strangers_and_nan_are_refused() {
    let folder = scratch("strangers");
    let own = fixture("attribution/gpt2");
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        std::fs::read_dir(from).unwrap().for_each(|file| {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).map(|_| ()).unwrap();
        });
    };
    let spoil = |file: &Path, name: &str| {
        let mut all = tensors(file);
        let old = all[name].clone();
        let mut spoilt = values(&old);
        spoilt.fill(f32::NAN);
        all.insert(name.to_string(), Tensor::from_vec(spoilt, old.dims(), old.device()).unwrap());
        cltlab::candle::safetensors::save(&all, file).unwrap();
    };
    let explain = |model: &Path, clt: &Path| {
        Command::new(env!("CARGO_BIN_EXE_cltlab"))
            .args(["attribute", "--tokens", "0,17,5,99", "-o", folder.join("graph.json").to_str().unwrap()])
            .args(["--model".as_ref(), model.as_os_str(), "--clt".as_ref(), clt.as_os_str()])
            .output()
            .unwrap()
    };
    // Two layers where the model has three.
    let two = folder.join("two");
    copy(&own.join("clt"), &two);
    for l in [0, 1] {
        let file = two.join(format!("W_dec_{l}.safetensors"));
        let decoder = tensors(&file)[&format!("W_dec_{l}")].narrow(1, 0, 2 - l).unwrap().contiguous().unwrap();
        cltlab::candle::safetensors::save(&std::collections::HashMap::from([(format!("W_dec_{l}"), decoder)]), &file).unwrap();
    }
    for file in ["W_enc_2.safetensors", "W_dec_2.safetensors"] {
        std::fs::remove_file(two.join(file)).unwrap();
    }
    refused(&explain(&own.join("model"), &two), &["layers", "got 2, expected 3"]);
    for (file, name, word) in [("W_enc_1.safetensors", "W_enc_1", "NaN"), ("W_enc_0.safetensors", "b_enc_0", "NaN"), ("W_dec_1.safetensors", "W_dec_1", "NaN")] {
        let clt = folder.join(format!("nan-{name}"));
        copy(&own.join("clt"), &clt);
        spoil(&clt.join(file), name);
        refused(&explain(&own.join("model"), &clt), &[word]);
    }
    let model = folder.join("model");
    copy(&own.join("model"), &model);
    spoil(&model.join("model.safetensors"), "transformer.h.1.mlp.c_fc.weight");
    refused(&explain(&model, &own.join("clt")), &["NaN"]);
}
