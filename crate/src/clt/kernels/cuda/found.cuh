// What lies above a value that the last steps' cuts suggest, in one reading of each row: the few entries among which the largest
// are then looked for. Rows are the largest thing that a step of a sparse CLT moves, and a wide one's do not stay in the second-level
// cache from one digit to the next.
#pragma once
#include "select.cuh"

// Warps of a block, and room for what each finds in its part of a row.
#define WARPS 8
#define CANDIDATES 256

// Four pre-activations from `f` on, with their bias; 0 from `end` on.
__device__ __forceinline__ void load4(const float* h, const float* bias, u32 f, u32 end, bool aligned, float out[4]) {
    if (aligned && f + 4 <= end) {
        const float4 a = *reinterpret_cast<const float4*>(h + f), b = *reinterpret_cast<const float4*>(bias + f);
        out[0] = a.x + b.x, out[1] = a.y + b.y, out[2] = a.z + b.z, out[3] = a.w + b.w;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) out[i] = f + i < end ? h[f + i] + bias[f + i] : 0.f;
}

// One warp: the entries of its part of a row that lie above `floor` (> 0), features ascending, as many as there is room
// for; returns how many there are.
__device__ __forceinline__ u32 collect(const float* h, const float* bias, u32 begin, u32 end, float floor, u32* some_feature, float* some_value) {
    const u32 lane = threadIdx.x & 31, below = (1u << lane) - 1;
    const bool aligned = (((u64)h | (u64)bias) & 15) == 0;
    u32 found = 0;
    float next[4];
    load4(h, bias, begin + 4 * lane, end, aligned, next);
    for (u32 base = begin; base < end; base += 128) {
        const u32 f = base + 4 * lane;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = next[i];
        // On its way while these are looked at.
        load4(h, bias, f + 128, end, aligned, next);
        u32 votes[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) votes[i] = __ballot_sync(WHOLE, v[i] > floor);
        if (!(votes[0] | votes[1] | votes[2] | votes[3])) continue;
        u32 place = found;
#pragma unroll
        for (int i = 0; i < 4; ++i) place += __popc(votes[i] & below);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            found += __popc(votes[i]);
            if (!(v[i] > floor)) continue;
            if (place < CANDIDATES) {
                some_feature[place] = f + i;
                some_value[place] = v[i];
            }
            ++place;
        }
    }
    return found;
}

// One block of eight warps: each collects its part of a row, in whole groups of 128; `counts` of them.
__device__ __forceinline__ void collect_row(const float* h, const float* bias, u32 features, float floor, u32* some_feature, float* some_value, u32* counts) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 part = (features + 128 * WARPS - 1) / (128 * WARPS) * 128, begin = warp * part, end = begin + part;
    const u32 mine = begin < features ? collect(h, bias, begin, end < features ? end : features, floor, some_feature + warp * CANDIDATES, some_value + warp * CANDIDATES) : 0u;
    if (lane == 0) counts[warp] = mine;
}

// Writes those collected entries that lie above `cut`, and the first `allowed` that equal it, from `place` on: each warp its
// own, behind those of the warps before it. Called by a whole block; `room` has 2 · WARPS places.
__device__ __forceinline__ void write_found(const u32* some_feature, const float* some_value, const u32* counts, float cut, u32 allowed, u32 token, u32 place, u32* out_feature,
                                            float* out_value, u32* out_token, u32* lengths, u32* room) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, count = counts[warp], below = (1u << lane) - 1;
    some_feature += warp * CANDIDATES;
    some_value += warp * CANDIDATES;
    u32 above = 0, ties = 0;
    for (u32 i = lane; i < count; i += 32) {
        above += some_value[i] > cut;
        ties += some_value[i] == cut;
    }
    above = warp_sum(above);
    ties = warp_sum(ties);
    if (lane == 0) {
        room[warp] = above;
        room[WARPS + warp] = ties;
    }
    __syncthreads();
    for (u32 w = 0; w < warp; ++w) {
        const u32 taken = room[WARPS + w] < allowed ? room[WARPS + w] : allowed;
        place += room[w] + taken;
        allowed -= taken;
    }
    for (u32 base = 0; base < count; base += 32) {
        const u32 i = base + lane;
        const float value = i < count ? some_value[i] : 0.f;
        const bool tie = i < count && value == cut;
        const u32 equal = __ballot_sync(WHOLE, tie);
        const bool keep = (i < count && value > cut) || (tie && __popc(equal & below) < allowed);
        const u32 kept = __ballot_sync(WHOLE, keep);
        if (keep) {
            const u32 at = place + __popc(kept & below), f = some_feature[i];
            out_feature[at] = f;
            out_value[at] = value;
            out_token[at] = token;
            if (lengths) atomicAdd(&lengths[f], 1u);
        }
        place += __popc(kept);
        allowed -= __popc(equal) < allowed ? __popc(equal) : allowed;
    }
}
