// Stands for the toolkit's headers where candle's kernels are compiled for the emulator: the half types as numbers that
// are widened for every operation and rounded after it.
#pragma once
#include "emulator.h"

#include <cassert>
#include <cstdint>
#include <limits>
#include <type_traits>

struct __half {
    _Float16 value;
    __half() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value>>
    __half(T x) : value(static_cast<_Float16>(static_cast<float>(x))) {}
    operator float() const { return static_cast<float>(value); }
};
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value>>
    __nv_bfloat16(T x) {
        const unsigned wide = __float_as_uint(static_cast<float>(x));
        bits = static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
    }
    operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }
};

// Named in candle's kernels, used by none that is called here.
struct __nv_fp8_e4m3 {
    uint8_t __x;
    __nv_fp8_e4m3() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value>>
    explicit __nv_fp8_e4m3(T) {
        std::abort();
    }
    operator float() const { std::abort(); }
};

#define CLTLAB_HALF_OPERATOR(T, op)                                                       \
    inline T operator op(T a, T b) { return T(float(a) op float(b)); }                    \
    inline T& operator op##=(T& a, T b) { return a = T(float(a) op float(b)); }
#define CLTLAB_HALF_TYPE(T)                                                               \
    CLTLAB_HALF_OPERATOR(T, +)                                                            \
    CLTLAB_HALF_OPERATOR(T, -)                                                            \
    CLTLAB_HALF_OPERATOR(T, *)                                                            \
    CLTLAB_HALF_OPERATOR(T, /)                                                            \
    inline T operator-(T a) { return T(-float(a)); }                                      \
    inline bool operator<(T a, T b) { return float(a) < float(b); }                       \
    inline bool operator>(T a, T b) { return float(a) > float(b); }                       \
    inline bool operator<=(T a, T b) { return float(a) <= float(b); }                     \
    inline bool operator>=(T a, T b) { return float(a) >= float(b); }                     \
    inline bool operator==(T a, T b) { return float(a) == float(b); }                     \
    inline bool operator!=(T a, T b) { return float(a) != float(b); }                     \
    inline T hexp(T x) { return T(std::exp(float(x))); }                                  \
    inline T hlog(T x) { return T(std::log(float(x))); }                                  \
    inline T hsin(T x) { return T(std::sin(float(x))); }                                  \
    inline T hcos(T x) { return T(std::cos(float(x))); }                                  \
    inline T hsqrt(T x) { return T(std::sqrt(float(x))); }                                \
    inline T hrsqrt(T x) { return T(1.f / std::sqrt(float(x))); }                         \
    inline T hrcp(T x) { return T(1.f / float(x)); }                                      \
    inline T hceil(T x) { return T(std::ceil(float(x))); }                                \
    inline T hfloor(T x) { return T(std::floor(float(x))); }                              \
    inline T hrint(T x) { return T(std::rint(float(x))); }                                \
    inline T __habs(T x) { return T(std::fabs(float(x))); }                               \
    inline bool __hisnan(T x) { return std::isnan(float(x)); }                            \
    inline T __hmax(T a, T b) { return T(std::fmax(float(a), float(b))); }                \
    inline T __hmin(T a, T b) { return T(std::fmin(float(a), float(b))); }                \
    inline T __hmax_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmax(a, b); } \
    inline T __hmin_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmin(a, b); }
CLTLAB_HALF_TYPE(__half)
CLTLAB_HALF_TYPE(__nv_bfloat16)
CLTLAB_HALF_TYPE(__nv_fp8_e4m3)
enum { __NV_E4M3 };
inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { std::abort(); }
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752); }
template <typename T>
inline T __ldg(const T* at) {
    return *at;
}
template <typename T>
inline T atomicCAS(T* at, T expected, T wanted) {
    T old = *at;
    if (old == expected) *at = wanted;
    return old;
}
struct float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int) {
    return __shfl_xor_sync(mask, value, lanes);
}
struct half2 {
    __half x, y;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
#define CLTLAB_PAIR(T, name, op) \
    inline T name(T a, T b) { return T{a.x op b.x, a.y op b.y}; }
#define CLTLAB_PAIRS(T)        \
    CLTLAB_PAIR(T, __hadd2, +) \
    CLTLAB_PAIR(T, __hsub2, -) \
    CLTLAB_PAIR(T, __hmul2, *) \
    CLTLAB_PAIR(T, __h2div, /)
CLTLAB_PAIRS(half2)
CLTLAB_PAIRS(__nv_bfloat162)
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
