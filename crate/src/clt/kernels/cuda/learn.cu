// The backward pass and the update, feature by feature.
//
// A feature's decoder row meets the gradients of its tokens once: their products with the row (the gradients of
// its activations) and their sum (the gradient of the row), which is spent in Adam before it leaves the registers.
// No gradient is stored.
#include "adam.cuh"
#include "layer.cuh"

// What a pass over rows does.
#define PRODUCTS 1u
#define SPEND 2u
#define MEASURE 4u

// Where rows' gradients come from and what they meet: `Σ_i coefficients[i] · slab[tokens[i]] + own · w + common · sums`,
// or `dense` as it lies, plus the last two. Rows that several layers share meet the lists of all of these.
template <typename S>
struct Terms {
    const u32* offsets;
    const u32* tokens;
    const float* coefficients;
    // Null, or the first of `count` layers whose values are the coefficients.
    const Layer* layers;
    const S* slab;
    u32 stride, at, count;
    // Where there are groups of features, each has a slab of its own, `apart` numbers behind the one before.
    u32 groups;
    const u32* ends;
    u64 apart;
    // Where not 0, tokens from here on are those from 0 on once more.
    u32 again, unused;
    const float* own;
    const float* common;
    const float* sums;
    const float* dense;
};

// What all updates are told.
struct Told {
    Adam adam;
    // Factor on the gradient, and whether weights may be changed at all: both are decided on the device.
    const float* clip;
    const u32* go;
};

// Rows of one matrix and one part of d columns of them: what a pass reads and writes. A launch covers any number of these,
// those of all layers where it can, so that the longest list of one layer is waited for beside the others' work.
template <typename S>
struct Rows {
    S* w;
    // Moments in f32, or in eight bits with their exponents.
    void* m;
    void* v;
    u8* scales;
    Terms<S> terms;
    // Where products of the part's entries, its squared norms and those of its gradients go; null for nowhere.
    float* products;
    float* squares;
    float* norms;
    // Columns of a row, and which d of them.
    u32 row, tile;
};

__device__ __forceinline__ Full moments_of(void* m, void* v, u8*, Full*) { return {global(static_cast<float*>(m)), global(static_cast<float*>(v))}; }
__device__ __forceinline__ Small moments_of(void* m, void* v, u8* scales, Small*) { return {global(static_cast<u8*>(m)), global(static_cast<u8*>(v)), global(scales)}; }

// Rows of gradients that are asked for before the first of them is used: each waits for the second-level cache.
template <typename S>
struct InFlight {
    enum { rows = 16 / sizeof(S) / 2 };
};

