//! `cltlab attribute` and `cltlab intervene`.

use super::model::Prompted;
use clap::{Args, ValueEnum};
use cltlab::intervene::Place;
use cltlab::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

/// A model with its CLT, and a prompt.
#[derive(Args)]
pub struct Explained {
    #[command(flatten)]
    from: Prompted,
    /// Folder or hub name of a CLT, in any format that `cltlab clt check` knows
    #[arg(long)]
    clt: String,
}

impl Explained {
    pub fn replacement(&self) -> Result<Replacement> {
        let model = self.from.model()?;
        Replacement::new(&model, &Clt::load(&self.clt, model.device())?)
    }

    /// The prompt's graph.
    pub fn attribute(&self, replacement: &Replacement, config: &AttributeConfig) -> Result<Graph> {
        match &self.from.prompt {
            Some(text) => replacement.attribute(text, config),
            None => replacement.attribute_tokens(&self.from.tokens, config),
        }
    }

    /// The graph of another prompt, given as the first is: as text, or as ids.
    pub fn attribute_other(&self, replacement: &Replacement, other: &str, config: &AttributeConfig) -> Result<Graph> {
        if self.from.prompt.is_some() {
            return replacement.attribute(other, config);
        }
        let ids: std::result::Result<Vec<u32>, _> = other.split(',').map(|id| id.trim().parse()).collect();
        let ids = ids.map_err(|_| Error::expected(ErrorKind::BadInput, "--other", format_args!("'{other}'"), "token ids, as --tokens: 1,2,3"))?;
        replacement.attribute_tokens(&ids, config)
    }

    /// Ids of the prompt, as it is explained.
    pub fn tokens(&self, model: &Model) -> Result<Vec<u32>> {
        self.from.prompt.as_ref().map_or_else(|| Ok(self.from.tokens.clone()), |text| model.prompt_tokens(text))
    }
}

#[derive(Args)]
pub struct AttributeArgs {
    #[command(flatten)]
    of: Explained,
    /// Outputs to explain, at most
    #[arg(long, default_value_t = 10)]
    max_logits: usize,
    /// Fewer outputs when they hold this share of the probability
    #[arg(long, default_value_t = 0.95)]
    logit_mass: f64,
    /// Explain these tokens instead: 1,2,3
    #[arg(long, value_delimiter = ',')]
    targets: Option<Vec<u32>>,
    /// Explain the logit of A less that of B instead; repeatable: A,B
    #[arg(long, value_name = "A,B", conflicts_with = "targets")]
    difference: Vec<String>,
    /// Features that become nodes, those with most influence; all without it
    #[arg(long)]
    max_features: Option<usize>,
    /// Targets carried together
    #[arg(long)]
    batch_size: Option<usize>,
    /// With --max-features: batches between two rankings by influence, as in circuit-tracer
    /// [default: an eighth of the budget, at least 32 features]
    #[arg(long)]
    update_interval: Option<usize>,
    /// Learnt position embeddings (GPT-2, GPT-Neo) are nodes of their own
    #[arg(long)]
    position_nodes: bool,
    /// Keep the edges in files in this folder instead of in memory
    #[arg(long, value_name = "FOLDER")]
    spill: Option<PathBuf>,
    /// Share of the nodes' influence that the pruned graph keeps
    #[arg(long, default_value_t = 0.8)]
    node_threshold: f64,
    /// Share of the edges' influence that the pruned graph keeps
    #[arg(long, default_value_t = 0.98)]
    edge_threshold: f64,
    /// The pruned graph as JSON for viewers
    #[arg(short, long)]
    output: PathBuf,
    /// Group influential features with like edges into this many supernodes, which viewers open with
    #[arg(long, default_value_t = 0)]
    supernodes: usize,
    /// Print this many of the strongest paths
    #[arg(long, default_value_t = 0)]
    paths: usize,
    /// The whole graph as arrays, with the masks of the pruned one
    #[arg(long)]
    raw: Option<PathBuf>,
}

impl AttributeArgs {
    fn configs(&self) -> Result<(AttributeConfig, PruneConfig)> {
        let usual = AttributeConfig::default();
        let batch = self.batch_size.unwrap_or(usual.batch);
        let config = AttributeConfig {
            max_logits: self.max_logits,
            logit_mass: self.logit_mass,
            target_tokens: self.targets.clone(),
            targets: (!self.difference.is_empty()).then(|| self.difference.iter().map(|text| difference(text)).collect()).transpose()?,
            max_features: self.max_features,
            batch,
            rank_every: self.update_interval.map(|batches| batches.saturating_mul(batch)),
            position_nodes: self.position_nodes,
            spill: self.spill.clone(),
            ..usual
        };
        let prune = PruneConfig { node_threshold: self.node_threshold, edge_threshold: self.edge_threshold };
        config.validate()?;
        prune.validate()?;
        Ok((config, prune))
    }
}

/// `A,B`.
fn difference(text: &str) -> Result<Target> {
    let pair = text.split_once(',').and_then(|(more, less)| Some(Target::Difference(more.trim().parse().ok()?, less.trim().parse().ok()?)));
    pair.ok_or_else(|| Error::expected(ErrorKind::BadInput, "--difference", format_args!("'{text}'"), "two token ids: A,B"))
}

