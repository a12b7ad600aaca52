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
        Replacement::new(&model, &Clt::load(&self.clt, &CltLoadConfig::on(model.device()))?)
    }

    /// The prompt.
    pub fn prompt(&self) -> Prompt {
        self.from.prompt()
    }

    /// Another prompt, given as the first is: as text, or as ids.
    pub fn other(&self, other: &str) -> Result<Prompt> {
        match self.prompt() {
            Prompt::Text(_) => Ok(Prompt::from(other)),
            Prompt::Tokens(_) => {
                let ids: std::result::Result<Vec<u32>, _> = other.split(',').map(|id| id.trim().parse()).collect();
                ids.map(Prompt::from).map_err(|_| Error::expected(ErrorKind::BadInput, "--other", format_args!("'{other}'"), "token ids, as --tokens: 1,2,3"))
            }
        }
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
    /// Explain these tokens instead, by id or by text, a space in front included: 42,17 or " Austin, Dallas"; repeatable
    #[arg(long, value_name = "TOKENS", allow_hyphen_values = true)]
    targets: Vec<String>,
    /// Explain the logit of A less that of B, by id or by text; repeatable
    #[arg(long, value_name = "A,B", allow_hyphen_values = true)]
    difference: Vec<String>,
    #[command(flatten)]
    most: Most,
    /// Rows computed at once: more take more memory and less time
    #[arg(long, default_value_t = AttributeConfig::default().batch)]
    batch: usize,
    /// With fewer features than are active: features between two rankings by influence
    /// [default: an eighth of them, at least 32]
    #[arg(long)]
    rank_every: Option<usize>,
    #[command(flatten)]
    old: OldAttribute,
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
    /// The pruned graph as a picture: .svg, .png or .html
    #[arg(long)]
    picture: Option<PathBuf>,
}

impl AttributeArgs {
    fn configs(&self) -> Result<(AttributeConfig, PruneConfig)> {
        self.old.refuse()?;
        let targets = self.targets()?;
        let config = AttributeConfig {
            max_logits: self.max_logits,
            logit_mass: self.logit_mass,
            targets: (!targets.is_empty()).then_some(targets),
            max_features: self.most.features(),
            batch: self.batch,
            rank_every: self.rank_every,
            position_nodes: self.position_nodes,
            spill: self.spill.clone(),
            ..AttributeConfig::default()
        };
        let prune = PruneConfig { node_threshold: self.node_threshold, edge_threshold: self.edge_threshold };
        config.validate()?;
        prune.validate()?;
        Ok((config, prune))
    }

    fn targets(&self) -> Result<Vec<Target>> {
        let mut targets: Vec<Target> = self.targets.iter().flat_map(|text| pieces(text)).map(Target::logit).collect();
        for text in &self.difference {
            match pieces(text)[..] {
                [more, less] => targets.push(Target::difference(more, less)),
                _ => return Err(Error::expected(ErrorKind::BadInput, "--difference", format_args!("'{text}'"), "two tokens, by id or by text: A,B")),
            }
        }
        Ok(targets)
    }
}

/// The parts between commas that stand in no double quotes.
fn pieces(text: &str) -> Vec<&str> {
    let mut quoted = false;
    let outside = |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    text.split(outside).collect()
}

/// How many features become nodes.
#[derive(Args)]
pub struct Most {
    /// Features that become nodes, those with most influence: a number or all [default: 7500]
    #[arg(long, value_name = "N|all")]
    max_features: Option<AtMost>,
}

impl Most {
    pub fn features(&self) -> Option<usize> {
        self.max_features.as_ref().map_or(AttributeConfig::default().max_features, |most| most.0)
    }
}

/// A number, or all.
#[derive(Clone)]
struct AtMost(Option<usize>);

impl std::str::FromStr for AtMost {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "all" => Ok(AtMost(None)),
            _ => text.parse().map(|count| AtMost(Some(count))).map_err(|_| "expected a number or all".to_string()),
        }
    }
}

/// Options of earlier versions, which an error names the new ones for.
#[derive(Args)]
struct OldAttribute {
    #[arg(long, hide = true)]
    batch_size: Option<String>,
    #[arg(long, hide = true)]
    update_interval: Option<String>,
}

impl OldAttribute {
    fn refuse(&self) -> Result<()> {
        renamed(self.batch_size.is_some(), "--batch-size", "--batch")?;
        renamed(self.update_interval.is_some(), "--update-interval", "--rank-every, in features instead of batches")
    }
}

