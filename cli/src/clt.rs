//! `cltlab clt`: look at a CLT, take it to another program's format, run it on a prompt.

use super::model::Prompted;
use clap::{Args, Subcommand};
use cltlab::model::OutputSite;
use cltlab::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(Args)]
pub struct CltArgs {
    #[command(subcommand)]
    command: CltCommand,
}

#[derive(Subcommand)]
enum CltCommand {
    /// Say what a CLT is and which format it is in; every weight is read and checked
    Check(Source),
    /// Write a CLT in another format, or a foreign one in ours
    Convert(ConvertArgs),
    /// Run a model and encode what the CLT reads
    Encode(EncodeArgs),
}

/// A CLT, and what its files may not say.
#[derive(Args)]
struct Source {
    /// Folder or hub name of a CLT: owner/name, owner/name//folder@revision
    source: String,
    /// Its format: circuit-tracer, crosslayer-coding, sparsify, clt-forge, crosslayer-transcoder, gemma-scope, gemma-scope-2 or saelens [default: by its files]
    #[arg(long, value_name = "FORMAT")]
    from: Option<String>,
    /// What the encoders read: hook_resid_mid, mlp.hook_in or ln2.hook_normalized [default: what the files say]
    #[arg(long)]
    input: Option<String>,
    /// What the decoders write to: hook_mlp_out or mlp.hook_out [default: what the files say]
    #[arg(long)]
    output: Option<String>,
    /// The model's name [default: what the files say]
    #[arg(long)]
    model_name: Option<String>,
    /// Fetch what a folder on disk lists as hf://owner/name/file; without it such a folder is refused
    #[arg(long)]
    fetch: bool,
}

impl Source {
    fn config(&self) -> Result<CltLoadConfig> {
        let bad = |option: &str, got: &str, expected: &str| Error::expected(ErrorKind::BadInput, option, format_args!("'{got}'"), expected);
        let input = |name: &String| InputSite::from_hook(name).ok_or_else(|| bad("--input", name, "hook_resid_mid, mlp.hook_in or ln2.hook_normalized"));
        let output = |name: &String| OutputSite::from_hook(name).ok_or_else(|| bad("--output", name, "hook_mlp_out or mlp.hook_out"));
        Ok(CltLoadConfig {
            format: self.from.as_ref().map(|name| name.parse()).transpose()?,
            input: self.input.as_ref().map(input).transpose()?,
            output: self.output.as_ref().map(output).transpose()?,
            model_name: self.model_name.clone(),
            fetch: self.fetch,
            ..CltLoadConfig::default()
        })
    }

    fn load(&self, device: &Device) -> Result<Clt> {
        Clt::load(&self.source, &CltLoadConfig { device: Some(device.clone()), ..self.config()? })
    }
}

#[derive(Args)]
struct ConvertArgs {
    #[command(flatten)]
    of: Source,
    /// Folder to write; other files in it stay
    target: PathBuf,
    /// Format to write; ours, which circuit-tracer reads too, without it
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Encoders and decoders in f32, bf16 or f16; only in our own format
    #[arg(long, conflicts_with = "format", default_value = "f32")]
    dtype: DType,
}

#[derive(Args)]
struct EncodeArgs {
    #[command(flatten)]
    of: Source,
    #[command(flatten)]
    from: Prompted,
    /// Write x.L (what layer L reads) [tokens, d], a.L (activations) [tokens, features], y.L (the reconstruction) and t.L (the MLP's output) [tokens, d] to this safetensors file
    #[arg(long)]
    raw: Option<PathBuf>,
}

pub fn clt(args: &CltArgs) -> Result<()> {
    match &args.command {
        CltCommand::Check(source) => check(source),
        CltCommand::Convert(args) => convert(args),
        CltCommand::Encode(args) => encode(args),
    }
}

fn check(source: &Source) -> Result<()> {
    let format = source.config()?.format.map_or_else(|| Format::of(&source.source), Ok)?;
    let clt = source.load(&Device::Cpu)?;
    let finite = |what: String, tensor: &Tensor| -> Result<()> {
        // Zero times NaN or infinity is NaN, times any number zero.
        if (tensor * 0.0)?.sum_all()?.to_scalar::<f32>()? == 0.0 { Ok(()) } else { Err(Error::new(ErrorKind::NotFinite, format!("{}: {what}: NaN or infinity", source.source))) }
    };
    for l in 0..clt.layers() {
        let parts = [("encoder", Some(clt.encoder(l)?)), ("encoder bias", Some(clt.encoder_bias(l)?)), ("thresholds", clt.threshold(l)?), ("decoder bias", Some(clt.decoder_bias(l)?)), ("skip", clt.skip(l)?)];
        for (what, tensor) in parts {
            tensor.map_or(Ok(()), |tensor| finite(format!("{what} of layer {l}"), tensor))?;
        }
        finite(format!("decoder of layer {l}"), clt.decoder(l)?)?;
    }
    println!("{clt}\nformat {format}, writes {}, {}", clt.config().output.hook(), if clt.config().per_layer { "one transcoder a layer" } else { "cross-layer" });
    Ok(())
}

fn convert(args: &ConvertArgs) -> Result<()> {
    let format = args.format.as_ref().map(|name| name.parse::<Format>()).transpose()?;
    let clt = args.of.load(&Device::Cpu)?;
    clt.save(&args.target, &CltSaveConfig { format, dtype: args.dtype })?;
    println!("{clt}\nwritten to {} as {}", args.target.display(), format.map_or("our own format, which circuit-tracer reads", Format::name));
    Ok(())
}

fn encode(args: &EncodeArgs) -> Result<()> {
    let model = args.from.model()?;
    let replacement = Replacement::new(&model, &args.of.load(model.device())?)?;
    let (model, clt) = (replacement.model(), replacement.clt());
    let tokens = replacement.tokens(args.from.prompt())?;
    let run = model.run(&tokens, &Capture::default())?;
    let code = clt.encode(&run)?;
    let inputs = run.layers.iter().map(|layer| clt.input(layer).cloned()).collect::<Result<Vec<_>>>()?;
    let decoded = clt.decode(&code, &inputs)?;
    println!("{} tokens, {:.1} active features a token and layer", tokens.len(), code.l0());
    let Some(path) = &args.raw else { return Ok(()) };
    let mut tensors = HashMap::new();
    for (l, layer) in code.layers.iter().enumerate() {
        let mut dense = vec![0f32; layer.tokens() * clt.features()];
        for (p, row) in dense.chunks_exact_mut(clt.features()).enumerate() {
            let (features, activations) = layer.token(p);
            features.iter().zip(activations).for_each(|(feature, activation)| row[*feature as usize] = *activation);
        }
        tensors.insert(format!("a.{l}"), Tensor::from_vec(dense, (layer.tokens(), clt.features()), &Device::Cpu)?);
        tensors.insert(format!("x.{l}"), inputs[l].to_device(&Device::Cpu)?);
        tensors.insert(format!("y.{l}"), decoded[l].to_device(&Device::Cpu)?);
        if let Some(output) = &run.layers[l].mlp_out {
            tensors.insert(format!("t.{l}"), output.to_device(&Device::Cpu)?);
        }
    }
    super::model::save_tensors(path, &tensors)
}