/// Attributes, prunes, writes; prints what the graph is and what each step took.
pub fn attribute(args: &AttributeArgs) -> Result<()> {
    let (config, prune) = args.configs()?;
    let mut laps = Laps::new();
    let replacement = args.of.replacement()?;
    laps.end("load");
    let graph = args.of.attribute(&replacement, &config)?;
    laps.end("attribute");
    let pruned = graph.prune(&prune)?;
    laps.end("prune");
    pruned.save_json_with(&args.output, &pruned.supernodes(args.supernodes))?;
    laps.end("export");
    println!("{graph}\n{pruned}");
    for logit in graph.logits() {
        println!("{:>8}  {:>7.4}  {:?}", logit.token, logit.probability, logit.text);
    }
    if args.paths > 0 {
        println!("{}", graph.explain(args.paths));
    }
    if let Some(path) = &args.raw {
        graph.save_raw(path, &prune)?;
        laps.end("raw");
    }
    let rows = graph.nodes.iter().filter(|node| node.feature().is_some()).count() + graph.logits().len();
    println!("rows {rows} · {laps}");
    Ok(())
}

/// Seconds of each step.
pub struct Laps(Instant, Vec<String>);

impl Laps {
    pub fn new() -> Self {
        Laps(Instant::now(), Vec::new())
    }

    pub fn end(&mut self, step: &str) {
        self.1.push(format!("{step} {:.3} s", self.0.elapsed().as_secs_f64()));
        self.0 = Instant::now();
    }
}

impl std::fmt::Display for Laps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.1.join(" · "))
    }
}

/// What may respond to an intervention.
#[derive(Clone, Copy, ValueEnum)]
pub enum Held {
    /// Patterns, norm scales and MLP outputs are held: direct effects
    Direct,
    /// Patterns are held
    #[value(alias = "frozen_attn", alias = "frozen-attn")]
    Frozen,
    /// Nothing is held
    Open,
}

impl Held {
    pub fn mode(self) -> Mode {
        match self {
            Held::Direct => Mode::Direct,
            Held::Frozen => Mode::FrozenAttention,
            Held::Open => Mode::Open,
        }
    }
}

#[derive(Args)]
pub struct InterveneArgs {
    #[command(flatten)]
    of: Explained,
    /// Set a feature: layer,positions,feature=value; positions: 7, 2:5, 4:, :
    #[arg(long, value_name = "PLACE=VALUE", allow_hyphen_values = true)]
    set: Vec<String>,
    /// Multiply a feature, after --set
    #[arg(long, value_name = "PLACE=FACTOR", allow_hyphen_values = true)]
    scale: Vec<String>,
    /// Add to a feature, after --set and --scale
    #[arg(long, value_name = "PLACE=AMOUNT", allow_hyphen_values = true)]
    add: Vec<String>,
    /// What may respond
    #[arg(long, value_enum, default_value = "frozen")]
    mode: Held,
    /// Write to the MLPs of layers A to B - 1 only, their outputs and attention patterns held; later layers respond
    #[arg(long, value_name = "A:B", conflicts_with = "mode")]
    layers: Option<String>,
    /// Outputs shown: this many of the likeliest before and after
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Go on by this many tokens, greedily, with the change and without; slices without an end apply to them too
    #[arg(long, value_name = "N", conflicts_with = "raw")]
    generate: Option<usize>,
    /// Write logits [tokens, vocab] after the intervention to this safetensors file
    #[arg(long)]
    raw: Option<PathBuf>,
}

/// `layer,positions,feature=value`.
fn change(text: &str) -> Result<(Place, f32)> {
    let bad = || Error::expected(ErrorKind::BadInput, "intervention", format_args!("'{text}'"), "layer,positions,feature=number");
    let (place, value) = text.rsplit_once('=').ok_or_else(bad)?;
    Ok((place.parse()?, value.trim().parse().map_err(|_| bad())?))
}

/// Intervenes and prints the outputs that moved.
pub fn intervene(args: &InterveneArgs) -> Result<()> {
    let mut changes = Vec::new();
    for (texts, make) in [(&args.set, Intervention::set as fn(Place, f32) -> Intervention), (&args.scale, Intervention::scale), (&args.add, Intervention::add)] {
        for text in texts {
            let (place, value) = change(text)?;
            changes.push(make(place, value));
        }
    }
    let mode = match args.layers.as_deref().map(str::parse).transpose()? {
        None => args.mode.mode(),
        Some(Positions::Range { start, end }) => Mode::Layers { start, end },
        Some(_) => return Err(Error::expected(ErrorKind::BadInput, "--layers", args.layers.as_deref().unwrap_or_default(), "two layers: A:B")),
    };
    let config = InterveneConfig { mode, top: args.top, every_position: args.raw.is_some() };
    let replacement = args.of.replacement()?;
    if let Some(n) = args.generate {
        let tokens = args.of.tokens(replacement.model())?;
        let how = GenerateConfig { max_tokens: n, ..GenerateConfig::default() };
        for (name, changes) in [("without", &[][..]), ("with", &changes)] {
            let made = replacement.stream_tokens(&tokens, changes, &config, &how, &mut |_| true)?;
            let ids: Vec<String> = made.tokens.iter().map(u32::to_string).collect();
            println!("{name:>8}: {:?}\n{:>8}  {}", made.text, "", ids.join(","));
        }
        return Ok(());
    }
    let effect = match &args.of.from.prompt {
        Some(text) => replacement.intervene_with(text, &changes, &config)?,
        None => replacement.intervene_tokens(&args.of.from.tokens, &changes, &config)?,
    };
    println!("{effect}");
    let (Some(path), Some(logits)) = (&args.raw, effect.logits_everywhere()) else { return Ok(()) };
    let tensors = HashMap::from([("logits".to_string(), logits.to_device(&Device::Cpu)?)]);
    super::model::save_tensors(path, &tensors)
}
