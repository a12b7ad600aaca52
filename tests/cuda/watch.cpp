// The watched device: kernels compiled with `-fsanitize=thread` call these functions at every load and store.
//
// Found, once per kernel and place in it: accesses outside of any allocation or of freed ones, accesses that are not
// aligned to their size, and pairs of accesses that nothing orders, of which one writes: within a block by no barrier
// (`__syncwarp` orders a warp; an exchange orders what was read before it), between blocks of a launch by nothing but
// atomics. Two writes of the same bytes are let pass. What was found makes the program's exit status 70.
#include "watch.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulated {
namespace {
const size_t ROOM = size_t(1) << 43, PAGE = 4096;

// One access: in which block it was (counted over the whole run), by which thread, and after how many barriers.
struct Touch {
    uint32_t block;
    uint16_t thread, barrier, sync, exchange;
    bool atomic, writes;
};
// The last write of a byte, the last read, and the last read by somebody else than that. Of four bytes that were
// always touched together the first stands for all, until `split`.
struct Byte {
    Touch write, read, other;
    bool split;
};
struct Allocation {
    unsigned char* at;
    size_t bytes;
    Byte* seen;
};

void* reserve(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) std::perror("emulator: address space"), std::abort();
    return at;
}
// Known when the first memory is asked for.
unsigned char* start;
size_t given;

// Which allocation a page belongs to, by its index from 1.
uint32_t* pages;
std::vector<Allocation> allocations;

// Shared memory: what kernels declare lies among this library's data.
unsigned char *statics, *statics_end, *shared, *shared_end;
Byte* statics_seen;
std::vector<Byte> shared_seen;

const char* kernel = "";
uint32_t blocks, first_block;
uint16_t barriers, syncs[32], exchanges[32];
std::set<std::string> told;
bool found;

int find_statics(dl_phdr_info* info, size_t, void* inside) {
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& part = info->dlpi_phdr[i];
        auto* begin = reinterpret_cast<unsigned char*>(info->dlpi_addr + part.p_vaddr);
        ours |= part.p_type == PT_LOAD && inside >= begin && inside < begin + part.p_memsz;
    }
    for (int i = 0; ours && i < info->dlpi_phnum; ++i) {
        const auto& part = info->dlpi_phdr[i];
        if (part.p_type != PT_LOAD || !(part.p_flags & PF_W)) continue;
        statics = reinterpret_cast<unsigned char*>(info->dlpi_addr + part.p_vaddr);
        statics_end = statics + part.p_memsz;
        statics_seen = static_cast<Byte*>(reserve((part.p_memsz + 4) * sizeof(Byte)));
    }
    return ours;
}

void tell(const char* what, const void* at, size_t bytes, const void* code, const std::string& more) {
    Dl_info place;
    dladdr(code, &place);
    char words[512];
    const size_t offset = static_cast<const char*>(code) - static_cast<const char*>(place.dli_fbase);
    std::snprintf(words, sizeof words, "emulator: kernel %s (%s+0x%zx): %s of %zu bytes", kernel, place.dli_fname, offset, what, bytes);
    if (!told.insert(words).second) return;
    found = true;
    std::fprintf(stderr, "%s at %p by thread %u,%u,%u of block %u,%u,%u%s\n", words, at, now->index.x, now->index.y, now->index.z, block.x, block.y, block.z, more.c_str());
}

uint16_t thread_number() { return now->index.x + block_size.x * (now->index.y + block_size.y * now->index.z); }

// Whether what happened before is ordered before what happens now.
bool ordered(const Touch& before, bool read, bool between_blocks) {
    if (before.block < first_block) return true;
    if (before.block != blocks) return !between_blocks;
    const uint16_t thread = thread_number();
    if (before.thread == thread || before.barrier != barriers) return true;
    if (before.thread / 32 != now->warp) return false;
    return before.sync != syncs[now->warp] || (read && before.exchange != exchanges[now->warp]);
}

std::string who(const Touch& before, const char* did) {
    return std::string("; thread ") + std::to_string(before.thread) + (before.block == blocks ? " of this block " : " of another block ") + did;
}

// Writes over writes, looked at when the thread pauses: were they the same bytes?
struct Twice {
    const unsigned char* at;
    size_t bytes;
    uint32_t value;
    const void* code;
    std::string more;
};
std::vector<Twice> twice;

// `span`: how many bytes it stands for, of an access of `bytes`.
void note(Byte& byte, const Touch& mine, const unsigned char* at, size_t span, size_t bytes, const void* code, bool between_blocks) {
    if (!(byte.write.atomic && mine.atomic) && !ordered(byte.write, false, between_blocks)) {
        if (mine.writes) {
            twice.push_back({at, span, 0, code, who(byte.write, "wrote it too")});
            std::memcpy(&twice.back().value, at, twice.back().bytes);
        } else {
            tell("an unordered read", at, bytes, code, who(byte.write, "wrote it"));
        }
    }
    if (mine.writes) {
        for (const Touch* read : {&byte.read, &byte.other}) {
            if (!(read->atomic && mine.atomic) && !ordered(*read, true, between_blocks)) tell("an unordered write", at, bytes, code, who(*read, "read it"));
        }
        byte.write = mine;
    } else {
        if (byte.read.thread != mine.thread || byte.read.block != mine.block) byte.other = byte.read;
        byte.read = mine;
    }
}

