// Device memory over the host's. Fresh memory is full of NaN, a guard lies behind each allocation, and no address is
// given out twice (watch.cpp), so the pool is a matter of counting: which bytes the driver would have reserved of the
// card, and which of them are in use. Fragmentation and the granularity of 2 MiB are not modelled, so that what
// programs predict can be compared to the byte.
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "watch.h"

namespace memory {
std::recursive_mutex one;

namespace {
const size_t GUARD = 64;
struct Block {
    size_t bytes;
    bool pooled;
};
std::map<At, Block> blocks;
// Bytes outside of the pool; in use, and reserved, in it.
size_t direct, used, reserved;
size_t used_high, reserved_high, threshold;
uint32_t reuse[3] = {1, 1, 1};
// For the report: the most that was in use at once, and how many allocations there were.
size_t most, from_pool_count, direct_count;

void count() {
    used_high = std::max(used_high, used);
    reserved_high = std::max(reserved_high, reserved);
    most = std::max(most, direct + used);
}
}  // namespace

size_t limit() {
    const char* wish = std::getenv("CLTLAB_EMULATED_BYTES");
    return wish ? std::strtoull(wish, nullptr, 10) : size_t(8) << 30;
}

size_t available() {
    std::lock_guard<std::recursive_mutex> lock(one);
    return limit() - direct - reserved;
}

void look_at_guards() {
    std::lock_guard<std::recursive_mutex> lock(one);
    for (auto& [at, block] : blocks) {
        const auto* guard = reinterpret_cast<const unsigned char*>(at) + block.bytes;
        for (size_t i = 0; i < GUARD; ++i) {
            if (guard[i] != 0xC3) {
                std::fprintf(stderr, "emulator: something was written %zu bytes behind an allocation of %zu bytes\n", i, block.bytes);
                std::abort();
            }
        }
    }
}

Status allocate(At* at, size_t bytes, bool from_pool) {
    std::lock_guard<std::recursive_mutex> lock(one);
    if (bytes == 0) {
        // cuMemAlloc refuses it; from a pool it is no memory at all.
        *at = 0;
        return from_pool ? DONE : INVALID;
    }
    if (bytes > limit() || direct + used + bytes > limit()) return OUT_OF_MEMORY;
    if (from_pool) {
        used += bytes;
        reserved = std::max(reserved, used);
    } else {
        direct += bytes;
        // The driver takes unused memory out of its pools before it refuses.
        reserved = std::min(reserved, limit() - direct);
    }
    ++(from_pool ? from_pool_count : direct_count);
    count();
    unsigned char* memory = emulated::remember(bytes, GUARD);
    std::memset(memory, 0xFF, bytes);
    std::memset(memory + bytes, 0xC3, GUARD);
    *at = reinterpret_cast<At>(memory);
    blocks[*at] = {bytes, from_pool};
    return DONE;
}

Status release(At at) {
    std::lock_guard<std::recursive_mutex> lock(one);
    look_at_guards();
    if (at == 0) return DONE;
    auto found = blocks.find(at);
    if (found == blocks.end()) return INVALID;
    // What the pool gave stays reserved until a wait or a trim.
    (found->second.pooled ? used : direct) -= found->second.bytes;
    emulated::forget(reinterpret_cast<unsigned char*>(at), found->second.bytes);
    blocks.erase(found);
    return DONE;
}

Status inside(At at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(one);
    if (bytes == 0) return DONE;
    auto found = blocks.upper_bound(at);
    if (found == blocks.begin()) return INVALID;
    --found;
    return at + bytes <= found->first + found->second.bytes ? DONE : INVALID;
}

Status trim(size_t keep) {
    std::lock_guard<std::recursive_mutex> lock(one);
    reserved = std::min(reserved, std::max(used, keep));
    return DONE;
}

void waited() { trim(threshold); }

Status get(int attribute, void* value) {
    std::lock_guard<std::recursive_mutex> lock(one);
    // The three of reuse are ints, all others 64 bits.
    if (attribute >= REUSE_FOLLOW && attribute <= REUSE_INTERNAL) return std::memcpy(value, &reuse[attribute - REUSE_FOLLOW], 4), DONE;
    uint64_t found;
    switch (attribute) {
        case RELEASE_THRESHOLD: found = threshold; break;
        case RESERVED_CURRENT: found = reserved; break;
        case RESERVED_HIGH: found = reserved_high; break;
        case USED_CURRENT: found = used; break;
        case USED_HIGH: found = used_high; break;
        default: return INVALID;
    }
    return std::memcpy(value, &found, 8), DONE;
}

Status set(int attribute, const void* value) {
    std::lock_guard<std::recursive_mutex> lock(one);
    if (attribute >= REUSE_FOLLOW && attribute <= REUSE_INTERNAL) return std::memcpy(&reuse[attribute - REUSE_FOLLOW], value, 4), DONE;
    uint64_t wanted;
    std::memcpy(&wanted, value, 8);
    if (attribute == RELEASE_THRESHOLD) return threshold = wanted, DONE;
    // The high marks can be set to 0 only, which means: what there is now.
    if (wanted != 0) return INVALID;
    if (attribute == RESERVED_HIGH) return reserved_high = reserved, DONE;
    if (attribute == USED_HIGH) return used_high = used, DONE;
    return INVALID;
}

void report(size_t left_the_device) {
    std::fprintf(stderr, "emulator: %zu bytes left the device, at most %zu were taken there\n", left_the_device, most);
    std::fprintf(stderr, "emulator: %zu allocations from the pool, %zu outside of it; %zu bytes of it reserved, %zu used at the end\n", from_pool_count, direct_count, reserved, used);
}
}  // namespace memory

// For libraries.cpp, which is loaded on its own.
extern "C" int cltlab_inside(const void* at, size_t bytes) { return memory::inside(reinterpret_cast<At>(at), bytes) == DONE; }
