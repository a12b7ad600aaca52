#!/usr/bin/env python3
"""Does the emulated device refuse what a card does: python3 tests/cuda/refusals.py [EMULATED].

Calls the emulated driver and cuBLAS directly: the memory pool's counts, the context that each thread needs, limits of
a launch, and products with a wrong argument beside a right one. check.py runs it.
"""

import ctypes
import os
import pathlib
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
OK, INVALID, OUT_OF_MEMORY, INVALID_CONTEXT, OUT_OF_RESOURCES = 0, 1, 2, 201, 701
BAD_ARGUMENT, NOT_RUN, NOT_SUPPORTED = 7, 13, 15
F32, F16, BF16 = 0, 2, 14
THRESHOLD, RESERVED, RESERVED_HIGH, USED, USED_HIGH = 4, 5, 6, 7, 8
LIMIT = 1 << 20
failed = []


def expect(what, got, wanted):
    if got != wanted:
        failed.append(what)
        print(f"FAILED  {what}: got {got}, expected {wanted}")


def said(work):
    """What `work` returns, and what it wrote to stderr."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            result = work()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return result, file.read().decode()


class Driver:
    def __init__(self, folder):
        self.cuda = ctypes.CDLL(str(folder / "libcuda.so.1"))
        self.blas = ctypes.CDLL(str(folder / "libcublas.so.13"))
        self.pool = ctypes.c_void_p()
        self.cuda.cuDeviceGetDefaultMemPool(ctypes.byref(self.pool), 0)

    def bind(self):
        context = ctypes.c_void_p()
        self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        return self.cuda.cuCtxSetCurrent(context)

    def allocate(self, bytes, pooled=True):
        at = ctypes.c_uint64(1)
        if pooled:
            return self.cuda.cuMemAllocAsync(ctypes.byref(at), ctypes.c_size_t(bytes), None), at.value
        return self.cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(bytes)), at.value

    def free(self, at):
        return self.cuda.cuMemFreeAsync(ctypes.c_uint64(at), None)

    def get(self, attribute):
        value = ctypes.c_uint64()
        expect(f"attribute {attribute} is known", self.cuda.cuMemPoolGetAttribute(self.pool, attribute, ctypes.byref(value)), OK)
        return value.value

    def set(self, attribute, value):
        return self.cuda.cuMemPoolSetAttribute(self.pool, attribute, ctypes.byref(ctypes.c_uint64(value)))

    def free_bytes(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return free.value

    def function(self, name):
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        expect("a module is loaded", self.cuda.cuModuleLoadData(ctypes.byref(module), f".visible .entry {name}(".encode()), OK)
        expect(f"kernel {name} is found", self.cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), OK)
        return function

    def product(self, m=4, n=3, k=5, a=None, b=None, c=None, lda=4, ldb=5, ldc=4, types=(F32, F32, F32), compute=68, turned=(0, 0), factors=True):
        one = ctypes.c_float(1)
        factor = ctypes.byref(one) if factors else None
        return self.blas.cublasGemmEx(
            None, *turned, m, n, k, factor, ctypes.c_void_p(a), types[0], lda, ctypes.c_void_p(b), types[1], ldb, factor, ctypes.c_void_p(c), types[2], ldc, compute, 0
        )


def contexts(driver):
    """Before this thread has a context, and from one that never has."""
    for when in ("before it is made current", "on another thread"):
        results = {}

        def work():
            at, event, handle = ctypes.c_uint64(), ctypes.c_void_p(), ctypes.c_void_p()
            results["cuMemAlloc"] = driver.allocate(64, pooled=False)[0]
            results["cuMemAllocAsync"] = driver.allocate(64)[0]
            results["cuMemFreeAsync"] = driver.free(64)
            results["cuMemcpyHtoD"] = driver.cuda.cuMemcpyHtoD_v2(at, None, ctypes.c_size_t(0))
            results["cuMemsetD8"] = driver.cuda.cuMemsetD8_v2(at, 0, ctypes.c_size_t(0))
            results["cuModuleLoadData"] = driver.cuda.cuModuleLoadData(ctypes.byref(event), b"")
            results["cuStreamSynchronize"] = driver.cuda.cuStreamSynchronize(None)
            results["cuEventCreate"] = driver.cuda.cuEventCreate(ctypes.byref(event), 0)
            results["cuLaunchKernel"] = driver.cuda.cuLaunchKernel(None, 1, 1, 1, 1, 1, 1, 0, None, None, None)
            results["cublasCreate"] = driver.blas.cublasCreate_v2(ctypes.byref(handle))
            results["cublasGemmEx"] = driver.product()

        if when == "on another thread":
            thread = threading.Thread(target=work)
            _, words = said(lambda: (thread.start(), thread.join()))
            expect("it is current here still", driver.free(0), OK)
        else:
            _, words = said(work)
            expect("the context is made current", driver.bind(), OK)
        for call, status in results.items():
            expect(f"{call} {when}", status, NOT_RUN if call.startswith("cublas") else INVALID_CONTEXT)
            expect(f"{call} {when} is said", call in words, True)


def memory(driver):
    expect("0 bytes of cuMemAlloc", driver.allocate(0, pooled=False)[0], INVALID)
    expect("0 bytes of cuMemAllocAsync", driver.allocate(0), (OK, 0))
    expect("a null pointer is freed", driver.free(0), OK)
    counts = lambda: tuple(map(driver.get, (RESERVED, USED, RESERVED_HIGH, USED_HIGH)))
    one, two = driver.allocate(1000)[1], driver.allocate(500)[1]
    expect("two allocations", counts(), (1500, 1500, 1500, 1500))
    driver.free(one)
    expect("one is freed and stays reserved", (counts(), driver.free_bytes()), ((1500, 500, 1500, 1500), LIMIT - 1500))
    three = driver.allocate(900)[1]
    expect("an allocation takes what is kept", counts(), (1500, 1400, 1500, 1500))
    driver.free(three)
    driver.cuda.cuStreamSynchronize(None)
    expect("a wait gives back what is above the threshold", (counts(), driver.free_bytes()), ((500, 500, 1500, 1500), LIMIT - 500))
    expect("the threshold is set", driver.set(THRESHOLD, 2**64 - 1), OK)
    four = driver.allocate(700)[1]
    driver.free(four)
    driver.cuda.cuStreamSynchronize(None)
    expect("below the threshold it stays", counts(), (1200, 500, 1500, 1500))
    expect("a high mark is set to 7", driver.set(USED_HIGH, 7), INVALID)
    expect("high marks are reset", (driver.set(USED_HIGH, 0), driver.set(RESERVED_HIGH, 0), counts()), (OK, OK, (1200, 500, 1200, 500)))
    expect("more than is left", driver.allocate(LIMIT - 499)[0], OUT_OF_MEMORY)
    status, big = driver.allocate(LIMIT - 500, pooled=False)
    expect("what is kept gives way to an allocation outside of the pool", (status, counts()[:2], driver.free_bytes()), (OK, (500, 500), 0))
    driver.cuda.cuMemFree_v2(ctypes.c_uint64(big))
    driver.free(driver.allocate(100)[1])
    driver.cuda.cuMemPoolTrimTo(driver.pool, ctypes.c_size_t(550))
    expect("trimmed to 550 bytes", counts()[:2], (550, 500))
    expect("freed, and freed again", (driver.free(two), driver.free(two)), (OK, INVALID))


def launches(driver):
    status, at = driver.allocate(64)
    value = ctypes.c_uint64(at)
    # `narrow_all` of no numbers does nothing, whatever the grid.
    count, null = ctypes.c_uint32(0), ctypes.c_uint64(0)
    values = (ctypes.c_void_p * 3)(*(ctypes.cast(ctypes.pointer(one), ctypes.c_void_p) for one in (value, count, null)))
    function = driver.function("narrow_all")

    def launch(grid, block, shared=0, function=function):
        return driver.cuda.cuLaunchKernel(function, *grid, *block, shared, None, values, None)

    expect("a launch", launch((2, 1, 1), (1024, 1, 1)), OK)
    for what, *arguments in (
        ("1,025 threads", (1, 1, 1), (1025, 1, 1)),
        ("2,048 threads in three dimensions", (1, 1, 1), (64, 8, 4)),
        ("128 threads in z", (1, 1, 1), (1, 1, 128)),
        ("no thread", (1, 1, 1), (32, 0, 1)),
        ("no block", (1, 0, 1), (32, 1, 1)),
        ("2^31 blocks", (1 << 31, 1, 1), (32, 1, 1)),
        ("65,536 blocks in y", (1, 65536, 1), (32, 1, 1)),
        ("65,536 blocks in z", (1, 1, 65536), (32, 1, 1)),
        ("more than 48 KiB of shared memory", (1, 1, 1), (32, 1, 1), (48 << 10) + 1),
    ):
        status, words = said(lambda: launch(*arguments))
        expect(f"{what}: refused and said", (status, "narrow_all" in words), (INVALID, True))
    # Compiled for 256 threads, which is known where ptx_report.py was run.
    bounded, threads = driver.function("top_rows"), ctypes.c_int()
    driver.cuda.cuFuncGetAttribute(ctypes.byref(threads), 0, bounded)
    if threads.value == 256:
        expect("more threads than a kernel was compiled for", said(lambda: launch((1, 1, 1), (512, 1, 1), 0, bounded))[0], INVALID)
    return threads.value == 256


def products(driver):
    places = [driver.allocate(4 * 64)[1] for _ in range(3)]
    for at in places:
        driver.cuda.cuMemsetD8_v2(ctypes.c_uint64(at), 0, ctypes.c_size_t(256))
    a, b, c = places
    right = {"a": a, "b": b, "c": c}
    expect("a product", driver.product(**right), OK)
    expect("a product of no rows needs no address", driver.product(m=0, b=b), OK)
    expect("both factors turned", driver.product(**right, turned=(1, 1), lda=5, ldb=3), OK)
    for types, compute in (((F32,) * 3, 77), ((BF16,) * 3, 68), ((BF16, BF16, F32), 68), ((F16,) * 3, 68), ((F16, F16, F32), 68), ((F16,) * 3, 64)):
        expect(f"types {types} with sums {compute}", driver.product(**right, types=types, compute=compute), OK)
    for argument, status, more in (
        ("lda", BAD_ARGUMENT, {"lda": 3}),
        ("lda", BAD_ARGUMENT, {"turned": (1, 0), "lda": 4}),
        ("ldb", BAD_ARGUMENT, {"ldb": 4}),
        ("ldb", BAD_ARGUMENT, {"turned": (0, 1), "ldb": 2}),
        ("ldc", BAD_ARGUMENT, {"ldc": 3}),
        ("lda", BAD_ARGUMENT, {"m": 0, "lda": 0}),
        ("k", BAD_ARGUMENT, {"k": -1}),
        ("transa", BAD_ARGUMENT, {"turned": (3, 0)}),
        ("alpha", BAD_ARGUMENT, {"factors": False}),
        ("B", BAD_ARGUMENT, {"b": 0}),
        ("A", BAD_ARGUMENT, {"a": a + 2}),
        ("C", BAD_ARGUMENT, {"c": c + 1, "types": (BF16,) * 3}),
        ("Btype", NOT_SUPPORTED, {"types": (BF16, F32, F32)}),
        ("Ctype", NOT_SUPPORTED, {"types": (F32, F32, BF16)}),
        ("Atype", NOT_SUPPORTED, {"types": (BF16,) * 3, "compute": 64}),
        ("Ctype", NOT_SUPPORTED, {"types": (F32, F32, F16), "compute": 77}),
        ("computeType", NOT_SUPPORTED, {"compute": 0}),
        ("C", NOT_RUN, {"c": c + 4 * 60}),
        ("A", NOT_RUN, {"lda": 100}),
    ):
        got, words = said(lambda: driver.product(**{**right, **more}))
        expect(f"a product with {more}: the status", got, status)
        expect(f"a product with {more}: {argument} is named in {words!r}", f": {argument} is " in words, True)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent.parent / "target/emulated").resolve()
    os.environ["CLTLAB_EMULATED_BYTES"] = str(LIMIT)
    driver = Driver(folder)
    contexts(driver)
    memory(driver)
    known = launches(driver)
    products(driver)
    print(f"{len(failed)} answers of the emulated device are not a card's" if failed else f"the emulated device refuses what a card does{'' if known else ' (kernels’ registers are not known)'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