void look(const void* address, size_t bytes, bool writes, bool is_atomic, const void* code) {
    auto* at = static_cast<unsigned char*>(const_cast<void*>(address));
    Byte* seen;
    bool between_blocks = false;
    if (at >= start && at < start + ROOM) {
        const uint32_t index = pages[(at - start) / PAGE];
        if (index == 0) return tell("an access to no allocation, or a freed one,", at, bytes, code, "");
        const Allocation& held = allocations[index - 1];
        if (at + bytes > held.at + held.bytes) return tell("an access behind an allocation", at, bytes, code, "; it has " + std::to_string(held.bytes) + " bytes and this is at byte " + std::to_string(at - held.at));
        seen = held.seen + (at - held.at);
        between_blocks = true;
    } else if (at >= shared && at < shared_end) {
        if (at + bytes > shared_end) return tell("an access behind dynamic shared memory", at, bytes, code, "");
        seen = &shared_seen[at - shared];
    } else if (at >= statics && at < statics_end) {
        seen = statics_seen + (at - statics);
    } else {
        return;
    }
    const Touch mine = {blocks, thread_number(), barriers, syncs[now->warp], exchanges[now->warp], is_atomic, writes};
    for (size_t i = 0; i < bytes; ++i) {
        Byte* word = seen + i - (reinterpret_cast<uintptr_t>(at + i) & 3);
        const bool whole = word == seen + i && i + 4 <= bytes;
        if (!whole && !word->split) {
            for (int other = 1; other < 4; ++other) word[other] = *word;
            word->split = true;
        }
        note(seen[i], mine, at + i, whole && !word->split ? 4 : 1, bytes, code, between_blocks);
        if (!whole) continue;
        for (int other = 1; word->split && other < 4; ++other) note(word[other], mine, at + i + other, 1, bytes, code, between_blocks);
        // A write makes them one again.
        word->split &= !writes;
        i += 3;
    }
}

void aligned(const void* at, size_t bytes, bool writes, const void* code) {
    if ((reinterpret_cast<uintptr_t>(at) & (bytes - 1)) != 0) tell("a misaligned access", at, bytes, code, "");
    look(at, bytes, writes, false, code);
}
}  // namespace

unsigned char* remember(size_t bytes, size_t guard) {
    if (!start) {
        start = static_cast<unsigned char*>(reserve(ROOM));
        pages = static_cast<uint32_t*>(reserve(ROOM / PAGE * sizeof(uint32_t)));
    }
    const size_t taken = (bytes + guard + PAGE - 1) / PAGE * PAGE;
    unsigned char* at = start + given;
    given += taken + PAGE;
    if (given > ROOM) std::fprintf(stderr, "emulator: all addresses are used up\n"), std::abort();
    Byte* seen = nullptr;
#ifdef CLTLAB_WATCHED
    seen = static_cast<Byte*>(reserve((bytes + 4) * sizeof(Byte)));
#endif
    allocations.push_back({at, bytes, seen});
    for (size_t page = 0; page < taken; page += PAGE) pages[(at - start + page) / PAGE] = allocations.size();
    return at;
}
void forget(unsigned char* at, size_t bytes) {
    const size_t first = (at - start) / PAGE;
    Allocation& held = allocations[pages[first] - 1];
    const size_t index = pages[first];
    size_t count = 0;
    for (; pages[first + count] == index; ++count) pages[first + count] = 0;
    madvise(at, count * PAGE, MADV_DONTNEED);
    if (held.seen) munmap(held.seen, (bytes + 4) * sizeof(Byte));
    held.seen = nullptr;
}

void begin_launch(const char* name) {
    kernel = name;
    first_block = blocks + 1;
    if (!statics) dl_iterate_phdr(find_statics, reinterpret_cast<void*>(&begin_launch));
}
void begin_block(unsigned char* at, size_t bytes) {
    ++blocks;
    barriers = 0;
    std::memset(syncs, 0, sizeof syncs);
    std::memset(exchanges, 0, sizeof exchanges);
    shared = at, shared_end = at + bytes;
    shared_seen.resize(bytes + 4);
}
void passed_barrier() { ++barriers; }
void passed_warp(unsigned warp, bool exchange) { ++(exchange ? exchanges : syncs)[warp]; }
void thread_paused() {
    for (const Twice& write : twice) {
        if (std::memcmp(write.at, &write.value, write.bytes) != 0) tell("an unordered write", write.at, write.bytes, write.code, write.more);
    }
    twice.clear();
}
void atomic(const void* at, size_t bytes) {
    look(at, bytes, true, true, __builtin_return_address(0));
}

static struct End {
    ~End() {
        if (found) std::fflush(stdout), _exit(70);
    }
} end;
}  // namespace emulated

#define WATCH(name, bytes)                                                                                                          \
    void __tsan_read##name(void* at) { emulated::aligned(at, bytes, false, __builtin_return_address(0)); }                          \
    void __tsan_write##name(void* at) { emulated::aligned(at, bytes, true, __builtin_return_address(0)); }                          \
    void __tsan_unaligned_read##name(void* at) { emulated::look(at, bytes, false, false, __builtin_return_address(0)); }            \
    void __tsan_unaligned_write##name(void* at) { emulated::look(at, bytes, true, false, __builtin_return_address(0)); }
extern "C" {
WATCH(1, 1)
WATCH(2, 2)
WATCH(4, 4)
WATCH(8, 8)
WATCH(16, 16)
void __tsan_read_range(void* at, size_t bytes) { emulated::look(at, bytes, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void* at, size_t bytes) { emulated::look(at, bytes, true, false, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
