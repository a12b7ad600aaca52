//! `cltlab attention`: why a head looked where it did.

use super::graph::Explained;
use clap::Args;
use cltlab::prelude::*;
use std::path::PathBuf;

#[derive(Args)]
pub struct AttentionArgs {
    #[command(flatten)]
    of: Explained,
    /// Layer of the attention
    #[arg(long)]
    layer: usize,
    /// Query head within the layer
    #[arg(long)]
    head: usize,
    /// Position that looks
    #[arg(long)]
    query: usize,
    /// Position that is looked at
    #[arg(long)]
    key: usize,
    /// Strongest pairs to print
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// All parts, and these pairs, as JSON
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The picture, as .svg, .png or .html
    #[arg(long)]
    picture: Option<PathBuf>,
}

/// Splits one score and prints the strongest pairs.
pub fn attention(args: &AttentionArgs) -> Result<()> {
    let config = QkConfig { layer: args.layer, head: args.head, query: args.query, key: args.key, pairs: args.pairs, ..QkConfig::default() };
    let replacement = args.of.replacement()?;
    let split = replacement.attribute_attention(args.of.prompt(), &config)?;
    println!("{split}");
    if let Some(path) = &args.picture {
        split.picture().save(path)?;
    }
    args.output.as_ref().map_or(Ok(()), |path| split.save(path))
}
