#!/usr/bin/env python3
"""Kills `cltlab train` at random moments and fills its disk; nothing may be lost.

    python3 tests/kill_train.py [--program target/x86_64-unknown-linux-gnu/debug/cltlab] [--kills 50] [--seed 0]

1. A training runs undisturbed: the reference.
2. The same training is killed with SIGKILL at random moments and resumed, until it ends; begun anew
   until there were as many kills as asked for. Each resume must work, metrics.jsonl must hold each step
   once, and the final weights must be the reference's, byte for byte.
3. The same on a file system of a few MiB that is full (a tmpfs; skipped where mounting is not
   allowed): an error that says so, the checkpoints before it whole, and with room again the same
   weights.

Only Python's standard library. Exit status 0 when all of it holds.
"""
import argparse
import json
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS, WIDTH, TOKENS, STEPS = 2, 32, 600, 120
TOML = """[activations]
file = "{activations}"
[clt]
features = 384
activation = {{ batch_top_k = {{ k = 8 }} }}
[train]
steps = {steps}
batch_tokens = 100
lr = 0.0012345678901234567
checkpoint_every = 2
checkpoint_keep = {keep}
[output]
folder = "run"
"""


def activations(path, rng):
    """A safetensors file with input.{l} and target.{l}, [TOKENS, WIDTH]."""
    header, data = {}, b""
    for side in ("input", "target"):
        for layer in range(LAYERS):
            values = struct.pack(f"<{TOKENS * WIDTH}f", *(rng.gauss(0, 1) for _ in range(TOKENS * WIDTH)))
            header[f"{side}.{layer}"] = {"dtype": "F32", "shape": [TOKENS, WIDTH], "data_offsets": [len(data), len(data) + len(values)]}
            data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def folder(base, name, source, keep=2):
    place = base / name
    place.mkdir(parents=True)
    (place / "train.toml").write_text(TOML.format(steps=STEPS, keep=keep, activations=source))
    return place


def train(program, place, **options):
    return subprocess.Popen([program, "train", str(place / "train.toml"), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)


def weights(place):
    return {file.name: file.read_bytes() for file in sorted((place / "run/clt").iterdir())}


def check(what, holds, more=""):
    if not holds:
        sys.exit(f"FAILED: {what} {more}")


def finished(program, place, what):
    process = train(program, place)
    _, error = process.communicate()
    check(f"{what}: the last resume", process.returncode == 0, error)
    steps = [json.loads(line)["step"] for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    check(f"{what}: metrics hold each step once", steps == list(range(1, STEPS + 1)), steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/x86_64-unknown-linux-gnu/debug/cltlab")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    program = str(Path(args.program).resolve())
    rng = random.Random(args.seed)
    base = Path(tempfile.mkdtemp(prefix="cltlab-kill-"))
    source = base / "activations.safetensors"
    activations(source, rng)

    reference = folder(base, "reference", source)
    begin = time.monotonic()
    finished(program, reference, "reference")
    seconds = time.monotonic() - begin
    expected = weights(reference)
    print(f"reference: {STEPS} steps, {STEPS // 2} checkpoints in {seconds:.2f} s")

    kills, runs, moments, mid_save = 0, 0, [], 0
    while kills < args.kills:
        runs += 1
        place = folder(base, f"killed-{runs}", source)
        while kills < args.kills:
            process = train(program, place)
            # Some before the first step, most within, so that a run survives several.
            try:
                process.wait(rng.uniform(0, 0.35 * seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            _, error = process.communicate()
            if process.returncode == 0:
                break
            check("a resume after a kill", process.returncode == -signal.SIGKILL, error)
            kills += 1
            mid_save += bool(list((place / "run").glob("**/.*.tmp")))
            found = sorted((place / "run/checkpoints").glob("step-*.safetensors")) if (place / "run/checkpoints").exists() else []
            moments.append(int(found[-1].name[5:13]) if found else 0)
        finished(program, place, f"run {runs}")
        check(f"run {runs}: the reference's weights", weights(place) == expected)
        check(f"run {runs}: nothing half-written is left", not list((place / "run").glob("**/.*.tmp")))
    print(f"{kills} kills in {runs} runs, {mid_save} of them within a save; newest checkpoint at the kill: {moments}")
    print("every resume worked, every metrics.jsonl held each step once, all weights are the reference's")

    disk = base / "disk"
    disk.mkdir()
    size = sum(file.stat().st_size for file in (reference / "run/checkpoints").iterdir())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * size}", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        print(f"full disk: skipped, mount is not allowed here ({mounted.stderr.strip()})")
    else:
        try:
            # Each checkpoint is kept, so that the disk fills up.
            place = folder(disk, "full", source, keep=1000)
            process = train(program, place)
            _, error = process.communicate()
            check("a full disk is said", process.returncode not in (0, -9) and "No space left" in error and "free some space" in error, error)
            kept = sorted((place / "run/checkpoints").glob("step-*.safetensors"))
            check("checkpoints before it", bool(kept))
            check("nothing half-written is left", not list((place / "run").glob("**/.*.tmp")))
            print(f"full disk: {error.strip().splitlines()[-1]}")
            for old in kept[:-1]:
                old.unlink()
            (place / "train.toml").write_text(TOML.format(steps=STEPS, keep=1, activations=source))
            finished(program, place, "after the full disk")
            check("after the full disk: the reference's weights", weights(place) == expected)
            print(f"with room again it went on from {kept[-1].name} to the reference's weights")
        finally:
            subprocess.run(["umount", str(disk)], check=False)
    shutil.rmtree(base)
    print("all of it holds")


if __name__ == "__main__":
    main()
