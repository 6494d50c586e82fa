// Attention with an additive bias in f32, for heads of any multiple of 8 up to 128 numbers: the tiles, the order of sums and
// the argument of attention.cu, multiplied from shared memory without tensor cores.
//
// 128 threads hold 32 x 32 scores: thread (y, x) of 16 x 8 has rows y and y + 16 and columns x, x + 8, x + 16, x + 24. Of
// results 32 rows by the width of a head it has the same rows, and columns 4x .. 4x + 3 of every 32.

#include "attention.cuh"

constexpr int SIDE = 32;                // tokens of a tile
constexpr int SCORES = SIDE + 4;        // pitch of a row of scores in shared memory
constexpr int MOST = 128 / SIDE;        // groups of columns of a result at most

// Where a thread stands.
struct Place {
    int y, x;
};
__device__ __forceinline__ Place place() { return {(int)threadIdx.x >> 3, (int)threadIdx.x & 7}; }

// Pitch of a row of a head in shared memory: 8 rows' groups of four lie in different banks.
__device__ __forceinline__ int pitch_of(int depth) { return depth + 4; }

// Starts the copy of 32 rows of a head; rows at and after `valid` are zeros. `valid` ≥ 1.
__device__ __forceinline__ void copy_rows(float *to, const void *from, int row, int depth, int valid) {
    const int fours = depth / 4;
    for (int i = threadIdx.x; i < SIDE * fours; i += blockDim.x) {
        const int r = i / fours, c = i % fours * 4;
        const bool inside = r < valid;
        cp_async_16_zfill(to + r * pitch_of(depth) + c, (const float *)from + (long long)(inside ? r : 0) * row + c, inside);
    }
}

__device__ __forceinline__ void arrive() {
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
}

// Products of this thread's rows of `a` with its rows of `b`.
__device__ __forceinline__ void multiply_rows(float (&s)[2][4], const float *a, const float *b, int depth) {
    const Place at = place();
    const int pitch = pitch_of(depth);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = 0.0f;
    for (int c = 0; c < depth; c += 4) {
        float4 x[2], y[4];
#pragma unroll
        for (int i = 0; i < 2; i++) x[i] = *(const float4 *)(a + (at.y + 16 * i) * pitch + c);
#pragma unroll
        for (int j = 0; j < 4; j++) y[j] = *(const float4 *)(b + (at.x + 8 * j) * pitch + c);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[i][j] = fmaf(x[i].x, y[j].x, fmaf(x[i].y, y[j].y, fmaf(x[i].z, y[j].z, fmaf(x[i].w, y[j].w, s[i][j]))));
    }
}

// acc += scores·b for this thread's rows of the scores, over `count` rows of b.
__device__ __forceinline__ void multiply_scores(float (&acc)[2][MOST][4], const float *scores, const float *b, int depth, int count) {
    const Place at = place();
    for (int r = 0; r < count; r++) {
        const float low = scores[at.y * SCORES + r], high = scores[(at.y + 16) * SCORES + r];
#pragma unroll
        for (int c = 0; c < MOST; c++) {
            const int column = at.x * 4 + c * SIDE;
            if (column >= depth) continue;
            const float4 y = *(const float4 *)(b + r * pitch_of(depth) + column);
            acc[0][c][0] = fmaf(low, y.x, acc[0][c][0]), acc[0][c][1] = fmaf(low, y.y, acc[0][c][1]);
            acc[0][c][2] = fmaf(low, y.z, acc[0][c][2]), acc[0][c][3] = fmaf(low, y.w, acc[0][c][3]);
            acc[1][c][0] = fmaf(high, y.x, acc[1][c][0]), acc[1][c][1] = fmaf(high, y.y, acc[1][c][1]);
            acc[1][c][2] = fmaf(high, y.z, acc[1][c][2]), acc[1][c][3] = fmaf(high, y.w, acc[1][c][3]);
        }
    }
}

__device__ __forceinline__ void clear(float (&acc)[2][MOST][4]) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int c = 0; c < MOST; c++)
#pragma unroll
            for (int k = 0; k < 4; k++) acc[i][c][k] = 0.0f;
}

