// Layer norm over rows of f32, alone and joined with the residual branch before it.
//
// A row is spread over whole warps, 8 columns a thread, and is read once: statistics come from registers, in two passes
// (mean, then squares of what is left). A block takes several short rows at a time; blocks go over the rows in strides
// of the grid, so that what belongs to a column (weight, bias, sums over rows) stays in registers.
//
// Sums over rows leave a block as one row of `partials [gridDim.x, vectors * width]`; `columns_finish` adds those up in
// order. So results are the same bits in every run.
#include "device.cuh"

struct RowThread {
    unsigned warps;   // of a row
    unsigned slots;   // rows of a block
    unsigned slot;    // this thread's
    unsigned column;  // its first of 8
    bool inside;      // whether the row has that column
};

static __device__ RowThread row_thread(unsigned width) {
    RowThread t;
    t.warps = (width + 255) / 256;
    unsigned lanes = t.warps * 32;
    t.slots = blockDim.x / lanes;
    t.slot = threadIdx.x / lanes;
    t.column = threadIdx.x % lanes * 8;
    t.inside = t.column < width;
    return t;
}

// The sums of two values over the threads of a row. `parts` has a place for each warp of a block; two calls after one
// another need different ones, and no other barrier between them.
static __device__ float2 row_sums(float a, float b, unsigned warps, float2 *parts) {
    float2 sums = make_float2(warp_sum(a), warp_sum(b));
    if (warps == 1) return sums;
    unsigned warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) parts[warp] = sums;
    __syncthreads();
    unsigned first = warp / warps * warps;
    sums = parts[first];
    for (unsigned i = 1; i < warps; i++) {
        sums.x += parts[first + i].x;
        sums.y += parts[first + i].y;
    }
    return sums;
}

static __device__ float sum8(const float (&v)[8]) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

struct Statistics {
    float mean, rstd;
};

// Statistics of the row whose columns threads hold in `v`, which becomes the normalised row.
static __device__ Statistics normalise(float (&v)[8], RowThread t, unsigned width, float eps, float2 (*parts)[16]) {
    Statistics s;
    s.mean = row_sums(t.inside ? sum8(v) : 0.0f, 0.0f, t.warps, parts[0]).x / (float)width;
    float squares[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] -= s.mean;
        squares[i] = v[i] * v[i];
    }
    float variance = row_sums(t.inside ? sum8(squares) : 0.0f, 0.0f, t.warps, parts[1]).x / (float)width;
    s.rstd = 1.0f / sqrtf(variance + eps);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] *= s.rstd;
    return s;
}

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

// x + gamma * factor * branch, and the norm of it. `gamma` and `factors` may be null. `sum` may be `x`.
template <typename Branch, typename Out>
static __device__ void residual_norm_forward(const float *x, const Branch *__restrict__ branch,
                                             const float *__restrict__ gamma, const float *__restrict__ factors,
                                             unsigned tokens, const float *__restrict__ weight,
                                             const float *__restrict__ bias, float *sum, Out *__restrict__ y,
                                             float *__restrict__ mean, float *__restrict__ rstd,
                                             unsigned long long rows, unsigned width, float eps) {
    __shared__ float2 parts[2][16];
    RowThread t = row_thread(width);
    float g[8], w[8], b[8];
    fill_f32(g, 1.0f);
    fill_f32(w, 0.0f);
    fill_f32(b, 0.0f);
    if (t.inside) {
        if (gamma) load_f32(g, gamma + t.column);
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
            for (int i = 0; i < 8; i++) v[i] = fmaf(add[i] * factor, g[i], v[i]);
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

// One row of partial sums: those of the block's slots, in order, at `to`.
static __device__ void store_sums(float (&sums)[8], RowThread t, float *to) {
    __shared__ float slots[256 * 8];
    if (t.slots > 1) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; i++) slots[i * blockDim.x + threadIdx.x] = sums[i];
        __syncthreads();
        if (t.slot == 0) {
            for (unsigned slot = 1; slot < t.slots; slot++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    sums[i] += slots[i * blockDim.x + slot * t.warps * 32 + threadIdx.x];
                }
            }
        }
    }
    if (t.slot == 0 && t.inside) store_f32(to + t.column, sums);
}

