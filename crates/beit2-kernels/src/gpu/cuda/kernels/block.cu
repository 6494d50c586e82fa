// What a Transformer block needs beside matmuls, attention, norms and GELU: its parameters as the matmuls read them, the
// passes of its backward half that make two results of one reading, and the gradients of layer scale.
//
// Layer scale is multiplied into the weights and biases of the layer before it. A branch is then scaled when it is made,
// no pass over a branch knows of it, and its gradient comes from those of weight and bias (`block_finish`).
//
// Sums over rows leave a block as one row of `partials`; `columns_finish` adds those up in order.
#include "device.cuh"
#include "gelu.cuh"
#include "norm.cuh"

// -- Parameters ---------------------------------------------------------------------------------------------------------

// `count` f32 as bf16, or as they are, each row times a number. `count` and `width` are multiples of 8, or `width` is 1.
struct PackPart {
    unsigned long long to; // bytes from the beginning of a block's packed parameters
    unsigned long long count;
    unsigned width;
    unsigned first; // block of the grid
    int from;       // which of a block's parameters; -1, or one that it does not have: zeros
    int factors;    // one number for each row; -1, or one that it does not have: 1
    unsigned to_f32;
    unsigned unused;
};

struct Pack {
    unsigned parts_count, unused;
    PackPart parts[14];
    char *to[24];
    const float *parameters[24][15];
};

// Blocks of 256 threads take 4096 numbers each. Grid (as many as the parts need, Transformer blocks).
extern "C" __global__ void __launch_bounds__(256) block_pack(const Pack table) {
    unsigned which = 0;
    while (which + 1 < table.parts_count && table.parts[which + 1].first <= blockIdx.x) which++;
    const PackPart &p = table.parts[which];
    const float *from = p.from < 0 ? nullptr : table.parameters[blockIdx.y][p.from];
    const float *factors = p.factors < 0 ? nullptr : table.parameters[blockIdx.y][p.factors];
    char *to = table.to[blockIdx.y] + p.to;
    unsigned long long at = (unsigned long long)(blockIdx.x - p.first) * 4096 + threadIdx.x * 8;
#pragma unroll
    for (int i = 0; i < 2; i++, at += 2048) {
        if (at >= p.count) return;
        float v[8];
        fill_f32(v, 0.0f);
        if (from) load_f32(v, from + at);
        if (factors) {
            float f[8];
            if (p.width == 1) load_f32(f, factors + at);
            else fill_f32(f, factors[at / p.width]);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] *= f[j];
        }
        if (p.to_f32) store_f32((float *)to + at, v);
        else store_f32((bf16 *)to + at, v);
    }
}

// -- Chosen tokens ------------------------------------------------------------------------------------------------------

// Rows `local[b, r]` of x and of norm 1's output. Grid (R, B).
extern "C" __global__ void __launch_bounds__(256)
    block_choose(const float *__restrict__ x, const bf16 *__restrict__ norm, const int *__restrict__ local,
                 float *__restrict__ chosen_x, bf16 *__restrict__ chosen_norm, unsigned tokens, unsigned width) {
    unsigned long long to = (unsigned long long)blockIdx.y * gridDim.x + blockIdx.x;
    unsigned long long from = (unsigned long long)blockIdx.y * tokens + local[to];
    for (unsigned d = threadIdx.x * 8; d < width; d += blockDim.x * 8) {
        float v[8];
        load_f32(v, x + from * width + d);
        store_f32(chosen_x + to * width + d, v);
        store(chosen_norm + to * width + d, load<8>(norm + from * width + d));
    }
}

