// A model's causal attention in one pass: queries and keys turned to their positions, scores, softmax and mixing, without any
// pattern in memory. All sums are f32; of a later block of keys the sums so far are scaled to the new maximum.
#pragma once
#include "common.cuh"

struct Attend {
    // `[contexts · tokens, heads · h]`, and with `groups` heads for keys and values; biases or null.
    const float *q, *k, *v, *q_bias, *k_bias, *v_bias;
    // `[tokens or more, pairs]`: the first 2 · pairs numbers of a head are turned.
    const float *cos, *sin;
    u32 pairs, interleaved, tokens, heads, groups, h;
    float scale;
};

// Eight of these a query: each thread has four queries.
#define ATTEND_QUERIES 32

// Rows `first` to `first + count` of one head, turned and scaled, in lines of `W + 4` numbers; zeros beyond the head and the context.
template <int W>
__device__ __forceinline__ void attend_load(const float* from, u32 stride, const float* bias, const Attend& a, u32 pairs, float scale, u32 first, u32 count, float* to) {
    for (u32 i = threadIdx.x; i < count * (W / 2); i += blockDim.x) {
        const u32 row = i / (W / 2), p = i % (W / 2), token = first + row;
        const bool turned = p < pairs;
        const u32 low = turned && !a.interleaved ? p : 2 * p, high = turned && !a.interleaved ? p + pairs : 2 * p + 1;
        float x = 0.f, y = 0.f;
        if (token < a.tokens && high < a.h) {
            x = from[(size_t)token * stride + low];
            y = from[(size_t)token * stride + high];
            if (bias) x += bias[low], y += bias[high];
            if (turned) {
                const float c = a.cos[(size_t)token * pairs + p], s = a.sin[(size_t)token * pairs + p], z = x;
                x = z * c - y * s;
                y = z * s + y * c;
            }
        }
        to[row * (W + 4) + low] = x * scale;
        to[row * (W + 4) + high] = y * scale;
    }
}

__device__ __forceinline__ float4 attend_four(const float* at) { return *reinterpret_cast<const float4*>(at); }
__device__ __forceinline__ void attend_store(float* at, const float v[4]) { *reinterpret_cast<float4*>(at) = make_float4(v[0], v[1], v[2], v[3]); }
__device__ __forceinline__ void attend_store(bf16* at, const float v[4]) {
    bf16 n[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) narrow(v[i], n[i]);
    *reinterpret_cast<uint2*>(at) = make_uint2((u32)n[0] | ((u32)n[1] << 16), (u32)n[2] | ((u32)n[3] << 16));
}

// A block has 128 threads for 32 queries of one head of one context; `W` is the head's width or more, `KEYS` keys are in shared
// memory at a time. Thread (y, x) of 8 × 16 has queries 4y to 4y + 3, scores of keys x, x + 16, ..., and of the output
// columns 4x to 4x + 3 of each 64.
template <int W, int KEYS, typename T>
__device__ __forceinline__ void attend(const Attend& a, T* out) {
    constexpr int LINE = W + 4, SCORES = KEYS + 4, MINE = KEYS / 16, PARTS = W / 64;
    SHARED16 float qs[ATTEND_QUERIES * LINE];
    SHARED16 float ks[KEYS * LINE];
    SHARED16 float ps[ATTEND_QUERIES * SCORES];
    const u32 x = threadIdx.x & 15, y = threadIdx.x >> 4, first = blockIdx.x * ATTEND_QUERIES;
    const u32 context = blockIdx.y / a.heads, head = blockIdx.y % a.heads, group = head / (a.heads / a.groups);
    const u32 wide = a.heads * a.h, narrower = a.groups * a.h;
    const size_t begin = (size_t)context * a.tokens;
    const float *k = a.k + begin * narrower + group * a.h, *v = a.v + begin * narrower + group * a.h;
    const float none = __uint_as_float(0xff800000u);
    attend_load<W>(a.q + begin * wide + head * a.h, wide, a.q_bias ? a.q_bias + head * a.h : nullptr, a, a.pairs, a.scale, first, ATTEND_QUERIES, qs);
    float sums[4][4 * PARTS], most[4], total[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        most[r] = none, total[r] = 0.f;
#pragma unroll
        for (int c = 0; c < 4 * PARTS; ++c) sums[r][c] = 0.f;
    }
    const u32 last = first + ATTEND_QUERIES < a.tokens ? first + ATTEND_QUERIES : a.tokens;
    // As KEYS is a multiple of the queries, each of these sees a key of every round.
    for (u32 start = 0; start < last; start += KEYS) {
        __syncthreads();
        attend_load<W>(k, narrower, a.k_bias ? a.k_bias + group * a.h : nullptr, a, a.pairs, 1.f, start, KEYS, ks);
        __syncthreads();
        float s[4][MINE];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int j = 0; j < MINE; ++j) s[r][j] = 0.f;
        }
