//! The `cargo` that evcxr and rust-analyzer find first on the kernel's PATH.
//!
//! It stands before the real one for seven things:
//!
//! - evcxr first evaluates `42` in a crate without dependencies, and cargo then drops every pinned
//!   version from the lock file: the prepared lock file is put back.
//! - rust-analyzer infers a variable's type only after it has read every crate of the graph, most
//!   of which no cell can name. It is shown the library, what the library's signatures name, and
//!   whatever the user added. (Start to first result: 18 s with all of them, 12 s so.)
//! - It asks for packages of all platforms, which nobody downloaded: this one's only.
//! - Between two cells only the cell's own source changes. cargo's share of a build (reading 250
//!   packages to find them unchanged) is then skipped: the compiler is called as cargo last did.
//! - For the words of some errors evcxr runs `cargo check`, which would compile every dependency a
//!   second time; the built ones serve.
//! - A dependency that changes the features of what the library is made of would build the library anew beside the one
//!   that is loaded: it is refused, before anything is compiled, and the variables live on ([`library`]).
//! - evcxr's marks in a cell's source are sealed ([`crate::marks`]), and in what it only checks a variable of type
//!   `&str` is what it is in a cell, `&'static str`: otherwise an error about its lifetime stands for the true one.

use crate::environment::{self, BUILT, RECORD};
use crate::library;
use crate::marks::Seal;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Packages that rust-analyzer reads for cltlab's cells.
const NAMEABLE: [&str; 10] = ["cltlab", "cltlab-dylib", "candle-core", "candle-nn", "half", "num-traits", "safetensors", "serde", "serde_core", "serde_json"];
/// And those of the standard library.
const STANDARD: [&str; 8] = ["core", "alloc", "std", "hashbrown", "proc_macro", "rustc-std-workspace-core", "rustc-std-workspace-alloc", "rustc-std-workspace-std"];

/// Runs as cargo: `arguments` are the real cargo, the prepared lock file, the platform, and
/// cargo's own arguments.
pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let [cargo, lock, host, rest @ ..] = arguments else { anyhow::bail!("too few arguments for cargo") };
    let has = |word: &str| rest.iter().any(|argument| argument == word);
    let prepared = std::fs::read(lock).with_context(|| lock.display().to_string())?;
    if std::fs::read("Cargo.lock").ok().as_ref() != Some(&prepared) {
        std::fs::write("Cargo.lock", &prepared)?;
    }
    let checks = has("check");
    let mut command = Command::new(cargo);
    command.args(rest.iter().map(|word| if word == "check" { OsStr::new("build") } else { word }));
    if has("metadata") {
        let output = command.arg("--filter-platform").arg(host).stderr(Stdio::inherit()).output().context("cargo")?;
        let shown = serde_json::from_slice(&output.stdout).map(|metadata| shown(metadata).to_string().into_bytes());
        std::io::Write::write_all(&mut std::io::stdout(), &shown.unwrap_or(output.stdout))?;
        return Ok(code(output.status));
    }
    if checks || has("build") {
        if let Ok(source) = std::fs::read_to_string("src/lib.rs") {
            let sealed = static_parameters(&Seal::of_environment().seal_source(&source));
            if sealed != source {
                std::fs::write("src/lib.rs", sealed)?;
            }
        }
        let call = PathBuf::from("target/cell-rustc.json");
        let state = state(rest)?;
        if let Some(recorded) = read(&call).filter(|recorded| recorded["state"] == state) {
            return replay(&recorded, checks);
        }
        let own = only_the_library(&std::fs::read_to_string("Cargo.toml")?);
        if let Some(words) = if own { None } else { library::difference(cargo, host, has("--offline")) } {
            eprintln!("error: {words}");
            return Ok(ExitCode::FAILURE);
        }
        let _ = std::fs::remove_file(&call);
        command.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?).env(RECORD, std::path::absolute(&call)?);
        let status = command.status().context("cargo")?;
        if status.success() && !library::is_the_first(host)? {
            eprintln!("error: {}", library::BUILT_ANEW);
            let _ = std::fs::remove_file(&call);
            return Ok(ExitCode::FAILURE);
        }
        if status.success() && own {
            if let Some(mut recorded) = read(&call) {
                recorded["state"] = state;
                std::fs::write(&call, recorded.to_string())?;
            }
        }
        return Ok(code(status));
    }
    Ok(code(command.status().context("cargo")?))
}

/// True when cargo calls this program as the compiler's wrapper.
pub fn is_asked_to_record() -> bool {
    environment::get(RECORD).is_some() && std::env::args().nth(1).is_some_and(|first| first.ends_with("rustc"))
}

/// Runs as the compiler's wrapper: writes down how cargo compiles the cell.
pub fn record() -> Result<ExitCode> {
    let file = environment::get(RECORD).context(RECORD)?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.windows(2).any(|pair| pair[0] == "--crate-name" && pair[1] == "ctx") {
        // cargo's job server is gone when the call is repeated.
        let set = |name: &str| (name.starts_with("CARGO") && name != "CARGO_MAKEFLAGS") || name == "LD_LIBRARY_PATH";
        let environment: Vec<_> = environment::all().into_iter().filter(|(name, _)| set(name)).collect();
        std::fs::write(file, json!({"arguments": arguments, "environment": environment}).to_string())?;
    }
    let (compiler, rest) = arguments.split_first().context("no compiler to call")?;
    Ok(code(Command::new(compiler).args(rest).env_remove(RECORD).status().context("rustc")?))
}

