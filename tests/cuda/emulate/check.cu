// Kernels for check.py: right ones, and one for each mistake that the emulator finds.

extern "C" __global__ void __launch_bounds__(256) sum_rows(const float *x, float *sums, int width) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += 256) sum += x[(size_t)blockIdx.x * width + i];
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// c[16, 8] = a[16, 16] · b[16, 8] by asynchronous copies, ldmatrix and mma. `wait`: whether the copies are waited for.
extern "C" __global__ void __launch_bounds__(32) multiply(const bf16 *a, const bf16 *b, float *c, int wait) {
    extern __shared__ __align__(16) unsigned char tiles[];
    bf16 *tile_a = reinterpret_cast<bf16 *>(tiles), *tile_b = tile_a + 16 * 16;
    int lane = threadIdx.x;
    cp_async_16(tile_a + lane * 8, a + lane * 8);
    cp_async_16_zfill(tile_b + lane % 16 * 8, b + lane % 16 * 8, true);
    cp_async_commit();
    if (wait) cp_async_wait<0>();
    __syncwarp();
    unsigned of_a[4], of_b[2];
    float d[4] = {};
    ldmatrix_x4(of_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x2_trans(of_b, tile_b + lane % 16 * 8);
    mma_bf16_16x8x16(d, of_a, of_b);
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// Reverses 64 numbers through shared memory; without the barrier, half of them are read before they are there.
extern "C" __global__ void reverse(float *x, int barrier) {
    __shared__ float held[64];
    held[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncthreads();
    x[threadIdx.x] = held[63 - threadIdx.x];
}

extern "C" __global__ void lanes(int *out) {
    int lane = threadIdx.x;
    out[lane] = __shfl_up_sync(0xffffffffu, lane, 1);
    out[32 + lane] = __shfl_down_sync(0xffffffffu, lane, 3, 8);
    out[64 + lane] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
    out[96 + lane] = __syncthreads_count(lane < 5);
}

struct Pair {
    const float *at[2];
    int offset;
};
extern "C" __global__ void by_value(Pair pair, float *out, double factor) { out[threadIdx.x] = (float)(pair.at[threadIdx.x % 2][pair.offset] * factor); }

extern "C" __global__ void waits_for_ever(float *x) {
    if (threadIdx.x < 32) __syncthreads();
    x[0] = 1.0f;
}
extern "C" __global__ void lanes_disagree(float *x) {
    if (threadIdx.x == 3) x[0] = __shfl_sync(0xffffffffu, x[1], 0);
    else __syncwarp();
}
extern "C" __global__ void beyond_an_array(float *x, int at) {
    __shared__ float held[32];
    held[at] = 1.0f;
    x[0] = held[0];
}
extern "C" __global__ void beyond_dynamic_memory(float *x, int at) {
    extern __shared__ float dynamic[];
    dynamic[at] = 1.0f;
    x[0] = dynamic[0];
}
extern "C" __global__ void beyond_memory(float *x) { x[1ull << 40] = 1.0f; }
extern "C" __global__ void not_aligned(float *x) { store(x, load<4>(x + 1)); }
extern "C" __global__ void __launch_bounds__(32) bounded(float *x) { x[threadIdx.x] = 1.0f; }
