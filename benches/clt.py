#!/usr/bin/env python3
"""A CLT and a per-layer transcoder (PLT) of equal parameters, trained on real text for the same time.

    python benches/clt.py CLTLAB MODEL TEXTS FOLDER [--minutes 20] [--features 1024] [--k 16] [--kinds clt,plt] [--gpu]

TopK, moments in eight bits, two passes over each buffer of activations. The PLT has as many features as
give it the CLT's number of weights. A short run of each says how many tokens a second the model and the
step take; from these follow the steps that fill the minutes (running the model included), so that the
number of steps does not depend on what else the machine does later. With --gpu (CLTLAB from ./x build-cuda) the model runs
in bf16 and steps take 4,096 tokens, weights in bf16, and the CLT is saved in bf16. Then both are evaluated on text that
neither was trained on, and the CLT's graph of the two-hop prompt is checked: predicted against measured
effects of its groups of features, with random groups beside them.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

PROMPT = "The capital of the state containing Dallas is"
PASSES, BATCH, BUFFER = 2, 512, 24576
ON_GPU = 'device = "cuda"\nweights = "bf16"\n'


def config(given, folder, kind, features, steps, held_out):
    return f"""[model]
name = {json.dumps(os.path.abspath(given.model))}
[text]
file = {json.dumps(os.path.abspath(given.texts))}
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


def parameters(kind, layers, width, features):
    decoders = layers if kind == "plt" else layers * (layers + 1) // 2
    return layers * features * width + decoders * features * width + layers * (features + width)


def evaluate(given, folder):
    path = os.path.join(folder, "report.json")
    held_out = os.path.join(folder, "train.toml")
    run(given, os.path.join(folder, "eval.log"), "eval", held_out, "-o", path)
    with open(path) as file:
        return json.load(file)


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
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], help="of the CLT and of the PLT, as --rates said on a quiet machine")
    given = parser.parse_args()
    given.folder = os.path.abspath(given.folder)
    BATCH = 4096 if given.gpu else BATCH
    size = (given.layers, given.width)
    wide = round(given.features * (1 + (given.layers + 1) / 2) / 2 / 64) * 64
    rows = []
    for kind in given.kinds.split(","):
        features = wide if kind == "plt" else given.features
        folder = os.path.join(given.folder, kind)
        steps = given.steps and given.steps[kind == "plt"]
        if not steps:
            model, step = rates(given, folder, kind, features)
            steps = int(60 * given.minutes / (BATCH * (1 / step + 1 / model / PASSES)))
            print(f"{kind}: the model runs {model:.0f} tokens/s, the step {step:.0f}: {steps} steps in {given.minutes:g} minutes", flush=True)
        if given.rates:
            continue
        wall, _ = train(given, folder, kind, features, steps)
        rows.append((kind, features, parameters(kind, *size, features), steps, wall, evaluate(given, folder)))
    if given.rates:
        return
    print(f"| | features a layer | weights | steps of {BATCH} tokens | minutes in all | FVU | L0 a layer | dead | cross-entropy: model, replacement, MLPs at zero | KL | top-1 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for kind, features, weights, steps, wall, report in rows:
        fvu, l0, dead = (statistics.mean(layer[key] for layer in report["layers"]) for key in ("fvu", "l0", "dead"))
        entropy = ", ".join(f"{report[key]:.2f}" for key in ("cross_entropy", "replacement_cross_entropy", "zero_ablation_ce"))
        print(
            f"| {kind.upper()} | {features} | {weights / 1e6:.0f} M | {steps} | {wall / 60:.1f} | {fvu:.3f} | {l0:.1f} | {dead:.2%} "
            f"| {entropy} | {report['kl']:.3f} | {report['top1']:.2%} |", flush=True)
    if "clt" not in given.kinds.split(","):
        return
    subprocess.run([given.cltlab, "check", "--model", given.model, "--clt", os.path.join(given.folder, "clt", "run", "clt"), "--prompt", PROMPT], check=True)


if __name__ == "__main__":
    main()
