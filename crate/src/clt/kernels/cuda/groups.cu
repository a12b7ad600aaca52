// Nested groups of features (Matryoshka): which of a token's entries belong to each, and the sum of their gradients.
#include "layer.cuh"

// Group g's features are those from where group g − 1 ends up to `ends[g]`. A token's entries ascend, so those of a group follow
// each other: `starts` and `counts`, `[groups, layers, tokens]`. A row of blocks a layer, a thread a token.
extern "C" __global__ void __launch_bounds__(256) cut_groups(const Layer* layers, u32 tokens, const u32* ends, u32 groups, u32* starts, u32* counts) {
    const Layer& layer = layers[blockIdx.y];
    const u32 token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) return;
    u32 begin = layer.starts[token];
    const u32 end = begin + layer.counts[token];
    for (u32 g = 0; g < groups; ++g) {
        // The first entry that is behind the group.
        u32 low = begin, high = end;
        while (low < high) {
            const u32 middle = (low + high) / 2;
            if (layer.features[middle] < ends[g]) low = middle + 1;
            else high = middle;
        }
        const size_t at = ((size_t)g * gridDim.y + blockIdx.y) * tokens + token;
        starts[at] = begin;
        counts[at] = low - begin;
        begin = low;
    }
}

// A feature of a group is in every later reconstruction too: its gradients are the sums of theirs. The first `n`
// numbers of slabs that begin `apart` numbers behind each other, eight a thread.
template <typename S>
__device__ void sum_groups(S* slabs, u32 groups, u64 n, u64 apart) {
    const u64 at = 8 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= n) return;
    float sum[8];
    load8(slabs + (groups - 1) * apart + at, sum);
    for (u32 g = groups - 1; g-- > 0;) {
        float e[8];
        load8(slabs + g * apart + at, e);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += e[i];
        store8(slabs + g * apart + at, sum, 0);
    }
}
extern "C" __global__ void __launch_bounds__(256) sum_groups_f32(float* slabs, u32 groups, u64 n, u64 apart) { sum_groups(slabs, groups, n, apart); }
extern "C" __global__ void __launch_bounds__(256) sum_groups_bf16(bf16* slabs, u32 groups, u64 n, u64 apart) { sum_groups(slabs, groups, n, apart); }
