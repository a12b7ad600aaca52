// The part of CUDA's driver interface that the program needs, over the emulator: `libcuda.so.1` for tests.
//
// Streams execute at once. A module is the list of entries in its PTX text; an entry without an emulated body is
// reported by name. What a card refuses is refused with its status, and said on stderr: calls from a thread without a
// current context, launches beyond the hardware's limits, copies outside of any allocation.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "emulator.h"
#include "memory.h"
#include "registry.h"
#include "watch.h"

namespace emulated {
void launch(const Kernel* what, Dim grid, Dim size, size_t shared, void** values);
}

typedef std::lock_guard<std::recursive_mutex> Lock;
// Memory of the host that is pinned, and copies to it that nobody has waited for.
static std::set<void*> pinned;
static std::vector<std::pair<void*, std::vector<unsigned char>>> on_their_way;
static void deliver() {
    Lock lock(memory::one);
    for (auto& [to, values] : on_their_way) std::memcpy(to, values.data(), values.size());
    on_their_way.clear();
}
static Status waited() {
    deliver();
    memory::waited();
    return memory::look_at_guards(), DONE;
}

// The one context that there is, and whether it is current, which each thread has to see to for itself.
static void* const CONTEXT = reinterpret_cast<void*>(0x10);
static thread_local void* current;
// A card's driver may do without one where a stream or function names it; which calls do is not documented, so none.
static bool no_context(const char* call) {
    if (current) return false;
    std::fprintf(stderr, "emulator: %s: no context is current on this thread\n", call);
    return true;
}
#define IN_CONTEXT \
    if (no_context(__func__)) return INVALID_CONTEXT

struct Module {
    std::map<std::string, const emulated::Kernel*> kernels;
};
struct Function {
    const emulated::Kernel* kernel;
    // Bytes of shared memory that a block may have.
    size_t shared;
};
static void* const STREAM = reinterpret_cast<void*>(0x20);
static void* const EVENT = reinterpret_cast<void*>(0x30);
static char pool;

// Whether a card starts this; if not, why, and with which status.
static Status fits(const Function& function, size_t gx, size_t gy, size_t gz, size_t bx, size_t by, size_t bz, size_t shared) {
    const emulated::Kernel& kernel = *function.kernel;
    const size_t threads = bx * by * bz, most = kernel.threads ? kernel.threads : 1024, bytes = kernel.shared + shared;
    // Registers are given to warps, to each thread in eights.
    const size_t registers = (kernel.registers + 7) / 8 * 8 * ((threads + 31) / 32 * 32);
    const char* wrong = nullptr;
    Status status = INVALID;
    if (threads == 0 || gx == 0 || gy == 0 || gz == 0) wrong = "a grid or block without threads";
    else if (threads > most || bx > 1024 || by > 1024 || bz > 64) wrong = "too many threads in a block";
    else if (gx > 0x7fffffff || gy > 65535 || gz > 65535) wrong = "too many blocks in a grid";
    else if (bytes > function.shared) wrong = "too much shared memory";
    else if (registers > 65536) wrong = "too many registers", status = OUT_OF_RESOURCES;
    if (!wrong) return DONE;
    std::fprintf(stderr, "emulator: kernel %s: %s; grid %zu,%zu,%zu, block %zu,%zu,%zu (at most %zu), %zu bytes of shared memory (at most %zu), %u registers a thread\n", kernel.name, wrong, gx, gy, gz, bx, by, bz, most,
                 bytes, function.shared, kernel.registers);
    return status;
}

