//! `cltlab bench --device cuda`: training steps and graphs on a GPU against what the card can do at best.
//!
//! Random activations, TopK, Adam, no sparsity term and no limit on the gradient's norm, as in `benches/train_gpu.py`, which
//! runs PyTorch beside it. The floor of a step is the sum of what cannot be left out: its dense products at the rate
//! of a large one in bf16, and at the bandwidth of a copy each weight read once by the forward pass, and read and
//! written once with its moments by the optimiser.

use super::graphs;
use clap::{Args, ValueEnum};
use cltlab::prelude::*;
use cltlab::activations::StreamConfig;
use cltlab::selftest::{Ceilings, RandomModel};
use cltlab::text::Blocks;
use cltlab::train::{GpuPath, Moments, TrainDevice, Weights};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Instant;

#[derive(Args)]
pub struct GpuArgs {
    /// Time training on this device instead of a model
    #[arg(long, value_enum)]
    device: Option<Kind>,
    /// Which shapes
    #[arg(long, value_enum, value_delimiter = ',', default_value = "seed,seed-4096,sparse,smollm2,attribution")]
    shapes: Vec<Shape>,
    /// How weights and moments are held
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bf16-eight-bit,f32-eight-bit,f32-f32")]
    held: Vec<Held>,
    /// Steps that are timed, after some that warm up
    #[arg(long, default_value_t = 40)]
    timed: usize,
}

impl GpuArgs {
    pub fn wanted(&self) -> bool {
        self.device.is_some()
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    /// GPT-2 small, F 9216, k 184, 12 sequences of 16 tokens a step
    Seed,
    /// The same, 4,096 tokens a step
    #[value(name = "seed-4096")]
    Seed4096,
    /// GPT-2 small, F 24576, k 16, 4,096 tokens a step
    Sparse,
    /// GPT-2 small, F 49152, exact BatchTopK of 16 a token, 1,024 tokens a step
    BatchTopk,
    /// SmolLM2-135M's shape, F 2048, k 32, end to end with the model's forward pass in bf16
    #[value(name = "smollm2")]
    SmolLm2,
    /// Graphs of 64 and 512 tokens on a model of GPT-2 small's shape, F 9216, 30 active features a layer and token
    Attribution,
    /// For a look at the program itself
    Tiny,
    /// The same of the last two
    TinyModel,
    /// The same
    TinyGraph,
}

impl Shape {
    /// Layers, width, features, k, tokens.
    fn numbers(self) -> [usize; 5] {
        match self {
            Shape::Seed => [12, 768, 9216, 184, 192],
            Shape::Seed4096 => [12, 768, 9216, 184, 4096],
            Shape::Sparse => [12, 768, 24_576, 16, 4096],
            Shape::BatchTopk => [12, 768, 49_152, 16, 1024],
            Shape::SmolLm2 => [30, 576, 2048, 32, 4096],
            Shape::Attribution => [12, 768, 9216, 30, 0],
            Shape::Tiny => [2, 64, 128, 4, 32],
            Shape::TinyModel | Shape::TinyGraph => [3, 64, 128, 4, 32],
        }
    }

