#!/usr/bin/env python3
"""What ptxas makes of kernels.ptx: python3 tests/cuda/ptx_report.py CUDA_BIN [KERNELS_PTX] [--all] [--limits FILE].

Assembles the committed PTX for the oldest and the newest card that the project names and checks, per kernel:
registers times the largest block it may be launched with, spilled bytes, and in the main kernels how many 16-byte
loads of global memory are in flight at once in the inner loop (read from the machine code by nvdisasm; the loads are
issued there before the first of them is used, so that their latencies overlap). Prints one table of the kernels
with a limit of their own and exits with 1 where a limit is broken; --all prints every kernel. --limits writes what
the emulated driver checks launches against (build.py compiles it in): kernel, registers, shared bytes, threads.
"""

import argparse
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PTX = HERE.parent.parent / "crate/src/clt/kernels/cuda/kernels.ptx"
# Turing (T4, what the PTX is written for) and Hopper (H100, what the program is measured on).
CARDS = ["sm_75", "sm_90"]
# A multiprocessor's registers, and what a block may have of its shared memory without asking for more.
REGISTERS, SHARED = 65536, 48 << 10
# A block without a bound in its source may have this many threads.
THREADS = 1024
# Bytes of spill stores per thread, for any kernel on any card.
SPILLS = 56
# 16-byte loads in flight at once in the inner loop, by a pattern of the kernel's whole name. A row of eight numbers is
# one such load in bf16 and two in f32.
LOADS = {
    r"meet_bf16_small": 3,
    r"meet_(bf16_full|f32_full|f32_small)": 2,
    r"spend_(f32|bf16)_(full|small)": 3,
    r"products_(f32|bf16)": 3,
    r"measure_(f32|bf16)": 3,
    r"decode(_dead|_tied)?_bf16": 4,
    r"decode(_dead|_tied)?_f32": 8,
}


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def bounds(ptx):
    """Kernel -> the most threads a block of it may have."""
    found = {}
    for name, directives in re.findall(r"\.entry (\w+)\([^)]*\)\s*([^{]*)\{", ptx):
        limit = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", directives)
        threads = THREADS
        if limit:
            threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1)
        found[name] = threads
    return found


def usage(words):
    """Kernel -> registers, bytes of spill stores, bytes of static shared memory, from what ptxas -v prints."""
    found = {}
    for part in words.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        registers = re.search(r"Used (\d+) registers", part)
        spills = re.search(r"(\d+) bytes spill stores", part)
        shared = re.search(r"(\d+) bytes smem", part)
        found[name] = (int(registers[1]), int(spills[1]) if spills else 0, int(shared[1]) if shared else 0)
    return found


def instructions(sass):
    """Kernel -> list of (label or None, text) in address order."""
    found, current = {}, None
    for line in sass.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if section:
            current = found.setdefault(section[1], [])
        elif re.match(r"\s*\.section\s", line):
            current = None
        elif current is not None:
            label = re.match(r"(\.L_\w+):", line)
            code = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(.*?)\s*(?:;|\})", line)
            if label:
                current.append((label[1], ""))
            elif code:
                current.append((None, code[1]))
    return found


def inner_loops(code):
    """(first, last) of the innermost loops that load 16 bytes and multiply."""
    labels = {label: i for i, (label, _) in enumerate(code) if label}
    loops = []
    for i, (_, text) in enumerate(code):
        jump = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", text)
        if jump and labels.get(jump[1], i) < i:
            part = [words for _, words in code[labels[jump[1]] : i + 1]]
            if any(is_load(words) for words in part) and any("FFMA" in words for words in part):
                loops.append((labels[jump[1]], i))
    return [one for one in loops if not any(other != one and other[0] >= one[0] and other[1] <= one[1] for other in loops)]


def is_load(text):
    return re.search(r"\bLDG?\.(?:\w+\.)*128\b", text) is not None


