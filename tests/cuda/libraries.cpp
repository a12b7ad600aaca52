// The parts of cuBLAS and cuRAND that the program needs, over host memory: products with sums in f32, and a
// generator that is made and never asked.
//
// A product's arguments are checked as cuBLAS' manual states its conditions (cublasGemmEx, "supported combinations of
// types"); what breaks one is refused with cuBLAS' status and said on stderr. More than cuBLAS does: a matrix that
// does not lie in one allocation of the device is refused too.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

typedef int Status;
enum { DONE = 0, INVALID = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
// cudaDataType_t and cublasComputeType_t.
enum { F32 = 0, F16 = 2, BF16 = 14 };
enum { COMPUTE_16F = 64, COMPUTE_16F_PEDANTIC = 65, COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, FAST_16F = 74, FAST_16BF = 75, FAST_TF32 = 77 };

static size_t bytes_of(int type) { return type == F32 ? 4 : 2; }

static float from_f16(uint16_t half) {
    const uint32_t sign = uint32_t(half >> 15) << 31, exponent = half >> 10 & 31, fraction = half & 1023;
    // Below the smallest exponent the fraction counts 2^-24ths.
    float value = float(fraction) / 16777216.f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (exponent == 31) bits = 0x7f800000u | fraction << 13;
    else if (exponent != 0) bits = (exponent + 112) << 23 | fraction << 13;
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}
// To the nearest, ties to even.
static uint16_t to_f16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (size >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (size < 0x38800000u) {
        // At 0.5 a float's last places are 2^-24ths, so that the sum rounds there.
        float small;
        std::memcpy(&small, &size, 4);
        small += 0.5f;
        uint32_t rounded;
        std::memcpy(&rounded, &small, 4);
        return uint16_t(sign | (rounded - 0x3f000000u));
    }
    return uint16_t(sign | ((size + 0xfffu + (size >> 13 & 1u)) >> 13) - 0x1c000u);
}

static float widen(const void* at, size_t index, int type) {
    if (type == F32) return static_cast<const float*>(at)[index];
    const uint16_t half = static_cast<const uint16_t*>(at)[index];
    if (type == F16) return from_f16(half);
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static void store(void* at, size_t index, int type, float value) {
    if (type == F32) {
        static_cast<float*>(at)[index] = value;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    static_cast<uint16_t*>(at)[index] = type == F16 ? to_f16(value) : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The emulated driver, opened by the program before this library.
template <typename F>
static F driver(const char* name) {
    static void* library = dlopen("libcuda.so.1", RTLD_LAZY);
    return library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
}
static bool no_context(const char* call) {
    static const auto get = driver<int (*)(void**)>("cuCtxGetCurrent");
    void* context = nullptr;
    if (get && get(&context) == 0 && context) return false;
    std::fprintf(stderr, "emulator: %s: no context is current on this thread\n", call);
    return true;
}
static bool outside(const void* at, size_t bytes) {
    static const auto inside = driver<int (*)(const void*, size_t)>("cltlab_inside");
    return inside && !inside(at, bytes);
}

static Status refuse(Status status, const char* call, const char* argument, long long value, const char* expected) {
    std::fprintf(stderr, "emulator: %s: %s is %lld, expected %s\n", call, argument, value, expected);
    return status;
}

struct Matrix {
    const char *name, *stride_name;
    const void* at;
    int type, stride;
    // As it lies, columns first.
    int rows, columns;
};

// Whether cuBLAS takes these types, and what it would say.
static Status supported(const char* call, int compute, int a, int b, int c) {
    if (a != F32 && a != F16 && a != BF16) return refuse(NOT_SUPPORTED, call, "Atype", a, "0 (f32), 2 (f16) or 14 (bf16)");
    if (b != a) return refuse(NOT_SUPPORTED, call, "Btype", b, "Atype");
    switch (compute) {
        case COMPUTE_16F:
        case COMPUTE_16F_PEDANTIC:
            if (a != F16) return refuse(NOT_SUPPORTED, call, "Atype", a, "2 (f16) with sums in f16");
            return c == F16 ? DONE : refuse(NOT_SUPPORTED, call, "Ctype", c, "2 (f16) with sums in f16");
        case COMPUTE_32F:
        case COMPUTE_32F_PEDANTIC: return c == F32 || c == a ? DONE : refuse(NOT_SUPPORTED, call, "Ctype", c, "0 (f32) or Atype with sums in f32");
        case FAST_16F:
        case FAST_16BF:
        case FAST_TF32:
            if (a != F32) return refuse(NOT_SUPPORTED, call, "Atype", a, "0 (f32) where factors are to be rounded");
            return c == F32 ? DONE : refuse(NOT_SUPPORTED, call, "Ctype", c, "0 (f32) where factors are to be rounded");
        default: return refuse(NOT_SUPPORTED, call, "computeType", compute, "one of 64, 65, 68, 69, 74, 75, 77");
    }
}

static Status check(const char* call, int turn_a, int turn_b, int m, int n, int k, const void* alpha, Matrix a, Matrix b, const void* beta, Matrix c, int compute) {
    if (no_context(call)) return EXECUTION_FAILED;
    if (turn_a < 0 || turn_a > 2) return refuse(INVALID, call, "transa", turn_a, "0, 1 or 2");
    if (turn_b < 0 || turn_b > 2) return refuse(INVALID, call, "transb", turn_b, "0, 1 or 2");
    if (m < 0) return refuse(INVALID, call, "m", m, "at least 0");
    if (n < 0) return refuse(INVALID, call, "n", n, "at least 0");
    if (k < 0) return refuse(INVALID, call, "k", k, "at least 0");
    if (const Status status = supported(call, compute, a.type, b.type, c.type)) return status;
    if (!alpha) return refuse(INVALID, call, "alpha", 0, "an address");
    if (!beta) return refuse(INVALID, call, "beta", 0, "an address");
    for (const Matrix& matrix : {a, b, c}) {
        char expected[64];
        if (matrix.stride < std::max(1, matrix.rows)) {
            std::snprintf(expected, sizeof expected, "at least %d, the rows that are stored", std::max(1, matrix.rows));
            return refuse(INVALID, call, matrix.stride_name, matrix.stride, expected);
        }
        const size_t element = bytes_of(matrix.type);
        if (matrix.rows == 0 || matrix.columns == 0) continue;
        if (!matrix.at) return refuse(INVALID, call, matrix.name, 0, "an address");
        if (reinterpret_cast<uintptr_t>(matrix.at) % element != 0) return refuse(INVALID, call, matrix.name, reinterpret_cast<long long>(matrix.at), "an address aligned to its elements");
        const size_t bytes = (size_t(matrix.columns - 1) * matrix.stride + matrix.rows) * element;
        if (outside(matrix.at, bytes)) {
            std::snprintf(expected, sizeof expected, "%zu bytes of one allocation", bytes);
            return refuse(EXECUTION_FAILED, call, matrix.name, reinterpret_cast<long long>(matrix.at), expected);
        }
    }
    return DONE;
}

static Status multiply(const char* call, int turn_a, int turn_b, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type,
                       int ldc, int compute) {
    const Status status = check(call, turn_a, turn_b, m, n, k, alpha, {"A", "lda", a, a_type, lda, turn_a ? k : m, turn_a ? m : k}, {"B", "ldb", b, b_type, ldb, turn_b ? n : k, turn_b ? k : n}, beta,
                                {"C", "ldc", c, c_type, ldc, m, n}, compute);
    if (status != DONE) return status;
    // Factors are of the type that sums are in; sums of f16 are nearer to the truth here than on a card.
    const int scale = compute == COMPUTE_16F || compute == COMPUTE_16F_PEDANTIC ? F16 : F32;
    const float one = widen(alpha, 0, scale), keep = widen(beta, 0, scale);
    // Columns first; both factors are laid out with the summed index innermost.
    std::vector<float> left(size_t(m) * k), right(size_t(n) * k);
    for (int i = 0; i < m; ++i)
        for (int p = 0; p < k; ++p) left[size_t(i) * k + p] = widen(a, turn_a ? size_t(i) * lda + p : size_t(p) * lda + i, a_type);
    for (int j = 0; j < n; ++j)
        for (int p = 0; p < k; ++p) right[size_t(j) * k + p] = widen(b, turn_b ? size_t(p) * ldb + j : size_t(j) * ldb + p, b_type);
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            float sums[8] = {0};
            const float *x = &left[size_t(i) * k], *y = &right[size_t(j) * k];
            int p = 0;
            for (; p + 8 <= k; p += 8)
                for (int lane = 0; lane < 8; ++lane) sums[lane] += x[p + lane] * y[p + lane];
            float sum = 0;
            for (; p < k; ++p) sum += x[p] * y[p];
            for (float part : sums) sum += part;
            // With beta 0 what was there is not read.
            const size_t to = size_t(j) * ldc + i;
            store(c, to, c_type, one * sum + (keep == 0.f ? 0.f : keep * widen(c, to, c_type)));
        }
    }
    return DONE;
}

extern "C" {
Status cublasCreate_v2(void** handle) {
    if (no_context(__func__)) return EXECUTION_FAILED;
    return *handle = reinterpret_cast<void*>(0x40), DONE;
}
Status cublasDestroy_v2(void*) { return DONE; }
Status cublasSetStream_v2(void*, void*) { return DONE; }
Status cublasSetWorkspace_v2(void*, void*, size_t) { return DONE; }
Status cublasSetMathMode(void*, int) { return DONE; }
Status cublasGemmEx(void*, int turn_a, int turn_b, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c,
                    int c_type, int ldc, int compute, int) {
    return multiply(__func__, turn_a, turn_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute);
}
Status cublasGemmStridedBatchedEx(void*, int turn_a, int turn_b, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda, long long a_step, const void* b, int b_type, int ldb,
                                  long long b_step, const void* beta, void* c, int c_type, int ldc, long long c_step, int batches, int compute, int) {
    if (batches < 0) return refuse(INVALID, __func__, "batchCount", batches, "at least 0");
    for (int i = 0; i < batches; ++i) {
        const Status status = multiply(__func__, turn_a, turn_b, m, n, k, alpha, static_cast<const char*>(a) + i * a_step * bytes_of(a_type), a_type, lda,
                                       static_cast<const char*>(b) + i * b_step * bytes_of(b_type), b_type, ldb, beta, static_cast<char*>(c) + i * c_step * bytes_of(c_type), c_type, ldc, compute);
        if (status != DONE) return status;
    }
    return DONE;
}
Status curandCreateGenerator(void** generator, int) { return *generator = reinterpret_cast<void*>(0x50), DONE; }
Status curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return DONE; }
Status curandSetStream(void*, void*) { return DONE; }
Status curandDestroyGenerator(void*) { return DONE; }
}
