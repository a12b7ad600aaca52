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
    static __device__ __forceinline__ Full of(u64 m, u64 v, u64) { return {global(reinterpret_cast<float*>(m)), global(reinterpret_cast<float*>(v))}; }
};
struct Small {
    u8* m;
    u8* v;
    // Two exponents for 64 neighbours.
    u8* scales;
    static __device__ __forceinline__ Small of(u64 m, u64 v, u64 scales) {
        return {global(reinterpret_cast<u8*>(m)), global(reinterpret_cast<u8*>(v)), global(reinterpret_cast<u8*>(scales))};
    }
};

// Moments in eight bits of eight weights, in registers.
struct Codes {
    uint2 m, v;
    u32 scales;
};
__device__ __forceinline__ Codes codes(Small moments, size_t index, u32 row, u32 at, u32 blocks) {
    return {*reinterpret_cast<const uint2*>(moments.m + index), *reinterpret_cast<const uint2*>(moments.v + index),
            *reinterpret_cast<const unsigned short*>(moments.scales + 2 * ((size_t)row * blocks + at / 64))};
}

// Begins to fetch the moments of eight weights.
template <typename M>
__device__ __forceinline__ void fetch(M moments, size_t index) {
    soon(moments.m + index);
    soon(moments.v + index);
}

__device__ __forceinline__ void adam_one(const Adam& adam, float g, float& w, float& m, float& v) {
    m = fmaf(adam.beta1, m, (1.f - adam.beta1) * g);
    v = fmaf(adam.beta2, v, (1.f - adam.beta2) * g * g);
    w = fmaf(adam.keep, w, -quick_quotient(adam.rate * m, fmaf(quick_root(v), adam.root, adam.eps)));
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

// A byte of a word, `low` of it: shifted to where a number's exponent and first digits are, on top of `base`.
__device__ __forceinline__ u32 unpacked(u32 masked, int byte, u32 base) { return (byte < 3 ? masked << (20 - 8 * byte) : masked >> 4) + base; }

// The highest bytes of four words, beside each other.
__device__ __forceinline__ u32 highest_bytes(u32 a, u32 b, u32 c, u32 d) {
#ifdef CLTLAB_EMULATED
    return (a >> 24) | (b >> 24 << 8) | (c >> 24 << 16) | (d >> 24 << 24);
#else
    return __byte_perm(__byte_perm(a, b, 0x73), __byte_perm(c, d, 0x73), 0x5410);
#endif
}

__device__ __forceinline__ int clamped(int x, int least, int most) {
    x = x < most ? x : most;
    return x > least ? x : least;
}

__device__ __forceinline__ void adam8(const Adam& adam, Small to, size_t index, u32 row, u32 at, u32 blocks, bool mine, const float g[8], float w[8]) {
    float m[8], v[8], most_m = 0.f, most_v = 0.f;
    if (mine) {
        const Codes held = codes(to, index, row, at, blocks);
        const u32 base_m = base_of((u8)held.scales, 15), base_v = base_of((u8)(held.scales >> 8), 31);
        const u32 words_m[2] = {base_m ? held.m.x : 0u, base_m ? held.m.y : 0u}, words_v[2] = {base_v ? held.v.x : 0u, base_v ? held.v.y : 0u};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int byte = i & 3;
            const u32 size_m = words_m[i / 4] & (0x7fu << (8 * byte)), code_v = words_v[i / 4] & (0xffu << (8 * byte));
            const u32 sign = (words_m[i / 4] << (24 - 8 * byte)) & 0x80000000u;
            m[i] = size_m == 0 ? 0.f : __uint_as_float(unpacked(size_m, byte, base_m) | sign);
            v[i] = code_v == 0 ? 0.f : __uint_as_float(unpacked(code_v, byte, base_v));
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
    // Each code in the highest byte of a word: the bits from 20 on of a number less its base, four places up.
    u32 codes_m[8], codes_v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int random = (int)((key + (u32)i * GOLDEN) >> 12);
        const u32 bits_m = __float_as_uint(m[i]);
        const u32 size = (u32)clamped((int)(bits_m & 0x7fffffffu) - base_m + random, 0, 0x7ffffff) << 4;
        codes_m[i] = (size & 0x7fffffffu) | (bits_m & 0x80000000u);
        codes_v[i] = (u32)clamped((int)__float_as_uint(v[i]) - base_v + random, 1 << 20, 0xfffffff) << 4;
    }
    uint2 to_m = make_uint2(highest_bytes(codes_m[0], codes_m[1], codes_m[2], codes_m[3]), highest_bytes(codes_m[4], codes_m[5], codes_m[6], codes_m[7]));
    uint2 to_v = make_uint2(highest_bytes(codes_v[0], codes_v[1], codes_v[2], codes_v[3]), highest_bytes(codes_v[4], codes_v[5], codes_v[6], codes_v[7]));
    if (base_m == 0) to_m = make_uint2(0u, 0u);
    if (base_v == 0) to_v = make_uint2(0u, 0u);
    *reinterpret_cast<uint2*>(to.m + index) = to_m;
    *reinterpret_cast<uint2*>(to.v + index) = to_v;
    if ((at & 63u) == 0) {
        *reinterpret_cast<unsigned short*>(to.scales + 2 * ((size_t)row * blocks + at / 64)) = (unsigned short)(scale_m | (scale_v << 8));
    }
}