// Writes this thread's part of 32 rows of a head, `first` on, each times its factor.
__device__ __forceinline__ void store_rows(void *to, long long sample, int row, const float (&acc)[2][MOST][4], float low, float high, int first, int count, int depth) {
    const Place at = place();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = first + at.y + 16 * i;
        const float factor = i ? high : low;
        if (r >= count) continue;
#pragma unroll
        for (int c = 0; c < MOST; c++) {
            const int column = at.x * 4 + c * SIDE;
            if (column >= depth) continue;
            *(float4 *)((float *)to + sample + (long long)r * row + column) =
                make_float4(acc[i][c][0] * factor, acc[i][c][1] * factor, acc[i][c][2] * factor, acc[i][c][3] * factor);
        }
    }
}

// Over the 8 threads that share a row.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int flip = 1; flip < 8; flip <<= 1) x += __shfl_xor_sync(0xffffffffu, x, flip);
    return x;
}
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int flip = 1; flip < 8; flip <<= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, flip));
    return x;
}

__device__ __forceinline__ const float *head_of(const void *x, long long sample, int head, int depth) {
    return (const float *)x + sample + (long long)head * depth;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward. Grid: tiles of 32 queries, H, B. Shared memory: (64·(d + 4) + 32·36) floats.

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32(const Attention a) {
    extern __shared__ __align__(16) float floats[];
    const int pitch = pitch_of(a.depth), head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * SIDE;
    float *q = floats, *tile = q + SIDE * pitch, *weights = tile + SIDE * pitch;
    const Place at = place();
    const float *k = head_of(a.k, batch * a.k_sample, head, a.depth), *v = head_of(a.v, batch * a.v_sample, head, a.depth);
    copy_rows(q, head_of(a.q, batch * a.q_sample + (long long)first * a.q_row, head, a.depth), a.q_row, a.depth, a.queries - first);
    const float *bias[2] = {nullptr, nullptr};
    if (a.bias)
#pragma unroll
        for (int i = 0; i < 2; i++)
            bias[i] = bias_head(a, batch, head) + (long long)bias_row(a, batch, min(first + at.y + 16 * i, a.queries - 1)) * a.bias_pitch;
    float top[2] = {OUTSIDE, OUTSIDE}, sum[2] = {0.0f, 0.0f}, o[2][MOST][4];
    clear(o);
    for (int key = 0; key < a.keys; key += SIDE) {
        const int valid = min(SIDE, a.keys - key);
        __syncthreads();
        copy_rows(tile, k + (long long)key * a.k_row, a.k_row, a.depth, valid);
        arrive();
        float s[2][4];
        multiply_rows(s, q, tile, a.depth);
        float keep[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float most = OUTSIDE;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int column = at.x + 8 * j;
                s[i][j] *= a.scale;
                if (a.bias) s[i][j] += bias[i][min(key + column, a.keys - 1)];
                if (column >= valid) s[i][j] = OUTSIDE;
                most = fmaxf(most, s[i][j]);
            }
            most = fmaxf(top[i], row_max(most));
            keep[i] = expf(top[i] - most);
            top[i] = most;
            sum[i] *= keep[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float weight = expf(s[i][j] - most);
                sum[i] += weight;
                weights[(at.y + 16 * i) * SCORES + at.x + 8 * j] = weight;
            }
#pragma unroll
            for (int c = 0; c < MOST; c++)
#pragma unroll
                for (int n = 0; n < 4; n++) o[i][c][n] *= keep[i];
        }
        __syncthreads();
        copy_rows(tile, v + (long long)key * a.v_row, a.v_row, a.depth, valid);
        arrive();
        multiply_scores(o, weights, tile, a.depth, valid);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] = row_sum(sum[i]);
        const int query = first + at.y + 16 * i;
        if (at.x == 0 && query < a.queries) a.lse[((long long)batch * a.heads + head) * a.queries + query] = top[i] + logf(sum[i]);
    }
    store_rows(a.output, batch * a.output_sample + (long long)head * a.depth, a.output_row, o, 1.0f / sum[0], 1.0f / sum[1], first, a.queries, a.depth);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, first kernel: dq and `rows`. Grid as forward. Shared memory: (128·(d + 4) + 32·36) floats.

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_f32(const Attention a) {
    extern __shared__ __align__(16) float floats[];
    const int pitch = pitch_of(a.depth), head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * SIDE;
    float *q = floats, *grad = q + SIDE * pitch, *k_tile = grad + SIDE * pitch, *v_tile = k_tile + SIDE * pitch, *ds = v_tile + SIDE * pitch;
    const Place at = place();
    const float *k = head_of(a.k, batch * a.k_sample, head, a.depth), *v = head_of(a.v, batch * a.v_sample, head, a.depth);
    copy_rows(q, head_of(a.q, batch * a.q_sample + (long long)first * a.q_row, head, a.depth), a.q_row, a.depth, a.queries - first);
    copy_rows(grad, head_of(a.grad, batch * a.grad_sample + (long long)first * a.grad_row, head, a.depth), a.grad_row, a.depth, a.queries - first);
    arrive();

    const long long line = (long long)batch * a.heads + head;
    float4 *rows = (float4 *)a.rows + line * padded(a.queries);
    const float *output = head_of(a.output, batch * a.output_sample, head, a.depth);
    const float *bias[2] = {nullptr, nullptr};
    float lse[2], along[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = at.y + 16 * i, query = min(first + row, a.queries - 1), from = bias_row(a, batch, query);
        if (a.bias) bias[i] = bias_head(a, batch, head) + (long long)from * a.bias_pitch;
        lse[i] = a.lse[line * a.queries + query];
        float sum = 0.0f;
#pragma unroll
        for (int c = 0; c < MOST; c++) {
            const int column = at.x * 4 + c * SIDE;
            if (column >= a.depth) continue;
            const float4 x = *(const float4 *)(output + (long long)query * a.output_row + column);
            const float4 y = *(const float4 *)(grad + row * pitch + column);
            sum = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, sum))));
        }
        along[i] = row_sum(sum);
        if (at.x == 0 && first + row < a.queries) rows[query] = make_float4(lse[i], along[i], __int_as_float(from), 0.0f);
    }
    if (blockIdx.x == 0)
        for (int i = a.queries + threadIdx.x; i < padded(a.queries); i += blockDim.x)
            rows[i] = make_float4(NO_ROW, 0.0f, __int_as_float(0), 0.0f);

    float dq[2][MOST][4];
    clear(dq);
    for (int key = 0; key < a.keys; key += SIDE) {
        const int valid = min(SIDE, a.keys - key);
        __syncthreads();
        copy_rows(k_tile, k + (long long)key * a.k_row, a.k_row, a.depth, valid);
        copy_rows(v_tile, v + (long long)key * a.v_row, a.v_row, a.depth, valid);
        arrive();
        float s[2][4], dp[2][4];
        multiply_rows(s, q, k_tile, a.depth);
        multiply_rows(dp, grad, v_tile, a.depth);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int column = at.x + 8 * j;
                float logit = s[i][j] * a.scale;
                if (a.bias) logit += bias[i][min(key + column, a.keys - 1)];
                ds[(at.y + 16 * i) * SCORES + column] = column < valid ? expf(logit - lse[i]) * (dp[i][j] - along[i]) : 0.0f;
            }
        __syncthreads();
        multiply_scores(dq, ds, k_tile, a.depth, valid);
    }
    store_rows(a.dq, batch * a.dq_sample + (long long)head * a.depth, a.dq_row, dq, a.scale, a.scale, first, a.queries, a.depth);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, second kernel: dk and dv. Grid: tiles of 32 keys, H, B. Shared memory: (128·(d + 4) + 64·36) floats.

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_f32(const Attention a) {
    extern __shared__ __align__(16) float floats[];
    const int pitch = pitch_of(a.depth), head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * SIDE;
    float *k = floats, *v = k + SIDE * pitch, *q_tile = v + SIDE * pitch, *grad_tile = q_tile + SIDE * pitch;
    float *weights = grad_tile + SIDE * pitch, *ds = weights + SIDE * SCORES;
    const Place at = place();
    const float *q = head_of(a.q, batch * a.q_sample, head, a.depth), *grad = head_of(a.grad, batch * a.grad_sample, head, a.depth);
    copy_rows(k, head_of(a.k, batch * a.k_sample + (long long)first * a.k_row, head, a.depth), a.k_row, a.depth, a.keys - first);
    copy_rows(v, head_of(a.v, batch * a.v_sample + (long long)first * a.v_row, head, a.depth), a.v_row, a.depth, a.keys - first);
    const float4 *rows = (const float4 *)a.rows + ((long long)batch * a.heads + head) * padded(a.queries);
    float dk[2][MOST][4], dv[2][MOST][4];
    clear(dk);
    clear(dv);
    for (int query = 0; query < a.queries; query += SIDE) {
        const int valid = min(SIDE, a.queries - query);
        __syncthreads();
        copy_rows(q_tile, q + (long long)query * a.q_row, a.q_row, a.depth, valid);
        copy_rows(grad_tile, grad + (long long)query * a.grad_row, a.grad_row, a.depth, valid);
        arrive();
        float s[2][4], dp[2][4];
        multiply_rows(s, k, q_tile, a.depth);
        multiply_rows(dp, v, grad_tile, a.depth);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 known = rows[query + at.x + 8 * j];
            const float *bias = a.bias ? bias_head(a, batch, head) + (long long)__float_as_int(known.z) * a.bias_pitch : nullptr;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float logit = s[i][j] * a.scale;
                if (bias) logit += bias[min(first + at.y + 16 * i, a.keys - 1)];
                const float weight = expf(logit - known.x);
                weights[(at.y + 16 * i) * SCORES + at.x + 8 * j] = weight;
                ds[(at.y + 16 * i) * SCORES + at.x + 8 * j] = weight * (dp[i][j] - known.y);
            }
        }
        __syncthreads();
        multiply_scores(dv, weights, grad_tile, a.depth, valid);
        multiply_scores(dk, ds, q_tile, a.depth, valid);
    }
    store_rows(a.dv, batch * a.dv_sample + (long long)head * a.depth, a.dv_row, dv, 1.0f, 1.0f, first, a.keys, a.depth);
    store_rows(a.dk, batch * a.dk_sample + (long long)head * a.depth, a.dk_row, dk, a.scale, a.scale, first, a.keys, a.depth);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, third kernel: the gradient of the bias. Grid: tiles of 32 keys, tiles of 32 rows, H·slices. Shared memory:
