#!/usr/bin/env python3
"""Training steps side by side with PyTorch: the same loss, shapes and optimiser, random activations.

    python benches/train.py CLTLAB [--shape small,gpt2-k16,gpt2] [--quick] [--moments f32,eight_bit]
                                   [--peers dense,dense-fused,bag-fused] [--no-scaling]

Every program is a process of its own that does one step for each line it is sent. On the small shape
they take turns step by step; a large one (11 GB in PyTorch) has the machine to itself for a block of
steps, and blocks take turns. tokens/s is the median over steps (and the best step); memory is the
process's VmHWM. Loss: sum over layers of the squared error a token, TopK after a ReLU, Adam with
weights in f32; no sparsity term and no clipping on either side. The floor is reckoned from this machine's
own GEMM rate and memory bandwidth, measured in the same run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPES = {
    "small": dict(layers=6, width=256, features=2048, k=32, tokens=512),
    "gpt2-k16": dict(layers=12, width=768, features=9216, k=16, tokens=240),
    "gpt2": dict(layers=12, width=768, features=9216, k=184, tokens=240),
}
# Our variants: what the program is told, and the bytes that a step moves for a weight: the gradient read
# once (4), weight and moments read and written. Rows of decoders rest while their feature does not fire,
# which changes nothing but rounding; `-every-row` moves them all, as PyTorch does.
MOMENTS = {
    "f32": ([], 28),
    "f32-every-row": (["--every-row"], 28),
    "eight_bit": (["--moments", "eight_bit"], 16),
    "eight_bit-every-row": (["--moments", "eight_bit", "--every-row"], 16),
}
BATCHES = 4


# ---- the other side ------------------------------------------------------------------------------

def dense_clt(torch, s):
    """One decoder [d, F] a (source, target) pair; the code as a dense [tokens, F]."""
    L, d, F, k = s["layers"], s["width"], s["features"], s["k"]

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            small = lambda bound, *shape: torch.nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
            self.encoder = torch.nn.ParameterList(small(F**-0.5, F, d) for _ in range(L))
            self.encoder_bias = torch.nn.Parameter(torch.zeros(L, F))
            self.decoder = torch.nn.ParameterList(small((L * d) ** -0.5, d, F) for t in range(L) for _ in range(t + 1))
            self.decoder_bias = torch.nn.Parameter(torch.zeros(L, d))

        def forward(self, x, y):
            codes = []
            for l in range(L):
                h = torch.relu(torch.nn.functional.linear(x[l], self.encoder[l], self.encoder_bias[l]))
                kept = h.topk(k, dim=1, sorted=False)
                codes.append(torch.zeros_like(h).scatter(1, kept.indices, kept.values))
            loss, pair = 0.0, 0
            for t in range(L):
                out = self.decoder_bias[t]
                for s in range(t + 1):
                    out = out + torch.nn.functional.linear(codes[s], self.decoder[pair])
                    pair += 1
                loss = loss + (out - y[t]).square().sum()
            return loss / x.shape[1]

    return Dense()


def bag_clt(torch, s):
    """Sparse decode: one embedding_bag a source, over rows [F, (L - s) d]."""
    L, d, F, k = s["layers"], s["width"], s["features"], s["k"]

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            small = lambda bound, *shape: torch.nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
            self.encoder = torch.nn.ParameterList(small(F**-0.5, F, d) for _ in range(L))
            self.encoder_bias = torch.nn.Parameter(torch.zeros(L, F))
            self.decoder = torch.nn.ParameterList(small((L * d) ** -0.5, F, (L - l) * d) for l in range(L))
            self.decoder_bias = torch.nn.Parameter(torch.zeros(L, d))

        def forward(self, x, y):
            tokens = x.shape[1]
            outs = [self.decoder_bias[t].expand(tokens, d) for t in range(L)]
            for l in range(L):
                h = torch.relu(torch.nn.functional.linear(x[l], self.encoder[l], self.encoder_bias[l]))
                kept = h.topk(k, dim=1, sorted=False)
                wide = torch.nn.functional.embedding_bag(kept.indices, self.decoder[l], per_sample_weights=kept.values, mode="sum")
                for t, part in enumerate(wide.split(d, dim=1)):
                    outs[l + t] = outs[l + t] + part
            return sum((out - y[t]).square().sum() for t, out in enumerate(outs)) / tokens

    return Bag()


PEERS = {"dense": (dense_clt, False), "dense-fused": (dense_clt, True), "bag-fused": (bag_clt, True)}
LABELS = {"dense": "PyTorch, dense", "dense-fused": "PyTorch, dense, fused Adam", "bag-fused": "PyTorch, embedding_bag, fused Adam"}


def reply(**fields):
    print(json.dumps(fields), flush=True)


def peer(name, shape):
    """A PyTorch process: builds the CLT, then one step for each line of standard input."""
    import torch

    start = time.perf_counter()
    torch.manual_seed(0)
    make, fused = PEERS[name]
    clt = make(torch, shape)
    adam = torch.optim.Adam(clt.parameters(), lr=1e-4, **({"fused": True} if fused else {}))
    pool = [torch.randn(2, shape["layers"], shape["tokens"], shape["width"]) for _ in range(BATCHES)]
    reply(load=time.perf_counter() - start)
    for step, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        x, y = pool[step % BATCHES]
        adam.zero_grad(set_to_none=True)
        loss = clt(x, y)
        loss.backward()
        adam.step()
        reply(seconds=time.perf_counter() - start, loss=loss.item())
    with open("/proc/self/status") as status:
        reply(peak_mb=next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))


def machine():
    """This machine's f32 GEMM rate (GFLOP/s) and bandwidths (GB/s): a copy, and w += g as optimisers do."""
    import torch

    def best(work, runs):
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    out = torch.empty(2048, 2048)
    rate = 2 * 2048**3 / best(lambda: torch.mm(a, b, out=out), 8) / 1e9
    w, g = torch.zeros(1 << 27), torch.zeros(1 << 27)
    copy = 8 * w.numel() / best(lambda: w.copy_(g), 6) / 1e9
    update = 12 * w.numel() / best(lambda: w.add_(g), 6) / 1e9
    reply(gemm=rate, copy=copy, update=update)


