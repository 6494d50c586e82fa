// Attention with an additive bias, head width 64, bf16 operands, f32 sums: forward and backward.
//
// Every warp owns 16 rows (queries, or keys in `attention_keys_backward_bf16`) and multiplies them by tiles of the other
// side that the block loads into shared memory, two tiles deep. Scores stay in registers: the accumulator of one
// mma is the first operand of the next. Logits are `scale·q·k + bias`; the accumulators start at `bias / scale`, so the
// bias costs no register and its loads overlap the wait for the tile.
//
// Sums over keys, queries and samples run in one fixed order: no atomics, the same bits in every run.
//
// One layer of ViT-B (B 128, H 12, R = T = 197; N² counts without padding; bf16 everywhere, bias f32 of 1.9 MB, which stays
// in L2). Registers as ptxas 13.0 counts them for sm_90a (sm_80: within 5 of that), no spills. GB from memory.
//
//   kernel             matmuls  GFLOP    GB  registers  shared, KB  threads  blocks an SM  grid             ms, H100, by count
//   forward                  2   15.3  0.16        128        36.0      224             2  2 x 12 x 128     0.07-0.11
//   queries_backward         3   22.9  0.24        128        36.0      224             2  2 x 12 x 128     0.14-0.17
//   keys_backward            4   30.5  0.24        168        38.0      128             3  4 x 12 x 128     0.17-0.20
//   bias_backward            2   15.3  0.17        161        36.3      128             3  4 x 4 x (12·6)   0.05-0.09
//   add_parts                -      -  0.01         32           -      256             8  1820             0.01
//
// The milliseconds count cycles of shared memory and L1, which are the bound: an ldmatrix of 512 bytes takes 4 and feeds two mma
// (so at most 1024 multiply-adds a cycle and SM, 475 TFLOP/s on an H100), a read of the bias, which lies in 8 rows, 4 to 8. An
// even pitch of the bias halves its reads in the first two kernels. No GPU has measured them yet.

#include "attention.cuh"

constexpr int HEAD = 64;          // width of a head
constexpr int PITCH = HEAD + 8;   // of a row in shared memory: 144 bytes, so that 8 rows lie in different banks
constexpr int STEPS = HEAD / 16;  // of an mma along the width
constexpr float LOG2E = 1.4426950408889634f;

typedef float Scores[4]; // two columns of row g, then of row g + 8; g = lane / 4, columns 2·(lane % 4) and the next

// Two numbers as one operand register.
__device__ __forceinline__ unsigned pair(float low, float high) { return pack_bf16(low, high); }

// Starts the copy of `count` rows of a head into shared memory; rows at and after `valid` are zeros. `valid` ≥ 1.
__device__ __forceinline__ void copy_rows(bf16 *to, const bf16 *from, int row, int count, int valid, int thread, int threads) {
    for (int i = thread; i < count * (HEAD / 8); i += threads) {
        const int r = i / (HEAD / 8), c = i % (HEAD / 8) * 8;
        const bool inside = r < valid;
        cp_async_16_zfill(to + r * PITCH + c, from + (long long)(inside ? r : 0) * row + c, inside);
    }
}

// 16 rows as the first operand of an mma, for 16 columns.
__device__ __forceinline__ void rows_operand(unsigned (&a)[4], const bf16 *tile, int step) {
    const int lane = threadIdx.x & 31;
    ldmatrix_x4(a, tile + (lane & 15) * PITCH + step * 16 + (lane >> 4) * 8);
}

// The second operand of two mma whose columns are 16 tokens of a tile and whose inner axis is 16 of the width.
__device__ __forceinline__ void tokens_operand(unsigned (&b)[4], const bf16 *tile, int step) {
    const int lane = threadIdx.x & 31;
    ldmatrix_x4(b, tile + ((lane >> 4) * 8 + (lane & 7)) * PITCH + step * 16 + (lane >> 3 & 1) * 8);
}

