// Where one source layer's numbers lie, for kernels that go over all layers at once: row y of their grid is layer y.
#pragma once
#include "common.cuh"

struct Layer {
    // Kept entries by token, `total` of them with unused places.
    u32* features;
    float* values;
    const u32* tokens;
    const float* pre;
    const u32* total;
    const u32* starts;
    u32* counts;
    float* cuts;
    // Where this layer alone was cut: the same, unless layers are ranked together.
    const float* own_cuts;
    // How many each feature has, then where its next one goes; where its list begins, `[features + 1]`; and the lists: places
    // in the above, then tokens, values, pre-activations and gradients.
    u32* lengths;
    u32* offsets;
    u32* list;
    u32* list_tokens;
    float* list_values;
    float* list_pre;
    float* gradients;
    // A number a feature.
    float* own;
    float* common;
    float* sparsity;
    float* dead_term;
    u32* fired;
    u32* idle;
    // `[parts, features]`, of decoder rows.
    const float* squares;
    const void* encoder;
    const float* bias;
    float* bias_gradient;
    // Null unless it is JumpReLU.
    const float* log_threshold;
    float* threshold_gradient;
    const float* input_sums;
    float* hint;
    // Parts of a decoder row with squares of their own, and targets that get the same part.
    u32 parts, copies;
    // Entries of an auxiliary loss: `lent` places from `lent_from` on.
    u32 lent_from, lent;
    // Products of its entries with the parts of their decoder rows, `[tiles, room]`.
    float* products;
    u32 tiles, room;
};
