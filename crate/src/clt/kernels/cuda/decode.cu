// Reconstructions from lists by token, and what is wrong with them.
//
// Rows of a decoder are `[targets · d]`, those of one feature behind each other. Everything that is one number
// a token and target is written out and summed in a fixed order, so that a step gives the same bits twice.
#include "common.cuh"

// What one source layer hands to the reconstruction.
struct Source {
    const u32* features;
    const float* values;
    const u32* starts;
    const u32* counts;
    const void* decoder;
    // Columns of a decoder row; the first target it writes to; 0 where its part is in `base` already.
    u32 row, first, targets;
    u32 unused;
};

// Adds what one source writes for one token to eight columns of `decoder`, four rows on their way at a time.
template <typename S>
__device__ __forceinline__ void add_entries(const Source& source, const S* decoder, u32 token, float sum[8]) {
    const u32 begin = source.starts[token], end = begin + source.counts[token];
    u32 e = begin;
    for (; e + 4 <= end; e += 4) {
        float w[4][8], a[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            a[j] = source.values[e + j];
            load8(decoder + (size_t)source.features[e + j] * source.row, w[j]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = fmaf(a[j], w[j][i], sum[i]);
        }
    }
    for (; e < end; ++e) {
        float w[8], a = source.values[e];
        load8(decoder + (size_t)source.features[e] * source.row, w);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] = fmaf(a, w[i], sum[i]);
    }
}

// Adds eight columns of f32.
__device__ __forceinline__ void add8(const float* from, float sum[8]) {
    float more[8];
    load8(from, more);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += more[i];
}

// Turns eight columns of a reconstruction into its gradient; returns their squared error.
template <typename S>
__device__ __forceinline__ float compare(const S* target, float scale, float sum[8]) {
    float y[8], square = 0.f;
    load8(target, y);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float error = sum[i] - y[i];
        square = fmaf(error, error, square);
        sum[i] = scale * error;
    }
    return square;
}

// One token and target a block, eight columns a thread. `base [tokens, stride]` (may be null) is what dense
// products gave, or sources before these. Writes the gradient `scale (ŷ − y)` and the squared error; without targets ŷ alone. `running`,
// if there, gets ŷ too.
template <typename S>
__device__ void decode(const Source* sources, u32 layers, const float* base, const float* bias, const S* targets, u32 tokens, u32 d, u32 stride, const float* scales, S* slab,
                       float* errors, float* running) {
    __shared__ float room[33];
    const u32 token = blockIdx.x, target = blockIdx.y, column = 8 * threadIdx.x;
    const bool mine = column < d;
    float sum[8], square = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = 0.f;
    if (mine) {
        if (bias) load8(bias + target * d + column, sum);
        if (base) add8(base + (size_t)token * stride + target * d + column, sum);
        for (u32 l = 0; l < layers; ++l) {
            const Source source = sources[l];
            if (target < source.first || target - source.first >= source.targets) continue;
            add_entries(source, reinterpret_cast<const S*>(source.decoder) + (size_t)(target - source.first) * d + column, token, sum);
        }
        if (running) store8(running + (size_t)token * stride + target * d + column, sum, 0);
        if (targets) square = compare(targets + ((size_t)target * tokens + token) * d + column, scales[target], sum);
        store8(slab + (size_t)token * stride + target * d + column, sum, 0);
    }
    if (!errors) return;
    square = block_sum(square, room);
    if (threadIdx.x == 0) errors[(size_t)target * tokens + token] = square;
}