/// All that decides how a cell is compiled, save its source.
fn state(arguments: &[OsString]) -> Result<Value> {
    let flags: Vec<_> = ["RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER"].map(|name| environment::text(name).unwrap_or_default()).into();
    let arguments: Vec<_> = arguments.iter().filter(|word| *word != "check" && *word != "build").map(|word| word.to_string_lossy().into_owned()).collect();
    Ok(json!({"manifest": std::fs::read_to_string("Cargo.toml")?, "flags": flags, "arguments": arguments}))
}

/// True when the library is the one dependency that lies in a folder: another could be edited
/// between two cells, and cargo must look.
fn only_the_library(manifest: &str) -> bool {
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or("");
    dependencies.contains("cltlab") && dependencies.matches("path").count() == 1
}

fn replay(recorded: &Value, checks: bool) -> Result<ExitCode> {
    let texts = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>();
    let arguments = texts(&recorded["arguments"]);
    let (compiler, rest) = arguments.split_first().context("an empty record of the compiler's call")?;
    let environment = recorded["environment"].as_array().into_iter().flatten().map(texts);
    let mut command = Command::new(compiler);
    command.args(rest.iter().map(|word| if checks && word.starts_with("--emit") { "--emit=metadata" } else { word })).envs(environment.filter_map(|pair| <[String; 2]>::try_from(pair).ok()).map(|[name, value]| (name, value)));
    // evcxr reads the compiler's own messages on stderr as it reads cargo's on stdout.
    let status = command.status().context("rustc")?;
    if status.success() && !checks {
        let folder = rest.windows(2).find(|pair| pair[0] == "--out-dir").map(|pair| Path::new(&pair[1]));
        let built = folder.context("no --out-dir in the compiler's call")?.join("libctx.so");
        std::fs::write(environment::get(BUILT).context(BUILT)?, built.display().to_string())?;
    }
    Ok(code(status))
}

/// The source that evcxr has checked, with the references among its parameters, which are the variables of earlier
/// cells, made static. Any other source stays as it is.
fn static_parameters(source: &str) -> String {
    const BEFORE: &str = "\nasync fn evcxr_analysis_wrapper(\n";
    const AFTER: &str = "\n) -> Result<(), EvcxrUserCodeError> {\n";
    let Some((before, rest)) = source.split_once(BEFORE) else { return source.to_string() };
    let Some((parameters, after)) = rest.split_once(AFTER) else { return source.to_string() };
    let mut made = String::new();
    let mut pieces = parameters.split('&');
    made.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        made.push_str(if piece.starts_with('\'') { "&" } else { "&'static " });
        made.push_str(piece);
    }
    format!("{before}{BEFORE}{made}{AFTER}{after}")
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn code(status: std::process::ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// `cargo metadata`'s answer without the packages that no cell can name: those reached only
/// through a package of [`NAMEABLE`] that are not in it themselves.
fn shown(mut metadata: Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(&metadata["packages"]);
    let named = |names: &[&str]| -> HashSet<String> {
        packages.iter().filter(|package| names.contains(&package["name"].as_str().unwrap_or_default())).map(|package| text(&package["id"])).collect()
    };
    let nodes = list(&metadata["resolve"]["nodes"]);
    let standard = named(&["core"]).len() + named(&["std"]).len() == 2;
    if nodes.is_empty() || !(standard || !named(&["cltlab"]).is_empty()) {
        return metadata;
    }
    let nameable = if standard { named(&STANDARD) } else { named(&NAMEABLE) };
    let follows = |from: &Value, to: &Value| !nameable.contains(&text(&from["id"])) || nameable.contains(&text(to));
    let mut kept = if standard { nameable.clone() } else { HashSet::new() };
    let mut open = if standard { Vec::new() } else { vec![text(&metadata["resolve"]["root"])] };
    while let Some(id) = open.pop() {
        let Some(node) = nodes.iter().find(|node| text(&node["id"]) == id).filter(|_| kept.insert(id)) else { continue };
        open.extend(list(&node["deps"]).iter().map(|dep| &dep["pkg"]).filter(|to| follows(node, to)).map(text));
    }
    let nodes = nodes.into_iter().filter(|node| kept.contains(&text(&node["id"]))).map(|mut node| {
        let goes = |to: &Value| kept.contains(&text(to)) && follows(&node, to);
        let deps: Vec<_> = list(&node["deps"]).into_iter().filter(|dep| goes(&dep["pkg"])).collect();
        let dependencies: Vec<_> = list(&node["dependencies"]).into_iter().filter(|to| goes(to)).collect();
        node["deps"] = json!(deps);
        node["dependencies"] = json!(dependencies);
        node
    });
    metadata["resolve"]["nodes"] = nodes.collect();
    metadata["packages"] = packages.iter().filter(|package| kept.contains(&text(&package["id"]))).cloned().collect();
    metadata
}

#[cfg(test)]
mod tests {
    #[test]
    fn references_among_the_variables_are_static_where_a_cell_is_checked() {
        let source = |text: &str| format!("use x;\nasync fn evcxr_analysis_wrapper(\nwords: {text},\nmut n: i32,\n) -> Result<(), EvcxrUserCodeError> {{\nlet f = |t: &str| t.len();\n");
        assert_eq!(super::static_parameters(&source("&str")), source("&'static str"));
        assert_eq!(super::static_parameters(&source("Vec<&'static str>")), source("Vec<&'static str>"));
        assert_eq!(super::static_parameters("fn f(t: &str) {}"), "fn f(t: &str) {}");
    }
}
