#!/usr/bin/env python3
"""Training steps on one GPU side by side with PyTorch: the same loss, shapes and random activations.

    python3 benches/train_gpu.py CLTLAB [--shapes sparse,smollm2,...] [--order ours,peers,precisions] [--budget SECONDS]
                                 [--steps 40] [--json FILE] [--table FILE]

CLTLAB is the program that ./x build-cuda makes; it needs nothing else (`-`: PyTorch alone). Loss: sum over layers of the
squared error a token, TopK (batch-topk: BatchTopK) after a ReLU, Adam; no sparsity term and no clipping on either side. PyTorch's
variants are described in gpu_peers.py. smollm2 is end to end: each step's activations come from the forward pass in bf16 of a
random model of SmolLM2-135M's shape (contexts of 128 tokens, torch's own attention, blocks compiled). attribution is ours
alone; benches/attribution.py --device cuda runs circuit-tracer beside it where that is installed.

Every part (one shape with one precision of ours or one variant of PyTorch's) is a process of its own; one that fails or takes
too long does not end the others. --order names them: `ours` (weights in bf16, moments in 8 bits), `peers`, `precisions` (ours in
f32), each with :SHAPE and then :PRECISION or :VARIANT where one is meant. With --budget a part that is not expected to end
in time is left out and named.

FILE of --json and of --table is replaced after every result; results that are in --json's already stay, but for those
measured anew. tokens/s is over all timed steps together, memory the most that a variant had reserved. The floor is ours, see
`cltlab bench --help`; beside it are the times of our step when codes go through dense products, through lists, or through the
one forward and the other backward.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True  # no __pycache__ in the tree
from gpu_peers import SHAPES, VARIANTS, variants

HERE = os.path.dirname(os.path.abspath(__file__))
HELD = ("bf16-eight-bit", "f32-eight-bit", "f32-f32")
# Seconds that a part is expected to take on an H100: ours in bf16, ours in f32, PyTorch's dense ones, PyTorch's others.
COST = {
    "sparse": (25, 50, 90, 35),
    "batch-topk": (40, 70, 90, 40),
    "seed-4096": (20, 30, 75, 30),
    "smollm2": (20, 30, 110, 45),
    "seed": (15, 20, 70, 30),
    "attribution": (45, 0, 0, 0),
}


class Part:
    def __init__(self, side, shape, held=None):
        self.side, self.shape, self.held = side, shape, held
        ours, f32, dense, other = COST.get(shape, (10, 10, 10, 10))
        self.cost = (ours if held in (HELD[0], None) else f32) if side == "ours" else dense if side.startswith("dense") else other

    @property
    def key(self):
        return self.shape, self.side, self.held

    def __str__(self):
        return f"{self.shape}, {'ours' if self.side == 'ours' else self.side}{f', {self.held}' if self.held else ''}"

    def command(self, given):
        if self.side != "ours":
            return [sys.executable, os.path.join(HERE, "gpu_peers.py"), self.side, self.shape, "--steps", str(given.steps), "--device", given.device]
        held = ["--held", self.held] if self.held else []
        return [given.cltlab, "bench", "--device", "cuda", "--shapes", self.shape, "--timed", str(given.steps), *held]


def plan(given):
    """Parts in the order of the words; none twice."""
    parts = {}
    for word in given.order.split(","):
        kind, shape, what = (word.split(":") + ["", ""])[:3]
        for name in [shape] if shape else given.shapes.split(","):
            known = VARIANTS if kind == "peers" else HELD
            if name not in SHAPES or what and what not in known:
                sys.exit(f"{word}: unknown; shapes are {', '.join(SHAPES)}, then {', '.join(known)}")
            if kind == "peers":
                wanted = [what] if what else [v for v in variants(name) if given.peers is None or v in given.peers.split(",")]
                found = [Part(side, name) for side in wanted]
            elif kind in ("ours", "precisions"):
                wanted = [what] if what else HELD[:1] if kind == "ours" else HELD[1:]
                found = [Part("ours", name, held) for held in wanted] if SHAPES[name] else [Part("ours", name)] * (kind == "ours")
                found *= given.cltlab != "-"
            else:
                sys.exit(f"unknown word {word} in --order; known are ours, peers, precisions")
            parts.update({part.key: part for part in found if part.key not in parts})
    return list(parts.values())


def run(command, limit, receive):
    """Hands each line of JSON that a program prints to `receive`; returns what it ended with, '' if well, and what it said besides."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        late = threading.Event()

        def end(late_now=True):
            if late_now:
                late.set()
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

        watch = threading.Timer(limit, end)
        watch.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    receive(json.loads(line))
        except BaseException:  # this process is asked to end: not without that one
            end(False)
            raise
        finally:
            watch.cancel()
        code = process.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    last = next((line for line in reversed(said) if line.strip()), "no output")
    return f"not done after {limit:.0f} s" if late.is_set() else f"exit status {code}: {last[:160]}" if code else "", said


