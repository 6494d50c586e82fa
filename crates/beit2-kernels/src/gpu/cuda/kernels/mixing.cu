// Augmentation of batches of images [B, C, H, W].

constexpr unsigned BOX = 1024;

// A box of one image, and where its values [C, rows, columns] begin.
struct ImageBox {
    int image, top, left, rows, columns, first;
};

// x[box] = values. Grid (values of the largest box / BOX rounded up, boxes): four values a thread.
extern "C" __global__ void __launch_bounds__(256) paste_boxes(
    float *x, const ImageBox *boxes, const float *values, unsigned channels, unsigned height, unsigned width) {
    const ImageBox at = boxes[blockIdx.y];
    const unsigned rows = at.rows, columns = at.columns, count = channels * rows * columns;
    for (unsigned i = blockIdx.x * BOX + threadIdx.x; i < min(count, (blockIdx.x + 1) * BOX); i += 256) {
        const unsigned column = i % columns, row = i / columns % rows, channel = i / (columns * rows);
        const size_t plane = size_t(at.image) * channels + channel;
        x[(plane * height + at.top + row) * width + at.left + column] = values[size_t(at.first) + i];
    }
}

// Each image with its partner, image B - 1 - b: the partner's pixels in a box, `own` and `other` of both elsewhere. Grid
// (pixels / BOX rounded up, planes).
extern "C" __global__ void __launch_bounds__(256) mix_pairs(const float *x, float *y, unsigned channels, unsigned height, unsigned width,
    unsigned top, unsigned bottom, unsigned left, unsigned right, float own, float other) {
    const unsigned plane = blockIdx.y, channel = plane % channels, area = height * width;
    // The planes of the partner's image begin behind those of all images after it.
    const size_t a = size_t(plane) * area, b = size_t(gridDim.y - channels - (plane - channel) + channel) * area;
    for (unsigned i = blockIdx.x * BOX + threadIdx.x; i < min(area, (blockIdx.x + 1) * BOX); i += 256) {
        const unsigned row = i / width, column = i % width;
        const bool cut = row >= top && row < bottom && column >= left && column < right;
        if (cut)
            y[a + i] = x[b + i];
        else
            y[a + i] = other == 0.0f ? x[a + i] : x[a + i] * own + x[b + i] * other;
    }
}
