//! `cltlab`: the notebook's steps as commands, for terminals and batch jobs.
//!
//! Parse, install a progress line, do one thing, print errors in one place.
//!
//! Exit status: 0 done; 1 an error, printed; 2 a command line that cannot be read; 75 (`EX_TEMPFAIL`)
//! ended early by a signal, with what was reached written down: `cltlab train --resume` goes on.

// The standard macros panic when standard output is closed; these write through `out`.
macro_rules! println {
    ($($text:tt)*) => { crate::out::line(format_args!($($text)*)) };
}
macro_rules! eprintln {
    ($($text:tt)*) => { crate::out::aside(format_args!($($text)*)) };
}

mod attention;
mod bench;
mod clt;
mod check;
mod compare;
mod doctor;
mod dry_run;
mod environment;
mod graph;
mod kernel;
mod model;
mod out;
mod recipe;
mod reports;
mod resume;
mod selftest;
mod states;
mod train;
mod view;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use cltlab::prelude::*;

/// What holds for all commands.
const NOTES: &str = "Outputs (-o, --raw): - is standard output, and the text goes to standard error then; a link is followed; a pipe or a device is written to, never replaced; a file is replaced whole or not at all.
Exit status: 0 done; 1 an error; 2 a command line that cannot be read; 75 a training or an evaluation ended early by SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2: what was reached is written, train --resume goes on.";

#[derive(Parser)]
#[command(version, about = "Cross-layer transcoders and attribution graphs", arg_required_else_help = true, after_help = NOTES)]
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
    /// Lay the graphs of several prompts over each other: their difference, or their mean; compare reports: the evaluations of several CLTs as one table
    Compare(compare::CompareArgs),
    /// The evaluations of several CLTs as one table
    #[command(hide = true, override_usage = "cltlab compare reports [OPTIONS] <REPORTS>...")]
    CompareReports(reports::ReportsArgs),
    /// Does changing groups of features do what the graph says? Predicted, measured, random features
    Check(check::CheckArgs),
    /// Say what is known about the small model that comes with this program, or what a CLT of it says about it
    States(states::StatesArgs),
    /// Show a folder's graphs in a browser, on this machine only
    View(view::ViewArgs),
    /// The Jupyter kernel
    Kernel(kernel::KernelArgs),
    /// Say what is missing and how to get it
    Doctor,
    /// Check that a device computes what it should
    Selftest(selftest::SelftestArgs),
    /// Time the hot paths
    Bench(bench::BenchArgs),
}

/// Exit status after SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 ended a training or an evaluation early.
const STOPPED: u8 = 75;

/// Negative numbers are values in all commands, not options.
fn with_numbers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg });
    command.mut_subcommands(with_numbers)
}

/// The command line, with `compare reports` as the one word that names its command.
fn arguments() -> Vec<std::ffi::OsString> {
    let mut all: Vec<_> = std::env::args_os().collect();
    if all.get(1).is_some_and(|word| word == "compare") && all.get(2).is_some_and(|word| word == "reports") {
        all.splice(1..3, ["compare-reports".into()]);
    }
    all
}

fn main() -> std::process::ExitCode {
    // A limit on the size of files becomes an error of the write instead of the process's end.
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let matches = with_numbers(Program::command()).try_get_matches_from(arguments());
    let program = match matches.and_then(|matches| Program::from_arg_matches(&matches)) {
        Ok(program) => program,
        Err(error) => {
            if let Err(fault) = error.print() {
                out::keep(fault);
            }
            return out::end().map_or_else(|fault| failed(&fault), |()| std::process::ExitCode::from(error.exit_code() as u8));
        }
    };
    out::begin();
    cltlab::internal::install_live();
    let done: Result<()> = match program.command {
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
        Command::States(args) => states::states(&args),
        Command::View(args) => view::view(&args),
        Command::CompareReports(args) => reports::reports(&args),
        Command::Kernel(args) => kernel::kernel(&args),
        Command::Doctor => doctor::doctor(),
        Command::Selftest(args) => selftest::selftest(&args),
        Command::Bench(args) => bench::bench(&args),
    };
    let printed = out::end();
    if let (Err(_), Err(fault)) = (&done, &printed) {
        eprintln!("error: {fault}");
    }
    match done.and(printed) {
        Ok(()) if progress::stop_requested() => std::process::ExitCode::from(STOPPED),
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> std::process::ExitCode {
    eprintln!("error: {}", out::bounded(&error.to_string()));
    std::process::ExitCode::FAILURE
}
