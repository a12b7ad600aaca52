//! `cltlab doctor`: what is there, what is missing, and how to get it.

use super::kernel;
use cltlab::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Finding {
    part: &'static str,
    /// What was found, or `None` when it is missing.
    found: Option<String>,
    required: bool,
    fix: &'static str,
}

impl Finding {
    /// What was found does not do when the first number in it is below `least`.
    fn at_least(mut self, least: [u32; 2]) -> (Self, Option<String>) {
        let old = self.found.take_if(|text| version(text).is_some_and(|found| found < least));
        (self, old)
    }
}

/// The first `a.b` in a text.
fn version(text: &str) -> Option<[u32; 2]> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.')).find_map(|word| {
        let mut parts = word.split('.').map(str::parse::<u32>);
        Some([parts.next()?.ok()?, parts.next()?.ok()?])
    })
}

/// The first line that a command prints, when it runs and succeeds.
fn says(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_string)
}

/// A shared library in `LD_LIBRARY_PATH`, the usual folders, or beside a Python on PATH.
fn library(name: &str) -> Option<String> {
    let usual = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/cuda/lib64", "/usr/lib/wsl/lib"];
    let mut folders = super::environment::library_folders();
    folders.extend(usual.map(PathBuf::from));
    folders.extend(cltlab::device::library_folders());
    let path = folders.into_iter().map(|folder| folder.join(name)).find(|path| path.exists())?;
    Some(path.display().to_string())
}

/// Whether this program can use a GPU.
const BUILT: bool = cfg!(feature = "cuda");

/// The devices that the driver has, where this program can use them.
fn gpus() -> Option<String> {
    let count = cltlab::device::cuda_devices().ok().filter(|&count| count > 0)?;
    let device = match cltlab::device::cuda(0) {
        Ok(_) => "the first can be opened".to_string(),
        Err(error) => error.to_string(),
    };
    Some(format!("{count}; {device}"))
}

/// A library of NVIDIA's toolkit by the names that are tried when it is used.
fn toolkit(name: &str) -> Option<String> {
    ["", ".13", ".12", ".11", ".10"].into_iter().find_map(|version| library(&format!("lib{name}.so{version}")))
}

fn rust_sources() -> Option<String> {
    let path = Path::new(&says("rustc", &["--print", "sysroot"])?).join("lib/rustlib/src/rust/library");
    path.exists().then(|| path.display().to_string())
}

fn kernelspec() -> Option<String> {
    let listed = kernel::python("import json, os, jupyter_core.paths as p; print(json.dumps(p.jupyter_path('kernels')))").ok()?;
    let folders: Vec<String> = serde_json::from_str(&listed).unwrap_or_default();
    folders.iter().find_map(|folder| {
        let spec: serde_json::Value = cltlab::internal::files::read_json(Path::new(folder).join("cltlab/kernel.json")).ok()?;
        let program = spec["argv"][0].as_str().filter(|program| Path::new(program).exists())?;
        Some(format!("{folder}/cltlab -> {program}"))
    })
}

pub fn doctor() -> Result<()> {
    let prepared = kernel::root().join("target/notebook/ready");
    let needed = version(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default();
    let findings = [
        Finding { part: "Rust compiler", found: says("rustc", &["--version"]), required: true, fix: concat!("https://rustup.rs (", env!("CARGO_PKG_RUST_VERSION"), " or later): rustup update stable") },
        Finding { part: "cargo", found: says("cargo", &["--version"]), required: true, fix: "https://rustup.rs" },
        Finding { part: "Rust sources", found: rust_sources(), required: true, fix: "rustup component add rust-src (cells' types are inferred from them)" },
        Finding { part: "C linker", found: says("cc", &["--version"]), required: true, fix: "apt install gcc, or conda install c-compiler" },
        Finding { part: "Python", found: says("python3", &["--version"]), required: true, fix: "apt install python3 python3-venv (3.10 or later)" },
        Finding {
            part: "Jupyter client",
            found: kernel::python("import jupyter_client; print('jupyter_client', jupyter_client.__version__)").ok().filter(|text| !text.is_empty()),
            required: true,
            fix: "pip install jupyterlab, or ./x lab, which does it in a private environment",
        },
        Finding { part: "kernel program", found: kernel::program().ok().map(|path| path.display().to_string()), required: true, fix: "./x setup" },
        Finding { part: "notebook build", found: prepared.exists().then(|| prepared.display().to_string()), required: true, fix: "./x setup" },
        Finding { part: "kernelspec", found: kernelspec(), required: true, fix: "cltlab kernel install (--user)" },
        Finding { part: "NVIDIA driver", found: says("nvidia-smi", &["-L"]).or_else(|| library("libcuda.so.1")), required: false, fix: "only for CUDA: the system's NVIDIA driver" },
        Finding { part: "GPU", found: gpus(), required: false, fix: if BUILT { "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES" } else { "this program is built without CUDA: ./x build-cuda" } },
        Finding { part: "cuBLAS", found: toolkit("cublas"), required: false, fix: "only for CUDA: pip install nvidia-cublas==13.* into the environment that is active, or conda install libcublas" },
        Finding { part: "cuRAND", found: toolkit("curand"), required: false, fix: "only for CUDA: pip install nvidia-curand==10.4.*, or conda install libcurand" },
        Finding { part: "CUDA compiler", found: says("nvcc", &["--version"]), required: false, fix: "only to build for CUDA: ./x build-cuda fetches one of its own" },
    ];
    let mut lacking = Vec::new();
    for finding in findings {
        let (finding, old) = match finding.part {
            "Rust compiler" => finding.at_least(needed),
            "Python" => finding.at_least([3, 10]),
            _ => (finding, None),
        };
        match (&finding.found, finding.required) {
            (Some(found), _) => println!("ok       {:<16} {found}", finding.part),
            (None, _) if old.is_some() => {
                println!("OLD      {:<16} {}; {}", finding.part, old.unwrap_or_default(), finding.fix);
                lacking.push(finding.part);
            }
            (None, true) => {
                println!("MISSING  {:<16} {}", finding.part, finding.fix);
                lacking.push(finding.part);
            }
            (None, false) => println!("absent   {:<16} {}", finding.part, finding.fix),
        }
    }
    if let Some(bytes) = cltlab::device::free_memory() {
        println!("{} {:<16} {:.1} GiB free (SmolLM2-135M and a CLT of it train in about 4)", if bytes >= 4 << 30 { "ok      " } else { "LOW     " }, "memory", bytes as f64 / (1u64 << 30) as f64);
    }
    if let Some(bytes) = cltlab::device::free_disk(kernel::root()) {
        println!("{} {:<16} {:.1} GiB free (a build takes about 9, one with CUDA 3 more)", if bytes >= 10 << 30 { "ok      " } else { "LOW     " }, "disk", bytes as f64 / (1u64 << 30) as f64);
    }
    match lacking.is_empty() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Unsupported, format!("missing or too old: {}", lacking.join(", ")))),
    }
}
