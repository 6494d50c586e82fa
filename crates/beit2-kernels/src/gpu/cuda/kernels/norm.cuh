// How the threads of a block share rows of a matrix whose statistics they need, and what is computed of a row.
#pragma once

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
