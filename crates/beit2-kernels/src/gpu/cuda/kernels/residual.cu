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

// Gradients of x + gamma * branch: of the branch and of gamma [width]. partials: [gridDim.y, width].
extern "C" __global__ void __launch_bounds__(256)
    residual_backward_f32(const float *__restrict__ grad, const float *__restrict__ branch,
                          const float *__restrict__ gamma, float *__restrict__ dbranch, float *__restrict__ partials,
                          unsigned long long rows, unsigned width) {
    ColumnThread t = column_thread(width);
    float dgamma[8], g[8];
    fill_f32(dgamma, 0.0f);
    fill_f32(g, 1.0f);
    if (t.inside) {
        load_f32(g, gamma + t.column);
        for (; t.row < rows; t.row += t.step) {
            float v[8], b[8];
            load_f32(v, grad + t.row * width + t.column);
            load_f32(b, branch + t.row * width + t.column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                dgamma[i] = fmaf(v[i], b[i], dgamma[i]);
                v[i] *= g[i];
            }
            store_f32(dbranch + t.row * width + t.column, v);
        }
    }
    store_columns(dgamma, partials + (unsigned long long)blockIdx.y * width, width);
}
