//! `cltlab-kernel`: Rust notebooks for cltlab.
//!
//! evcxr compiles and runs the cells; this program adds what its own kernel lacks: displays while
//! a cell runs, errors that are errors, an interrupt that keeps the variables, and a start that
//! finds the library built. One program, four roles:
//!
//! - the kernel (`cltlab-kernel CONNECTION_FILE`): [`server`] speaks Jupyter's protocol,
//!   [`sockets`] drops what is not signed, [`activity`] says busy and idle, [`interrupts`] ends a cell,
//!   [`engine`] owns evcxr on a thread of its own, [`outputs`] sorts what the cell prints;
//! - the two processes behind evcxr: the keeper of its pipes ([`keeper`]) and the one in which cells run
//!   ([`child`]), which understand each other by [`marks`]; a cell's stdin is theirs too ([`stdin`]);
//! - the `cargo` in front of cargo, for a quick start and quick cells ([`cargo`], [`library`]);
//! - the preparation of the build folder (`cltlab-kernel --prebuild`; [`folders`], [`tools`]).

mod activity;
mod cargo;
mod child;
mod engine;
mod environment;
mod errors;
mod folders;
mod input;
mod interrupts;
mod keeper;
mod library;
mod marks;
mod messages;
mod outputs;
mod server;
mod sockets;
mod stdin;
mod tools;

use std::process::ExitCode;

fn main() -> ExitCode {
    child::become_child_if_asked();
    let argument = std::env::args().nth(1);
    let served = |done: anyhow::Result<()>| done.map(|()| ExitCode::SUCCESS);
    let done = match argument.as_deref() {
        _ if cargo::is_asked_to_record() => cargo::record(),
        // evcxr sets the compiler's flags itself.
        Some("--cargo") => folders::take_environment().and_then(|()| cargo::run(&std::env::args_os().skip(2).collect::<Vec<_>>())),
        Some("--prebuild") => served(folders::prebuild()),
        Some(connection) if !connection.starts_with('-') => served(folders::take_environment().and_then(|()| server::serve(connection.as_ref()))),
        _ => Err(anyhow::anyhow!("usage: cltlab-kernel CONNECTION_FILE | --prebuild")),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cltlab-kernel: {error:#}");
        ExitCode::FAILURE
    })
}
