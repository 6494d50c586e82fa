// A residual branch with layer scale and drop path, where no norm follows (`norm.cu` has the two in one).
#include "device.cuh"

// sum = x + gamma * factor * branch for rows of a width that 8 divides. `gamma` [width] and `factors` [rows / tokens]
// may be null; `sum` may be `x`.
template <typename Branch>
static __device__ void residual_forward(const float *x, const Branch *branch, const float *__restrict__ gamma,
                                        const float *__restrict__ factors, unsigned tokens, float *sum,
                                        unsigned long long rows, unsigned width) {
    unsigned long long at = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= rows * width) return;
    unsigned long long row = at / width;
    float v[8], b[8];
    load_f32(v, x + at);
    load_f32(b, branch + at);
    float factor = factors ? factors[(unsigned)row / tokens] : 1.0f;
    if (gamma) {
        float g[8];
        load_f32(g, gamma + (unsigned)(at - row * width));
#pragma unroll
        for (int i = 0; i < 8; i++) b[i] *= g[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = fmaf(b[i], factor, v[i]);
    store_f32(sum + at, v);
}

extern "C" __global__ void __launch_bounds__(256)
    residual_forward_f32(const float *x, const float *branch, const float *gamma, const float *factors, unsigned tokens,
                         float *sum, unsigned long long rows, unsigned width) {
    residual_forward<float>(x, branch, gamma, factors, tokens, sum, rows, width);
}

extern "C" __global__ void __launch_bounds__(256)
    residual_forward_bf16(const float *x, const bf16 *branch, const float *gamma, const float *factors, unsigned tokens,
                          float *sum, unsigned long long rows, unsigned width) {
    residual_forward<bf16>(x, branch, gamma, factors, tokens, sum, rows, width);
}

// Gradients of x + gamma * factor * branch: of the branch, of gamma, and of a bias that the branch ends with (the column
// sums of the branch's). `gamma` and `factors` may be null. partials: [gridDim.y, 2 * width], gamma then bias.
template <typename Branch>
static __device__ void residual_backward(const float *__restrict__ grad, const Branch *__restrict__ branch,
                                         const float *__restrict__ gamma, const float *__restrict__ factors,
                                         unsigned tokens, Branch *__restrict__ dbranch, float *__restrict__ partials,
                                         unsigned long long rows, unsigned width) {
    ColumnThread t = column_thread(width);
    float dgamma[8], dbias[8], g[8];
    fill_f32(dgamma, 0.0f);
    fill_f32(dbias, 0.0f);
    fill_f32(g, 1.0f);
    if (t.inside) {
        if (gamma) load_f32(g, gamma + t.column);
        for (; t.row < rows; t.row += t.step) {
            float v[8], b[8];
            load_f32(v, grad + t.row * width + t.column);
            load_f32(b, branch + t.row * width + t.column);
            float factor = factors ? factors[(unsigned)t.row / tokens] : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float scaled = v[i] * factor;
                dgamma[i] = fmaf(scaled, b[i], dgamma[i]);
                v[i] = scaled * g[i];
                dbias[i] += v[i];
            }
            store_f32(dbranch + t.row * width + t.column, v);
        }
    }
    float *to = partials + (unsigned long long)blockIdx.y * 2 * width;
    store_columns(dgamma, to, width);
    store_columns(dbias, to + width, width);
}

extern "C" __global__ void __launch_bounds__(256)
    residual_backward_f32(const float *grad, const float *branch, const float *gamma, const float *factors,
                          unsigned tokens, float *dbranch, float *partials, unsigned long long rows, unsigned width) {
    residual_backward<float>(grad, branch, gamma, factors, tokens, dbranch, partials, rows, width);
}

extern "C" __global__ void __launch_bounds__(256)
    residual_backward_bf16(const float *grad, const bf16 *branch, const float *gamma, const float *factors,
                           unsigned tokens, bf16 *dbranch, float *partials, unsigned long long rows, unsigned width) {
    residual_backward<bf16>(grad, branch, gamma, factors, tokens, dbranch, partials, rows, width);
}
