#!/usr/bin/env python3
"""Training steps of PyTorch on one GPU: one variant of one shape, in a process of its own. benches/train_gpu.py runs it.

    python3 benches/gpu_peers.py VARIANT SHAPE [--steps 40] [--device cuda]

Prints a line of JSON: tokens/s, milliseconds a step, GiB reserved at most, the last loss; where a CUDA graph of the step
can be captured, a second line with the faster of the two. Variants:

- dense: decoders as rows [F, (L - l) d] a source layer, so one product a layer; bf16 autocast over f32 weights, fused Adam,
  torch.compile (without it where that fails)
- bag: the same rows, embedding_bag in bf16 for the decoders; their gradients are dense; fused Adam
- triton: the same rows; decoding, decoder gradients, encoder gradients by the Triton kernels of gpu_kernels.py from lists of
  (token, feature, value), written by hand as one autograd function; fused Adam on f32 weights
- dense-bf16, triton-bf16: weights, gradients and moments in bf16, rounded to nearest: the fewest bytes that torch.optim offers.
  Most updates are smaller than half a unit in a bf16 weight's last place and are lost: a bound on speed, not a training
- openclt: the loop of openCLT (MIT) written anew so that it runs: dense codes in f32, 78 products one by one, Adam not fused

Top-k of a long row (all but openclt): maxima of groups first, then the k best groups' entries; the same entries as torch.topk.
"""

import argparse
import json
import math
import sys
import time

SHAPES = {
    "seed": dict(layers=12, width=768, features=9216, k=184, tokens=192),
    "seed-4096": dict(layers=12, width=768, features=9216, k=184, tokens=4096),
    "sparse": dict(layers=12, width=768, features=24576, k=16, tokens=4096),
    "batch-topk": dict(layers=12, width=768, features=49152, k=16, tokens=1024, batch=True),
    "smollm2": dict(layers=30, width=576, features=2048, k=32, tokens=4096, model=dict(heads=9, kv=3, inner=1536, vocab=49152, context=128)),
    "attribution": None,
    "tiny-model": dict(layers=3, width=64, features=128, k=4, tokens=32, model=dict(heads=4, kv=2, inner=96, vocab=50, context=16)),
    "tiny-graph": None,
    "tiny": dict(layers=2, width=64, features=128, k=4, tokens=32),
    "tiny-batch": dict(layers=2, width=64, features=128, k=4, tokens=32, batch=True),
}
VARIANTS = {
    "dense": "PyTorch dense, compiled, bf16 autocast, fused Adam",
    "bag": "PyTorch embedding_bag, bf16, fused Adam",
    "triton": "PyTorch + Triton sparse, bf16, fused Adam",
    "dense-bf16": "PyTorch dense, compiled, all of it in bf16",
    "triton-bf16": "PyTorch + Triton sparse, all of it in bf16",
    "openclt": "openCLT's loop",
}


def variants(shape):
    """Those of a shape; the ones that can be the best first."""
    s = SHAPES[shape]
    if not s:
        return []
    if s.get("batch"):
        return ["triton", "dense", "triton-bf16", "dense-bf16"]
    if s["tokens"] * s["k"] < 4 * s["features"]:
        return ["triton", "triton-bf16", "bag", "dense", "dense-bf16", "openclt"]
    return ["dense", "triton", "dense-bf16", "triton-bf16", "bag", "openclt"]


def parameters(torch, s, device, dtype, rows):
    """Encoders, biases, and decoders as rows of features (`rows`) or one [d, F] a pair."""
    L, d, F = s["layers"], s["width"], s["features"]
    small = lambda bound, *shape: torch.nn.Parameter(torch.empty(*shape, device=device, dtype=dtype).uniform_(-bound, bound))
    clt = torch.nn.Module()
    clt.encoder = torch.nn.ParameterList(small(F**-0.5, F, d) for _ in range(L))
    clt.encoder_bias = torch.nn.Parameter(torch.zeros(L, F, device=device, dtype=dtype))
    if rows:
        clt.decoder = torch.nn.ParameterList(small((L * d) ** -0.5, F, (L - l) * d) for l in range(L))
    else:
        clt.decoder = torch.nn.ParameterList(small((L * d) ** -0.5, d, F) for t in range(L) for _ in range(t + 1))
    clt.decoder_bias = torch.nn.Parameter(torch.zeros(L, d, device=device, dtype=dtype))
    return clt


