#!/usr/bin/env python3
"""Builds the emulated CUDA libraries for tests: python3 tests/cuda/build.py [FOLDER].

Our kernels (crate/src/clt/kernels/cuda/kernels.cu) are compiled by g++ against emulator.h; their names are read from
the PTX. With FOLDER (default target/emulated) first in LD_LIBRARY_PATH a program built with CUDA runs on a machine
without a GPU, kernel by kernel and thread by thread: for finding mistakes, not for work.
"""

import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "crate/src/clt/kernels/cuda"


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "target/emulated"
    out.mkdir(parents=True, exist_ok=True)
    names = re.findall(r"\.visible \.entry (\w+)\(", (KERNELS / "kernels.ptx").read_text())
    entries = "".join(f'    {{"{name}", [](void** values) {{ call({name}, values); }}}},\n' for name in names)
    registry = out / "registry.cpp"
    registry.write_text(
        f'#define CLTLAB_EMULATED\n#include "kernels.cu"\n#include "registry.h"\nnamespace emulated {{\nconst Kernel kernels[] = {{\n{entries}    {{nullptr, nullptr}},\n}};\n}}\n'
    )
    flags = ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-fno-strict-aliasing", f"-I{HERE}", f"-I{KERNELS}"]
    subprocess.run([*flags, str(HERE / "driver.cpp"), str(registry), "-o", str(out / "libcuda.so.1")], check=True)
    subprocess.run([*flags, str(HERE / "libraries.cpp"), "-o", str(out / "libcublas.so.13")], check=True)
    for name in ("libcublasLt.so.13", "libcurand.so.10", "libnvrtc.so.13"):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to("libcublas.so.13")
    print(f"{len(names)} kernels in {out}")


if __name__ == "__main__":
    main()