extern "C" {
Status cuInit(unsigned) { return DONE; }
Status cuDriverGetVersion(int* version) { return *version = 13000, DONE; }
Status cuDeviceGetCount(int* count) {
    const char* wish = std::getenv("CLTLAB_EMULATED_DEVICES");
    return *count = wish ? std::atoi(wish) : 1, DONE;
}
Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal, DONE; }
Status cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "emulated GPU"), DONE; }
Status cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = memory::limit(), DONE; }
Status cuDeviceGetUuid_v2(void* id, int) { return std::memset(id, 7, 16), DONE; }
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    // 75 and 76: compute capability; 16: multiprocessors; 38: bytes of second-level cache; 115: memory pools. Others: no.
    return *value = attribute == 75 ? 9 : attribute == 16 ? 2 : attribute == 38 ? 1 << 20 : attribute == 115, DONE;
}
Status cuDevicePrimaryCtxRetain(void** context, int) { return *context = CONTEXT, DONE; }
Status cuDevicePrimaryCtxRelease_v2(int) { return DONE; }
Status cuCtxSetCurrent(void* context) {
    if (context && context != CONTEXT) return INVALID_CONTEXT;
    return current = context, DONE;
}
Status cuCtxGetCurrent(void** context) { return *context = current, DONE; }
Status cuCtxSynchronize() {
    IN_CONTEXT;
    return waited();
}
Status cuStreamCreate(void** stream, unsigned) {
    IN_CONTEXT;
    return *stream = STREAM, DONE;
}
Status cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
Status cuStreamDestroy_v2(void*) {
    IN_CONTEXT;
    return DONE;
}
Status cuStreamSynchronize(void*) {
    IN_CONTEXT;
    return waited();
}
Status cuStreamWaitEvent(void*, void*, unsigned) {
    IN_CONTEXT;
    return DONE;
}
Status cuStreamIsCapturing(void*, int* status) {
    IN_CONTEXT;
    return *status = 0, DONE;
}
Status cuEventCreate(void** event, unsigned) {
    IN_CONTEXT;
    return *event = EVENT, DONE;
}
Status cuEventRecord(void*, void*) {
    IN_CONTEXT;
    return DONE;
}
Status cuEventSynchronize(void*) {
    IN_CONTEXT;
    return waited();
}
Status cuEventQuery(void*) {
    IN_CONTEXT;
    return DONE;
}
Status cuEventDestroy_v2(void*) {
    IN_CONTEXT;
    return DONE;
}

Status cuMemGetInfo_v2(size_t* available, size_t* total) {
    IN_CONTEXT;
    return *total = memory::limit(), *available = memory::available(), DONE;
}
Status cuDeviceGetDefaultMemPool(void** found, int) { return *found = &pool, DONE; }
Status cuMemPoolSetAttribute(void* which, int attribute, void* value) { return which == &pool ? memory::set(attribute, value) : INVALID; }
Status cuMemPoolGetAttribute(void* which, int attribute, void* value) { return which == &pool ? memory::get(attribute, value) : INVALID; }
Status cuMemPoolTrimTo(void* which, size_t keep) { return which == &pool ? memory::trim(keep) : INVALID; }
Status cuMemAlloc_v2(At* at, size_t bytes) {
    IN_CONTEXT;
    return memory::allocate(at, bytes, false);
}
Status cuMemAllocAsync(At* at, size_t bytes, void*) {
    IN_CONTEXT;
    return memory::allocate(at, bytes, true);
}
Status cuMemFree_v2(At at) {
    IN_CONTEXT;
    return memory::release(at);
}
Status cuMemFreeAsync(At at, void*) {
    IN_CONTEXT;
    return memory::release(at);
}
Status cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    IN_CONTEXT;
    Lock lock(memory::one);
    *at = std::malloc(bytes);
    std::memset(*at, 0xff, bytes);
    return pinned.insert(*at), DONE;
}
Status cuMemAllocHost_v2(void** at, size_t bytes) { return cuMemHostAlloc(at, bytes, 0); }
Status cuMemFreeHost(void* at) {
    IN_CONTEXT;
    Lock lock(memory::one);
    return deliver(), pinned.erase(at), std::free(at), DONE;
}

