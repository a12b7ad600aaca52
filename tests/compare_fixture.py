#!/usr/bin/env python3
"""The program against circuit-tracer's results in a fixture folder, whatever its shape.

usage: compare_fixture.py CLTLAB FOLDER...     (FOLDER holds model/, clt/, expected*.safetensors, expected.json)
Needs numpy and safetensors; .cltlab/venv-peers-ct has them. Exits 1 when a figure is above its tolerance.
"""
import json, os, subprocess, sys, tempfile
import numpy as np
from safetensors.numpy import load_file

failed = 0


def check(what, got, allowed):
    global failed
    bad = not got <= allowed
    failed += bad
    print(f"  {'BAD ' if bad else 'ok  '}{what}: {got:.2e} (allowed {allowed:.0e})")


def run(program, folder, tokens, command, *more):
    args = [program, command, "--model", f"{folder}/model", "--clt", f"{folder}/clt", "--tokens", tokens, *map(str, more)]
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(args)}\n{done.stderr}")


def graph(got, want, suffix, scores):
    a, b = got["adjacency_matrix"], want["adjacency_matrix"]
    if a.shape != b.shape:
        return check("shape of the adjacency", 1.0, 0.0)
    check("adjacency over its largest entry", abs(a - b).max() / abs(b).max(), 1e-4)
    for name in ("active_features", "selected_features", "logit_token_ids"):
        if name in want:
            check(name + ", differing", float((got[name] != want[name]).sum()), 0)
    for name, allowed in (("activation_values", 1e-4), ("logit_probabilities", 1e-5), ("node_influence", 1e-5)):
        if name in want:
            check(name, abs(got[name] - want[name]).max(), allowed)
    for name in ("node_mask", "edge_mask"):
        check(name + ", differing", float((got[name] != want[name + suffix]).sum()), 0)
    for name in ("replacement_score", "completeness_score"):
        if scores:
            check(name, abs(float(got[name][0]) - scores[name]), 1e-5)


def main(program, folder):
    print(folder)
    listed = json.load(open(f"{folder}/expected.json"))
    tokens = ",".join(map(str, listed["input_tokens"]))
    with tempfile.TemporaryDirectory() as scratch:
        out, raw = f"{scratch}/graph.json", f"{scratch}/raw.safetensors"
        files = ("-o", out, "--raw", raw)
        want = load_file(f"{folder}/expected.safetensors")
        run(program, folder, tokens, "attribute", *files)
        graph(load_file(raw), want, "_0.8_0.98", listed)
        run(program, folder, tokens, "attribute", *files, "--node-threshold", 0.6, "--edge-threshold", 0.9)
        graph(load_file(raw), want, "_0.6_0.9", listed)
        top = listed["top96"]
        run(program, folder, tokens, "attribute", *files, "--max-features", top["max_feature_nodes"], "--max-logits", top["max_n_logits"],
            "--logit-mass", top["desired_logit_prob"])
        graph(load_file(raw), load_file(f"{folder}/expected_top96.safetensors"), "_0.8_0.98", top)
        want = load_file(f"{folder}/expected_interventions.safetensors")
        for one in listed["interventions"]:
            place = f"{one['layer']}_{one['feature']}_{one['pos']}={one['value']}"
            run(program, folder, tokens, "intervene", "--set", place, "--mode", one["mode"].replace("frozen_attn", "frozen-attention"), "--raw", raw)
            check(f"logits of {place} {one['mode']}", abs(load_file(raw)["logits"][-1] - want[one["key"]]).max(), 1e-4)


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        main(sys.argv[1], os.path.abspath(folder))
    sys.exit(bool(failed))
