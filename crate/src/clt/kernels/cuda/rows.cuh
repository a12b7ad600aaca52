// What kernels of the backward pass share.
#pragma once
#include "adam.cuh"
#include "layer.cuh"

// What all updates are told.
struct Told {
    Adam adam;
    // Factor on the gradient, and whether weights may be changed at all: both are decided on the device.
    const float* clip;
    const u32* go;
};
