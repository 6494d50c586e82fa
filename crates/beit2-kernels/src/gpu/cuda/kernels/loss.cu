// Mean cross entropy over many classes. The forward pass reads the logits once (the softmax's sum follows the running
// maximum) and keeps two numbers a row; the backward pass reads them again and writes the gradient, over the logits if
// nobody else holds them.
#include "device.cuh"
#include "softmax.cuh"

// The softmax of row `x [classes]` over the threads of the block; all of them get it.
static __device__ Softmax row_softmax(const float *__restrict__ x, unsigned classes) {
    __shared__ Softmax warps[8];
    Softmax s = {-INFINITY, 0.0f, 0xffffffffu};
    if (classes % 8 == 0) {
        for (unsigned at = threadIdx.x * 8; at < classes; at += blockDim.x * 8) {
            float v[8];
            load_f32(v, x + at);
            take(s, v, at);
        }
    } else {
        for (unsigned at = threadIdx.x; at < classes; at += blockDim.x) {
            float v[1] = {x[at]};
            take(s, v, at);
        }
    }
    s = warp_softmax(s);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = s;
    __syncthreads();
    s = warps[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++) s = joined(s, warps[i]);
    return s;
}

// One block a row. `losses` [rows], `hits` [rows] (1 where the largest logit is the target's), `saved`
// [rows, 2]: the largest logit and 1 / sum. Every `ids` rows begin with the first target again. A target that is no class
// gives NaN.
extern "C" __global__ void __launch_bounds__(256)
    cross_entropy_forward_f32(const float *__restrict__ logits, const int *__restrict__ targets,
                              float *__restrict__ losses, float *__restrict__ hits, float *__restrict__ saved,
                              unsigned classes, unsigned ids) {
    unsigned long long row = blockIdx.x;
    const float *x = logits + row * classes;
    Softmax s = row_softmax(x, classes);
    if (threadIdx.x == 0) {
        unsigned target = (unsigned)targets[row % ids];
        bool known = target < classes;
        losses[row] = known ? logf(s.sum) - (x[target] - s.top) : NAN;
        hits[row] = s.best == target ? 1.0f : 0.0f;
        saved[row * 2] = s.top;
        saved[row * 2 + 1] = 1.0f / s.sum;
    }
}

// A row of the gradient, (softmax - onehot) * upstream * share.
struct RowGradient {
    unsigned target;
    float scale, top, factor;
    __device__ __forceinline__ RowGradient(const int *targets, const float *saved, const float *upstream, unsigned classes,
                                           unsigned ids, float share) {
        unsigned long long row = blockIdx.x;
        target = (unsigned)targets[row % ids];
        scale = *upstream * share;
        top = saved[row * 2];
        factor = target < classes ? saved[row * 2 + 1] * scale : NAN;
    }
    __device__ __forceinline__ float of(float logit, unsigned at) const {
        return __expf(logit - top) * factor - (at == target ? scale : 0.0f);
    }
    // Of classes whose number is a multiple of 8.
    template <typename T> __device__ __forceinline__ void write(const float *x, T *y, unsigned classes) const {
        for (unsigned at = threadIdx.x * 8; at < classes; at += blockDim.x * 8) {
            float v[8];
            load_f32(v, x + at);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = of(v[i], at + i);
            store_f32(y + at, v);
        }
    }
};

// `grad` may be `logits`.
extern "C" __global__ void __launch_bounds__(256)
    cross_entropy_backward_f32(const float *logits, const int *targets, const float *saved, const float *upstream,
                               float *grad, unsigned classes, unsigned ids, float share) {
    const RowGradient row(targets, saved, upstream, classes, ids, share);
    const float *x = logits + (unsigned long long)blockIdx.x * classes;
    float *y = grad + (unsigned long long)blockIdx.x * classes;
    if (classes % 8 == 0) {
        row.write(x, y, classes);
    } else {
        for (unsigned at = threadIdx.x; at < classes; at += blockDim.x) y[at] = row.of(x[at], at);
    }
}

