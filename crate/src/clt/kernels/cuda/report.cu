// What a step says, decided and kept on the device: no step waits for the host.
#include "common.cuh"

// One layer's part of a step's report. `square` of the first layer is that of the whole gradient.
struct Line {
    float error, variance, sparsity, dead_term, active, dead, cut, square;
};

__device__ float sum_of(const float* values, u32 n, float* room) {
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += values[i];
    return block_sum(sum, room);
}

// A step begins: its lines are empty, and weights may be changed if no step before it broke. One block.
extern "C" __global__ void begin_step(Line* lines, u32 layers, u32* go, const u32* broken) {
    const Line empty = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    for (u32 l = threadIdx.x; l < layers; l += blockDim.x) lines[l] = empty;
    if (threadIdx.x == 0) *go = *broken == NONE;
}

// The sum of some numbers. One block.
extern "C" __global__ void __launch_bounds__(1024) set_total(const float* values, u32 n, float* out) {
    __shared__ float room[33];
    const float sum = sum_of(values, n, room);
    if (threadIdx.x == 0) *out = sum;
}

// Adds `Σ values²` of a small gradient to `out`. One block; launches follow each other.
extern "C" __global__ void __launch_bounds__(1024) add_squares(const float* values, u32 n, float* out) {
    __shared__ float room[33];
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum = fmaf(values[i], values[i], sum);
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *out += sum;
}

// Adds `Σ values` to `out`. One block; launches follow each other.
extern "C" __global__ void __launch_bounds__(1024) add_total(const float* values, u32 n, float* out) {
    __shared__ float room[33];
    const float sum = sum_of(values, n, room);
    if (threadIdx.x == 0) *out += sum;
}

// After the forward pass, one block a layer: its squared error and variance; a number that is not finite
// forbids every change of weights from here on (`broken` keeps the first such step).
extern "C" __global__ void __launch_bounds__(256) report_errors(const float* errors, const float* variances, u32 tokens, Line* lines, u32* go, u32* broken, u32 step) {
    __shared__ float room[33];
    const float error = sum_of(errors + (size_t)blockIdx.x * tokens, tokens, room);
    if (threadIdx.x != 0) return;
    lines[blockIdx.x].error = error;
    lines[blockIdx.x].variance = variances[blockIdx.x];
    if (!is_finite(error)) {
        *go = 0;
        atomicMin(broken, step);
    }
}

// The factor that brings the norm down to `most`; a norm that is not finite forbids the update. One thread.
extern "C" __global__ void clip_factor(const float* square, float most, float* factor, u32* go, u32* broken, u32 step) {
    const float norm = sqrtf(*square);
    *factor = norm > most ? most / norm : 1.f;
    if (!is_finite(norm)) {
        *go = 0;
        atomicMin(broken, step);
    }
}

// After the backward pass, for one layer: who fired, who rested, and the terms. One block.
extern "C" __global__ void __launch_bounds__(1024) report_layer(const float* sparsity, const float* dead_term, const u32* fired, u32* idle, u32 features, u32 tokens,
                                                               u32 dead_window, const float* cuts, const u32* counts, float* hint, const u32* go, Line* line) {
    __shared__ float room[33];
    u32 active = 0, dead = 0;
    for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
        active += fired[f];
        if (*go) {
            const u32 rested = idle[f];
            idle[f] = fired[f] > 0 ? 0 : (rested > 0xffffffffu - tokens ? 0xffffffffu : rested + tokens);
        }
        dead += idle[f] >= dead_window;
    }
    // Below 2^24 each: exact in f32.
    const float total_active = block_sum((float)active, room), total_dead = block_sum((float)dead, room);
    const float total_sparsity = sum_of(sparsity, features, room), total_dead_term = sum_of(dead_term, features, room), cut = sum_of(cuts, tokens, room) / tokens;
    if (threadIdx.x != 0) return;
    line->sparsity = total_sparsity;
    line->dead_term = total_dead_term;
    line->active = total_active;
    line->dead = total_dead;
    line->cut = cut;
    *hint = cut;
}
