// What all kernels share: types, eight columns at a time, sums over warps and blocks.
//
// Numbers that are stored (weights, inputs, targets, gradients at the targets) are f32 or bf16; all
// sums are f32. bf16 is handled as its bits, so that no header of the toolkit is needed and older cards
// take the same code.
#pragma once
#ifdef CLTLAB_EMULATED
#include "emulator.h"
#define SHARED16 __shared__
#else
#define SHARED16 __shared__ __align__(16)
#define DYNAMIC_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char cltlab_shared[]; \
    type* name = reinterpret_cast<type*>(cltlab_shared)
#endif

typedef unsigned int u32;
typedef unsigned char u8;
typedef unsigned short bf16;
typedef unsigned long long u64;

#define WHOLE 0xffffffffu
#define NONE 0xffffffffu

// A golden section of 2^32, by which the random bits of neighbours differ.
#define GOLDEN 0x9E3779B1u

// A pointer that was read from a table, which lies in global memory like everything that tables name: the compiler takes that from the
// types of a kernel's parameters only, and an access that could be to shared memory is slower.
template <typename T>
__device__ __forceinline__ T* global(T* at) {
#ifndef CLTLAB_EMULATED
    __builtin_assume(__isGlobal(at));
#endif
    return at;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x << 16); }

// To nearest, ties to even; `random` is for the other kind of rounding only.
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, bf16& to) {
    u32 bits = __float_as_uint(x);
    to = (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// To one of the two neighbours, with the probability that keeps the mean; 16 random bits.
__device__ __forceinline__ void narrow_at_random(float x, u32, float& to) { to = x; }
__device__ __forceinline__ void narrow_at_random(float x, u32 random, bf16& to) { to = (bf16)((__float_as_uint(x) + random) >> 16); }

__device__ __forceinline__ void load8(const float* at, float out[8]) {
    float4 a = *reinterpret_cast<const float4*>(at), b = *reinterpret_cast<const float4*>(at + 4);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w, out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

__device__ __forceinline__ void spread(uint4 q, float out[8]) {
    u32 words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ void load8(const bf16* at, float out[8]) { spread(*reinterpret_cast<const uint4*>(at), out); }

// Eight numbers as they are stored: widened where they are used, so that nothing waits for them before.
struct Raw32 {
    float4 low, high;
};
struct Raw16 {
    uint4 words;
};
__device__ __forceinline__ Raw32 raw8(const float* at) { return {*reinterpret_cast<const float4*>(at), *reinterpret_cast<const float4*>(at + 4)}; }
__device__ __forceinline__ Raw16 raw8(const bf16* at) { return {*reinterpret_cast<const uint4*>(at)}; }
__device__ __forceinline__ void spread(const Raw32& raw, float out[8]) {
    out[0] = raw.low.x, out[1] = raw.low.y, out[2] = raw.low.z, out[3] = raw.low.w;
    out[4] = raw.high.x, out[5] = raw.high.y, out[6] = raw.high.z, out[7] = raw.high.w;
}
__device__ __forceinline__ void spread(const Raw16& raw, float out[8]) { spread(raw.words, out); }

__device__ __forceinline__ void store8(float* at, const float v[8], u32) {
    *reinterpret_cast<float4*>(at) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(at + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// To nearest where `key` is 0, else at random.
__device__ __forceinline__ void store8(bf16* at, const float v[8], u32 key) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        bf16 low, high;
        if (key == 0) {
            narrow(v[2 * i], low);
            narrow(v[2 * i + 1], high);
        } else {
            narrow_at_random(v[2 * i], (key + (2 * i) * GOLDEN) >> 16, low);
            narrow_at_random(v[2 * i + 1], (key + (2 * i + 1) * GOLDEN) >> 16, high);
        }
        words[i] = (u32)low | ((u32)high << 16);
    }
    *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int gap = 16; gap > 0; gap >>= 1) v += __shfl_xor_sync(WHOLE, v, gap);
    return v;
}

__device__ __forceinline__ u32 warp_sum(u32 v) {
#pragma unroll
    for (int gap = 16; gap > 0; gap >>= 1) v += __shfl_xor_sync(WHOLE, v, gap);
    return v;
}

// The sum over the block, in every thread; `room` has 33 places. A block has whole warps.
template <typename T>
__device__ __forceinline__ T block_sum(T v, T* room) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_sum(v);
    if (lane == 0) room[warp] = v;
    __syncthreads();
    if (warp == 0) {
        T total = warp_sum(lane < warps ? room[lane] : (T)0);
        if (lane == 0) room[32] = total;
    }
    __syncthreads();
    T total = room[32];
    __syncthreads();
    return total;
}

// The sums of two numbers over the block, in thread 0 alone. `room` has 64 places.
__device__ __forceinline__ void block_sums(float& a, float& b, float* room) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane == 0) {
        room[warp] = a;
        room[32 + warp] = b;
    }
    __syncthreads();
    if (warp == 0) {
        a = warp_sum(lane < warps ? room[lane] : 0.f);
        b = warp_sum(lane < warps ? room[32 + lane] : 0.f);
    }
}

