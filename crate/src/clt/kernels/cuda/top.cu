// TopK: the k largest pre-activations of each token, in one reading of its row where the last steps' cuts help.
//
// In and out as in select.cuh.
#include "found.cuh"

// The cut that keeps the k largest of at most a block's threads of values, `all` of them, which each warp collected, and how many of those
// that equal it stay: each thread counts how many are above its own. Called by a whole block; `packed` has room for all of them.
__device__ __forceinline__ Rule rank(const float* some_value, const u32* found, u32 k, u32 all, float* packed) {
    __shared__ float cut;
    __shared__ u32 ties;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 place = 0;
    for (u32 w = 0; w < warp; ++w) place += found[w];
    for (u32 i = lane; i < found[warp]; i += 32) packed[place + i] = some_value[warp * CANDIDATES + i];
    // Whole groups of four.
    if (threadIdx.x < 4) packed[all + threadIdx.x] = 0.f;
    __syncthreads();
    if (threadIdx.x < all) {
        const float mine = packed[threadIdx.x];
        u32 above = 0, equal = 0;
        for (u32 i = 0; i < all; i += 4) {
            const float4 others = *reinterpret_cast<const float4*>(packed + i);
            above += (others.x > mine) + (others.y > mine) + (others.z > mine) + (others.w > mine);
            equal += (others.x == mine) + (others.y == mine) + (others.z == mine) + (others.w == mine);
        }
        bool first = above < k && above + equal >= k;
        for (u32 i = 0; first && equal > 1 && i < threadIdx.x; ++i) first = packed[i] != mine;
        if (first) {
            cut = mine;
            ties = k - above;
        }
    }
    __syncthreads();
    Rule rule;
    rule.cut = cut;
    rule.ties = ties;
    return rule;
}

// The k largest positive entries of each token. One block of eight warps a token; its run begins at `k · token`, unused
// places have the feature NONE. `cuts` gets the least value kept, 0 where fewer than k are positive. `hint` is a value that
// most rows have more than k entries above, 0 for none: a row is read once where what lies above it is enough and has room, else
// digit by digit. `lengths`, if there, count each feature's entries.
extern "C" __global__ void __launch_bounds__(256) top_rows(const float* h, const float* bias, u32 features, u32 k, const float* hint, u32* out_feature, float* out_value,
                                                           u32* out_token, u32* starts, u32* counts, float* cuts, u32* lengths) {
    SHARED16 u32 hist[BINS];
    __shared__ u32 room[66];
    __shared__ u32 found[WARPS];
    __shared__ u32 some_feature[WARPS * CANDIDATES];
    __shared__ float some_value[WARPS * CANDIDATES];
    const u32 token = blockIdx.x;
    h += (size_t)token * features;
    const float floor = 0.8f * *hint;
    bool quick = false, few = false;
    u32 all = 0;
    if (floor > 0.f) {
        collect_row(h, bias, features, floor, some_feature, some_value, found);
        __syncthreads();
        u32 most = 0;
        for (u32 w = 0; w < WARPS; ++w) {
            all += found[w];
            most = most > found[w] ? most : found[w];
        }
        quick = all >= k && most <= CANDIDATES;
        few = quick && all <= blockDim.x;
    }
    Rule rule;
    if (few) {
        rule = rank(some_value, found, k, all, reinterpret_cast<float*>(hist));
    } else {
        rule = find_cut(k, hist, room, [&](u32 round, u32 prefix) {
            for (u32 w = 0; quick && w < WARPS; ++w) {
                if (threadIdx.x < found[w]) count_digit(some_value[w * CANDIDATES + threadIdx.x], round, prefix, hist);
            }
            for (u32 f = threadIdx.x; !quick && f < features; f += blockDim.x) {
                const float value = h[f] + bias[f];
                if (value > 0.f) count_digit(value, round, prefix, hist);
            }
        });
    }
    u32 count = k;
    if (quick) {
        write_found(some_feature, some_value, found, rule.cut, rule.ties, token, token * k, out_feature, out_value, out_token, lengths, room);
    } else {
        count = write_row(h, bias, features, rule, token, token * k, k, out_feature, out_value, nullptr, out_token, lengths, room);
    }
    for (u32 i = count + threadIdx.x; i < k; i += blockDim.x) {
        out_feature[token * k + i] = NONE;
        out_value[token * k + i] = 0.f;
        out_token[token * k + i] = token;
    }
    if (threadIdx.x == 0) {
        starts[token] = token * k;
        counts[token] = count;
        cuts[token] = rule.cut;
    }
}

// Of each token the k largest positive pre-activations of features that rested for `window` tokens, for an auxiliary loss. Its
// entries stand for token `tokens + token`. One block a token; runs and unused places as above, `dead` such features.
extern "C" __global__ void __launch_bounds__(256) top_dead(const float* h, const float* bias, u32 features, u32 k, const u32* idle, u32 window, const u32* dead, u32 tokens,
                                                           u32* out_feature, float* out_value, u32* out_token, u32* starts, u32* counts, u32* lengths) {
    __shared__ u32 hist[BINS];
    __shared__ u32 room[66];
    const u32 token = blockIdx.x;
    h += (size_t)token * features;
    u32 count = 0;
    if (*dead > 0) {
        Rule rule = find_cut(k, hist, room, [&](u32 round, u32 prefix) {
            for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
                if (idle[f] < window) continue;
                const float value = h[f] + bias[f];
                if (value > 0.f) count_digit(value, round, prefix, hist);
            }
        });
        rule.idle = idle;
        rule.window = window;
        count = write_row(h, bias, features, rule, tokens + token, token * k, k, out_feature, out_value, nullptr, out_token, lengths, room);
    }
    for (u32 i = count + threadIdx.x; i < k; i += blockDim.x) out_feature[token * k + i] = NONE;
    if (threadIdx.x == 0) {
        starts[token] = token * k;
        counts[token] = count;
    }
}
