//! Attention scores split over pairs: sums against the model's own patterns, pairs against differences of
//! forward passes, constants against what they are, on every family.

use crate::families::{largest, tiny, FAMILIES};
use crate::support::{assert_close, lively_clt, scratch, tensors, values, worse};
use cltlab::candle::{safetensors, DType, Device, Tensor};
use cltlab::clt::{Clt, InputSite};
use cltlab::graph::{NodeKind, QkAttribution, QkConfig, QkPart};
use cltlab::model::{Capture, Freeze, LoadConfig, OutputSite, Run};
use cltlab::replacement::{LocalReplacement, Replacement};
use cltlab::{ErrorKind, Model};

const PROMPT: [u32; 12] = [0, 17, 5, 90, 42, 17, 63, 8, 71, 5, 77, 31];

/// A random CLT; without biases in its decoders if `bare`.
fn random_clt(model: &Model, output: OutputSite, bare: bool) -> Clt {
    lively_clt(model, bare, |config| (config.input, config.output) = (InputSite::ResidMid, output))
}

/// The stream that enters `layer` at `position`.
fn stream(run: &Run, layer: usize, position: usize) -> Tensor {
    run.layers[layer].resid_pre.as_ref().unwrap().get(position).unwrap()
}

/// The scores of a query with every key that it sees, capped, through a softmax, are the model's pattern.
/// The sum of all parts is the score, seen from the query and from the key.
#[test]
fn scores_are_the_models_and_parts_add_up() {
    for family in FAMILIES {
        let model = tiny(family);
        let replacement = Replacement::new(&model, &random_clt(&model, OutputSite::AfterNorm, false)).unwrap();
        let run = replacement.model().run(&PROMPT, &Capture::default()).unwrap();
        let (mut worst, mut largest_score) = (0.0_f64, 0.0_f64);
        for layer in 0..model.layers() {
            for head in 0..model.config().heads {
                let query = 11 - (head + layer) % 3;
                let first = model.config().window(layer).map_or(0, |window| (query + 1).saturating_sub(window));
                let splits: Vec<QkAttribution> = (first..=query)
                    .map(|key| replacement.attribute_attention(&PROMPT, &QkConfig { layer, head, query, key, ..QkConfig::default() }).unwrap())
                    .collect();
                let bent: Vec<f64> = splits.iter().map(|split| split.cap.map_or(split.score, |cap| cap * (split.score / cap).tanh())).collect();
                let total: f64 = bent.iter().map(|score| score.exp()).sum();
                let softmax: Vec<f32> = bent.iter().map(|score| (score.exp() / total) as f32).collect();
                let pattern = run.layers[layer].attn_pattern.as_ref().unwrap().get(head).unwrap().get(query).unwrap();
                assert_close(&format!("{family} {layer}.{head}"), &softmax, &values(&pattern)[first..=query], 1e-5);
                for split in &splits {
                    let size = split.score.abs().max(1.0);
                    let from_keys: f64 = split.keys.iter().map(|part| part.weight).sum();
                    worst = worse(worst, (split.sum() - split.score).abs() / size);
                    worst = worse(worst, (from_keys - split.score).abs() / size);
                    largest_score = worse(largest_score, split.score.abs());
                    assert!((split.attention - f64::from(softmax[split.config.key - first])).abs() < 1e-5);
                }
            }
        }
        println!("{family}: sums off by {worst:.1e}, scores up to {largest_score:.2}");
        assert!(worst <= 1e-4 && largest_score > 0.3, "{family}: {worst}");
    }
}

/// What a source writes into the stream that enters `layer`, `[T, d]`, by two frozen forward passes.
fn carried(local: &LocalReplacement, layer: usize, part: &QkPart) -> Vec<Tensor> {
    let (replacement, run) = (local.replacement(), local.run());
    let clt = replacement.clt();
    let pass = |doubled: bool| {
        let mut splice = |at: usize, site: &cltlab::model::MlpSite<'_>| {
            let kept = run.layers[at].mlp_out.clone().unwrap_or(site.mlp_out.clone());
            let row = match part.kind {
                Some(NodeKind::Feature { layer, feature, activation }) if at >= layer => {
                    Some((clt.decoder_rows(layer, &[feature as u32])?.get(0)?.get(at - layer)? * f64::from(activation))?)
                }
                Some(NodeKind::Error { layer }) if at == layer => Some(local.errors(layer).unwrap().get(part.position)?),
                _ => None,
            };
            let Some(row) = row.filter(|_| doubled) else { return Ok(Some(kept)) };
            let before = Tensor::zeros((part.position, row.elem_count()), row.dtype(), row.device())?;
            let after = Tensor::zeros((run.tokens.len() - part.position - 1, row.elem_count()), row.dtype(), row.device())?;
            Ok(Some((kept + Tensor::cat(&[&before, &row.unsqueeze(0)?, &after], 0)?)?))
        };
        replacement.model().run_spliced(&run.tokens, &Capture::default(), Freeze::all(run), &mut splice).unwrap()
    };
    let (with, without) = (pass(true), pass(false));
    (0..run.tokens.len()).map(|p| (stream(&with, layer, p) - stream(&without, layer, p)).unwrap()).collect()
}