// The second operand of two mma whose columns are 16 of the width and whose inner axis is 16 tokens of a tile.
__device__ __forceinline__ void width_operand(unsigned (&b)[4], const bf16 *tile, int step) {
    const int lane = threadIdx.x & 31;
    ldmatrix_x4_trans(b, tile + (lane & 15) * PITCH + step * 16 + (lane >> 4) * 8);
}

// Both halves of an operand of two mma.
__device__ __forceinline__ void mma_pair(Scores &c0, Scores &c1, const unsigned (&a)[4], const unsigned (&b)[4]) {
    const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma_bf16_16x8x16(c0, a, b0);
    mma_bf16_16x8x16(c1, a, b1);
}

// Scores of 16 rows with 16 tokens of a tile, onto what `c` holds.
__device__ __forceinline__ void multiply_tokens(Scores *c, const unsigned (&a)[STEPS][4], const bf16 *tile) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        unsigned b[4];
        tokens_operand(b, tile, step);
        mma_pair(c[0], c[1], a[step], b);
    }
}

// Weights of 16 rows for 16 tokens times these tokens' rows of a tile, onto what `c` holds.
__device__ __forceinline__ void multiply_width(Scores *c, const unsigned (&a)[4], const bf16 *tile) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        unsigned b[4];
        width_operand(b, tile, step);
        mma_pair(c[2 * step], c[2 * step + 1], a, b);
    }
}

// Scores of 16 tokens, as the first operand of an mma along these tokens.
__device__ __forceinline__ void scores_operand(unsigned (&a)[4], const Scores *c) {
    a[0] = pair(c[0][0], c[0][1]);
    a[1] = pair(c[0][2], c[0][3]);
    a[2] = pair(c[1][0], c[1][1]);
    a[3] = pair(c[1][2], c[1][3]);
}

// `N·8` columns of two rows of the bias from key `key` on, over the scale; zeros without a bias. `low` and `high` are the rows of
// g and g + 8. Keys at and after `keys` get the last key's.
template <int N>
__device__ __forceinline__ void start_scores(Scores *c, const float *low, const float *high, int key, int keys, bool even, float inverse) {
    if (!low) {
#pragma unroll
        for (int n = 0; n < N; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
        return;
    }
    const int first = key + (threadIdx.x & 3) * 2;
    if (even && key + N * 8 <= keys) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 x = *(const float2 *)(low + first + n * 8), y = *(const float2 *)(high + first + n * 8);
            c[n][0] = x.x * inverse, c[n][1] = x.y * inverse, c[n][2] = y.x * inverse, c[n][3] = y.y * inverse;
        }
    } else {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int at = min(first + n * 8 + i, keys - 1);
                c[n][i] = low[at] * inverse;
                c[n][2 + i] = high[at] * inverse;
            }
        }
    }
}

// Whether pairs of numbers of the bias can be read at once.
__device__ __forceinline__ bool bias_is_even(const Attention &a) {
    return a.bias_pitch % 2 == 0 && a.bias_sample % 2 == 0 && (unsigned long long)a.bias % 8 == 0;
}

// Writes 16 rows of a head, each times its factor: `low` for row g, `high` for g + 8. `room` is 16 rows of shared memory
// that only this warp uses.
__device__ __forceinline__ void store_rows(void *to, bool f32, long long sample, int row, const Scores *c, float low, float high, int first, int count, bf16 *room) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    if (f32) {
        float *out = (float *)to + sample;
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            if (first + g < count)
                *(float2 *)(out + (long long)(first + g) * row + n * 8 + t * 2) = make_float2(c[n][0] * low, c[n][1] * low);
            if (first + g + 8 < count)
                *(float2 *)(out + (long long)(first + g + 8) * row + n * 8 + t * 2) = make_float2(c[n][2] * high, c[n][3] * high);
        }
        return;
    }
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++) {
        *(unsigned *)(room + g * PITCH + n * 8 + t * 2) = pair(c[n][0] * low, c[n][1] * low);
        *(unsigned *)(room + (g + 8) * PITCH + n * 8 + t * 2) = pair(c[n][2] * high, c[n][3] * high);
    }
    __syncwarp();
    bf16 *out = (bf16 *)to + sample;