// `classes` is a multiple of 8.
extern "C" __global__ void __launch_bounds__(256)
    cross_entropy_backward_bf16(const float *__restrict__ logits, const int *targets, const float *saved,
                                const float *upstream, bf16 *__restrict__ grad, unsigned classes, unsigned ids,
                                float share) {
    const RowGradient row(targets, saved, upstream, classes, ids, share);
    const unsigned long long begin = (unsigned long long)blockIdx.x * classes;
    row.write(logits + begin, grad + begin, classes);
}

// Against soft targets: a row's loss is -sum of t * log softmax. `saved` [rows, 3]: largest logit, 1 / sum, sum of t.
extern "C" __global__ void __launch_bounds__(256)
    soft_cross_entropy_forward_f32(const float *logits, const float *targets, float *losses, float *saved,
                                   unsigned classes) {
    __shared__ float parts[2][8];
    unsigned long long row = blockIdx.x;
    const float *x = logits + row * classes, *t = targets + row * classes;
    Softmax s = row_softmax(x, classes);
    float log_sum = logf(s.sum), loss = 0.0f, weight = 0.0f;
    for (unsigned at = threadIdx.x; at < classes; at += blockDim.x) {
        float target = t[at];
        weight += target;
        // A class without weight costs nothing, also at a logit of -inf.
        if (target != 0.0f) loss += target * (log_sum - (x[at] - s.top));
    }
    loss = warp_sum(loss);
    weight = warp_sum(weight);
    if (threadIdx.x % 32 == 0) {
        parts[0][threadIdx.x / 32] = loss;
        parts[1][threadIdx.x / 32] = weight;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned i = 1; i < blockDim.x / 32; i++) {
            loss += parts[0][i];
            weight += parts[1][i];
        }
        losses[row] = loss;
        saved[row * 3] = s.top;
        saved[row * 3 + 1] = 1.0f / s.sum;
        saved[row * 3 + 2] = weight;
    }
}

// (softmax * sum of t - t) * upstream / rows; `grad` may be `logits`.
extern "C" __global__ void __launch_bounds__(256)
    soft_cross_entropy_backward_f32(const float *logits, const float *__restrict__ targets,
                                    const float *__restrict__ saved, const float *__restrict__ upstream, float *grad,
                                    unsigned classes, float share) {
    unsigned long long row = blockIdx.x;
    const float *t = targets + row * classes;
    float scale = *upstream * share, top = saved[row * 3], factor = saved[row * 3 + 1] * saved[row * 3 + 2];
    for (unsigned at = threadIdx.x; at < classes; at += blockDim.x) {
        float p = __expf(logits[row * classes + at] - top) * factor;
        grad[row * classes + at] = (p - t[at]) * scale;
    }
}

// The sums of `count` values of one or two vectors, over all threads of a block of 1,024, in a fixed order; thread 0 gets them.
static __device__ float2 two_sums(const float *__restrict__ a, const float *__restrict__ b, unsigned count) {
    __shared__ float parts[2][32];
    float sum_a = 0.0f, sum_b = 0.0f;
#pragma unroll 4
    for (unsigned at = threadIdx.x; at < count; at += blockDim.x) {
        sum_a += a[at];
        if (b) sum_b += b[at];
    }
    sum_a = warp_sum(sum_a);
    sum_b = warp_sum(sum_b);
    if (threadIdx.x % 32 == 0) {
        parts[0][threadIdx.x / 32] = sum_a;
        parts[1][threadIdx.x / 32] = sum_b;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        unsigned warps = blockDim.x / 32;
        sum_a = warp_sum(threadIdx.x < warps ? parts[0][threadIdx.x] : 0.0f);
        sum_b = warp_sum(threadIdx.x < warps ? parts[1][threadIdx.x] : 0.0f);
    }
    __syncthreads();  // `parts` may be used again
    return make_float2(sum_a, sum_b);
}

