// Tokens around the blocks: patches, CLS, mask token and positions; some tokens of each sample; relative position biases.
// A block is one token (or one row of a bias) unless said; its threads go over the token's values. f32.

// -- Patches to tokens ------------------------------------------------------------------------------------------------

// y[b, 0] = cls + positions[0], y[b, n + 1] = the mask token or patches[b, n], + positions[n + 1]. Grid (T, B).
// mask [B, N] with token [D], and positions [T, D], may be null.
extern "C" __global__ void __launch_bounds__(256) tokens_embed(
    const float *patches, const float *cls, const float *mask, const float *token, const float *positions, float *y, unsigned width) {
    const unsigned t = blockIdx.x, tokens = gridDim.x;
    const size_t sample = blockIdx.y;
    const size_t patch = sample * (tokens - 1) + t - 1;
    const float masked = mask && t > 0 ? mask[patch] : 0;
    float *to = y + (sample * tokens + t) * width;
    for (unsigned d = threadIdx.x; d < width; d += blockDim.x) {
        float x = t == 0 ? cls[d] : patches[patch * width + d];
        if (mask && t > 0) x = x * (1 - masked) + masked * token[d];
        if (positions) x += positions[size_t(t) * width + d];
        to[d] = x;
    }
}

// From grad [B, T, D]: dpatches [B, N, D] (or null), sums[t, d] = Σ_b grad, and with a mask masked_sums[t, d] = Σ_b mask·grad for t > 0.
// Grid (T, D / 64 rounded up), 64 threads: one thread for each (t, d), samples in order.
extern "C" __global__ void __launch_bounds__(64) tokens_embed_backward(
    const float *grad, const float *mask, float *dpatches, float *sums, float *masked_sums, unsigned batch, unsigned width) {
    const unsigned t = blockIdx.x, tokens = gridDim.x;
    const unsigned d = blockIdx.y * 64 + threadIdx.x;
    if (d >= width) return;
    float sum = 0, masked_sum = 0;
    for (unsigned b = 0; b < batch; b++) {
        float g = grad[(size_t(b) * tokens + t) * width + d];
        sum += g;
        if (t > 0) {
            const size_t patch = size_t(b) * (tokens - 1) + t - 1;
            const float masked = mask ? mask[patch] : 0;
            masked_sum += masked * g;
            if (dpatches) dpatches[patch * width + d] = mask ? g * (1 - masked) : g;
        }
    }
    sums[size_t(t) * width + d] = sum;
    if (mask) masked_sums[size_t(t) * width + d] = masked_sum;
}

// dcls[d] = sums[0, d]; with a mask dtoken[d] = Σ_t masked_sums[t, d]. One block of 256 threads for 8 values of d: 32 threads
// share a sum.
extern "C" __global__ void __launch_bounds__(256) tokens_embed_backward_sums(
    const float *sums, const float *masked_sums, float *dcls, float *dtoken, unsigned tokens, unsigned width) {
    __shared__ float parts[32][9];
    const unsigned column = threadIdx.x % 8, row = threadIdx.x / 8;
    const unsigned d = blockIdx.x * 8 + column;
    float sum = 0;
    if (dtoken && d < width) {
        for (unsigned t = row; t < tokens; t += 32) sum += masked_sums[size_t(t) * width + d];
    }
    parts[row][column] = sum;
    __syncthreads();
    if (row == 0 && d < width) {
        dcls[d] = sums[d];
        if (dtoken) {
            float total = 0;
            for (unsigned r = 0; r < 32; r++) total += parts[r][column];
            dtoken[d] = total;
        }
    }
}

// -- Some tokens of each sample ---------------------------------------------------------------------------------------

// y[b, r] = x[b, local[b, r]]. Grid (R, B).
extern "C" __global__ void __launch_bounds__(256) tokens_gather(const float *x, const int *local, float *y, unsigned tokens, unsigned width) {
    const size_t to = size_t(blockIdx.y) * gridDim.x + blockIdx.x;
    const size_t from = size_t(blockIdx.y) * tokens + local[to];
    for (unsigned d = threadIdx.x; d < width; d += blockDim.x) y[to * width + d] = x[from * width + d];
}

// y[b, r] = x[b, from + r - to], where that is a token of x and r one from `to` on; else 0. Grid (tokens of y, B). A range of tokens is
// taken with to = 0, put back among zeros with from = 0.
extern "C" __global__ void __launch_bounds__(256) tokens_move(
    const float *x, float *y, unsigned tokens, unsigned from, unsigned to, unsigned width) {
    const unsigned r = blockIdx.x;
    const unsigned t = r + from - to;
    const bool inside = r >= to && t < tokens;
    const float *row = x + (size_t(blockIdx.y) * tokens + (inside ? t : 0)) * width;
    float *into = y + (size_t(blockIdx.y) * gridDim.x + r) * width;
    for (unsigned d = threadIdx.x; d < width; d += blockDim.x) into[d] = inside ? row[d] : 0;
}

