// Sums over rows of a matrix: bias gradients. Here alone; passes over rows that sum columns on the way (layer norm, GELU, residual
// branches) leave partial sums to `columns_finish` too.
#include "device.cuh"

// partials: [gridDim.y, width]. `pitch`: elements from a row of x to the next.
template <typename T>
static __device__ void column_sums(const T *__restrict__ x, float *__restrict__ partials, unsigned long long rows,
                                   unsigned width, unsigned pitch) {
    ColumnThread t = column_thread(width);
    float sums[8];
    fill_f32(sums, 0.0f);
    if (t.inside) {
#pragma unroll 4
        for (; t.row < rows; t.row += t.step) {
            float v[8];
            load_f32(v, x + t.row * pitch + t.column);
#pragma unroll
            for (int i = 0; i < 8; i++) sums[i] += v[i];
        }
    }
    store_columns(sums, partials + (unsigned long long)blockIdx.y * width, width);
}

extern "C" __global__ void __launch_bounds__(256)
    columns_f32(const float *x, float *partials, unsigned long long rows, unsigned width, unsigned pitch) {
    column_sums<float>(x, partials, rows, width, pitch);
}

extern "C" __global__ void __launch_bounds__(256)
    columns_bf16(const bf16 *x, float *partials, unsigned long long rows, unsigned width, unsigned pitch) {
    column_sums<bf16>(x, partials, rows, width, pitch);
}

// The same of any width, without a pitch. A block has 32 columns; its 8 warps take every `8 * gridDim.y`th row.
extern "C" __global__ void __launch_bounds__(256)
    columns_any_f32(const float *__restrict__ x, float *__restrict__ partials, unsigned long long rows, unsigned width) {
    __shared__ float warps[8][32];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 4
        for (unsigned long long row = blockIdx.y * 8 + warp; row < rows; row += gridDim.y * 8) sum += x[row * width + column];
    }
    warps[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
#pragma unroll
        for (int i = 1; i < 8; i++) sum += warps[i][lane];
        partials[(unsigned long long)blockIdx.y * width + column] = sum;
    }
}

struct ColumnSum {
    const float *partials;
    float *to;
    unsigned rows, width, pitch;
    unsigned first;  // block of the grid
};

struct ColumnSums {
    unsigned count;
    ColumnSum sums[96];
};

// The second stage of every sum over rows: `to [width]` is the sum of `rows` rows of partials, in order. A block has 32
// columns of one sum; its 16 warps take rows in turn.
extern "C" __global__ void __launch_bounds__(512) columns_finish(ColumnSums table) {
    __shared__ float warps[16][32];
    unsigned which = 0;
    while (which + 1 < table.count && table.sums[which + 1].first <= blockIdx.x) which++;
    const ColumnSum &s = table.sums[which];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned column = (blockIdx.x - s.first) * 32 + lane;
    float sum = 0.0f;
    if (column < s.width) {
#pragma unroll 8
        for (unsigned row = warp; row < s.rows; row += 16) sum += s.partials[(unsigned long long)row * s.pitch + column];
    }
    warps[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < s.width) {
#pragma unroll
        for (int i = 1; i < 16; i++) sum += warps[i][lane];
        s.to[column] = sum;
    }
}
