// The quantizer around its codebook: rows of unit length, codes in their place, the moving average that the codes are.
// A warp has a row to itself; rows have any width.
#include "device.cuh"

// Norms below this are taken for it, so that a row of zeros stays one.
#define SHORTEST 1e-12f

struct RowThread {
    unsigned long long row, at; // at: of the row's first element
    unsigned lane;
};

static __device__ __forceinline__ RowThread row_thread(unsigned width) {
    RowThread t;
    t.row = (unsigned long long)blockIdx.x * 8 + threadIdx.x / 32;
    t.at = t.row * width;
    t.lane = threadIdx.x % 32;
    return t;
}

// The norm of a row, from each lane's sum of squares; NaN stays.
static __device__ __forceinline__ float row_norm(float squares) {
    float norm = sqrtf(warp_sum(squares));
    return norm < SHORTEST ? SHORTEST : norm;
}

// y = x / norm of the row; `norms [rows]` may be null, and `y` may be `x`.
extern "C" __global__ void __launch_bounds__(256)
    unit_rows_forward(const float *x, float *y, float *norms, unsigned long long rows, unsigned width) {
    RowThread t = row_thread(width);
    if (t.row >= rows) return;
    float squares = 0.0f;
    for (unsigned c = t.lane; c < width; c += 32) squares += x[t.at + c] * x[t.at + c];
    float norm = row_norm(squares);
    for (unsigned c = t.lane; c < width; c += 32) y[t.at + c] = x[t.at + c] / norm;
    if (norms && t.lane == 0) norms[t.row] = norm;
}

// dx = (grad - y (y . grad)) / norm; `dx` may be `grad`.
extern "C" __global__ void __launch_bounds__(256)
    unit_rows_backward(const float *__restrict__ y, const float *__restrict__ norms, const float *grad, float *dx,
                       unsigned long long rows, unsigned width) {
    RowThread t = row_thread(width);
    if (t.row >= rows) return;
    float along = 0.0f, norm = norms[t.row];
    for (unsigned c = t.lane; c < width; c += 32) along += y[t.at + c] * grad[t.at + c];
    along = warp_sum(along);
    // A norm that was too short is a constant.
    if (norm == SHORTEST) along = 0.0f;
    for (unsigned c = t.lane; c < width; c += 32) dx[t.at + c] = (grad[t.at + c] - y[t.at + c] * along) / norm;
}

// The nearest of what `nearest_code_part` found in `parts` (at most 32) parts, `best` and `of_parts` [parts, rows]; of equals that of
// the first part. Its number goes to `ids`, the code to `codes` as z + (code - z), share * |code - z|^2 to `losses [rows]`.
extern "C" __global__ void __launch_bounds__(256)
    quantize_rows(const float *__restrict__ z, const float *__restrict__ codebook, const float *__restrict__ best,
                  const int *__restrict__ of_parts, int *__restrict__ ids, float *__restrict__ codes,
                  float *__restrict__ losses, unsigned long long rows, unsigned width, unsigned parts, float share) {
    RowThread t = row_thread(width);
    if (t.row >= rows) return;
    float top = -INFINITY;
    int id = 0x7fffffff;
    if (t.lane < parts) {
        top = best[t.lane * rows + t.row];
        id = of_parts[t.lane * rows + t.row];
    }
#pragma unroll
    for (int by = 16; by > 0; by /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, top, by);
        int number = __shfl_xor_sync(0xffffffffu, id, by);
        if (other > top || (other == top && number < id)) {
            top = other;
            id = number;
        }
    }
    const float *code = codebook + (unsigned long long)(unsigned)id * width;
    float squares = 0.0f;
    for (unsigned c = t.lane; c < width; c += 32) {
        float from = z[t.at + c], way = code[c] - from;
        codes[t.at + c] = from + way;
        squares += way * way;
    }
    squares = warp_sum(squares);
    if (t.lane == 0) {
        losses[t.row] = squares * share;
        ids[t.row] = id;
    }
}

// dz = (z - code) * upstream * share.
extern "C" __global__ void __launch_bounds__(256)
    commitment_backward(const float *__restrict__ z, const float *__restrict__ codebook, const int *__restrict__ ids,
                        const float *__restrict__ upstream, float *__restrict__ dz, unsigned long long rows,
                        unsigned width, float share) {
    RowThread t = row_thread(width);
    if (t.row >= rows) return;
    const float *code = codebook + (unsigned long long)(unsigned)ids[t.row] * width;
    float scale = *upstream * share;
    for (unsigned c = t.lane; c < width; c += 32) dz[t.at + c] = (z[t.at + c] - code[c]) * scale;
}

// The moving averages: `to_usage` of usage and bins, `to` of each code and the direction of its rows' sum; a code without
// rows keeps its direction. `to` may be `codes`, `to_usage` may be `usage`.
extern "C" __global__ void __launch_bounds__(256)
    update_codes(const float *codes, const float *usage, const float *__restrict__ bins,
                 const float *__restrict__ sums, float *to, float *to_usage, unsigned long long count,
                 unsigned width, float decay, float rest) {
    RowThread t = row_thread(width);
    if (t.row >= count) return;
    float bin = bins[t.row], squares = 0.0f;
    bool used = bin != 0.0f;
    float divisor = used ? bin : 1.0f;
    for (unsigned c = t.lane; c < width; c += 32) {
        float mean = sums[t.at + c] / divisor;
        squares += mean * mean;
    }
    float norm = row_norm(squares);
    squares = 0.0f;
    for (unsigned c = t.lane; c < width; c += 32) {
        float code = codes[t.at + c], mean = used ? sums[t.at + c] / divisor / norm : code;
        float moved = code * decay + mean * rest;
        squares += moved * moved;
    }
    float length = row_norm(squares);
    for (unsigned c = t.lane; c < width; c += 32) {
        float code = codes[t.at + c], mean = used ? sums[t.at + c] / divisor / norm : code;
        to[t.at + c] = (code * decay + mean * rest) / length;
    }
    if (t.lane == 0) to_usage[t.row] = usage[t.row] * decay + bin * rest;
}
