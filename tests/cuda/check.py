#!/usr/bin/env python3
"""What the program does on a GPU, checked on the emulated one: python3 tests/cuda/check.py CLTLAB [EMULATED [WATCHED]].

CLTLAB was built with CUDA (./x build-cuda), EMULATED is what build.py --candle made, WATCHED with --watched. Compared are the CPU's results,
a training that was interrupted with one that was not, and the words of what cannot work.
"""

import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIXTURES = ROOT / "tests/fixtures/attribution"
failed = []


def run(*words, emulated=None, **more):
    environment = {**os.environ, **more}
    environment.pop("LD_LIBRARY_PATH", None)
    if emulated:
        environment["LD_LIBRARY_PATH"] = str(emulated)
    done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, env=environment, timeout=900)
    return done.returncode, done.stdout + done.stderr


def check(what, passed, words=""):
    print(f"{'ok    ' if passed else 'FAILED'}  {what}" + (f"\n{words}" if not passed else ""), flush=True)
    if not passed:
        failed.append(what)


def tensors(path):
    """Names and f32 values of a safetensors file; others as bytes."""
    raw = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        part = raw[8 + size + begin : 8 + size + end]
        found[name] = struct.unpack(f"<{len(part) // 4}f", part) if entry["dtype"] == "F32" else part
    return found


def write_activations(path, layers, tokens, width):
    generator = random.Random(1)
    header, parts, at = {}, [], 0
    for side in ("input", "target"):
        for layer in range(layers):
            part = struct.pack(f"<{tokens * width}f", *(generator.gauss(0, 1) for _ in range(tokens * width)))
            header[f"{side}.{layer}"] = {"dtype": "F32", "shape": [tokens, width], "data_offsets": [at, at + len(part)]}
            at += len(part)
            parts.append(part)
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def self_tests(emulated):
    for order in ("forward", "reverse", "7"):
        code, words = run("selftest", "--device", "cuda", emulated=emulated, CLTLAB_EMULATED_ORDER=order)
        check(f"self-test, threads and blocks in order {order}", code == 0, words)


class Watched:
    """The self-test and a graph on the device that sees races, misalignment and reads out of bounds; slow, so beside the rest."""

    def __init__(self, folder, log):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        gpt2 = FIXTURES / "gpt2"
        graph = ["attribute", "--model", gpt2 / "model", "--clt", gpt2 / "clt", "--dtype", "f32", "--tokens", "5,17,3,42,8,29", "-o", f"{log}.json"]
        self.log = pathlib.Path(log)
        with self.log.open("w") as out:
            self.jobs = [(what, subprocess.Popen([PROGRAM, *map(str, words)], stdout=out, stderr=out, env=environment)) for what, words in (("self-test", ["selftest", "--device", "cuda"]), ("a graph", graph))]

    def join(self):
        for what, job in self.jobs:
            code = job.wait(timeout=1800)
            check(f"{what} on the watched device: every access in bounds, aligned and ordered", code == 0, "".join(line for line in self.log.read_text().splitlines(True) if not line.startswith("ok"))[:4000])


def refusals(emulated, folder):
    code, words = run("selftest", "--device", "cuda")
    check("no driver: an error with what to do", code == 1 and "CUDA" in words and "doctor" in words and "panicked" not in words, words)
    code, words = run("selftest")
    check("no driver: the CPU is taken where nobody asked for a GPU", code == 0 and "the CPU" in words, words)
    code, words = run("selftest", "--device", "cuda", emulated=emulated, CLTLAB_EMULATED_DEVICES="0")
    check("no device: an error", code == 1 and "CUDA device" in words and "panicked" not in words, words)
    alone = pathlib.Path(folder) / "driver-alone"
    alone.mkdir()
    (alone / "libcuda.so.1").symlink_to(pathlib.Path(emulated).resolve() / "libcuda.so.1")
    packages = pathlib.Path(folder) / "env/lib/python3.12/site-packages/nvidia/cu13/lib"
    packages.mkdir(parents=True)
    (pathlib.Path(folder) / "env/bin").mkdir()
    for library in pathlib.Path(emulated).resolve().glob("lib*.so*"):
        if "libcuda.so" not in library.name:
            (packages / library.name).symlink_to(library)
    words = ("bench", "--device", "cuda", "--shapes", "tiny", "--held", "f32-f32", "--timed", "1")
    code, said = run(*words, emulated=alone, PATH=f"{folder}/env/bin:{os.environ['PATH']}")
    check("cuBLAS and cuRAND beside a Python on PATH are found", code == 0, said)
    code, words = run("selftest", "--device", "cuda", emulated=alone)
    check("no cuBLAS: an error that names it", code == 1 and "cublas" in words and "panicked" not in words, words)
    code, words = run("run", "--model", FIXTURES / "llama/model", "--tokens", "5,17", emulated=emulated, CLTLAB_EMULATED_BYTES="40000")
    check("a model that does not fit: said as such", code == 1 and "OUT_OF_MEMORY" in words and "bf16" in words and "truncated" not in words and "backtrace" not in words, words)
    code, words = run("bench", "--device", "cuda", "--shapes", "tiny", "--held", "f32-f32", emulated=emulated, CLTLAB_EMULATED_BYTES="500000")
    check("too little memory: said before anything is allocated", "that are free on the device" in words and "panicked" not in words, words)


