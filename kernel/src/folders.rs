//! Build folders: one prepared, one of its own for each kernel.
//!
//! `target/notebook/` lies beside the workspace's build. Cells are compiled with the workspace's
//! flags and profile, so that candle and the rest, built once for library and tests, serve the
//! notebook too; `--prebuild` adds the library as cells see it. A starting kernel links these files
//! into a folder of its own (links, not copies: milliseconds), leaving out whatever a cell's build
//! rewrites, so two kernels never touch each other's files.
//!
//! With `CLTLAB_CUDA=1` in the environment cells use the library with CUDA: the same in `target/notebook-cuda/`, over
//! the build that `./x build-cuda --kernel` makes, with that build's compiler settings.

use crate::environment::{self, cuda};
use crate::library::{self, PARTS};
use crate::tools;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The compiler's flags for cells and what they use; that of CUDA has NVIDIA's libraries opened when they are used.
fn flags() -> &'static str {
    if cuda() { "-Cprefer-dynamic --cfg feature=\"dynamic-loading\"" } else { "-Cprefer-dynamic" }
}

/// What the build scripts of the CUDA crates look at: any other value and they would run anew.
const TOOLKIT: [&str; 8] = ["CUDA_COMPUTE_CAP", "CUDARC_CUDA_VERSION", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDNN_LIB", "NVCC"];

/// Sets the environment for cells with CUDA as it was when their library was prepared. To be called before there are
/// threads; does nothing without CUDA, or before it is prepared.
pub fn take_environment() -> Result<()> {
    if !cuda() {
        return Ok(());
    }
    let file = notebook(&root()?).join("toolkit.json");
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    let kept: BTreeMap<String, String> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    // SAFETY: no other thread runs yet.
    unsafe {
        TOOLKIT.iter().for_each(|name| environment::remove(name));
        kept.iter().for_each(|(name, value)| environment::set(name, value));
        environment::set("RUSTFLAGS", flags());
    }
    Ok(())
}

/// The dependency line of a cell.
pub fn dependency(root: &Path) -> String {
    let features = if cuda() { ", features = [\"cuda\"]" } else { "" };
    format!("cltlab = {{ package = \"cltlab-dylib\", path = {:?}{features} }}", root.join("kernel/cells").display().to_string())
}

/// The project's root: `CLTLAB_ROOT`, or the folder above the build folder this program lies in.
pub fn root() -> Result<PathBuf> {
    if let Some(root) = environment::path(environment::ROOT) {
        return Ok(root);
    }
    let exe = std::env::current_exe()?;
    let found = exe.ancestors().find(|folder| folder.join("crate/src/lib.rs").exists());
    found.map(Path::to_path_buf).context("cltlab's folder was not found from the kernel's place; set CLTLAB_ROOT to it")
}

/// What prepares the build folder.
pub fn remedy() -> &'static str {
    if cuda() { "./x build-cuda --kernel" } else { "./x setup" }
}

fn notebook(root: &Path) -> PathBuf {
    root.join(if cuda() { "target/notebook-cuda" } else { "target/notebook" })
}

/// Compiles the library as cells see it.
pub fn prebuild() -> Result<()> {
    let root = root()?;
    let base = notebook(&root);
    let own = base.join("prepared");
    std::fs::create_dir_all(own.join("src"))?;
    std::fs::create_dir_all(base.join(".cargo"))?;
    // What evcxr writes into a cell's manifest would build every dependency anew; this puts the
    // workspace's profile over it, and leaves only the cell itself unoptimised.
    let profile = "[profile.dev]\nopt-level = 3\ndebug-assertions = false\noverflow-checks = false\n\n[profile.dev.package.ctx]\nopt-level = 0\n";
    std::fs::write(base.join(".cargo/config.toml"), profile)?;
    std::fs::copy(root.join("Cargo.lock"), own.join("Cargo.lock"))?;
    let manifest = format!(
        "[package]\nname = \"ctx\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = [\"cdylib\"]\n\n[profile.dev]\n\
         opt-level = 2\ndebug = false\nstrip = \"debuginfo\"\nrpath = true\nlto = false\ndebug-assertions = true\ncodegen-units = 16\n\
         panic = 'unwind'\nincremental = true\noverflow-checks = true\n\n[workspace]\n\n[dependencies]\n{}\n",
        dependency(&root)
    );
    std::fs::write(own.join("Cargo.toml"), manifest)?;
    std::fs::write(own.join("src/lib.rs"), "pub use cltlab::prelude::*;\n")?;
    let host = host()?;
    let built = root.join(if cuda() { "target/cuda/notebook" } else { "target" });
    link_build(&built, &own.join("target"), &host, is_ours)?;
    let status = Command::new("cargo")
        .args(["build", "--offline", "--target", &host])
        .current_dir(&own)
        .env("CARGO_TARGET_DIR", "target")
        .env("CARGO_BUILD_BUILD_DIR", "target")
        .env("RUSTFLAGS", flags())
        .status()
        .context("cargo could not be started")?;
    if !status.success() {
        bail!("the library could not be built for notebooks ({status})");
    }
    let parts: Vec<String> = library::parts(OsStr::new("cargo"), &own, OsStr::new(&host), true).context("cargo tree does not answer")?.into_iter().collect();
    // Kernels that run now stay good when nothing was built anew.
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let library = shared_library(&own.join("target").join(&host))?;
    if changed(&base.join("ready")).is_none_or(|ready| changed(&library).is_none_or(|library| library > ready)) {
        std::fs::copy(own.join("Cargo.lock"), base.join("Cargo.lock"))?;
        if cuda() {
            let kept: BTreeMap<&str, String> = TOOLKIT.iter().filter_map(|name| Some((*name, environment::text(name)?))).collect();
            std::fs::write(base.join("toolkit.json"), serde_json::to_string_pretty(&kept)?)?;
        }
        std::fs::write(base.join(PARTS), parts.join("\n"))?;
        std::fs::write(base.join("ready"), "")?;
    }
    Ok(())
}

