#!/usr/bin/env python3
"""All that is to be seen on a GPU, in one command with a time limit; what was found is in $OUT whenever it ends.

    OUT=FOLDER python3 benches/gpu_day.py one --pack .day/one --end 470
    OUT=FOLDER python3 benches/gpu_day.py two --pack .day/two --end 270 --seconds 80
    OUT=FOLDER python3 benches/gpu_day.py --parts selftest,ours:sparse,ncu,peers:sparse:triton

./x pack-gpu makes .day/one (the program, half of the model) and .day/two (the other half, texts). What is in --pack is moved to
--work, which must stay between the commands. Parts, in the given order, each with a limit of its own within --end seconds:

- there: card, driver, libraries
- selftest: into $OUT/selftest.txt as it comes. A deviation does not end the day. After a fault of the device: once more with
  CUDA_LAUNCH_BLOCKING=1, then the smallest bench in compute-sanitizer, and the end
- ours, peers, precisions, each with :SHAPE and :PRECISION or :VARIANT: words of train_gpu.py's --order
- ncu, or ncu:SHAPE: milliseconds and DRAM traffic by kernel over some steps
- text: clt.py --gpu, a training of --seconds seconds on real text with evaluation and check

`one` is there, selftest, ours, ncu, peers (the best ones first), attribution, precisions; `two` is text.
$OUT has at most eight files: day.log, selftest.txt, results.json, table.md, ncu.csv, text.log, metrics.jsonl, report.json.
"""

import argparse
import collections
import csv
import glob
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

BEGIN = time.monotonic()
HERE = os.path.dirname(os.path.abspath(__file__))
PHASES = {
    "one": "there,selftest,ours,ncu,peers:sparse:triton,peers:sparse:triton-bf16,peers:smollm2:dense,peers:batch-topk:triton,"
    "peers:seed-4096:dense,ours:attribution,peers,precisions",
    "two": "there,text",
}
TRAIN = ("ours", "peers", "precisions")


def passed():
    return time.monotonic() - BEGIN


