// BatchTopK: the k · T largest pre-activations of a batch, digit by digit.
//
// In and out as in select.cuh. Each row is read once where the last steps' cuts help.
#include "found.cuh"
#include "ranking.cuh"

// What `collect_rows` found: `[tokens, WARPS, CANDIDATES]`, how many of each part `[tokens, WARPS]`, and whether a part had no room.
struct Found {
    u32* features;
    float* values;
    u32* counts;
    u32* spilled;
};

// Whether the largest are among what was found.
__device__ __forceinline__ bool is_quick(const Ranking* ranking, const Found& found) { return ranking->floor > 0.f && !*found.spilled; }

// Without `hint` all above 0 are looked at. `part`: see `Ranking`.
extern "C" __global__ void ranking_begin(Ranking* ranking, u32 wanted, const float* hint, u32 part, u32* hist, Found found) {
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) hist[i] = 0;
    if (threadIdx.x == 0) {
        const Ranking fresh = {0u, wanted, hint ? 0.8f * *hint : 0.f, 0u, 0.f, 0u, part};
        *ranking = fresh;
        *found.spilled = 0;
    }
}

// Entries above the hint, if there is one. One block of eight warps a token.
extern "C" __global__ void __launch_bounds__(256) collect_rows(const float* h, const float* bias, u32 features, const Ranking* ranking, Found found) {
    const float floor = ranking->floor;
    if (!(floor > 0.f)) return;
    const size_t at = (size_t)blockIdx.x * WARPS;
    u32* counts = found.counts + at;
    collect_row(h + (size_t)blockIdx.x * features, bias, features, floor, found.features + at * CANDIDATES, found.values + at * CANDIDATES, counts);
    if ((threadIdx.x & 31) == 0 && counts[threadIdx.x >> 5] > CANDIDATES) *found.spilled = 1;
}

// Counts one digit of the entries whose higher digits are those found. `again`: only when the hint was too high.
extern "C" __global__ void __launch_bounds__(256) ranking_count(const float* h, const float* bias, u32 features, u32 tokens, const Ranking* ranking, u32 round, u32 again, u32* hist,
                                                                Found found) {
    __shared__ u32 mine[BINS];
    if (ranking->short_of || (again && !(ranking->floor < 0.f))) return;
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) mine[i] = 0;
    __syncthreads();
    const float floor = again ? 0.f : fmaxf(ranking->floor, 0.f);
    const u32 prefix = ranking->prefix;
    const bool quick = !again && is_quick(ranking, found);
    for (u32 part = blockIdx.x; quick && part < tokens * WARPS; part += gridDim.x) {
        if (threadIdx.x < found.counts[part]) count_digit(found.values[(size_t)part * CANDIDATES + threadIdx.x], round, prefix, mine);
    }
    for (u32 token = blockIdx.x; !quick && token < tokens; token += gridDim.x) {
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
    } else if (ranking->floor > 0.f && ranking->part) {
        ranking->cut = ranking->floor;
        ranking->short_of = 1;
    } else if (ranking->floor > 0.f) {
        // Asks for the round `again`.
        ranking->floor = -1.f;
    } else {
        ranking->short_of = 1;
    }
}

// Entries of each token above the cut, and those that equal it. One block a token.
extern "C" __global__ void __launch_bounds__(256) count_ranked(const float* h, const float* bias, u32 features, const Ranking* ranking, Found found, u32* above, u32* equal) {
    __shared__ u32 room[33];
    const u32 token = blockIdx.x;
    const Rule rule = {ranking->cut, ranking->ties};
    if (!is_quick(ranking, found)) {
        count_row(h + (size_t)token * features, bias, features, rule, &above[token], &equal[token], room);
        return;
    }
    u32 more = 0, same = 0;
    for (u32 part = token * WARPS; part < (token + 1) * WARPS; ++part) {
        if (threadIdx.x >= found.counts[part]) continue;
        const float value = found.values[(size_t)part * CANDIDATES + threadIdx.x];
        more += value > rule.cut;
        same += value == rule.cut;
    }
    more = block_sum(more, room);
    same = block_sum(same, room);
    if (threadIdx.x == 0) {
        above[token] = more;
        equal[token] = same;
    }
}

// Where each token's run begins and how long it is, `ranking` null where thresholds decided. `equal` becomes how many ties each token may keep.
extern "C" __global__ void __launch_bounds__(1024) scan_rows(const u32* above, u32* equal, u32 tokens, const Ranking* ranking, u32* starts, u32* counts, float* cuts, u32* total) {
    __shared__ u32 room[32];
    const u32 allowed = ranking ? ranking->ties : 0u;
    const float cut = ranking ? ranking->cut : 0.f;
    scan(equal, starts, nullptr, tokens, room);
    for (u32 i = threadIdx.x; i < tokens; i += blockDim.x) {
        const u32 before = starts[i], mine = equal[i];
        const u32 kept = before >= allowed ? 0u : (mine < allowed - before ? mine : allowed - before);
        equal[i] = kept;
        counts[i] = above[i] + kept;
        cuts[i] = cut;
    }
    __syncthreads();
    const u32 all = scan(counts, starts, nullptr, tokens, room);
    if (threadIdx.x == 0) *total = all;
}

// Writes what `count_ranked` counted; `ties` that each token may keep. One block a token.
extern "C" __global__ void __launch_bounds__(256) write_ranked(const float* h, const float* bias, u32 features, const Ranking* ranking, Found found, const u32* ties,
                                                               const u32* starts, const u32* counts, u32* out_feature, float* out_value, u32* out_token, u32* lengths) {
    __shared__ u32 room[66];
    const u32 token = blockIdx.x;
    if (is_quick(ranking, found)) {
        const size_t at = (size_t)token * WARPS;
        write_found(found.features + at * CANDIDATES, found.values + at * CANDIDATES, found.counts + at, ranking->cut, ties[token], token, starts[token], out_feature, out_value,
                    out_token, lengths, room);
        return;
    }
    const Rule rule = {ranking->cut, ties[token]};
    write_row(h + (size_t)token * features, bias, features, rule, token, starts[token], counts[token], out_feature, out_value, nullptr, out_token, lengths, room);
}
