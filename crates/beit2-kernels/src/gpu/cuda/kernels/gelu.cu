// Exact GELU, x * Phi(x), and two approximations; tanh.
#include "device.cuh"
#include "gelu.cuh"

// y = F(x) of `count` elements, 8 a thread; the last few one by one. `y` may be `x`.
template <float (*F)(float), typename In, typename Out>
static __device__ void activate(const In *x, Out *y, unsigned long long count) {
    unsigned long long at = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= count) {
        float v[8];
        load_f32(v, x + at);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = F(v[i]);
        store_f32(y + at, v);
    } else {
        for (; at < count; at++) y[at] = to<Out>(F(to_f32(x[at])));
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_forward_f32(const float *x, float *y, unsigned long long count) {
    activate<gelu>(x, y, count);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_forward_bf16(const bf16 *x, bf16 *y, unsigned long long count) {
    activate<gelu>(x, y, count);
}

extern "C" __global__ void __launch_bounds__(256)
    quick_gelu_forward_bf16(const bf16 *x, bf16 *y, unsigned long long count) {
    activate<quick_gelu>(x, y, count);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_tanh_forward_bf16(const bf16 *x, bf16 *y, unsigned long long count) {
    activate<gelu_tanh>(x, y, count);
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

extern "C" __global__ void __launch_bounds__(256) tanh_forward_f32(const float *x, float *y, unsigned long long count) {
    activate<tanhf>(x, y, count);
}

extern "C" __global__ void __launch_bounds__(256) tanh_forward_bf16(const bf16 *x, bf16 *y, unsigned long long count) {
    activate<tanhf>(x, y, count);
}

// dx = grad * (1 - y * y) for y = tanh x; `dx` may be either.
template <typename T>
static __device__ void tanh_backward(const T *y, const T *grad, T *dx, unsigned long long count) {
    unsigned long long at = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at + 8 <= count) {
        float v[8], g[8];
        load_f32(v, y + at);
        load_f32(g, grad + at);
#pragma unroll
        for (int i = 0; i < 8; i++) g[i] *= fmaf(-v[i], v[i], 1.0f);
        store_f32(dx + at, g);
    } else {
        for (; at < count; at++) {
            float v = to_f32(y[at]);
            dx[at] = to<T>(to_f32(grad[at]) * fmaf(-v, v, 1.0f));
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    tanh_backward_f32(const float *y, const float *grad, float *dx, unsigned long long count) {
    tanh_backward(y, grad, dx, count);
}

extern "C" __global__ void __launch_bounds__(256)
    tanh_backward_bf16(const bf16 *y, const bf16 *grad, bf16 *dx, unsigned long long count) {
    tanh_backward(y, grad, dx, count);
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
