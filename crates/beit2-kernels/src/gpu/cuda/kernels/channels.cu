// Batch normalization of rows x [rows, width] by channels: moments, the affine map with or without ReLU, gradients. A first
// stage leaves partial sums [gridDim.y, width], which `columns_finish` adds up.
#include "device.cuh"

// (x - mean) * scale + shift of 8 channels, as all passes compute it: they agree about where a ReLU is at 0.
struct Lines {
    float mean[8], scale[8], shift[8], rstd[8];
    // `var`: the scale still has to be divided by the deviation; null: rstd is 1.
    __device__ __forceinline__ void load(const float *mean_at, const float *var, const float *scale_at, const float *shift_at,
                                         float eps, unsigned column) {
        load_f32(mean, mean_at + column);
        load_f32(scale, scale_at + column);
        load_f32(shift, shift_at + column);
        fill_f32(rstd, 1.0f);
        if (var) {
            load_f32(rstd, var + column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                rstd[i] = 1.0f / sqrtf(rstd[i] + eps);
                scale[i] *= rstd[i];
            }
        }
    }
    __device__ __forceinline__ float at(int i, float x) const { return fmaf(x - mean[i], scale[i], shift[i]); }
};

// Partial sums of factor * x, or with a mean of factor * (x - mean)^2.
extern "C" __global__ void __launch_bounds__(256)
    channels_sums(const float *__restrict__ x, const float *__restrict__ mean, float *__restrict__ partials,
                  unsigned long long rows, unsigned width, float factor) {
    ColumnThread t = column_thread(width);
    float sums[8], m[8];
    fill_f32(sums, 0.0f);
    fill_f32(m, 0.0f);
    if (t.inside) {
        if (mean) load_f32(m, mean + t.column);
#pragma unroll 4
        for (; t.row < rows; t.row += t.step) {
            float v[8];
            load_f32(v, x + t.row * width + t.column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float d = v[i] - m[i];
                sums[i] = mean ? fmaf(d, d, sums[i]) : sums[i] + d;
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i] *= factor;
    }
    store_columns(sums, partials + (unsigned long long)blockIdx.y * width, width);
}

// y = (x - mean) * a + b, where a is `scale` (over the deviation, with `var`) times `scale_factor` and b is `shift` times
// `shift_factor`; what is below 0 becomes 0 if `relu`.
extern "C" __global__ void __launch_bounds__(256)
    channels_norm(const float *__restrict__ x, const float *mean, const float *var, const float *scale, const float *shift,
                  float *__restrict__ y, unsigned long long rows, unsigned width, float eps, float scale_factor,
                  float shift_factor, unsigned relu) {
    ColumnThread t = column_thread(width);
    if (!t.inside) return;
    Lines lines;
    lines.load(mean, var, scale, shift, eps, t.column);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        lines.scale[i] *= scale_factor;
        lines.shift[i] *= shift_factor;
    }
#pragma unroll 2
    for (; t.row < rows; t.row += t.step) {
        float v[8];
        load_f32(v, x + t.row * width + t.column);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = lines.at(i, v[i]);
            if (relu && v[i] < 0.0f) v[i] = 0.0f;  // a NaN stays
        }
        store_f32(y + t.row * width + t.column, v);
    }
}

// Partial sums of the gradient g where the ReLU is open, and of g * (x - mean), over the deviation with `var`.
extern "C" __global__ void __launch_bounds__(256)
    channels_gradient_sums(const float *__restrict__ x, const float *__restrict__ grad, const float *mean, const float *var,
                           const float *scale, const float *shift, float *__restrict__ of_shift, float *__restrict__ of_scale,
                           unsigned long long rows, unsigned width, float eps, unsigned relu) {
    ColumnThread t = column_thread(width);
    float plain[8], centred[8];
    fill_f32(plain, 0.0f);
    fill_f32(centred, 0.0f);
    if (t.inside) {
        Lines lines;
        lines.load(mean, var, scale, shift, eps, t.column);
#pragma unroll 2
        for (; t.row < rows; t.row += t.step) {
            float v[8], g[8];
            load_f32(v, x + t.row * width + t.column);
            load_f32(g, grad + t.row * width + t.column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (relu && !(lines.at(i, v[i]) > 0.0f)) g[i] = 0.0f;
                plain[i] += g[i];
                centred[i] = fmaf(g[i], v[i] - lines.mean[i], centred[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) centred[i] *= lines.rstd[i];
    }
    store_columns(plain, of_shift + (unsigned long long)blockIdx.y * width, width);
    store_columns(centred, of_scale + (unsigned long long)blockIdx.y * width, width);
}

// The gradient of x. With `var`, mean and variance are those of x itself, over `1 / share` rows: dscale and dshift are the
// finished sums. Without, they are constants; their gradients are dscale, dshift and dmean, which the first blocks write.
extern "C" __global__ void __launch_bounds__(256)
    channels_gradient(const float *__restrict__ x, const float *__restrict__ grad, const float *mean, const float *var,
                      const float *scale, const float *shift, const float *__restrict__ dscale,
                      const float *__restrict__ dshift, float *__restrict__ dmean, float *__restrict__ dx,
                      unsigned long long rows, unsigned width, float eps, float share, unsigned relu) {
    ColumnThread t = column_thread(width);
    if (!t.inside) return;
    Lines lines;
    lines.load(mean, var, scale, shift, eps, t.column);
    float level[8], slope[8];
    load_f32(level, dshift + t.column);
    if (dmean && t.row == 0) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = -lines.scale[i] * level[i];
        store_f32(dmean + t.column, v);
    }
    load_f32(slope, dscale + t.column);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        level[i] = var ? level[i] * share : 0.0f;
        slope[i] = var ? slope[i] * share * lines.rstd[i] : 0.0f;
    }
#pragma unroll 2
    for (; t.row < rows; t.row += t.step) {
        float v[8], g[8];
        load_f32(v, x + t.row * width + t.column);
        load_f32(g, grad + t.row * width + t.column);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (relu && !(lines.at(i, v[i]) > 0.0f)) g[i] = 0.0f;
            g[i] = lines.scale[i] * (g[i] - level[i] - (v[i] - lines.mean[i]) * slope[i]);
        }
        store_f32(dx + t.row * width + t.column, g);
    }
}

struct Running {
    const float *mean, *var, *seen_mean, *seen_var;  // seen: of a batch
    const int *batches;
    float *new_mean, *new_var;
    int *new_batches;
    unsigned width;
    float unbiased;  // what makes the variance that of a sample
};

struct RunningTable {
    Running norms[48];
    float keep, take;
};

// Takes a batch into the running statistics of many norms: a block for each.
extern "C" __global__ void __launch_bounds__(256) channels_record(const __grid_constant__ RunningTable table) {
    const Running &n = table.norms[blockIdx.x];
    for (unsigned i = threadIdx.x; i < n.width; i += 256) {
        n.new_mean[i] = n.mean[i] * table.keep + n.seen_mean[i] * table.take;
        n.new_var[i] = n.var[i] * table.keep + n.seen_var[i] * n.unbiased * table.take;
    }
    if (threadIdx.x == 0) *n.new_batches = *n.batches + 1;
}
