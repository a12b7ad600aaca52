// The state of a ranking over a whole batch.
#pragma once
#include "select.cuh"

struct Ranking {
    u32 prefix;
    // How many are still wanted below what was found.
    u32 wanted;
    float floor;
    // 1 once there are fewer than wanted above 0, or above the hint where that is enough (`part`).
    u32 short_of;
    float cut;
    u32 ties;
    // Where layers are ranked together: a layer alone may have fewer than wanted above the hint, and gives all of these.
    u32 part;
};
