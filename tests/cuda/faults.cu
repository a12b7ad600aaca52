// Kernels with a mistake each, and their right twins: what the watched device must find, and what it must not.
// Every one takes `a`, an allocation of 256 floats, and runs in 2 blocks of 64.
#include "emulator.h"

// A neighbour's number without a barrier in between; with one.
extern "C" __global__ void fault_barrier(float* a) {
    __shared__ float room[64];
    room[threadIdx.x] = a[threadIdx.x];
    a[64 + 64 * blockIdx.x + threadIdx.x] = room[threadIdx.x ^ 33];
}
extern "C" __global__ void right_barrier(float* a) {
    __shared__ float room[64];
    room[threadIdx.x] = a[threadIdx.x];
    __syncthreads();
    a[64 + 64 * blockIdx.x + threadIdx.x] = room[threadIdx.x ^ 33];
}

// Numbers of the same warp: an exchange does not make a write seen, `__syncwarp` does.
extern "C" __global__ void fault_exchange(float* a) {
    __shared__ float room[64];
    room[threadIdx.x] = 1.f;
    const float one = __shfl_xor_sync(0xffffffffu, 1.f, 1);
    a[128 + 64 * blockIdx.x + threadIdx.x] = one + room[threadIdx.x ^ 1];
}
extern "C" __global__ void right_exchange(float* a) {
    __shared__ float room[64];
    room[threadIdx.x] = 1.f;
    __syncwarp();
    const float sum = room[threadIdx.x ^ 1];
    // Read, exchanged, and written by another lane.
    room[threadIdx.x ^ 1] = __shfl_xor_sync(0xffffffffu, sum, 1);
    a[128 + 64 * blockIdx.x + threadIdx.x] = room[threadIdx.x ^ 1];
}

// A sum over blocks, plain and atomic. Only the plain one depends on luck.
extern "C" __global__ void fault_blocks(float* a) {
    if (threadIdx.x == 0) a[0] += 1.f + blockIdx.x;
}
extern "C" __global__ void right_blocks(float* a) {
    if (threadIdx.x == 0) atomicAdd(&a[0], 1.f + blockIdx.x);
}
// The same number from both blocks; another from each.
extern "C" __global__ void right_twice(float* a) { a[threadIdx.x] = 3.f; }
extern "C" __global__ void fault_twice(float* a) { a[threadIdx.x] = blockIdx.x; }

// Reads one number too far, then none.
extern "C" __global__ void fault_behind(float* a) { a[blockIdx.x * 64 + threadIdx.x] = a[193 + threadIdx.x]; }
extern "C" __global__ void right_behind(float* a) { a[blockIdx.x * 64 + threadIdx.x] = a[192 + threadIdx.x]; }

// Four numbers at once from where only one may be read.
extern "C" __global__ void fault_aligned(float* a) {
    const float4 four = *reinterpret_cast<const float4*>(a + 1 + 4 * (threadIdx.x & 15));
    if (four.x == 7.f) a[200 + blockIdx.x] = four.y;
}
extern "C" __global__ void right_aligned(float* a) {
    const float4 four = *reinterpret_cast<const float4*>(a + 4 * (threadIdx.x & 15));
    if (four.x == 7.f) a[200 + blockIdx.x] = four.y;
}

// Called with memory that was freed, where the name says so.
extern "C" __global__ void fault_freed(float* a) {
    if (a[threadIdx.x] == 7.f) a[200 + blockIdx.x] = 0.f;
}