// One feature and one part of a matrix a block, eight columns a thread.
template <typename S, typename M, u32 PASS>
__device__ void feature_pass(const Rows<S>& rows, u32 d, const Told& told) {
    __shared__ u32 tokens[256];
    __shared__ float coefficients[256];
    __shared__ float parts[32][8];
    __shared__ float room[33];
    if ((PASS & SPEND) && !*told.go) return;
    const Terms<S>& terms = rows.terms;
    const u32 feature = blockIdx.x, column = 8 * threadIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const bool mine = column < d;
    // Threads beyond the last column read the first one's numbers and write nothing.
    const u32 held = mine ? column : 0u, at = rows.tile * d + held;
    const size_t index = (size_t)feature * rows.row + at;
    const u32 lists = terms.dense ? 0 : terms.layers ? terms.count : 1;
    if (PASS == PRODUCTS && (lists == 0 || global(terms.offsets)[feature] == global(terms.offsets)[feature + 1])) return;
    // Asked for first and used last: the weights come from memory, what lies between from the caches.
    const bool reads = PASS & (PRODUCTS | SPEND) || terms.own;
    decltype(raw8(rows.w)) stored;
    S* w = global(rows.w);
    if (reads) stored = raw8(w + index);
    if ((PASS & SPEND) && mine) fetch(moments_of(rows.m, rows.v, nullptr, static_cast<M*>(nullptr)), index);
    float g[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] = 0.f;
    u32 group = 0;
    while (group + 1 < terms.groups && feature >= global(terms.ends)[group]) ++group;
    const S* slab = global(terms.slab) + group * terms.apart + terms.at + held;
    const u32 stride = terms.stride, again = terms.again, chunk = blockDim.x < 256 ? blockDim.x : 256;
    for (u32 list = 0; list < lists; ++list) {
        const u32* offsets = global(terms.layers ? terms.layers[list].offsets : terms.offsets);
        const u32* of = global(terms.layers ? terms.layers[list].list_tokens : terms.tokens);
        const float* with = global(terms.layers ? terms.layers[list].list_values : terms.coefficients);
        const u32 begin = offsets[feature], end = offsets[feature + 1];
        for (u32 base = begin; base < end; base += chunk) {
            const u32 count = end - base < chunk ? end - base : chunk;
            __syncthreads();
            if (threadIdx.x < count) {
                const u32 token = of[base + threadIdx.x];
                const float value = with[base + threadIdx.x];
                tokens[threadIdx.x] = again && token >= again ? token - again : token;
                coefficients[threadIdx.x] = value;
            }
            __syncthreads();
            for (u32 i = 0; i < count; i += 8) {
                float dots[8];
#pragma unroll
                for (int first = 0; first < 8; first += InFlight<S>::rows) {
                    // No branch between the loads, or each would be waited for before the next is asked for: beyond the last entry
                    // the last one is read again, with a coefficient of 0.
                    decltype(raw8(slab)) raw[InFlight<S>::rows];
                    float weights[8];
#pragma unroll
                    for (int j = 0; j < InFlight<S>::rows; ++j) {
                        const u32 e = i + first + j < count ? i + first + j : count - 1;
                        raw[j] = raw8(slab + (size_t)tokens[e] * stride);
                    }
                    if (PASS & PRODUCTS) spread(stored, weights);
#pragma unroll
                    for (int j = 0; j < InFlight<S>::rows; ++j) {
                        float e[8];
                        spread(raw[j], e);
                        dots[first + j] = 0.f;
                        const float coefficient = mine && i + first + j < count ? coefficients[i + first + j] : 0.f;
#pragma unroll
                        for (int c = 0; c < 8; ++c) {
                            if (PASS & PRODUCTS) dots[first + j] = fmaf(e[c], weights[c], dots[first + j]);
                            if (PASS & (SPEND | MEASURE)) g[c] = fmaf(coefficient, e[c], g[c]);
                        }
                        if (!mine) dots[first + j] = 0.f;
                    }
                }
                if (PASS & PRODUCTS) {
                    const float sum = warp_sum8(dots);
                    if ((lane & 3) == 0) parts[warp][of_lane(lane)] = sum;
                    __syncthreads();
                    if (threadIdx.x < 8 && i + threadIdx.x < count) {
                        float total = 0.f;
                        for (u32 k = 0; k < warps; ++k) total += parts[k][threadIdx.x];
                        global(rows.products)[base + i + threadIdx.x] = total;
                    }
                    __syncthreads();
                }
            }
        }
    }
    if (!(PASS & (SPEND | MEASURE))) return;
    float weights[8];
    if (reads) spread(stored, weights);
    if (mine) {
        if (terms.dense) load8(global(terms.dense) + index, g);
        if (terms.own) {
            float own = 0.f;
            for (u32 list = 0; list < (terms.layers ? terms.count : 1u); ++list) own += global(terms.layers ? terms.layers[list].own : terms.own)[feature];
#pragma unroll
            for (int c = 0; c < 8; ++c) g[c] = fmaf(own, weights[c], g[c]);
        }
        if (terms.common) {
            const float common = global(terms.common)[feature];
            if (common != 0.f) {
                float sums[8];
                load8(global(terms.sums) + column, sums);
#pragma unroll
                for (int c = 0; c < 8; ++c) g[c] = fmaf(common, sums[c], g[c]);
            }
        }
    }
    float norm = 0.f, square = 0.f;
#pragma unroll
    for (int c = 0; c < 8; ++c) norm = fmaf(g[c], g[c], norm);
    if (PASS & SPEND) {
        const float clip = told.clip ? *told.clip : 1.f;
#pragma unroll
        for (int c = 0; c < 8; ++c) g[c] *= clip;
        adam8(told.adam, moments_of(rows.m, rows.v, rows.scales, static_cast<M*>(nullptr)), index, feature, at, rows.row / 64, mine, g, weights);
        if (mine) {
            const u32 key = key_of(~told.adam.key, feature, at);
            store8(w + index, weights, key | 1u);
#pragma unroll
            for (int c = 0; c < 8; ++c) square = fmaf(weights[c], weights[c], square);
        }
        float* squares = global(rows.squares);
        if (squares) {
            square = block_sum(square, room);
            if (threadIdx.x == 0) squares[feature] = square;
        }
    }
    norm = block_sum(norm, room);
    float* norms = global(rows.norms);
    if (threadIdx.x == 0 && norms) norms[feature] = norm;
}

// A block has up to 1,024 threads (8,192 columns), and of small ones many should be there at once: at most 56 registers each.
#define PASS_OF(name, S, M, PASS) \
    extern "C" __global__ void __maxnreg__(56) name(const Rows<S>* rows, u32 d, Told told) { feature_pass<S, M, PASS>(rows[blockIdx.y], d, told); }
PASS_OF(products_f32, float, Full, PRODUCTS)
PASS_OF(products_bf16, bf16, Full, PRODUCTS)
PASS_OF(measure_f32, float, Full, MEASURE)
PASS_OF(measure_bf16, bf16, Full, MEASURE)
PASS_OF(spend_f32_full, float, Full, SPEND)
PASS_OF(spend_f32_small, float, Small, SPEND)
PASS_OF(spend_bf16_full, bf16, Full, SPEND)
PASS_OF(spend_bf16_small, bf16, Small, SPEND)
PASS_OF(meet_f32_full, float, Full, PRODUCTS | SPEND)
PASS_OF(meet_f32_small, float, Small, PRODUCTS | SPEND)
PASS_OF(meet_bf16_full, bf16, Full, PRODUCTS | SPEND)
PASS_OF(meet_bf16_small, bf16, Small, PRODUCTS | SPEND)

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
