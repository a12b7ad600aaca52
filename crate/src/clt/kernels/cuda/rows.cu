// The passes of the backward pass and the update over the rows of encoders and decoders.
//
// A feature's row is multiplied with the gradients of its tokens (the gradients of its activations) and these are summed (the gradient of
// the row), which Adam uses before it leaves the registers: no gradient is stored.
#include "rows.cuh"

// What a pass over rows does.
#define PRODUCTS 1u
#define SPEND 2u
#define MEASURE 4u

// One part of d columns of a matrix's rows: what a pass over it reads and writes, in pairs that are read as one. Its gradient is
// `Σ_i coefficients[i] · slab[tokens[i]] + own · w + common · sums`, or `dense` as it lies, plus the last two. Rows that several layers
// share have the lists of all of these. A launch covers any number of parts, those of all layers where it can, so that the longest list
// of one layer is waited for beside the others' work.
template <typename S>
struct __align__(16) Rows {
    struct __align__(16) {
        S* w;
        const S* slab;
    } a;
    struct __align__(16) {
        const u32* offsets;
        const u32* tokens;
    } b;
    // Where products of the part's entries go.
    struct __align__(16) {
        const float* coefficients;
        float* products;
    } c;
    // Moments in f32, or in eight bits with their exponents.
    struct __align__(16) {
        void* m;
        void* v;
    } d;
    // Where squared norms of gradients go.
    struct __align__(16) {
        u8* scales;
        float* norms;
    } e;
    // Where the part's squared norms go.
    struct __align__(16) {
        float* squares;
        const float* own;
    } f;
    struct __align__(16) {
        const float* common;
        const float* sums;
    } g;
    // The first of `count` layers whose lists are those of these rows.
    struct __align__(16) {
        const float* dense;
        const Layer* layers;
    } h;
    // Where there are groups of features, each has a slab of its own, `apart` numbers behind the one before.
    struct __align__(16) {
        const u32* ends;
        u64 apart;
    } i;
    // Columns of a row, which d of them; columns of a row of the slab, where the part's are.
    struct __align__(16) {
        u32 row, tile, stride, at;
    } j;
    // Where `again` is not 0, tokens from there on are those from 0 on once more.
    struct __align__(16) {
        u32 flags, groups, count, again;
    } k;
};

// Which of its parts a gradient has.
#define DENSE 1u
#define SHARED_LISTS 2u
#define OWN 4u
#define COMMON 8u
#define SQUARES 16u

template <typename M, typename S>
__device__ __forceinline__ M moments_of(const Rows<S>& rows) {
    u64 m, v, scales, unused;
    read_again(&rows.d, m, v);
    read_again(&rows.e, scales, unused);
    return M::of(m, v, scales);
}

// Entries that are looked at together, and how many rows of gradients are asked for before the first of them is used.
#define TOGETHER 4
template <typename S>
struct InFlight {
    enum { rows = 8 / sizeof(S) };
};

// Entries `i` to `i + 3` of a list that ends at `end`: their tokens and coefficients, 0 beyond. A list's buffers have room for three more
// than there are, whose tokens are below those of the slab's rows like all others.
__device__ __forceinline__ void read_entries(const u32* of, const float* with, u32 i, u32 end, u32 again, u32 tokens[TOGETHER], float coefficients[TOGETHER]) {
#pragma unroll
    for (int j = 0; j < TOGETHER; ++j) {
        tokens[j] = of[i + j];
        coefficients[j] = with[i + j];
    }
#pragma unroll
    for (int j = 0; j < TOGETHER; ++j) {
        if (again && tokens[j] >= again) tokens[j] -= again;
        if (i + j >= end) coefficients[j] = 0.f;
    }
}

