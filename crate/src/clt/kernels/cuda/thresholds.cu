// ReLU and JumpReLU, and selection outside training: entries above each feature's threshold.
//
// In and out as in select.cuh.
#include "ranking.cuh"

// Where each token's run begins and how long it is. `equal` becomes how many ties each token may keep.
extern "C" __global__ void __launch_bounds__(1024) scan_rows(const u32* above, u32* equal, u32 tokens, const Ranking* ranking, u32* starts, u32* counts, float* cuts, u32* total) {
    __shared__ u32 room[32];
    const u32 allowed = ranking ? ranking->ties : 0u;
    const float cut = ranking ? ranking->cut : 0.f;
    scan(equal, starts, nullptr, tokens, room);
    for (u32 i = threadIdx.x; i < tokens; i += blockDim.x) {
        const u32 before = starts[i], mine = equal[i];
        const u32 kept = before >= allowed ? 0u : (mine < allowed - before ? mine : allowed - before);
        equal[i] = kept;
        counts[i] = above[i] + kept;
        cuts[i] = cut;
    }
    __syncthreads();
    const u32 all = scan(counts, starts, nullptr, tokens, room);
    if (threadIdx.x == 0) *total = all;
}

// Entries of each token above 0 or above the features' thresholds less half their window. One block a token.
extern "C" __global__ void __launch_bounds__(256) count_rows(const float* h, const float* bias, u32 features, const float* log_threshold, float reach, u32* above, u32* equal) {
    __shared__ u32 room[33];
    const Rule rule = {0.f, 0u, log_threshold, reach, nullptr, nullptr, 0u};
    count_row(h + (size_t)blockIdx.x * features, bias, features, rule, &above[blockIdx.x], &equal[blockIdx.x], room);
}

// Writes what `count_rows` counted. One block a token.
extern "C" __global__ void __launch_bounds__(256) write_rows(const float* h, const float* bias, u32 features, const float* log_threshold, float reach, const u32* starts,
                                                             const u32* counts, u32* out_feature, float* out_value, float* out_pre, u32* out_token, u32* lengths) {
    __shared__ u32 room[66];
    const u32 token = blockIdx.x;
    const Rule rule = {0.f, 0u, log_threshold, reach, nullptr, nullptr, 0u};
    write_row(h + (size_t)token * features, bias, features, rule, token, starts[token], counts[token], out_feature, out_value, out_pre, out_token, lengths, room);
}

// Outside training: entries of each token above 0, or above the features' thresholds. First how many.
extern "C" __global__ void __launch_bounds__(256) count_kept(const float* h, const float* bias, u32 features, const float* threshold, u32* counts) {
    __shared__ u32 room[33];
    const float* row = h + (size_t)blockIdx.x * features;
    const Rule rule = {0.f, 0u, nullptr, 0.f, threshold, nullptr, 0u};
    u32 count = 0;
    for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
        bool tie;
        count += stays(rule, row[f] + bias[f], f, tie);
    }
    count = block_sum(count, room);
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// Then which. One block a token; its run begins at `starts[token]`.
extern "C" __global__ void __launch_bounds__(256) write_kept(const float* h, const float* bias, u32 features, const float* threshold, const u32* starts, u32* out_feature,
                                                             float* out_value, u32* out_token) {
    __shared__ u32 room[66];
    const u32 token = blockIdx.x;
    const Rule rule = {0.f, 0u, nullptr, 0.f, threshold, nullptr, 0u};
    write_row(h + (size_t)token * features, bias, features, rule, token, starts[token], features, out_feature, out_value, nullptr, out_token, nullptr, room);
}
