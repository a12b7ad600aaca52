//! `cltlab kernel install`: tells Jupyter about the kernel.

use super::environment;
use clap::{Args, Subcommand};
use cltlab::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub struct KernelArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write the kernelspec "Rust (cltlab)" for Jupyter
    Install {
        /// For this user only, in Jupyter's data folder
        #[arg(long, conflicts_with = "prefix")]
        user: bool,
        /// Under PREFIX/share/jupyter; the default is the prefix of the python3 on PATH
        #[arg(long)]
        prefix: Option<PathBuf>,
        /// The kernel whose cells use a GPU, beside the other: "Rust (cltlab, CUDA)", made ready by ./x build-cuda --kernel
        #[arg(long)]
        cuda: bool,
    },
}

pub fn kernel(args: &KernelArgs) -> Result<()> {
    let Action::Install { user, prefix, cuda } = &args.action;
    let data = match (user, prefix) {
        (true, _) => user_data()?,
        (false, Some(prefix)) => prefix.join("share/jupyter"),
        (false, None) => PathBuf::from(python("import sys; print(sys.prefix)")?).join("share/jupyter"),
    };
    let (folder, name) = if *cuda { ("kernels/cltlab-cuda", "Rust (cltlab, CUDA)") } else { ("kernels/cltlab", "Rust (cltlab)") };
    let folder = data.join(folder);
    cltlab::internal::files::create_folder(&folder)?;
    let program = program()?;
    let mut env = serde_json::json!({"CLTLAB_ROOT": root()});
    if *cuda {
        env["CLTLAB_CUDA"] = "1".into();
    }
    let spec = serde_json::json!({
        "argv": [program, "{connection_file}"],
        "display_name": name,
        "language": "rust",
        "interrupt_mode": "message",
        "env": env,
        "metadata": {"debugger": false},
    });
    cltlab::internal::files::write_json(folder.join("kernel.json"), &spec)?;
    println!("installed the kernel \"{name}\" in {}", folder.display());
    Ok(())
}

/// The project's folder: what this program was built from, unless `CLTLAB_ROOT` says otherwise.
pub fn root() -> PathBuf {
    let built_from = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default();
    environment::root().unwrap_or_else(built_from)
}

/// The kernel's program, beside this one.
pub fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|error| Error::io("the path of this program", error))?;
    let path = own.with_file_name("cltlab-kernel");
    match path.exists() {
        true => Ok(path),
        false => Err(Error::new(ErrorKind::MissingFile, format!("{}: the kernel is not built", path.display())).help("run ./x setup")),
    }
}

/// Jupyter's data folder of this user.
pub fn user_data() -> Result<PathBuf> {
    if let Some(folder) = environment::jupyter_data() {
        return Ok(folder);
    }
    let home = environment::home()
        .ok_or_else(|| Error::expected(ErrorKind::MissingFile, "environment variable HOME", "nothing", "the user's folder"))?;
    let below = if cfg!(target_os = "macos") { "Library/Jupyter" } else { ".local/share/jupyter" };
    Ok(home.join(below))
}

/// What a line of Python prints.
pub fn python(line: &str) -> Result<String> {
    let output = Command::new("python3").args(["-c", line]).output().map_err(|error| Error::io("python3", error).help("install Python 3.10 or later"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
