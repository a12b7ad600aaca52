"""An ordinary crate outside this folder that depends on the library: builds it and trains a CLT with it.

python3 tests/outside.py [debug] [release] [lto] [abort] [shared] [check]: the builds to try, the first four by default; `abort` is release
with panic = "abort". `shared` uses this project's own profile, flags and target folder, so that only the library and the crate are compiled (3 CPU
minutes); `check`, for every test run, does not train, and only checks types there (half a CPU minute). CLTLAB_OUTSIDE names the folder for the crate and its build (default: target/outside), which is kept, so that
the dependencies are compiled once for debug and once for release. The first time takes about 25 CPU minutes.
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILDS = ["debug", "release", "lto", "abort"]
HERE = {"shared": "build", "check": "check"}

MANIFEST = """[package]
name = "outside"
version = "0.1.0"
edition = "2024"

[workspace]

[dependencies]
cltlab = {{ path = {root} }}

[profile.lto]
inherits = "release"
lto = true

[profile.abort]
inherits = "release"
panic = "abort"
"""

PROGRAM = """use cltlab::prelude::*;

fn main() -> Result<()> {
    let (layers, width, tokens) = (2, 16, 256);
    let mut state = 1_u64;
    let mut noise = |count: usize| -> Vec<f32> {
        let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0 };
        (0..count).map(|_| next()).collect()
    };
    let inputs: Vec<Vec<f32>> = (0..layers).map(|_| noise(tokens * width)).collect();
    let outputs = inputs.clone();
    let activations = Activations::from_memory(inputs, outputs, width)?;
    let shape = CltConfig { layers, width, features: 64, activation: Activation::TopK { k: 8 }, ..CltConfig::default() };
    let config = TrainConfig { steps: 60, batch_tokens: 64, ..TrainConfig::default() };
    let mut trainer = Trainer::new(&activations, &shape, &config)?;
    let history = trainer.run()?;
    let loss = |sample: Option<&cltlab::progress::TrainSample>| sample.map_or(f64::NAN, |sample| sample.reconstruction);
    println!("reconstruction {} -> {}", loss(history.samples.first()), loss(history.samples.last()));
    Ok(())
}
"""


def own(crate, build):
    """As a user's crate is built: with cargo's own flags, not those of .cargo/config.toml."""
    profile = "dev" if build == "debug" else build
    return ["--profile", profile], crate / "target" / build, {"RUSTFLAGS": "", "CARGO_TARGET_DIR": str(crate / "target")}


def shared():
    """Over what `./x test` has compiled."""
    host = re.search(r"host: (\S+)", subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout)[1]
    return ["--target", host], ROOT / "target" / host / "debug", {"RUSTFLAGS": "-Cprefer-dynamic", "CARGO_TARGET_DIR": str(ROOT / "target")}


def profile_of_tests():
    """The project's [profile.dev]: with another, all would be compiled anew."""
    return re.search(r"\[profile\.dev\]\n(?:.+\n)*", (ROOT / "Cargo.toml").read_text())[0]


def main():
    builds = sys.argv[1:] or BUILDS
    unknown = [build for build in builds if build not in [*BUILDS, *HERE]]
    if unknown:
        sys.exit(f"unknown build {unknown[0]}: one of {', '.join([*BUILDS, *HERE])}")
    crate = pathlib.Path(os.environ.get("CLTLAB_OUTSIDE", ROOT / "target/outside"))
    (crate / "src").mkdir(parents=True, exist_ok=True)
    (crate / "src/main.rs").write_text(PROGRAM)
    (crate / "Cargo.lock").write_bytes((ROOT / "Cargo.lock").read_bytes())
    failed = []
    for build in builds:
        manifest, (command, folder, environment) = MANIFEST.format(root='"%s"' % ROOT), own(crate, build)
        if build in HERE:
            manifest, (command, folder, environment) = manifest + "\n" + profile_of_tests(), shared()
        (crate / "Cargo.toml").write_text(manifest)
        built = subprocess.run(["cargo", HERE.get(build, "build"), "--quiet", *command], cwd=crate, env={**os.environ, **environment})
        if build == "check":
            print(f"{'FAILED' if built.returncode else 'ok    '}  check", flush=True)
            failed += [build] * bool(built.returncode)
            continue
        program = folder / "outside"
        ran = subprocess.run([program], capture_output=True, text=True) if built.returncode == 0 else None
        words = re.search(r"reconstruction (\S+) -> (\S+)", ran.stdout) if ran else None
        learns = words is not None and ran.returncode == 0 and float(words[2]) < 0.9 * float(words[1])
        # In the project's own folder lies the shared library of notebook cells.
        objects = [] if build in HERE else sorted(path.name for path in folder.glob("libcltlab*.so"))
        print(f"{'ok    ' if learns and not objects else 'FAILED'}  {build}: {words[0] if words else (ran.stderr if ran else 'it does not build')}", *objects, flush=True)
        if not learns or objects:
            failed.append(build)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
