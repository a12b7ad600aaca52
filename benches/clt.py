#!/usr/bin/env python3
"""A CLT and a per-layer transcoder (PLT) of equal parameters, trained on real text for the same time.

    python benches/clt.py CLTLAB MODEL TEXTS FOLDER [--minutes 20] [--features 1024] [--k 16] [--kinds clt,plt] [--gpu [--seconds 600] [--keep FOLDER]]

TopK, moments in eight bits, two passes over each buffer of activations. The PLT has as many features as
give it the CLT's number of weights. A short run of each says how many tokens a second the model and the
step take; from these follow the steps that fill the minutes (running the model included), so that the
number of steps does not depend on what else the machine does later. Then both are evaluated on text that
neither was trained on, and the CLT's graph of the two-hop prompt is checked: predicted against measured
effects of its groups of features, with random groups beside them.

With --gpu (CLTLAB from ./x build-cuda) the model runs in bf16, steps take 4,096 tokens, weights are bf16, and the CLT is
saved in bf16. The short run is one with each of CLTLAB_CUDA_PATH=lists and =dense; steps a second are counted in the
file of metrics over --trial seconds after a warm-up, and the training takes the faster one. No checkpoint is written
before the last step. The evaluation is that of `cltlab train`; it and the check are ended after --evaluation seconds each.
With --keep metrics.jsonl, text.log and report.json (of a PLT: plt-...) are copied to FOLDER every few seconds.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

PROMPT = "The capital of the state containing Dallas is"
PASSES, BATCH, BUFFER = 2, 512, 24576
# Checkpoints take seconds each: none but the last.
ON_GPU = 'device = "cuda"\nweights = "bf16"\ncheckpoint_every = 0\n'
WARM_UP = 20  # steps


def config(given, folder, kind, features, steps, held_out):
    return f"""[model]
source = {json.dumps(os.path.abspath(given.model))}
[text]
source = {json.dumps(os.path.abspath(given.texts))}
held_out = {held_out}
[stream]
context = 128
passes = {PASSES}
buffer_tokens = {BUFFER}
[clt]
features = {features}
per_layer = {"true" if kind == "plt" else "false"}
activation = {{ top_k = {{ k = {given.k} }} }}
[train]
steps = {steps}
batch_tokens = {BATCH}
lr = 1e-3
moments = "eight_bit"
{ON_GPU if given.gpu else ""}metrics = "metrics.jsonl"
[eval]
tokens = 8192
fidelity_tokens = 2048
[output]
folder = {json.dumps(folder)}
{'dtype = "bf16"' if given.gpu else ""}
"""


def run(given, log, *words):
    """The program, what it says into `log`; its last lines are told where it fails."""
    with open(log, "w") as file:
        done = subprocess.run([given.cltlab, *words], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        with open(log) as file:
            sys.exit(f"{''.join(file.readlines()[-5:])}cltlab {' '.join(words)} failed; all it said is in {log}")


def train(given, folder, kind, features, steps, held_out=0.02):
    """Trains; returns seconds, and the lines of the metrics."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    path = os.path.join(folder, "train.toml")
    with open(path, "w") as file:
        file.write(config(given, "run", kind, features, steps, held_out))
    start = time.time()
    run(given, os.path.join(folder, "train.log"), "train", path)
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        return time.time() - start, [json.loads(line) for line in file]


def rates(given, folder, kind, features):
    """Tokens a second of the model and of the step, from a short run."""
    train(given, folder, kind, features, 40, held_out=0)
    with open(os.path.join(folder, "train.log")) as file:
        filling = re.search(r"run the model for activations: ([0-9.:]+ ?[a-z]*)$", file.read(), re.M)
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        step = json.loads(file.readlines()[-1])["tokens_per_second"]
    # A filling that is done at once has no line.
    return BUFFER / seconds(filling.group(1)) if filling else float("inf"), step


def seconds(text):
    """`87.4 s`, or `1:27` and longer."""
    if text.endswith("s"):
        return float(text[:-1])
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total


def lines(path):
    """How many whole lines a file has that is being written."""
    try:
        with open(path, "rb") as file:
            return file.read().count(b"\n")
    except OSError:
        return 0


def pace(path, alive, length, limit):
    """Steps a second of a run in progress, from the times at which its file of metrics grew."""
    end, first, last, steps = time.monotonic() + limit, None, None, 0
    while time.monotonic() < (first[0] + length if first else end) and alive():
        now, found = time.monotonic(), lines(path)
        if found > steps:
            steps = found
            if first is None and found > WARM_UP:
                first = now, found
            elif first:
                last = now, found
        time.sleep(0.02)
    return (last[1] - first[1]) / (last[0] - first[0]) if last else 0.0