def attribution(emulated, folder):
    for name in ("gpt2", "llama"):
        graphs = []
        for place, more in ((None, {}), (emulated, {}), (emulated, {"CLTLAB_CUDA_DECODERS": "files"})):
            out = pathlib.Path(folder) / f"{name}-{len(graphs)}"
            words = ["attribute", "--model", FIXTURES / name / "model", "--clt", FIXTURES / name / "clt", "--dtype", "f32", "--tokens", "5,17,3,42,8,29", "-o", f"{out}.json", "--raw", f"{out}.safetensors"]
            code, said = run(*words, emulated=place, **more)
            if code != 0:
                check(f"attribution of {name}", False, said)
                return
            graphs.append(tensors(f"{out}.safetensors"))
        cpu, *others = graphs
        for where, gpu in zip(("on the device", "in files"), others):
            edges = [graph["adjacency_matrix"] for graph in (cpu, gpu)]
            apart = max((abs(a - b) for a, b in zip(*edges)), default=0) / max(map(abs, edges[0]))
            same = cpu["active_features"] == gpu["active_features"] and cpu["node_mask"] == gpu["node_mask"]
            check(f"attribution of {name}, decoders {where}: {len(edges[0])} edges as on the CPU to {apart:.1e}, the same nodes", len(edges[0]) == len(edges[1]) and apart < 1e-5 and same)


def resuming(emulated, folder):
    folder = pathlib.Path(folder)
    write_activations(folder / "a.safetensors", 2, 256, 64)
    (folder / "t.toml").write_text(
        """[activations]
file = "a.safetensors"
[clt]
features = 96
activation = { batch_top_k = { k = 6 } }
[train]
steps = 9
batch_tokens = 48
device = "cuda"
weights = "bf16"
moments = "eight_bit"
checkpoint_every = 4
checkpoint_keep = 9
[output]
folder = "run"
"""
    )
    results = []
    for words in (["train", folder / "t.toml"], ["train", folder / "t.toml", "--resume"]):
        code, said = run(*words, emulated=emulated)
        if code != 0:
            check("training with checkpoints", False, said)
            return
        saved = sorted((folder / "run/checkpoints").glob("*.safetensors"))
        results.append(saved[-1].read_bytes())
        [path.unlink() for path in saved if not path.name.endswith("00000004.safetensors")]
    values = [{name: value for name, value in tensors_of(result, folder).items() if name != "history"} for result in results]
    check("a training that goes on from a checkpoint: the same bytes as one that never stopped", values[0] == values[1] and len(values[0]) > 10)