#pragma unroll 4
        for (int c = 0; c < W; c += 4) {
            float4 q[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) q[r] = attend_four(&qs[(4 * y + r) * LINE + c]);
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                const float4 key = attend_four(&ks[(x + 16 * j) * LINE + c]);
#pragma unroll
                for (int r = 0; r < 4; ++r) s[r][j] += q[r].x * key.x + q[r].y * key.y + q[r].z * key.z + q[r].w * key.w;
            }
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const u32 query = first + 4 * y + r;
            float top = none, part = 0.f;
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                if (start + x + 16 * j > query) s[r][j] = none;
                top = fmaxf(top, s[r][j]);
            }
#pragma unroll
            for (int gap = 8; gap > 0; gap >>= 1) top = fmaxf(top, __shfl_xor_sync(WHOLE, top, gap));
            const float next = fmaxf(most[r], top), keep = expf(most[r] - next);
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                const float p = expf(s[r][j] - next);
                ps[(4 * y + r) * SCORES + x + 16 * j] = p;
                part += p;
            }
#pragma unroll
            for (int gap = 8; gap > 0; gap >>= 1) part += __shfl_xor_sync(WHOLE, part, gap);
            total[r] = total[r] * keep + part;
            most[r] = next;
#pragma unroll
            for (int c = 0; c < 4 * PARTS; ++c) sums[r][c] *= keep;
        }
        __syncthreads();
        attend_load<W>(v, narrower, a.v_bias ? a.v_bias + group * a.h : nullptr, a, 0, 1.f, start, KEYS, ks);
        __syncthreads();
        const u32 seen = last - start < KEYS ? last - start : KEYS;
#pragma unroll 2
        for (u32 key = 0; key < seen; key += 4) {
            float p[4][4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const float4 four = attend_four(&ps[(4 * y + r) * SCORES + key]);
                p[r][0] = four.x, p[r][1] = four.y, p[r][2] = four.z, p[r][3] = four.w;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const float4 value = attend_four(&ks[(key + i) * LINE + 64 * part + 4 * x]);
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        sums[r][4 * part] += p[r][i] * value.x;
                        sums[r][4 * part + 1] += p[r][i] * value.y;
                        sums[r][4 * part + 2] += p[r][i] * value.z;
                        sums[r][4 * part + 3] += p[r][i] * value.w;
                    }
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const u32 query = first + 4 * y + r;
        if (query >= a.tokens) continue;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const u32 column = 64 * part + 4 * x;
            if (column >= a.h) continue;
            float mixed[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) mixed[c] = sums[r][4 * part + c] / total[r];
            attend_store(out + (begin + query) * wide + head * a.h + column, mixed);
        }
    }
}
#define ATTEND(name, W, KEYS, T) \
    extern "C" __global__ void __launch_bounds__(128) name(Attend a, T* out) { attend<W, KEYS, T>(a, out); }
ATTEND(attend_64_f32, 64, 64, float)
ATTEND(attend_64_bf16, 64, 64, bf16)
ATTEND(attend_128_f32, 128, 32, float)
ATTEND(attend_128_bf16, 128, 32, bf16)
