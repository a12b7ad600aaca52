#!/usr/bin/env python3
"""Our exports, loaded by the programs whose formats they are in: the same activations and reconstructions.

usage: HF_HUB_OFFLINE=1 python3 tests/peers_load.py CLTLAB PEERS
CLTLAB is the program. PEERS and the packages are those of tests/fixtures/make/formats.py. Each fixture of tests/fixtures/formats is
read by us and written again by `cltlab clt convert`; the program loads what we wrote, encodes and decodes the fixture's inputs,
and the result is compared with what it gave on its own files.
"""
import os, subprocess, sys, tempfile, types

os.environ.update(SPARSIFY_DISABLE_TRITON="1", SPARSIFY_NO_COMPILE="1")
CLTLAB, PEERS = sys.argv[1:3]
for folder in ("crosslayer-coding", "clt-training", "CLT-Forge/src"):
    sys.path.insert(0, os.path.join(PEERS, folder))
for name in ("crosslayer_transcoder", "crosslayer_transcoder.model"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(PEERS, "crosslayer-transcoder", *name.split("."))]

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt, load_gemma_scope_2_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_2_transcoder, load_gemma_scope_transcoder, load_transcoder_set
from safetensors.torch import load_file

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures/formats")
CPU = torch.device("cpu")


def crosslayer_coding(folder, x):
    from clt.config import CLTConfig
    from clt.models.clt import CrossLayerTranscoder

    clt = CrossLayerTranscoder(CLTConfig.from_json(f"{folder}/cfg.json"), process_group=None, device=CPU)
    clt.load_state_dict(load_file(f"{folder}/clt_checkpoint_latest.safetensors"))
    reads = dict(enumerate(x))
    a, y = clt.get_feature_activations(reads), clt(reads)
    return [a[l] for l in reads], [y[l] for l in reads]


def sparsify(folder, x):
    import sparsify.sparse_coder as sparse_coder
    from sparsify import CrossLayerRunner, SparseCoder

    real = sparse_coder.ForwardOutput
    sparse_coder.ForwardOutput = lambda *values: real(*values[:4], values[-1])
    coders = list(SparseCoder.load_many(folder, local=True).values())
    runner, a, y = CrossLayerRunner(), [], []
    for l, coder in enumerate(coders):
        values, indices = coder.encode(x[l])
        a.append(torch.zeros(len(x[l]), coder.num_latents).scatter_(1, indices, values))
        y.append(runner(x[l], torch.zeros_like(x[l]), coder, str(l)).sae_out)
    sparse_coder.ForwardOutput = real
    return a, y


def clt_forge(folder, x):
    from clt_forge.clt import CLT

    clt = CLT.load_from_pretrained(folder)
    a, _ = clt.encode(torch.stack(x, 1) * clt.estimated_norm_scaling_factor_in.view(1, -1, 1))
    y = clt.decode(a) / clt.estimated_norm_scaling_factor_out.view(1, -1, 1)
    return a.unbind(1), y.unbind(1)


def crosslayer_transcoder(folder, x):
    from crosslayer_transcoder.model.clt import CrossLayerTranscoder

    _, a, _, y = CrossLayerTranscoder.from_pretrained(folder)(torch.stack(x, 1))
    return a.unbind(1), y.unbind(1)


def layers(load, name):
    def run(folder, x):
        parts = [load(f"{folder}/layer_{l}/{name}", l, device=CPU) for l in range(len(x))]
        a = [part.encode(x[l]) for l, part in enumerate(parts)]
        return a, [part.decode(a[l], x[l]) for l, part in enumerate(parts)]

    return run


def gemma_scope_2_clt(folder, x):
    # Its loader takes all files but that of the largest key.
    paths = {l: f"{folder}/params_layer_{l}.safetensors" for l in range(len(x))}
    clt = load_gemma_scope_2_clt({**paths, len(x): ""}, device=CPU, dtype=torch.float32)
    a = clt.encode(torch.stack(x))
    return a, clt.decode(a.to_sparse(), torch.stack(x))


def sae_lens(folder, x):
    from sae_lens import SAE

    parts = [SAE.load_from_disk(f"{folder}/layer_{l}") for l in range(len(x))]
    return [part.encode(x[l]) for l, part in enumerate(parts)], [part(x[l]) for l, part in enumerate(parts)]


def circuit_tracer(folder, x):
    common = dict(scan="", device=CPU, dtype=torch.float32, feature_input_hook="", feature_output_hook="")
    if os.path.exists(f"{folder}/layer_0.safetensors"):
        clt = load_transcoder_set({l: f"{folder}/layer_{l}.safetensors" for l in range(len(x))}, **common)
    else:
        clt = load_clt(folder, **common)
    a = clt.encode(torch.stack(x))
    return a, clt.decode(a.to_sparse(), torch.stack(x))


CASES = [
    ("crosslayer_coding_jumprelu", "crosslayer-coding", crosslayer_coding), ("crosslayer_coding_per_source", "crosslayer-coding", crosslayer_coding),
    ("clt_forge_plt", "crosslayer-coding", crosslayer_coding),
    ("sparsify_untied", "sparsify", sparsify), ("sparsify_concat", "sparsify", sparsify), ("sparsify_plt", "sparsify", sparsify),
    ("clt_forge_clt", "clt-forge", clt_forge), ("clt_forge_plt", "clt-forge", clt_forge), ("clt_forge_shards", "clt-forge", clt_forge), ("saelens_relu", "clt-forge", clt_forge),
    ("crosslayer_transcoder_folded", "crosslayer-transcoder", crosslayer_transcoder), ("crosslayer_transcoder_unfolded", "crosslayer-transcoder", crosslayer_transcoder),
    ("crosslayer_transcoder_plt", "crosslayer-transcoder", crosslayer_transcoder),
    ("gemma_scope", "gemma-scope", layers(load_gemma_scope_transcoder, "params.npz")),
    ("gemma_scope_2_plt", "gemma-scope-2", layers(load_gemma_scope_2_transcoder, "params.safetensors")), ("gemma_scope_2_clt", "gemma-scope-2", gemma_scope_2_clt),
    ("saelens_relu", "saelens", sae_lens), ("saelens_jumprelu_skip", "saelens", sae_lens),
    ("clt_forge_clt", "circuit-tracer", circuit_tracer), ("crosslayer_coding_per_target", "circuit-tracer", circuit_tracer), ("saelens_jumprelu_skip", "circuit-tracer", circuit_tracer),
]


@torch.no_grad()
def main():
    good = True
    for case, name, run in CASES:
        source = f"{FIXTURES}/{case}"
        want = load_file(f"{source}/expected.safetensors")
        count = sum(key.startswith("x.") for key in want)
        take = lambda kind: [want[f"{kind}.{l}"] for l in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([CLTLAB, "clt", "convert", source, folder, "--format", name], check=True, capture_output=True)
            a, y = run(folder, take("x"))
        worst = []
        for got, kind in ((a, "a"), (y, "y")):
            got, expected = torch.stack([value.float() for value in got]), torch.stack(take(kind))
            worst.append((got - expected).abs().max().item() / max(1.0, expected.abs().max().item()))
        good &= max(worst) <= 1e-5
        print(f"{case} as {name}: activations {worst[0]:.1e}, reconstruction {worst[1]:.1e}{'' if max(worst) <= 1e-5 else ': TOO LARGE'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