// The way back: dx is the gradient of a chosen row and 0 elsewhere, dnorm becomes dnorm + that of a chosen row. No token is
// chosen twice. Grid (T, B).
extern "C" __global__ void __launch_bounds__(256)
    block_spread(const float *__restrict__ chosen_dx, const bf16 *__restrict__ chosen_dnorm,
                 const int *__restrict__ local, float *__restrict__ dx, bf16 *__restrict__ dnorm, unsigned count,
                 unsigned width) {
    __shared__ int found;
    if (threadIdx.x == 0) found = -1;
    __syncthreads();
    const int *places = local + (unsigned long long)blockIdx.y * count;
    for (unsigned r = threadIdx.x; r < count; r += blockDim.x)
        if (places[r] == (int)blockIdx.x) found = (int)r;
    __syncthreads();
    int r = found;
    unsigned long long to = ((unsigned long long)blockIdx.y * gridDim.x + blockIdx.x) * width;
    unsigned long long from = ((unsigned long long)blockIdx.y * count + (r < 0 ? 0 : r)) * width;
    for (unsigned d = threadIdx.x * 8; d < width; d += blockDim.x * 8) {
        float v[8];
        fill_f32(v, 0.0f);
        if (r >= 0) {
            float a[8], b[8];
            load_f32(v, chosen_dx + from + d);
            load_f32(a, dnorm + to + d);
            load_f32(b, chosen_dnorm + from + d);
#pragma unroll
            for (int i = 0; i < 8; i++) a[i] += b[i];
            store_f32(dnorm + to + d, a);
        }
        store_f32(dx + to + d, v);
    }
}

// -- Backward passes ----------------------------------------------------------------------------------------------------

// The gradient of a branch from that of the sum it was added to: branch = factor * grad, and its column sums, the gradient
// of the bias that the branch ends with. `factors` [rows / tokens] may be null. partials: [gridDim.y, width].
extern "C" __global__ void __launch_bounds__(256)
    block_branch_backward(const float *__restrict__ grad, const float *__restrict__ factors, unsigned tokens,
                          bf16 *__restrict__ branch, float *__restrict__ partials, unsigned long long rows,
                          unsigned width) {
    ColumnThread t = column_thread(width);
    float sums[8];
    fill_f32(sums, 0.0f);
    if (t.inside) {
        for (; t.row < rows; t.row += t.step) {
            float v[8];
            load_f32(v, grad + t.row * width + t.column);
            float factor = factors ? factors[(unsigned)t.row / tokens] : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                v[i] *= factor;
                sums[i] += v[i];
            }
            store_f32(branch + t.row * width + t.column, v);
        }
    }
    store_columns(sums, partials + (unsigned long long)blockIdx.y * width, width);
}

// GELU and its gradient from the values before it: `after` = gelu(x), which the forward pass did not keep, `grad` becomes
// grad * gelu'(x). partials: the column sums of the latter, the gradient of the bias before GELU.
extern "C" __global__ void __launch_bounds__(256)
    block_gelu_backward(const bf16 *__restrict__ x, bf16 *__restrict__ grad, bf16 *__restrict__ after,
                        float *__restrict__ partials, unsigned long long rows, unsigned width) {
    ColumnThread t = column_thread(width);
    float sums[8];
    fill_f32(sums, 0.0f);
    if (t.inside) {
        for (; t.row < rows; t.row += t.step) {
            unsigned long long at = t.row * width + t.column;
            float v[8], g[8];
            load_f32(v, x + at);
            load_f32(g, grad + at);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                Gelu both = gelu_both(v[i]);
                v[i] = both.value;
                g[i] *= both.slope;
                sums[i] += g[i];
            }
            store_f32(after + at, v);
            store_f32(grad + at, g);
        }
    }
    store_columns(sums, partials + (unsigned long long)blockIdx.y * width, width);
}