// Sums of four values over a warp at once, with 6 exchanges instead of 20: lane i gets that of value `of_lane(i)`.
__device__ __forceinline__ float warp_sum4(float v[4]) {
    const u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float keep = (lane & 16) ? v[i + 2] : v[i], give = (lane & 16) ? v[i] : v[i + 2];
        v[i] = keep + __shfl_xor_sync(WHOLE, give, 16);
    }
    float keep = (lane & 8) ? v[1] : v[0], give = (lane & 8) ? v[0] : v[1];
    float sum = keep + __shfl_xor_sync(WHOLE, give, 8);
    sum += __shfl_xor_sync(WHOLE, sum, 4);
    sum += __shfl_xor_sync(WHOLE, sum, 2);
    return sum + __shfl_xor_sync(WHOLE, sum, 1);
}

__device__ __forceinline__ u32 of_lane(u32 lane) { return (lane >> 3) & 3; }

// Sums over the lanes up to each.
__device__ __forceinline__ u32 warp_scan(u32 v) {
    const u32 lane = threadIdx.x & 31;
#pragma unroll
    for (u32 gap = 1; gap < 32; gap <<= 1) {
        const u32 below = __shfl_up_sync(WHOLE, v, gap);
        if (lane >= gap) v += below;
    }
    return v;
}

// The sum of the threads' numbers up to each; `total` is that of all. `room` has 32 places. A block has whole warps.
__device__ __forceinline__ u32 add_up(u32 mine, u32* room, u32& total) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    u32 sum = warp_scan(mine);
    if (lane == 31) room[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        room[lane] = warp_scan(lane < warps ? room[lane] : 0u);
    }
    __syncthreads();
    if (warp > 0) sum += room[warp - 1];
    total = room[warps - 1];
    __syncthreads();
    return sum;
}

// An exclusive scan by one block; `out` and `also` may be `in`. Returns the total in every thread. `room` has 32 places.
__device__ __forceinline__ u32 scan(const u32* in, u32* out, u32* also, u32 n, u32* room) {
    u32 carry = 0;
    // Four neighbours a thread: fewer rounds.
    for (u32 base = 0; base < n; base += 4 * blockDim.x) {
        const u32 first = base + 4 * threadIdx.x;
        u32 v[4], mine = 0, total;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            v[i] = first + i < n ? in[first + i] : 0u;
            mine += v[i];
        }
        u32 before = carry + add_up(mine, room, total) - mine;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (first + i < n) {
                out[first + i] = before;
                if (also) also[first + i] = before;
            }
            before += v[i];
        }
        carry += total;
    }
    __syncthreads();
    return carry;
}

// Begins to fetch what will be read soon: no register waits for it.
__device__ __forceinline__ void soon(const void* at) {
#ifndef CLTLAB_EMULATED
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// The same pointer, of which the compiler knows nothing more: it would split a sum that is added to in a loop.
template <typename T>
__device__ __forceinline__ T* whole(T* at) {
#ifndef CLTLAB_EMULATED
    asm("" : "+l"(at));
#endif
    return at;
}

// Two words of a table, read anew each time: addresses that are needed at the beginning of a long kernel and at its end would take
// registers all the while.
__device__ __forceinline__ void read_again(const void* at, u64& a, u64& b) {
#ifdef CLTLAB_EMULATED
    a = static_cast<const u64*>(at)[0];
    b = static_cast<const u64*>(at)[1];
#else
    asm volatile("ld.global.v2.u64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(at));
#endif
}

// Square root and quotient to some two units in the last place: one instruction each where the exact ones take some twenty.
__device__ __forceinline__ float quick_root(float x) {
#ifdef CLTLAB_EMULATED
    return sqrtf(x);
#else
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
#endif
}
__device__ __forceinline__ float quick_quotient(float x, float over) {
#ifdef CLTLAB_EMULATED
    return x / over;
#else
    // A root of any positive number, and more, is none of the numbers that are flushed to 0 here.
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(over));
    return x * reciprocal;
#endif
}

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
