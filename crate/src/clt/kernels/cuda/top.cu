// TopK: the k largest pre-activations of each token, in one reading of its row where the last steps' cuts help.
//
// In and out as in select.cu. Rows are the largest thing that a step of a sparse CLT moves (a wide one's do not stay in the
// second-level cache from one digit to the next).
#include "select.cu"

// Room for what each of eight warps finds above the hint in its part of a row.
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

// The k largest positive entries of each token. One block of eight warps a token; its run begins at `k · token`, unused
// places have the feature NONE. `cuts` gets the least value kept, 0 where fewer than k are positive. `hint` is a value that
// most rows have more than k entries above, 0 for none: a row is read once where what lies above it is enough and has room, else
// digit by digit. `lengths`, if there, count each feature's entries.
extern "C" __global__ void __launch_bounds__(256) top_rows(const float* h, const float* bias, u32 features, u32 k, const float* hint, u32* out_feature, float* out_value,
                                                           u32* out_token, u32* starts, u32* counts, float* cuts, u32* lengths) {
    __shared__ u32 hist[BINS];
    __shared__ u32 room[66];
    __shared__ u32 found[WARPS];
    __shared__ u32 some_feature[WARPS][CANDIDATES];
    __shared__ float some_value[WARPS][CANDIDATES];
    const u32 token = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    h += (size_t)token * features;
    const float floor = 0.8f * *hint;
    bool quick = false;
    if (floor > 0.f) {
        // Whole groups of 128 for each warp.
        const u32 part = (features + 128 * WARPS - 1) / (128 * WARPS) * 128, begin = warp * part, end = begin + part;
        const u32 mine = begin < features ? collect(h, bias, begin, end < features ? end : features, floor, some_feature[warp], some_value[warp]) : 0u;
        if (lane == 0) found[warp] = mine;
        __syncthreads();
        u32 all = 0, most = 0;
        for (u32 w = 0; w < WARPS; ++w) {
            all += found[w];
            most = most > found[w] ? most : found[w];
        }
        quick = all >= k && most <= CANDIDATES;
    }
    u32 wanted = k, prefix = 0;
    bool enough = true;
    for (u32 round = 0; round < 3; ++round) {
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) hist[i] = 0;
        __syncthreads();
        if (quick) {
            for (u32 w = 0; w < WARPS; ++w) {
                if (threadIdx.x < found[w]) count_digit(some_value[w][threadIdx.x], round, prefix, hist);
            }
        } else {
            for (u32 f = threadIdx.x; f < features; f += blockDim.x) {
                const float value = h[f] + bias[f];
                if (value > 0.f) count_digit(value, round, prefix, hist);
            }
        }
        __syncthreads();
        Picked picked = pick(hist, bins_of(round), wanted, room);
        if (!picked.found) {
            // Too few above 0: all of them stay.
            enough = false;
            break;
        }
        prefix = longer(prefix, round, picked.bin);
        wanted = picked.wanted;
    }
    Rule rule = {enough ? __uint_as_float(prefix) : 0.f, enough ? wanted : 0u, nullptr, 0.f, nullptr};
    u32 count = k;
    if (quick) {
        // Each warp writes what stays of its own, behind those before it.
        u32 above = 0, ties = 0;
        for (u32 i = lane; i < found[warp]; i += 32) {
            above += some_value[warp][i] > rule.cut;
            ties += some_value[warp][i] == rule.cut;
        }
        above = warp_sum(above);
        ties = warp_sum(ties);
        if (lane == 0) {
            room[warp] = above;
            room[WARPS + warp] = ties;
        }
        __syncthreads();
        u32 place = token * k, allowed = rule.ties;
        for (u32 w = 0; w < warp; ++w) {
            const u32 taken = room[WARPS + w] < allowed ? room[WARPS + w] : allowed;
            place += room[w] + taken;
            allowed -= taken;
        }
        for (u32 base = 0; base < found[warp]; base += 32) {
            const u32 i = base + lane, below = (1u << lane) - 1;
            const float value = i < found[warp] ? some_value[warp][i] : 0.f;
            const u32 equal = __ballot_sync(WHOLE, value == rule.cut);
            const bool keep = value > rule.cut || (value == rule.cut && __popc(equal & below) < allowed);
            const u32 kept = __ballot_sync(WHOLE, keep);
            if (keep) {
                const u32 at = place + __popc(kept & below), f = some_feature[warp][i];
                out_feature[at] = f;
                out_value[at] = value;
                out_token[at] = token;
                if (lengths) atomicAdd(&lengths[f], 1u);
            }
            place += __popc(kept);
            allowed -= __popc(equal) < allowed ? __popc(equal) : allowed;
        }
    } else {
        count = write_row(h, bias, features, rule, token, token * k, k, out_feature, out_value, nullptr, out_token, lengths, room);
    }
    for (u32 i = count + threadIdx.x; i < k; i += blockDim.x) {
        out_feature[token * k + i] = NONE;
        out_value[token * k + i] = 0.f;
        out_token[token * k + i] = token;
    }
    if (threadIdx.x == 0) {
        starts[token] = token * k;
        counts[token] = count;
        cuts[token] = rule.cut;
    }
}