// The gradient before a norm, plus `add`, to `dx`, which may be `add`; and what of it belongs to the branch that was added
// before the norm, as in `block_branch_backward`. partials: [gridDim.x, 3 * width], of the norm's weight and bias and of the
// branch's bias.
extern "C" __global__ void __launch_bounds__(512)
    block_norm_backward(const float *__restrict__ x, const float *__restrict__ weight, const float *__restrict__ mean,
                        const float *__restrict__ rstd, const bf16 *__restrict__ grad, const float *add, float *dx,
                        const float *__restrict__ factors, unsigned tokens, bf16 *__restrict__ branch,
                        float *__restrict__ partials, unsigned long long rows, unsigned width) {
    __shared__ float2 parts[2][16];
    RowThread t = row_thread(width);
    float w[8], dw[8], db[8], dbranch[8];
    fill_f32(w, 0.0f);
    fill_f32(dw, 0.0f);
    fill_f32(db, 0.0f);
    fill_f32(dbranch, 0.0f);
    if (t.inside) load_f32(w, weight + t.column);
    unsigned turn = 0;
    for (unsigned long long base = (unsigned long long)blockIdx.x * t.slots; base < rows;
         base += (unsigned long long)gridDim.x * t.slots, turn ^= 1) {
        unsigned long long row = base + t.slot, at = row * width + t.column;
        bool here = t.inside && row < rows;
        float v[8], g[8], a[8];
        fill_f32(v, 0.0f);
        fill_f32(g, 0.0f);
        fill_f32(a, 0.0f);
        Statistics s = {0.0f, 0.0f};
        if (here) {
            load_f32(v, x + at);
            load_f32(g, grad + at);
            load_f32(a, add + at);
            s.mean = mean[row];
            s.rstd = rstd[row];
        }
        norm_gradient(v, g, w, s, t, width, parts[turn], dw, db);
        if (!here) continue;
        float factor = factors ? factors[(unsigned)row / tokens] : 1.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] += a[i];
            a[i] = v[i] * factor;
            dbranch[i] += a[i];
        }
        store_f32(dx + at, v);
        store_f32(branch + at, a);
    }
    float *to = partials + (unsigned long long)blockIdx.x * 3 * width;
    store_sums(dw, t, to);
    store_sums(db, t, to + width);
    store_sums(dbranch, t, to + 2 * width);
}

// -- Gradients of parameters --------------------------------------------------------------------------------------------

// A layer whose weight [outputs, inputs] and bias [outputs] are multiplied by gamma [outputs]. `dweight` and `dbias` hold the
// gradients of the products and become those of weight and bias.
struct ScaledLayer {
    const float *weight, *bias, *gamma;
    float *dweight, *dbias, *dgamma;
    unsigned inputs, unused;
};

// What is left to do for the gradients of one Transformer block.
struct Finish {
    ScaledLayer layers[2];
    const float *sums; // [3, width]: column sums of the gradient of q, k and v
    float *dq, *dv;    // [width]
};

struct Finishes {
    unsigned outputs; // of both layers; 0: no layer scale
    unsigned width;   // of each part of `sums`; 0: no biases of queries and values
    Finish blocks[24];
};

// Blocks of 256 threads: one for each output of the first layer, then of the second, then for the biases. Grid (these,
// Transformer blocks).
extern "C" __global__ void __launch_bounds__(256) block_finish(const Finishes table) {
    const Finish &f = table.blocks[blockIdx.y];
    if (blockIdx.x >= 2 * table.outputs) {
        unsigned at = (blockIdx.x - 2 * table.outputs) * 256 + threadIdx.x;
        if (at < table.width) {
            f.dq[at] = f.sums[at];
            f.dv[at] = f.sums[2 * table.width + at];
        }
        return;
    }
    const ScaledLayer &l = f.layers[blockIdx.x >= table.outputs];
    unsigned row = blockIdx.x % table.outputs;
    float gamma = l.gamma[row], sum = 0.0f;
    const float *weight = l.weight + (unsigned long long)row * l.inputs;
    float *dweight = l.dweight + (unsigned long long)row * l.inputs;
    for (unsigned at = threadIdx.x * 4; at < l.inputs; at += 1024) {
        float w[4], d[4];
        load_f32(w, weight + at);
        load_f32(d, dweight + at);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum = fmaf(w[i], d[i], sum);
            d[i] *= gamma;
        }
        store_f32(dweight + at, d);
    }
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) {
        float dbias = l.dbias[row];
        l.dgamma[row] = fmaf(l.bias[row], dbias, sum);
        l.dbias[row] = dbias * gamma;
    }
}
