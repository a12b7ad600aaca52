//! `cltlab run` and `cltlab generate`.

use super::out;
use clap::Args;
use cltlab::candle::safetensors;
use cltlab::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A model, and a prompt as text or as ids.
#[derive(Args)]
pub struct Prompted {
    /// Hub name, folder, .gguf file or llama2.c checkpoint
    #[arg(long)]
    pub model: String,
    /// The prompt as text
    #[arg(long, required_unless_present = "tokens", conflicts_with = "tokens", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The prompt as token ids: 1,2,3
    #[arg(long, value_delimiter = ',')]
    pub tokens: Vec<u32>,
    /// Hold the weights in f32, bf16 or f16 [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long)]
    dtype: Option<DType>,
}

impl Prompted {
    /// The prompt.
    pub fn prompt(&self) -> Prompt {
        self.prompt.as_ref().map_or_else(|| Prompt::from(&self.tokens), Prompt::from)
    }

    /// The model.
    pub fn model(&self) -> Result<Model> {
        Model::load(&self.model, &LoadConfig { dtype: self.dtype, ..LoadConfig::default() })
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
    let model = args.from.model()?;
    let run = model.run(args.from.prompt(), &Capture::default())?;
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
    save_tensors(path, &tensors)
}

/// Writes what `--raw` asks for as one safetensors file.
pub fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    cltlab::internal::files::replace(path, |temporary| safetensors::save(tensors, temporary).map_err(|error| Error::from(error).context(path.display())))
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
    /// Sample as the model's generation_config.json says
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    as_published: bool,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Take the prompt as a user's message and answer by the model's chat template
    #[arg(long, requires = "prompt", conflicts_with = "tokens")]
    chat: bool,
    /// Write the ids of prompt and continuation, the text and why it ended to this JSON file
    #[arg(long)]
    raw: Option<PathBuf>,
}

pub fn generate(args: &GenerateArgs) -> Result<()> {
    let config = GenerateConfig {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
        stop: args.stop.clone(),
        ..GenerateConfig::default()
    };
    config.validate()?;
    let model = args.from.model()?;
    let prompt = match &args.from.prompt {
        Some(message) if args.chat => Prompt::from(model.chat_tokens(&[("user", message.as_str())], &ChatConfig::default())?),
        _ => args.from.prompt(),
    };
    let config = if args.as_published { GenerateConfig { max_tokens: args.max_tokens, seed: args.seed, stop: args.stop.clone(), ..model.generate_config() } } else { config };
    let readable = model.tokenizer().is_ok();
    // A reader that went away ends the text; nobody is left to tell.
    let made = model.stream(prompt, &config, &mut |step| {
        let text = if readable { printable(step.text) } else { format!("{} ", step.id) };
        out::write(&text)
    })?;
    out::write("\n");
    let Some(path) = &args.raw else { return Ok(()) };
    let raw = Raw { prompt: made.prompt, tokens: made.tokens, text: made.text, stop: made.stop.to_string() };
    cltlab::internal::files::write_json(path, &raw)
}

/// What `--raw` writes.
#[derive(serde::Serialize)]
struct Raw {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
    stop: String,
}

/// A model's text must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
