//! `cltlab bench --train`: training steps on random activations, timed one by one.
//!
//! One JSON line when all is allocated (`load`, seconds), one for each step (`seconds`, `loss`), and
//! one at the end (`phases`: seconds of encode, decode, backward, update over all steps; `peak_mb`).
//! With `--on-request` a step is done for each line of standard input, so that
//! `benches/train.py` can let several programs take turns.

use clap::{Args, ValueEnum};
use cltlab::prelude::*;
use cltlab::train::Moments;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Instant;

/// Batches that the random activations hold.
const BATCHES: usize = 4;

#[derive(Args)]
pub struct TrainShape {
    /// Time training steps on random activations, instead of a model
    #[arg(long)]
    pub train: bool,
    /// Layers of the CLT
    #[arg(long, default_value_t = 6)]
    layers: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Features per layer
    #[arg(long, default_value_t = 2048)]
    features: usize,
    /// TopK: active features per token and layer
    #[arg(long, default_value_t = 32)]
    k: usize,
    /// Tokens in a step
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    /// Steps; with --on-request, as many as are asked for
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// How Adam's moments are held
    #[arg(long, value_enum, default_value_t = Held::F32)]
    moments: Held,
    /// Update every row in every step, as plain Adam does, instead of making up for rows that rested
    #[arg(long)]
    every_row: bool,
    /// Clip the gradient's norm at this value; by default it is not clipped
    #[arg(long)]
    clip: Option<f64>,
}

/// How Adam's moments are held.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Held {
    F32,
    EightBit,
}

/// Trains step by step and prints a JSON line for each.
pub fn train(shape: &TrainShape, on_request: bool) -> Result<()> {
    // No progress lines between the steps.
    progress::set_sink(None);
    let start = Instant::now();
    let clt = CltConfig {
        layers: shape.layers,
        width: shape.width,
        features: shape.features,
        activation: Activation::TopK { k: shape.k },
        ..CltConfig::default()
    };
    // One step a run, at one rate: what is timed is the same from the first step to the last.
    let config = TrainConfig {
        steps: 1,
        batch_tokens: shape.tokens,
        lr: 1e-4,
        warmup: 0.0,
        decay: 0.0,
        clip: shape.clip,
        moments: match shape.moments {
            Held::F32 => Moments::F32,
            Held::EightBit => Moments::EightBit,
        },
        lazy: !shape.every_row,
        ..TrainConfig::default()
    };
    let mut rng = StdRng::seed_from_u64(0);
    let mut side = || (0..shape.layers).map(|_| (0..BATCHES * shape.tokens * shape.width).map(|_| normal(&mut rng)).collect()).collect::<Vec<Vec<f32>>>();
    let activations = Activations::from_memory(side(), side(), shape.width)?;
    let mut trainer = Trainer::new(&activations, &clt, &config)?;
    println!("{{\"load\": {:.4}}}", start.elapsed().as_secs_f64());
    if on_request {
        for request in std::io::stdin().lines() {
            request.map_err(|error| Error::io("standard input", error))?;
            step(&mut trainer)?;
        }
    } else {
        (0..shape.steps).try_for_each(|_| step(&mut trainer))?;
    }
    let [encode, decode, backward, update] = trainer.phases();
    let peak = peak_mb().map_or("null".to_string(), |mb| format!("{mb:.1}"));
    println!(
        "{{\"steps\": {}, \"phases\": {{\"encode\": {encode:.4}, \"decode\": {decode:.4}, \"backward\": {backward:.4}, \"update\": {update:.4}}}, \"peak_mb\": {peak}}}",
        trainer.steps()
    );
    Ok(())
}

fn step(trainer: &mut Trainer) -> Result<()> {
    let start = Instant::now();
    trainer.run()?;
    let seconds = start.elapsed().as_secs_f64();
    let loss = trainer.history().last().map_or(f64::NAN, |sample| sample.reconstruction);
    println!("{{\"seconds\": {seconds:.6}, \"loss\": {loss:.6}}}");
    Ok(())
}

/// A sum of four uniform numbers, of mean 0 and variance 1: near enough to normal for a timing.
fn normal(rng: &mut StdRng) -> f32 {
    let sum: f32 = (0..4).map(|_| rng.random_range(-0.5..0.5f32)).sum();
    sum * 3f32.sqrt()
}

/// The most memory this process has held, MiB; `None` where the system does not say.
fn peak_mb() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
