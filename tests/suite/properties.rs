//! What a writer writes its reader reads back, over shapes and values at random, always the same; and codes against a matrix.

use crate::foreign::{dense, run};
use crate::support::{assert_close, scratch, small_model, values, words};
use crate::train_command::{cltlab, recipe, said};
use cltlab::clt::{LayerCode, LayerWeights};
use cltlab::graph::{Edges, GraphParts, LogitTarget};
use cltlab::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

fn pick<T: Clone>(random: &mut StdRng, list: &[T]) -> T {
    list[random.random_range(0..list.len())].clone()
}

/// Whatever is done to a code, it is the matrix that the same is done to.
#[test]
fn codes_are_matrices() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let (tokens, features) = (random.random_range(0..6), random.random_range(1..12));
        let mut matrix = vec![vec![0f32; features]; tokens];
        let mut code = LayerCode::empty(tokens);
        for _ in 0..random.random_range(0..60) {
            let (p, f) = (random.random_range(0..tokens + 1), random.random_range(0..features));
            match random.random_range(0..8) {
                0 => {
                    code.clear_token(p);
                    matrix.get_mut(p).into_iter().for_each(|row| row.fill(0.0));
                }
                case => {
                    let value = if case == 1 { 0.0 } else { random.random_range(-2.0..2.0) };
                    assert_eq!(code.set(p, f as u32, value).is_ok(), p < tokens);
                    matrix.get_mut(p).into_iter().for_each(|row| row[f] = value);
                }
            }
        }
        let found = if tokens == 0 { Vec::new() } else { code.to_tensor(features).unwrap().to_vec2::<f32>().unwrap() };
        assert_eq!(found, matrix, "seed {seed}");
        let again = LayerCode::new(code.offsets().to_vec(), code.features().to_vec(), code.values().to_vec()).unwrap();
        assert!(again == code && code.tokens() == tokens, "seed {seed}");
        assert_eq!(code.active(), matrix.concat().iter().filter(|value| **value != 0.0).count(), "seed {seed}");
        for p in 0..tokens + 1 {
            let (listed, values) = code.token(p);
            assert!(listed.windows(2).all(|pair| pair[0] < pair[1]) && listed.len() == values.len());
        }
    }
}

/// `narrow`: of the kind that formats of one kind of CLT have a place for.
fn random_clt(random: &mut StdRng, narrow: bool) -> Clt {
    let (layers, width, features) = (random.random_range(1..5), random.random_range(1..10), random.random_range(1..14));
    let (per_layer, skip) = (random.random(), random.random::<bool>() && !narrow);
    let k = random.random_range(1..=features);
    let activation = pick(random, &[Activation::Relu, Activation::JumpRelu { threshold: 0.1, bandwidth: 0.1 }, Activation::TopK { k }]);
    let activation = if narrow { Activation::JumpRelu { threshold: 0.1, bandwidth: 0.1 } } else { activation };
    let jumps = matches!(activation, Activation::JumpRelu { .. });
    let input = pick(random, &[InputSite::ResidMid, InputSite::MlpIn, InputSite::Normalized]);
    let output = pick(random, &[OutputSite::BeforeNorm, OutputSite::AfterNorm]);
    let (input, output) = if narrow { (InputSite::Normalized, OutputSite::AfterNorm) } else { (input, output) };
    let config = CltConfig { layers, width, features, per_layer, skip, activation, input, output, model_name: pick(random, &["gpt2", "", "a/b"]).into(), ..CltConfig::default() };
    let mut tensor = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let weights = (0..layers).map(|l| LayerWeights {
        encoder: tensor(&[features, width]),
        encoder_bias: tensor(&[features]),
        threshold: jumps.then(|| tensor(&[features]).abs().unwrap()),
        decoder: tensor(&[features, config.slots(l), width]),
        decoder_bias: tensor(&[width]),
        skip: skip.then(|| tensor(&[width, width])),
    });
    let weights = weights.collect();
    Clt::new(config, weights).unwrap()
}

