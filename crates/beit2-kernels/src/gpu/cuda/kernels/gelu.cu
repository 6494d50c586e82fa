// Exact GELU, x * Phi(x).
#include "device.cuh"

// The standard normal distribution: the probability below x and the density at x, both within some ulp, also in the left
// tail, where (1 + erf) / 2 would cancel. Polynomial and constants are those of the CPU (`simd.rs`).
struct Normal {
    float below, density;
};

static __device__ __forceinline__ Normal normal(float x) {
    // exp(t * t) * erfc(t) on 0 <= t <= 10.2 as a polynomial of (t - 3) / (t + 3).
    const float p[11] = {0.17900115f,   -0.32623357f,   0.2456038f,      -0.15011579f,  0.07166586f, -0.02439423f,
                         0.0042688763f, 0.00071573106f, -0.00059456953f, 2.8880324e-5f, 5.5915934e-5f};
    float a = fabsf(x);
    bool far = a > 14.4f;  // both tails are 0 in f32; NaN stays
    a = far ? 14.4f : a;
    float t = a * 0.70710678f;
    float u = __fdividef(t - 3.0f, t + 3.0f);
    float erfcx = p[10];
#pragma unroll
    for (int i = 9; i >= 0; i--) erfcx = fmaf(erfcx, u, p[i]);
    float e = __expf(-0.5f * a * a);
    float tail = 0.5f * e * erfcx;
    Normal n;
    n.below = x < 0.0f ? tail : 1.0f - tail;
    n.density = far ? 0.0f : e * 0.3989423f;
    return n;
}

static __device__ __forceinline__ float gelu(float x) {
    return x * normal(x).below;
}

// The derivative.
static __device__ __forceinline__ float gelu_slope(float x) {
    Normal n = normal(x);
    return n.below + (n.density == 0.0f ? 0.0f : x * n.density);
}

// `count` elements, 8 a thread; the last few one by one.
template <typename In, typename Out>
static __device__ void gelu_forward(const In *__restrict__ x, Out *__restrict__ y, unsigned long long count) {
    unsigned long long at = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= count) {
        float v[8];
        load_f32(v, x + at);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = gelu(v[i]);
        store_f32(y + at, v);
    } else {
        for (; at < count; at++) y[at] = to<Out>(gelu(to_f32(x[at])));
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_forward_f32(const float *x, float *y, unsigned long long count) {
    gelu_forward<float, float>(x, y, count);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_forward_bf16(const bf16 *x, bf16 *y, unsigned long long count) {
    gelu_forward<bf16, bf16>(x, y, count);
}

// GELU and its derivative; `slope` may be `x`.
extern "C" __global__ void __launch_bounds__(256)
    gelu_train_f32(const float *x, float *y, float *slope, unsigned long long count) {
    unsigned long long at = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= count) {
        float v[8], d[8];
        load_f32(v, x + at);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = v[i];
            v[i] = gelu(x);
            d[i] = gelu_slope(x);
        }
        store_f32(y + at, v);
        store_f32(slope + at, d);
    } else {
        for (; at < count; at++) {
            float v = x[at];
            y[at] = gelu(v);
            slope[at] = gelu_slope(v);
        }
    }
}

// y = x * by; `y` may be either.
extern "C" __global__ void __launch_bounds__(256)
    multiply_f32(const float *x, const float *by, float *y, unsigned long long count) {
    unsigned long long at = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= count) {
        float v[8], b[8];
        load_f32(v, x + at);
        load_f32(b, by + at);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= b[i];
        store_f32(y + at, v);
    } else {
        for (; at < count; at++) y[at] = x[at] * by[at];
    }
}

// The gradient before GELU, and its column sums: the bias gradient of the linear layer before. `before` may be `grad`.
template <typename T>
static __device__ void gelu_backward(const T *__restrict__ x, const T *grad, T *before, float *__restrict__ partials,
                                     unsigned long long rows, unsigned width) {
    ColumnThread t = column_thread(width);
    float sums[8];
    fill_f32(sums, 0.0f);
    if (t.inside) {
        for (; t.row < rows; t.row += t.step) {
            float v[8], g[8];
            load_f32(v, x + t.row * width + t.column);
            load_f32(g, grad + t.row * width + t.column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                g[i] *= gelu_slope(v[i]);
                sums[i] += g[i];
            }
            store_f32(before + t.row * width + t.column, g);
        }
    }
    store_columns(sums, partials + (unsigned long long)blockIdx.y * width, width);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_backward_f32(const float *x, const float *grad, float *before, float *partials, unsigned long long rows,
                      unsigned width) {
    gelu_backward<float>(x, grad, before, partials, rows, width);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_backward_bf16(const bf16 *x, const bf16 *grad, bf16 *before, float *partials, unsigned long long rows,
                       unsigned width) {
    gelu_backward<bf16>(x, grad, before, partials, rows, width);
}
