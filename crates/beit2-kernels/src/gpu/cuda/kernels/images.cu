// From bytes to patches. The arithmetic is that of the composed versions, to the bit.
#include "device.cuh"

// y[b, c, pixel] = x[b, pixel, c] / 255. Grid (area / 256 rounded up, B): a thread takes all channels of a pixel.
extern "C" __global__ void __launch_bounds__(256) images_from_bytes(const unsigned char *x, float *y, unsigned area, unsigned channels) {
    const unsigned pixel = blockIdx.x * 256 + threadIdx.x;
    if (pixel >= area) return;
    const size_t image = blockIdx.y;
    const unsigned char *from = x + (image * area + pixel) * channels;
    float *to = y + image * channels * area + pixel;
    for (unsigned c = 0; c < channels; c++) to[size_t(c) * area] = float(from[c]) / 255.0f;
}

struct Channels {
    float mean[32], std[32];
};

// y[b, (row, col), (c, line, at)] = (x[b, row·p + line, col·p + at, c] / 255 - mean[c]) / std[c]. Grid (patches, B): a block
// writes a patch.
template <typename T>
static __device__ void bytes_to_patches(const unsigned char *__restrict__ x, T *__restrict__ y, unsigned channels,
                                        unsigned height, unsigned width, unsigned patch, const Channels &values) {
    const unsigned cols = width / patch, row = blockIdx.x / cols, col = blockIdx.x % cols;
    const unsigned count = channels * patch * patch;
    const unsigned char *image = x + size_t(blockIdx.y) * height * width * channels;
    T *out = y + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * count;
    for (unsigned i = threadIdx.x; i < count; i += 256) {
        const unsigned at = i % patch, line = i / patch % patch, c = i / (patch * patch);
        const size_t pixel = size_t(row * patch + line) * width + col * patch + at;
        out[i] = to<T>((float(image[pixel * channels + c]) / 255.0f - values.mean[c]) / values.std[c]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    bytes_to_patches_f32(const unsigned char *x, float *y, unsigned channels, unsigned height, unsigned width,
                         unsigned patch, const __grid_constant__ Channels values) {
    bytes_to_patches<float>(x, y, channels, height, width, patch, values);
}

extern "C" __global__ void __launch_bounds__(256)
    bytes_to_patches_bf16(const unsigned char *x, bf16 *y, unsigned channels, unsigned height, unsigned width,
                          unsigned patch, const __grid_constant__ Channels values) {
    bytes_to_patches<bf16>(x, y, channels, height, width, patch, values);
}

// y = (x - mean[c]) / std[c] of planes of `area` values. Grid (area / 1024 rounded up, planes): four values a thread.
extern "C" __global__ void __launch_bounds__(256) images_standardise(
    const float *x, float *y, unsigned area, unsigned channels, const __grid_constant__ Channels values) {
    const unsigned plane = blockIdx.y, channel = plane % channels;
    const float mean = values.mean[channel], std = values.std[channel];
    const size_t begin = size_t(plane) * area;
    for (unsigned i = blockIdx.x * 1024 + threadIdx.x; i < min(area, (blockIdx.x + 1) * 1024); i += 256) {
        y[begin + i] = (x[begin + i] - mean) / std;
    }
}

// y[b, (row, col), (c, line, at)] = x[b, c, row·p + line, col·p + at]. Grid (patches, B): a block writes a patch.
extern "C" __global__ void __launch_bounds__(256) images_to_patches(
    const float *x, float *y, unsigned channels, unsigned height, unsigned width, unsigned patch) {
    const unsigned cols = width / patch, row = blockIdx.x / cols, col = blockIdx.x % cols;
    const unsigned values = channels * patch * patch;
    float *to = y + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * values;
    for (unsigned i = threadIdx.x; i < values; i += 256) {
        const unsigned at = i % patch, line = i / patch % patch, c = i / (patch * patch);
        const size_t plane = size_t(blockIdx.y) * channels + c;
        to[i] = x[(plane * height + row * patch + line) * width + col * patch + at];
    }
}

struct Contents {
    unsigned width[256], height[256];
};

// x[b, c, row, col] = 0 outside the first columns and rows of each image; the rest stays. Grid (area / 256 rounded up, images).
extern "C" __global__ void __launch_bounds__(256) images_clear(
    const float *x, float *y, unsigned channels, unsigned height, unsigned width, const __grid_constant__ Contents contents) {
    const unsigned pixel = blockIdx.x * 256 + threadIdx.x, area = height * width;
    if (pixel >= area) return;
    const unsigned image = blockIdx.y;
    const bool inside = pixel % width < contents.width[image] && pixel / width < contents.height[image];
    for (unsigned c = 0; c < channels; c++) {
        const size_t at = (size_t(image) * channels + c) * area + pixel;
        y[at] = inside ? x[at] : 0.0f;
    }
}
