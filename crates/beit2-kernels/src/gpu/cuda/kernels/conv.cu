// What convolutions need beside matmuls, on maps [batch, height, width, channels]: a border of zeros around a map and its
// removal, the order of a weight's numbers, pixels that become 2x2 pixels.
#include "device.cuh"

// 8 channels of a pixel, or the last few. Threads of a grid over all of them: `groups` a pixel.
struct Group {
    unsigned pixel, channel, count;
    bool whole;  // moves by accesses of 16 bytes
};

static __device__ __forceinline__ bool group_of(Group &g, unsigned pixels, unsigned channels) {
    unsigned groups = (channels + 7) / 8;
    unsigned at = blockIdx.x * 256 + threadIdx.x;
    g.pixel = at / groups;
    g.channel = at % groups * 8;
    g.count = min(channels - g.channel, 8u);
    g.whole = channels % 8 == 0;
    return g.pixel < pixels;
}

template <typename T> static __device__ __forceinline__ void load_group(float (&v)[8], const T *from, const Group &g) {
    if (g.whole) {
        load_f32(v, from);
    } else {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) v[i] = i < g.count ? to_f32(from[i]) : 0.0f;
    }
}

template <typename T> static __device__ __forceinline__ void store_group(T *into, const float (&v)[8], const Group &g) {
    if (g.whole) {
        store_f32(into, v);
    } else {
#pragma unroll
        for (unsigned i = 0; i < 8; i++)
            if (i < g.count) into[i] = to<T>(v[i]);
    }
}

// x [batch, height, width, channels] -> y [batch, height + 2, width + 2, taps, channels], with zeros around each image. With
// three taps, each pixel has the one before it and the one after it beside it, in the order of the flat map.
template <typename T>
static __device__ __forceinline__ void pad(const float *x, T *y, unsigned batch, unsigned height, unsigned width,
                                           unsigned channels, unsigned taps) {
    Group g;
    if (!group_of(g, batch * (height + 2) * (width + 2) * taps, channels)) return;
    // Before the first pixel this is a large number, whose row is none.
    unsigned seen = g.pixel / taps + g.pixel % taps - taps / 2;
    unsigned column = seen % (width + 2), line = seen / (width + 2);
    unsigned row = line % (height + 2), image = line / (height + 2);
    float v[8];
    fill_f32(v, 0.0f);
    if (image < batch && row >= 1 && row <= height && column >= 1 && column <= width) {
        unsigned long long pixel = ((unsigned long long)image * height + row - 1) * width + column - 1;
        load_group(v, x + pixel * channels + g.channel, g);
    }
    store_group(y + (unsigned long long)g.pixel * channels + g.channel, v, g);
}

extern "C" __global__ void __launch_bounds__(256)
    conv_pad_f32(const float *x, float *y, unsigned batch, unsigned height, unsigned width, unsigned channels, unsigned taps) {
    pad<float>(x, y, batch, height, width, channels, taps);
}

extern "C" __global__ void __launch_bounds__(256)
    conv_pad_bf16(const float *x, bf16 *y, unsigned batch, unsigned height, unsigned width, unsigned channels, unsigned taps) {
    pad<bf16>(x, y, batch, height, width, channels, taps);
}

// x [batch, height + 2, width + 2, channels] -> y [batch, height, width, channels] without the border, which is not read.
extern "C" __global__ void __launch_bounds__(256)
    conv_crop(const float *x, float *y, unsigned batch, unsigned height, unsigned width, unsigned channels) {
    Group g;
    if (!group_of(g, batch * height * width, channels)) return;
    unsigned column = g.pixel % width, line = g.pixel / width;
    unsigned row = line % height, image = line / height;
    unsigned long long pixel = ((unsigned long long)image * (height + 2) + row + 1) * (width + 2) + column + 1;
    float v[8];
    load_group(v, x + pixel * channels + g.channel, g);
    store_group(y + (unsigned long long)g.pixel * channels + g.channel, v, g);
}