// The same where each source writes the same to all its targets: a block goes through a token's targets and adds one source
// at each.
template <typename S>
__device__ void decode_tied(const Source* sources, u32 layers, const float* base, const float* bias, const S* targets, u32 tokens, u32 d, u32 stride, const float* scales,
                            S* slab, float* errors, float* running) {
    __shared__ float room[33];
    const u32 token = blockIdx.x, column = 8 * threadIdx.x;
    const bool mine = column < d;
    float all[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) all[i] = 0.f;
    for (u32 target = 0; target < layers; ++target) {
        float square = 0.f;
        if (mine) {
            const Source source = sources[target];
            add_entries(source, reinterpret_cast<const S*>(source.decoder) + column, token, all);
            float sum[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = all[i];
            if (bias) add8(bias + target * d + column, sum);
            if (base) add8(base + (size_t)token * stride + target * d + column, sum);
            if (running) store8(running + (size_t)token * stride + target * d + column, sum, 0);
            square = compare(targets + ((size_t)target * tokens + token) * d + column, scales[target], sum);
            store8(slab + (size_t)token * stride + target * d + column, sum, 0);
        }
        square = block_sum(square, room);
        if (threadIdx.x == 0) errors[(size_t)target * tokens + token] = square;
    }
}

// What dead features make of a token's error, into the slabs' rows behind those of the tokens: `factor (scale ê + e)`, where the last
// slab's row has e = scale (ŷ − y). `tied`: each source writes the same to all its targets. One token a block.
template <typename S>
__device__ void decode_dead(const Source* sources, u32 layers, u32 tied, u32 tokens, u32 d, u32 stride, const float* scales, const float* factor, S* slabs, u32 groups, u64 apart,
                            float* errors) {
    __shared__ float room[33];
    const u32 token = blockIdx.x, column = 8 * threadIdx.x;
    const bool mine = column < d;
    float all[8];
    for (u32 target = 0; target < layers; ++target) {
        const float scale = scales[target];
        float square = 0.f;
        if (mine) {
            if (target == 0 || !tied) {
#pragma unroll
                for (int i = 0; i < 8; ++i) all[i] = 0.f;
            }
            for (u32 l = tied ? target : 0; l <= target; ++l) {
                const Source source = sources[l];
                if (!tied && target - source.first >= source.targets) continue;
                add_entries(source, reinterpret_cast<const S*>(source.decoder) + (tied ? 0u : (size_t)(target - source.first) * d) + column, token, all);
            }
            float e[8];
            const size_t at = target * d + column;
            load8(slabs + (groups - 1) * apart + (size_t)token * stride + at, e);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                e[i] = *factor * fmaf(scale, all[i], e[i]);
                square = fmaf(e[i], e[i], square);
            }
            for (u32 g = 0; g < groups; ++g) store8(slabs + g * apart + (size_t)(tokens + token) * stride + at, e, 0);
        }
        square = block_sum(square, room);
        if (threadIdx.x == 0) errors[(size_t)target * tokens + token] = *factor > 0.f ? square / (2.f * *factor * scale) : 0.f;
    }
}
#define DECODE_DEAD(name, S)                                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(1024, 1) name(const Source* sources, u32 layers, u32 tied, u32 tokens, u32 d, u32 stride, const float* scales, const float* factor, S* slabs,           \
                                    u32 groups, u64 apart, float* errors) {                                                                                                  \
        decode_dead(sources, layers, tied, tokens, d, stride, scales, factor, slabs, groups, apart, errors);                                                                 \
    }
DECODE_DEAD(decode_dead_f32, float)
DECODE_DEAD(decode_dead_bf16, bf16)

// What a source that writes the same to all its targets gets back: gradients at targets become sums over it and those after
// it. One token a block.
template <typename S>
__device__ void sum_later(S* slab, u32 layers, u32 d, u32 stride) {
    const u32 column = 8 * threadIdx.x;
    if (column >= d) return;
    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = 0.f;
    for (u32 target = layers; target-- > 0;) {
        S* at = slab + (size_t)blockIdx.x * stride + target * d + column;
        float e[8];
        load8(at, e);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += e[i];
        store8(at, sum, 0);
    }
}
extern "C" __global__ void sum_later_f32(float* slab, u32 layers, u32 d, u32 stride) { sum_later(slab, layers, d, stride); }
extern "C" __global__ void sum_later_bf16(bf16* slab, u32 layers, u32 d, u32 stride) { sum_later(slab, layers, d, stride); }

#define DECODE(name, body, S)                                                                                                                                                \
    extern "C" __global__ void __launch_bounds__(1024, 1) name(const Source* sources, u32 layers, const float* base, const float* bias, const S* targets, u32 tokens, u32 d, u32 stride,                 \
                                    const float* scales, S* slab, float* errors, float* running) {                                                                           \
        body(sources, layers, base, bias, targets, tokens, d, stride, scales, slab, errors, running);                                                                        \
    }
DECODE(decode_f32, decode, float)
DECODE(decode_bf16, decode, bf16)
DECODE(decode_tied_f32, decode_tied, float)
DECODE(decode_tied_bf16, decode_tied, bf16)

// Adds 32 rows of 64 numbers that a block holds, eight a thread; columns from `first` on.
__device__ __forceinline__ void add_rows(const float v[8], float room[32][64], u32 y, u32 part, u32 first, u32 columns, float* out) {
    store8(&room[y][8 * part], v, 0);
    __syncthreads();
    if (threadIdx.x < 64 && first + threadIdx.x < columns) {
        float total = 0.f;
        for (u32 i = 0; i < 32; ++i) total += room[i][threadIdx.x];
        out[first + threadIdx.x] = total;
    }
    __syncthreads();
}