// (128·(d + 4) + 32) floats.

extern "C" __global__ void __launch_bounds__(128) attention_bias_backward_f32(const Attention a) {
    extern __shared__ __align__(16) float floats[];
    const int pitch = pitch_of(a.depth);
    float *q_tile = floats, *grad_tile = q_tile + SIDE * pitch, *k_tile = grad_tile + SIDE * pitch, *v_tile = k_tile + SIDE * pitch;
    int *query_of = (int *)(v_tile + SIDE * pitch);
    const Place at = place();
    const int key = blockIdx.x * SIDE, row = blockIdx.y * SIDE, head = blockIdx.z % a.heads, slice = blockIdx.z / a.heads;
    const int keys = min(SIDE, a.keys - key), valid_rows = min(SIDE, a.bias_rows - row), fours = a.depth / 4;
    const int until = min(a.batch, (slice + 1) * a.slice);
    float sum[2][4] = {};
    for (int batch = slice * a.slice; batch < until; batch++) {
        __syncthreads();
        find_queries(query_of, a, batch, row, SIDE);
        copy_rows(k_tile, head_of(a.k, batch * a.k_sample + (long long)key * a.k_row, head, a.depth), a.k_row, a.depth, keys);
        copy_rows(v_tile, head_of(a.v, batch * a.v_sample + (long long)key * a.v_row, head, a.depth), a.v_row, a.depth, keys);
        __syncthreads();
        const float *q = head_of(a.q, batch * a.q_sample, head, a.depth), *grad = head_of(a.grad, batch * a.grad_sample, head, a.depth);
        for (int i = threadIdx.x; i < SIDE * fours; i += blockDim.x) {
            const int r = i / fours, c = i % fours * 4, query = query_of[r];
            const long long from = max(query, 0);
            cp_async_16_zfill(q_tile + r * pitch + c, q + from * a.q_row + c, query >= 0);
            cp_async_16_zfill(grad_tile + r * pitch + c, grad + from * a.grad_row + c, query >= 0);
        }
        arrive();
        float s[2][4], dp[2][4];
        multiply_rows(s, q_tile, k_tile, a.depth);
        multiply_rows(dp, grad_tile, v_tile, a.depth);
        const float4 *rows = (const float4 *)a.rows + ((long long)batch * a.heads + head) * padded(a.queries);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = at.y + 16 * i, query = query_of[r];
            if (query < 0) continue;
            const float4 known = rows[query];
            const float *bias = bias_head(a, batch, head) + (long long)(row + min(r, valid_rows - 1)) * a.bias_pitch;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float logit = fmaf(s[i][j], a.scale, bias[min(key + at.x + 8 * j, a.keys - 1)]);
                sum[i][j] += expf(logit - known.x) * (dp[i][j] - known.y);
            }
        }
    }
    float *to = a.dbias + ((long long)slice * a.heads + head) * a.bias_rows * a.dbias_pitch;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int r = at.y + 16 * i, column = at.x + 8 * j;
            if (r < valid_rows && column < keys) put_dbias(a, to + (long long)(row + r) * a.dbias_pitch + key + column, sum[i][j]);
        }
}