/// In our own format every bit; in another program's what it has a place for, the same codes and outputs.
#[test]
fn clts_come_back_from_every_format() {
    let mut written: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let clt = random_clt(&mut random, seed % 5 == 0);
        let (layers, width, features) = (clt.layers(), clt.config().width, clt.features());
        let x: Vec<Tensor> = (0..layers).map(|_| Tensor::from_vec((0..5 * width).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>(), (5, width), &Device::Cpu).unwrap()).collect();
        let (code, decoded) = run(&clt, &x);
        for format in Format::ALL.into_iter().map(Some).chain([None]) {
            let name = format.map_or("own", Format::name);
            let what = format!("seed {seed} {name} {clt}");
            let folder = scratch(&format!("properties-{seed}-{name}"));
            match clt.save(&folder, &CltSaveConfig { format, ..Default::default() }) {
                Ok(()) => *written.entry(name).or_default() += 1,
                Err(error) => {
                    assert!(error.kind() == ErrorKind::Unsupported && format.is_some(), "{what}: {error}");
                    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "{what}: something was written");
                    continue;
                }
            }
            let back = Clt::load(&folder, &CltLoadConfig { format, ..CltLoadConfig::on(&Device::Cpu) }).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((back.layers(), back.config().width, back.features(), back.config().input), (layers, width, features, clt.config().input), "{what}");
            // sparsify names modules: in a model without a norm after its MLP both outputs are the same one.
            assert!(back.config().output == clt.config().output || format == Some(Format::Sparsify), "{what}: {:?}", back.config().output);
            if format.is_none() {
                assert_eq!(back.config(), clt.config(), "{what}");
                for l in 0..layers {
                    let bits = |clt: &Clt| [clt.encoder(l), clt.encoder_bias(l), clt.decoder(l), clt.decoder_bias(l)].map(|tensor| values(tensor.unwrap()));
                    assert!(bits(&back) == bits(&clt), "{what}: layer {l}: other weights");
                }
            }
            let (code_back, decoded_back) = run(&back, &x);
            for l in 0..layers {
                // Products are rounded in another order where a file's bytes lie otherwise in memory.
                let allowed = if format.is_none() { 2e-6 } else { 1e-5 };
                assert_close(&format!("{what}: a {l}"), &dense(&code_back, l, features), &dense(&code, l, features), allowed);
                assert_close(&format!("{what}: y {l}"), &values(&decoded_back[l]), &values(&decoded[l]), 10.0 * allowed);
            }
        }
    }
    println!("{written:?}");
    assert!(written.len() == Format::ALL.len() + 1 && written.values().all(|count| *count > 1), "too few of a format: {written:?}");
}

/// Numbers that have a short decimal form, so that a file may say them exactly.
fn number(random: &mut StdRng) -> f32 {
    random.random_range(-64..64) as f32 / 16.0
}