/// Refuses an option of an earlier version.
pub fn renamed(given: bool, old: &str, new: &str) -> Result<()> {
    if given { Err(Error::new(ErrorKind::BadInput, format!("{old}: is now {new}"))) } else { Ok(()) }
}

/// Attributes, prunes, writes; prints what the graph is and what each step took.
pub fn attribute(args: &AttributeArgs) -> Result<()> {
    let (config, prune) = args.configs()?;
    let mut laps = Laps::new();
    let replacement = args.of.replacement()?;
    laps.end("load");
    let graph = replacement.attribute(args.of.prompt(), &config)?;
    laps.end("attribute");
    let pruned = graph.prune(&prune)?;
    laps.end("prune");
    pruned.save(&args.output, &GraphSaveConfig { supernodes: pruned.supernodes(args.supernodes), format: Some(GraphFormat::Json), ..GraphSaveConfig::default() })?;
    laps.end("export");
    if let Some(path) = &args.picture {
        pruned.picture().save(path)?;
        laps.end("picture");
    }
    println!("{graph}\n{pruned}");
    for logit in graph.logits() {
        println!("{:>8}  {:>7.4}  {:?}", logit.token, logit.probability, logit.text);
    }
    if args.paths > 0 {
        println!("{}", graph.explain(args.paths));
    }
    if let Some(path) = &args.raw {
        graph.save(path, &GraphSaveConfig { format: Some(GraphFormat::Arrays), prune, ..GraphSaveConfig::default() })?;
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
    /// Attention patterns, norm scales and MLP outputs keep their values: only direct effects are seen
    Direct,
    /// Attention patterns keep their values; features, MLPs and norms respond
    FrozenAttention,
    /// Everything responds, attention patterns too
    Open,
}

impl Held {
    pub fn mode(self) -> Mode {
        match self {
            Held::Direct => Mode::Direct,
            Held::FrozenAttention => Mode::FrozenAttention,
            Held::Open => Mode::Open,
        }
    }
}

#[derive(Args)]
pub struct InterveneArgs {
    #[command(flatten)]
    of: Explained,
    /// Set a feature: an id as graphs print it, or a slice for its position: 0_605_7=2, 0_605_4:=2, 0_605_:=2
    #[arg(long, value_name = "PLACE=VALUE", allow_hyphen_values = true)]
    set: Vec<String>,
    /// Multiply a feature, after --set
    #[arg(long, value_name = "PLACE=FACTOR", allow_hyphen_values = true)]
    scale: Vec<String>,
    /// Add to a feature, after --set and --scale
    #[arg(long, value_name = "PLACE=AMOUNT", allow_hyphen_values = true)]
    add: Vec<String>,
    /// What may respond
    #[arg(long, value_enum, default_value = "frozen-attention")]
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

/// `layer_feature_positions=value`.
fn change(text: &str) -> Result<(Place, f32)> {
    let bad = || Error::expected(ErrorKind::BadInput, "intervention", format_args!("'{text}'"), "layer_feature_position=number, for instance 0_605_7=2");
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
    let mut texts = Vec::new();
    if let Some(n) = args.generate {
        let how = GenerateConfig { max_tokens: n, ..GenerateConfig::default() };
        for (name, changes) in [("without", &[][..]), ("with", &changes)] {
            let made = replacement.generate(args.of.prompt(), changes, &config, &how)?;
            texts.push(format!("{name:>8}: {:?}", made.text));
            let ids: Vec<String> = made.tokens.iter().map(u32::to_string).collect();
            texts.push(format!("{:>8}  token ids {}", "", ids.join(",")));
        }
    }
    // What begins after the prompt shows in the text alone.
    if args.generate.is_some() {
        let prompt = replacement.tokens(args.of.prompt())?.len();
        changes.retain(|change| !matches!(change.place.positions, Positions::From(first) if first >= prompt));
    }
    if changes.is_empty() && !texts.is_empty() {
        texts.iter().for_each(|text| println!("{text}"));
        return Ok(());
    }
    let effect = replacement.intervene(args.of.prompt(), &changes, &config)?;
    println!("{effect}");
    texts.iter().for_each(|text| println!("{text}"));
    let (Some(path), Some(logits)) = (&args.raw, effect.logits_everywhere()) else { return Ok(()) };
    let tensors = HashMap::from([("logits".to_string(), logits.to_device(&Device::Cpu)?)]);
    super::model::save_tensors(path, &tensors)
}
