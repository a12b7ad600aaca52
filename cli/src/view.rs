//! `cltlab view`: a folder's graphs in a browser, on this machine only.
//!
//! | address | answer |
//! |---|---|
//! | `/` | the list of graphs: title, prompt, nodes, links |
//! | `/graph/NAME` | the picture of one |
//! | `/picture/NAME.svg` | that picture alone |
//! | `/graph-metadata.json`, `/data/graph-metadata.json` | the list as circuit-tracer's page reads it |
//! | `/graph_data/NAME.json`, `/data/NAME.json` | a graph's file |
//! | `/features/...` | feature files: `index.json.gz`, `layer_0.bin`, ...; parts by `Range` |
//!
//! The server listens on 127.0.0.1. A request must name that host (else a page elsewhere could read the answers through a
//! name that leads here), and a name must lead to a regular file in the folder.

mod answer;
mod folder;
mod page;

use clap::Args;
use cltlab::prelude::*;
use folder::Folder;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Args)]
pub struct ViewArgs {
    /// Folder of graphs, as attribute -o FOLDER/NAME.json writes them
    folder: PathBuf,
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 8032)]
    port: u16,
}

/// Threads that answer, so that a slow client stops no other.
const THREADS: usize = 4;

/// Serves until the process ends.
pub fn view(args: &ViewArgs) -> Result<()> {
    let folder = Arc::new(Folder::open(&args.folder)?);
    let server = tiny_http::Server::http(("127.0.0.1", args.port)).map_err(|error| {
        let free = "choose another port: --port 0 takes a free one";
        Error::wrap(ErrorKind::Io, format_args!("port {} of 127.0.0.1", args.port), error).help(free)
    })?;
    let address = server.server_addr();
    println!("{} at http://{address}/ (Ctrl-C ends)", args.folder.display());
    let server = Arc::new(server);
    let answering: Vec<_> = (0..THREADS)
        .map(|_| {
            let (server, folder) = (Arc::clone(&server), Arc::clone(&folder));
            std::thread::spawn(move || {
                for request in server.incoming_requests() {
                    answer::answer(&folder, request);
                }
            })
        })
        .collect();
    for thread in answering {
        thread.join().map_err(|_| Error::new(ErrorKind::Io, "view: a thread that answers requests ended"))?;
    }
    Ok(())
}
