"""Attacks on every reader: made inputs, each run alone by the program `cltlab`.

    python3 tests/attacks PROGRAM [--seed N] [--only READER,...] [--mutations N] [--keep FOLDER]

Standard library only. Every input has a folder of its own, 60 seconds and 8 GiB of address space. What is wrong by
construction must end in an error of the program ("bad"), what is right must be read ("good"), anything else may do
either ("any"). Printed: panics, aborts, hangs, silent results (a bad input with exit status 0), good inputs that are
refused, files outside the folder for outputs, raw escape sequences, errors without a message, peak memory.
"""
import argparse
import collections
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import configs
import models
import places
import texts
import transcoders

SECONDS = 60
ADDRESS_SPACE = 8 << 30
PEAK = 2 << 30
KINDS = ["panic", "abort", "hang", "silent", "refused", "outside", "escapes", "no message", "long message", "memory"]


def listing(place):
    """Every file below a place that no run may change, with its length and time; outputs lie in work/out and work/store."""
    found = {}
    for folder, folders, files in os.walk(place):
        if pathlib.Path(folder) in (place / "work" / "out", place / "work" / "store"):
            folders.clear()
            continue
        for name in files + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            found[path] = (state.st_size, state.st_mtime_ns, state.st_mode)
    return found


def limits():
    # An interrupt ends this program, with its report, and not the input that is being tried.
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(program, arguments, place):
    """Exit status (negative: a signal; None: too long), output and peak memory in bytes."""
    keep = {name: os.environ[name] for name in ["PATH", "LD_LIBRARY_PATH"] if name in os.environ}
    env = dict(keep, HOME=str(place / "home"), TMPDIR=str(place / "tmp"), HF_HUB_OFFLINE="1", RAYON_NUM_THREADS="2")
    for name in ["home", "tmp", "work/out"]:
        (place / name).mkdir(parents=True, exist_ok=True)
    before = listing(place)
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([program, *arguments], cwd=place / "work", env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, preexec_fn=limits)
        end = time.monotonic() + SECONDS
        status = None
        while True:
            pid, waited, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(waited)
                break
            if time.monotonic() > end:
                os.kill(child.pid, signal.SIGKILL)
                _, _, used = os.wait4(child.pid, 0)
                break
            time.sleep(0.005)
        child.returncode = 0
        out.seek(0)
        text = out.read(1 << 20)
    after = listing(place)
    outside = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return status, text, used.ru_maxrss * 1024, outside


def faults(expect, status, text, peak, outside):
    """Which kinds of faults a run shows."""
    found = []
    if status is None:
        found.append("hang")
    elif status == 101 or b"panicked at" in text:
        found.append("panic")
    elif status < 0:
        found.append("abort")
    elif status == 0 and expect == "bad":
        found.append("silent")
    elif status != 0 and expect == "good":
        found.append("refused")
    if status in (1, 2) and b"error:" not in text:
        found.append("no message")
    if len(text) > 20000 and status != 0:
        found.append("long message")
    if outside:
        found.append("outside")
    if b"\x1b" in text or b"\x9b" in text.replace("\u009b".encode(), b"\x9b\x9b") and "\u009b".encode() in text:
        found.append("escapes")
    if peak > PEAK:
        found.append("memory")
    return found


class Attacks:
    """All runs and what they showed."""

    def __init__(self, program, keep):
        self.program, self.keep = program, keep
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="cltlab-attacks-"))
        self.lock = threading.Lock()
        self.count, self.peak = collections.Counter(), 0
        self.table = collections.defaultdict(collections.Counter)

    def one(self, number, attack):
        place = self.root / str(number)
        (place / "work").mkdir(parents=True)
        try:
            arguments = attack.make(place)
            status, text, peak, outside = run(self.program, arguments, place)
            found = faults(attack.expect, status, text, peak, outside)
            with self.lock:
                self.count[attack.reader] += 1
                self.peak = max(self.peak, peak)
                row = self.table[attack.reader]
                row["error" if status else "read"] += 1
                row["peak"] = max(row["peak"], peak >> 20)
                for kind in found:
                    row[kind] += 1
                if found:
                    words = text[-300:].decode("utf-8", "replace").replace("\n", " | ")
                    print(f"{', '.join(found)}: {attack.reader} {attack.name} ({attack.expect}): status {status}, {peak >> 20} MiB {outside[:3] or ''}\n    {words!r}", flush=True)
                    if self.keep:
                        shutil.copytree(place, pathlib.Path(self.keep) / f"{attack.reader}-{number}", symlinks=True, dirs_exist_ok=True)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def all(self, attacks, workers):
        # Made one after another and dropped: a child's peak begins with the memory of the process that forked it.
        queue, number = iter(attacks), iter(range(10**9))

        def work():
            while True:
                with self.lock:
                    attack, own = next(queue, None), next(number)
                if attack is None:
                    return
                try:
                    self.one(own, attack)
                except Exception as error:  # The attack's own fault: said, never counted as held.
                    with self.lock:
                        self.table[attack.reader]["not made"] += 1
                        print(f"not made: {attack.reader} {attack.name}: {error!r}", flush=True)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            print("stopped early", flush=True)

    def report(self):
        columns = ["read", "error", *KINDS, "not made", "peak"]
        rows = [(name, row) for name, row in sorted(self.table.items())]
        rows.append(("all", sum((collections.Counter({k: v for k, v in row.items() if k != "peak"}) for _, row in rows), collections.Counter())))
        rows[-1][1]["peak"] = self.peak >> 20
        print("\n| reader | tried | " + " | ".join(columns) + " MiB |\n|" + "---|" * (len(columns) + 2))
        for name, row in rows:
            tried = sum(self.count.values()) if name == "all" else self.count[name]
            print(f"| {name} | {tried} | " + " | ".join(str(row[column] or "") for column in columns) + " |")
        return any(row[kind] for _, row in rows for kind in [*KINDS, "not made"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--mutations", type=int, default=20, help="random mutations of every file of every reader")
    parser.add_argument("--share", type=float, default=1.0, help="of the made inputs, chosen at random")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", help="keep the folders of inputs that showed a fault")
    options = parser.parse_args()
    program = str(pathlib.Path(options.program).resolve())
    attacks = Attacks(program, options.keep)
    bases = places.Bases(program, attacks.root, run)
    only = [word for word in options.only.split(",") if word]
    choice, seed = random.Random(options.seed), options.seed

    def made():
        for module in [models, transcoders, texts, configs]:
            for attack in module.attacks(bases, random.Random(seed), options.mutations):
                if (not only or attack.reader in only) and choice.random() < options.share:
                    yield attack

    begun = time.monotonic()
    attacks.all(made(), options.workers)
    failed = attacks.report()
    print(f"\n{sum(attacks.count.values())} inputs, seed {options.seed}, {time.monotonic() - begun:.0f} s, peak {attacks.peak >> 20} MiB")
    shutil.rmtree(attacks.root, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
