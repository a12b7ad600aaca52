// The part of CUDA's driver interface that the program needs, over the emulator: `libcuda.so.1` for tests.
//
// Device memory is the host's, with a guard behind each allocation that is looked at when work is waited for, and
// fresh memory full of NaN (watch.cpp says what more is seen of kernels that are compiled for it). Streams execute at once. A module is the list of entries in its PTX text; an entry
// without an emulated body is reported by name.
#include <algorithm>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "emulator.h"
#include "registry.h"
#include "watch.h"

namespace emulated {
Thread* now;
Dim block, block_size, grid_size;
unsigned char* dynamic;

enum State { RUNS, WAITS_WARP, WAITS_BLOCK, ENDED };
struct Fiber {
    Thread thread;
    State state;
    const char* where;
    void* stack_top;
    std::vector<unsigned char> stack;
};
static std::vector<Fiber> fibers;
static std::vector<uint64_t> exchanges;
static std::vector<unsigned> rounds;
static unsigned running;
static void* scheduler_stack;
static const Kernel* kernel;
static void** parameters;

uint64_t* exchange(unsigned warp, unsigned buffer) { return &exchanges[(2 * warp + buffer) * 32]; }
unsigned* round_of(unsigned warp, unsigned buffer) { return &rounds[(2 * warp + buffer) * 32]; }

// Keeps the callee's registers on the stack that is left, and goes on where the other stack was left.
extern "C" void cltlab_switch(void** save, void* to);
asm(R"(
.text
.globl cltlab_switch
cltlab_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

static void leave(State state, const char* where) {
    thread_paused();
    Fiber& fiber = fibers[running];
    fiber.state = state;
    fiber.where = where;
    cltlab_switch(&fiber.stack_top, scheduler_stack);
}
void wait_block(const char* where) { leave(WAITS_BLOCK, where); }
void wait_warp(const char* where) { leave(WAITS_WARP, where); }

static void body() {
    kernel->call(parameters);
    leave(ENDED, "end");
    std::abort();
}

static void prepare(Fiber& fiber) {
    if (fiber.stack.empty()) fiber.stack.resize(1 << 16);
    auto top = (reinterpret_cast<uintptr_t>(fiber.stack.data()) + fiber.stack.size()) & ~uintptr_t(15);
    void** at = reinterpret_cast<void**>(top);
    *--at = nullptr;
    *--at = reinterpret_cast<void*>(body);
    for (int i = 0; i < 6; ++i) *--at = nullptr;
    fiber.stack_top = at;
    fiber.state = RUNS;
}

// Lets go whoever waits for threads that have all come or ended; false when nobody can go on.
static bool release(unsigned count) {
    bool any = false;
    for (unsigned first = 0; first < count; first += 32) {
        const unsigned end = std::min(first + 32, count);
        bool waits = false, ready = true;
        for (unsigned i = first; i < end; ++i) {
            waits |= fibers[i].state == WAITS_WARP;
            ready &= fibers[i].state == WAITS_WARP || fibers[i].state == ENDED;
        }
        if (!waits || !ready) continue;
        any = true;
        passed_warp(first / 32, std::any_of(&fibers[first], &fibers[end - 1] + 1, [](const Fiber& fiber) { return fiber.state == WAITS_WARP && std::strcmp(fiber.where, "__syncwarp") != 0; }));
        for (unsigned i = first; i < end; ++i) {
            if (fibers[i].state == WAITS_WARP) fibers[i].state = RUNS;
        }
    }
    if (any) return true;
    for (unsigned i = 0; i < count; ++i) {
        if (fibers[i].state == WAITS_WARP || fibers[i].state == RUNS) return false;
    }
    for (unsigned i = 0; i < count; ++i) {
        if (fibers[i].state == WAITS_BLOCK) fibers[i].state = RUNS, any = true;
    }
    passed_barrier();
    return any;
}

static void run_block(const std::vector<unsigned>& order) {
    const unsigned count = order.size(), x = block_size.x, y = block_size.y;
    std::fill(rounds.begin(), rounds.end(), 0);
    for (unsigned i = 0; i < count; ++i) {
        fibers[i].thread = {{i % x, i / x % y, i / (x * y)}, i % 32, i / 32, 0};
        prepare(fibers[i]);
    }
    for (;;) {
        for (unsigned i : order) {
            if (fibers[i].state != RUNS) continue;
            running = i;
            now = &fibers[i].thread;
            cltlab_switch(&scheduler_stack, fibers[i].stack_top);
        }
        if (std::all_of(fibers.begin(), fibers.begin() + count, [](const Fiber& fiber) { return fiber.state == ENDED; })) return;
        if (!release(count)) {
            std::fprintf(stderr, "emulator: kernel %s, block %u,%u: threads wait for each other:", kernel->name, block.x, block.y);
            for (unsigned i = 0; i < count; i += 16) std::fprintf(stderr, " %u:%s", i, fibers[i].where);
            std::fprintf(stderr, "\n");
            std::abort();
        }
    }
}

static void launch(const Kernel* what, Dim grid, Dim size, size_t shared, void** values) {
    kernel = what, parameters = values, grid_size = grid, block_size = size;
    begin_launch(kernel->name);
    const unsigned threads = size.x * size.y * size.z;
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) order[i] = i;
    const char* wish = std::getenv("CLTLAB_EMULATED_ORDER");
    std::mt19937 random(wish ? std::atoi(wish) : 0);
    if (wish && std::string(wish) == "reverse") std::reverse(order.begin(), order.end());
    if (fibers.size() < threads) fibers.resize(threads);
    exchanges.assign(2 * 32 * ((threads + 31) / 32), 0);
    rounds.assign(exchanges.size(), 0);
    std::vector<unsigned char> room(shared + 16, 0xA5);
    dynamic = room.data();
    std::vector<size_t> blocks(size_t(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
    const bool shuffles = wish && wish[0] >= '0' && wish[0] <= '9';
    if (wish && std::string(wish) == "reverse") std::reverse(blocks.begin(), blocks.end());
    if (shuffles) std::shuffle(blocks.begin(), blocks.end(), random);
    for (size_t i : blocks) {
        if (shuffles) std::shuffle(order.begin(), order.end(), random);
        std::fill(room.begin(), room.end(), 0xA5);
        block = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
        begin_block(dynamic, shared);
        run_block(order);
    }
}
}  // namespace emulated

typedef int Status;
typedef unsigned long long At;
enum { DONE = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
static const size_t GUARD = 64;
static std::recursive_mutex one;
static std::map<At, size_t> allocations;
static size_t held, most;
// Memory of the host that is pinned, and copies to it that nobody has waited for.
static std::set<void*> pinned;
static std::vector<std::pair<void*, std::vector<unsigned char>>> on_their_way;
static void deliver() {
    std::lock_guard<std::recursive_mutex> lock(one);
    for (auto& [to, values] : on_their_way) std::memcpy(to, values.data(), values.size());
    on_their_way.clear();
}

static size_t limit() {
    const char* wish = std::getenv("CLTLAB_EMULATED_BYTES");
    return wish ? std::strtoull(wish, nullptr, 10) : size_t(8) << 30;
}
static void look_at_guards() {
    std::lock_guard<std::recursive_mutex> lock(one);
    for (auto& [at, bytes] : allocations) {
        const auto* guard = reinterpret_cast<const unsigned char*>(at) + bytes;
        for (size_t i = 0; i < GUARD; ++i) {
            if (guard[i] != 0xC3) {
                std::fprintf(stderr, "emulator: something was written %zu bytes behind an allocation of %zu bytes\n", i, bytes);
                std::abort();
            }
        }
    }
}
static Status allocate(At* at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(one);
    if (held + bytes > limit()) return OUT_OF_MEMORY;
    unsigned char* memory = emulated::remember(bytes, GUARD);
    std::memset(memory, 0xFF, bytes);
    std::memset(memory + bytes, 0xC3, GUARD);
    *at = reinterpret_cast<At>(memory);
    allocations[*at] = bytes;
    held += bytes;
    most = std::max(most, held);
    return DONE;
}
static Status release_memory(At at) {
    std::lock_guard<std::recursive_mutex> lock(one);
    look_at_guards();
    auto found = allocations.find(at);
    if (found == allocations.end()) return INVALID;
    held -= found->second;
    emulated::forget(reinterpret_cast<unsigned char*>(at), found->second);
    allocations.erase(found);
    return DONE;
}
// Whether a range lies within one allocation.
static Status inside(At at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(one);
    auto found = allocations.upper_bound(at);
    if (bytes == 0) return DONE;
    if (found == allocations.begin()) return INVALID;
    --found;
    return at + bytes <= found->first + found->second ? DONE : INVALID;
}
struct Module {
    std::map<std::string, const emulated::Kernel*> kernels;
};
struct Function {
    const emulated::Kernel* kernel;
};

extern "C" {
Status cuInit(unsigned) { return DONE; }
Status cuDriverGetVersion(int* version) { return *version = 13000, DONE; }
Status cuDeviceGetCount(int* count) {
    const char* wish = std::getenv("CLTLAB_EMULATED_DEVICES");
    return *count = wish ? std::atoi(wish) : 1, DONE;
}
Status cuDeviceGet(int* device, int ordinal) { return *device = ordinal, DONE; }
Status cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "emulated GPU"), DONE; }
Status cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = limit(), DONE; }
Status cuDeviceGetUuid_v2(void* id, int) { return std::memset(id, 7, 16), DONE; }
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    // 75 and 76: compute capability; 16: multiprocessors; 38: bytes of second-level cache. Others: no.
    return *value = attribute == 75 ? 9 : attribute == 16 ? 2 : attribute == 38 ? 1 << 20 : 0, DONE;
}
Status cuDevicePrimaryCtxRetain(void** context, int) { return *context = reinterpret_cast<void*>(0x10), DONE; }
Status cuDevicePrimaryCtxRelease_v2(int) { return DONE; }
Status cuCtxSetCurrent(void*) { return DONE; }
Status cuCtxGetCurrent(void** context) { return *context = reinterpret_cast<void*>(0x10), DONE; }
Status cuCtxSynchronize() { return deliver(), look_at_guards(), DONE; }
Status cuStreamCreate(void** stream, unsigned) { return *stream = reinterpret_cast<void*>(0x20), DONE; }
Status cuStreamCreateWithPriority(void** stream, unsigned, int) { return *stream = reinterpret_cast<void*>(0x20), DONE; }
Status cuStreamDestroy_v2(void*) { return DONE; }
Status cuStreamSynchronize(void*) { return deliver(), look_at_guards(), DONE; }
Status cuStreamWaitEvent(void*, void*, unsigned) { return DONE; }
Status cuStreamIsCapturing(void*, int* status) { return *status = 0, DONE; }
Status cuEventCreate(void** event, unsigned) { return *event = reinterpret_cast<void*>(0x30), DONE; }
Status cuEventRecord(void*, void*) { return DONE; }
Status cuEventSynchronize(void*) { return deliver(), DONE; }
Status cuEventQuery(void*) { return DONE; }
Status cuEventDestroy_v2(void*) { return DONE; }
Status cuMemGetInfo_v2(size_t* available, size_t* total) { return *total = limit(), *available = limit() - held, DONE; }
// One pool; nothing that is freed stays in it.
Status cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &held, DONE; }
Status cuMemPoolSetAttribute(void*, int, void*) { return DONE; }
Status cuMemPoolTrimTo(void*, size_t) { return DONE; }
Status cuMemPoolGetAttribute(void*, int, void* value) { return *static_cast<uint64_t*>(value) = held, DONE; }
Status cuMemAlloc_v2(At* at, size_t bytes) { return allocate(at, bytes); }
Status cuMemAllocAsync(At* at, size_t bytes, void*) { return allocate(at, bytes); }
Status cuMemFree_v2(At at) { return release_memory(at); }
Status cuMemFreeAsync(At at, void*) { return release_memory(at); }
Status cuMemAllocHost_v2(void** at, size_t bytes) { return *at = std::malloc(bytes), DONE; }
Status cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> lock(one);
    *at = std::malloc(bytes);
    std::memset(*at, 0xff, bytes);
    return pinned.insert(*at), DONE;
}
Status cuMemFreeHost(void* at) {
    std::lock_guard<std::recursive_mutex> lock(one);
    return deliver(), pinned.erase(at), std::free(at), DONE;
}
static Status move(void* to, const void* from, size_t bytes, At device) {
    std::lock_guard<std::recursive_mutex> lock(one);
    if (inside(device, bytes) != DONE) return std::fprintf(stderr, "emulator: a copy outside of any allocation\n"), INVALID;
    return std::memmove(to, from, bytes), DONE;
}
// Bytes that left the device, told at the end if anyone asks.
static struct Left {
    size_t bytes = 0;
    ~Left() {
        if (std::getenv("CLTLAB_EMULATED_TELL")) std::fprintf(stderr, "emulator: %zu bytes left the device, at most %zu were taken there\n", bytes, most);
    }
} left;
Status cuMemcpyHtoD_v2(At to, const void* from, size_t bytes) { return move(reinterpret_cast<void*>(to), from, bytes, to); }
Status cuMemcpyHtoDAsync_v2(At to, const void* from, size_t bytes, void*) { return cuMemcpyHtoD_v2(to, from, bytes); }
Status cuMemcpyDtoH_v2(void* to, At from, size_t bytes) { return left.bytes += bytes, move(to, reinterpret_cast<void*>(from), bytes, from); }
// What goes to memory that is pinned arrives when it is waited for.
Status cuMemcpyDtoHAsync_v2(void* to, At from, size_t bytes, void*) {
    std::lock_guard<std::recursive_mutex> lock(one);
    if (!pinned.count(to)) return cuMemcpyDtoH_v2(to, from, bytes);
    std::vector<unsigned char> values(bytes);
    const Status status = cuMemcpyDtoH_v2(values.data(), from, bytes);
    on_their_way.emplace_back(to, std::move(values));
    return status;
}
Status cuMemcpyDtoD_v2(At to, At from, size_t bytes) { return move(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes, inside(from, bytes) == DONE ? to : 0); }
Status cuMemcpyDtoDAsync_v2(At to, At from, size_t bytes, void*) { return cuMemcpyDtoD_v2(to, from, bytes); }
Status cuMemsetD8_v2(At to, unsigned char value, size_t bytes) {
    if (inside(to, bytes) != DONE) return INVALID;
    return std::memset(reinterpret_cast<void*>(to), value, bytes), DONE;
}
Status cuMemsetD8Async(At to, unsigned char value, size_t bytes, void*) { return cuMemsetD8_v2(to, value, bytes); }
Status cuModuleLoadData(void** module, const void* image) {
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
Status cuModuleUnload(void*) { return DONE; }
Status cuModuleGetFunction(void** function, void* module, const char* name) {
    auto& kernels = static_cast<Module*>(module)->kernels;
    auto found = kernels.find(name);
    if (found == kernels.end()) return std::fprintf(stderr, "emulator: kernel %s has no emulated body\n", name), NOT_FOUND;
    return *function = new Function{found->second}, DONE;
}
Status cuFuncSetAttribute(void*, int, int) { return DONE; }
Status cuFuncGetAttribute(int* value, int, void*) { return *value = 0, DONE; }
Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void*, void** values, void**) {
    // A card's limits.
    const bool within = size_t(bx) * by * bz <= 1024 && bz <= 64 && gx <= 0x7fffffff && gy <= 65535 && gz <= 65535 && shared <= 48 << 10;
    if (size_t(bx) * by * bz == 0 || size_t(gx) * gy * gz == 0 || !within) return INVALID;
    std::lock_guard<std::recursive_mutex> lock(one);
    emulated::launch(static_cast<Function*>(function)->kernel, {gx, gy, gz}, {bx, by, bz}, shared, values);
    look_at_guards();
    return DONE;
}
Status cuGetErrorName(Status status, const char** name) { return *name = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR", DONE; }
Status cuGetErrorString(Status status, const char** text) { return *text = status == OUT_OF_MEMORY ? "out of memory" : "error of the emulated driver", DONE; }
}