// y[b] = the mean of x[b, 1 ..]. Grid (D / 32 rounded up, B): 32 values of d; eight threads share a sum, in a fixed order.
extern "C" __global__ void __launch_bounds__(256) tokens_mean(const float *x, float *y, unsigned tokens, unsigned width) {
    __shared__ float parts[8][32];
    const unsigned column = threadIdx.x % 32, row = threadIdx.x / 32, d = blockIdx.x * 32 + column;
    float sum = 0;
    if (d < width) {
        for (unsigned t = 1 + row; t < tokens; t += 8) sum += x[(size_t(blockIdx.y) * tokens + t) * width + d];
    }
    parts[row][column] = sum;
    __syncthreads();
    if (row == 0 && d < width) {
        float total = 0;
        for (unsigned r = 0; r < 8; r++) total += parts[r][column];
        y[size_t(blockIdx.y) * width + d] = total / float(tokens - 1);
    }
}

// dx[b, t] = grad[b] / (T - 1) for t > 0, else 0. Grid (T, B).
extern "C" __global__ void __launch_bounds__(256) tokens_mean_backward(const float *grad, float *dx, unsigned width) {
    const float share = blockIdx.x == 0 ? 0 : 1.0f / float(gridDim.x - 1);
    float *to = dx + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * width;
    for (unsigned d = threadIdx.x; d < width; d += blockDim.x) to[d] = grad[size_t(blockIdx.y) * width + d] * share;
}

// y[b, 0] = cls[b, 0] of `cls_tokens` tokens, y[b, t] = x[b, t]. Grid (T, B).
extern "C" __global__ void __launch_bounds__(256) tokens_replace_cls(
    const float *cls, const float *x, float *y, unsigned cls_tokens, unsigned width) {
    const size_t to = (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * width;
    const float *from = blockIdx.x == 0 ? cls + size_t(blockIdx.y) * cls_tokens * width : x + to;
    for (unsigned d = threadIdx.x; d < width; d += blockDim.x) y[to + d] = from[d];
}

// dcls [B, R, D] and dx [B, T, D] from grad [B, T, D]: each has what it gave, and 0 elsewhere. Grid (T + R, B).
extern "C" __global__ void __launch_bounds__(256) tokens_replace_cls_backward(
    const float *grad, float *dcls, float *dx, unsigned cls_tokens, unsigned width) {
    const unsigned tokens = gridDim.x - cls_tokens;
    const bool own = blockIdx.x < tokens;
    const unsigned t = own ? blockIdx.x : blockIdx.x - tokens;
    const bool gave = own == (t > 0);
    const float *from = grad + (size_t(blockIdx.y) * tokens + (own ? t : 0)) * width;
    float *to = own ? dx + (size_t(blockIdx.y) * tokens + t) * width : dcls + (size_t(blockIdx.y) * cls_tokens + t) * width;
    for (unsigned d = threadIdx.x; d < width; d += blockDim.x) to[d] = gave ? from[d] : 0;
}

// Which of `count` places holds `token`, or -1; the same for all threads of the block. No token is there twice.
__device__ __forceinline__ int place_of(const int *places, unsigned count, int token) {
    __shared__ int found;
    if (threadIdx.x == 0) found = -1;
    __syncthreads();
    for (unsigned r = threadIdx.x; r < count; r += blockDim.x) {
        if (places[r] == token) found = int(r);
    }
    __syncthreads();
    return found;
}

// dx[b, t] = grad[b, r] of the r with local[b, r] = t, else 0. Grid (T, B).
extern "C" __global__ void __launch_bounds__(256) tokens_gather_backward(
    const float *grad, const int *local, float *dx, unsigned count, unsigned width) {
    const size_t sample = blockIdx.y, to = sample * gridDim.x + blockIdx.x;
    const int r = place_of(local + sample * count, count, int(blockIdx.x));
    const float *from = grad + (sample * count + (r < 0 ? 0 : r)) * width;
    for (unsigned d = threadIdx.x; d < width; d += blockDim.x) dx[to * width + d] = r < 0 ? 0 : from[d];
}

// y[b, h, r] = bias[h, local[b, r]], rows of `tokens` values. Grid (R, H, B).
extern "C" __global__ void __launch_bounds__(256) tokens_gather_bias(const float *bias, const int *local, float *y, unsigned tokens) {
    const unsigned r = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const float *from = bias + (size_t(h) * tokens + local[size_t(b) * gridDim.x + r]) * tokens;
    float *to = y + ((size_t(b) * gridDim.y + h) * gridDim.x + r) * tokens;
    for (unsigned k = threadIdx.x; k < tokens; k += blockDim.x) to[k] = from[k];
}

// dbias[h, t] = Σ_b grad[b, h, r] of the r with local[b, r] = t, samples in order. Grid (T, H).
extern "C" __global__ void __launch_bounds__(256) tokens_gather_bias_backward(
    const float *grad, const int *local, float *dbias, unsigned batch, unsigned count) {
    constexpr unsigned SAMPLES = 256;
    __shared__ int places[SAMPLES];
    const unsigned t = blockIdx.x, tokens = gridDim.x, h = blockIdx.y, heads = gridDim.y;
    float *to = dbias + (size_t(h) * tokens + t) * tokens;
    for (unsigned first = 0; first < batch; first += SAMPLES) {
        const unsigned samples = min(SAMPLES, batch - first);
        for (unsigned b = threadIdx.x; b < samples; b += blockDim.x) places[b] = -1;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < samples * count; i += blockDim.x) {
            if (local[size_t(first) * count + i] == int(t)) places[i / count] = int(i % count);
        }
        __syncthreads();
        for (unsigned k = threadIdx.x; k < tokens; k += blockDim.x) {
            float sum = first == 0 ? 0 : to[k];
            for (unsigned b = 0; b < samples; b++) {
                if (places[b] >= 0) sum += grad[((size_t(first + b) * heads + h) * count + places[b]) * tokens + k];
            }
            to[k] = sum;
        }
        __syncthreads();
    }
}

