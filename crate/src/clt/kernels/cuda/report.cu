// What a step says, decided and kept on the device: no step waits for the host.
#include "layer.cuh"

// One layer's part of a step's report. `square` of the first layer is that of the whole gradient.
struct Line {
    float error, variance, sparsity, dead_term, active, dead, cut, square, aux;
};

__device__ float sum_of(const float* values, u32 n, float* room) {
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += values[i];
    return block_sum(sum, room);
}

// A step begins: its lines are empty, and weights may be changed if no step before it broke. One block.
extern "C" __global__ void begin_step(Line* lines, u32 layers, u32* go, const u32* broken) {
    const Line empty = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    for (u32 l = threadIdx.x; l < layers; l += blockDim.x) lines[l] = empty;
    if (threadIdx.x == 0) *go = *broken == NONE;
}

// The sum of each layer's cuts. One block a layer.
extern "C" __global__ void __launch_bounds__(1024) sum_cuts(const Layer* layers, u32 tokens, float* out) {
    __shared__ float room[33];
    const float sum = sum_of(layers[blockIdx.y].cuts, tokens, room);
    if (threadIdx.x == 0) out[blockIdx.y] = sum;
}

// Dead features of each layer, before the step. One block a layer.
extern "C" __global__ void __launch_bounds__(1024) count_dead(const u32* const* idle, u32 features, u32 window, u32* dead) {
    __shared__ u32 room[33];
    u32 count = 0;
    for (u32 f = threadIdx.x; f < features; f += blockDim.x) count += idle[blockIdx.y][f] >= window;
    count = block_sum(count, room);
    if (threadIdx.x == 0) dead[blockIdx.y] = count;
}

// The auxiliary loss's factor: α and the share of the wanted features that are dead, in a mean over groups of features. One
// thread.
extern "C" __global__ void aux_factor(const u32* dead, u32 layers, u32 k, float alpha, u32 groups, float* factor) {
    u64 all = 0;
    for (u32 l = 0; l < layers; ++l) all += dead[l];
    const float share = (float)all / ((float)layers * (float)k);
    *factor = alpha * (share < 1.f ? share : 1.f) * (float)groups;
}

// Adds up each target's auxiliary loss. One block a target.
extern "C" __global__ void __launch_bounds__(256) report_aux(const float* errors, u32 tokens, Line* lines) {
    __shared__ float room[33];
    const float sum = sum_of(errors + (size_t)blockIdx.x * tokens, tokens, room);
    if (threadIdx.x == 0) lines[blockIdx.x].aux = sum;
}

// Numbers that make up a part of the gradient's norm: as they are, or squared.
struct Part {
    const float* values;
    u32 n, square;
};

// Each block's share of each part, `sums [parts, gridDim.x]`; a part a row of blocks.
extern "C" __global__ void __launch_bounds__(256) sum_parts(const Part* parts, float* sums) {
    __shared__ float room[33];
    const Part& part = parts[blockIdx.y];
    float sum = 0.f;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < part.n; i += gridDim.x * blockDim.x) {
        const float v = part.values[i];
        sum += part.square ? v * v : v;
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// The sum of some numbers. One block.
extern "C" __global__ void __launch_bounds__(1024) set_total(const float* values, u32 n, float* out) {
    __shared__ float room[33];
    const float sum = sum_of(values, n, room);
    if (threadIdx.x == 0) *out = sum;
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

// After the backward pass: who fired, who rested, and the terms. One block a layer.
extern "C" __global__ void __launch_bounds__(1024) report_layers(const Layer* layers, u32 features, u32 tokens, u32 dead_window, const u32* go, Line* lines) {
    __shared__ float room[33];
    const Layer& layer = layers[blockIdx.y];
    u32 active = 0, dead = 0;
    for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
        const u32 fired = layer.fired[f];
        u32 idle = layer.idle[f];
        if (*go) {
            idle = fired > 0 ? 0 : (idle > 0xffffffffu - tokens ? 0xffffffffu : idle + tokens);
            layer.idle[f] = idle;
        }
        active += fired;
        dead += idle >= dead_window;
    }
    // Exact in f32 below 2^24 each.
    const float total_active = block_sum((float)active, room), total_dead = block_sum((float)dead, room);
    const float sparsity = sum_of(layer.sparsity, features, room), dead_term = sum_of(layer.dead_term, features, room), cut = sum_of(layer.cuts, tokens, room) / tokens;
    const float hint = sum_of(layer.own_cuts, tokens, room) / tokens;
    if (threadIdx.x != 0) return;
    Line& line = lines[blockIdx.y];
    line.sparsity = sparsity;
    line.dead_term = dead_term;
    line.active = total_active;
    line.dead = total_dead;
    line.cut = cut;
    *layer.hint = hint;
}