    fn activation(self, k: usize) -> Activation {
        if matches!(self, Shape::BatchTopk) { Activation::BatchTopK { k } } else { Activation::TopK { k } }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Held {
    Bf16EightBit,
    F32EightBit,
    #[value(name = "f32-f32")]
    F32F32,
}

impl Held {
    fn parts(self) -> (Weights, Moments) {
        match self {
            Held::Bf16EightBit => (Weights::Bf16, Moments::EightBit),
            Held::F32EightBit => (Weights::F32, Moments::EightBit),
            Held::F32F32 => (Weights::F32, Moments::F32),
        }
    }
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
}

/// Prints the card's ceilings and one line of JSON for each shape and way to hold weights, then all of it as a table.
pub fn bench(args: &GpuArgs) -> Result<()> {
    progress::set_sink(None);
    let device = cltlab::device::cuda(0)?;
    let small = args.shapes.iter().all(|shape| matches!(shape, Shape::Tiny | Shape::TinyModel | Shape::TinyGraph));
    let ceilings = Ceilings::measure(&device, if small { 128 } else { 8192 })?;
    println!("{{\"ceilings\": {{\"copy\": {:.4e}, \"bf16\": {:.4e}, \"f32\": {:.4e}}}}}", ceilings.copy, ceilings.bf16, ceilings.f32);
    let mut table = vec!["| shape | weights and moments | | ms | floor, ms | share | memory |".to_string(), "|---|---|---|---|---|---|---|".to_string()];
    for shape in &args.shapes {
        match shape {
            Shape::Attribution => graphs::time(&RandomModel::gpt2_small(), [9216, 30], &[64, 512], 4096, &device, &ceilings, &mut table)?,
            Shape::TinyGraph => graphs::time(&RandomModel::default(), [128, 4], &[16], 100, &device, &ceilings, &mut table)?,
            _ => {}
        }
        for held in args.held.iter().filter(|_| !matches!(shape, Shape::Attribution | Shape::TinyGraph)) {
            cltlab::device::forget_peak_on(&device);
            match time(shape, held, args.timed, &device, &ceilings) {
                Ok(row) => table.push(row),
                // A card that cannot hold one says so, and goes on with the next.
                Err(error) if error.is_out_of_memory() => println!("{{\"shape\": \"{}\", \"held\": \"{}\", \"error\": {:?}}}", name(shape), name(held), error.to_string()),
                Err(error) => return Err(error),
            }
        }
    }
    println!("\n{ceilings}\n\n{}", table.join("\n"));
    Ok(())
}

fn time(shape: &Shape, held: &Held, steps: usize, device: &Device, ceilings: &Ceilings) -> Result<String> {
    let [layers, width, features, k, tokens] = shape.numbers();
    let (weights, moments) = held.parts();
    let clt = CltConfig { layers, width, features, activation: shape.activation(k), ..CltConfig::default() };
    let few = steps.div_ceil(4);
    let config = TrainConfig {
        steps: steps + 5 + WAYS.len() * (few + 2),
        batch_tokens: tokens,
        lr: 1e-4,
        warmup: 0.0,
        decay: 0.0,
        clip: None,
        dead: 0.0,
        normalise: false,
        moments,
        weights,
        device: TrainDevice::Cuda,
        ..TrainConfig::default()
    };
    let (activations, clt, model_flops) = match shape {
        Shape::SmolLm2 => streamed(&RandomModel::smollm2_135m(), &clt, 128)?,
        Shape::TinyModel => streamed(&RandomModel::default(), &clt, 16)?,
        _ => (noise(layers, tokens, width)?, clt, 0.0),
    };
    let mut trainer = Trainer::new(&activations, &clt, &config)?;
    trainer.run_steps(5)?;
    let (seconds, loss) = paced(&mut trainer, steps)?;
    let floor = floor(&clt, tokens, trainer.bytes_per_weight(), weights, ceilings) + model_flops * tokens as f64 / ceilings.bf16;
    // What allocations held at most; and what the card has given away, contexts and cuBLAS among it.
    let gib = |bytes: Option<u64>| bytes.map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 30));
    let (peak, card) = (gib(cltlab::device::peak_on(device)), gib(trainer.gpu_bytes()?));
    // Each way by itself: was the one that was taken the fastest?
    let mut ways = String::new();
    for (word, path) in WAYS {
        trainer.set_gpu_path(path);
        trainer.run_steps(2)?;
        ways += &format!(", \"{word}_ms\": {:.3}", 1e3 * paced(&mut trainer, few)?.0);
    }
    println!(
        "{{\"shape\": \"{}\", \"held\": \"{}\", \"tokens_per_second\": {:.1}, \"ms\": {:.3}, \"floor_ms\": {:.3}, \"share\": {:.3}, \"peak_gib\": {peak:.2}, \"card_gib\": {card:.2}, \"loss\": {loss:.3}{ways}}}",
        name(shape),
        name(held),
        tokens as f64 / seconds,
        1e3 * seconds,
        1e3 * floor,
        floor / seconds,
    );
    Ok(format!("| {} | {} | {:.0} tokens/s | {:.2} | {:.2} | {:.0} % | {peak:.1} GiB |", name(shape), name(held), tokens as f64 / seconds, 1e3 * seconds, 1e3 * floor, 100.0 * floor / seconds))
}

/// Ways to multiply codes, and what they are called.
const WAYS: [(&str, GpuPath); 3] = [("dense", GpuPath::Dense), ("dense_forward", GpuPath::DenseForward), ("lists", GpuPath::Lists)];

/// Seconds a step of the next `steps`, and the last one's loss.
fn paced(trainer: &mut Trainer, steps: usize) -> Result<(f64, f64)> {
    let start = Instant::now();
    let history = trainer.run_steps(steps)?;
    Ok((start.elapsed().as_secs_f64() / steps as f64, history.last().map_or(f64::NAN, |sample| sample.reconstruction)))
}

/// Activations in memory, of no model.
fn noise(layers: usize, tokens: usize, width: usize) -> Result<Activations> {
    let mut rng = StdRng::seed_from_u64(0);
    let mut side = || (0..layers).map(|_| (0..2 * tokens * width).map(|_| rng.random_range(-1.73..1.73f32)).collect()).collect::<Vec<Vec<f32>>>();
    Activations::from_memory(side(), side(), width)
}

/// Activations of a model that runs while the CLT trains, the CLT's shape for it, and flops of its forward pass a token, but
/// for those of attention's patterns.
fn streamed(shape: &RandomModel, clt: &CltConfig, context: usize) -> Result<(Activations, CltConfig, f64)> {
    let model = shape.load(&LoadConfig::default())?;
    let mut rng = StdRng::seed_from_u64(1);
    // Enough that no context comes twice while it is timed.
    let ids = (0..(1usize << 21).min(4096 * shape.vocab)).map(|_| rng.random_range(0..shape.vocab as u32)).collect();
    let stream = StreamConfig { context, batch: 32, max_norm: Some(100.0), ..StreamConfig::default() };
    let activations = Activations::stream_blocks(&model, &Blocks::from_ids(ids, context)?, &stream)?;
    let keys = shape.width / shape.heads * shape.kv_heads;
    let flops = 2.0 * (shape.layers * shape.width * (2 * shape.width + 2 * keys + 3 * shape.inner)) as f64;
    Ok((activations, CltConfig { features: clt.features, activation: clt.activation.clone(), ..CltConfig::for_model(&model) }, flops))
}

/// Seconds that a step cannot do without.
fn floor(clt: &CltConfig, tokens: usize, bytes: f64, weights: Weights, ceilings: &Ceilings) -> f64 {
    let (l, d, f, t) = (clt.layers as f64, clt.width as f64, clt.features as f64, tokens as f64);
    let decoders = clt.decoders() as f64 * f * d;
    let k = match clt.activation {
        Activation::TopK { k } | Activation::BatchTopK { k } => k as f64,
        _ => f,
    };
    let rate = if weights == Weights::Bf16 { ceilings.bf16 } else { ceilings.f32 };
    // The encoder is always dense; the rest as far as features are active.
    let flops = 2.0 * t * l * f * d + (k / f) * 2.0 * t * (l * f * d + 3.0 * decoders);
    let forward = if weights == Weights::Bf16 { 2.0 } else { 4.0 };
    flops / rate + (l * f * d + decoders) * (forward + 2.0 * bytes) / ceilings.copy
}