// The gradient of a row before the norm: `v` is the row and becomes the gradient; `grad` is that of the normalised and
// scaled row. Adds to the sums for weight and bias.
static __device__ void norm_gradient(float (&v)[8], const float (&grad)[8], const float (&w)[8], Statistics s,
                                     RowThread t, unsigned width, float2 *parts, float (&dw)[8], float (&db)[8]) {
    float inner[8], along[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = (v[i] - s.mean) * s.rstd;
        dw[i] = fmaf(grad[i], v[i], dw[i]);
        db[i] += grad[i];
        inner[i] = grad[i] * w[i];
        along[i] = inner[i] * v[i];
    }
    float2 sums = row_sums(sum8(inner), sum8(along), t.warps, parts);
    sums.x /= (float)width;
    sums.y /= (float)width;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (inner[i] - sums.x - v[i] * sums.y) * s.rstd;
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

// `norm_backward` of the norm behind a residual branch, then the gradients of that branch (`dbranch`), of gamma and of
// the bias that the branch ends with. partials: [gridDim.x, 4 * width]: weight, bias, gamma, branch's bias.
template <typename Grad, typename Branch>
static __device__ void residual_norm_backward(const float *__restrict__ sum, const float *__restrict__ weight,
                                              const float *__restrict__ mean, const float *__restrict__ rstd,
                                              const Grad *__restrict__ grad, const float *add,
                                              const Branch *__restrict__ branch, const float *__restrict__ gamma,
                                              const float *__restrict__ factors, unsigned tokens, float *dx,
                                              Branch *__restrict__ dbranch, float *__restrict__ partials,
                                              unsigned long long rows, unsigned width) {
    __shared__ float2 parts[2][16];
    RowThread t = row_thread(width);
    float w[8], gm[8], dw[8], db[8], dgamma[8], dbias[8];
    fill_f32(w, 0.0f);
    fill_f32(gm, 1.0f);
    fill_f32(dw, 0.0f);
    fill_f32(db, 0.0f);
    fill_f32(dgamma, 0.0f);
    fill_f32(dbias, 0.0f);
    if (t.inside) {
        load_f32(w, weight + t.column);
        if (gamma) load_f32(gm, gamma + t.column);
    }
    unsigned turn = 0;
    for (unsigned long long base = (unsigned long long)blockIdx.x * t.slots; base < rows;
         base += (unsigned long long)gridDim.x * t.slots, turn ^= 1) {
        unsigned long long row = base + t.slot;
        bool here = t.inside && row < rows;
        float v[8], g[8];
        fill_f32(v, 0.0f);
        fill_f32(g, 0.0f);
        Statistics s = {0.0f, 0.0f};
        if (here) {
            load_f32(v, sum + row * width + t.column);
            load_f32(g, grad + row * width + t.column);
            s.mean = mean[row];
            s.rstd = rstd[row];
        }
        float a[8], br[8];
        fill_f32(a, 0.0f);
        if (here) {
            if (add) load_f32(a, add + row * width + t.column);
            load_f32(br, branch + row * width + t.column);
        }
        norm_gradient(v, g, w, s, t, width, parts[turn], dw, db);
        if (!here) continue;
        float factor = factors ? factors[(unsigned)row / tokens] : 1.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] += a[i];
            float scaled = v[i] * factor;
            dgamma[i] = fmaf(scaled, br[i], dgamma[i]);
            a[i] = scaled * gm[i];
            dbias[i] += a[i];
        }
        store_f32(dx + row * width + t.column, v);
        store_f32(dbranch + row * width + t.column, a);
    }
    float *to = partials + (unsigned long long)blockIdx.x * 4 * width;
    store_sums(dw, t, to);
    store_sums(db, t, to + width);
    store_sums(dgamma, t, to + 2 * width);
    store_sums(dbias, t, to + 3 * width);
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

extern "C" __global__ void __launch_bounds__(512)
    residual_norm_forward_f32_f32(const float *x, const float *branch, const float *gamma, const float *factors,
                                  unsigned tokens, const float *weight, const float *bias, float *sum, float *y, float
                                  *mean, float *rstd, unsigned long long rows, unsigned width, float eps) {
    residual_norm_forward<float, float>(x, branch, gamma, factors, tokens, weight, bias, sum, y, mean, rstd, rows,
                                        width, eps);
}

extern "C" __global__ void __launch_bounds__(512)
    residual_norm_forward_f32_bf16(const float *x, const float *branch, const float *gamma, const float *factors,
                                   unsigned tokens, const float *weight, const float *bias, float *sum, bf16 *y, float
                                   *mean, float *rstd, unsigned long long rows, unsigned width, float eps) {
    residual_norm_forward<float, bf16>(x, branch, gamma, factors, tokens, weight, bias, sum, y, mean, rstd, rows,
                                       width, eps);
}

extern "C" __global__ void __launch_bounds__(512)
    residual_norm_forward_bf16_f32(const float *x, const bf16 *branch, const float *gamma, const float *factors,
                                   unsigned tokens, const float *weight, const float *bias, float *sum, float *y,
                                   float *mean, float *rstd, unsigned long long rows, unsigned width, float eps) {
    residual_norm_forward<bf16, float>(x, branch, gamma, factors, tokens, weight, bias, sum, y, mean, rstd, rows,
                                       width, eps);
}

extern "C" __global__ void __launch_bounds__(512)
    residual_norm_forward_bf16_bf16(const float *x, const bf16 *branch, const float *gamma, const float *factors,
                                    unsigned tokens, const float *weight, const float *bias, float *sum, bf16 *y,
                                    float *mean, float *rstd, unsigned long long rows, unsigned width, float eps) {
    residual_norm_forward<bf16, bf16>(x, branch, gamma, factors, tokens, weight, bias, sum, y, mean, rstd, rows,
                                      width, eps);
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

extern "C" __global__ void __launch_bounds__(512)
    residual_norm_backward_f32_f32(const float *sum, const float *weight, const float *mean, const float *rstd, const
                                   float *grad, const float *add, const float *branch, const float *gamma, const float
                                   *factors, unsigned tokens, float *dx, float *dbranch, float *partials, unsigned
                                   long long rows, unsigned width) {
    residual_norm_backward<float, float>(sum, weight, mean, rstd, grad, add, branch, gamma, factors, tokens, dx,
                                         dbranch, partials, rows, width);
}

extern "C" __global__ void __launch_bounds__(512)
    residual_norm_backward_bf16_bf16(const float *sum, const float *weight, const float *mean, const float *rstd,
                                     const bf16 *grad, const float *add, const bf16 *branch, const float *gamma, const
                                     float *factors, unsigned tokens, float *dx, bf16 *dbranch, float *partials,
                                     unsigned long long rows, unsigned width) {
    residual_norm_backward<bf16, bf16>(sum, weight, mean, rstd, grad, add, branch, gamma, factors, tokens, dx,
                                       dbranch, partials, rows, width);
}