#pragma unroll
    for (int i = lane; i < 16 * (HEAD / 8); i += 32) {
        const int r = i / (HEAD / 8), col = i % (HEAD / 8) * 8;
        if (first + r < count)
            *(uint4 *)(out + (long long)(first + r) * row + col) = *(const uint4 *)(room + r * PITCH + col);
    }
}

// Rows that belong to this warp, as first operands: copied through `room`, 16 rows that only this warp uses. The
// warp's older copies must have been waited for.
__device__ __forceinline__ void load_rows(unsigned (&a)[STEPS][4], const bf16 *from, int row, int first, int count, bf16 *room) {
    const int lane = threadIdx.x & 31;
    const int valid = min(16, count - first);
    if (valid > 0) copy_rows(room, from + (long long)first * row, row, 16, valid, lane, 32);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
#pragma unroll
    for (int step = 0; step < STEPS; step++) rows_operand(a[step], room, step);
    __syncwarp();
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward. Grid: blocks of 16 queries a warp, H, B. At most 8 warps. Shared memory: 4·64·144 = 36,864 bytes.

extern "C" __global__ void __launch_bounds__(256, 2) attention_forward_bf16(const Attention a) {
    extern __shared__ __align__(16) unsigned char shared[];
    bf16 *tiles = (bf16 *)shared; // stage s: keys, then values
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2;
    const int head = blockIdx.y, batch = blockIdx.z;
    const int first = (blockIdx.x * (blockDim.x >> 5) + warp) * 16;
    const bool active = first < a.queries;
    const bf16 *k = a.k + batch * a.k_sample + head * HEAD, *v = a.v + batch * a.v_sample + head * HEAD;

    // The second stage is free until the first tile is multiplied.
    bf16 *room = tiles + 2 * TILE * PITCH + warp * 16 * PITCH;
    unsigned q[STEPS][4];
    load_rows(q, a.q + batch * a.q_sample + head * HEAD, a.q_row, first, a.queries, room);
    copy_rows(tiles, k, a.k_row, TILE, min(TILE, a.keys), threadIdx.x, blockDim.x);
    copy_rows(tiles + TILE * PITCH, v, a.v_row, TILE, min(TILE, a.keys), threadIdx.x, blockDim.x);
    cp_async_commit();

    const float *bias_low = nullptr, *bias_high = nullptr;
    if (a.bias) {
        const float *bias = bias_head(a, batch, head);
        bias_low = bias + (long long)bias_row(a, batch, min(first + g, a.queries - 1)) * a.bias_pitch;
        bias_high = bias + (long long)bias_row(a, batch, min(first + g + 8, a.queries - 1)) * a.bias_pitch;
    }
    const bool even = bias_is_even(a);
    const float inverse = 1.0f / a.scale, factor = a.scale * LOG2E;

    // In units of log 2: the largest logit so far, and the sum of 2^(logit − largest) of this lane's columns.
    float top_low = OUTSIDE, top_high = OUTSIDE, sum_low = 0.0f, sum_high = 0.0f;
    Scores o[2 * STEPS];
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;

    int stage = 0;
    for (int key = 0; key < a.keys; key += TILE, stage ^= 1) {
        Scores s[TILE / 8];
        if (active) start_scores<TILE / 8>(s, bias_low, bias_high, key, a.keys, even, inverse);
        cp_async_wait<0>();
        __syncthreads();
        const bf16 *k_tile = tiles + stage * 2 * TILE * PITCH, *v_tile = k_tile + TILE * PITCH;
        if (key + TILE < a.keys) {
            bf16 *next = tiles + (stage ^ 1) * 2 * TILE * PITCH;
            const int at = key + TILE, valid = min(TILE, a.keys - at);
            copy_rows(next, k + (long long)at * a.k_row, a.k_row, TILE, valid, threadIdx.x, blockDim.x);
            copy_rows(next + TILE * PITCH, v + (long long)at * a.v_row, a.v_row, TILE, valid, threadIdx.x, blockDim.x);
            cp_async_commit();
        }
        if (!active) continue;
        const int valid = a.keys - key;
#pragma unroll
        for (int j = 0; j < TILE / 16; j++)
            if (j * 16 < valid) multiply_tokens(s + 2 * j, q, k_tile + j * 16 * PITCH);
        if (valid < TILE) {
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (n * 8 + (lane & 3) * 2 + (i & 1) >= valid) s[n][i] = OUTSIDE;
        }

        float low = OUTSIDE, high = OUTSIDE;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            low = fmaxf(low, fmaxf(s[n][0], s[n][1]));
            high = fmaxf(high, fmaxf(s[n][2], s[n][3]));
        }
#pragma unroll
        for (int other = 1; other < 4; other <<= 1) {
            low = fmaxf(low, __shfl_xor_sync(0xffffffffu, low, other));
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, other));
        }
        low = fmaxf(top_low, low * factor);
        high = fmaxf(top_high, high * factor);
        const float keep_low = exp2_approx(top_low - low), keep_high = exp2_approx(top_high - high);
        top_low = low, top_high = high;
        sum_low *= keep_low, sum_high *= keep_high;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            s[n][0] = exp2_approx(fmaf(s[n][0], factor, -low));
            s[n][1] = exp2_approx(fmaf(s[n][1], factor, -low));
            s[n][2] = exp2_approx(fmaf(s[n][2], factor, -high));
            s[n][3] = exp2_approx(fmaf(s[n][3], factor, -high));
            sum_low += s[n][0] + s[n][1];
            sum_high += s[n][2] + s[n][3];
        }
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) o[n][0] *= keep_low, o[n][1] *= keep_low, o[n][2] *= keep_high, o[n][3] *= keep_high;
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            if (j * 16 < valid) {
                unsigned p[4];
                scores_operand(p, s + 2 * j);
                multiply_width(o, p, v_tile + j * 16 * PITCH);
            }
        }
    }