// Those sums over `divisor`. `b` may be null.
extern "C" __global__ void __launch_bounds__(1024)
    means_f32(const float *a, const float *b, float *mean_a, float *mean_b, unsigned count, float divisor) {
    float2 sums = two_sums(a, b, count);
    if (threadIdx.x == 0) {
        *mean_a = sums.x / divisor;
        if (b) *mean_b = sums.y / divisor;
    }
}

struct Sets {
    float *loss[2], *accuracy[2];
};

// Of one or two sets of `count` rows each: the mean loss and the share of hits; and the sum of the losses.
extern "C" __global__ void __launch_bounds__(1024)
    head_means_f32(const float *losses, const float *hits, float *total, Sets to, unsigned sets, unsigned count) {
    float all = 0.0f;
#pragma unroll
    for (unsigned set = 0; set < 2; set++) {
        if (set == sets) break;
        float2 sums = two_sums(losses + set * count, hits + set * count, count);
        if (threadIdx.x == 0) {
            *to.loss[set] = sums.x / float(count);
            *to.accuracy[set] = sums.y / float(count);
            all += sums.x / float(count);
        }
    }
    if (threadIdx.x == 0) *total = all;
}

// 1 - cosine of rows of `a` and `b` [rows, width], a warp a row: `losses` [rows], `saved` [rows, 3]: 1 / |a|, 1 / |b|, cosine.
// A row of zeros gives NaN.
extern "C" __global__ void __launch_bounds__(256)
    cosine_loss_forward_f32(const float *__restrict__ a, const float *__restrict__ b, float *__restrict__ losses,
                            float *__restrict__ saved, unsigned long long rows, unsigned width) {
    unsigned long long row = (unsigned long long)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    unsigned lane = threadIdx.x % 32;
    const float *x = a + row * width, *y = b + row * width;
    float xx = 0.0f, yy = 0.0f, xy = 0.0f;
    if (width % 8 == 0) {
        for (unsigned at = lane * 8; at < width; at += 256) {
            float v[8], w[8];
            load_f32(v, x + at);
            load_f32(w, y + at);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                xx += v[i] * v[i];
                yy += w[i] * w[i];
                xy += v[i] * w[i];
            }
        }
    } else {
        for (unsigned at = lane; at < width; at += 32) {
            xx += x[at] * x[at];
            yy += y[at] * y[at];
            xy += x[at] * y[at];
        }
    }
    xx = 1.0f / sqrtf(warp_sum(xx));
    yy = 1.0f / sqrtf(warp_sum(yy));
    xy = warp_sum(xy) * xx * yy;
    if (lane == 0) {
        losses[row] = 1.0f - xy;
        saved[row * 3] = xx;
        saved[row * 3 + 1] = yy;
        saved[row * 3 + 2] = xy;
    }
}

// (cosine * a / |a| - b / |b|) / |a| * upstream / rows; `grad` may be `a`.
extern "C" __global__ void __launch_bounds__(256)
    cosine_loss_backward_f32(const float *a, const float *__restrict__ b, const float *__restrict__ saved,
                             const float *__restrict__ upstream, float *grad, unsigned long long rows, unsigned width,
                             float share) {
    unsigned long long row = (unsigned long long)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    unsigned lane = threadIdx.x % 32;
    float scale = *upstream * share * saved[row * 3];
    float of_a = scale * saved[row * 3 + 2] * saved[row * 3], of_b = scale * saved[row * 3 + 1];
    const float *x = a + row * width, *y = b + row * width;
    float *to = grad + row * width;
    if (width % 8 == 0) {
        for (unsigned at = lane * 8; at < width; at += 256) {
            float v[8], w[8];
            load_f32(v, x + at);
            load_f32(w, y + at);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = of_a * v[i] - of_b * w[i];
            store_f32(to + at, v);
        }
    } else {
        for (unsigned at = lane; at < width; at += 32) to[at] = of_a * x[at] - of_b * y[at];
    }
}
