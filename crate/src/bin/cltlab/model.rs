//! `cltlab run` and `cltlab generate`.

use clap::Args;
use cltlab::candle::safetensors;
use cltlab::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;

/// A model, and a prompt as text or as ids.
#[derive(Args)]
pub struct Prompted {
    /// Hub name, folder, .gguf file or llama2.c checkpoint
    #[arg(long)]
    pub model: String,
    /// The prompt as text
    #[arg(long, required_unless_present = "tokens", conflicts_with = "tokens")]
    pub prompt: Option<String>,
    /// The prompt as token ids: 1,2,3
    #[arg(long, value_delimiter = ',')]
    pub tokens: Vec<u32>,
}

impl Prompted {
    /// The model and the ids, as plain text is run.
    pub fn load(&self) -> Result<(Model, Vec<u32>)> {
        let model = Model::load(&self.model, &auto_device()?)?;
        let tokens = match &self.prompt {
            Some(text) => model.tokens(text)?,
            None => self.tokens.clone(),
        };
        Ok((model, tokens))
    }
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    from: Prompted,
    /// How many next tokens to print
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Write logits and every layer's MLP input and output to this safetensors file
    #[arg(long)]
    raw: Option<PathBuf>,
}

pub fn run(args: &RunArgs) -> Result<()> {
    let (model, tokens) = args.from.load()?;
    let run = model.run_tokens(&tokens, Capture::default())?;
    for (id, probability) in run.top_next(args.top)? {
        println!("{id:>8}  {probability:>7.4}  {:?}", model.token_text(id));
    }
    let Some(path) = &args.raw else { return Ok(()) };
    let mut tensors = HashMap::new();
    let mut keep = |name: String, tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensors.insert(name, tensor.clone()));
    keep("logits".to_string(), &run.logits);
    for (index, layer) in run.layers.iter().enumerate() {
        keep(format!("mlp_norm_in.{index}"), &layer.resid_mid);
        keep(format!("mlp_in.{index}"), &layer.mlp_in);
        keep(format!("mlp_out.{index}"), &layer.mlp_out);
    }
    cltlab::files::replace(path, |temporary| Ok(safetensors::save(&tensors, temporary)?))
}

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    from: Prompted,
    /// Most tokens to add
    #[arg(long, default_value_t = 32)]
    max_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample among the k likeliest; 0 among all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample among the likeliest that together reach this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn generate(args: &GenerateArgs) -> Result<()> {
    let (model, tokens) = args.from.load()?;
    let config = GenerateConfig { max_tokens: args.max_tokens, temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed, ..GenerateConfig::default() };
    let ids = model.generate_tokens(&tokens, &config)?;
    println!("{}", ids.iter().map(|id| model.token_text(*id)).collect::<String>());
    Ok(())
}