#pragma unroll
    for (int other = 1; other < 4; other <<= 1) {
        sum_low += __shfl_xor_sync(0xffffffffu, sum_low, other);
        sum_high += __shfl_xor_sync(0xffffffffu, sum_high, other);
    }
    __syncthreads(); // the last tile has been read by all
    if (!active) return;
    if ((lane & 3) == 0) {
        float *lse = a.lse + ((long long)batch * a.heads + head) * a.queries;
        if (first + g < a.queries) lse[first + g] = top_low / LOG2E + logf(sum_low);
        if (first + g + 8 < a.queries) lse[first + g + 8] = top_high / LOG2E + logf(sum_high);
    }
    store_rows(a.output, a.output_f32, batch * a.output_sample + head * HEAD, a.output_row, o, 1.0f / sum_low, 1.0f / sum_high, first, a.queries, tiles + warp * 16 * PITCH);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, first kernel: dq, and what the others read about each query (`rows`). Grid and shared memory as forward.

// Σ grad·output of this lane's columns of two rows.
__device__ __forceinline__ void along(float &low, float &high, const unsigned (&grad)[STEPS][4], const Attention &a, long long sample, int first) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    low = high = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = first + g + half * 8;
        if (query >= a.queries) continue;
        float sum = 0.0f;
        const long long at = sample + (long long)query * a.output_row + t * 2;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const long long here = at + step * 16 + part * 8;
                float x, y;
                if (a.output_f32) {
                    const float2 pair = *(const float2 *)((const float *)a.output + here);
                    x = pair.x, y = pair.y;
                } else {
                    const unsigned pair = *(const unsigned *)((const bf16 *)a.output + here);
                    x = low_bf16(pair), y = high_bf16(pair);
                }
                const unsigned d = grad[step][half + 2 * part];
                sum = fmaf(x, low_bf16(d), sum);
                sum = fmaf(y, high_bf16(d), sum);
            }
        }
        (half ? high : low) = sum;
    }
#pragma unroll
    for (int other = 1; other < 4; other <<= 1) {
        low += __shfl_xor_sync(0xffffffffu, low, other);
        high += __shfl_xor_sync(0xffffffffu, high, other);
    }
}

