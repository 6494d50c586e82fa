// Exact GELU, x * Phi(x), and its derivative; two approximations that other models are trained with.
#pragma once

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

// x * sigma(1.702 x). exp overflows to infinity far below 0, and the quotient is 0 there.
static __device__ __forceinline__ float quick_gelu(float x) {
    return x / (1.0f + __expf(-1.702f * x));
}

// GELU by tanh: x * sigma(2 z) with z = sqrt(2 / pi) * (x + 0.044715 x^3).
static __device__ __forceinline__ float gelu_tanh(float x) {
    return x / (1.0f + __expf(-1.5957691f * x * fmaf(0.044715f * x, x, 1.0f)));
}

// The derivative.
static __device__ __forceinline__ float gelu_slope(float x) {
    Normal n = normal(x);
    return n.below + (n.density == 0.0f ? 0.0f : x * n.density);
}

// Both of them.
struct Gelu {
    float value, slope;
};

static __device__ __forceinline__ Gelu gelu_both(float x) {
    Normal n = normal(x);
    Gelu both = {x * n.below, n.below + (n.density == 0.0f ? 0.0f : x * n.density)};
    return both;
}
