//! The model with everything held, moved by hand: what the ports of circuit-tracer's perturbation and
//! freeze tests share. Forward passes through the splice that interventions use; nothing of the linear
//! backward, of `verify_edges` or of their arithmetic.

use crate::numbers::Numbers;
use crate::support::{fixture, scratch, tensors, values};
use cltlab::candle::{safetensors, DType, Device, Tensor};
use cltlab::clt::{Activation, Clt, CltConfig, InputSite, LayerWeights};
use cltlab::model::{Capture, Freeze, LoadConfig, OutputSite};
use cltlab::replacement::{LocalReplacement, Replacement};
use cltlab::Model;

pub const PROMPT: [u32; 12] = [0, 17, 5, 90, 42, 17, 63, 8, 71, 5, 77, 31];
/// An id whose embedding is zero in [`with_rows`] models.
pub const ZERO: u32 = 2;

/// A kind of transcoder on a pair of sites.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub per_layer: bool,
    pub skip: bool,
    /// Features a token keeps; 0 for ReLU or JumpReLU.
    pub k: usize,
    pub jumps: bool,
    pub input: InputSite,
    pub output: OutputSite,
}

const PLAIN: Kind = Kind { name: "ReLU CLT", per_layer: false, skip: false, k: 0, jumps: false, input: InputSite::ResidMid, output: OutputSite::AfterNorm };

pub const KINDS: [Kind; 6] = [
    PLAIN,
    Kind { name: "JumpReLU CLT", jumps: true, input: InputSite::MlpIn, output: OutputSite::BeforeNorm, ..PLAIN },
    Kind { name: "TopK CLT", k: 6, input: InputSite::Normalized, ..PLAIN },
    Kind { name: "skip-CLT", skip: true, input: InputSite::MlpIn, ..PLAIN },
    Kind { name: "JumpReLU PLT", per_layer: true, jumps: true, input: InputSite::MlpIn, output: OutputSite::BeforeNorm, ..PLAIN },
    Kind { name: "TopK skip-PLT", per_layer: true, skip: true, k: 4, input: InputSite::MlpIn, output: OutputSite::BeforeNorm, ..PLAIN },
];