// Gradients of 16·N logits of two rows from their scores, the products of gradient and values, and what is known
// about the rows.
template <int N>
__device__ __forceinline__ void slopes(Scores *s, const Scores *dp, float factor, float lse_low, float lse_high, float along_low, float along_high, int valid) {
    const int column = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int n = 0; n < 2 * N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float weight = exp2_approx(fmaf(s[n][i], factor, i < 2 ? -lse_low : -lse_high));
            const float slope = weight * (dp[n][i] - (i < 2 ? along_low : along_high));
            s[n][i] = n * 8 + column + (i & 1) < valid ? slope : 0.0f;
        }
}

extern "C" __global__ void __launch_bounds__(256, 2) attention_queries_backward_bf16(const Attention a) {
    extern __shared__ __align__(16) unsigned char shared[];
    bf16 *tiles = (bf16 *)shared;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2;
    const int head = blockIdx.y, batch = blockIdx.z;
    const int first = (blockIdx.x * (blockDim.x >> 5) + warp) * 16;
    const bool active = first < a.queries;
    const bf16 *k = a.k + batch * a.k_sample + head * HEAD, *v = a.v + batch * a.v_sample + head * HEAD;

    bf16 *room = tiles + 2 * TILE * PITCH + warp * 16 * PITCH;
    unsigned q[STEPS][4], grad[STEPS][4];
    load_rows(q, a.q + batch * a.q_sample + head * HEAD, a.q_row, first, a.queries, room);
    load_rows(grad, a.grad + batch * a.grad_sample + head * HEAD, a.grad_row, first, a.queries, room);
    copy_rows(tiles, k, a.k_row, TILE, min(TILE, a.keys), threadIdx.x, blockDim.x);
    copy_rows(tiles + TILE * PITCH, v, a.v_row, TILE, min(TILE, a.keys), threadIdx.x, blockDim.x);
    cp_async_commit();

    const int low = min(first + g, a.queries - 1), high = min(first + g + 8, a.queries - 1);
    const int row_low = bias_row(a, batch, low), row_high = bias_row(a, batch, high);
    const long long place = (long long)batch * a.heads + head;
    const float lse_low = a.lse[place * a.queries + low] * LOG2E, lse_high = a.lse[place * a.queries + high] * LOG2E;
    float along_low, along_high;
    along(along_low, along_high, grad, a, batch * a.output_sample + head * HEAD, first);
    float4 *rows = (float4 *)a.rows + place * padded(a.queries);
    if ((lane & 3) == 0) {
        if (first + g < a.queries) rows[first + g] = make_float4(lse_low, along_low, __int_as_float(row_low), 0.0f);
        if (first + g + 8 < a.queries) rows[first + g + 8] = make_float4(lse_high, along_high, __int_as_float(row_high), 0.0f);
    }
    if (blockIdx.x == 0)
        for (int i = a.queries + threadIdx.x; i < padded(a.queries); i += blockDim.x)
            rows[i] = make_float4(NO_ROW, 0.0f, __int_as_float(0), 0.0f);

    const float *bias_low = nullptr, *bias_high = nullptr;
    if (a.bias) {
        const float *bias = bias_head(a, batch, head);
        bias_low = bias + (long long)row_low * a.bias_pitch;
        bias_high = bias + (long long)row_high * a.bias_pitch;
    }
    const bool even = bias_is_even(a);
    const float inverse = 1.0f / a.scale, factor = a.scale * LOG2E;
    Scores dq[2 * STEPS];
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0.0f;

    int stage = 0;
    for (int key = 0; key < a.keys; key += TILE, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        const bf16 *k_tile = tiles + stage * 2 * TILE * PITCH, *v_tile = k_tile + TILE * PITCH;
        if (key + TILE < a.keys) {
            bf16 *next = tiles + (stage ^ 1) * 2 * TILE * PITCH;
            const int at = key + TILE, valid = min(TILE, a.keys - at);
            copy_rows(next, k + (long long)at * a.k_row, a.k_row, TILE, valid, threadIdx.x, blockDim.x);
            copy_rows(next + TILE * PITCH, v + (long long)at * a.v_row, a.v_row, TILE, valid, threadIdx.x, blockDim.x);
            cp_async_commit();
        }
        if (!active) continue;
#pragma unroll 1
        for (int part = 0; part < TILE; part += 32) {
            const int valid = a.keys - key - part;
            if (valid <= 0) break;
            Scores s[4], dp[4];
            start_scores<4>(s, bias_low, bias_high, key + part, a.keys, even, inverse);
#pragma unroll
            for (int n = 0; n < 4; n++) dp[n][0] = dp[n][1] = dp[n][2] = dp[n][3] = 0.0f;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (j * 16 >= valid) continue;
                multiply_tokens(s + 2 * j, q, k_tile + (part + j * 16) * PITCH);
                multiply_tokens(dp + 2 * j, grad, v_tile + (part + j * 16) * PITCH);
            }
            slopes<2>(s, dp, factor, lse_low, lse_high, along_low, along_high, valid);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (j * 16 >= valid) continue;
                unsigned ds[4];
                scores_operand(ds, s + 2 * j);
                multiply_width(dq, ds, k_tile + (part + j * 16) * PITCH);
            }
        }
    }
    __syncthreads();
    if (!active) return;
    store_rows(a.dq, a.grads_f32, batch * a.dq_sample + head * HEAD, a.dq_row, dq, a.scale, a.scale, first, a.queries, tiles + warp * 16 * PITCH);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, second kernel: dk and dv. The same with sides swapped: a warp owns 16 keys, tiles hold queries and the output's
