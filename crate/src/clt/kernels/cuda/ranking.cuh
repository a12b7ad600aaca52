// The state of a ranking over a whole batch (BatchTopK).
#pragma once
#include "select.cuh"

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
