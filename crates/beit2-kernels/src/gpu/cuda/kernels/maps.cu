// Maps [batch, height, width, channels] resized and put side by side, pooled, and multiplied by a factor for each channel of an
// image. A thread has 4 channels of a pixel; where channels do not come in fours, one.
#include "device.cuh"

struct Map {
    unsigned batch, rows, cols, channels;
};

template <int N> struct Place {
    unsigned image, row, col, channel;
};

// The place of a thread in a grid over `batch * rows * cols` pixels; false beyond the last.
template <int N>
static __device__ __forceinline__ bool place_of(Place<N> &p, unsigned batch, unsigned rows, unsigned cols, unsigned channels) {
    unsigned groups = channels / N;
    unsigned at = blockIdx.x * 256 + threadIdx.x;
    unsigned pixel = at / groups, line = pixel / cols;
    p.channel = at % groups * N;
    p.col = pixel % cols;
    p.row = line % rows;
    p.image = line / rows;
    return p.image < batch;
}

static __device__ __forceinline__ unsigned long long at(unsigned image, unsigned row, unsigned col, const Map &map) {
    return (((unsigned long long)image * map.rows + row) * map.cols + col) * map.channels;
}

// The two neighbours of a position among `from` that are resized to `to`, and how much of the second: the position is
// (at + 1/2) * from / to - 1/2, as a fraction of whole numbers.
struct Between {
    unsigned low, high;
    float share;
};

static __device__ __forceinline__ Between between(unsigned at, unsigned from, unsigned to) {
    unsigned over = (2 * at + 1) * from, under = 2 * to;
    over = over > to ? over - to : 0;
    Between b;
    b.low = min(over / under, from - 1);
    b.high = min(b.low + 1, from - 1);
    b.share = (float)(over - b.low * under) / (float)under;
    return b;
}

// What position `at` takes of source `i`.
static __device__ __forceinline__ float weight_of(unsigned at, unsigned i, unsigned from, unsigned to) {
    Between b = between(at, from, to);
    return (b.low == i ? 1.0f - b.share : 0.0f) + (b.high == i ? b.share : 0.0f);
}

// x resized to [height, width] -> channels [first, first + x's) of pixels of `pitch` numbers of y; with `add`, that is added.
template <int N>
static __device__ __forceinline__ void resize(const float *x, const float *add, float *y, const Map &map, unsigned height,
                                              unsigned width, unsigned pitch, unsigned first) {
    Place<N> p;
    if (!place_of<N>(p, map.batch, height, width, map.channels)) return;
    Between r = between(p.row, map.rows, height), c = between(p.col, map.cols, width);
    float sum[N], v[N];
    load_f32(sum, x + at(p.image, r.low, c.low, map) + p.channel);
    // Neighbours that do not count are not read: a NaN there is not here.
    if (c.share > 0.0f) {
        load_f32(v, x + at(p.image, r.low, c.high, map) + p.channel);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = fmaf(c.share, v[i], (1.0f - c.share) * sum[i]);
    }
    if (r.share > 0.0f) {
        float below[N];
        load_f32(below, x + at(p.image, r.high, c.low, map) + p.channel);
        if (c.share > 0.0f) {
            load_f32(v, x + at(p.image, r.high, c.high, map) + p.channel);
#pragma unroll
            for (int i = 0; i < N; i++) below[i] = fmaf(c.share, v[i], (1.0f - c.share) * below[i]);
        }
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = fmaf(r.share, below[i], (1.0f - r.share) * sum[i]);
    }
    unsigned long long to_at = (((unsigned long long)p.image * height + p.row) * width + p.col) * pitch + first + p.channel;
    if (add) {
        load_f32(v, add + to_at);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += v[i];
    }
    store_f32(y + to_at, sum);
}

extern "C" __global__ void __launch_bounds__(256)
    maps_resize_4(const float *x, const float *add, float *y, Map map, unsigned height, unsigned width, unsigned pitch,
                  unsigned first) {
    resize<4>(x, add, y, map, height, width, pitch, first);
}

extern "C" __global__ void __launch_bounds__(256)
    maps_resize_1(const float *x, const float *add, float *y, Map map, unsigned height, unsigned width, unsigned pitch,
                  unsigned first) {
    resize<1>(x, add, y, map, height, width, pitch, first);
}