// gradient. Grid: blocks of 16 keys a warp, H, B. At most 4 warps. Shared memory: 4·64·144 + 2·64·16 = 38,912 bytes.

__device__ __forceinline__ void copy_queries(unsigned char *stage, const Attention &a, int batch, int head, int query) {
    bf16 *q = (bf16 *)stage, *grad = q + TILE * PITCH;
    float4 *rows = (float4 *)(grad + TILE * PITCH);
    const int valid = min(TILE, a.queries - query);
    copy_rows(q, a.q + batch * a.q_sample + (long long)query * a.q_row + head * HEAD, a.q_row, TILE, valid, threadIdx.x, blockDim.x);
    copy_rows(grad, a.grad + batch * a.grad_sample + (long long)query * a.grad_row + head * HEAD, a.grad_row, TILE, valid, threadIdx.x, blockDim.x);
    const float4 *from = (const float4 *)a.rows + ((long long)batch * a.heads + head) * padded(a.queries) + query;
    for (int i = threadIdx.x; i < TILE; i += blockDim.x) cp_async_16(rows + i, from + i);
    cp_async_commit();
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_keys_backward_bf16(const Attention a) {
    extern __shared__ __align__(16) unsigned char shared[];
    constexpr int STAGE = 2 * TILE * PITCH * (int)sizeof(bf16) + TILE * (int)sizeof(float4);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int head = blockIdx.y, batch = blockIdx.z;
    const int first = (blockIdx.x * (blockDim.x >> 5) + warp) * 16;
    const bool active = first < a.keys;

    bf16 *room = (bf16 *)(shared + STAGE) + warp * 16 * PITCH;
    unsigned k[STEPS][4], v[STEPS][4];
    load_rows(k, a.k + batch * a.k_sample + head * HEAD, a.k_row, first, a.keys, room);
    load_rows(v, a.v + batch * a.v_sample + head * HEAD, a.v_row, first, a.keys, room);
    copy_queries(shared, a, batch, head, 0);

    const float *bias = a.bias ? bias_head(a, batch, head) : nullptr;
    const int key_low = min(first + g, a.keys - 1), key_high = min(first + g + 8, a.keys - 1);
    const float inverse = 1.0f / a.scale, factor = a.scale * LOG2E;
    Scores dk[2 * STEPS], dv[2 * STEPS];
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) dk[n][i] = dv[n][i] = 0.0f;

    int stage = 0;
    for (int query = 0; query < a.queries; query += TILE, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        const bf16 *q_tile = (const bf16 *)(shared + stage * STAGE), *grad_tile = q_tile + TILE * PITCH;
        const float4 *rows = (const float4 *)(grad_tile + TILE * PITCH);
        if (query + TILE < a.queries) copy_queries(shared + (stage ^ 1) * STAGE, a, batch, head, query + TILE);
        if (!active) continue;
#pragma unroll 1
        for (int part = 0; part < TILE && query + part < a.queries; part += 32) {
            Scores s[4], dp[4];
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    s[n][i] = s[n][2 + i] = dp[n][i] = dp[n][2 + i] = 0.0f;
                    if (bias) {
                        const int row = __float_as_int(rows[part + n * 8 + t * 2 + i].z);
                        const float *from = bias + (long long)row * a.bias_pitch;
                        s[n][i] = from[key_low] * inverse;
                        s[n][2 + i] = from[key_high] * inverse;
                    }
                }
            const int valid = a.queries - query - part;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (j * 16 >= valid) continue;
                multiply_tokens(s + 2 * j, k, q_tile + (part + j * 16) * PITCH);
                multiply_tokens(dp + 2 * j, v, grad_tile + (part + j * 16) * PITCH);
            }
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float4 row = rows[part + n * 8 + t * 2 + i];
                    s[n][i] = exp2_approx(fmaf(s[n][i], factor, -row.x));
                    s[n][2 + i] = exp2_approx(fmaf(s[n][2 + i], factor, -row.x));
                    dp[n][i] = s[n][i] * (dp[n][i] - row.y);
                    dp[n][2 + i] = s[n][2 + i] * (dp[n][2 + i] - row.y);
                }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (j * 16 >= valid) continue;
                unsigned weights[4], ds[4];
                scores_operand(weights, s + 2 * j);
                multiply_width(dv, weights, grad_tile + (part + j * 16) * PITCH);
                scores_operand(ds, dp + 2 * j);
                multiply_width(dk, ds, q_tile + (part + j * 16) * PITCH);
            }
        }
    }
    __syncthreads();
    if (!active) return;
    room = (bf16 *)shared + warp * 16 * PITCH;
    store_rows(a.dv, a.grads_f32, batch * a.dv_sample + head * HEAD, a.dv_row, dv, 1.0f, 1.0f, first, a.keys, room);
    __syncwarp();
    store_rows(a.dk, a.grads_f32, batch * a.dk_sample + head * HEAD, a.dk_row, dk, a.scale, a.scale, first, a.keys, room);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, third kernel, only if asked for: the gradient of the bias. A block owns 64 rows and 64 keys of the bias of one head