fn random_graph(random: &mut StdRng) -> Graph {
    let (tokens, layers) = (random.random_range(1..6), random.random_range(1..4));
    let mut active: Vec<FeatureNode> = (0..random.random_range(0..9)).map(|_| FeatureNode { layer: random.random_range(0..layers), position: random.random_range(0..tokens), feature: random.random_range(0..9) }).collect();
    active.sort_by_key(|node| (node.layer, node.position, node.feature));
    active.dedup();
    let (features, outputs) = (active.len(), random.random_range(1..4));
    let first_token = features + layers * tokens;
    let count = first_token + tokens + outputs;
    let mut dense = vec![0.0; count * count];
    for target in (0..features).chain(first_token + tokens..count) {
        // A cause stands before its effect: features by their layer, then errors and tokens.
        let before = active.get(target).map_or(features, |node| active.iter().take_while(|other| other.layer < node.layer).count());
        for source in (0..before).chain(features..first_token + tokens) {
            if random.random_range(0..3) == 0 {
                dense[target * count + source] = number(random);
            }
        }
    }
    let text = |random: &mut StdRng| pick(random, &["w", " caf\u{e9}", "\"<&>'", "\\n\n", "\u{1F980}", "", " "]).to_string();
    Graph::new(GraphParts {
        model_name: text(random),
        prompt: text(random),
        tokens: (0..tokens as u32).collect(),
        token_text: (0..tokens).map(|_| text(random)).collect(),
        layers,
        activations: active.iter().map(|_| number(random).abs() + 0.0625).collect(),
        selected: (0..features as u32).collect(),
        active,
        // Viewers end an output's label at a quote, so that a file holds another sign there.
        logits: (0..outputs as u32).map(|token| LogitTarget { token, text: text(random).replace('"', "'"), probability: 0.25 }).collect(),
        position_nodes: false,
        edges: Edges::from_dense(&dense, count).unwrap(),
        zero_positions: vec![],
        complete: true,
    })
    .unwrap()
}

/// A graph is read from its JSON as it was written: prompt, nodes and edges, whichever texts its tokens have.
#[test]
fn graphs_come_back_from_json() {
    let edges = |graph: &Graph| {
        let text = |node: usize| format!("{:?} {}", graph.nodes[node].feature(), graph.node_text(node));
        let mut all: Vec<(String, String, u32)> = graph.edges().iter().filter(|edge| edge.weight != 0.0).map(|edge| (text(edge.source), text(edge.target), edge.weight.to_bits())).collect();
        all.sort();
        all
    };
    let mut tried = 0;
    for seed in 0..120 {
        let mut random = StdRng::seed_from_u64(seed);
        let graph = random_graph(&mut random);
        let folder = scratch("properties-graph");
        let (first, second) = (folder.join("first.json"), folder.join("second.json"));
        graph.save(&first, &Default::default()).unwrap();
        let back = Graph::load(&first).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        // A file holds tokens, outputs, and what an edge touches.
        let touched: BTreeSet<usize> = graph.edges().iter().flat_map(|edge| [edge.source, edge.target]).collect();
        let kept = graph.nodes.iter().enumerate().filter(|(at, node)| touched.contains(at) || node.kind.is_end()).count();
        assert_eq!((back.prompt(), back.token_text(), back.nodes.len()), (graph.prompt(), graph.token_text(), kept), "seed {seed}");
        assert_eq!(edges(&back), edges(&graph), "seed {seed}");
        // What was read is written as it was.
        back.save(&second, &Default::default()).unwrap();
        let json = |path| -> serde_json::Value {
            let mut value: serde_json::Value = cltlab::internal::files::read_json(path).unwrap();
            value["metadata"]["slug"] = "".into();
            value["metadata"]["create_time_ms"] = 0.into();
            value
        };
        assert_eq!(json(&second)["nodes"], json(&first)["nodes"], "seed {seed}");
        assert_eq!(json(&second)["links"], json(&first)["links"], "seed {seed}");
        tried += edges(&graph).len();
    }
    assert!(tried > 1_000, "{tried} edges");
}

