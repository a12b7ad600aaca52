// The emulated device's memory: what is allocated, what the driver's pool keeps, and what is left.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>

// Results of the driver's functions, by their values in CUresult.
typedef int Status;
typedef unsigned long long At;
enum { DONE = 0, INVALID = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500, OUT_OF_RESOURCES = 701 };

namespace memory {
// Held during each access to the device: streams execute at once, one call at a time.
extern std::recursive_mutex one;

// CUmemPool_attribute.
enum Attribute { REUSE_FOLLOW = 1, REUSE_OPPORTUNISTIC, REUSE_INTERNAL, RELEASE_THRESHOLD, RESERVED_CURRENT, RESERVED_HIGH, USED_CURRENT, USED_HIGH };

// All bytes that the device has (CLTLAB_EMULATED_BYTES, else 8 GiB).
size_t limit();
// What cuMemGetInfo calls free: bytes that the pool keeps without use are taken.
size_t available();
Status allocate(At* at, size_t bytes, bool from_pool);
Status release(At at);
// Whether a range lies within one allocation.
Status inside(At at, size_t bytes);
// Ends the program when a guard behind an allocation was overwritten.
void look_at_guards();

// The host waited for a stream, an event or the context: the pool gives back what it keeps above its threshold.
void waited();
Status trim(size_t keep);
Status get(int attribute, void* value);
Status set(int attribute, const void* value);
// Prints what was taken at most, and how.
void report(size_t left_the_device);
}  // namespace memory
