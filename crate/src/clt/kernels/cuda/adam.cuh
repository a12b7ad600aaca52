// Adam on eight neighbouring weights of a thread, with moments in f32 or in eight bits (the format is that of the
// CPU's moments: 64 neighbours share two exponents; here they lie in eight neighbouring threads).
#pragma once
#include "common.cuh"

struct Adam {
    float beta1, beta2, eps, rate, root, keep;
    u32 key;
};

// Where a parameter's moments lie.
struct Full {
    float* m;
    float* v;
};
struct Small {
    u8* m;
    u8* v;
    // Two exponents for 64 neighbours.
    u8* scales;
};

// Begins to fetch the moments of eight weights.
__device__ __forceinline__ void fetch(Full moments, size_t index) {
    soon(moments.m + index);
    soon(moments.v + index);
}
__device__ __forceinline__ void fetch(Small moments, size_t index) {
    soon(moments.m + index);
    soon(moments.v + index);
}

__device__ __forceinline__ void adam_one(const Adam& adam, float g, float& w, float& m, float& v) {
    m = fmaf(adam.beta1, m, (1.f - adam.beta1) * g);
    v = fmaf(adam.beta2, v, (1.f - adam.beta2) * g * g);
    w = adam.keep * w - adam.rate * m / fmaf(sqrtf(v), adam.root, adam.eps);
}

// One step on columns `at .. at + 8` of row `row`; `blocks` is the number of blocks of 64 in a row. Called by
// whole warps; threads that have no columns say `mine = false` and only take part in the exchange.
__device__ __forceinline__ void adam8(const Adam& adam, Full to, size_t index, u32, u32, u32, bool mine, const float g[8], float w[8]) {
    if (!mine) return;
    float m[8], v[8];
    load8(to.m + index, m);
    load8(to.v + index, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) adam_one(adam, g[i], w[i], m[i], v[i]);
    store8(to.m + index, m, 0);
    store8(to.v + index, v, 0);
}

__device__ __forceinline__ u32 base_of(u8 scale, u32 depth) { return scale > depth ? (u32)(scale - depth) << 23 : 0u; }
__device__ __forceinline__ u8 scale_of(float largest) { return (u8)(__float_as_uint(largest * 1.07f) >> 23); }

// The random bits of a block of 64: from the step's key, the row and the block's first column.
__device__ __forceinline__ u32 key_of(u32 step, u32 row, u32 column) {
    u32 h = step ^ (row * 0x9E3779B1u) ^ (column * 0xC2B2AE3Du);
    h ^= h >> 16;
    h *= 0x7FEB352Du;
    h ^= h >> 15;
    return h * 0x846CA68Bu;
}

__device__ __forceinline__ void adam8(const Adam& adam, Small to, size_t index, u32 row, u32 at, u32 blocks, bool mine, const float g[8], float w[8]) {
    float m[8], v[8], most_m = 0.f, most_v = 0.f;
    u8* scales = to.scales + 2 * ((size_t)row * blocks + at / 64);
    if (mine) {
        const u32 base_m = base_of(scales[0], 15), base_v = base_of(scales[1], 31);
        const uint2 codes_m = *reinterpret_cast<const uint2*>(to.m + index), codes_v = *reinterpret_cast<const uint2*>(to.v + index);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u32 cm = ((i < 4 ? codes_m.x : codes_m.y) >> (8 * (i & 3))) & 0xffu, cv = ((i < 4 ? codes_v.x : codes_v.y) >> (8 * (i & 3))) & 0xffu;
            m[i] = base_m == 0 || (cm & 0x7f) == 0 ? 0.f : __uint_as_float((((cm & 0x7f) << 20) + base_m) | ((cm & 0x80) << 24));
            v[i] = base_v == 0 || cv == 0 ? 0.f : __uint_as_float((cv << 20) + base_v);
            adam_one(adam, g[i], w[i], m[i], v[i]);
            most_m = fmaxf(most_m, fabsf(m[i]));
            most_v = fmaxf(most_v, v[i]);
        }
    }
#pragma unroll
    for (int gap = 4; gap > 0; gap >>= 1) {
        most_m = fmaxf(most_m, __shfl_xor_sync(WHOLE, most_m, gap));
        most_v = fmaxf(most_v, __shfl_xor_sync(WHOLE, most_v, gap));
    }
    if (!mine) return;
    const u8 scale_m = scale_of(most_m), scale_v = scale_of(most_v);
    const int base_m = (int)base_of(scale_m, 15), base_v = (int)base_of(scale_v, 31);
    const u32 key = key_of(adam.key, row, at & ~63u) + (at & 63u) * GOLDEN;
    u32 words_m[2] = {0u, 0u}, words_v[2] = {0u, 0u};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int random = (int)((key + (u32)i * GOLDEN) >> 12);
        const u32 bits_m = __float_as_uint(m[i]);
        int code_m = ((int)(bits_m & 0x7fffffffu) - base_m + random) >> 20, code_v = ((int)__float_as_uint(v[i]) - base_v + random) >> 20;
        code_m = code_m < 0 ? 0 : code_m > 0x7f ? 0x7f : code_m;
        code_v = code_v < 1 ? 1 : code_v > 0xff ? 0xff : code_v;
        words_m[i / 4] |= (base_m == 0 ? 0u : ((u32)code_m | ((bits_m >> 24) & 0x80u))) << (8 * (i & 3));
        words_v[i / 4] |= (base_v == 0 ? 0u : (u32)code_v) << (8 * (i & 3));
    }
    *reinterpret_cast<uint2*>(to.m + index) = make_uint2(words_m[0], words_m[1]);
    *reinterpret_cast<uint2*>(to.v + index) = make_uint2(words_v[0], words_v[1]);
    if ((at & 63u) == 0) {
        scales[0] = scale_m;
        scales[1] = scale_v;
    }
}