def streaming(emulated, folder):
    """A model and the training of its CLT on the same device: the CPU's course, and activations that stay there."""
    folder = pathlib.Path(folder)
    generator = random.Random(2)
    (folder / "text.txt").write_text(" ".join(f"w{generator.randrange(1, 90)}" for _ in range(900)))
    losses, left = [], []
    for device, place, steps in (("cpu", None, 24), ("cuda", emulated, 24), ("cuda", emulated, 96)):
        (folder / "s.toml").write_text(
            f"""[model]
source = "{FIXTURES / 'llama/model'}"
dtype = "f32"
[text]
source = "text.txt"
held_out = 0.0
[stream]
context = 32
batch = 4
buffer_tokens = 300
[clt]
features = 64
activation = {{ top_k = {{ k = 4 }} }}
[train]
steps = {steps}
batch_tokens = 64
checkpoint_every = 0
device = "{device}"
[output]
folder = "streamed-{device}-{steps}"
"""
        )
        code, said = run("train", folder / "s.toml", emulated=place, CLTLAB_EMULATED_TELL="1")
        if code != 0:
            check("training on a model's activations", False, said)
            return
        lines = (folder / f"streamed-{device}-{steps}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["reconstruction"] for line in lines])
        left.append(int(said.split("emulator: ")[1].split()[0]) if place else 0)
    # The rate falls to the end of each training, so only the two of a length are the same.
    apart = max(abs(a - b) / a for a, b in zip(losses[0], losses[1]))
    check(f"training on a model's activations: {len(losses[1])} losses as on the CPU to {apart:.1e}", len(losses[0]) == len(losses[1]) == 24 and apart < 1e-4)
    # Those of 72 steps more, and of them the figures and norms.
    made, more = 72 * 64 * 2 * 3 * 32 * 4, left[2] - left[1]
    check(f"training on a model's activations: of {made} bytes more {more} left the device", 0 < more < made / 4)


def memory(emulated, folder):
    """What a training says that it needs of the device, when there is too little, and what it takes when there is enough."""
    folder = pathlib.Path(folder)
    write_activations(folder / "m.safetensors", 3, 600, 64)
    file = '[activations]\nfile = "m.safetensors"\n'
    (folder / "words.txt").write_text(" ".join(f"w{i * 7919 % 89 + 1}" for i in range(9000)))
    stream = f'[model]\nsource = "{FIXTURES / "llama/model"}"\ndtype = "bf16"\n[text]\nsource = "words.txt"\nheld_out = 0.0\n[stream]\nbuffer_tokens = 1024\n'
    cases = [
        ("TopK, bf16 and eight bits", "top_k = { k = 16 }", 'weights = "bf16"\nmoments = "eight_bit"', "", file),
        ("BatchTopK, nested", "batch_top_k = { k = 16 }", "matryoshka = [100, 400]", "", file),
        ("an auxiliary loss", "top_k = { k = 16 }", "aux = 0.03\naux_k = 32", "", file),
        ("BatchTopK over all layers", "global_batch_top_k = { k = 16 }", "", "", file),
        ("TopK, tied per source", "top_k = { k = 16 }", "", 'tied = "per_source"', file),
        ("a model in bf16, many contexts", "top_k = { k = 4 }", "", "", stream + "context = 32\nbatch = 32\n"),
        ("a model in bf16, long contexts", "top_k = { k = 4 }", "", "", stream + "context = 64\nbatch = 8\n"),
    ]
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
    little = 300_000
    pools = []
    for number, (name, activation, train, clt, source) in enumerate(cases):
        (folder / "m.toml").write_text(
            f"""{source}
[clt]
features = 1024
activation = {{ {activation} }}
{clt}
[train]
steps = 2
batch_tokens = 200
device = "cuda"
checkpoint_every = 0
{train}
[output]
folder = "memory-{number}"
"""
        )
        code, said = run("train", folder / "m.toml", emulated=emulated, CLTLAB_EMULATED_BYTES=str(little))
        told = re.search(r"a need of ([\d.]+) (\w+) and ([\d.]+) (\w+) for activations, expected at most the ([\d.]+) (\w+) that are free", said)
        if code == 0 or not told:
            check(f"memory of a training with {name}", False, said)
            continue
        need, activations, free = (float(told[i]) * units[told[i + 1]] for i in (1, 3, 5))
        # The model's weights were there already.
        need += activations + little - free
        code, said = run("train", folder / "m.toml", emulated=emulated, CLTLAB_EMULATED_TELL="1")
        taken = re.search(r"at most (\d+) were taken", said)
        share = int(taken[1]) / need if taken else 0
        pools.append((taken and int(taken[1]), from_the_pool(said)))
        # What a model makes ahead meets a step or does not.
        least, most = (0.8, 1.02) if source == file else (0.6, 1.05)
        check(f"memory of a training with {name}: {share:.2f} of what was predicted", code == 0 and least < share <= most, said)
    # The program asks the pool to keep everything: what is reserved at the end is the most that was ever used.
    kept = [pool and pool["outside"] == 0 and pool["reserved"] == taken for taken, pool in pools]
    check(f"memory of {len(pools)} trainings: all of it from the driver's pool, which keeps it", len(pools) == len(cases) and all(kept), str(pools))


def from_the_pool(said):
    """What the emulated driver says of its memory pool at the end (CLTLAB_EMULATED_TELL)."""
    found = re.search(r"(\d+) allocations from the pool, (\d+) outside of it; (\d+) bytes of it reserved, (\d+) used at the end", said)
    return found and dict(zip(("allocations", "outside", "reserved", "used"), map(int, found.groups())))


def reuse(emulated):
    """Two trainings in one process on a device with room for one: memory that the pool keeps counts as free."""
    words = ("bench", "--device", "cuda", "--shapes", "tiny", "--held", "f32-f32,f32-f32", "--timed", "1")
    code, said = run(*words, emulated=emulated, CLTLAB_EMULATED_TELL="1")
    taken = re.search(r"at most (\d+) were taken", said)
    if code != 0 or not taken:
        check("two trainings in one process", False, said)
        return
    room = int(1.25 * int(taken[1]))
    code, said = run(*words, emulated=emulated, CLTLAB_EMULATED_BYTES=str(room))
    check(f"two trainings in one process, {taken[1]} bytes each, on a device with {room}", code == 0 and "error" not in said, said)


def tensors_of(raw, folder):
    path = pathlib.Path(folder) / "one.safetensors"
    path.write_bytes(raw)
    return tensors(path)


def main():
    emulated = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "target/emulated"
    watched = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else ROOT / "target/watched"
    faults = subprocess.run([sys.executable, HERE / "faults.py", watched], capture_output=True, text=True)
    check("kernels with planted mistakes are told from right ones", faults.returncode == 0, faults.stdout)
    answers = subprocess.run([sys.executable, HERE / "refusals.py", emulated], capture_output=True, text=True)
    check("wrong calls of the driver and of cuBLAS are refused as a card does", answers.returncode == 0, answers.stdout + answers.stderr)
    with tempfile.TemporaryDirectory() as folder:
        beside = Watched(watched, f"{folder}/watched.log")
        refusals(emulated, folder)
        self_tests(emulated)
        attribution(emulated, folder)
        resuming(emulated, folder)
        streaming(emulated, folder)
        memory(emulated, folder)
        reuse(emulated)
        beside.join()
    print(f"{len(failed)} failed" if failed else "all passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
    main()