/// The shared library of a build for `host`.
pub fn shared_library(target: &Path) -> Result<PathBuf> {
    let folder = target.join("debug/deps");
    let inside = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let is_library = |name: &str| name.starts_with("libcltlab_") && name.ends_with(".so");
    let found = inside.flatten().find(|entry| is_library(&entry.file_name().to_string_lossy()));
    found.map(|entry| entry.path()).with_context(|| format!("{}: no shared library of cltlab", folder.display()))
}

/// The compiler's host triple.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc could not be started; install Rust from rustup.rs")?;
    if !output.status.success() {
        bail!("rustc does not run: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_string).context("rustc -vV names no host")
}

/// True when a source of the library is newer than the build of `prepared`, or when another build
/// was prepared since: a cell would rebuild the library and lose every variable's type.
pub fn is_stale(root: &Path, prepared: SystemTime) -> bool {
    fn newest(folder: &Path) -> Option<SystemTime> {
        let inside = std::fs::read_dir(folder).ok()?;
        inside
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                if path.is_dir() { newest(&path) } else { path.metadata().ok()?.modified().ok() }
            })
            .max()
    }
    let ready = notebook(root).join("ready").metadata().and_then(|ready| ready.modified());
    ready.ok() != Some(prepared) || ["crate", "kernel/cells"].iter().any(|folder| newest(&root.join(folder)).is_none_or(|newest| newest > prepared))
}

/// A kernel's own folder; removed when dropped.
pub struct OwnFolder {
    pub path: PathBuf,
    /// When the build that it links to was prepared.
    pub prepared: SystemTime,
    /// The PATH for evcxr.
    pub tools: OsString,
}

impl OwnFolder {
    /// Makes the folder for this process over the prepared build.
    pub fn make(root: &Path) -> Result<Self> {
        let base = notebook(root);
        if !base.join("ready").exists() {
            bail!("the notebook's build folder is not prepared; run {}", remedy());
        }
        remove_stale(&base);
        let path = base.join(format!("kernel-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let host = host()?;
        let prepared = base.join("ready").metadata()?.modified()?;
        let mut own = OwnFolder { path, prepared, tools: OsString::new() };
        // A cell's source and output are private to the user.
        std::fs::DirBuilder::new().mode(0o700).create(&own.path).with_context(|| own.path.display().to_string())?;
        std::fs::create_dir_all(own.path.join("src"))?;
        std::fs::copy(base.join("Cargo.lock"), own.path.join("Cargo.lock"))?;
        std::fs::copy(base.join(PARTS), own.path.join(PARTS))?;
        link_build(&base.join("prepared/target"), &own.path.join("target"), &host, is_cell)?;
        own.tools = tools::write(&own.path, &base.join("Cargo.lock"), &host)?;
        Ok(own)
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Files that a cell's build writes.
fn is_cell(name: &str) -> bool {
    let stem = name.trim_start_matches("lib");
    stem.starts_with("ctx-") || stem.starts_with("ctx.") || stem.starts_with("code_")
}

/// Files of this project's own packages: the library as cells see it has the same file name as the
/// workspace's, so it must not lie in the same folder.
fn is_ours(name: &str) -> bool {
    is_cell(name) || name.contains("cltlab") || name.starts_with("suite-")
}

/// Links a build's dependencies (host and target) into another target folder.
fn link_build(from: &Path, to: &Path, host: &str, leave_out: fn(&str) -> bool) -> Result<()> {
    for part in [PathBuf::from("debug"), PathBuf::from(host).join("debug")] {
        for kind in ["deps", "build", ".fingerprint"] {
            let source = from.join(&part).join(kind);
            link_all(&source, &to.join(&part).join(kind), leave_out).with_context(|| format!("linking {}", source.display()))?;
        }
    }
    Ok(())
}

fn link_all(from: &Path, to: &Path, leave_out: fn(&str) -> bool) -> std::io::Result<()> {
    if !from.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if leave_out(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            link_all(&source, &target, leave_out)?;
        } else if !target.exists() && std::fs::hard_link(&source, &target).is_err() {
            std::fs::copy(&source, &target)?;
            let times = source.metadata()?.modified()?;
            std::fs::File::options().write(true).open(&target)?.set_modified(times)?;
        }
    }
    Ok(())
}

/// Removes folders of kernels that no longer live.
fn remove_stale(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("kernel-").and_then(|pid| pid.parse::<i32>().ok()) else { continue };
        // SAFETY: signal 0 only asks whether the process exists. Another user's is there and may not be asked.
        let gone = unsafe { libc::kill(pid, 0) } != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
        if gone {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