/// Contexts, shards and compression at random: training on the store is training on the stream.
#[test]
fn stores_are_read_as_they_were_written() {
    let model = small_model();
    for seed in 0..6 {
        let mut random = StdRng::seed_from_u64(seed);
        let text = Corpus::from_texts((0..random.random_range(1..4)).map(|part| words(random.random_range(200..900), 10 * seed + part)).collect()).unwrap();
        let context = random.random_range(2..40);
        let (exclude_first, batch) = (random.random_range(0..context.min(3)), random.random_range(1..6));
        let (buffer, passes) = (Some(random.random_range(20..300)), random.random_range(1..3));
        let stream = StreamConfig { context, exclude_first, batch, buffer_tokens: buffer, passes, seed, ahead: Some(random.random()), ..StreamConfig::default() };
        let store = StoreConfig { context, exclude_first, batch, zstd: pick(&mut random, &[None, Some(1), Some(5)]), shard_bytes: random.random_range(1..200_000), ..StoreConfig::default() };
        let folder = scratch(&format!("properties-store-{seed}"));
        Activations::store(&model, &text, &folder, &store).unwrap();
        let read = Activations::load(&folder, &ReadConfig { buffer_tokens: buffer, passes, seed, ahead: random.random() }).unwrap();
        let trained = |activations: &Activations| {
            let shape = CltConfig { features: 32, activation: Activation::TopK { k: 4 }, ..CltConfig::for_model(&model) };
            let history = Trainer::new(activations, &shape, &TrainConfig { steps: 5, batch_tokens: 40, ..TrainConfig::default() }).unwrap().run().unwrap();
            history.samples.iter().map(|sample| sample.reconstruction).collect::<Vec<_>>()
        };
        let streamed = Activations::stream(&model, &text, &stream).unwrap();
        assert_close(&format!("seed {seed}"), &trained(&read), &trained(&streamed), 1e-4);
    }
}

/// A run's own `config.toml` says what its recipe said.
#[test]
fn recipes_come_back_from_their_run() {
    let folder = recipe("properties-recipe", "");
    let base = std::fs::read_to_string(folder.join("train.toml")).unwrap();
    for seed in 0..8 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut lines = Vec::new();
        let mut say = |random: &mut StdRng, line: String| if random.random() { lines.push(line) };
        let float = |random: &mut StdRng, most: f64| random.random_range(0.0..most);
        let (a, b, c, d) = (float(&mut random, 0.1), float(&mut random, 1.0), float(&mut random, 1.0), float(&mut random, 0.999));
        say(&mut random, format!("lr = {a:e}"));
        say(&mut random, format!("warmup = {b}"));
        say(&mut random, format!("decay = {c}"));
        say(&mut random, format!("betas = [{d}, 0.5]"));
        say(&mut random, "clip = \"none\"".into());
        say(&mut random, "matryoshka = [8, 32]".into());
        say(&mut random, "loss = \"fvu\"".into());
        say(&mut random, "moments = \"eight_bit\"".into());
        say(&mut random, format!("seed = {}", u32::MAX));
        say(&mut random, "lazy = false".into());
        std::fs::write(folder.join("train.toml"), base.replace("steps = 12", "steps = 1").replace("[train]", &format!("[train]\n{}", lines.join("\n"))).replace("\"run\"", &format!("\"run{seed}\""))).unwrap();
        let done = |arguments: &[&str]| {
            let output = cltlab(arguments);
            assert!(output.status.success(), "seed {seed} {lines:?}: {}", said(&output));
            String::from_utf8(output.stdout).unwrap()
        };
        let (first, own) = (folder.join("train.toml"), folder.join(format!("run{seed}/config.toml")));
        done(&["train", first.to_str().unwrap()]);
        let plan = |path: &std::path::Path| -> serde_json::Value {
            let mut plan: serde_json::Value = serde_json::from_str(&done(&["train", path.to_str().unwrap(), "--dry-run", "--json"])).unwrap();
            // Measured or free on this machine at that time.
            plan["here"].take();
            plan
        };
        assert_eq!(plan(&own), plan(&first), "seed {seed}");
        // Read and written again, nothing of it changes.
        let text = std::fs::read_to_string(&own).unwrap();
        done(&["train", own.to_str().unwrap(), "--set", &format!("output.folder={}", folder.join(format!("again{seed}")).display())]);
        let again: toml::Table = toml::from_str(&std::fs::read_to_string(folder.join(format!("again{seed}/config.toml"))).unwrap()).unwrap();
        let before: toml::Table = toml::from_str(&text).unwrap();
        for table in ["clt", "train", "activations"] {
            assert_eq!(again.get(table), before.get(table), "seed {seed} [{table}]");
        }
    }
}
