#!/usr/bin/env python3
"""Does the watched device see mistakes: python3 tests/cuda/faults.py [WATCHED].

Runs each kernel of faults.cu in a process of its own: one whose name begins with `fault` must be told, with exit
status 70, its right twin must not.
"""

import ctypes
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
WORDS = {
    "fault_barrier": "unordered",
    "fault_exchange": "unordered read",
    "fault_blocks": "unordered",
    "fault_twice": "unordered write",
    "fault_behind": "behind an allocation",
    "fault_aligned": "misaligned",
    "fault_freed": "freed",
}


def launch(library, name):
    cuda = ctypes.CDLL(library)
    module, function, at, context = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_void_p()
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuModuleLoadData(ctypes.byref(module), f".visible .entry {name}(".encode()) == 0
    assert cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(256 * 4)) == 0
    assert cuda.cuMemsetD8_v2(at, 0, ctypes.c_size_t(256 * 4)) == 0
    if name == "fault_freed":
        assert cuda.cuMemFree_v2(at) == 0
    values = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.pointer(at), ctypes.c_void_p))
    assert cuda.cuLaunchKernel(function, 2, 1, 1, 64, 1, 1, 0, None, values, None) == 0


def main():
    library = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent.parent / "target/watched") / "libcuda.so.1"
    if len(sys.argv) > 2:
        return launch(str(library), sys.argv[2])
    names = re.findall(r"__global__ void (\w+)\(", (HERE / "faults.cu").read_text())
    missed = []
    for name in names:
        done = subprocess.run([sys.executable, __file__, str(library.parent), name], capture_output=True, text=True)
        told = [line for line in done.stderr.splitlines() if line.startswith("emulator:")]
        right = done.returncode == 70 and told and WORDS[name] in told[0] if name in WORDS else done.returncode == 0 and not told
        if not right:
            missed.append(name)
            print(f"FAILED  {name}: exit status {done.returncode}\n{done.stderr}")
    print(f"watched device: {len(names) - len(missed)} of {len(names)} kernels judged rightly")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