def llama(torch, s, device, dtype):
    """A random model of Llama's kind; gives inputs [L, tokens, d] and targets [tokens, L d] of its MLPs for new tokens every time."""
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
        return stream + y, stream.to(dtype), y

    @torch.no_grad()
    def run(layer):
        stream = embedding[torch.randint(m["vocab"], (s["tokens"] // T, T), device=device)].float()
        xs, ys = [], []
        for block in blocks:
            stream, x, y = layer(stream, **block)
            xs.append(x.flatten(0, 1))
            ys.append(y.flatten(0, 1))
        return torch.stack(xs), torch.cat(ys, 1)

    compiled = torch.compile(layer)
    try:
        run(compiled)
    except Exception as error:  # as with the step
        print(f"model not compiled: {type(error).__name__}: {error}", file=sys.stderr)
        compiled = layer
    return lambda: run(compiled)


def top(h, k):
    """Indices of the k largest of each row; a group whose largest is not among the k best groups holds none of them."""
    n = h.shape[1]
    group = 2 ** round(math.log2(max(n / k, 1)) / 2)
    if n % group or n // group + k * group > n // 3:
        return h.topk(k, dim=1, sorted=False).indices
    groups = h.unflatten(1, (n // group, group))
    best = groups.amax(2).topk(k, dim=1, sorted=False).indices
    inside = groups.gather(1, best.unsqueeze(2).expand(-1, -1, group)).flatten(1).topk(k, dim=1, sorted=False).indices
    return best.gather(1, inside // group) * group + inside % group


def kept(torch, h, s):
    """Indices that TopK or BatchTopK keeps, [rows, count] into the rows of what is returned first."""
    flat = h.reshape(1, -1) if s.get("batch") else h
    with torch.no_grad():
        return flat, top(flat.detach(), s["k"] * s["tokens"] if s.get("batch") else s["k"])


def dense_loss(torch, s):
    L, d, tokens = s["layers"], s["width"], s["tokens"]

    def loss(clt, x, y):
        total = clt.decoder_bias.flatten().float()
        for l in range(L):
            h = torch.relu(torch.nn.functional.linear(x[l], clt.encoder[l], clt.encoder_bias[l]))
            flat, indices = kept(torch, h, s)
            codes = torch.zeros_like(flat).scatter(1, indices, flat.gather(1, indices)).view(h.shape)
            # From layer l on; one sum over all sources instead of L (L + 1) / 2 small ones.
            total = total + torch.nn.functional.pad((codes @ clt.decoder[l]).float(), (l * d, 0))
        return (total - y.float()).square().sum() / tokens

    return loss


def bag_loss(torch, s):
    L, d, tokens = s["layers"], s["width"], s["tokens"]

    def loss(clt, x, y):
        outs = [clt.decoder_bias[t].expand(tokens, d).float() for t in range(L)]
        for l in range(L):
            h = torch.relu(torch.nn.functional.linear(x[l], clt.encoder[l], clt.encoder_bias[l]))
            _, indices = kept(torch, h, s)
            values = h.gather(1, indices).to(torch.bfloat16)
            wide = torch.nn.functional.embedding_bag(indices, clt.decoder[l].to(torch.bfloat16), per_sample_weights=values, mode="sum").float()
            for t, part in enumerate(wide.split(d, dim=1)):
                outs[l + t] = outs[l + t] + part
        return (torch.cat(outs, 1) - y.float()).square().sum() / tokens

    return loss


def openclt_loss(torch, s):
    """Codes and targets as lists of layers, every pair decoded on its own, in f32, as its trainer does."""
    L, k, d = s["layers"], s["k"], s["width"]

    def loss(clt, x, y):
        features = []
        for l in range(L):
            h = torch.relu(x[l].float() @ clt.encoder[l].t() + clt.encoder_bias[l])
            best = torch.topk(h, k, dim=-1)
            features.append(torch.zeros_like(h).scatter_(-1, best.indices, best.values))
        total = 0.0
        for t in range(L):
            target = y[:, t * d : (t + 1) * d].float()
            out = torch.zeros_like(target)
            for source in range(t + 1):
                out = out + features[source] @ clt.decoder[t * (t + 1) // 2 + source].t()
            total = total + (out + clt.decoder_bias[t] - target).square().sum(-1).mean()
        return total

    return loss


def triton_loss(torch, s):
    """The whole loss as one autograd function: forward by token, gradients by feature over lists in order."""
    sys.dont_write_bytecode = True  # no __pycache__ in the tree
    import triton
    from gpu_kernels import decode, gradients

    L, d, F, T, k = s["layers"], s["width"], s["features"], s["tokens"], s["k"]
    half = torch.bfloat16
    BLOCK = min(512, triton.next_power_of_2(d))
    by_token = min(8, triton.next_power_of_2(k))
    by_feature = 4 if T * k < 4 * F else 8

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(context, x, y, encoder_bias, decoder_bias, *weights):
            total = decoder_bias.flatten().float().expand(T, L * d).contiguous()
            arange = torch.arange(T + 1, device=x.device)
            saved = []
            for l in range(L):
                encoder, rows = weights[l].to(half), weights[L + l].to(half)
                h = torch.nn.functional.linear(x[l], encoder, encoder_bias[l].to(half)).relu_()
                flat, indices = kept(torch, h, s)
                indices = indices.sort(dim=1).values if s.get("batch") else indices
                values = flat.gather(1, indices).flatten()
                features, tokens = (indices % F, indices // F) if s.get("batch") else (indices, arange[:T].repeat_interleave(k))
                offsets = torch.searchsorted(tokens.flatten(), arange) if s.get("batch") else arange * k
                features, tokens = features.flatten().to(torch.int32), tokens.flatten().to(torch.int32)
                D = rows.shape[1]
                decode[(T, triton.cdiv(D, BLOCK))](offsets, features, values, rows, total[:, l * d :], D, L * d, MANY=by_token, BLOCK=BLOCK)
                saved += [features, tokens, values, rows]
            total -= y
            context.grad = torch.mul(total, 2 / T, out=torch.empty_like(total, dtype=half))
            context.types = [encoder_bias.dtype, decoder_bias.dtype]
            context.save_for_backward(x, *saved)
            return total.square_().sum() / T

        @staticmethod
        def backward(context, _):
            """Of the loss itself: nothing is computed from it."""
            x, *saved = context.saved_tensors
            grad, (bias_type, out_type) = context.grad, context.types
            encoder_bias = torch.empty(L, F, device=x.device, dtype=bias_type)
            encoders, decoders = [], []
            places = torch.arange(F + 1, device=x.device, dtype=torch.int32)
            for l in range(L):
                features, tokens, values, rows = saved[4 * l : 4 * l + 4]
                ordered, order = features.sort(stable=True)
                offsets, tokens, values = torch.searchsorted(ordered, places), tokens[order], values[order]
                D, count = rows.shape[1], len(values)
                parts = triton.cdiv(D, BLOCK)
                dots = torch.empty(parts, count, device=x.device)
                decoders.append(torch.empty(F, D, device=x.device, dtype=bias_type))
                gradients[(F, parts)](offsets, tokens, values, grad[:, l * d :], rows, decoders[-1], dots, dots, count, D, L * d, DECODER=True, MANY=by_feature, BLOCK=BLOCK)
                slopes = dots.sum(0) * (values > 0)
                encoders.append(torch.empty(F, d, device=x.device, dtype=bias_type))
                gradients[(F, triton.cdiv(d, BLOCK))](offsets, tokens, slopes, x[l], rows, encoders[-1], dots, encoder_bias[l], count, d, d, DECODER=False, MANY=by_feature, BLOCK=BLOCK)
            return None, None, encoder_bias, grad.sum(0, dtype=torch.float32).view(L, d).to(out_type), *encoders, *decoders

    return lambda clt, x, y: Loss.apply(x, y, clt.encoder_bias, clt.decoder_bias, *clt.encoder, *clt.decoder)


def captured(torch, step, adam):
    """The step as one CUDA graph; what it needs is allocated anew, so the gradients and buffers before it are given back."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(0)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    adam.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(0)
    return graph.replay


def measure(name, shape, steps, device, graphs=True):
    """Lines of figures of one variant, the last the best."""
    import torch

    torch.manual_seed(0)
    s, kind, half = SHAPES[shape], name.removesuffix("-bf16"), torch.bfloat16
    cuda = device == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = kind != "openclt"
    loss = {"dense": dense_loss, "bag": bag_loss, "triton": triton_loss, "openclt": openclt_loss}[kind](torch, s)
    clt = parameters(torch, s, device, half if name.endswith("-bf16") else torch.float32, kind != "openclt")
    adam = torch.optim.Adam(clt.parameters(), lr=1e-4, **({} if kind == "openclt" else {"fused": True, "capturable": cuda}))
    dtype = torch.float32 if kind == "openclt" else half
    model = llama(torch, s, device, half if cuda else torch.float32) if s.get("model") else None
    random = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    pool = [] if model else [(random(s["layers"], s["tokens"], s["width"]), random(s["tokens"], s["layers"] * s["width"])) for _ in range(2)]
    call = torch.compile(loss) if kind == "dense" else loss
    synchronise = torch.cuda.synchronize if cuda else lambda: None

    def step(i):
        x, y = (side.to(dtype) for side in model()) if model else pool[i % 2]
        adam.zero_grad(set_to_none=True)
        with torch.autocast(device, half, enabled=name in ("dense", "bag")):
            value = call(clt, x, y)
        value.backward()
        adam.step()
        return value.detach()

    def pace(step, most):
        """Milliseconds a step of as many as fit in eight seconds, and the last one's result."""
        synchronise()
        for count in (2, None):
            count = count or max(3, min(most, int(8 / seconds)))
            start = time.perf_counter()
            for i in range(count):
                value = step(i)
            synchronise()
            seconds = (time.perf_counter() - start) / count
        return 1e3 * seconds, value

    began = time.perf_counter()
    try:
        step(0)
    except Exception as error:  # torch.compile gives up on some shapes and machines
        if kind != "dense" or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        print(f"not compiled: {type(error).__name__}: {error}", file=sys.stderr)
        call = loss
        adam.zero_grad(set_to_none=True)
        step(0)
    for i in range(3):
        step(i)
    synchronise()
    first = time.perf_counter() - began
    ms, value = pace(step, steps)
    gib = torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0
    found = dict(ms=ms, tokens_per_second=1e3 * s["tokens"] / ms, gib=gib, loss=value.item(), first_s=first, compiled=kind == "dense" and call is not loss)
    yield found
    if not (cuda and graphs) or kind == "openclt":
        return
    try:
        del value
        adam.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        graph_ms, _ = pace(lambda i, replay=captured(torch, step, adam): replay(), steps)
    except Exception as error:
        print(f"no CUDA graph: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return
    best = min(ms, graph_ms)
    yield dict(found, eager_ms=ms, graph_ms=graph_ms, ms=best, tokens_per_second=1e3 * s["tokens"] / best)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("shape", choices=[name for name, shape in SHAPES.items() if shape])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cuda", help="cpu only to see that it runs (triton: with TRITON_INTERPRET=1)")
    given = parser.parse_args()
    for found in measure(given.variant, given.shape, given.steps, given.device):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