// The first target position that may take of source `i`, and one after the last.
static __device__ __forceinline__ unsigned first_target(unsigned i, unsigned from, unsigned to) {
    if (i == 0) return 0;
    unsigned low = ((2 * i - 1) * to) / (2 * from);  // one more than half a pixel too early at most
    return low > 1 ? low - 1 : 0;
}
static __device__ __forceinline__ unsigned end_of_targets(unsigned i, unsigned from, unsigned to) {
    if (i + 1 == from) return to;
    return min(((2 * i + 3) * to) / (2 * from) + 1, to);
}

// The gradient of x from that of its part of y.
template <int N>
static __device__ __forceinline__ void resize_backward(const float *grad, float *dx, const Map &map, unsigned height,
                                                       unsigned width, unsigned pitch, unsigned first) {
    Place<N> p;
    if (!place_of<N>(p, map.batch, map.rows, map.cols, map.channels)) return;
    float sum[N];
    fill_f32(sum, 0.0f);
    unsigned rows_end = end_of_targets(p.row, map.rows, height), cols_end = end_of_targets(p.col, map.cols, width);
    unsigned cols_begin = first_target(p.col, map.cols, width);
    for (unsigned row = first_target(p.row, map.rows, height); row < rows_end; row++) {
        float of_row = weight_of(row, p.row, map.rows, height);
        if (of_row == 0.0f) continue;
        const float *line = grad + ((unsigned long long)p.image * height + row) * width * pitch + first + p.channel;
        for (unsigned col = cols_begin; col < cols_end; col++) {
            float share = of_row * weight_of(col, p.col, map.cols, width);
            if (share == 0.0f) continue;
            float v[N];
            load_f32(v, line + (unsigned long long)col * pitch);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = fmaf(share, v[i], sum[i]);
        }
    }
    store_f32(dx + at(p.image, p.row, p.col, map) + p.channel, sum);
}

extern "C" __global__ void __launch_bounds__(256)
    maps_resize_backward_4(const float *grad, float *dx, Map map, unsigned height, unsigned width, unsigned pitch,
                           unsigned first) {
    resize_backward<4>(grad, dx, map, height, width, pitch, first);
}

extern "C" __global__ void __launch_bounds__(256)
    maps_resize_backward_1(const float *grad, float *dx, Map map, unsigned height, unsigned width, unsigned pitch,
                           unsigned first) {
    resize_backward<1>(grad, dx, map, height, width, pitch, first);
}

// Cell `i` of `side` cells over `from` pixels, which may overlap by a pixel.
static __device__ __forceinline__ unsigned cell_begin(unsigned i, unsigned from, unsigned side) { return i * from / side; }
static __device__ __forceinline__ unsigned cell_end(unsigned i, unsigned from, unsigned side) {
    return ((i + 1) * from + side - 1) / side;
}

// Means over cells, y [batch, side, side, channels]. A block has a cell and 32 channels, its 8 warps take pixels in turn.
extern "C" __global__ void __launch_bounds__(256) maps_cell_means(const float *x, float *y, Map map, unsigned side) {
    __shared__ float warps[8][32];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned channel = blockIdx.y * 32 + lane;
    unsigned image = blockIdx.x / (side * side), row = blockIdx.x / side % side, col = blockIdx.x % side;
    unsigned top = cell_begin(row, map.rows, side), left = cell_begin(col, map.cols, side);
    unsigned height = cell_end(row, map.rows, side) - top, width = cell_end(col, map.cols, side) - left;
    float sum = 0.0f;
    if (channel < map.channels) {
#pragma unroll 4
        for (unsigned pixel = warp; pixel < height * width; pixel += 8)
            sum += x[at(image, top + pixel / width, left + pixel % width, map) + channel];
    }
    warps[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && channel < map.channels) {
#pragma unroll
        for (int i = 1; i < 8; i++) sum += warps[i][lane];
        y[(unsigned long long)blockIdx.x * map.channels + channel] = sum / (float)(height * width);
    }
}

