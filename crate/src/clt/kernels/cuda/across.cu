// Rankings over all layers together: of what each layer found, the largest of a token (GlobalTopK) or of the batch
// (GlobalBatchTopK) stay.
//
// In: every layer's runs of tokens, which hold all that can stay. Out: the same runs without what lies below the cut, and how many
// entries each feature has. Of equal values the lower layer, token and feature stay.
#include "layer.cuh"
#include "ranking.cuh"

// One warp: what of a run lies above `cut`, and the first `allowed` that equal it, moves to its front; the places behind are unused.
__device__ __forceinline__ void keep_run(const Layer& layer, u32 token, float cut, u32 allowed) {
    const u32 lane = threadIdx.x & 31, below = (1u << lane) - 1;
    const u32 start = layer.starts[token], end = start + layer.counts[token];
    u32 place = start;
    for (u32 base = start; base < end; base += 32) {
        const u32 i = base + lane;
        const float value = i < end ? layer.values[i] : 0.f;
        const u32 f = i < end ? layer.features[i] : NONE;
        const bool tie = i < end && value == cut;
        const u32 equal = __ballot_sync(WHOLE, tie);
        const bool keep = (i < end && value > cut) || (tie && __popc(equal & below) < allowed);
        const u32 kept = __ballot_sync(WHOLE, keep);
        // Everybody has read before anybody writes.
        __syncwarp();
        if (keep) {
            const u32 at = place + __popc(kept & below);
            layer.features[at] = f;
            layer.values[at] = value;
            atomicAdd(&layer.lengths[f], 1u);
        }
        place += __popc(kept);
        allowed -= __popc(equal) < allowed ? __popc(equal) : allowed;
        __syncwarp();
    }
    for (u32 i = place + lane; i < end; i += 32) {
        layer.features[i] = NONE;
        layer.values[i] = 0.f;
    }
    // Everybody knows where an empty run ends.
    __syncwarp();
    if (lane == 0) layer.counts[token] = place - start;
}

// One warp: how many of a run equal `cut`.
__device__ __forceinline__ u32 count_ties(const Layer& layer, u32 token, float cut) {
    const u32 start = layer.starts[token], end = start + layer.counts[token];
    u32 same = 0;
    for (u32 i = start + (threadIdx.x & 31); i < end; i += 32) same += layer.values[i] == cut;
    return warp_sum(same);
}

// The `wanted` largest of each token over all layers. One block a token; `ties` has room for `[layers, tokens]`.
extern "C" __global__ void __launch_bounds__(256) cut_tokens(const Layer* layers, u32 count, u32 tokens, u32 wanted, u32* ties) {
    __shared__ u32 hist[BINS];
    __shared__ u32 room[32];
    const u32 token = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const Rule rule = find_cut(wanted, hist, room, [&](u32 round, u32 prefix) {
        for (u32 l = warp; l < count; l += warps) {
            const u32 start = layers[l].starts[token], end = start + layers[l].counts[token];
            for (u32 i = start + lane; i < end; i += 32) count_digit(layers[l].values[i], round, prefix, hist);
        }
    });
    for (u32 l = warp; l < count; l += warps) {
        const u32 same = count_ties(layers[l], token, rule.cut);
        if (lane == 0) ties[l * tokens + token] = same;
    }
    __syncthreads();
    for (u32 l = warp; l < count; l += warps) {
        u32 before = 0;
        for (u32 b = lane; b < l; b += 32) before += ties[b * tokens + token];
        before = warp_sum(before);
        keep_run(layers[l], token, rule.cut, rule.ties > before ? rule.ties - before : 0u);
        if (lane == 0) layers[l].cuts[token] = rule.cut;
    }
}

// Counts one digit of all layers' entries whose higher digits are those found. A row of blocks a layer.
extern "C" __global__ void __launch_bounds__(256) count_across(const Layer* layers, const Ranking* ranking, u32 round, u32* hist) {
    __shared__ u32 mine[BINS];
    if (ranking->short_of) return;
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    const Layer& layer = layers[blockIdx.y];
    const u32 total = *layer.total;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x) count_digit(layer.values[i], round, ranking->prefix, mine);
    __syncthreads();
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
        if (mine[i]) atomicAdd(&hist[i], mine[i]);
    }
}

// How many entries of each layer and token equal the cut. One warp a token, eight a block, a row of blocks a layer.
extern "C" __global__ void __launch_bounds__(256) ties_across(const Layer* layers, u32 tokens, const Ranking* ranking, u32* ties) {
    const u32 token = 8 * blockIdx.x + (threadIdx.x >> 5);
    if (token >= tokens) return;
    const u32 same = count_ties(layers[blockIdx.y], token, ranking->cut);
    if ((threadIdx.x & 31) == 0) ties[blockIdx.y * tokens + token] = same;
}

// How many come before those of each layer and token; and whether too little lay above the hint. One block.
extern "C" __global__ void __launch_bounds__(1024) scan_ties(u32* ties, u32 n, const Ranking* ranking, const float* hint, u32* too_few) {
    __shared__ u32 room[32];
    scan(ties, ties, nullptr, n, room);
    if (threadIdx.x == 0) *too_few = ranking->short_of && hint && *hint > 0.f;
}

// The largest of the batch over all layers. One warp a token, eight a block, a row of blocks a layer.
extern "C" __global__ void __launch_bounds__(256) cut_batch(const Layer* layers, u32 tokens, const Ranking* ranking, const u32* ties) {
    const u32 token = 8 * blockIdx.x + (threadIdx.x >> 5);
    if (token >= tokens) return;
    const u32 before = ties[blockIdx.y * tokens + token];
    const Layer& layer = layers[blockIdx.y];
    keep_run(layer, token, ranking->cut, ranking->ties > before ? ranking->ties - before : 0u);
    if ((threadIdx.x & 31) == 0) layer.cuts[token] = ranking->cut;
}
