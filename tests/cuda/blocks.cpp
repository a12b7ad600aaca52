// Runs a kernel's blocks one after another, a block's threads as fibers that take turns at barriers and exchanges.
#include <algorithm>
#include <random>
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

void launch(const Kernel* what, Dim grid, Dim size, size_t shared, void** values) {
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