// and adds the logits' gradients of a slice of the batch in registers. Grid: tiles of keys, tiles of rows, H·slices.
// 128 threads. Shared memory: 4·64·144 + 64·4 = 37,120 bytes. The queries of a sample must read different rows.

extern "C" __global__ void __launch_bounds__(128, 3) attention_bias_backward_bf16(const Attention a) {
    extern __shared__ __align__(16) unsigned char shared[];
    bf16 *q_tile = (bf16 *)shared, *grad_tile = q_tile + TILE * PITCH, *k_tile = grad_tile + TILE * PITCH, *v_tile = k_tile + TILE * PITCH;
    int *query_of = (int *)(v_tile + TILE * PITCH); // the query that reads each row, or −1
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int key = blockIdx.x * TILE, row = blockIdx.y * TILE, head = blockIdx.z % a.heads, slice = blockIdx.z / a.heads;
    const int keys = min(TILE, a.keys - key), valid_rows = min(TILE, a.bias_rows - row);
    const int until = min(a.batch, (slice + 1) * a.slice);
    const float inverse = 1.0f / a.scale, factor = a.scale * LOG2E;

    const int low = warp * 16 + g, high = low + 8;
    Scores start[TILE / 8], sum[TILE / 8]; // the bias over the scale, read once where samples share it; the gradient
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.0f;

    for (int batch = slice * a.slice; batch < until; batch++) {
        __syncthreads(); // the sample before has been read by all
        find_queries(query_of, a, batch, row, TILE);
        copy_rows(k_tile, a.k + batch * a.k_sample + (long long)key * a.k_row + head * HEAD, a.k_row, TILE, keys, threadIdx.x, blockDim.x);
        copy_rows(v_tile, a.v + batch * a.v_sample + (long long)key * a.v_row + head * HEAD, a.v_row, TILE, keys, threadIdx.x, blockDim.x);
        __syncthreads();
        const bf16 *q = a.q + batch * a.q_sample + head * HEAD, *grad = a.grad + batch * a.grad_sample + head * HEAD;
        for (int i = threadIdx.x; i < TILE * (HEAD / 8); i += blockDim.x) {
            const int r = i / (HEAD / 8), c = i % (HEAD / 8) * 8, query = query_of[r];
            const long long from = max(query, 0);
            cp_async_16_zfill(q_tile + r * PITCH + c, q + from * a.q_row + c, query >= 0);
            cp_async_16_zfill(grad_tile + r * PITCH + c, grad + from * a.grad_row + c, query >= 0);
        }
        cp_async_commit();
        const int query_low = query_of[low], query_high = query_of[high];
        const float4 *rows = (const float4 *)a.rows + ((long long)batch * a.heads + head) * padded(a.queries);
        float lse_low = NO_ROW, lse_high = NO_ROW, along_low = 0.0f, along_high = 0.0f;
        if (query_low >= 0) {
            const float4 known = rows[query_low];
            lse_low = known.x, along_low = known.y;
        }
        if (query_high >= 0) {
            const float4 known = rows[query_high];
            lse_high = known.x, along_high = known.y;
        }
        if (a.bias_sample || batch == slice * a.slice) {
            const float *bias = bias_head(a, batch, head);
            const float *bias_low = bias + (long long)(row + min(low, valid_rows - 1)) * a.bias_pitch;
            const float *bias_high = bias + (long long)(row + min(high, valid_rows - 1)) * a.bias_pitch;
            start_scores<TILE / 8>(start, bias_low, bias_high, key, a.keys, bias_is_even(a), inverse);
        }
        cp_async_wait<0>();
        __syncthreads();
        // Whether one of this warp's rows is read by a query.
        int here = 0;
        for (int r = 0; r < 16; r++) here |= query_of[warp * 16 + r] >= 0;
        if (!here) continue;
#pragma unroll
        for (int part = 0; part < TILE / 32; part++) {
            const int valid = keys - part * 32;
            if (valid <= 0) continue;
            Scores s[4], dp[4];
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[n][i] = start[part * 4 + n][i], dp[n][i] = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                unsigned x[4], y[4], b[4];
                rows_operand(x, q_tile + warp * 16 * PITCH, step);
                rows_operand(y, grad_tile + warp * 16 * PITCH, step);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    if (j * 16 >= valid) continue;
                    tokens_operand(b, k_tile + (part * 32 + j * 16) * PITCH, step);
                    mma_pair(s[2 * j], s[2 * j + 1], x, b);
                    tokens_operand(b, v_tile + (part * 32 + j * 16) * PITCH, step);
                    mma_pair(dp[2 * j], dp[2 * j + 1], y, b);
                }
            }
            slopes<2>(s, dp, factor, lse_low, lse_high, along_low, along_high, valid);
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[part * 4 + n][i] += s[n][i];
        }
    }

    float *to = a.dbias + ((long long)slice * a.heads + head) * a.bias_rows * a.dbias_pitch;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = i < 2 ? low : high, c = n * 8 + t * 2 + (i & 1);
            if (r < valid_rows && c < keys) put_dbias(a, to + (long long)(row + r) * a.dbias_pitch + key + c, sum[n][i]);
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// Around the kernels, for both precisions.

// to[i] = Σ over parts of from[part·count + i], in the order of the parts.
extern "C" __global__ void attention_add_parts(float *to, const float *from, long long count, int parts) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = from[i];
    for (int part = 1; part < parts; part++) sum += from[part * count + i];
    to[i] = sum;
}
