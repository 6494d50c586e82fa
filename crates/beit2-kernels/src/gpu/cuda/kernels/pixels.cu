// Cross entropy of every pixel against its class, of logits `[batch, rows, cols, classes]` that are enlarged (bilinear, centres
// of pixels, clamped) to the size of the labels `[batch, height, width]`. Enlarged logits exist in registers only. The forward
// pass leaves two numbers a pixel; the backward pass computes for each small logit the softmax of the pixels around it
// again, so that nothing is added by two threads.
#include "device.cuh"
#include "softmax.cuh"

struct PixelMap {
    unsigned batch, rows, cols, classes, height, width;
};

// The two neighbours of a position among `from` that are enlarged to `to`, and how much of the second.
struct Between {
    unsigned low, high;
    float share;
};

// The position is (at + 1/2) * from / to - 1/2, as a fraction of whole numbers.
static __device__ __forceinline__ Between between(unsigned at, unsigned from, unsigned to) {
    unsigned over = (2 * at + 1) * from, under = 2 * to;
    over = over > to ? over - to : 0;
    Between b;
    b.low = min(over / under, from - 1);
    b.high = min(b.low + 1, from - 1);
    b.share = (float)(over - b.low * under) / (float)under;
    return b;
}

static __device__ __forceinline__ float mix(float a, float b, float share) {
    return fmaf(share, b - a, a);
}

static __device__ __forceinline__ unsigned label_of(const void *labels, unsigned long long at, bool bytes) {
    return bytes ? ((const unsigned char *)labels)[at] : (unsigned)((const int *)labels)[at];
}

#define IGNORED 255

// A warp takes 32 pixels one after the other, its lanes the classes. `saved` [pixels, 2]: the largest logit and 1 / sum, 0
// for a pixel without a class. sums: [gridDim.x] losses, then [gridDim.x] pixels whose largest logit is their class. Another
// label that is no class gives NaN.
extern "C" __global__ void __launch_bounds__(256)
    pixel_cross_entropy_forward(const float *__restrict__ logits, const void *__restrict__ labels,
                                float2 *__restrict__ saved, float *__restrict__ sums, PixelMap map, unsigned bytes) {
    __shared__ float parts[2][8];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned long long pixels = (unsigned long long)map.batch * map.height * map.width;
    unsigned long long first = ((unsigned long long)blockIdx.x * 8 + warp) * 32;
    float loss = 0.0f, right = 0.0f;
    for (unsigned long long pixel = first; pixel < first + 32 && pixel < pixels; pixel++) {
        unsigned label = label_of(labels, pixel, bytes != 0);
        if (label == IGNORED) {
            if (lane == 0) saved[pixel] = make_float2(0.0f, 0.0f);
            continue;
        }
        unsigned line = (unsigned)(pixel / map.width), image = line / map.height;
        Between y = between(line % map.height, map.rows, map.height);
        Between x = between((unsigned)(pixel % map.width), map.cols, map.width);
        const float *low = logits + ((unsigned long long)image * map.rows + y.low) * map.cols * map.classes;
        const float *high = logits + ((unsigned long long)image * map.rows + y.high) * map.cols * map.classes;
        unsigned long long left = (unsigned long long)x.low * map.classes;
        unsigned long long next = (unsigned long long)x.high * map.classes;
        Softmax s = {-INFINITY, 0.0f, 0xffffffffu};
        float own = 0.0f;
        for (unsigned k = lane; k < map.classes; k += 32) {
            float above = mix(low[left + k], low[next + k], x.share);
            float below = mix(high[left + k], high[next + k], x.share);
            float v[1] = {mix(above, below, y.share)};
            if (k == label) own = v[0];
            take(s, v, k);
        }
        s = warp_softmax(s);
        own = warp_sum(own);
        float own_loss = label < map.classes ? logf(s.sum) - (own - s.top) : NAN;
        loss += own_loss;
        right += s.best == label ? 1.0f : 0.0f;
        if (lane == 0) saved[pixel] = make_float2(s.top, 1.0f / s.sum);
    }
    if (lane == 0) {
        parts[0][warp] = loss;
        parts[1][warp] = right;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
        float sum = 0.0f;
        for (int i = 0; i < 8; i++) sum += parts[threadIdx.x][i];
        sums[(unsigned long long)threadIdx.x * gridDim.x + blockIdx.x] = sum;
    }
}