// The gradient of x from that of the means.
template <int N>
static __device__ __forceinline__ void cell_means_backward(const float *grad, float *dx, const Map &map, unsigned side) {
    Place<N> p;
    if (!place_of<N>(p, map.batch, map.rows, map.cols, map.channels)) return;
    float sum[N];
    fill_f32(sum, 0.0f);
    unsigned row = p.row * side / map.rows, col = p.col * side / map.cols;  // the last cells that begin here or before
    for (unsigned i = row ? row - 1 : 0; i < side && cell_begin(i, map.rows, side) <= p.row; i++) {
        unsigned height = cell_end(i, map.rows, side) - cell_begin(i, map.rows, side);
        if (cell_end(i, map.rows, side) <= p.row) continue;
        for (unsigned j = col ? col - 1 : 0; j < side && cell_begin(j, map.cols, side) <= p.col; j++) {
            unsigned width = cell_end(j, map.cols, side) - cell_begin(j, map.cols, side);
            if (cell_end(j, map.cols, side) <= p.col) continue;
            float v[N], share = 1.0f / (float)(height * width);
            load_f32(v, grad + (((unsigned long long)p.image * side + i) * side + j) * map.channels + p.channel);
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] = fmaf(share, v[k], sum[k]);
        }
    }
    store_f32(dx + at(p.image, p.row, p.col, map) + p.channel, sum);
}

extern "C" __global__ void __launch_bounds__(256)
    maps_cell_means_backward_4(const float *grad, float *dx, Map map, unsigned side) {
    cell_means_backward<4>(grad, dx, map, side);
}

extern "C" __global__ void __launch_bounds__(256)
    maps_cell_means_backward_1(const float *grad, float *dx, Map map, unsigned side) {
    cell_means_backward<1>(grad, dx, map, side);
}

// The largest of a square of `side` pixels, of equal ones the first in the first column that has one, and where it is.
static __device__ __forceinline__ float largest(const float *x, const Map &map, unsigned side, unsigned image, unsigned row,
                                                unsigned col, unsigned channel, unsigned &which) {
    float best = 0.0f;
    for (unsigned j = 0; j < side; j++) {
        for (unsigned i = 0; i < side; i++) {
            float v = x[at(image, row * side + i, col * side + j, map) + channel];
            // A NaN is larger than all.
            if ((i == 0 && j == 0) || (best == best && !(v <= best))) {
                best = v;
                which = i * side + j;
            }
        }
    }
    return best;
}

// y [batch, rows / side, cols / side, channels]
extern "C" __global__ void __launch_bounds__(256) maps_max(const float *x, float *y, Map map, unsigned side) {
    Place<1> p;
    if (!place_of<1>(p, map.batch, map.rows / side, map.cols / side, map.channels)) return;
    unsigned which, pixel = (p.image * (map.rows / side) + p.row) * (map.cols / side) + p.col;
    y[(unsigned long long)pixel * map.channels + p.channel] = largest(x, map, side, p.image, p.row, p.col, p.channel, which);
}

// The gradient goes to the largest; what squares leave over at the end gets 0.
extern "C" __global__ void __launch_bounds__(256)
    maps_max_backward(const float *x, const float *grad, float *dx, Map map, unsigned side) {
    Place<1> p;
    if (!place_of<1>(p, map.batch, map.rows, map.cols, map.channels)) return;
    unsigned row = p.row / side, col = p.col / side;
    float value = 0.0f;
    if (row < map.rows / side && col < map.cols / side) {
        unsigned which = 0, pixel = (p.image * (map.rows / side) + row) * (map.cols / side) + col;
        largest(x, map, side, p.image, row, col, p.channel, which);
        if (which == p.row % side * side + p.col % side) value = grad[(unsigned long long)pixel * map.channels + p.channel];
    }
    dx[at(p.image, p.row, p.col, map) + p.channel] = value;
}

// y = x * factors [batch, channels]
template <int N>
static __device__ __forceinline__ void scale(const float *x, const float *factors, float *y, const Map &map) {
    Place<N> p;
    if (!place_of<N>(p, map.batch, map.rows, map.cols, map.channels)) return;
    float v[N], f[N];
    unsigned long long here = at(p.image, p.row, p.col, map) + p.channel;
    load_f32(v, x + here);
    load_f32(f, factors + (unsigned long long)p.image * map.channels + p.channel);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] *= f[i];
    store_f32(y + here, v);
}

extern "C" __global__ void __launch_bounds__(256) maps_scale_4(const float *x, const float *factors, float *y, Map map) {
    scale<4>(x, factors, y, map);
}

extern "C" __global__ void __launch_bounds__(256) maps_scale_1(const float *x, const float *factors, float *y, Map map) {
    scale<1>(x, factors, y, map);
}