class Day:
    def __init__(self, given):
        self.given, self.fault, self.took, self.summary = given, False, [], []
        self.log = open(os.path.join(given.out, "day.log"), "a")
        self.waiting = []

    def left(self):
        return self.given.end - passed()

    def say(self, text, show=True):
        for line in text.rstrip("\n").splitlines():
            line = f"[{passed():4.0f} s] {line}"
            self.log.write(line + "\n")
            if show:
                print(line[:300], flush=True)
        self.log.flush()

    def run(self, command, limit, into=None, show=False, **environment):
        """Runs a program with all it says in day.log, or in a file; its exit status, None where it was ended, and its lines."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True, env={**os.environ, **environment})
        late = threading.Event()

        def end():
            """Asked first, so that it can end what it started in sessions of their own."""
            late.set()
            for word in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, word)
                    process.wait(3)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass

        watch, said = threading.Timer(max(limit, 1), end), []
        watch.start()
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            if into:
                into.write(line)
                into.flush()
            else:
                self.say(line, show)
        code = process.wait()
        watch.cancel()
        return (None if late.is_set() else code), said

    # ---- what was packed ----

    def unpack(self):
        """The program at once, the model's half beside what follows."""
        work, pack = self.given.work, self.given.pack
        for name in sorted(os.listdir(pack)) if pack else []:
            path, target = os.path.join(pack, name), os.path.join(work, name.removesuffix(".xz"))
            if name.endswith(".tar.xz"):
                with tarfile.open(path) as archive:
                    archive.extractall(work, filter="data")
            elif name.endswith(".xz") and name.startswith("model"):
                thread = threading.Thread(target=expand, args=(path, target))
                thread.start()
                self.waiting.append(thread)
            elif name.endswith(".xz"):
                expand(path, target)
                os.chmod(target, 0o755)
        if not os.path.exists(self.given.program):
            sys.exit(f"no program at {self.given.program}: give --pack or --program")

    def join(self):
        for thread in self.waiting:
            thread.join()
        parts = [os.path.join(self.given.work, f"model.{half}") for half in "ab"]
        if not os.path.exists(self.given.model) and all(map(os.path.exists, parts)):
            with open(self.given.model, "wb") as out:
                for part in parts:
                    with open(part, "rb") as file:
                        shutil.copyfileobj(file, out, 1 << 22)

    # ---- the parts ----

    def there(self):
        for words in (
            ["nvidia-smi", "-L"],
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu", "--format=csv,noheader"],
            ["nvcc", "--version"],
            [sys.executable, "-c", "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"],
        ):
            if shutil.which(words[0]):
                self.run(words, 60, show=True)
            else:
                self.say(f"no {words[0]}")
        found = [library for library in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout.splitlines() if any(name in library for name in ("libcuda.so", "libcublas", "libcurand"))]
        python = os.path.dirname(os.path.dirname(sys.executable))
        found += glob.glob(os.path.join(python, "lib/python3*/site-packages/nvidia/*/lib/lib*[sd].so*"))
        self.say("\n".join(line.strip() for line in found) or "no CUDA library in sight", show=False)
        self.say(f"python {sys.executable}, ncu {tool('ncu')}, compute-sanitizer {tool('compute-sanitizer')}, {os.cpu_count()} CPUs, {shutil.disk_usage(self.given.work).free >> 30} GiB of disk")

    def selftest(self):
        with open(os.path.join(self.given.out, "selftest.txt"), "w") as file:
            code, said = self.run([self.given.program, "selftest", "--device", "cuda"], min(90, self.left()), into=file)
        failed = [line for line in said if line.startswith("FAILED")]
        whole = any(" checks, " in line for line in said)
        verdict = f"selftest: exit status {code}; {sum(line.startswith('ok') for line in said)} ok, {len(failed)} FAILED; {said[-1] if said else ''}"
        self.say("\n".join([verdict, *failed[:20]]))
        self.summary.append("\n".join([verdict, *failed[:12]]))
        if whole:
            return
        if code is None:
            self.say("selftest was ended at its limit: no fault is known, the other parts follow")
            return
        self.fault = True
        self.say("\n".join(said[-6:]))
        _, said = self.run([self.given.program, "selftest", "--device", "cuda"], min(90, self.left()), CUDA_LAUNCH_BLOCKING="1")
        self.summary.append("with CUDA_LAUNCH_BLOCKING=1:\n" + "\n".join(said[-8:]))
        if tool("compute-sanitizer") and self.left() > 20:
            words = [tool("compute-sanitizer"), "--tool", "memcheck", "--print-limit", "20", self.given.program, "bench", "--device", "cuda", "--shapes", "tiny", "--held", "bf16-eight-bit,f32-f32", "--timed", "2"]
            _, said = self.run(words, min(150, self.left()))
            self.summary.append("compute-sanitizer:\n" + "\n".join(said[:40]))

    def train(self, words):
        given = self.given
        later = [part for part in self.after if part.split(":")[0] in ("ncu", "text")]
        budget = self.left() - sum(60 if part.startswith("ncu") else given.seconds + 120 for part in later)
        command = [sys.executable, os.path.join(HERE, "train_gpu.py"), given.program, "--order", ",".join(words), "--shapes", given.shapes, "--steps", str(given.steps)]
        command += ["--budget", f"{budget:.0f}", "--json", os.path.join(given.out, "results.json"), "--table", os.path.join(given.out, "table.md"), "--device", given.peer_device]
        self.run(command, budget + 20, show=True)
        # For a later command, which begins with an empty $OUT.
        for name in ("results.json", "table.md"):
            copy(os.path.join(given.out, name), given.work)

    def ncu(self, shape):
        if not tool("ncu"):
            return self.say("no ncu")
        words = [tool("ncu"), "--clock-control", "none", "--cache-control", "none", "--metrics", "gpu__time_duration.sum,dram__bytes.sum", "--csv", "--print-units", "base"]
        words += ["--launch-skip", str(self.given.skip), "--launch-count", str(self.given.launches)]
        path = os.path.join(self.given.out, "ncu.csv")
        with open(path, "w") as file:
            code, said = self.run([*words, self.given.program, "bench", "--device", "cuda", "--shapes", shape, "--held", "bf16-eight-bit", "--timed", "10"], min(100, self.left()), into=file)
        text = by_kernel(path)
        self.say(f"ncu: exit status {code}" + ("" if text else "\n" + "\n".join(said[-4:])))
        if text:
            self.say(text, show=False)
            self.summary.append(f"ncu of {shape}, launches {self.given.skip} to {self.given.skip + self.given.launches}\n{text}")

    def text(self):
        self.join()
        given = self.given
        missing = [path for path in (given.model, given.texts) if not os.path.exists(path)]
        if missing:
            return self.say(f"no {', '.join(missing)}: both halves of the model and the texts are needed")
        rest = self.left() - 20
        # Two trials, loading, saving.
        seconds = max(min(given.seconds, rest - 2 * (given.trial + 15) - 75), 10)
        evaluation = max(min(75, rest - 2 * (given.trial + 12) - seconds - 20), 15)
        command = [sys.executable, os.path.join(HERE, "clt.py"), given.program, given.model, given.texts, os.path.join(given.work, "text-run"), "--gpu", "--kinds", "clt", "--features", str(given.features), "--k", str(given.k)]
        command += ["--seconds", f"{seconds:.0f}", "--trial", f"{given.trial:g}", "--start", "60", "--evaluation", f"{evaluation:.0f}", "--keep", given.out, *given.clt.split()]
        code, said = self.run(command, rest, show=True)
        self.summary.append(f"real text: exit status {code}\n" + "\n".join(said[-40:]))

    # ---- the day ----

    def all(self, parts):
        waiting = collections.deque(parts)
        while waiting:
            words = [waiting.popleft()]
            kind, _, rest = words[0].partition(":")
            while kind in TRAIN and waiting and waiting[0].split(":")[0] in TRAIN:
                words.append(waiting.popleft())
            self.after = list(waiting)
            if self.fault or self.left() < 12:
                self.say(f"{', '.join(words)}: left out, {'the device has a fault' if self.fault else 'no time'}")
                continue
            start = passed()
            self.say(f"---- {', '.join(words)}")
            try:
                if kind in TRAIN:
                    self.train(words)
                elif kind == "ncu":
                    self.ncu(rest or "sparse")
                else:
                    {"there": self.there, "selftest": self.selftest, "text": self.text}[kind]()
            except Exception as error:  # one part must not end the day
                self.say(f"{words}: {type(error).__name__}: {error}")
            self.took.append(f"{words[0]}{'...' if len(words) > 1 else ''} {passed() - start:.0f}")

    def end(self):
        self.join()
        table = os.path.join(self.given.out, "table.md")
        if os.path.exists(table):
            with open(table) as file:
                self.summary.insert(0, file.read())
        text = "\n\n".join([*self.summary, f"seconds: {', '.join(self.took)}; {passed():.0f} in all"])
        self.log.write(text + "\n")
        self.log.close()
        # The end of it is what a reader with little room sees.
        print(f"\n==== summary\n{text}"[-11500:], flush=True)