// Pixels of an axis that may have `at` of `from` as a neighbour; at the border those that are clamped to it have it too.
static __device__ __forceinline__ void around(unsigned at, unsigned from, unsigned to, unsigned &begin, unsigned &end) {
    unsigned low = at == 0 ? 0 : (2 * at - 1) * to / (2 * from);
    begin = low > 0 ? low - 1 : 0;
    end = at + 1 == from ? to : min(to, (2 * at + 3) * to / (2 * from) + 2);
}

static __device__ __forceinline__ float weight_of(const Between &b, unsigned at) {
    return (b.low == at ? 1.0f - b.share : 0.0f) + (b.high == at ? b.share : 0.0f);
}

// A warp takes one small pixel, its lanes the classes: grad [batch, rows, cols, classes] is that of the mean loss. `share`:
// 1 / pixels.
extern "C" __global__ void __launch_bounds__(256)
    pixel_cross_entropy_backward(const float *__restrict__ logits, const void *__restrict__ labels,
                                 const float2 *__restrict__ saved, float *__restrict__ grad, PixelMap map,
                                 unsigned bytes, float share) {
    unsigned lane = threadIdx.x % 32;
    unsigned long long small = (unsigned long long)blockIdx.x * 8 + threadIdx.x / 32;
    if (small >= (unsigned long long)map.batch * map.rows * map.cols) return;
    unsigned col = (unsigned)(small % map.cols);
    unsigned line = (unsigned)(small / map.cols);
    unsigned row = line % map.rows, image = line / map.rows;
    unsigned y_begin, y_end, x_begin, x_end;
    around(row, map.rows, map.height, y_begin, y_end);
    around(col, map.cols, map.width, x_begin, x_end);
    const float *own = logits + (unsigned long long)image * map.rows * map.cols * map.classes;
    for (unsigned k = lane; k < map.classes; k += 32) {
        float sum = 0.0f;
        for (unsigned y = y_begin; y < y_end; y++) {
            Between v = between(y, map.rows, map.height);
            float of_row = weight_of(v, row);
            if (of_row == 0.0f) continue;
            const float *low = own + (unsigned long long)v.low * map.cols * map.classes + k;
            const float *high = own + (unsigned long long)v.high * map.cols * map.classes + k;
            unsigned long long pixel = ((unsigned long long)image * map.height + y) * map.width;
            for (unsigned x = x_begin; x < x_end; x++) {
                Between h = between(x, map.cols, map.width);
                float weight = weight_of(h, col) * of_row;
                float2 softmax = saved[pixel + x];
                if (weight == 0.0f || softmax.y == 0.0f) continue;
                unsigned long long left = (unsigned long long)h.low * map.classes;
                unsigned long long next = (unsigned long long)h.high * map.classes;
                float value = mix(mix(low[left], low[next], h.share), mix(high[left], high[next], h.share), v.share);
                float p = __expf(value - softmax.x) * softmax.y;
                if (k == label_of(labels, pixel + x, bytes != 0)) p -= 1.0f;
                sum = fmaf(weight, p, sum);
            }
        }
        grad[small * map.classes + k] = sum * share;
    }
}

// y = x * by[0]; `y` may be `x`.
extern "C" __global__ void __launch_bounds__(256)
    pixel_cross_entropy_scale(const float *x, const float *by, float *y, unsigned long long count) {
    unsigned long long at = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    float factor = *by;
    if (at + 8 <= count) {
        float v[8];
        load_f32(v, x + at);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= factor;
        store_f32(y + at, v);
    } else {
        for (; at < count; at++) y[at] = x[at] * factor;
    }
}