// weight [outputs, inputs, 3, 3] -> taps [3, outputs, 3, inputs]; `flipped`: [3, 3, outputs, inputs], the last tap first.
template <typename T>
static __device__ __forceinline__ void taps_of(const float *weight, T *taps, unsigned outputs, unsigned inputs,
                                               unsigned flipped) {
    unsigned pair = blockIdx.x * 256 + threadIdx.x;
    if (pair >= outputs * inputs) return;
    unsigned output = pair / inputs, input = pair % inputs;
#pragma unroll
    for (unsigned tap = 0; tap < 9; tap++) {
        unsigned row = tap / 3 * outputs + output;
        unsigned long long to_at = flipped ? (unsigned long long)(8 - tap) * outputs * inputs + pair
                                           : ((unsigned long long)row * 3 + tap % 3) * inputs + input;
        taps[to_at] = to<T>(weight[(unsigned long long)pair * 9 + tap]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    conv_taps_f32(const float *weight, float *taps, unsigned outputs, unsigned inputs, unsigned flipped) {
    taps_of<float>(weight, taps, outputs, inputs, flipped);
}

extern "C" __global__ void __launch_bounds__(256)
    conv_taps_bf16(const float *weight, bf16 *taps, unsigned outputs, unsigned inputs, unsigned flipped) {
    taps_of<bf16>(weight, taps, outputs, inputs, flipped);
}

// taps [9, pairs] -> weight [pairs, 9]; pairs of an output and an input.
extern "C" __global__ void __launch_bounds__(256) conv_weight_of_taps(const float *taps, float *weight, unsigned pairs) {
    unsigned pair = blockIdx.x * 256 + threadIdx.x;
    if (pair >= pairs) return;
#pragma unroll
    for (unsigned tap = 0; tap < 9; tap++)
        weight[(unsigned long long)pair * 9 + tap] = taps[(unsigned long long)tap * pairs + pair];
}

// weight [inputs, outputs, 4] -> rows [inputs, 4, outputs]
template <typename T>
static __device__ __forceinline__ void quarters(const float *weight, T *rows, unsigned inputs, unsigned outputs) {
    unsigned at = blockIdx.x * 256 + threadIdx.x;
    if (at >= inputs * outputs) return;
    unsigned input = at / outputs, output = at % outputs;
#pragma unroll
    for (unsigned quarter = 0; quarter < 4; quarter++) {
        unsigned long long to_at = ((unsigned long long)input * 4 + quarter) * outputs + output;
        rows[to_at] = to<T>(weight[(unsigned long long)at * 4 + quarter]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    deconv_rows_f32(const float *weight, float *rows, unsigned inputs, unsigned outputs) {
    quarters<float>(weight, rows, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(256)
    deconv_rows_bf16(const float *weight, bf16 *rows, unsigned inputs, unsigned outputs) {
    quarters<bf16>(weight, rows, inputs, outputs);
}

// rows [inputs, 4, outputs] -> weight [inputs, outputs, 4]
extern "C" __global__ void __launch_bounds__(256)
    deconv_weight_of_rows(const float *rows, float *weight, unsigned inputs, unsigned outputs) {
    unsigned at = blockIdx.x * 256 + threadIdx.x;
    if (at >= inputs * outputs) return;
    unsigned input = at / outputs, output = at % outputs;
#pragma unroll
    for (unsigned quarter = 0; quarter < 4; quarter++) {
        unsigned long long from = ((unsigned long long)input * 4 + quarter) * outputs + output;
        weight[(unsigned long long)at * 4 + quarter] = rows[from];
    }
}

// Where the numbers of a pixel [2 rows, 2 columns] of `y [batch, 2 height, 2 width, channels]` lie in `four [batch, height,
// width, 2, 2, channels]`.
static __device__ __forceinline__ unsigned long long quarter_at(unsigned pixel, unsigned height, unsigned width) {
    unsigned column = pixel % (2 * width), line = pixel / (2 * width);
    unsigned row = line % (2 * height), image = line / (2 * height);
    unsigned long long small = ((unsigned long long)image * height + row / 2) * width + column / 2;
    return small * 4 + row % 2 * 2 + column % 2;
}

// y = four, pixels where they belong, plus the bias of each channel.
extern "C" __global__ void __launch_bounds__(256)
    deconv_spread(const float *four, const float *bias, float *y, unsigned batch, unsigned height, unsigned width,
                  unsigned channels) {
    Group g;
    if (!group_of(g, batch * height * width * 4, channels)) return;
    float v[8], b[8];
    load_group(v, four + quarter_at(g.pixel, height, width) * channels + g.channel, g);
    load_group(b, bias + g.channel, g);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += b[i];
    store_group(y + (unsigned long long)g.pixel * channels + g.channel, v, g);
}

// The other way, without the bias.
template <typename T>
static __device__ __forceinline__ void gather(const float *y, T *four, unsigned batch, unsigned height, unsigned width,
                                              unsigned channels) {
    Group g;
    if (!group_of(g, batch * height * width * 4, channels)) return;
    float v[8];
    load_group(v, y + (unsigned long long)g.pixel * channels + g.channel, g);
    store_group(four + quarter_at(g.pixel, height, width) * channels + g.channel, v, g);
}

extern "C" __global__ void __launch_bounds__(256)
    deconv_gather_f32(const float *y, float *four, unsigned batch, unsigned height, unsigned width, unsigned channels) {
    gather<float>(y, four, batch, height, width, channels);
}

extern "C" __global__ void __launch_bounds__(256)
    deconv_gather_bf16(const float *y, bf16 *four, unsigned batch, unsigned height, unsigned width, unsigned channels) {
    gather<bf16>(y, four, batch, height, width, channels);
}