// One feature and one part of a matrix a block, eight columns a thread.
template <typename S, typename M, u32 PASS>
__device__ void feature_pass(const Rows<S>& rows, u32 d, const Told& told) {
    __shared__ float parts[2][32][TOGETHER];
    __shared__ float room[64];
    if ((PASS & SPEND) && !*told.go) return;
    const auto size = rows.j;
    const auto first = rows.a;
    const auto what = rows.k;
    const auto lists = rows.b;
    const auto values = rows.c;
    const u32 feature = blockIdx.x, column = 8 * threadIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const bool mine = column < d;
    // Threads beyond the last column read the first one's gradients, and write nothing.
    const u32 held = mine ? column : 0u, at = size.tile * d + held;
    const size_t index = (size_t)feature * size.row + at;
    u32 count = what.flags & DENSE ? 0u : 1u;
    if (what.flags & SHARED_LISTS) count = what.count;
    if (PASS == PRODUCTS && (count == 0 || global(lists.offsets)[feature] == global(lists.offsets)[feature + 1])) return;
    // Asked for first and used last: weights and moments come from memory, what lies between from the caches.
    const bool reads = PASS & (PRODUCTS | SPEND) || what.flags & OWN;
    S* w = global(first.w);
    decltype(raw8(w)) stored;
    if (reads && mine) stored = raw8(w + index);
    if (PASS & SPEND) fetch(moments_of<M>(rows), index);
    float g[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] = 0.f;
    const S* slab = global(first.slab) + size.at + held;
    if (what.groups > 1) {
        const auto groups = rows.i;
        u32 group = 0;
        while (group + 1 < what.groups && feature >= global(groups.ends)[group]) ++group;
        slab += group * groups.apart;
    }
    const char* rows_at = reinterpret_cast<const char*>(whole(slab));
    const u32 stride = size.stride * (u32)sizeof(S);
    u32 turn = 0;
    for (u32 list = 0; list < count; ++list) {
        const u32 *offsets = lists.offsets, *of = lists.tokens;
        const float* with = values.coefficients;
        if (what.flags & SHARED_LISTS) {
            const Layer& layer = rows.h.layers[list];
            offsets = layer.offsets, of = layer.list_tokens, with = layer.list_values;
        }
        of = global(of), with = global(with);
        const u32 begin = global(offsets)[feature], end = global(offsets)[feature + 1];
        for (u32 i = begin; i < end; i += TOGETHER) {
            u32 tokens[TOGETHER];
            float coefficients[TOGETHER], dots[TOGETHER];
            read_entries(of, with, i, mine ? end : i, what.again, tokens, coefficients);
#pragma unroll
            for (int part = 0; part < TOGETHER; part += InFlight<S>::rows) {
                // No branch between the loads, or each would be waited for before the next is asked for.
                decltype(raw8(slab)) raw[InFlight<S>::rows];
#pragma unroll
                for (int j = 0; j < InFlight<S>::rows; ++j) raw[j] = raw8(global(reinterpret_cast<const S*>(rows_at + (u64)tokens[part + j] * stride)));
                // The assembler moves no load to behind it. In f32 there are too few registers for more.
                if (sizeof(S) == 2) __syncwarp();
                float weights[8];
                if (PASS & PRODUCTS) spread(stored, weights);
#pragma unroll
                for (int j = 0; j < InFlight<S>::rows; ++j) {
                    float e[8], dot = 0.f;
                    spread(raw[j], e);
#pragma unroll
                    for (int c = 0; c < 8; ++c) {
                        if (PASS & PRODUCTS) dot = fmaf(e[c], weights[c], dot);
                        if (PASS & (SPEND | MEASURE)) g[c] = fmaf(coefficients[part + j], e[c], g[c]);
                    }
                    dots[part + j] = mine ? dot : 0.f;
                }
            }
            if (PASS & PRODUCTS) {
                // Two places in turns: one is read while the other is written.
                float(*place)[TOGETHER] = parts[turn];
                turn ^= 1u;
                const float sum = warp_sum4(dots);
                if ((lane & 7) == 0) place[warp][of_lane(lane)] = sum;
                __syncthreads();
                if (threadIdx.x < TOGETHER && i + threadIdx.x < end) {
                    float total = 0.f;
#pragma unroll 1
                    for (u32 k = 0; k < blockDim.x >> 5; ++k) total += place[k][threadIdx.x];
                    global(values.products)[i + threadIdx.x] = total;
                }
            }
        }
    }
    if (!(PASS & (SPEND | MEASURE))) return;
    float weights[8];
    if (reads) spread(stored, weights);
    if (what.flags & (DENSE | OWN | COMMON) && mine) {
        if (what.flags & DENSE) load8(global(rows.h.dense) + index, g);
        if (what.flags & OWN) {
            float own = 0.f;
            if (what.flags & SHARED_LISTS) {
#pragma unroll 1
                for (u32 list = 0; list < count; ++list) own += global(rows.h.layers[list].own)[feature];
            } else {
                own = global(rows.f.own)[feature];
            }
#pragma unroll
            for (int c = 0; c < 8; ++c) g[c] = fmaf(own, weights[c], g[c]);
        }
        if (what.flags & COMMON) {
            const auto shared = rows.g;
            const float common = global(shared.common)[feature];
            if (common != 0.f) {
                float sums[8];
                load8(global(shared.sums) + column, sums);
#pragma unroll
                for (int c = 0; c < 8; ++c) g[c] = fmaf(common, sums[c], g[c]);
            }
        }
    }
    float norm = 0.f, square = 0.f;
#pragma unroll
    for (int c = 0; c < 8; ++c) norm = fmaf(g[c], g[c], norm);
    if (PASS & SPEND) {
        if (told.clip) {
            const float clip = *told.clip;
#pragma unroll
            for (int c = 0; c < 8; ++c) g[c] *= clip;
        }
        adam8(told.adam, moments_of<M>(rows), index, feature, at, size.row / 64, mine, g, weights);
        if (mine) {
            const u32 key = key_of(~told.adam.key, feature, at);
            store8(w + index, weights, key | 1u);
#pragma unroll
            for (int c = 0; c < 8; ++c) square = fmaf(weights[c], weights[c], square);
        }
    }
    block_sums(norm, square, room);
    if (threadIdx.x != 0) return;
    global(rows.e.norms)[feature] = norm;
    if ((PASS & SPEND) && what.flags & SQUARES) global(rows.f.squares)[feature] = square;
}

// A block has up to 1,024 threads (8,192 columns): at most 64 registers each.
#define PASS_OF(name, S, M, PASS) \
    extern "C" __global__ void __maxnreg__(64) name(const Rows<S>* rows, u32 d, Told told) { feature_pass<S, M, PASS>(rows[blockIdx.y], d, told); }
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

