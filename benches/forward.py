"""Forward pass of one model, side by side with transformers + PyTorch, on the same float32 weights.

    python benches/forward.py CLTLAB MODEL.gguf FOLDER [--rounds 7] [--context 512] [--threads 2]

Each program is a process of its own that loads the model and then runs one prompt for each line it
is sent; rounds go through all programs in turn, so that other load on the machine hits all alike.
Tokens/s is that of the best round (the machine undisturbed), ratios are also given round by round.
Peak memory is the process's VmHWM after load and forwards. FOLDER gets the dequantised weights
as safetensors, made once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def ids(context, vocab):
    """The same prompt as `cltlab bench`."""
    return [(100 + 7 * place) % vocab for place in range(context)]


def reply(**fields):
    print(json.dumps(fields), flush=True)


def peer(attention, folder, gguf, context, threads):
    """The other side: loads with transformers and answers each line of standard input."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(threads)
    start = time.perf_counter()
    more = {"gguf_file": os.path.basename(gguf)} if gguf else {}
    place = os.path.dirname(os.path.abspath(gguf)) if gguf else folder
    model = transformers.LlamaForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation=attention, **more)
    model.eval()
    reply(load=time.perf_counter() - start)
    if gguf:
        model.save_pretrained(folder)
        return
    prompt = torch.tensor([ids(context, model.config.vocab_size)])
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.inference_mode():
            logits = model(prompt, use_cache=False).logits
        seconds = time.perf_counter() - start
        top = int(logits[0, -1].argmax())
        reply(seconds=seconds, top=top, logit=float(logits[0, -1, top]))
        del logits


class Program:
    """One process that answers a line with a line."""

    def __init__(self, command, threads):
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.load = self.read()["load"]

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[:3]}: ended with status {self.process.wait()}")
        return json.loads(line)

    def forward(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def peak(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cltlab")
    parser.add_argument("gguf")
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        attention, source = given.peer.split(",")
        return peer(attention, given.folder, given.gguf if source == "gguf" else None, given.context, given.threads)

    def other(attention, source):
        return [sys.executable, *sys.argv, "--peer", f"{attention},{source}"]

    def ours(source):
        return [given.cltlab, "bench", "--model", source, "--context", str(given.context), "--on-request"]

    loads = {}
    if not os.path.exists(os.path.join(given.folder, "model.safetensors")):
        os.makedirs(given.folder, exist_ok=True)
        made = Program(other("sdpa", "gguf"), given.threads)
        loads["PyTorch, GGUF"] = made.load
        made.end()
    # Our own loads from safetensors first, alone: the file's pages are then in memory for all.
    once = Program(ours(given.folder), given.threads)
    once.end()
    once = Program(ours(given.folder), given.threads)
    loads["ours, safetensors"] = once.load
    once.forward()
    safetensors_peak = once.peak()
    once.end()

    commands = {"ours": ours(given.gguf), "PyTorch eager": other("eager", "safetensors"), "PyTorch sdpa": other("sdpa", "safetensors")}
    programs = {name: Program(command, given.threads) for name, command in commands.items()}
    loads["ours, GGUF"] = programs["ours"].load
    loads["PyTorch, safetensors"] = programs["PyTorch sdpa"].load
    answers = {name: program.forward() for name, program in programs.items()}  # warm-up
    times = {name: [] for name in programs}
    for _ in range(given.rounds):
        for name, program in programs.items():
            time.sleep(0.3)  # threads of the one before that still spin go to sleep
            times[name].append(program.forward()["seconds"])
    peaks = {name: program.peak() for name, program in programs.items()}
    for program in programs.values():
        program.end()

    print(f"{'':<16}{'tokens/s best':>14}{'median':>10}{'peak MiB':>10}  last position's top token, logit")
    for name, seconds in times.items():
        rate = lambda value: given.context / value
        print(f"{name:<16}{rate(min(seconds)):>14.0f}{rate(statistics.median(seconds)):>10.0f}{peaks[name]:>10.0f}"
              f"  {answers[name]['top']}, {answers[name]['logit']:.4f}")
    for name in list(times)[1:]:
        pairs = [theirs / ours for ours, theirs in zip(times["ours"], times[name])]
        print(f"ours / {name}: speed {min(times[name]) / min(times['ours']):.2f} by best, "
              f"{statistics.median(pairs):.2f} by median of pairs; peak memory {peaks['ours'] / peaks[name]:.2f}")
    print(f"ours from safetensors: peak {safetensors_peak:.0f} MiB")
    print("load: " + "; ".join(f"{name} {seconds:.2f} s" for name, seconds in loads.items()))


if __name__ == "__main__":
    main()
