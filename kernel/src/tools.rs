//! Tools in front of the real ones, on the kernel's own PATH.
//!
//! A `cargo` of one line calls this program's own ([`crate::cargo`]), and a `rustup` of one line leads
//! evcxr to it. rust-analyzer looks in `$CARGO_HOME/bin` first, so the kernel's folder is its
//! `CARGO_HOME`, and the real one is given back to the real cargo.

use crate::environment;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes the tools into `folder/bin` and returns the PATH that begins with it. `lock` is the
/// prepared lock file, `host` the platform.
pub fn write(folder: &Path, lock: &Path, host: &str) -> Result<OsString> {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin)?;
    let rustup = find("rustup");
    let cargo = rustup.as_deref().and_then(|rustup| line_of(rustup, &["which", "cargo"])).map(PathBuf::from).or_else(|| find("cargo"));
    let cargo = cargo.context("cargo was not found; install Rust from rustup.rs")?;
    let ours = bin.join("cargo");
    let home = match environment::get("CARGO_HOME") {
        Some(home) => format!("export CARGO_HOME={}", quoted(Path::new(&home))),
        None => "unset CARGO_HOME".to_string(),
    };
    let words = [&std::env::current_exe()?, Path::new("--cargo"), &cargo, lock, Path::new(host)].map(quoted).join(" ");
    let script = format!("#!/bin/sh\n{home}\nexec {words} \"$@\"\n");
    write_script(&ours, &script)?;
    if let Some(rustup) = rustup {
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *'which cargo'*) echo {} ;; *) exec {} \"$@\" ;; esac\n",
            quoted(&ours),
            quoted(&rustup)
        );
        write_script(&bin.join("rustup"), &script)?;
    }
    let paths = std::iter::once(bin).chain(environment::program_folders());
    Ok(std::env::join_paths(paths)?)
}

/// In the child: what a cell starts finds the user's `CARGO_HOME`.
pub fn give_back_cargo_home() {
    // SAFETY: called at the start of the process, before another thread.
    unsafe {
        match environment::get(environment::CARGO_HOME_BEFORE) {
            Some(home) => environment::set("CARGO_HOME", home),
            None => environment::remove("CARGO_HOME"),
        }
    }
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A path in single quotes for the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

pub fn find(tool: &str) -> Option<PathBuf> {
    environment::program_folders().into_iter().map(|folder| folder.join(tool)).find(|path| path.is_file())
}

fn line_of(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_string)
}