# ---- the run -------------------------------------------------------------------------------------

class Program:
    """One process that does a step for each line, and says at its end what it held."""

    def __init__(self, command, threads):
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.first = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args)}: ended with status {self.process.wait()}")
        return json.loads(line)

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()["seconds"]

    def end(self):
        self.process.stdin.close()
        last = self.read()
        self.process.wait()
        return last


def ours(given, shape, moments):
    more, _ = MOMENTS[moments]
    options = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    return [given.cltlab, "bench", "--train", "--on-request", *options, *more]


def theirs(name, shape):
    return [sys.executable, os.path.abspath(__file__), "-", "--as-peer", json.dumps([name, shape])]


def in_turns(given, commands, steps, warm):
    """All programs alive at once, one step each in turn."""
    programs = {name: Program(command, given.threads) for name, command in commands.items()}
    times = {name: [] for name in programs}
    for step in range(warm + steps):
        for name, program in programs.items():
            time.sleep(0.3)  # threads of the one before that still spin go to sleep
            seconds = program.step()
            if step >= warm:
                times[name].append(seconds)
    return times, {name: program.end() for name, program in programs.items()}


def in_blocks(given, commands, steps, warm, rounds):
    """One program at a time, a block of steps each, blocks in turn."""
    times, ends = {name: [] for name in commands}, {}
    for _ in range(rounds):
        for name, command in commands.items():
            program = Program(command, given.threads)
            seconds = [program.step() for _ in range(warm + steps)]
            times[name] += seconds[warm:]
            ends[name] = program.end()
    return times, ends


def weights(s):
    pairs = s["layers"] * (s["layers"] + 1) // 2
    return (s["layers"] + pairs) * s["features"] * s["width"] + s["layers"] * (s["features"] + s["width"])


def floor(s, moments, rates):
    """Seconds a step that arithmetic and memory traffic alone take; decoder rows that rest are not moved."""
    L, d, F, k, tokens = (s[name] for name in ("layers", "width", "features", "k", "tokens"))
    pairs = L * (L + 1) // 2
    flops = tokens * (2 * L * F * d + 2 * L * k * d + 3 * 2 * pairs * k * d)
    fires = 1.0 if moments.endswith("every-row") else 1 - (1 - k / F) ** tokens
    moved = MOMENTS[moments][1] * (L * F * d + fires * pairs * F * d)
    return flops / rates["gemm"] / 1e9 + moved / max(rates["copy"], rates["update"]) / 1e9


