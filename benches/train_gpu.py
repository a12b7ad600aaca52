#!/usr/bin/env python3
"""Training steps on one GPU side by side with PyTorch: the same loss, shapes and random activations.

    python3 benches/train_gpu.py CLTLAB [--shapes sparse,seed-4096,smollm2,seed,attribution] [--steps 40] [--minutes 9] [--json FILE]

CLTLAB is the program that ./x build-cuda makes; it needs nothing else. Loss: sum over layers of the squared error a
token, TopK after a ReLU, Adam; no sparsity term and no clipping on either side. Ours holds weights and moments in
bf16 and eight bits, f32 and eight bits, or f32 and f32. PyTorch's variants hold weights and moments in f32:

- dense: a row [F, (L - l) d] a feature, so one product a source layer; bf16 autocast, fused Adam, torch.compile (and without
  it, where that fails)
- bag: the same rows, embedding_bag in bf16, fused Adam: gradients of decoders are dense
- triton: the same rows, decode and gradients by Triton kernels of this file from (feature, value) lists, fused Adam
- openclt: the loop of openCLT (MIT) written anew so that it runs: dense codes in f32, 78 products one by one, Adam
  not fused

smollm2 is end to end: each step's activations come from the forward pass in bf16 of a random model of SmolLM2-135M's
shape (contexts of 128 tokens, torch's own attention, blocks compiled). attribution is ours alone; benches/attribution.py
--device cuda runs circuit-tracer beside it where that is installed.

Ours and theirs have the card in turns, shape by shape: ours in one process, theirs in another, one variant after the other with
its memory given back between. tokens/s is over all timed steps together, memory the most that a variant had reserved. The floor
is ours, see `cltlab bench --help`; beside it are the times of our step when codes go through dense products, through lists, or
through the one forward and the other backward. With --minutes what does not begin in time is left out and named.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

SHAPES = {
    "seed": dict(layers=12, width=768, features=9216, k=184, tokens=192),
    "seed-4096": dict(layers=12, width=768, features=9216, k=184, tokens=4096),
    "sparse": dict(layers=12, width=768, features=24576, k=16, tokens=4096),
    "smollm2": dict(layers=30, width=576, features=2048, k=32, tokens=4096, model=dict(heads=9, kv=3, inner=1536, vocab=49152, context=128)),
    "attribution": None,
    "tiny-model": dict(layers=3, width=64, features=128, k=4, tokens=32, model=dict(heads=4, kv=2, inner=96, vocab=50, context=16)),
    "tiny-graph": None,
    "tiny": dict(layers=2, width=64, features=128, k=4, tokens=32),
}
# Those that can be the best first.
ORDER = {"sparse": "triton,bag,dense,openclt", "smollm2": "dense,bag,triton,openclt"}
PEERS = {"dense": "PyTorch dense, bf16 autocast, fused Adam, compiled", "bag": "PyTorch embedding_bag, bf16, fused Adam", "triton": "PyTorch + Triton sparse, bf16, fused Adam", "openclt": "openCLT's loop"}


# ---- the other side ------------------------------------------------------------------------------

def parameters(torch, s, device, rows):
    """Encoders, biases, and decoders as rows of features (`rows`) or one [d, F] a pair."""
    L, d, F = s["layers"], s["width"], s["features"]
    small = lambda bound, *shape: torch.nn.Parameter(torch.empty(*shape, device=device).uniform_(-bound, bound))
    holder = torch.nn.Module()
    holder.encoder = torch.nn.ParameterList(small(F**-0.5, F, d) for _ in range(L))
    holder.encoder_bias = torch.nn.Parameter(torch.zeros(L, F, device=device))
    if rows:
        holder.decoder = torch.nn.ParameterList(small((L * d) ** -0.5, F, (L - l) * d) for l in range(L))
    else:
        holder.decoder = torch.nn.ParameterList(small((L * d) ** -0.5, d, F) for t in range(L) for _ in range(t + 1))
    holder.decoder_bias = torch.nn.Parameter(torch.zeros(L, d, device=device))
    return holder


def llama(torch, s, device, dtype):
    """A random model of Llama's kind; gives inputs and targets of its MLPs, [L, tokens, d] each, for new tokens every time."""
    L, d, m = s["layers"], s["width"], s["model"]
    heads, kv, inner, T = m["heads"], m["kv"], m["inner"], m["context"]
    h, F = d // heads, torch.nn.functional
    random = lambda *shape: (torch.randn(*shape, device=device) * shape[-1] ** -0.5).to(dtype)
    embedding = torch.randn(m["vocab"], d, device=device).to(dtype)
    blocks = [dict(q=random(d, d), k=random(kv * h, d), v=random(kv * h, d), o=random(d, d), gate=random(inner, d), up=random(inner, d), down=random(d, inner)) for _ in range(L)]
    angles = torch.outer(torch.arange(T, device=device), 10000.0 ** (-torch.arange(0, h, 2, device=device) / h))
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    turn = lambda x: (x * cos + torch.cat((-x[..., h // 2 :], x[..., : h // 2]), -1) * sin).to(dtype)
    norm = lambda x: F.rms_norm(x.float(), (d,)).to(dtype)

    def layer(stream, q, k, v, o, gate, up, down):
        n = norm(stream)
        split = lambda weight, count: F.linear(n, weight).unflatten(-1, (count, h)).transpose(1, 2)
        queries, keys, values = turn(split(q, heads)), turn(split(k, kv)), split(v, kv)
        mixed = F.scaled_dot_product_attention(queries, keys.repeat_interleave(heads // kv, 1), values.repeat_interleave(heads // kv, 1), is_causal=True)
        stream = stream + F.linear(mixed.transpose(1, 2).flatten(2), o)
        n = norm(stream)
        y = F.linear(F.silu(F.linear(n, gate)) * F.linear(n, up), down)
        return stream, y

    @torch.no_grad()
    def run(layer):
        stream = embedding[torch.randint(m["vocab"], (s["tokens"] // T, T), device=device)].float()
        xs, ys = [], []
        for block in blocks:
            stream, y = layer(stream, **block)
            xs.append(stream.flatten(0, 1))
            ys.append(y.flatten(0, 1))
            stream = stream + y
        return torch.stack(xs), torch.stack(ys)

    compiled = torch.compile(layer)
    try:
        run(compiled)
    except Exception as error:  # as with the step
        print(f"model not compiled: {type(error).__name__}", file=sys.stderr)
        compiled = layer
    return lambda: run(compiled)


def sparse_loss(torch, s, decode):
    """`decode(indices, values, rows)` gives [tokens, (L - l) d]."""
    L, d, k = s["layers"], s["width"], s["k"]

    def loss(clt, x, y):
        tokens = x.shape[1]
        outs = [clt.decoder_bias[t].expand(tokens, d).float() for t in range(L)]
        for l in range(L):
            h = torch.relu(torch.nn.functional.linear(x[l], clt.encoder[l], clt.encoder_bias[l]))
            kept = h.topk(k, dim=1, sorted=False)
            wide = decode(kept.indices, kept.values, clt.decoder[l]).float()
            for t, part in enumerate(wide.split(d, dim=1)):
                outs[l + t] = outs[l + t] + part
        return sum((out - y[t].float()).square().sum() for t, out in enumerate(outs)) / tokens

    return loss


def dense_decode(torch, features):
    def decode(indices, values, rows):
        codes = torch.zeros(indices.shape[0], features, device=rows.device, dtype=values.dtype)
        return codes.scatter(1, indices, values) @ rows

    return decode


def bag(torch):
    def decode(indices, values, rows):
        return torch.nn.functional.embedding_bag(indices, rows.to(torch.bfloat16), per_sample_weights=values.to(torch.bfloat16), mode="sum")

    return decode


def triton_decode(torch):
    """Forward by token; gradients of values by token, of rows by feature over sorted lists: no atomics."""
    import triton
    import triton.language as tl

    @triton.jit
    def forward(indices, values, rows, out, K, D, BLOCK: tl.constexpr):
        token, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = column < D
        total = tl.zeros((BLOCK,), tl.float32)
        for j in range(K):
            feature = tl.load(indices + token * K + j)
            value = tl.load(values + token * K + j).to(tl.float32)
            total += value * tl.load(rows + feature * D + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + token.to(tl.int64) * D + column, total.to(tl.bfloat16), mask=mask)

    @triton.jit
    def value_gradients(indices, rows, grad, out, K, D, BLOCK: tl.constexpr):
        entry = tl.program_id(0)
        token = entry // K
        feature = tl.load(indices + entry)
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, D, BLOCK):
            column = begin + tl.arange(0, BLOCK)
            mask = column < D
            g = tl.load(grad + token.to(tl.int64) * D + column, mask=mask, other=0.0).to(tl.float32)
            total += g * tl.load(rows + feature * D + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + entry, tl.sum(total))

    @triton.jit
    def row_gradients(offsets, order, values, grad, out, K, D, BLOCK: tl.constexpr):
        feature, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = column < D
        total = tl.zeros((BLOCK,), tl.float32)
        for i in range(tl.load(offsets + feature), tl.load(offsets + feature + 1)):
            entry = tl.load(order + i)
            value = tl.load(values + entry).to(tl.float32)
            total += value * tl.load(grad + (entry // K).to(tl.int64) * D + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + feature.to(tl.int64) * D + column, total, mask=mask)

    class Decode(torch.autograd.Function):
        @staticmethod
        def forward(context, indices, values, rows):
            tokens, K = indices.shape
            D = rows.shape[1]
            half = rows.to(torch.bfloat16)
            out = torch.empty(tokens, D, device=rows.device, dtype=torch.bfloat16)
            forward[(tokens, triton.cdiv(D, 1024))](indices, values, half, out, K, D, BLOCK=1024)
            context.save_for_backward(indices, values, half)
            return out

        @staticmethod
        def backward(context, grad):
            indices, values, half = context.saved_tensors
            tokens, K = indices.shape
            F, D = half.shape
            grad = grad.contiguous().to(torch.bfloat16)
            value_grad = torch.empty(tokens * K, device=grad.device)
            value_gradients[(tokens * K,)](indices, half, grad, value_grad, K, D, BLOCK=1024)
            flat, order = indices.flatten().sort(stable=True)
            offsets = torch.searchsorted(flat, torch.arange(F + 1, device=flat.device))
            row_grad = torch.empty(F, D, device=grad.device)
            row_gradients[(F, triton.cdiv(D, 1024))](offsets, order, values, grad, row_grad, K, D, BLOCK=1024)
            return None, value_grad.view(tokens, K).to(values.dtype), row_grad

    return Decode.apply


def openclt_loss(torch, s):
    """Codes and targets as lists of layers, every pair decoded on its own, in f32, as its trainer does."""
    L, k = s["layers"], s["k"]

    def loss(clt, x, y):
        features = []
        for l in range(L):
            h = torch.relu(x[l].float() @ clt.encoder[l].t() + clt.encoder_bias[l])
            kept = torch.topk(h, k, dim=-1)
            features.append(torch.zeros_like(h).scatter_(-1, kept.indices, kept.values))
        total = 0.0
        for t in range(L):
            out = torch.zeros_like(y[t], dtype=torch.float32)
            for source in range(t + 1):
                out = out + features[source] @ clt.decoder[t * (t + 1) // 2 + source].t()
            total = total + (out + clt.decoder_bias[t] - y[t].float()).square().sum(-1).mean()
        return total

    return loss


def peer(name, s, steps, device="cuda"):
    """tokens/s, memory and the last loss of one variant."""
    import torch

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = name != "openclt"
    decode = {"dense": lambda: dense_decode(torch, s["features"]), "bag": lambda: bag(torch), "triton": lambda: triton_decode(torch)}
    loss = openclt_loss(torch, s) if name == "openclt" else sparse_loss(torch, s, decode[name]())
    clt = parameters(torch, s, device, name != "openclt")
    adam = torch.optim.Adam(clt.parameters(), lr=1e-4, **({} if name == "openclt" else {"fused": True}))
    dtype = torch.float32 if name == "openclt" else torch.bfloat16
    model = llama(torch, s, device, torch.bfloat16 if device == "cuda" else torch.float32) if s.get("model") else None
    pool = [] if model else [torch.randn(2, s["layers"], s["tokens"], s["width"], device=device, dtype=dtype) for _ in range(2)]
    call = torch.compile(loss) if name == "dense" else loss
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None

    def step(i):
        x, y = (side.to(dtype) for side in model()) if model else pool[i % 2]
        adam.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=name != "openclt"):
            value = call(clt, x, y)
        value.backward()
        adam.step()
        return value

    try:
        step(0)
    except Exception as error:  # torch.compile gives up on some shapes and machines
        if name != "dense" or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        print(f"not compiled: {type(error).__name__}", file=sys.stderr)
        call = loss
    for i in range(5):
        step(i)
    synchronise()
    start = time.perf_counter()
    for i in range(steps):
        value = step(i)
    synchronise()
    seconds = (time.perf_counter() - start) / steps
    memory = torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else 0.0
    return dict(tokens_per_second=s["tokens"] / seconds, ms=1e3 * seconds, gib=memory, loss=value.item())


def peers(names, s, steps, device):
    """One variant after the other; prints a line of JSON for each."""
    import gc, torch

    for name in names:
        try:
            found = peer(name, s, steps, device)
        except Exception as error:
            found = dict(error=f"{type(error).__name__}: {error}".splitlines()[0][:200])
        print(json.dumps(dict(found, side=name)), flush=True)
        gc.collect()
        torch._dynamo.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


# ---- the run -------------------------------------------------------------------------------------

def lines(command, limit):
    """Lines of JSON that a program printed before it ended or `limit` seconds were over, and what it said last."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        watch = threading.Timer(limit, process.kill)
        watch.start()
        found = [json.loads(line) for line in process.stdout if line.startswith("{")]
        code = process.wait()
        late = not watch.is_alive()
        watch.cancel()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no output"])[-1]
    return found, "no time" if late else f"exit status {code}: {last[:90]}" if code else ""


def ours(given, shape, left, rows, results):
    found, why = lines([given.cltlab, "bench", "--device", "cuda", "--shapes", shape, "--timed", str(given.steps)], left())
    for line in found:
        if "ceilings" in line:
            c = line["ceilings"]
            print(f"card: copy {c['copy'] / 1e9:.0f} GB/s, products {c['bf16'] / 1e12:.0f} TFLOP/s bf16, {c['f32'] / 1e12:.0f} f32")
        elif "rows_per_second" in line:
            print(f"attribution, {line['tokens']} tokens: {line['rows']} rows of {line['active']} active features, {line['rows_per_second']:.0f} rows/s, {line['attribute_s']:.2f} s, floor {line['floor_s']:.3f} s, {100 * line['share']:.0f} %")
        elif "error" in line:
            rows.append((f"ours, {line['held']}", None, None, line["error"]))
        else:
            ways = ", ".join(f"{way} {line[way + '_ms']:.2f}" for way in ("dense", "dense_forward", "lists"))
            rows.append((f"ours, {line['held']}", line["tokens_per_second"], line["used_gib"], f"{line['ms']:.2f} ms ({ways}), floor {line['floor_ms']:.2f} ms, {100 * line['share']:.0f} %"))
    if why:
        rows.append(("ours", None, None, why))
    results += [dict(line, side="ours") for line in found]


def theirs(given, shape, left, rows, results):
    names = [name for name in (given.peers or ORDER.get(shape, "dense,bag,triton,openclt")).split(",") if name]
    if not names:
        return
    found, why = lines([sys.executable, os.path.abspath(__file__), "-", "--as-peers", json.dumps([names, shape, given.steps, given.device])], left())
    for line in found:
        rows.append((PEERS[line["side"]], line.get("tokens_per_second"), line.get("gib"), line.get("error") or f"{line['ms']:.2f} ms"))
        results.append(dict(line, shape=shape))
    for name in names[len(found):]:
        rows.append((PEERS[name], None, None, why))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cltlab")
    parser.add_argument("--shapes", default="sparse,seed-4096,smollm2,seed,attribution")
    parser.add_argument("--peers", help="which, in which order; none with an empty word")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--device", default="cuda", help="cpu only to see that the other side runs")
    parser.add_argument("--json")
    parser.add_argument("--as-peers", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peers:
        names, shape, steps, device = json.loads(given.as_peers)
        return peers(names, SHAPES[shape], steps, device)
    end, results = time.monotonic() + 60 * given.minutes, []
    left = lambda: max(end - time.monotonic(), 1)
    for shape in given.shapes.split(","):
        if left() < 10:
            print(f"{shape}: left out, no time")
            continue
        rows = []
        if given.cltlab != "-":
            ours(given, shape, left, rows, results)
            write(given, results)
        if SHAPES[shape]:
            theirs(given, shape, left, rows, results)
        best = max((row[1] for row in rows if row[1] and not row[0].startswith("ours") and not row[0].startswith("openCLT")), default=None)
        if rows:
            print(f"\n{shape}: {SHAPES[shape]}\n| program | tokens/s | x best PyTorch | GiB | |\n|---|---|---|---|---|")
        for name, rate, memory, note in rows:
            ratio = f"{rate / best:.2f}" if rate and best else ""
            print(f"| {name} | {f'{rate:.0f}' if rate else '-'} | {ratio} | {f'{memory:.1f}' if memory else ''} | {note} |")
        sys.stdout.flush()
        write(given, results)


def write(given, results):
    if given.json:
        with open(given.json, "w") as out:
            json.dump(results, out, indent=1)


if __name__ == "__main__":
    main()
