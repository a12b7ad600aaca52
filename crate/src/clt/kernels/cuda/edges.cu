// Edges of attribution: dot products of carried directions with the rows that write to one MLP output, and what is
// left of the sums when zeros go.
//
// A target stands at each position with a direction of its own, so for one position this is a product of the targets
// that reach it with the rows there, which lie anywhere: decoders, errors, embeddings. Each sum belongs to one thread of
// one launch, in a fixed order, so that a graph comes out the same twice.
#include "common.cuh"

// A vector that writes at one position: where it lies, what it is scaled with, which node it is.
struct Writer {
    const float* row;
    float scale;
    u32 node;
};

// Neighbouring writers of one position, at most SIDE.
struct Tile {
    u32 position, first, count;
};

#define SIDE 64
#define DEPTH 16

// Four numbers of a row from `k` on, zeros beyond its end.
__device__ __forceinline__ void load4(const float* row, u32 k, u32 d, float out[4]) {
    if (row && k + 4 <= d && d % 4 == 0) {
        const float4 q = *reinterpret_cast<const float4*>(row + k);
        out[0] = q.x, out[1] = q.y, out[2] = q.z, out[3] = q.w;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) out[i] = row && k + i < d ? row[k + i] : 0.f;
}

// Target b has directions for positions starts[b]..ends[b], the first at row firsts[b] of `directions [rows, d]`.
// Adds to `sums [targets, stride]`; of the nodes, `left_out` from `features` on have no column.
extern "C" __global__ void __launch_bounds__(256) edge_products(const Tile* tiles, const Writer* writers, const float* directions, u32 d, const u32* firsts, const u32* starts, const u32* ends,
                                                                u32 targets, float* sums, u64 stride, u32 features, u32 left_out) {
    // Read four at a time.
    SHARED16 float left[DEPTH][SIDE + 4];
    SHARED16 float right[DEPTH][SIDE + 4];
    __shared__ const float* rows[SIDE];
    __shared__ u32 anyone;
    const Tile tile = tiles[blockIdx.x];
    const u32 base = blockIdx.y * SIDE, thread = threadIdx.x;
    if (thread == 0) anyone = 0;
    __syncthreads();
    if (thread < SIDE) {
        const u32 b = base + thread, p = tile.position;
        const bool here = b < targets && starts[b] <= p && p < ends[b];
        rows[thread] = here ? directions + (size_t)(firsts[b] + p - starts[b]) * d : nullptr;
        if (here) anyone = 1;
    }
    __syncthreads();
    if (!anyone) return;
    const u32 side = thread >> 2, part = 4 * (thread & 3);
    const float* mine = rows[side];
    const float* theirs = side < tile.count ? writers[tile.first + side].row : nullptr;
    const u32 x = 4 * (thread & 15), y = 4 * (thread >> 4);
    float acc[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = 0.f;
    }
    for (u32 k = 0; k < d; k += DEPTH) {
        float a[4], w[4];
        load4(mine, k + part, d, a);
        load4(theirs, k + part, d, w);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            left[part + i][side] = a[i];
            right[part + i][side] = w[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) {
            const float4 a4 = *reinterpret_cast<const float4*>(&left[i][y]), w4 = *reinterpret_cast<const float4*>(&right[i][x]);
            const float ours[4] = {a4.x, a4.y, a4.z, a4.w}, ws[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
                for (int c = 0; c < 4; ++c) acc[r][c] = fmaf(ours[r], ws[c], acc[r][c]);
            }
        }
    }
#pragma unroll
    for (u32 c = 0; c < 4; ++c) {
        if (x + c >= tile.count) break;
        const Writer writer = writers[tile.first + x + c];
        const u32 column = writer.node < features ? writer.node : writer.node - left_out;
#pragma unroll
        for (u32 r = 0; r < 4; ++r) {
            if (rows[y + r]) sums[(base + y + r) * stride + column] += acc[r][c] * writer.scale;
        }
    }
}

// Columns that one block of the next two kernels looks at.
#define SPAN 1024

// How many sums of each span of a row are not zero, `counts [targets, spans]`.
extern "C" __global__ void __launch_bounds__(256) count_edges(const float* sums, u64 stride, u32 columns, u32* counts) {
    __shared__ u32 room[33];
    const float* row = sums + blockIdx.y * stride;
    u32 count = 0;
    for (u32 i = 0; i < SPAN; i += blockDim.x) {
        const u32 column = blockIdx.x * SPAN + i + threadIdx.x;
        count += column < columns && row[column] != 0.f;
    }
    count = block_sum(count, room);
    if (threadIdx.x == 0) counts[blockIdx.y * gridDim.x + blockIdx.x] = count;
}

// One block: where each span's edges begin, and behind the last one how many there are, `[spans + 1]`.
extern "C" __global__ void __launch_bounds__(1024) scan_edges(const u32* counts, u32 spans, u32* begins) {
    __shared__ u32 room[32];
    const u32 total = scan(counts, begins, nullptr, spans, room);
    if (threadIdx.x == 0) begins[spans] = total;
}

// The sums that are not zero with their nodes, in order. Threads hold neighbouring columns.
extern "C" __global__ void __launch_bounds__(256) write_edges(const float* sums, u64 stride, u32 columns, u32 features, u32 left_out, const u32* begins, u32* nodes, float* weights) {
    __shared__ u32 room[32];
    const float* row = sums + blockIdx.y * stride;
    const u32 first = blockIdx.x * SPAN + 4 * threadIdx.x;
    float kept[4];
    u32 count = 0;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        kept[i] = first + i < columns ? row[first + i] : 0.f;
        count += kept[i] != 0.f;
    }
    u32 total;
    u32 at = begins[blockIdx.y * gridDim.x + blockIdx.x] + add_up(count, room, total) - count;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        if (kept[i] == 0.f) continue;
        const u32 column = first + i;
        nodes[at] = column < features ? column : column + left_out;
        weights[at++] = kept[i];
    }
}