def table(given, name, rates):
    shape = SHAPES[name]
    small = weights(shape) < 1e8
    commands = {f"ours, {moments}": ours(given, shape, moments) for moments in given.moments}
    commands |= {peer: theirs(peer, shape) for peer in given.peers}
    if small:
        times, ends = in_turns(given, commands, 8 if given.quick else 40, 3)
    else:
        times, ends = in_blocks(given, commands, 2 if given.quick else 5, 1, 1 if given.quick else 2)
    print(f"\n{name}: {shape}, {weights(shape) / 1e6:.1f} M weights; load average {os.getloadavg()[0]:.1f}")
    rate = {name: shape["tokens"] / statistics.median(seconds) for name, seconds in times.items()}
    peaks = {name: end["peak_mb"] for name, end in ends.items()}
    line_to_beat = max(given.peers, key=rate.get, default=None)
    print("| program | tokens/s median | best | x best PyTorch | x dense | peak MB | of best PyTorch's | floor tokens/s | share reached |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, seconds in times.items():
        against = lambda values, other: f"{values[name] / values[other]:.2f}" if other in values else ""
        mine = name.startswith("ours, ")
        bound = shape["tokens"] / floor(shape, name[6:], rates) if mine else None
        print(f"| {LABELS.get(name, name)} | {rate[name]:.1f} | {shape['tokens'] / min(seconds):.1f} | {against(rate, line_to_beat)} "
              f"| {against(rate, 'dense')} | {peaks[name]:.0f} | {against(peaks, line_to_beat)} "
              + (f"| {bound:.0f} | {100 * rate[name] / bound:.0f} % |" if mine else "| | |"))
    for name, end in ends.items():
        if "phases" in end:
            parts = ", ".join(f"{phase} {1e3 * seconds / end['steps']:.1f}" for phase, seconds in end["phases"].items())
            print(f"{name}: ms a step, mean: {parts}")
    for name in (name for name in times if name.startswith("ours") and line_to_beat):
        best = f"{min(times[line_to_beat]) / min(times[name]):.2f} by best steps"
        if small:
            best += f", {statistics.median(other / own for own, other in zip(times[name], times[line_to_beat])):.2f} by median of pairs"
        print(f"{name} / {LABELS[line_to_beat]}: {best}")
    sys.stdout.flush()


def scaling(given, rates):
    """How our step grows: one quantity changed at a time."""
    base = SHAPES["small"]
    changes = [{}] + [{name: value} for name, values in (("features", (1024, 4096, 8192)), ("layers", (3, 12)), ("k", (8, 128)), ("tokens", (128, 2048))) for value in values]
    print(f"\nscaling of ours, {given.moments[0]}: {base}, one quantity changed at a time")
    print("| changed | M weights | ms a step median | best | tokens/s | floor ms | share reached | peak MB |\n|---|---|---|---|---|---|---|---|")
    for change in changes:
        shape = base | change
        times, ends = in_blocks(given, {"ours": ours(given, shape, given.moments[0])}, 5 if given.quick else 15, 2, 1)
        median, bound = statistics.median(times["ours"]), floor(shape, given.moments[0], rates)
        what = ", ".join(f"{name} {value}" for name, value in change.items()) or "nothing"
        print(f"| {what} | {weights(shape) / 1e6:.1f} | {1e3 * median:.1f} | {1e3 * min(times['ours']):.1f} | {shape['tokens'] / median:.0f} "
              f"| {1e3 * bound:.1f} | {100 * bound / median:.0f} % | {ends['ours']['peak_mb']:.0f} |", flush=True)


def main():
    names = lambda text: [name for name in text.split(",") if name]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cltlab")
    parser.add_argument("--shape", type=names, default=list(SHAPES), help=f"some of {','.join(SHAPES)}")
    parser.add_argument("--moments", type=names, default=["f32", "eight_bit"], help=f"our variants, some of {','.join(MOMENTS)}")
    parser.add_argument("--peers", type=names, default=list(PEERS), help=f"some of {','.join(PEERS)}; empty for ours alone")
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--no-scaling", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--as-peer", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peer:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return machine() if given.as_peer == "machine" else peer(*given.as_peer)
    for option, got, known in [("--shape", given.shape, SHAPES), ("--peers", given.peers, PEERS), ("--moments", given.moments, MOMENTS)]:
        if unknown := [name for name in got if name not in known]:
            parser.error(f"{option}: got {unknown[0]}, expected some of {', '.join(known)}")
    rates = Program([sys.executable, os.path.abspath(__file__), "-", "--as-peer", '"machine"'], given.threads).first
    print(f"machine, {given.threads} threads: GEMM {rates['gemm']:.0f} GFLOP/s, copy {rates['copy']:.1f} GB/s, w += g {rates['update']:.1f} GB/s; "
          f"load average {os.getloadavg()[0]:.1f}", flush=True)
    for name in given.shape:
        table(given, name, rates)
    if not given.no_scaling:
        scaling(given, rates)


if __name__ == "__main__":
    main()