def expand(path, target):
    """Never half a file under its own name."""
    with lzma.open(path) as file, open(target + ".part", "wb") as out:
        shutil.copyfileobj(file, out, 1 << 22)
    os.replace(target + ".part", target)


def copy(path, folder):
    if os.path.exists(path):
        shutil.copy(path, folder)


def tool(name):
    """A program of NVIDIA's, on PATH or where its packages put it."""
    return shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/local/cuda/bin/{name}") + glob.glob(f"/opt/nvidia/nsight-compute/*/{name}"), reverse=True)), None)


def by_kernel(path):
    """A table of ncu's CSV, the longest first."""
    with open(path, errors="replace") as file:
        rows = list(csv.DictReader(line for line in file if line.startswith('"')))
    kernels, launches = collections.defaultdict(lambda: collections.defaultdict(float)), collections.defaultdict(set)
    for row in rows:
        try:
            name, value = row["Kernel Name"].split("(")[0][:60], float(row["Metric Value"].replace(",", ""))
        except (KeyError, ValueError, AttributeError):
            continue
        kernels[name][row["Metric Name"]] += value
        launches[name].add(row["ID"])
    if not kernels:
        return ""
    whole = sum(found["gpu__time_duration.sum"] for found in kernels.values())
    out = [f"{sum(map(len, launches.values()))} launches, {whole / 1e6:.3f} ms", f"{'kernel':60} {'count':>5} {'ms':>9} {'us each':>9} {'share':>6} {'DRAM GB':>8} {'GB/s':>6}"]
    for name, found in sorted(kernels.items(), key=lambda item: -item[1]["gpu__time_duration.sum"])[:24]:
        ns, count = found["gpu__time_duration.sum"], len(launches[name])
        out.append(f"{name:60} {count:5} {ns / 1e6:9.3f} {ns / 1e3 / count:9.1f} {100 * ns / whole:5.1f}% {found['dram__bytes.sum'] / 1e9:8.3f} {found['dram__bytes.sum'] / max(ns, 1):6.0f}")
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", nargs="?", choices=PHASES)
    parser.add_argument("--parts", help="instead of a phase's")
    parser.add_argument("--pack", help="a folder that ./x pack-gpu made")
    parser.add_argument("--work", default=os.path.join(tempfile.gettempdir(), "cltlab-gpu"))
    parser.add_argument("--program", help="instead of the packed one")
    parser.add_argument("--model")
    parser.add_argument("--texts")
    parser.add_argument("--end", type=float, default=470, help="seconds for all of it")
    parser.add_argument("--shapes", default="sparse,smollm2,seed-4096,batch-topk,seed", help="for `ours`, `peers` and `precisions` without a shape")
    parser.add_argument("--steps", type=int, default=40, help="timed, at most")
    parser.add_argument("--seconds", type=float, default=80, help="of training on text, at most")
    parser.add_argument("--trial", type=float, default=6, help="seconds that each way is timed on text")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--clt", default="", help="more words for clt.py")
    parser.add_argument("--skip", type=int, default=200, help="launches that ncu passes over")
    parser.add_argument("--launches", type=int, default=160, help="that ncu looks at")
    parser.add_argument("--peer-device", default="cuda", help="cpu to rehearse")
    given = parser.parse_args()
    given.work = os.path.abspath(given.work)
    given.out = os.path.abspath(os.environ.get("OUT") or os.path.join(given.work, "out"))
    given.program = os.path.abspath(given.program or os.path.join(given.work, "cltlab"))
    given.model = given.model or os.path.join(given.work, "model.gguf")
    given.texts = given.texts or os.path.join(given.work, "texts")
    for folder in (given.work, given.out):
        os.makedirs(folder, exist_ok=True)
    python = os.path.dirname(sys.executable)
    os.environ.update(
        CUDA_CACHE_PATH=os.path.join(given.work, "cuda-cache"),
        CUDA_CACHE_MAXSIZE=str(2 << 30),
        TRITON_CACHE_DIR=os.path.join(given.work, "triton-cache"),
        TORCHINDUCTOR_CACHE_DIR=os.path.join(given.work, "inductor-cache"),
        PYTHONUNBUFFERED="1",
        HOME=os.environ.get("HOME") or given.work,
        OUT=given.out,
        PATH=os.pathsep.join([python, os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
    )
    for name in ("results.json", "table.md"):
        copy(os.path.join(given.work, name), given.out)
    day = Day(given)
    try:
        day.unpack()
        day.all([word for word in (given.parts or PHASES[given.phase or "one"]).split(",") if word])
    finally:
        day.end()


if __name__ == "__main__":
    main()
