// Which pre-activations are kept, and the kept entries as lists by token.
//
// In: pre-activations without their bias `h [tokens, features]`, f32. Out: for each token a run of (feature,
// value), features ascending; of equal values at a cut the lower token and feature stay. A positive f32
// orders as its bits do, so cuts are found digit by digit.
#pragma once
#include "common.cuh"

#define BINS 2048

// Digits of the 31 bits below the sign: 11, 11 and 9 of them.
__device__ __forceinline__ u32 shift_of(u32 round) { return round == 0 ? 20 : round == 1 ? 9 : 0; }
__device__ __forceinline__ u32 bins_of(u32 round) { return round == 2 ? 512 : BINS; }
__device__ __forceinline__ u32 above_of(u32 round) { return round == 0 ? 31 : round == 1 ? 20 : 9; }

// Counts a digit of a value whose higher digits are `prefix`.
__device__ __forceinline__ void count_digit(float value, u32 round, u32 prefix, u32* hist) {
    const u32 bits = __float_as_uint(value);
    if (round == 0 || (bits >> above_of(round)) == prefix) atomicAdd(&hist[(bits >> shift_of(round)) & (bins_of(round) - 1)], 1u);
}

// From the counts of one digit: the bin in which the `wanted`-th largest lies, and how many are wanted of that
// bin. Called by a whole block; `bins` counts in `hist`, 32 places in `room`. Fewer than wanted: found is false.
struct Picked {
    u32 bin, wanted, found;
};
__device__ Picked pick(const u32* hist, u32 bins, u32 wanted, u32* room) {
    __shared__ Picked picked;
    // Each thread sums a run of bins from the top; a scan over threads in shared memory.
    const u32 each = (bins + blockDim.x - 1) / blockDim.x;
    const u32 first = threadIdx.x * each;
    u32 mine = 0;
    for (u32 i = first; i < first + each && i < bins; ++i) mine += hist[bins - 1 - i];
    if (threadIdx.x == 0) picked.found = 0;
    u32 total, before = add_up(mine, room, total) - mine;
    if (before < wanted && before + mine >= wanted) {
        for (u32 i = first; i < first + each && i < bins; ++i) {
            u32 here = hist[bins - 1 - i];
            if (before + here >= wanted) {
                picked.bin = bins - 1 - i;
                picked.wanted = wanted - before;
                picked.found = 1;
                break;
            }
            before += here;
        }
    }
    __syncthreads();
    Picked result = picked;
    __syncthreads();
    return result;
}

// Which entries of a row stay: those above `cut`, and `ties` of those that equal it; or those above the
// feature's own threshold, less half the window in which it matters. Outside training a threshold is itself.
struct Rule {
    float cut = 0.f;
    u32 ties = 0;
    const float* log_threshold = nullptr;
    float reach = 0.f;
    const float* threshold = nullptr;
    // Where there, only features that rested so long are looked at.
    const u32* idle = nullptr;
    u32 window = 0;
};

__device__ __forceinline__ bool stays(const Rule& rule, float h, u32 f, bool& tie) {
    if (rule.idle && rule.idle[f] < rule.window) {
        tie = false;
        return false;
    }
    if (rule.log_threshold) {
        tie = false;
        return h > expf(rule.log_threshold[f]) - rule.reach;
    }
    if (rule.threshold) {
        tie = false;
        return h > rule.threshold[f];
    }
    tie = rule.ties > 0 && h == rule.cut;
    return h > rule.cut;
}

// Writes the entries of one row that stay, features ascending, from `start` on, at most `most`; returns their
// number. `lengths`, if there, count each feature's entries. Called by a whole block; `room` has 66 places.
__device__ u32 write_row(const float* h, const float* bias, u32 features, const Rule& rule, u32 token, u32 start, u32 most, u32* out_feature, float* out_value,
                         float* out_pre, u32* out_token, u32* lengths, u32* room) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    u32 done = 0, ties_done = 0;
    for (u32 base = 0; base < features; base += blockDim.x) {
        const u32 f = base + threadIdx.x;
        const float value = f < features ? h[f] + bias[f] : 0.f;
        bool tie = false;
        bool keep = f < features && stays(rule, value, f, tie);
        tie = tie && f < features;
        const u32 ties = __ballot_sync(WHOLE, tie);
        if (lane == 0) room[warp] = __popc(ties);
        __syncthreads();
        u32 before = ties_done, all_ties = 0;
        for (u32 w = 0; w < warps; ++w) {
            if (w < warp) before += room[w];
            all_ties += room[w];
        }
        if (tie) keep = before + __popc(ties & ((1u << lane) - 1)) < rule.ties;
        const u32 kept = __ballot_sync(WHOLE, keep);
        if (lane == 0) room[33 + warp] = __popc(kept);
        __syncthreads();
        u32 place = done, all = 0;
        for (u32 w = 0; w < warps; ++w) {
            if (w < warp) place += room[33 + w];
            all += room[33 + w];
        }
        place += __popc(kept & ((1u << lane) - 1));
        if (keep && place < most) {
            float active = value;
            if (rule.log_threshold && !(value > expf(rule.log_threshold[f]))) active = 0.f;
            out_feature[start + place] = f;
            out_value[start + place] = active;
            out_token[start + place] = token;
            if (out_pre) out_pre[start + place] = value;
            if (lengths) atomicAdd(&lengths[f], 1u);
        }
        done += all;
        ties_done += all_ties;
        __syncthreads();
    }
    return done < most ? done : most;
}

// Entries of one row that lie above, and those that equal the cut. Called by a whole block; `room` has 33 places.
__device__ __forceinline__ void count_row(const float* h, const float* bias, u32 features, const Rule& rule, u32* above, u32* equal, u32* room) {
    u32 more = 0, same = 0;
    for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
        bool tie;
        more += stays(rule, h[f] + bias[f], f, tie);
        same += tie;
    }
    more = block_sum(more, room);
    same = block_sum(same, room);
    if (threadIdx.x == 0) {
        *above = more;
        *equal = same;
    }
}

// A prefix with the digit of one more round.
__device__ __forceinline__ u32 longer(u32 prefix, u32 round, u32 bin) { return round == 0 ? bin : (prefix << (round == 1 ? 11 : 9)) | bin; }

// The cut that keeps the `wanted` largest of the positive values that `count(round, prefix)` counts the digits of into `hist`, and
// how many of those that equal it stay; 0 and none where there are fewer. Called by a whole block; 32 places in `room`.
template <typename Count>
__device__ __forceinline__ Rule find_cut(u32 wanted, u32* hist, u32* room, Count count) {
    u32 prefix = 0;
    for (u32 round = 0; round < 3; ++round) {
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) hist[i] = 0;
        __syncthreads();
        count(round, prefix);
        __syncthreads();
        const Picked picked = pick(hist, bins_of(round), wanted, room);
        if (!picked.found) return {};
        prefix = longer(prefix, round, picked.bin);
        wanted = picked.wanted;
    }
    return {__uint_as_float(prefix), wanted};
}
