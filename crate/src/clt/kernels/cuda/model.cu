// A model's forward pass between its matrix products, for activations that stay on the device: residual additions with norms
// (and the sites that a transcoder reads), the MLP's nonlinearity, and which tokens are far longer than others. Products read
// what is rounded to the weights' type and write f32; the residual stream is f32.
#pragma once
#include "common.cuh"

// `x += y + y_bias`, and the norm of that in `out`, `[rows, d]` each; without `y` only the norm, without `weight` only the sum.
// A warp a row. Sites go to row `places[row]` of a filling unless that is NONE: `y` with its bias to `y_site`, and to `x_site` what
// `which` says: 0 the sum, 1 the norm, 2 the norm before weight and bias. Squared norms of both, before they are rounded, by row.
struct ModelNorm {
    float* x;
    const float* y;
    const float* y_bias;
    const float* weight;
    const float* bias;
    const u32* places;
    float* x_squares;
    float* y_squares;
    float eps;
    u32 centre, which, rows, d;
};

template <typename T>
__device__ void model_norm(const ModelNorm& a, T* out, T* x_site, T* y_site) {
    const u32 lane = threadIdx.x & 31, row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), d = a.d;
    if (row >= a.rows) return;
    const size_t from = (size_t)row * d;
    const u32 place = a.places[row];
    const size_t to = (size_t)place * d;
    const bool keeps_x = x_site && place != NONE, keeps_y = y_site && place != NONE;
    float sum = 0.f, squares = 0.f, y_squares = 0.f;
    for (u32 c = 8 * lane; c < d; c += 256) {
        float v[8];
        load8(a.x + from + c, v);
        if (a.y) {
            float w[8];
            load8(a.y + from + c, w);
            if (a.y_bias) {
                float b[8];
                load8(a.y_bias + c, b);
#pragma unroll
                for (int i = 0; i < 8; ++i) w[i] += b[i];
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                y_squares += w[i] * w[i];
                v[i] += w[i];
            }
            if (keeps_y) store8(y_site + to + c, w, 0);
            store8(a.x + from + c, v, 0);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sum += v[i];
            squares += v[i] * v[i];
        }
        if (keeps_x && a.which == 0) store8(x_site + to + c, v, 0);
    }
    if (a.y_squares) {
        y_squares = warp_sum(y_squares);
        if (lane == 0) a.y_squares[row] = y_squares;
    }
    if (!a.weight) return;
    float x_squares = squares = warp_sum(squares), mean = 0.f;
    if (a.centre) {
        mean = warp_sum(sum) / (float)d;
        squares = 0.f;
        for (u32 c = 8 * lane; c < d; c += 256) {
            float v[8];
            load8(a.x + from + c, v);
#pragma unroll
            for (int i = 0; i < 8; ++i) squares += (v[i] - mean) * (v[i] - mean);
        }
        squares = warp_sum(squares);
    }
    const float scale = 1.f / sqrtf(squares / (float)d + a.eps);
    float site_squares = 0.f;
    for (u32 c = 8 * lane; c < d; c += 256) {
        float v[8], w[8], n[8];
        load8(a.x + from + c, v);
        load8(a.weight + c, w);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            n[i] = (v[i] - mean) * scale;
            v[i] = n[i] * w[i];
        }
        if (a.bias) {
            load8(a.bias + c, w);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] += w[i];
        }
        store8(out + from + c, v, 0);
        if (a.which != 0) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                if (a.which == 1) n[i] = v[i];
                site_squares += n[i] * n[i];
            }
            if (keeps_x) store8(x_site + to + c, n, 0);
        }
    }
    if (a.x_squares) {
        if (a.which != 0) x_squares = warp_sum(site_squares);
        if (lane == 0) a.x_squares[row] = x_squares;
    }
}
extern "C" __global__ void __launch_bounds__(256) model_norm_f32(ModelNorm a, float* out, float* x_site, float* y_site) { model_norm(a, out, x_site, y_site); }
extern "C" __global__ void __launch_bounds__(256) model_norm_bf16(ModelNorm a, bf16* out, bf16* x_site, bf16* y_site) { model_norm(a, out, x_site, y_site); }

