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
    float cut;
    u32 ties;
    const float* log_threshold;
    float reach;
    const float* threshold;
};

__device__ __forceinline__ bool stays(const Rule& rule, float h, u32 f, bool& tie) {
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

// A prefix with the digit of one more round.
__device__ __forceinline__ u32 longer(u32 prefix, u32 round, u32 bin) { return round == 0 ? bin : (prefix << (round == 1 ? 11 : 9)) | bin; }

// A ranking over a whole batch, in progress.
struct Ranking {
    u32 prefix;
    // How many are still wanted below what was found.
    u32 wanted;
    float floor;
    // 0 while looking above the hint, 1 once there are fewer than wanted above 0.
    u32 short_of;
    float cut;
    u32 ties;
};

extern "C" __global__ void ranking_begin(Ranking* ranking, u32 wanted, const float* hint, u32* hist) {
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) hist[i] = 0;
    if (threadIdx.x == 0) {
        Ranking fresh = {0u, wanted, 0.8f * *hint, 0u, 0.f, 0u};
        *ranking = fresh;
    }
}

// Counts one digit of the entries whose higher digits are those found. `again`: only when the hint was too high.
extern "C" __global__ void __launch_bounds__(256) ranking_count(const float* h, const float* bias, u32 features, u32 tokens, Ranking* ranking, u32 round, u32 again, u32* hist) {
    __shared__ u32 mine[BINS];
    if (ranking->short_of || (again && !(ranking->floor < 0.f))) return;
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    const float floor = again ? 0.f : fmaxf(ranking->floor, 0.f);
    const u32 prefix = ranking->prefix;
    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const float* row = h + (size_t)token * features;
        for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
            const float value = row[f] + bias[f];
            if (!(value > floor)) continue;
            count_digit(value, round, prefix, mine);
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
        if (mine[i]) atomicAdd(&hist[i], mine[i]);
    }
}

// One block: finds the digit, and clears the counts for the next.
extern "C" __global__ void __launch_bounds__(256) ranking_pick(Ranking* ranking, u32 round, u32 again, u32* hist) {
    __shared__ u32 room[32];
    if (ranking->short_of || (again && !(ranking->floor < 0.f))) return;
    Picked picked = pick(hist, bins_of(round), ranking->wanted, room);
    __syncthreads();
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) hist[i] = 0;
    if (threadIdx.x != 0) return;
    if (picked.found) {
        ranking->prefix = longer(ranking->prefix, round, picked.bin);
        ranking->wanted = picked.wanted;
        if (again) ranking->floor = 0.f;
        if (round == 2) {
            ranking->cut = __uint_as_float(ranking->prefix);
            ranking->ties = ranking->wanted;
        }
    } else if (ranking->floor > 0.f) {
        // Asks for the round `again`.
        ranking->floor = -1.f;
    } else {
        ranking->short_of = 1;
    }
}

// Entries of each token above the cut or its thresholds, and those that equal the cut.
extern "C" __global__ void __launch_bounds__(256) count_rows(const float* h, const float* bias, u32 features, const Ranking* ranking, const float* log_threshold, float reach,
                                                             u32* above, u32* equal) {
    __shared__ u32 room[33];
    const float* row = h + (size_t)blockIdx.x * features;
    Rule rule = {ranking ? ranking->cut : 0.f, ranking ? ranking->ties : 0u, log_threshold, reach, nullptr};
    u32 more = 0, same = 0;
    for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
        bool tie;
        more += stays(rule, row[f] + bias[f], f, tie);
        same += tie;
    }
    more = block_sum(more, room);
    same = block_sum(same, room);
    if (threadIdx.x == 0) {
        above[blockIdx.x] = more;
        equal[blockIdx.x] = same;
    }
}

// Where each token's run begins and how long it is. `equal` becomes how many ties each token may keep.
extern "C" __global__ void __launch_bounds__(1024) scan_rows(const u32* above, u32* equal, u32 tokens, const Ranking* ranking, u32* starts, u32* counts, float* cuts, u32* total) {
    __shared__ u32 room[32];
    const u32 allowed = ranking ? ranking->ties : 0u;
    scan(equal, starts, nullptr, tokens, room);
    for (u32 i = threadIdx.x; i < tokens; i += blockDim.x) {
        const u32 before = starts[i], mine = equal[i];
        equal[i] = before >= allowed ? 0u : (mine < allowed - before ? mine : allowed - before);
        counts[i] = above[i] + equal[i];
        cuts[i] = ranking ? ranking->cut : 0.f;
    }
    __syncthreads();
    const u32 all = scan(counts, starts, nullptr, tokens, room);
    if (threadIdx.x == 0) *total = all;
}

// Writes what `count_rows` counted. One block a token.
extern "C" __global__ void __launch_bounds__(256) write_rows(const float* h, const float* bias, u32 features, const Ranking* ranking, const u32* ties, const float* log_threshold,
                                                             float reach, const u32* starts, const u32* counts, u32* out_feature, float* out_value, float* out_pre, u32* out_token, u32* lengths) {
    __shared__ u32 room[66];
    const u32 token = blockIdx.x;
    Rule rule = {ranking ? ranking->cut : 0.f, ties ? ties[token] : 0u, log_threshold, reach, nullptr};
    write_row(h + (size_t)token * features, bias, features, rule, token, starts[token], counts[token], out_feature, out_value, out_pre, out_token, lengths, room);
}

// Outside training: entries of each token above 0, or above the features' thresholds. First how many.
extern "C" __global__ void __launch_bounds__(256) count_kept(const float* h, const float* bias, u32 features, const float* threshold, u32* counts) {
    __shared__ u32 room[33];
    const float* row = h + (size_t)blockIdx.x * features;
    const Rule rule = {0.f, 0u, nullptr, 0.f, threshold};
    u32 count = 0;
    for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
        bool tie;
        count += stays(rule, row[f] + bias[f], f, tie);
    }
    count = block_sum(count, room);
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// Then which. One block a token; its run begins at `starts[token]`.
extern "C" __global__ void __launch_bounds__(256) write_kept(const float* h, const float* bias, u32 features, const float* threshold, const u32* starts, u32* out_feature,
                                                             float* out_value, u32* out_token) {
    __shared__ u32 room[66];
    const u32 token = blockIdx.x;
    const Rule rule = {0.f, 0u, nullptr, 0.f, threshold};
    write_row(h + (size_t)token * features, bias, features, rule, token, starts[token], features, out_feature, out_value, nullptr, out_token, nullptr, room);
}
