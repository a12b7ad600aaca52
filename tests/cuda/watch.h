// What a card's sanitizer sees, on the emulated device: device memory that is never given out twice, and a record of
// who touched each byte last.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulated {
// Memory with room for a guard and a gap behind it; after `forget` no kernel may touch it, and nobody gets it again.
unsigned char* remember(size_t bytes, size_t guard);
void forget(unsigned char* at, size_t bytes);

// Told by the emulator: a launch, a block of it (with its dynamic shared memory), the thread that runs on, and what
// orders threads: a barrier of the block, `__syncwarp` or an exchange of a warp.
void begin_launch(const char* kernel);
void begin_block(unsigned char* shared, size_t bytes);
void passed_barrier();
void passed_warp(unsigned warp, bool exchange);
void thread_paused();
// An atomic operation of a kernel; all others are told by what `-fsanitize=thread` inserts.
void atomic(const void* at, size_t bytes);
}  // namespace emulated
