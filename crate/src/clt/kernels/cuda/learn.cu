// The backward pass beside the rows (rows.cu): the terms of the loss by feature, gradients of entries, and vectors.
#include "rows.cuh"

// What the sparsity and dead-feature terms say of each feature.
struct Penalty {
    // λ over the tokens; c; λ_P over the tokens; the width of JumpReLU's window, 0 for others.
    float sparsity, scale, dead, bandwidth;
    u32 dead_window, tokens, features, d;
    // Whether each token's cut is its features' threshold. Else it is their own, or 0.
    u32 cuts;
};

// Per feature: the gradient of each entry from the sparsity term, the multiples of its own row and of the inputs' sums,
// and the terms themselves. `cut_sums` are sums of the layers' cuts. One warp a feature.
template <typename S>
__device__ void feature_terms(const Penalty& p, const Layer& layer, float cut_sum) {
    const u32 f = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
    if (f >= p.features) return;
    const u32 begin = layer.offsets[f], end = layer.offsets[f + 1];
    float square = 0.f;
    for (u32 t = lane; t < layer.parts; t += 32) square += layer.squares[(size_t)t * p.features + f];
    const float norm = sqrtf(layer.copies * warp_sum(square)), scale = p.scale * norm, gain = p.sparsity * scale;
    float total = 0.f, moment = 0.f;
    for (u32 i = begin + lane; i < end; i += 32) {
        float slope = 0.f;
        // An auxiliary loss's entries, on tokens of their own, count for nothing else.
        if (p.sparsity > 0.f && layer.list_tokens[i] < p.tokens) {
            const float a = layer.list_values[i], held = tanhf(scale * a);
            slope = 1.f - held * held;
            total += held;
            moment = fmaf(slope, a, moment);
        }
        layer.gradients[i] = gain * slope;
    }
    total = warp_sum(total);
    moment = warp_sum(moment);
    float mine = norm > 0.f ? p.sparsity * p.scale * moment * layer.copies / norm : 0.f, shared = 0.f, threshold = 0.f, dead = 0.f;
    if (p.dead > 0.f && layer.idle[f] >= p.dead_window) {
        const S* encoder = reinterpret_cast<const S*>(layer.encoder) + (size_t)f * p.d;
        const float theta = layer.log_threshold ? expf(layer.log_threshold[f]) : 0.f;
        float dot = 0.f, gap = 0.f;
        u32 fired = 0;
        for (u32 c = lane; c < p.d; c += 32) dot = fmaf(widen(encoder[c]), layer.input_sums[c], dot);
        for (u32 i = begin + lane; i < end; i += 32) {
            const float a = layer.list_values[i];
            if (a == 0.f || layer.list_tokens[i] >= p.tokens) continue;
            gap += a - (p.cuts ? layer.cuts[layer.list_tokens[i]] : theta);
            ++fired;
        }
        gap = warp_sum(gap) - warp_sum(dot) - p.tokens * layer.bias[f] + (p.cuts ? cut_sum : p.tokens * theta);
        fired = warp_sum(fired);
        dead = p.dead * norm * gap;
        shared = -p.dead * norm;
        if (norm > 0.f) mine += p.dead * gap * layer.copies / norm;
        if (layer.log_threshold) threshold = p.dead * norm * (float)(p.tokens - fired) * theta;
    }
    if (lane != 0) return;
    layer.own[f] = mine;
    layer.common[f] = shared;
    if (layer.threshold_gradient) layer.threshold_gradient[f] = threshold;
    layer.sparsity[f] = p.sparsity * total;
    layer.dead_term[f] = dead;
}
extern "C" __global__ void __launch_bounds__(256) feature_terms_f32(Penalty p, const Layer* layers, const float* cut_sums) {
    feature_terms<float>(p, layers[blockIdx.y], cut_sums[blockIdx.y]);
}
extern "C" __global__ void __launch_bounds__(256) feature_terms_bf16(Penalty p, const Layer* layers, const float* cut_sums) {
    feature_terms<bf16>(p, layers[blockIdx.y], cut_sums[blockIdx.y]);
}

// A list longer than this is walked along by a block, a shorter one by a warp.
#define LONG_LIST 512

// What the entries of one feature add up to.
struct Totals {
    float bias, threshold;
    u32 active;
};