// As `MlpActivation` numbers them.
__device__ __forceinline__ float model_activation(u32 which, float x) {
    if (which == 0) return 0.5f * x * (1.f + erff(x * 0.70710678f));
    if (which == 1) return 0.5f * x * (1.f + tanhf(0.79788456f * x * (1.f + 0.044715f * x * x)));
    if (which == 2) return fmaxf(x, 0.f);
    return x / (1.f + expf(-x));
}

// `act(gate + gate_bias) · (up + up_bias)`, or `act(up + up_bias)` without `gate`; `eights` times eight numbers in rows of `n`.
template <typename T>
__device__ void model_gate(const float* gate, const float* up, const float* gate_bias, const float* up_bias, u32 activation, u32 n, u32 eights, T* out) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= eights) return;
    const u32 column = (u32)((8 * (size_t)at) % n);
    float u[8], g[8], b[8];
    load8(up + 8 * (size_t)at, u);
    if (up_bias) {
        load8(up_bias + column, b);
#pragma unroll
        for (int i = 0; i < 8; ++i) u[i] += b[i];
    }
    if (gate) {
        load8(gate + 8 * (size_t)at, g);
        if (gate_bias) {
            load8(gate_bias + column, b);
#pragma unroll
            for (int i = 0; i < 8; ++i) g[i] += b[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) u[i] = gate ? model_activation(activation, g[i]) * u[i] : model_activation(activation, u[i]);
    store8(out + 8 * (size_t)at, u, 0);
}
extern "C" __global__ void __launch_bounds__(256) model_gate_f32(const float* gate, const float* up, const float* gate_bias, const float* up_bias, u32 activation, u32 n, u32 eights, float* out) {
    model_gate(gate, up, gate_bias, up_bias, activation, n, eights, out);
}
extern "C" __global__ void __launch_bounds__(256) model_gate_bf16(const float* gate, const float* up, const float* gate_bias, const float* up_bias, u32 activation, u32 n, u32 eights, bf16* out) {
    model_gate(gate, up, gate_bias, up_bias, activation, n, eights, out);
}

// Marks in `out`, at their places, the tokens of each context whose norm at any site is more than `multiple` times the context's
// median at that site, as `Outliers` does on the host; `squares` is `[sites, rows]`. A block a context and site.
#define MODEL_CONTEXT 4096
extern "C" __global__ void __launch_bounds__(128) model_outliers(const float* squares, const u32* places, u32 context, u32 rows, float multiple, u32* out) {
    // Norms order as their bits do; NONE is not kept.
    __shared__ u32 norms[MODEL_CONTEXT], room[33], median;
    const u32* to = places + (size_t)blockIdx.x * context;
    const float* of = squares + (size_t)blockIdx.y * rows + (size_t)blockIdx.x * context;
    u32 kept = 0;
    for (u32 i = threadIdx.x; i < context; i += blockDim.x) {
        const bool is = to[i] != NONE;
        norms[i] = is ? __float_as_uint(sqrtf(of[i])) : NONE;
        kept += is;
    }
    kept = block_sum(kept, room);
    if (kept == 0) return;
    for (u32 i = threadIdx.x; i < context; i += blockDim.x) {
        const u32 mine = norms[i];
        if (mine == NONE) continue;
        u32 before = 0;
        for (u32 j = 0; j < context; ++j) before += norms[j] < mine || (norms[j] == mine && j < i);
        if (before == kept / 2) median = mine;
    }
    __syncthreads();
    const float most = __uint_as_float(median) * multiple;
    for (u32 i = threadIdx.x; i < context; i += blockDim.x) {
        if (norms[i] != NONE && __uint_as_float(norms[i]) > most && most > 0.f) atomicOr(&out[to[i]], 1u);
    }
}