def begin(given, folder, kind, features, steps, held_out, path):
    """A training in a fresh folder, as a process; what it says goes to train.log."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    recipe = os.path.join(folder, "train.toml")
    with open(recipe, "w") as file:
        file.write(config(given, "run", kind, features, steps, held_out))
    environment = dict(os.environ, **({"CLTLAB_CUDA_PATH": path} if path else {}))
    with open(os.path.join(folder, "train.log"), "w") as log:
        return subprocess.Popen([given.cltlab, "train", recipe], stdout=log, stderr=subprocess.STDOUT, env=environment)


def faster_path(given, kind, features):
    """Which way to multiply codes is the faster one on this text, and its steps a second."""
    rates = {}
    for path in given.paths.split(","):
        folder = os.path.join(given.folder, f"try-{kind}-{path}")
        process = begin(given, folder, kind, features, 10**6, 0, path)
        rates[path] = pace(os.path.join(folder, "metrics.jsonl"), lambda: process.poll() is None, given.trial, given.start)
        ended = process.poll()
        process.kill()
        process.wait()
        with open(os.path.join(folder, "train.log"), errors="replace") as file:
            said = file.read().strip().splitlines()[-1:]
        print(f"{kind}, CLTLAB_CUDA_PATH={path}: {rates[path]:.1f} steps/s, {rates[path] * BATCH:.0f} tokens/s{f'; it ended: {said}' if ended is not None else ''}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    best = max(rates, key=rates.get)
    if not rates[best]:
        sys.exit(f"no training got past {WARM_UP} steps in {given.start:g} s")
    return best, rates[best]


def keep(given, folder, kind):
    """Copies what a run has written; of long metrics the end."""
    if not given.keep:
        return
    prefix = "" if kind == "clt" else f"{kind}-"
    for source, name in (("metrics.jsonl", "metrics.jsonl"), ("train.log", "text.log"), ("run/report.json", "report.json")):
        try:
            with open(os.path.join(folder, source), "rb") as file:
                content = file.read()[-(12 << 20) :]
            with open(os.path.join(given.keep, prefix + name), "wb") as file:
                file.write(content)
        except OSError:
            pass


def train_on_gpu(given, kind, features):
    """Trains for the given seconds by the faster path; steps, seconds, and the report, None where the evaluation did not end."""
    path, steps = (given.paths.split(",")[0], given.steps[kind == "plt"]) if given.steps else faster_path(given, kind, features)
    if not given.steps:
        steps = max(int(steps * given.seconds), 1)
        print(f"{kind}: {steps} steps in {given.seconds:g} s by CLTLAB_CUDA_PATH={path}", flush=True)
    folder = os.path.join(given.folder, kind)
    if given.rates:
        return steps, 0, None
    start = time.monotonic()
    process = begin(given, folder, kind, features, steps, 0.02, path)
    metrics, done, told = os.path.join(folder, "metrics.jsonl"), None, start
    limit = start + given.start + 2 * (given.seconds or 600)
    while process.poll() is None:
        time.sleep(0.2)
        now, reached = time.monotonic(), lines(metrics)
        if done is None and reached >= steps:
            done = now
        if now - told > 5:
            told = now
            keep(given, folder, kind)
        if now > (done + given.evaluation if done else limit):
            print(f"{kind}: ended at step {reached} of {steps} after {now - start:.0f} s{', in its evaluation' if done else ''}", flush=True)
            process.kill()
            process.wait()
    keep(given, folder, kind)
    wall = (done or time.monotonic()) - start
    report = None
    try:
        with open(os.path.join(folder, "run/report.json")) as file:
            report = json.load(file)["evaluation"]
    except (OSError, ValueError):
        with open(os.path.join(folder, "train.log"), errors="replace") as file:
            print("".join(file.readlines()[-6:]), flush=True)
    print(f"{kind}: {min(lines(metrics), steps)} steps in {wall:.1f} s, loading included; {time.monotonic() - start - wall:.1f} s to save and evaluate", flush=True)
    return steps, wall, report


def parameters(kind, layers, width, features):
    decoders = layers if kind == "plt" else layers * (layers + 1) // 2
    return layers * features * width + decoders * features * width + layers * (features + width)


def evaluate(given, folder):
    path = os.path.join(folder, "report.json")
    held_out = os.path.join(folder, "train.toml")
    run(given, os.path.join(folder, "eval.log"), "eval", held_out, "-o", path)
    with open(path) as file:
        return json.load(file)


def last_metrics(path):
    try:
        with open(path) as file:
            return json.loads(file.readlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}


def main():
    global BATCH
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("cltlab", "model", "texts", "folder"):
        parser.add_argument(name)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--layers", type=int, default=30, help="of the model")
    parser.add_argument("--width", type=int, default=576, help="of the model")
    parser.add_argument("--rates", action="store_true", help="only say how many steps fill the minutes")
    parser.add_argument("--kinds", default="clt,plt", help="clt alone where time is short")
    parser.add_argument("--gpu", action="store_true", help="train on CUDA")
    parser.add_argument("--seconds", type=float, help="of training, instead of --minutes")
    parser.add_argument("--keep", help="where metrics, log and report are copied to (--gpu)")
    parser.add_argument("--paths", default="lists,dense", help="values of CLTLAB_CUDA_PATH that are tried (--gpu)")
    parser.add_argument("--trial", type=float, default=6, help="seconds that each is timed (--gpu)")
    parser.add_argument("--start", type=float, default=60, help="seconds until a run has warmed up, at most (--gpu)")
    parser.add_argument("--evaluation", type=float, default=90, help="seconds for saving and evaluating, and for the check, at most (--gpu)")
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], help="of the CLT and of the PLT, as --rates said on a quiet machine")
    given = parser.parse_args()
    given.folder = os.path.abspath(given.folder)
    BATCH = 4096 if given.gpu else BATCH
    given.seconds = given.seconds or 60 * given.minutes
    if given.keep:
        os.makedirs(given.keep, exist_ok=True)
    size = (given.layers, given.width)
    wide = round(given.features * (1 + (given.layers + 1) / 2) / 2 / 64) * 64
    rows = []
    for kind in given.kinds.split(","):
        features = wide if kind == "plt" else given.features
        folder = os.path.join(given.folder, kind)
        if given.gpu:
            steps, wall, report = train_on_gpu(given, kind, features)
            rows.append((kind, features, parameters(kind, *size, features), steps, wall, report))
            continue
        steps = given.steps and given.steps[kind == "plt"]
        if not steps:
            model, step = rates(given, folder, kind, features)
            steps = int(given.seconds / (BATCH * (1 / step + 1 / model / PASSES)))
            print(f"{kind}: the model runs {model:.0f} tokens/s, the step {step:.0f}: {steps} steps in {given.seconds / 60:g} minutes", flush=True)
        if given.rates:
            continue
        wall, _ = train(given, folder, kind, features, steps)
        rows.append((kind, features, parameters(kind, *size, features), steps, wall, evaluate(given, folder)))
    if given.rates:
        return
    print(f"| | features a layer | weights | steps of {BATCH} tokens | minutes in all | FVU | L0 a layer | dead | cross-entropy: model, replacement, MLPs at zero | KL | top-1 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for kind, features, weights, steps, wall, report in rows:
        if report is None:
            last = last_metrics(os.path.join(given.folder, kind, "metrics.jsonl"))
            print(f"| {kind.upper()} | {features} | {weights / 1e6:.0f} M | {last.get('step', 0)} | {wall / 60:.1f} | {last.get('fvu', 0):.3f} (last batch) | {last.get('l0', 0):.1f} | {last.get('dead', 0):.2%} | not evaluated | | |", flush=True)
            continue
        fvu, l0, dead = (statistics.mean(layer[key] for layer in report["layers"]) for key in ("fvu", "l0", "dead"))
        entropy = ", ".join(f"{report[key]:.2f}" for key in ("cross_entropy", "replacement_cross_entropy", "zero_ablation_ce"))
        print(
            f"| {kind.upper()} | {features} | {weights / 1e6:.0f} M | {steps} | {wall / 60:.1f} | {fvu:.3f} | {l0:.1f} | {dead:.2%} "
            f"| {entropy} | {report['kl']:.3f} | {report['top1']:.2%} |", flush=True)
    if "clt" not in given.kinds.split(","):
        return
    words = [given.cltlab, "check", "--model", given.model, "--clt", os.path.join(given.folder, "clt", "run", "clt"), "--prompt", PROMPT]
    sys.stdout.flush()
    try:
        subprocess.run(words, check=True, timeout=given.evaluation if given.gpu else None)
    except subprocess.TimeoutExpired:
        print(f"check: not done after {given.evaluation:g} s")


if __name__ == "__main__":
    main()
