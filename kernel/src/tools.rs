//! Tools in front of the real ones, on the kernel's own PATH.
//!
//! evcxr first evaluates `42` in a crate without dependencies, and cargo then drops every pinned
//! version from the lock file; and it asks for metadata of all platforms, whose packages nobody
//! downloaded. A `cargo` of three lines puts the prepared lock file back and asks for this platform
//! only; a `rustup` of three lines leads evcxr to that `cargo`.

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
    let script = format!(
        "#!/bin/sh\ncmp -s {lock} Cargo.lock || cp {lock} Cargo.lock\n\
         case \" $* \" in *' metadata '*) exec {cargo} \"$@\" --filter-platform {host} ;; esac\nexec {cargo} \"$@\"\n",
        lock = quoted(lock),
        cargo = quoted(&cargo)
    );
    write_script(&ours, &script)?;
    if let Some(rustup) = rustup {
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *'which cargo'*) echo {} ;; *) exec {} \"$@\" ;; esac\n",
            quoted(&ours),
            quoted(&rustup)
        );
        write_script(&bin.join("rustup"), &script)?;
    }
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(bin).chain(std::env::split_paths(&rest));
    Ok(std::env::join_paths(paths)?)
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
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|folder| folder.join(tool)).find(|path| path.is_file())
}

fn line_of(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_string)
}