// Column sums, and sums of squares where `squares` is not null, of `[tokens, stride]`; several such behind each
// other, one a row of blocks. 64 columns a block, eight a thread, 32 rows at a time.
template <typename S>
__device__ void column_sums(const S* x, u32 tokens, u32 stride, u32 columns, float* sums, float* squares) {
    SHARED16 float room[32][64];
    const u32 part = threadIdx.x & 7, y = threadIdx.x >> 3, column = blockIdx.x * 64 + 8 * part;
    float sum[8], square[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = square[i] = 0.f;
    x += (size_t)blockIdx.y * tokens * stride;
    if (column < columns) {
#pragma unroll 4
        for (u32 p = y; p < tokens; p += 32) {
            float v[8];
            load8(x + (size_t)p * stride + column, v);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sum[i] += v[i];
                square[i] = fmaf(v[i], v[i], square[i]);
            }
        }
    }
    const u32 first = blockIdx.x * 64;
    add_rows(sum, room, y, part, first, columns, sums + (size_t)blockIdx.y * columns);
    if (squares) add_rows(square, room, y, part, first, columns, squares + (size_t)blockIdx.y * columns);
}
extern "C" __global__ void __launch_bounds__(256) column_sums_f32(const float* x, u32 tokens, u32 stride, u32 columns, float* sums, float* squares) {
    column_sums(x, tokens, stride, columns, sums, squares);
}
extern "C" __global__ void __launch_bounds__(256) column_sums_bf16(const bf16* x, u32 tokens, u32 stride, u32 columns, float* sums, float* squares) {
    column_sums(x, tokens, stride, columns, sums, squares);
}

// Each target's variance (`Σ (y − ȳ)²` over the tokens) and the factor of its error in the gradient, of a mean over `groups`
// reconstructions. One block a target.
extern "C" __global__ void __launch_bounds__(256) target_scales(const float* sums, const float* squares, u32 tokens, u32 d, u32 fvu, u32 groups, float* variances,
                                                                          float* scales) {
    __shared__ float room[33];
    float total = 0.f;
    for (u32 c = threadIdx.x; c < d; c += blockDim.x) {
        const float mean = sums[blockIdx.x * d + c];
        total += squares[blockIdx.x * d + c] - mean * mean / tokens;
    }
    total = block_sum(total, room);
    if (threadIdx.x == 0) {
        variances[blockIdx.x] = total;
        const float over = fvu && total > 0.f ? total / tokens : 1.f;
        scales[blockIdx.x] = 2.f / tokens / groups / over;
    }
}

// `out[l, first + i] = from[l, rows[i]]`, of `[layers, held, d]` and `[layers, tokens, d]`. A block a row and layer.
template <typename S>
__device__ void pick_rows(const S* from, const u32* rows, u32 held, u32 tokens, u32 first, u32 d, S* out) {
    const u32 column = 8 * threadIdx.x;
    if (column >= d) return;
    float v[8];
    load8(from + ((size_t)blockIdx.y * held + rows[blockIdx.x]) * d + column, v);
    store8(out + ((size_t)blockIdx.y * tokens + first + blockIdx.x) * d + column, v, 0);
}
extern "C" __global__ void pick_rows_f32(const float* from, const u32* rows, u32 held, u32 tokens, u32 first, u32 d, float* out) {
    pick_rows(from, rows, held, tokens, first, d, out);
}
extern "C" __global__ void pick_rows_bf16(const bf16* from, const u32* rows, u32 held, u32 tokens, u32 first, u32 d, bf16* out) {
    pick_rows(from, rows, held, tokens, first, d, out);
}

// The same from layers that lie anywhere, normalised: `(x - mean) · factor`.
template <typename From, typename S>
__device__ void pick_normal(const void* const* layers, const float* means, const float* factors, const u32* rows, u32 tokens, u32 first, u32 d, S* out) {
    const u32 column = 8 * threadIdx.x;
    if (column >= d) return;
    float v[8], mean[8];
    load8(reinterpret_cast<const From*>(layers[blockIdx.y]) + (size_t)rows[blockIdx.x] * d + column, v);
    load8(means + blockIdx.y * d + column, mean);
    const float factor = factors[blockIdx.y];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = (v[i] - mean[i]) * factor;
    store8(out + ((size_t)blockIdx.y * tokens + first + blockIdx.x) * d + column, v, 0);
}
#define PICK_NORMAL(name, From, S)                                                                                                                                           \
    extern "C" __global__ void name(const void* const* layers, const float* means, const float* factors, const u32* rows, u32 tokens, u32 first, u32 d, S* out) {             \
        pick_normal<From>(layers, means, factors, rows, tokens, first, d, out);                                                                                              \
    }
PICK_NORMAL(pick_normal_f32_f32, float, float)
PICK_NORMAL(pick_normal_f32_bf16, float, bf16)
PICK_NORMAL(pick_normal_bf16_f32, bf16, float)
PICK_NORMAL(pick_normal_bf16_bf16, bf16, bf16)