def in_flight(code):
    """The most 16-byte loads that an inner loop has issued and not used yet, instructions taken in address order."""
    most = 0
    for first, last in inner_loops(code):
        waiting = []
        for _, text in code[first : last + 1]:
            touched = {int(number) for number in re.findall(r"\bR(\d+)\b", text)}
            # An address is a pair of registers, of which only the lower is named.
            touched |= {int(number) + 1 for number in re.findall(r"\bR(\d+)\.64\b", text)}
            waiting = [held for held in waiting if not held & touched]
            if is_load(text):
                start = int(re.search(r"128(?:\.\w+)*\s+R(\d+)", text)[1])
                waiting.append(set(range(start, start + 4)))
                most = max(most, len(waiting))
    return most


def main():
    parser = argparse.ArgumentParser(description="What ptxas makes of kernels.ptx.")
    parser.add_argument("bin", type=pathlib.Path, help="folder with ptxas and nvdisasm")
    parser.add_argument("ptx", type=pathlib.Path, nargs="?", default=PTX)
    parser.add_argument("--all", action="store_true", help="print every kernel")
    parser.add_argument("--limits", type=pathlib.Path, metavar="FILE", help="write what launches are checked against")
    options = parser.parse_args()
    ptx, out = options.ptx, options.limits
    threads = bounds(ptx.read_text())
    used, loads = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for card in CARDS:
            cubin = pathlib.Path(folder) / card
            used[card] = usage(run(options.bin / "ptxas", "-v", f"-arch={card}", "-o", cubin, ptx))
            loads[card] = {name: in_flight(code) for name, code in instructions(run(options.bin / "nvdisasm", cubin)).items()}

    rows, broken = [], []
    for name in sorted(threads):
        wanted = next((least for pattern, least in LOADS.items() if re.fullmatch(pattern, name)), 0)
        for card in CARDS:
            registers, spills, shared = used[card][name]
            # The hardware gives registers to a thread in eights.
            block = (registers + 7) // 8 * 8 * ((threads[name] + 31) // 32 * 32)
            if block > REGISTERS:
                broken.append(f"{name} ({card}): {registers} registers for each of {threads[name]} threads are {block}, at most {REGISTERS} fit")
            if spills > SPILLS:
                broken.append(f"{name} ({card}): {spills} bytes spilled, at most {SPILLS} wanted")
            if shared > SHARED:
                broken.append(f"{name} ({card}): {shared} bytes of static shared memory, at most {SHARED} fit")
            if loads[card].get(name, 0) < wanted:
                broken.append(f"{name} ({card}): {loads[card].get(name, 0)} loads in flight in its inner loop, at least {wanted} wanted")
        rows.append((name, threads[name], *("/".join(str(used[card][name][i]) for card in CARDS) for i in (0, 1)), "/".join(str(loads[card].get(name, 0)) for card in CARDS), wanted))

    # A pattern that no kernel has any more checks nothing.
    broken += [f"no kernel is named {pattern}" for pattern in LOADS if not any(re.fullmatch(pattern, name) for name in threads)]
    print(f"{'kernel':<24} {'threads':>7} {'registers':>10} {'spills':>8} {'loads':>7} {'least':>5}   ({' / '.join(CARDS)})")
    for row in rows:
        if options.all or row[-1]:
            print(f"{row[0]:<24} {row[1]:>7} {row[2]:>10} {row[3]:>8} {row[4]:>7} {row[5] or '':>5}")
    worst = max((used[card][name][1], name, card) for card in CARDS for name in threads)
    most = max((used[card][name][0], name, card) for card in CARDS for name in threads)
    print(f"{len(threads)} kernels; most registers {most[0]} ({most[1]}, {most[2]}), most spilled bytes {worst[0]} ({worst[1]}, {worst[2]}; limit {SPILLS})")
    if out:
        lines = (f"{name} {max(used[card][name][0] for card in CARDS)} {max(used[card][name][2] for card in CARDS)} {threads[name]}\n" for name in sorted(threads))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(hashlib.sha256(ptx.read_bytes()).hexdigest() + "\n" + "".join(lines))
    for line in broken:
        print(f"BROKEN  {line}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