/// A random transcoder of this kind.
pub fn transcoder(model: &Model, kind: Kind, features: usize, seed: u64) -> Clt {
    let (layers, width) = (model.layers(), model.width());
    let mut numbers = Numbers::new(seed);
    let mut random = |scale: f32, shape: &[usize]| {
        let values = numbers.take(shape.iter().product()).into_iter().map(|value| value * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let unit = 1.7 / (width as f32).sqrt();
    let activation = match (kind.k, kind.jumps) {
        (0, false) => Activation::Relu,
        (0, true) => Activation::JumpRelu { threshold: 0.3, bandwidth: 0.1 },
        (k, _) => Activation::TopK { k },
    };
    let config = CltConfig {
        layers, width, features, activation, per_layer: kind.per_layer, skip: kind.skip, input: kind.input, output: kind.output, ..CltConfig::default()
    };
    let weights = (0..layers).map(|l| LayerWeights {
        encoder: random(unit, &[features, width]),
        encoder_bias: random(0.2, &[features]),
        threshold: kind.jumps.then(|| random(0.6, &[features]).abs().unwrap()),
        decoder: random(0.4 * unit, &[features, config.slots(l), width]),
        decoder_bias: random(0.2, &[width]),
        skip: kind.skip.then(|| random(0.5 * unit, &[width, width])),
    });
    let weights = weights.collect();
    Clt::new(config, weights).unwrap()
}

/// A tiny model in which the embedding of [`ZERO`] is zero, and that of `others[i]` twice that of
/// `PROMPT[i]`: ids that the prompt does not have, so the prompt's own run is what it was.
pub fn with_rows(family: &str) -> (Model, Vec<u32>) {
    let free: Vec<u32> = (3..96).filter(|id| !PROMPT.contains(id)).collect();
    let others: Vec<u32> = PROMPT.iter().map(|id| free[PROMPT.iter().position(|other| other == id).unwrap()]).collect();
    let from = fixture(&format!("parity/{family}"));
    let folder = scratch(&format!("rows-{family}-{}", std::thread::current().name().unwrap_or("").replace("::", "-")));
    std::fs::copy(from.join("config.json"), folder.join("config.json")).unwrap();
    let mut weights = tensors(&from.join("model.safetensors"));
    let name = ["transformer.wte.weight", "gpt_neox.embed_in.weight", "model.embed_tokens.weight"].into_iter().find(|name| weights.contains_key(*name)).unwrap();
    let mut rows = weights[name].to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    rows[ZERO as usize].fill(0.0);
    for (id, other) in PROMPT.iter().zip(&others) {
        rows[*other as usize] = rows[*id as usize].iter().map(|value| 2.0 * value).collect();
    }
    weights.insert(name.to_string(), Tensor::new(rows, &Device::Cpu).unwrap());
    safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
    (Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap(), others)
}

/// What is added to an MLP's output: layer, position, vector.
pub type Write = (usize, usize, Vec<f32>);

/// One prompt's run, whose patterns, norm scales and MLP outputs (but for skip connections) can be held.
pub struct Held {
    pub replacement: Replacement,
    pub local: LocalReplacement,
}

/// What a pass shows: pre-activations of each layer, `[L][T·F]`, what encoders read, and the demeaned logits.
pub struct Shown {
    pub pre: Vec<Vec<f32>>,
    pub reads: Vec<Vec<f32>>,
    pub logits: Vec<f32>,
}

impl Shown {
    /// Everything in one list.
    pub fn all(&self) -> Vec<f32> {
        self.reads.iter().chain([&self.logits]).flatten().copied().collect()
    }
}

impl Held {
    pub fn new(model: &Model, clt: &Clt, prompt: &[u32]) -> Self {
        let replacement = Replacement::new(model, clt).unwrap();
        Held { local: replacement.local(prompt, &Default::default()).unwrap(), replacement }
    }

    /// A pass over `tokens` with `freeze`; MLP outputs are the run's if `outputs` are held.
    pub fn pass(&self, tokens: &[u32], writes: &[Write], freeze: Freeze<'_>, outputs: bool) -> Shown {
        let (clt, run) = (self.replacement.clt(), self.local.run());
        let (mut pre, mut reads) = (Vec::new(), Vec::new());
        let width = clt.config().width;
        let out = self.replacement.model().run_spliced(tokens, &Capture::last_logits(), freeze, &mut |layer, site| {
            let x = clt.config().input.of(site)?;
            pre.push(values(&clt.pre_activations(layer, &x)?));
            reads.push(values(&x));
            let mut written = values(if outputs { run.layers[layer].mlp_out.as_ref().unwrap() } else { site.mlp_out });
            if let Some(skip) = clt.skip(layer).unwrap().filter(|_| outputs) {
                let moved = (&x - clt.input(&run.layers[layer])?)?.matmul(skip)?;
                written.iter_mut().zip(values(&moved)).for_each(|(value, moved)| *value += moved);
            }
            for (_, position, vector) in writes.iter().filter(|write| write.0 == layer) {
                written[position * width..(position + 1) * width].iter_mut().zip(vector).for_each(|(value, more)| *value += more);
            }
            Ok(Some(Tensor::from_vec(written, site.mlp_out.dims(), &Device::Cpu)?))
        });
        let out = out.unwrap();
        let logits = values(out.uncapped.as_ref().or(out.logits.as_ref()).unwrap());
        let mean = logits.iter().map(|logit| f64::from(*logit)).sum::<f64>() / logits.len() as f64;
        Shown { pre, reads, logits: logits.iter().map(|logit| (f64::from(*logit) - mean) as f32).collect() }
    }

    /// The same with everything held.
    pub fn frozen(&self, tokens: &[u32], writes: &[Write]) -> Shown {
        self.pass(tokens, writes, Freeze::all(self.local.run()), true)
    }
}
