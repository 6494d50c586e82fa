// All parameters of a model in a few launches: the norm of the gradients, AdamW, weighted sums.
//
// A launch gets a table of tensors by value (at most 4 KB of arguments). A tensor is cut into pieces of PIECE values, one
// for each block; the table says at which block a tensor begins. Pieces begin at multiples of 16 bytes if the tensor does.

static constexpr unsigned PIECE = 8192;
static constexpr unsigned THREADS = 256;

// The last entry whose first block is not after `block`.
template <class Entry> __device__ __forceinline__ unsigned entry_of(const Entry *entries, unsigned count, unsigned block) {
    unsigned low = 0, high = count;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (entries[middle].first_block <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ __forceinline__ bool aligned(const void *a) { return (reinterpret_cast<unsigned long long>(a) & 15) == 0; }

// -- Norm -------------------------------------------------------------------------------------------------------------

struct SquareEntry {
    const float *x;
    unsigned count;
    unsigned first_block;
};

struct SquareTable {
    SquareEntry entries[240];
    unsigned used;
    unsigned first_sum; // where the sums of this launch begin
};

// The sum of a block's 256 values, in thread 0; always in the same order.
__device__ __forceinline__ float block_total(float x) {
    __shared__ float parts[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0;
    for (unsigned i = 0; i < THREADS / 32; i++) total += parts[i];
    return total;
}

// sums[first_sum + b] = the sum of the squares of block b's piece
extern "C" __global__ void __launch_bounds__(256) parameters_square_sums(const __grid_constant__ SquareTable table, float *sums) {
    const SquareEntry entry = table.entries[entry_of(table.entries, table.used, blockIdx.x)];
    const unsigned begin = (blockIdx.x - entry.first_block) * PIECE;
    const unsigned end = min(begin + PIECE, entry.count);
    float sum = 0;
    unsigned rest = begin;
    if (aligned(entry.x)) {
        rest = end / 4 * 4;
        for (unsigned i = begin + threadIdx.x * 4; i < rest; i += THREADS * 4) {
            float4 x = *reinterpret_cast<const float4 *>(entry.x + i);
            sum = fmaf(x.x, x.x, sum);
            sum = fmaf(x.y, x.y, sum);
            sum = fmaf(x.z, x.z, sum);
            sum = fmaf(x.w, x.w, sum);
        }
    }
    for (unsigned i = rest + threadIdx.x; i < end; i += THREADS) sum = fmaf(entry.x[i], entry.x[i], sum);
    sum = block_total(sum);
    if (threadIdx.x == 0) sums[table.first_sum + blockIdx.x] = sum;
}

// norm[0] = the root of the sum of `count` sums; one block
extern "C" __global__ void __launch_bounds__(256) parameters_norm(const float *sums, unsigned count, float *norm) {
    __shared__ double parts[THREADS];
    double sum = 0;
    for (unsigned i = threadIdx.x; i < count; i += THREADS) sum += sums[i];
    parts[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned width = THREADS / 2; width > 0; width /= 2) {
        if (threadIdx.x < width) parts[threadIdx.x] += parts[threadIdx.x + width];
        __syncthreads();
    }
    if (threadIdx.x == 0) norm[0] = static_cast<float>(sqrt(parts[0]));
}

// -- AdamW ------------------------------------------------------------------------------------------------------------

struct AdamwEntry {
    const float *value, *grad, *first, *second; // null: zeros (gradient and moments)
    float *new_value, *new_first, *new_second;  // the same memory as the old ones where nobody else holds it
    unsigned count;
    unsigned first_block;
    float rate; // learning rate over the first moment's bias correction
    float keep; // 1 - learning rate · weight decay
};

struct AdamwTable {
    AdamwEntry entries[55];
    unsigned used;
    float max_norm; // 0: no clipping
    float beta1, rest1, beta2, rest2;
    float inverse_root; // over the root of the second moment's bias correction
    float eps;
};

struct Adamw {
    float clip, rate, keep, beta1, rest1, beta2, rest2, inverse_root, eps;

    __device__ __forceinline__ void step(float &value, float grad, float &first, float &second) const {
        grad *= clip;
        first = fmaf(first, beta1, grad * rest1);
        second = fmaf(second, beta2, grad * grad * rest2);
        value = fmaf(value, keep, -(rate * first / fmaf(sqrtf(second), inverse_root, eps)));
    }
};

__device__ __forceinline__ float4 load_or_zero(const float *x, unsigned i) {
    return x ? *reinterpret_cast<const float4 *>(x + i) : make_float4(0, 0, 0, 0);
}

extern "C" __global__ void __launch_bounds__(256) parameters_adamw(const __grid_constant__ AdamwTable table, const float *norm) {
    const AdamwEntry entry = table.entries[entry_of(table.entries, table.used, blockIdx.x)];
    const unsigned begin = (blockIdx.x - entry.first_block) * PIECE;
    const unsigned end = min(begin + PIECE, entry.count);
    float clip = 1;
    if (table.max_norm > 0) {
        clip = table.max_norm * (1.0f / (norm[0] + 1e-6f));
        // Not fminf, which would turn the NaN of a gradient that is none into 1.
        if (clip > 1) clip = 1;
    }
    const Adamw adamw = {clip,        entry.rate,  entry.keep,         table.beta1, table.rest1,
                         table.beta2, table.rest2, table.inverse_root, table.eps};
    unsigned rest = begin;
    if (aligned(entry.value) && aligned(entry.grad) && aligned(entry.first) && aligned(entry.second) &&
        aligned(entry.new_value) && aligned(entry.new_first) && aligned(entry.new_second)) {
        rest = end / 4 * 4;
        for (unsigned i = begin + threadIdx.x * 4; i < rest; i += THREADS * 4) {
            float4 value = *reinterpret_cast<const float4 *>(entry.value + i);
            float4 grad = load_or_zero(entry.grad, i);
            float4 first = load_or_zero(entry.first, i);
            float4 second = load_or_zero(entry.second, i);
            adamw.step(value.x, grad.x, first.x, second.x);
            adamw.step(value.y, grad.y, first.y, second.y);
            adamw.step(value.z, grad.z, first.z, second.z);
            adamw.step(value.w, grad.w, first.w, second.w);
            *reinterpret_cast<float4 *>(entry.new_value + i) = value;
            *reinterpret_cast<float4 *>(entry.new_first + i) = first;
            *reinterpret_cast<float4 *>(entry.new_second + i) = second;
        }
    }
    for (unsigned i = rest + threadIdx.x; i < end; i += THREADS) {
        float value = entry.value[i];
        float first = entry.first ? entry.first[i] : 0;
        float second = entry.second ? entry.second[i] : 0;
        adamw.step(value, entry.grad ? entry.grad[i] : 0, first, second);
        entry.new_value[i] = value;
        entry.new_first[i] = first;
        entry.new_second[i] = second;
    }
}

// -- Weighted sums ----------------------------------------------------------------------------------------------------

struct SumEntry {
    const float *x, *y;
    float *sum;
    unsigned count;
    unsigned first_block;
};

struct SumTable {
    SumEntry entries[120];
    unsigned used;
    float a, b;
};

// sum = a·x + b·y
extern "C" __global__ void __launch_bounds__(256) parameters_weighted_sums(const __grid_constant__ SumTable table) {
    const SumEntry entry = table.entries[entry_of(table.entries, table.used, blockIdx.x)];
    const unsigned begin = (blockIdx.x - entry.first_block) * PIECE;
    const unsigned end = min(begin + PIECE, entry.count);
    const float a = table.a, b = table.b;
    unsigned rest = begin;
    if (aligned(entry.x) && aligned(entry.y) && aligned(entry.sum)) {
        rest = end / 4 * 4;
        for (unsigned i = begin + threadIdx.x * 4; i < rest; i += THREADS * 4) {
            float4 x = *reinterpret_cast<const float4 *>(entry.x + i);
            float4 y = *reinterpret_cast<const float4 *>(entry.y + i);
            float4 sum = make_float4(a * x.x + b * y.x, a * x.y + b * y.y, a * x.z + b * y.z, a * x.w + b * y.w);
            *reinterpret_cast<float4 *>(entry.sum + i) = sum;
        }
    }
    for (unsigned i = rest + threadIdx.x; i < end; i += THREADS) entry.sum[i] = a * entry.x[i] + b * entry.y[i];
}

// -- Scalars ----------------------------------------------------------------------------------------------------------

struct ScalarTable {
    const float *entries[500];
    unsigned used;
    unsigned first;
};

// y[first + i] = the value at entries[i]; one block
extern "C" __global__ void __launch_bounds__(512) parameters_join_scalars(const __grid_constant__ ScalarTable table, float *y) {
    if (threadIdx.x < table.used) y[table.first + threadIdx.x] = table.entries[threadIdx.x][0];
}