/// A pair is the mixed difference of the score: doubled on the query's side, on the key's side, on both.
#[test]
fn pairs_are_mixed_differences() {
    for family in FAMILIES {
        let model = tiny(family);
        for output in [OutputSite::AfterNorm, OutputSite::BeforeNorm] {
            let replacement = Replacement::new(&model, &random_clt(&model, output, false)).unwrap();
            let local = replacement.local(&PROMPT, &Default::default()).unwrap();
            let layer = model.layers() - 1;
            let (query, key, head) = (10, 8, model.config().heads - 1);
            let split = replacement.attribute_attention(&PROMPT, &QkConfig { layer, head, query, key, pairs: 100_000, ..QkConfig::default() }).unwrap();
            assert_eq!(split.pairs.len(), split.queries.len() * split.keys.len());
            assert!(split.pairs.windows(2).all(|two| two[0].weight.abs() >= two[1].weight.abs()));
            let all: f64 = split.pairs.iter().map(|pair| pair.weight).sum();
            assert!((all - split.score).abs() <= 1e-4 * split.score.abs().max(1.0), "{family}: all pairs {all}, score {}", split.score);
            let (at_query, at_key) = (stream(local.run(), layer, query), stream(local.run(), layer, key));
            let score = |q: &Tensor, k: &Tensor| replacement.model().attention_score(local.run(), layer, head, (query, q), (key, k)).unwrap();
            let written = |part: &QkPart| matches!(part.kind, Some(NodeKind::Feature { .. } | NodeKind::Error { .. }));
            let strong = split.pairs.iter().filter(|pair| written(&split.queries[pair.query]) && written(&split.keys[pair.key]));
            for pair in strong.step_by(97).take(6) {
                let q = (&at_query + &carried(&local, layer, &split.queries[pair.query])[query]).unwrap();
                let k = (&at_key + &carried(&local, layer, &split.keys[pair.key])[key]).unwrap();
                let mixed = score(&q, &k) - score(&q, &at_key) - score(&at_query, &k) + score(&at_query, &at_key);
                let off = (mixed - pair.weight).abs();
                assert!(off <= 2e-5 * split.score.abs().max(1.0), "{family} {output:?}: {pair:?} against {mixed}, score {}", split.score);
            }
            let few = replacement.attribute_attention(&PROMPT, &QkConfig { layer, head, query, key, pairs: 7, ..QkConfig::default() }).unwrap();
            assert_eq!(few.pairs, split.pairs[..7]);
        }
    }
}

/// The constants are not a rest that hides errors: in a model without biases and position embeddings, with a
/// CLT without any and no position left out, there are none.
#[test]
fn without_constants_there_are_none() {
    let bare = ["llama", "mistral", "qwen3", "gemma", "gemma2_sliding", "gemma3_text", "phi3", "phi3_longrope", "olmo2"];
    for family in bare {
        let model = tiny(family);
        let replacement = Replacement::new(&model, &random_clt(&model, OutputSite::AfterNorm, true)).unwrap();
        for layer in 0..model.layers() {
            let which = QkConfig { layer, head: 1, query: 9, key: 7, zero_positions: vec![], ..QkConfig::default() };
            let split = replacement.attribute_attention(&PROMPT, &which).unwrap();
            let constants = [split.queries.last().unwrap(), split.keys.last().unwrap()];
            let top = largest(&split.queries.iter().map(|part| part.weight as f32).collect::<Vec<_>>());
            println!("{family} layer {layer}: constants {:.1e} and {:.1e}, largest part {top:.2}, score {:+.3}", constants[0].weight, constants[1].weight, split.score);
            assert!(constants.iter().all(|part| part.kind.is_none() && part.weight.abs() <= 1e-4 * split.score.abs().max(1.0)));
        }
    }
}

