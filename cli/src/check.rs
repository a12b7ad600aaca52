//! `cltlab check`: does changing groups of features do what the graph says?

use super::graph::{Explained, Held, Laps, Most};
use clap::Args;
use cltlab::prelude::*;
use std::path::PathBuf;

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    of: Explained,
    /// Groups from this file, as viewers keep them: [["name", "layer_feature_position", ...], ...], or a graph's JSON
    #[arg(long)]
    groups: Option<PathBuf>,
    /// Without --groups: this many, of influential features with like edges
    #[arg(long, default_value_t = 24, conflicts_with = "groups")]
    supernodes: usize,
    /// Set groups to these multiples of their activations
    #[arg(long, value_delimiter = ',', num_args = 1.., default_values_t = [0.0, 2.0], allow_negative_numbers = true)]
    factors: Vec<f64>,
    /// Random groups in the place of each
    #[arg(long, default_value_t = 4)]
    controls: usize,
    /// Random groups stand at the same positions, not only in the same layers
    #[arg(long)]
    same_positions: bool,
    /// Seed of the random groups
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What may respond
    #[arg(long, value_enum, default_value = "frozen-attention")]
    mode: Held,
    #[command(flatten)]
    most: Most,
    /// Effects, controls and correlations as JSON
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The picture, as .svg, .png or .html
    #[arg(long)]
    picture: Option<PathBuf>,
}

/// Attributes, groups, changes; prints effects, correlations and what each step took.
pub fn check(args: &CheckArgs) -> Result<()> {
    let config = SupernodeConfig {
        mode: args.mode.mode(),
        factors: args.factors.clone(),
        controls: args.controls,
        same_positions: args.same_positions,
        seed: args.seed,
    };
    config.validate()?;
    let given = args.groups.as_ref().map(Supernode::load).transpose()?;
    let mut laps = Laps::new();
    let replacement = args.of.replacement()?;
    laps.end("load");
    let graph = replacement.attribute(args.of.prompt(), &AttributeConfig { max_features: args.most.features(), ..AttributeConfig::default() })?;
    laps.end("graph");
    let groups = given.unwrap_or_else(|| graph.supernodes(args.supernodes));
    let check = replacement.check_supernodes(&graph, &groups, &config)?;
    laps.end("check");
    println!("{graph}\n{check}");
    // Features of layer 0 read tokens: without them many layers at once see what they never saw.
    let later = check.of_layers(1..);
    if !later.effects.is_empty() && later.effects.len() < check.effects.len() {
        println!("without groups of layer 0: {}", later.summary());
    }
    println!("{laps}");
    if let Some(path) = &args.picture {
        check.picture().save(path)?;
    }
    args.output.as_ref().map_or(Ok(()), |path| check.save(path))
}