// Gradients of a feature's entries `begin + from`, `begin + from + step`, …: those of activations become those of pre-activations.
__device__ __forceinline__ void walk_entries(const Penalty& p, const Layer& layer, u32 f, float shared, float theta, u32 from, u32 step, Totals& totals) {
    const float* products = layer.products;
    const u32 end = layer.offsets[f + 1], tiles = layer.tiles, room = layer.room;
    for (u32 i = layer.offsets[f] + from; i < end; i += step) {
        float g = layer.gradients[i];
#pragma unroll 8
        for (u32 t = 0; t < tiles; ++t) g += products[(size_t)t * room + i];
        bool fires = layer.list_values[i] > 0.f;
        if (layer.log_threshold) {
            const float h = layer.list_pre[i];
            if (fabsf(h - theta) < 0.5f * p.bandwidth) totals.threshold -= theta * (theta / p.bandwidth) * g;
            fires = h > theta;
        }
        const bool lent = layer.list_tokens[i] >= p.tokens;
        g = !fires ? 0.f : lent ? g : g - shared;
        layer.gradients[i] = g;
        totals.bias += g;
        totals.active += fires && !lent;
    }
}

__device__ __forceinline__ void keep_totals(const Penalty& p, const Layer& layer, u32 f, float shared, const Totals& totals) {
    layer.bias_gradient[f] = totals.bias + shared * p.tokens;
    if (layer.threshold_gradient) layer.threshold_gradient[f] += totals.threshold;
    layer.fired[f] = totals.active;
}

// From gradients of activations (the sparsity term's and products, part by part) to those of pre-activations, biases and
// thresholds. JumpReLU's straight-through estimator: `∂a/∂θ = −(θ/ε) 1[|h − θ| < ε/2]`, `∂a/∂h = 1[h > θ]`. A warp a
// feature, eight a block, of layer `first` and those after it, one a row of blocks; the block's long lists by all its warps.
extern "C" __global__ void __launch_bounds__(256) entry_gradients(Penalty p, const Layer* layers, u32 first) {
    __shared__ float room[33];
    __shared__ u32 counts[33];
    const Layer& layer = layers[first + blockIdx.y];
    const u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, block = 8 * blockIdx.x, many = p.features - block < 8 ? p.features - block : 8;
    auto shared_of = [&](u32 f) { return layer.common[f]; };
    auto theta_of = [&](u32 f) { return layer.log_threshold ? expf(layer.log_threshold[f]) : 0.f; };
    auto is_long = [&](u32 f) { return layer.offsets[f + 1] - layer.offsets[f] > LONG_LIST; };
    if (warp < many && !is_long(block + warp)) {
        const u32 f = block + warp;
        const float shared = shared_of(f);
        Totals totals = {0.f, 0.f, 0u};
        walk_entries(p, layer, f, shared, theta_of(f), lane, 32, totals);
        totals = {warp_sum(totals.bias), warp_sum(totals.threshold), warp_sum(totals.active)};
        if (lane == 0) keep_totals(p, layer, f, shared, totals);
    }
    for (u32 f = block; f < block + many; ++f) {
        if (!is_long(f)) continue;
        const float shared = shared_of(f);
        Totals totals = {0.f, 0.f, 0u};
        walk_entries(p, layer, f, shared, theta_of(f), threadIdx.x, blockDim.x, totals);
        totals = {block_sum(totals.bias, room), block_sum(totals.threshold, room), block_sum(totals.active, counts)};
        if (threadIdx.x == 0) keep_totals(p, layer, f, shared, totals);
    }
}

// A parameter that is a vector, with its moments and gradient.
struct Vector {
    float* w;
    float* m;
    float* v;
    const float* gradient;
    u32 n, unused;
};

// The step of all vectors, one a row of blocks.
extern "C" __global__ void __launch_bounds__(256) adam_vectors(const Vector* vectors, Told told) {
    const Vector& vector = vectors[blockIdx.y];
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vector.n || !*told.go) return;
    adam_one(told.adam, vector.gradient[i] * (told.clip ? *told.clip : 1.f), vector.w[i], vector.m[i], vector.v[i]);
}

// Squared norm of each row of weights, `[tiles, features]` as `feature_pass` leaves them.
template <typename S>
__device__ void square_rows(const S* w, u32 row, u32 d, float* squares) {
    const u32 f = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31, features = gridDim.x * blockDim.x >> 5;
    float square = 0.f;
    for (u32 c = lane; c < d; c += 32) {
        const float v = widen(w[(size_t)f * row + blockIdx.y * d + c]);
        square = fmaf(v, v, square);
    }
    square = warp_sum(square);
    if (lane == 0) squares[(size_t)blockIdx.y * features + f] = square;
}
extern "C" __global__ void square_rows_f32(const float* w, u32 row, u32 d, float* squares) { square_rows(w, row, d, squares); }
extern "C" __global__ void square_rows_bf16(const bf16* w, u32 row, u32 d, float* squares) { square_rows(w, row, d, squares); }

extern "C" __global__ void narrow_all(const float* from, u32 n, bf16* to) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) narrow(from[i], to[i]);
}