class Results:
    """What was found, in a file that is always whole."""

    def __init__(self, given):
        self.given = given
        self.found = {"results": []}
        if given.json and os.path.exists(given.json):
            with open(given.json) as file:
                self.found = json.load(file)
        self.found.update(card(), date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"), left_out=[])

    def forget(self, part):
        self.found["results"] = [row for row in self.found["results"] if (row["shape"], row["side"], row.get("held")) != part.key]

    def add(self, part, row):
        row = {name: None if value != value else value for name, value in row.items()}  # NaN is no JSON
        if "ceilings" in row:
            self.found["ceilings"] = row["ceilings"]
        else:
            if part.side != "ours":
                self.forget(part)
            self.found["results"].append(dict(row, shape=part.shape, side=part.side, **({"held": part.held} if part.held else {})))
        self.write()

    def write(self):
        for path, text in ((self.given.json, json.dumps(self.found, indent=1)), (self.given.table, self.table())):
            if path:
                with open(path + ".part", "w") as file:
                    file.write(text)
                os.replace(path + ".part", path)

    def table(self):
        found, c = self.found, self.found.get("ceilings")
        out = [f"{found['card']}, driver {found['driver']}, {found['date']}"]
        if c:
            out.append(f"copy {c['copy'] / 1e9:.0f} GB/s, products {c['bf16'] / 1e12:.0f} TFLOP/s bf16, {c['f32'] / 1e12:.1f} f32")
        for shape, numbers in SHAPES.items():
            rows = [row for row in found["results"] if row["shape"] == shape]
            rates = [row["tokens_per_second"] for row in rows if row["side"] not in ("ours", "openclt") and "tokens_per_second" in row]
            if rows:
                said = {name: value for name, value in (numbers or {}).items() if name != "model"}
                out += [f"\n**{shape}** {', '.join(f'{name} {value}' for name, value in said.items())}\n", "| program | tokens/s | x best PyTorch | GiB | |", "|---|---|---|---|---|"]
            for row in rows:
                out.append(f"| {' | '.join(columns(row, max(rates, default=None)))} |")
        if found["left_out"]:
            out.append(f"\nleft out, no time: {'; '.join(found['left_out'])}")
        return "\n".join(out) + "\n"


def columns(row, best):
    """Program, tokens/s, share of the best of PyTorch, memory, remark."""
    name = VARIANTS.get(row["side"]) or f"ours{', ' if row.get('held') else ''}{row.get('held', '')}"
    rate = row.get("tokens_per_second")
    memory = row.get("gib", row.get("peak_gib")) or 0
    return name, f"{rate:.0f}" if rate else "-", f"{rate / best:.2f}" if rate and best else "", f"{memory:.1f}" if memory > 0 else "", remark(row)


def remark(row):
    if "error" in row:
        return row["error"].replace("|", "/")
    if "rows_per_second" in row:
        return f"{row['tokens']} tokens: {row['rows']} rows of {row['active']} active features, {row['rows_per_second']:.0f} rows/s, {row['attribute_s']:.2f} s, floor {row['floor_s']:.3f} s, {100 * row['share']:.0f} %"
    if row["side"] == "ours":
        ways = ", ".join(f"{way} {row[way + '_ms']:.2f}" for way in ("dense", "dense_forward", "lists") if way + "_ms" in row)
        return f"{row['ms']:.2f} ms ({ways}), floor {row['floor_ms']:.2f} ms, {100 * row['share']:.0f} %"
    graph = f" ({row['eager_ms']:.2f} step by step, {row['graph_ms']:.2f} as a CUDA graph)" if "graph_ms" in row else ""
    compiled = "" if row["compiled"] or not row["side"].startswith("dense") else ", not compiled"
    return f"{row['ms']:.2f} ms{graph}{compiled}"


def card():
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
        name, driver = said.stdout.splitlines()[0].rsplit(",", 1)
        return dict(card=name.strip(), driver=driver.strip())
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return dict(card="no NVIDIA GPU", driver="none")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cltlab")
    parser.add_argument("--shapes", default="sparse,smollm2,seed-4096,batch-topk,seed,attribution")
    parser.add_argument("--order", default="ours,peers,precisions", help="what, in which order")
    parser.add_argument("--peers", help="these variants alone; none with an empty word")
    parser.add_argument("--steps", type=int, default=40, help="timed steps, at most")
    parser.add_argument("--budget", type=float, help="seconds for all of it")
    parser.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--device", default="cuda", help="of PyTorch; cpu only to see that it runs")
    parser.add_argument("--json")
    parser.add_argument("--table")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    budget = given.budget or 60 * (given.minutes or 600)
    passed = lambda: time.monotonic() - begin
    parts, results, failed = plan(given), Results(given), []
    for part in parts:
        left = budget - passed()
        if part.cost > left:
            print(f"[{passed():4.0f} s] {part}: left out, about {part.cost} s and {max(left, 0):.0f} are left", flush=True)
            results.found["left_out"].append(str(part))
            results.write()
            continue
        results.forget(part)
        rows = []

        def receive(row):
            results.add(part, row)
            if "ceilings" not in row:
                rows.append(row)
                shown = dict(row, side=part.side)
                print(f"[{passed():4.0f} s] {part}: {columns(shown, None)[1]} tokens/s, {remark(shown)}", flush=True)

        started = passed()
        # What takes far longer than expected must not take the others' time.
        why, said = run(part.command(given), max(1, min(left, max(60, 3 * part.cost))), receive)
        print(f"[{passed():4.0f} s] {part}: {passed() - started:.0f} s of {part.cost} expected{f'; {why}' if why else ''}", flush=True)
        for line in said[-12:] if why else [line for line in said if line.startswith(("no CUDA graph", "not compiled", "model not compiled"))]:
            print(f"    {line[:240]}", flush=True)
        if why or any("error" in row for row in rows):
            failed.append(str(part))
        # One that failed before its first figure has a line too.
        if why and not rows:
            results.add(part, {"error": why})
    if not given.table:
        print(f"\n{results.table()}")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
