#!/usr/bin/env python3
"""Builds the emulated CUDA libraries for tests: python3 tests/cuda/build.py [FOLDER] [--candle] [--watched].

Our kernels (crate/src/clt/kernels/cuda/kernels.cu) are compiled by g++ against emulator.h; their names are read from
the PTX. With FOLDER (default target/emulated) first in LD_LIBRARY_PATH a program built with CUDA runs on a machine
without a GPU, kernel by kernel and thread by thread: for finding mistakes, not for work. With
--watched (default target/watched) every load and store of our kernels is looked at: see watch.cpp.
"""

import hashlib
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "crate/src/clt/kernels/cuda"
CANDLE = ["affine", "binary", "cast", "fill", "indexing", "reduce", "ternary", "unary"]


# candle's kernels for compute capability 8.0.
EXTRA = {f"candle_{name}": [f"-I{HERE}/shim", "-D__CUDA_ARCH__=800"] for name in CANDLE}


def limits(ptx):
    """Kernel -> registers, shared bytes and threads as C++ has them, when ptx_report.py measured this very PTX."""
    table = ROOT / "target/kernels.limits"
    lines = table.read_text().splitlines() if table.is_file() else []
    if not lines or lines[0] != hashlib.sha256(ptx.encode()).hexdigest():
        print(f"{table.relative_to(ROOT)} is not of this PTX: launches are not checked for registers (./x build-cuda makes it)")
        return {}
    return {name: ", ".join(numbers) for name, *numbers in map(str.split, lines[1:])}


def registry(out, name, begin, kernels, known={}):
    """Writes NAME.cpp: the kernels of one source file with what calls each."""
    calls = "".join(f'    {{"{kernel}", [](void** values) {{ call({kernel}, values); }}, {known.get(kernel, "0, 0, 0")}}},\n' for kernel in kernels)
    text = f'{begin}#include "registry.h"\nnamespace emulated {{\nextern const Kernel kernels_{name}[];\nconst Kernel kernels_{name}[] = {{\n{calls}    {{nullptr, nullptr}},\n}};\n}}\n'
    (out / f"{name}.cpp").write_text(text)
    return name


def candle(out, flags):
    """candle's kernels, from where cargo keeps its source: what a model's forward pass needs."""
    package = max(pathlib.Path.home().glob(".cargo/registry/src/*/candle-kernels-0.11.*/src"))
    folder = out / "candle"
    folder.mkdir(exist_ok=True)
    for file in [*package.glob("*.cu"), *package.glob("*.cuh")]:
        if file.name != "compatibility.cuh":
            (folder / file.name).unlink(missing_ok=True)
            (folder / file.name).symlink_to(file)
    # What it adds for old toolkits and cards is not needed.
    (folder / "compatibility.cuh").write_text('#include "cuda_fp16.h"\n')
    names = []
    for name in CANDLE:
        seen = subprocess.run([*flags, *EXTRA[f"candle_{name}"], "-E", "-P", "-x", "c++", str(folder / f"{name}.cu")], check=True, capture_output=True, text=True).stdout
        kernels = sorted(set(re.findall(r'extern "C"\s+void\s+(\w+)\(', seen)))
        names.append(registry(out, f"candle_{name}", f'#include "{name}.cu"\n', kernels))
    return names


def main():
    folders = [word for word in sys.argv[1:] if not word.startswith("--")]
    watched = "--watched" in sys.argv
    out = pathlib.Path(folders[0]) if folders else ROOT / ("target/watched" if watched else "target/emulated")
    out.mkdir(parents=True, exist_ok=True)
    flags = ["g++", "-O2", "-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", f"-I{HERE}", f"-I{KERNELS}"]
    lists, sources = [], [HERE / f"{name}.cpp" for name in ("driver", "memory", "blocks", "watch")]
    if watched:
        flags.append("-DCLTLAB_WATCHED")
        # What a compiler joins or makes wider on its own is no access of the kernel's.
        EXTRA["cltlab"] = EXTRA["faults"] = ["-g", "-O1", "-fno-tree-vectorize", "-fno-store-merging", "-fno-tree-sra", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
    ptx = (KERNELS / "kernels.ptx").read_text()
    entries = re.findall(r"\.visible \.entry (\w+)\(", ptx)
    lists.append(registry(out, "cltlab", '#define CLTLAB_EMULATED\n#include "kernels.cu"\n', entries, limits(ptx)))
    if watched:
        lists.append(registry(out, "faults", '#include "faults.cu"\n', re.findall(r"__global__ void (\w+)\(", (HERE / "faults.cu").read_text())))
    if "--candle" in sys.argv:
        lists += candle(out, flags)
    table = out / "lists.cpp"
    table.write_text(
        '#include "registry.h"\nnamespace emulated {\n'
        + "".join(f"extern const Kernel kernels_{name}[];\n" for name in lists)
        + "const Kernel* const lists[] = {"
        + "".join(f"kernels_{name}, " for name in lists)
        + "nullptr};\n}\n"
    )
    sources += [table, *(out / f"{name}.cpp" for name in lists)]
    jobs = [subprocess.Popen([*flags, *EXTRA.get(source.stem, []), f"-I{out}/candle", "-c", str(source), "-o", str(out / f"{source.stem}.o")]) for source in sources]
    if any(job.wait() for job in jobs):
        sys.exit(1)
    subprocess.run(["g++", "-shared", "-Wl,--allow-multiple-definition", "-Wl,-soname,libcuda.so.1", *(str(out / f"{source.stem}.o") for source in sources), "-o", str(out / "libcuda.so.1")], check=True)
    # Each with a name of its own, by which the loader knows it once it is open.
    subprocess.run([*flags, "-c", str(HERE / "libraries.cpp"), "-o", str(out / "libraries.o")], check=True)
    for name in ("libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libnvrtc.so.13"):
        (out / name).unlink(missing_ok=True)
        subprocess.run(["g++", "-shared", f"-Wl,-soname,{name}", str(out / "libraries.o"), "-ldl", "-o", str(out / name)], check=True)
    print(f"{', '.join(lists)}: kernels in {out}")


if __name__ == "__main__":
    main()