// -- Relative position biases -----------------------------------------------------------------------------------------

struct Grid {
    int rows, cols, table_rows, table_cols;

    // Offsets between patches; CLS has three rows of the table behind them.
    __device__ __forceinline__ int offsets() const { return (2 * table_rows - 1) * (2 * table_cols - 1); }

    // The table's row for query token a and key token b.
    __device__ __forceinline__ int row_of(int a, int b) const {
        if (a == 0) return offsets() + (b == 0 ? 2 : 0); // CLS to itself, CLS to a patch
        if (b == 0) return offsets() + 1;                // a patch to CLS
        const int down = (a - 1) / cols - (b - 1) / cols + table_rows - 1;
        const int right = (a - 1) % cols - (b - 1) % cols + table_cols - 1;
        return down * (2 * table_cols - 1) + right;
    }
};

// bias[h, a, b] = table[row_of(a, b), h]. Grid (T, H).
extern "C" __global__ void __launch_bounds__(256) position_bias(const float *table, float *bias, Grid grid) {
    const int a = blockIdx.x, tokens = gridDim.x, h = blockIdx.y, heads = gridDim.y;
    for (int b = threadIdx.x; b < tokens; b += blockDim.x) {
        bias[(size_t(h) * tokens + a) * tokens + b] = table[size_t(grid.row_of(a, b)) * heads + h];
    }
}

// dtable[l, h] = Σ of grad[h, a, b] over the pairs with row_of(a, b) = l, in a fixed order. Grid: rows of the table; a warp for
// each head in turn.
extern "C" __global__ void __launch_bounds__(128) position_bias_backward(const float *grad, float *dtable, unsigned heads, Grid grid) {
    const int l = blockIdx.x, tokens = grid.rows * grid.cols + 1;
    const int lane = threadIdx.x % 32;
    // The pairs: `across` times `along` of them; or those with CLS.
    int first_row = 0, first_col = 0, along = 0, across = 1, down = 0, right = 0;
    const int special = l - grid.offsets();
    if (special < 0) {
        down = l / (2 * grid.table_cols - 1) - (grid.table_rows - 1);
        right = l % (2 * grid.table_cols - 1) - (grid.table_cols - 1);
        first_row = max(0, down);
        first_col = max(0, right);
        across = max(0, grid.rows - abs(down));
        along = max(0, grid.cols - abs(right));
    } else {
        along = special == 2 ? 1 : tokens - 1;
    }
    for (unsigned h = threadIdx.x / 32; h < heads; h += blockDim.x / 32) {
        float sum = 0;
        for (int i = lane; i < across * along; i += 32) {
            int a, b;
            if (special < 0) {
                const int row = first_row + i / along, col = first_col + i % along;
                a = row * grid.cols + col + 1;
                b = (row - down) * grid.cols + (col - right) + 1;
            } else {
                a = special == 1 ? i + 1 : 0;
                b = special == 0 ? i + 1 : 0;
            }
            sum += grad[(size_t(h) * tokens + a) * tokens + b];
        }
        sum = warp_sum(sum);
        if (lane == 0) dtable[size_t(l) * heads + h] = sum;
    }
}
