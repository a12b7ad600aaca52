// Kept entries as lists by feature, tokens ascending: what the backward pass walks along. And as a dense
// matrix, for where a dense product is the faster way. How many entries each feature has was counted when they were written.
#include "layer.cuh"

// One block a layer: where each feature's list begins; `lengths` begin there too.
extern "C" __global__ void __launch_bounds__(1024) scan_features(const Layer* layers, u32 features) {
    __shared__ u32 room[32];
    const Layer& layer = layers[blockIdx.y];
    const u32 total = scan(layer.lengths, layer.offsets, layer.lengths, features, room);
    if (threadIdx.x == 0) layer.offsets[features] = total;
}

// In any order within a list: `order_features` sorts.
extern "C" __global__ void __launch_bounds__(256) fill_features(const Layer* layers) {
    const Layer& layer = layers[blockIdx.y];
    const u32 total = *layer.total;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < total + layer.lent; i += gridDim.x * blockDim.x) {
        const u32 e = i < total ? i : layer.lent_from + i - total, f = layer.features[e];
        if (f != NONE) layer.list[atomicAdd(&layer.lengths[f], 1u)] = e;
    }
}

// Tokens that are sorted at a time.
#define SPAN_OF_TOKENS 4096
#define WORDS (SPAN_OF_TOKENS / 32)

// Sorts each feature's entries by their tokens, of which no two are the same: a bit for each token says who comes before.
// Copies token, value and pre-activation to where the lists are walked along. One warp a feature, eight a block.
extern "C" __global__ void __launch_bounds__(256) order_features(const Layer* layers, u32 features, u32 tokens) {
    __shared__ u32 all_bits[8][WORDS];
    __shared__ u32 all_before[8][WORDS];
    const Layer& layer = layers[blockIdx.y];
    const u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, f = 8 * blockIdx.x + warp;
    if (f >= features) return;
    u32 *bits = all_bits[warp], *before = all_before[warp];
    u32 begin = layer.offsets[f];
    const u32 first = begin, end = layer.offsets[f + 1];
    for (u32 base = 0; base < tokens && first < end; base += SPAN_OF_TOKENS) {
        for (u32 i = lane; i < WORDS; i += 32) bits[i] = 0;
        __syncwarp();
        for (u32 i = first + lane; i < end; i += 32) {
            const u32 token = layer.tokens[layer.list[i]] - base;
            if (token < SPAN_OF_TOKENS) atomicOr(&bits[token >> 5], 1u << (token & 31));
        }
        __syncwarp();
        // Each lane's words follow each other.
        u32 mine = 0;
        for (u32 i = 0; i < WORDS / 32; ++i) mine += __popc(bits[lane * (WORDS / 32) + i]);
        const u32 upto = warp_scan(mine);
        u32 here = upto - mine;
        for (u32 i = 0; i < WORDS / 32; ++i) {
            before[lane * (WORDS / 32) + i] = here;
            here += __popc(bits[lane * (WORDS / 32) + i]);
        }
        __syncwarp();
        for (u32 i = first + lane; i < end; i += 32) {
            const u32 e = layer.list[i], token = layer.tokens[e] - base;
            if (token >= SPAN_OF_TOKENS) continue;
            const u32 at = begin + before[token >> 5] + __popc(bits[token >> 5] & ((1u << (token & 31)) - 1));
            layer.list_tokens[at] = base + token;
            layer.list_values[at] = layer.values[e];
            if (layer.list_pre) layer.list_pre[at] = layer.pre[e];
        }
        begin += __shfl_sync(WHOLE, upto, 31);
        __syncwarp();
    }
}

// `out[token, feature] = coefficients`, on zeros. One block a feature.
template <typename S>
__device__ void scatter(const u32* offsets, const u32* tokens, const float* coefficients, u32 features, S* out) {
    for (u32 i = offsets[blockIdx.x] + threadIdx.x; i < offsets[blockIdx.x + 1]; i += blockDim.x) {
        narrow(coefficients[i], out[(size_t)tokens[i] * features + blockIdx.x]);
    }
}
extern "C" __global__ void scatter_f32(const u32* offsets, const u32* tokens, const float* coefficients, u32 features, float* out) {
    scatter(offsets, tokens, coefficients, features, out);
}
extern "C" __global__ void scatter_bf16(const u32* offsets, const u32* tokens, const float* coefficients, u32 features, bf16* out) {
    scatter(offsets, tokens, coefficients, features, out);
}

// The entries of a dense `[tokens, features]`, in the order of the lists.
extern "C" __global__ void gather(const u32* offsets, const u32* tokens, const float* dense, u32 features, float* out) {
    for (u32 i = offsets[blockIdx.x] + threadIdx.x; i < offsets[blockIdx.x + 1]; i += blockDim.x) {
        out[i] = dense[(size_t)tokens[i] * features + blockIdx.x];
    }
}