static Status move(void* to, const void* from, size_t bytes, At device) {
    Lock lock(memory::one);
    if (memory::inside(device, bytes) != DONE) return std::fprintf(stderr, "emulator: a copy outside of any allocation\n"), INVALID;
    return std::memmove(to, from, bytes), DONE;
}
// Bytes that were copied to the host, printed at the end of the process when CLTLAB_EMULATED_TELL is set.
static struct Left {
    size_t bytes = 0;
    ~Left() {
        if (std::getenv("CLTLAB_EMULATED_TELL")) memory::report(bytes);
    }
} left;
Status cuMemcpyHtoD_v2(At to, const void* from, size_t bytes) {
    IN_CONTEXT;
    return move(reinterpret_cast<void*>(to), from, bytes, to);
}
Status cuMemcpyHtoDAsync_v2(At to, const void* from, size_t bytes, void*) { return cuMemcpyHtoD_v2(to, from, bytes); }
Status cuMemcpyDtoH_v2(void* to, At from, size_t bytes) {
    IN_CONTEXT;
    return left.bytes += bytes, move(to, reinterpret_cast<void*>(from), bytes, from);
}
// A copy to pinned memory is asynchronous: its bytes arrive at the next synchronisation.
Status cuMemcpyDtoHAsync_v2(void* to, At from, size_t bytes, void*) {
    Lock lock(memory::one);
    if (!pinned.count(to)) return cuMemcpyDtoH_v2(to, from, bytes);
    std::vector<unsigned char> values(bytes);
    const Status status = cuMemcpyDtoH_v2(values.data(), from, bytes);
    if (status == DONE) on_their_way.emplace_back(to, std::move(values));
    return status;
}
Status cuMemcpyDtoD_v2(At to, At from, size_t bytes) {
    IN_CONTEXT;
    return move(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes, memory::inside(from, bytes) == DONE ? to : 0);
}
Status cuMemcpyDtoDAsync_v2(At to, At from, size_t bytes, void*) { return cuMemcpyDtoD_v2(to, from, bytes); }
Status cuMemsetD8_v2(At to, unsigned char value, size_t bytes) {
    IN_CONTEXT;
    Lock lock(memory::one);
    if (memory::inside(to, bytes) != DONE) return INVALID;
    return std::memset(reinterpret_cast<void*>(to), value, bytes), DONE;
}
Status cuMemsetD8Async(At to, unsigned char value, size_t bytes, void*) { return cuMemsetD8_v2(to, value, bytes); }

Status cuModuleLoadData(void** module, const void* image) {
    IN_CONTEXT;
    auto* made = new Module;
    const std::string text = static_cast<const char*>(image), mark = ".visible .entry ";
    for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + 1)) {
        const size_t begin = at + mark.size();
        const std::string name = text.substr(begin, text.find('(', begin) - begin);
        for (const emulated::Kernel* const* list = emulated::lists; *list; ++list) {
            for (const emulated::Kernel* kernel = *list; kernel->name; ++kernel) {
                if (name == kernel->name) made->kernels[name] = kernel;
            }
        }
    }
    return *module = made, DONE;
}
Status cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) { return cuModuleLoadData(module, image); }
Status cuModuleUnload(void*) {
    IN_CONTEXT;
    return DONE;
}
Status cuModuleGetFunction(void** function, void* module, const char* name) {
    IN_CONTEXT;
    auto& kernels = static_cast<Module*>(module)->kernels;
    auto found = kernels.find(name);
    if (found == kernels.end()) return std::fprintf(stderr, "emulator: kernel %s has no emulated body\n", name), NOT_FOUND;
    return *function = new Function{found->second, 48 << 10}, DONE;
}
Status cuFuncSetAttribute(void* function, int attribute, int value) {
    IN_CONTEXT;
    // 8: bytes of dynamic shared memory, of which an H100 has 227 KiB for a block.
    if (attribute != 8) return DONE;
    auto& asked = *static_cast<Function*>(function);
    if (value < 0 || size_t(value) + asked.kernel->shared > 227 << 10) return INVALID;
    return asked.shared = std::max(asked.shared, value + size_t(asked.kernel->shared)), DONE;
}
Status cuFuncGetAttribute(int* value, int attribute, void* function) {
    IN_CONTEXT;
    const emulated::Kernel& kernel = *static_cast<Function*>(function)->kernel;
    // The most threads of a block, bytes of static shared memory, registers. Others: 0.
    return *value = attribute == 0 ? (kernel.threads ? kernel.threads : 1024) : attribute == 1 ? kernel.shared : attribute == 4 ? kernel.registers : 0, DONE;
}
Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void*, void** values, void**) {
    IN_CONTEXT;
    const Function& asked = *static_cast<Function*>(function);
    if (const Status status = fits(asked, gx, gy, gz, bx, by, bz, shared)) return status;
    Lock lock(memory::one);
    emulated::launch(asked.kernel, {gx, gy, gz}, {bx, by, bz}, shared, values);
    memory::look_at_guards();
    return DONE;
}

static const std::map<Status, std::pair<const char*, const char*>> ERRORS = {
    {DONE, {"CUDA_SUCCESS", "no error"}},
    {INVALID, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {INVALID_CONTEXT, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {NOT_FOUND, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {OUT_OF_RESOURCES, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
};
Status cuGetErrorName(Status status, const char** name) { return *name = ERRORS.count(status) ? ERRORS.at(status).first : "CUDA_ERROR", DONE; }
Status cuGetErrorString(Status status, const char** text) { return *text = ERRORS.count(status) ? ERRORS.at(status).second : "error of the emulated driver", DONE; }
}
