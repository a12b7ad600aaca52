#!/usr/bin/env python3
"""A CLT that we trained, loaded by circuit-tracer: the same activations and reconstruction as ours.

usage: python3 tests/circuit_tracer_loads.py CLTLAB MODEL CLT (--prompt TEXT | --tokens 1,2,3) [--tolerance 1e-5]
Needs circuit-tracer (0.5.0), torch, safetensors. CLTLAB is the program, MODEL and CLT what it takes by these names:
`cltlab clt convert` writes CLT as circuit-tracer reads it, `cltlab clt encode` runs the model on the prompt and gives what
each layer reads, our activations and our reconstruction. circuit-tracer loads the folder, eagerly and lazily, from the
same inputs; the largest differences are printed, and one above the tolerance (of the largest value, at least 1) is an error.
"""
import argparse, os, subprocess, sys, tempfile
import torch
import yaml
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file


def load(folder, lazy):
    with open(os.path.join(folder, "config.yaml")) as f:
        config = yaml.safe_load(f)
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook")}
    common = dict(hooks, scan="ours", device=torch.device("cpu"), dtype=torch.float32, lazy_encoder=lazy, lazy_decoder=lazy)
    if config["model_kind"] == "cross_layer_transcoder":
        return load_clt(folder, **common)
    files = sorted((name for name in os.listdir(folder) if name.startswith("layer_")), key=lambda name: int(name[6:].split(".")[0]))
    paths = {layer: os.path.join(folder, name) for layer, name in enumerate(files)}
    # Version 0.5.0 knows no `activation`: it is named only where it is needed.
    more = {name: config[name] for name in ("activation", "k") if name in config}
    return load_transcoder_set(paths, **more, **common)


@torch.no_grad()
def compare(folder, raw, lazy, tolerance):
    transcoder = load(folder, lazy)
    layers = sum(name.startswith("x.") for name in raw)
    stack = lambda kind: torch.stack([raw[f"{kind}.{layer}"] for layer in range(layers)])
    x, ours, reconstruction = stack("x"), stack("a"), stack("y")
    theirs = transcoder.encode(x)
    decoded = transcoder.decode(theirs.to_sparse(), x)
    good = True
    for what, got, want in (("activations", ours, theirs), ("reconstruction", reconstruction, decoded)):
        difference, top = (got - want).abs().max().item(), want.abs().max().item()
        allowed = tolerance * max(1.0, top)
        good &= difference <= allowed
        print(f"{'lazy' if lazy else 'eager'} {what}: largest difference {difference:.2e}, largest value {top:.3g}, allowed {allowed:.2e}{'' if difference <= allowed else ': TOO LARGE'}")
    apart = ((ours != 0) != (theirs != 0)).sum().item()
    print(f"  {layers} layers, {x.shape[1]} tokens, {(ours != 0).sum().item()} active features, {apart} active on one side only")
    return good


def main():
    parser = argparse.ArgumentParser()
    for name in ("cltlab", "model", "clt"):
        parser.add_argument(name)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt")
    what.add_argument("--tokens")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    text = ["--prompt", args.prompt] if args.prompt else ["--tokens", args.tokens]
    with tempfile.TemporaryDirectory() as scratch:
        folder, raw = os.path.join(scratch, "clt"), os.path.join(scratch, "raw.safetensors")
        for command in (["convert", args.clt, folder, "--format", "circuit-tracer"], ["encode", args.clt, "--model", args.model, *text, "--raw", raw]):
            print(subprocess.run([args.cltlab, "clt", *command], check=True, capture_output=True, text=True).stdout.strip())
        arrays = load_file(raw)
        good = [compare(folder, arrays, lazy, args.tolerance) for lazy in (False, True)]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
