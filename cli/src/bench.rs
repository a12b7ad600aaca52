//! `cltlab bench`: timings of the hot paths, as one JSON line each; `./x bench` makes the table.

mod gpu;
mod graphs;
mod train;

use clap::Args;
use cltlab::prelude::*;
use std::time::Instant;

#[derive(Args)]
pub struct BenchArgs {
    /// Model to time
    #[arg(long, required_unless_present_any = ["train", "device"], conflicts_with_all = ["train", "device"])]
    model: Option<String>,
    /// Hold the weights in f32, bf16 or f16 [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long)]
    dtype: Option<DType>,
    /// Tokens in one context
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Repetitions; the median is printed
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Load, then time one forward with all logits (one step with --train) for each line of standard input, one JSON line each
    #[arg(long)]
    on_request: bool,
    #[command(flatten)]
    shape: train::TrainShape,
    #[command(flatten)]
    gpu: gpu::GpuArgs,
}

/// Prints one JSON line for each timed path.
pub fn bench(args: &BenchArgs) -> Result<()> {
    if args.gpu.wanted() {
        return gpu::bench(&args.gpu);
    }
    let Some(source) = args.model.as_ref().filter(|_| !args.shape.train) else {
        return train::train(&args.shape, args.on_request);
    };
    let start = Instant::now();
    let model = Model::load(source, &LoadConfig { dtype: args.dtype, ..LoadConfig::default() })?;
    let load = start.elapsed().as_secs_f64();
    let ids: Vec<u32> = (0..args.context).map(|index| (100 + 7 * index as u32) % model.vocab() as u32).collect();
    if args.on_request {
        println!("{{\"load\": {load:.4}}}");
        return on_request(&model, &ids);
    }
    line("load", load, "s");
    let batch = Tensor::from_slice(&ids, (1, ids.len()), model.device())?;
    let tokens = ids.len() as f64;
    line("forward without logits", tokens / median(args.runs, || model.visit_mlp(&batch, &mut |_, _| Ok(())))?, "tokens/s");
    line("forward with all logits", tokens / median(args.runs, || model.run(&ids, &Capture::logits()).map(|_| ()))?, "tokens/s");
    let generate = GenerateConfig { max_tokens: 16, ..GenerateConfig::default() };
    line("generation", 16.0 / median(args.runs, || model.generate(&ids[..8], &generate).map(|_| ()))?, "tokens/s");
    Ok(())
}

/// For `benches/forward.py`, which lets several programs take turns.
fn on_request(model: &Model, ids: &[u32]) -> Result<()> {
    for request in std::io::stdin().lines() {
        request.map_err(|error| Error::io("standard input", error))?;
        let start = Instant::now();
        let run = model.run(ids, &Capture::logits())?;
        let seconds = start.elapsed().as_secs_f64();
        let last = run.logits.as_ref().map(|logits| logits.get(ids.len() - 1)?.to_vec1::<f32>()).transpose()?.unwrap_or_default();
        let top = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let (top, logit) = top.map_or((0, f32::NAN), |(id, logit)| (id, *logit));
        println!("{{\"seconds\": {seconds:.6}, \"top\": {top}, \"logit\": {logit:.5}}}");
    }
    Ok(())
}

fn line(what: &str, value: f64, unit: &str) {
    println!("{{\"what\": \"{what}\", \"value\": {value:.4}, \"unit\": \"{unit}\"}}");
}

/// Median seconds of `work` over `runs`, after one run that warms up.
fn median(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut seconds = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
