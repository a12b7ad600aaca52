// Kept entries as lists by feature, tokens ascending: what the backward pass walks along. And as a dense
// matrix, for where a dense product is the faster way.
#include "common.cuh"

extern "C" __global__ void count_features(const u32* features, const u32* total, u32* lengths) {
    for (u32 e = blockIdx.x * blockDim.x + threadIdx.x; e < *total; e += gridDim.x * blockDim.x) {
        const u32 f = features[e];
        if (f != NONE) atomicAdd(&lengths[f], 1u);
    }
}

// One block: where each feature's list begins, `[features + 1]`; `cursor` begins there too.
extern "C" __global__ void __launch_bounds__(1024) scan_features(const u32* lengths, u32 features, u32* offsets, u32* cursor) {
    __shared__ u32 room[1024];
    const u32 total = scan(lengths, offsets, features, room);
    for (u32 i = threadIdx.x; i < features; i += blockDim.x) cursor[i] = offsets[i];
    if (threadIdx.x == 0) offsets[features] = total;
}

// In any order within a list: `order_features` sorts.
extern "C" __global__ void fill_features(const u32* features, const u32* total, u32* cursor, u32* list) {
    for (u32 e = blockIdx.x * blockDim.x + threadIdx.x; e < *total; e += gridDim.x * blockDim.x) {
        const u32 f = features[e];
        if (f != NONE) list[atomicAdd(&cursor[f], 1u)] = e;
    }
}

// Sorts each feature's entries, which ascend with their tokens, by counting how many come before each; and
// copies token, value and pre-activation to where the lists are walked along. One block a feature.
extern "C" __global__ void __launch_bounds__(128) order_features(const u32* offsets, const u32* list, const u32* tokens, const float* values, const float* pre, u32* out_token,
                                                                 float* out_value, float* out_pre) {
    __shared__ u32 others[128];
    const u32 begin = offsets[blockIdx.x], n = offsets[blockIdx.x + 1] - begin;
    for (u32 base = 0; base < n; base += blockDim.x) {
        const u32 i = base + threadIdx.x, mine = i < n ? list[begin + i] : NONE;
        u32 rank = 0;
        for (u32 from = 0; from < n; from += blockDim.x) {
            __syncthreads();
            others[threadIdx.x] = from + threadIdx.x < n ? list[begin + from + threadIdx.x] : NONE;
            __syncthreads();
            const u32 count = n - from < blockDim.x ? n - from : blockDim.x;
            for (u32 j = 0; j < count; ++j) rank += others[j] < mine;
        }
        if (i < n) {
            out_token[begin + rank] = tokens[mine];
            out_value[begin + rank] = values[mine];
            if (pre) out_pre[begin + rank] = pre[mine];
        }
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
