//! `cltlab`: the notebook's steps as commands, for terminals and batch jobs.
//!
//! Parse, install a progress line, do one thing, print errors in one place.

mod attention;
mod bench;
mod clt;
mod check;
mod compare;
mod doctor;
mod dry_run;
mod graph;
mod kernel;
mod model;
mod recipe;
mod selftest;
mod train;

use clap::{Parser, Subcommand};
use cltlab::prelude::*;

#[derive(Parser)]
#[command(version, about = "Cross-layer transcoders and attribution graphs", arg_required_else_help = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a model and print the likeliest next tokens
    Run(model::RunArgs),
    /// Continue a prompt
    Generate(model::GenerateArgs),
    /// Train a CLT as a TOML file says
    Train(train::TrainArgs),
    /// Evaluate a CLT on held-out text
    Eval(train::EvalArgs),
    /// Explain a prompt's next token: an attribution graph
    Attribute(graph::AttributeArgs),
    /// Change features and see what happens to the outputs
    Intervene(graph::InterveneArgs),
    /// Look at a CLT, convert it between formats, run it on a prompt
    Clt(clt::CltArgs),
    /// Explain why a head looked where it did: its score, split over pairs of features
    Attention(attention::AttentionArgs),
    /// Lay the graphs of several prompts over each other: their difference, or their mean
    Compare(compare::CompareArgs),
    /// Does changing groups of features do what the graph says? Predicted, measured, random features
    Check(check::CheckArgs),
    /// The Jupyter kernel
    Kernel(kernel::KernelArgs),
    /// Say what is missing and how to get it
    Doctor,
    /// Check that a device computes what it should
    Selftest(selftest::SelftestArgs),
    /// Time the hot paths
    Bench(bench::BenchArgs),
}

fn main() -> std::process::ExitCode {
    cltlab::notebook::live::install();
    let done: Result<()> = match Program::parse().command {
        Command::Run(args) => model::run(&args),
        Command::Generate(args) => model::generate(&args),
        Command::Train(args) => train::train(&args),
        Command::Eval(args) => train::eval(&args),
        Command::Attribute(args) => graph::attribute(&args),
        Command::Intervene(args) => graph::intervene(&args),
        Command::Clt(args) => clt::clt(&args),
        Command::Attention(args) => attention::attention(&args),
        Command::Check(args) => check::check(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Kernel(args) => kernel::kernel(&args),
        Command::Doctor => doctor::doctor(),
        Command::Selftest(args) => selftest::selftest(&args),
        Command::Bench(args) => bench::bench(&args),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
