// The codebook: the code nearest to each row, and what each code stands for.
#include "device.cuh"

// Rows and codes of a tile, and the columns of both that lie in shared memory at a time.
#define TILE 128
#define DEPTH 16

static __device__ __forceinline__ void load_halves(float (&v)[8], const float *low, const float *high) {
    Vec<float, 4> a = load<4>(low), b = load<4>(high);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = a[i];
        v[4 + i] = b[i];
    }
}

// The largest product of each of 128 rows of `z [rows, width]` with the codes of one part of `codebook [codes, width]`;
// of equals the first. f32 throughout: a rounded product could choose another code. blockIdx.y is the part, of `part`
// codes (a multiple of 128). Threads have 8 rows and 8 codes each: rows y * 8 .. and codes x * 4 .. and 64 + x * 4 ...
// best, ids: [gridDim.y, rows].
extern "C" __global__ void __launch_bounds__(256)
    nearest_code_part(const float *__restrict__ z, const float *__restrict__ codebook, float *__restrict__ best,
                      int *__restrict__ ids, unsigned rows, unsigned codes, unsigned width, unsigned part) {
    // [column][row]; 4 more than 128 to a column, so that writes by column do not meet in a bank and reads stay aligned.
    __shared__ __align__(16) float tile_z[DEPTH][TILE + 4];
    __shared__ __align__(16) float tile_c[DEPTH][TILE + 4];
    unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    unsigned first_row = blockIdx.x * TILE;
    unsigned begin = blockIdx.y * part, end = begin + part < codes ? begin + part : codes;
    float top[8];
    int id[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        top[i] = -INFINITY;
        id[i] = (int)begin;
    }
    for (unsigned first = begin; first < end; first += TILE) {
        float sums[8][8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) sums[i][j] = 0.0f;
        }
        for (unsigned depth = 0; depth < width; depth += DEPTH) {
            __syncthreads();
            // 16 threads read 16 columns of a row.
            unsigned column = depth + x;
#pragma unroll
            for (unsigned i = 0; i < TILE; i += 16) {
                unsigned row = first_row + y + i, code = first + y + i;
                bool in = column < width;
                tile_z[x][y + i] = in && row < rows ? z[(unsigned long long)row * width + column] : 0.0f;
                tile_c[x][y + i] = in && code < end ? codebook[(unsigned long long)code * width + column] : 0.0f;
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                float a[8], c[8];
                load_halves(a, &tile_z[k][y * 8], &tile_z[k][y * 8 + 4]);
                load_halves(c, &tile_c[k][x * 4], &tile_c[k][64 + x * 4]);
#pragma unroll
                for (int i = 0; i < 8; i++) {
#pragma unroll
                    for (int j = 0; j < 8; j++) sums[i][j] = fmaf(a[i], c[j], sums[i][j]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            // A thread sees its codes in ascending order, so an equal one of later does not replace the first.
            unsigned code = first + (j < 4 ? x * 4 + j : 60 + x * 4 + j);
            if (code < end) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    if (sums[i][j] > top[i]) {
                        top[i] = sums[i][j];
                        id[i] = (int)code;
                    }
                }
            }
        }
    }
    // The 16 threads of a row are neighbours in a warp.
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int by = 8; by > 0; by /= 2) {
            float other = __shfl_xor_sync(0xffffffffu, top[i], by);
            int number = __shfl_xor_sync(0xffffffffu, id[i], by);
            if (other > top[i] || (other == top[i] && number < id[i])) {
                top[i] = other;
                id[i] = number;
            }
        }
        unsigned row = first_row + y * 8 + i;
        if (x == 0 && row < rows) {
            best[(unsigned long long)blockIdx.y * rows + row] = top[i];
            ids[(unsigned long long)blockIdx.y * rows + row] = id[i];
        }
    }
}

// The nearest of all parts; of equals that of the first part.
extern "C" __global__ void __launch_bounds__(256)
    nearest_code_finish(const float *__restrict__ best, const int *__restrict__ ids, int *__restrict__ to,
                        unsigned rows, unsigned parts) {
    unsigned row = blockIdx.x * 256 + threadIdx.x;
    if (row >= rows) return;
    float top = best[row];
    int id = ids[row];
    for (unsigned part = 1; part < parts; part++) {
        unsigned long long at = (unsigned long long)part * rows + row;
        if (best[at] > top) {
            top = best[at];
            id = ids[at];
        }
    }
    to[row] = id;
}

// How many of `ids [count]` name each code: `bins [codes]`, and the sums of their rows of `z [count, width]`: `sums
// [codes, width]`. A warp has 8 codes to itself and looks at all ids in order, so the order of each sum is fixed.
// With a width of 0 only the bins; the pointers to rows are not followed then.
extern "C" __global__ void __launch_bounds__(256)
    sum_rows_by_id(const float *__restrict__ z, const int *__restrict__ ids, float *__restrict__ bins, float *sums,
                   unsigned count, unsigned codes, unsigned width) {
    unsigned lane = threadIdx.x % 32, warp = blockIdx.x * 8 + threadIdx.x / 32;
    unsigned first = warp * 8;
    if (first >= codes) return;
    unsigned mine = first + 8 < codes ? 8 : codes - first;
    float *to = sums + (unsigned long long)first * width;
    for (unsigned at = lane; at < mine * width; at += 32) to[at] = 0.0f;
    __syncwarp();
    float members = 0.0f;  // of code `first + lane`
    for (unsigned base = 0; base < count; base += 128) {
        unsigned code[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned at = base + i * 32 + lane;
            code[i] = at < count ? (unsigned)ids[at] - first : 0xffffffffu;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned here = __ballot_sync(0xffffffffu, code[i] < mine);
            // Four rows are read before any is added: where one code has most of the rows, reads would follow each other.
            while (here) {
                const float *row[4];
                unsigned which[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int source = here ? __ffs((int)here) - 1 : 0;
                    which[j] = here ? __shfl_sync(0xffffffffu, code[i], source) : 8;
                    row[j] = z + (unsigned long long)(base + i * 32 + source) * width;
                    here &= here - 1;
                    members += lane == which[j] && lane < 8 ? 1.0f : 0.0f;
                }
                for (unsigned column = lane; column < width; column += 32) {
                    float v[4];
#pragma unroll
                    for (int j = 0; j < 4; j++) v[j] = which[j] < 8 ? row[j][column] : 0.0f;
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        if (which[j] < 8) to[(unsigned long long)which[j] * width + column] += v[j];
                    }
                }
            }
        }
    }
    if (lane < mine) bins[first + lane] = members;
}
