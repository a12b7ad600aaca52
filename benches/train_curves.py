#!/usr/bin/env python3
"""Loss curves of optimiser variants on the same data, batches and first weights.

    python benches/train_curves.py CLTLAB --model MODEL --text TEXT [--variants f32,eight_bit,every_row]
        [--steps 600] [--features 1024] [--k 16] [--tokens 512] [--seeds 2]

Activations of a real model on real text, TopK. For each variant and seed: the final loss and FVU (mean
of the last tenth of the steps), the mean over all steps, and the held-out FVU where `cltlab train`
evaluates; each beside f32's, in percent, and f32's own spread between seeds, which is what a
difference must be measured by. The same batches come in the same order; a seed draws the weights.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile

from train_parity import train

# What a variant adds to [train]. f32 with lazy rows is the default; every_row is Adam's plain form.
VARIANTS = {"f32": {}, "every_row": dict(lazy=False), "eight_bit": dict(moments="eight_bit"), "eight_bit_every_row": dict(moments="eight_bit", lazy=False)}


def curve(given, folder, variant, seed):
    shutil.rmtree(folder, ignore_errors=True)
    lines = train(given.cltlab, folder, {
        "model": dict(name=os.path.abspath(given.model)),
        "text": dict(file=os.path.abspath(given.text)),
        "stream": dict(context=given.context),
        "clt": dict(features=given.features, activation=dict(top_k=dict(k=given.k))),
        "train": dict(steps=given.steps, batch_tokens=given.tokens, seed=seed, lr=given.lr, checkpoint_every=0, **VARIANTS[variant]),
        "eval": dict(tokens=8192, fidelity_tokens=0),
        "output": dict(folder="run"),
    })
    return lines


def main():
    names = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cltlab")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--variants", type=names, default=["f32", "eight_bit", "every_row"], help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    if unknown := [name for name in given.variants if name not in VARIANTS]:
        parser.error(f"--variants: got {unknown[0]}, expected some of {', '.join(VARIANTS)}")
    folder = tempfile.mkdtemp(prefix="cltlab-curves-")
    figures = {}
    for variant in given.variants:
        for seed in range(given.seeds):
            lines = curve(given, os.path.join(folder, variant), variant, seed)
            tail = lines[-max(len(lines) // 10, 1):]
            figures[variant, seed] = dict(
                final=statistics.mean(line["reconstruction"] for line in tail),
                mean=statistics.mean(line["reconstruction"] for line in lines),
                fvu=statistics.mean(line["fvu"] for line in tail),
                losses=[line["reconstruction"] for line in lines],
            )
            print(f"{variant}, seed {seed}: done", file=sys.stderr)
    shutil.rmtree(folder)
    base = given.variants[0]
    print(f"{os.path.basename(given.model)}, F {given.features}, top_k {given.k}, {given.steps} steps of {given.tokens} tokens")
    print(f"| variant | seed | final loss | against {base} | mean loss | against {base} | final FVU | largest difference at a step, of 20 smoothed |")
    print("|---|---|---|---|---|---|---|---|")
    for (variant, seed), own in figures.items():
        other = figures[base, seed]
        percent = lambda name: f"{100 * (own[name] / other[name] - 1):+.2f} %"
        smooth = lambda values: [statistics.mean(values[i:i + 20]) for i in range(0, len(values) - 19, 20)]
        apart = max((abs(a / b - 1) for a, b in zip(smooth(own["losses"]), smooth(other["losses"]))), default=0.0)
        print(f"| {variant} | {seed} | {own['final']:.3f} | {percent('final')} | {own['mean']:.3f} | {percent('mean')} | {own['fvu']:.4f} | {100 * apart:.2f} % |")
    finals = [figures[base, seed]["final"] for seed in range(given.seeds)]
    if len(finals) > 1:
        print(f"{base} between seeds: final loss {100 * (max(finals) / min(finals) - 1):.2f} % apart")


if __name__ == "__main__":
    main()
