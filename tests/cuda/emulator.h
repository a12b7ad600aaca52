// An emulator of thread blocks, for tests on machines without a GPU: our .cu files, compiled by a C++ compiler with
// this header, run here with the meaning that CUDA gives them, slowly and strictly.
//
// A block's threads are fibers that take turns at barriers and exchanges between the lanes of a warp. In which order
// they run, and blocks, is chosen by CLTLAB_EMULATED_ORDER (forward, reverse, or a number that shuffles), so that a missing
// barrier or a race between blocks shows as a result that depends on it. A barrier that not all threads reach ends the program with its name.
#pragma once
#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __maxnreg__(n)
#define __align__(n) alignas(n)
// Blocks run one after the other, so what a block shares is one static.
#define __shared__ static
#ifdef CLTLAB_WATCHED
#include "watch.h"
// Atomics tell of themselves, by their own name.
#define ATOMIC __attribute__((no_sanitize("thread"), noinline))
#define TELL(at) emulated::atomic(at, sizeof *at)
#else
#define ATOMIC inline
#define TELL(at)
#endif
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulated::dynamic)

namespace emulated {
struct Dim {
    unsigned x, y, z;
};
struct Thread {
    Dim index;
    unsigned lane, warp;
    // How many exchanges it has made: their buffers alternate.
    unsigned exchanges;
};
extern Thread* now;
extern Dim block, block_size, grid_size;
extern unsigned char* dynamic;
// Waits for all threads of the block, or of the warp, that have not ended.
void wait_block(const char* where);
void wait_warp(const char* where);
// 64 bits a lane, two buffers a warp.
uint64_t* exchange(unsigned warp, unsigned buffer);
// In which exchange each lane wrote there last, counted from 1: who has ended takes no part.
unsigned* round_of(unsigned warp, unsigned buffer);

template <typename T>
inline uint64_t* give(T value, const char* where) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const unsigned buffer = now->exchanges++ & 1;
    uint64_t* lanes = exchange(now->warp, buffer);
    lanes[now->lane] = bits;
    round_of(now->warp, buffer)[now->lane] = now->exchanges;
    wait_warp(where);
    return lanes;
}
template <typename T>
inline T take(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
}  // namespace emulated

#define threadIdx (emulated::now->index)
#define blockIdx (emulated::block)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)

inline void __syncthreads() { emulated::wait_block("__syncthreads"); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulated::wait_warp("__syncwarp"); }

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    uint64_t* lanes = emulated::give(value, "__shfl_xor_sync");
    return emulated::take<T>(lanes[emulated::now->lane ^ mask]);
}
template <typename T>
inline T __shfl_sync(unsigned, T value, int from) {
    return emulated::take<T>(emulated::give(value, "__shfl_sync")[from & 31]);
}
template <typename T>
inline T __shfl_down_sync(unsigned, T value, unsigned by) {
    uint64_t* lanes = emulated::give(value, "__shfl_down_sync");
    const unsigned from = emulated::now->lane + by;
    return from < 32 ? emulated::take<T>(lanes[from]) : value;
}
template <typename T>
inline T __shfl_up_sync(unsigned, T value, unsigned by) {
    uint64_t* lanes = emulated::give(value, "__shfl_up_sync");
    return emulated::now->lane >= by ? emulated::take<T>(lanes[emulated::now->lane - by]) : value;
}
inline unsigned __ballot_sync(unsigned, bool value) {
    uint64_t* lanes = emulated::give((uint64_t)value, "__ballot_sync");
    const unsigned* rounds = emulated::round_of(emulated::now->warp, (emulated::now->exchanges - 1) & 1);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (rounds[lane] == emulated::now->exchanges) votes |= (unsigned)(lanes[lane] & 1) << lane;
    }
    return votes;
}

template <typename T, typename U>
ATOMIC T atomicAdd(T* at, U add) {
    TELL(at);
    T old = *at;
    *at += (T)add;
    return old;
}
template <typename T, typename U>
ATOMIC T atomicOr(T* at, U bits) {
    TELL(at);
    T old = *at;
    *at |= (T)bits;
    return old;
}
template <typename T, typename U>
ATOMIC T atomicMin(T* at, U other) {
    TELL(at);
    T old = *at;
    if ((T)other < old) *at = (T)other;
    return old;
}
template <typename T, typename U>
ATOMIC T atomicMax(T* at, U other) {
    TELL(at);
    T old = *at;
    if ((T)other > old) *at = (T)other;
    return old;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