/// With biases and position embeddings: the constants are what a frozen pass makes of them when embeddings
/// are zero and MLPs write their constant part only.
#[test]
fn constants_are_what_is_left_without_tokens_and_features() {
    for (family, embedding) in [("gpt2", "transformer.wte.weight"), ("gpt_neo", "transformer.wte.weight"), ("phi", "model.embed_tokens.weight"), ("qwen2_sliding", "model.embed_tokens.weight"), ("gpt_neox", "gpt_neox.embed_in.weight")] {
        let folder = scratch(&format!("without-tokens-{family}"));
        let source = crate::support::fixture(&format!("parity/{family}"));
        for file in std::fs::read_dir(&source).unwrap() {
            let file = file.unwrap();
            if file.path().is_file() {
                std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
        let mut weights = tensors(&source.join("model.safetensors"));
        let name = weights.keys().find(|name| embedding.ends_with(name.as_str()) || name.ends_with(embedding)).unwrap_or_else(|| panic!("{family}: {:?}", weights.keys())).clone();
        let zeros = weights[&name].zeros_like().unwrap();
        weights.insert(name, zeros);
        safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
        let (model, mute) = (tiny(family), Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap());
        let replacement = Replacement::new(&model, &random_clt(&model, OutputSite::AfterNorm, false)).unwrap();
        let local = replacement.local(&PROMPT, &Default::default()).unwrap();
        let run = local.run();
        let mut constant = |layer: usize, site: &cltlab::model::MlpSite<'_>| {
            let bias = replacement.clt().decoder_bias(layer).unwrap().broadcast_as((PROMPT.len(), model.width()))?;
            let first = run.layers[layer].mlp_out.as_ref().unwrap_or(site.mlp_out).narrow(0, 0, 1)?;
            Ok(Some(Tensor::cat(&[first, bias.narrow(0, 1, PROMPT.len() - 1)?], 0)?))
        };
        let left = mute.run_spliced(&PROMPT, &Capture::default(), Freeze::all(run), &mut constant).unwrap();
        for layer in 0..model.layers() {
            let (head, query, key) = (0, 9, 8);
            let split = replacement.attribute_attention(&PROMPT, &QkConfig { layer, head, query, key, pairs: 100_000, ..QkConfig::default() }).unwrap();
            let both = split.pairs.iter().find(|pair| pair.query + 1 == split.queries.len() && pair.key + 1 == split.keys.len()).unwrap();
            let (q, k) = (stream(&left, layer, query), stream(&left, layer, key));
            let score = |q: &Tensor, k: &Tensor| replacement.model().attention_score(run, layer, head, (query, q), (key, k)).unwrap();
            let (own_query, own_key) = (stream(run, layer, query), stream(run, layer, key));
            println!("{family} layer {layer}: constants {:+.4}, with the whole key {:+.4}, score {:+.4}", both.weight, split.queries.last().unwrap().weight, split.score);
            for (got, wanted) in [
                (both.weight, score(&q, &k)),
                (split.queries.last().unwrap().weight, score(&q, &own_key)),
                (split.keys.last().unwrap().weight, score(&own_query, &k)),
            ] {
                assert!((got - wanted).abs() <= 1e-4 * split.score.abs().max(1.0), "{family} layer {layer}: {got} against {wanted}");
            }
        }
    }
}

/// The same with weights held in halves.
#[test]
fn weights_in_halves() {
    for (family, dtype) in [("gpt2", DType::BF16), ("qwen3", DType::F16), ("olmo2", DType::BF16)] {
        let config = LoadConfig { dtype: Some(dtype), device: Some(Device::Cpu), ..LoadConfig::default() };
        let model = Model::load(crate::support::fixture(&format!("parity/{family}")), &config).unwrap();
        let replacement = Replacement::new(&model, &random_clt(&model, OutputSite::AfterNorm, false)).unwrap();
        let (layer, head, query) = (model.layers() - 1, 1, 9);
        let split = |key: usize| replacement.attribute_attention(&PROMPT, &QkConfig { layer, head, query, key, ..QkConfig::default() }).unwrap();
        let splits: Vec<QkAttribution> = (0..=query).map(split).collect();
        let total: f64 = splits.iter().map(|split| split.score.exp()).sum();
        for split in &splits {
            assert!((split.sum() - split.score).abs() <= 1e-4 * split.score.abs().max(1.0));
            assert!((split.score.exp() / total - split.attention).abs() < 1e-5, "{family}: {split}");
        }
    }
}

#[test]
fn attention_that_is_not_there() {
    let model = tiny("mistral");
    let replacement = Replacement::new(&model, &random_clt(&model, OutputSite::AfterNorm, false)).unwrap();
    let usual = || QkConfig { layer: 0, head: 0, query: 3, key: 3, ..QkConfig::default() };
    let refused = |config: QkConfig, word: &str| {
        let error = replacement.attribute_attention(&PROMPT, &config).unwrap_err();
        assert!(error.kind() == ErrorKind::BadConfig && error.to_string().contains(word), "{error}");
    };
    refused(QkConfig { layer: model.layers(), ..usual() }, "layer");
    refused(QkConfig { head: model.config().heads, ..usual() }, "head");
    refused(QkConfig { query: 12, ..usual() }, "query");
    refused(QkConfig { key: 4, ..usual() }, "key");
    refused(QkConfig { query: 11, key: 0, ..usual() }, "window");
    assert_eq!(replacement.attribute_attention(&PROMPT[..1], &QkConfig { query: 0, key: 0, ..usual() }).unwrap_err().kind(), ErrorKind::BadInput);
    let run = replacement.model().run(&PROMPT, &Capture::mlp()).unwrap();
    let x = Tensor::zeros(model.width(), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(replacement.model().attention_score(&run, 0, 0, (3, &x), (3, &x)).unwrap_err().kind(), ErrorKind::BadInput);
}
