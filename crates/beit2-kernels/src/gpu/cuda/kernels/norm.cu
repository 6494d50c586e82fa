// Layer norm over rows of f32, alone and joined with the residual branch before it.
//
// A row is spread over whole warps, 8 columns a thread, and is read once: statistics come from registers, in two passes
// (mean, then squares of what is left). A block takes several short rows at a time; blocks go over the rows in strides
// of the grid, so that what belongs to a column (weight, bias, sums over rows) stays in registers.
//
// Sums over rows leave a block as one row of `partials [gridDim.x, vectors * width]`; `columns_finish` adds those up in
// order. So results are the same bits in every run.
#include "device.cuh"
#include "norm.cuh"

template <typename Out>
static __device__ void norm_forward(const float *__restrict__ x, const float *__restrict__ weight,
                                    const float *__restrict__ bias, Out *__restrict__ y, float *__restrict__ mean,
                                    float *__restrict__ rstd, unsigned long long rows, unsigned width, float eps) {
    __shared__ float2 parts[2][16];
    RowThread t = row_thread(width);
    float w[8], b[8];
    fill_f32(w, 0.0f);
    fill_f32(b, 0.0f);
    if (t.inside) {
        load_f32(w, weight + t.column);
        load_f32(b, bias + t.column);
    }
    for (unsigned long long base = (unsigned long long)blockIdx.x * t.slots; base < rows;
         base += (unsigned long long)gridDim.x * t.slots) {
        unsigned long long row = base + t.slot;
        bool here = t.inside && row < rows;
        float v[8];
        fill_f32(v, 0.0f);
        if (here) load_f32(v, x + row * width + t.column);
        Statistics s = normalise(v, t, width, eps, parts);
        if (!here) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = fmaf(v[i], w[i], b[i]);
        store_f32(y + row * width + t.column, v);
        if (t.column == 0 && mean) {
            mean[row] = s.mean;
            rstd[row] = s.rstd;
        }
    }
}

// `add` (may be null) is added to the gradient; `dx` may be `add`. partials: [gridDim.x, 2 * width], weight then bias.
template <typename Grad>
static __device__ void norm_backward(const float *__restrict__ x, const float *__restrict__ weight,
                                     const float *__restrict__ mean, const float *__restrict__ rstd,
                                     const Grad *__restrict__ grad, const float *add, float *dx,
                                     float *__restrict__ partials, unsigned long long rows, unsigned width) {
    __shared__ float2 parts[2][16];
    RowThread t = row_thread(width);
    float w[8], dw[8], db[8];
    fill_f32(w, 0.0f);
    fill_f32(dw, 0.0f);
    fill_f32(db, 0.0f);
    if (t.inside) load_f32(w, weight + t.column);
    unsigned turn = 0;
    for (unsigned long long base = (unsigned long long)blockIdx.x * t.slots; base < rows;
         base += (unsigned long long)gridDim.x * t.slots, turn ^= 1) {
        unsigned long long row = base + t.slot;
        bool here = t.inside && row < rows;
        float v[8], g[8], a[8];
        fill_f32(v, 0.0f);
        fill_f32(g, 0.0f);
        fill_f32(a, 0.0f);
        Statistics s = {0.0f, 0.0f};
        if (here) {
            load_f32(v, x + row * width + t.column);
            load_f32(g, grad + row * width + t.column);
            if (add) load_f32(a, add + row * width + t.column);
            s.mean = mean[row];
            s.rstd = rstd[row];
        }
        norm_gradient(v, g, w, s, t, width, parts[turn], dw, db);
        if (!here) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] += a[i];
        store_f32(dx + row * width + t.column, v);
    }
    float *to = partials + (unsigned long long)blockIdx.x * 2 * width;
    store_sums(dw, t, to);
    store_sums(db, t, to + width);
}

extern "C" __global__ void __launch_bounds__(512)
    norm_forward_f32(const float *x, const float *weight, const float *bias, float *y, float *mean, float *rstd,
                     unsigned long long rows, unsigned width, float eps) {
    norm_forward<float>(x, weight, bias, y, mean, rstd, rows, width, eps);
}

extern "C" __global__ void __launch_bounds__(512)
    norm_forward_bf16(const float *x, const float *weight, const float *bias, bf16 *y, float *mean, float *rstd,
                      unsigned long long rows, unsigned width, float eps) {
    norm_forward<bf16>(x, weight, bias, y, mean, rstd, rows, width, eps);
}

// x + factor * branch, and the norm of it. `factors` [rows / tokens] may be null; `sum` may be `x`. Layer scale is in the
// branch already (`block.cu`).
extern "C" __global__ void __launch_bounds__(512)
    residual_norm_forward_bf16(const float *x, const bf16 *__restrict__ branch, const float *__restrict__ factors,
                               unsigned tokens, const float *__restrict__ weight, const float *__restrict__ bias,
                               float *sum, bf16 *__restrict__ y, float *__restrict__ mean, float *__restrict__ rstd,
                               unsigned long long rows, unsigned width, float eps) {
    __shared__ float2 parts[2][16];
    RowThread t = row_thread(width);
    float w[8], b[8];
    fill_f32(w, 0.0f);
    fill_f32(b, 0.0f);
    if (t.inside) {
        load_f32(w, weight + t.column);
        load_f32(b, bias + t.column);
    }
    for (unsigned long long base = (unsigned long long)blockIdx.x * t.slots; base < rows;
         base += (unsigned long long)gridDim.x * t.slots) {
        unsigned long long row = base + t.slot;
        bool here = t.inside && row < rows;
        float v[8];
        fill_f32(v, 0.0f);
        if (here) {
            float add[8];
            load_f32(v, x + row * width + t.column);
            load_f32(add, branch + row * width + t.column);
            float factor = factors ? factors[(unsigned)row / tokens] : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = fmaf(add[i], factor, v[i]);
            store_f32(sum + row * width + t.column, v);
        }
        Statistics s = normalise(v, t, width, eps, parts);
        if (!here) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = fmaf(v[i], w[i], b[i]);
        store_f32(y + row * width + t.column, v);
        if (t.column == 0 && mean) {
            mean[row] = s.mean;
            rstd[row] = s.rstd;
        }
    }
}

extern "C" __global__ void __launch_bounds__(512)
    norm_backward_f32(const float *x, const float *weight, const float *mean, const float *rstd, const float *grad,
                      const float *add, float *dx, float *partials, unsigned long long rows, unsigned width) {
    norm_backward<float>(x, weight, mean, rstd, grad, add, dx, partials, rows, width);
}

extern "C" __global__ void __launch_bounds__(512)
    norm_backward_bf16(const float *x, const float *weight, const float *mean, const float *rstd, const bf16 *grad,
                       const float *add, float *dx, float *partials, unsigned long long rows, unsigned width) {
    norm_backward<bf16>(x, weight, mean, rstd, grad, add, dx, partials, rows, width);
}
