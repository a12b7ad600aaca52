// ReLU and JumpReLU, and selection outside training: entries above each feature's threshold.
//
// In and out as in select.cuh.
#include "select.cuh"

// Entries of each token above 0 or above the features' thresholds less half their window. One block a token.
extern "C" __global__ void __launch_bounds__(256) count_rows(const float* h, const float* bias, u32 features, const float* log_threshold, float reach, u32* above, u32* equal) {
    __shared__ u32 room[33];
    const Rule rule = {0.f, 0u, log_threshold, reach};
    count_row(h + (size_t)blockIdx.x * features, bias, features, rule, &above[blockIdx.x], &equal[blockIdx.x], room);
}

// Writes what `count_rows` counted. One block a token.
extern "C" __global__ void __launch_bounds__(256) write_rows(const float* h, const float* bias, u32 features, const float* log_threshold, float reach, const u32* starts,
                                                             const u32* counts, u32* out_feature, float* out_value, float* out_pre, u32* out_token, u32* lengths) {
    __shared__ u32 room[66];
    const u32 token = blockIdx.x;
    const Rule rule = {0.f, 0u, log_threshold, reach};
    write_row(h + (size_t)token * features, bias, features, rule, token, starts[token], counts[token], out_feature, out_value, out_pre, out_token, lengths, room);
}

// Outside training: entries of each token above 0, or above the features' thresholds. First how many.
extern "C" __global__ void __launch_bounds__(256) count_kept(const float* h, const float* bias, u32 features, const float* threshold, u32* counts) {
    __shared__ u32 room[33];
    const float* row = h + (size_t)blockIdx.x * features;
    const Rule rule = {0.f, 0u, nullptr, 0.f, threshold};
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
    const Rule rule = {0.f, 0u, nullptr, 0.f, threshold};
    write_row(h + (size_t)token * features, bias, features, rule, token, starts[token], features, out_feature, out_value, nullptr, out_token, nullptr, room);
}
