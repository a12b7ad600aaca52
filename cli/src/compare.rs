//! `cltlab compare`: what the graphs of several prompts share, or how two differ.

use super::graph::{Explained, Laps, Most};
use clap::{Args, ValueEnum};
use cltlab::prelude::*;
use std::path::PathBuf;

/// Which positions stand for each other.
#[derive(Clone, Copy, ValueEnum)]
enum Align {
    /// Counted from the end
    End,
    /// Counted from the start
    Start,
}

#[derive(Args)]
pub struct CompareArgs {
    #[command(flatten)]
    of: Explained,
    /// Another prompt, as text, or as ids 1,2,3 where --tokens is given; repeatable with --merge
    #[arg(long, required = true, value_name = "PROMPT")]
    other: Vec<String>,
    /// The mean of all graphs, not the first less the other
    #[arg(long)]
    merge: bool,
    /// Which positions stand for each other
    #[arg(long, value_enum, default_value = "end")]
    align: Align,
    #[command(flatten)]
    most: Most,
    /// Share of the nodes' influence (or its difference) that the written graph keeps
    #[arg(long, default_value_t = 0.8)]
    node_threshold: f64,
    /// Share of the edges' influence that the written graph keeps
    #[arg(long, default_value_t = 0.98)]
    edge_threshold: f64,
    /// The pruned difference or mean as JSON for viewers
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// All nodes and edges with their values in every graph, as JSON
    #[arg(long)]
    raw: Option<PathBuf>,
    /// The picture, as .svg, .png or .html
    #[arg(long)]
    picture: Option<PathBuf>,
}

/// Attributes every prompt, compares, writes.
pub fn compare(args: &CompareArgs) -> Result<()> {
    let of = &args.of;
    let prune = PruneConfig { node_threshold: args.node_threshold, edge_threshold: args.edge_threshold };
    prune.validate()?;
    if !args.merge && args.other.len() > 1 {
        return Err(Error::expected(ErrorKind::BadInput, "--other", format_args!("{} prompts", args.other.len()), "one, or --merge"));
    }
    let config = AttributeConfig { max_features: args.most.features(), ..AttributeConfig::default() };
    config.validate()?;
    let mut laps = Laps::new();
    let replacement = of.replacement()?;
    laps.end("load");
    let mut graphs = vec![replacement.attribute(of.prompt(), &config)?];
    for other in &args.other {
        graphs.push(replacement.attribute(of.other(other)?, &config)?);
    }
    laps.end("graphs");
    let align = match args.align {
        Align::End => Alignment::FromEnd,
        Align::Start => Alignment::FromStart,
    };
    let (graph, text, picture, raw): (Graph, String, Result<Picture>, Box<dyn Fn(&PathBuf) -> Result<()>>) = if args.merge {
        let merged = Graph::merge(&graphs, &align)?;
        (merged.graph.clone(), merged.to_string(), merged.picture_pruned(&prune), Box::new(move |path| merged.save(path)))
    } else {
        let difference = graphs[0].difference(&graphs[1], &align)?;
        (difference.graph.clone(), difference.to_string(), difference.picture_pruned(&prune), Box::new(move |path| difference.save(path)))
    };
    laps.end("compare");
    println!("{text}");
    if let Some(path) = &args.output {
        graph.prune(&prune)?.save(path, &GraphSaveConfig { format: Some(GraphFormat::Json), ..GraphSaveConfig::default() })?;
    }
    if let Some(path) = &args.picture {
        picture?.save(path)?;
    }
    args.raw.as_ref().map_or(Ok(()), |path| raw(path))?;
    println!("{laps}");
    Ok(())
}
