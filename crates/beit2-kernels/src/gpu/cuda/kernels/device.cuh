// What own kernels are written in: bf16, loads of several elements at once, products of matrices by a warp, asynchronous
// copies, sums over a warp and a block. Put in front of every kernel file; nothing else is included.
//
// For a GPU (sm_80 and later) these are PTX instructions. With BEIT2_EMULATE they call tests/cuda/emulate, which runs the
// same kernels on a CPU. No kernel file has inline assembly of its own.
#pragma once

// -- bf16 ---------------------------------------------------------------------------------------------------------------

struct __align__(2) bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float to_f32(float x) { return x; }

// Two bf16 in one register, `low` in the lower half; to nearest, ties to even.
__device__ __forceinline__ unsigned pack_bf16(float low, float high);

__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 r;
    r.bits = (unsigned short)pack_bf16(x, 0.0f);
    return r;
}

// The halves of such a register.
__device__ __forceinline__ float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// For kernels that are templates over the type of their elements: to<bf16>(x), to<float>(x).
template <class T> __device__ __forceinline__ T to(float x);
template <> __device__ __forceinline__ float to<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 to<bf16>(float x) { return to_bf16(x); }

// -- Several elements at once -------------------------------------------------------------------------------------------

// N elements that lie side by side and move by one access: N · sizeof(T) is 2, 4, 8 or 16 bytes, and so is the alignment.
template <class T, int N> struct __align__(sizeof(T) * N) Vec {
    static_assert(sizeof(T) * N <= 16, "one access moves at most 16 bytes");
    T at[N];
    __device__ __forceinline__ T &operator[](int i) { return at[i]; }
    __device__ __forceinline__ const T &operator[](int i) const { return at[i]; }
};

template <int N, class T> __device__ __forceinline__ Vec<T, N> load(const T *from) { return *reinterpret_cast<const Vec<T, N> *>(from); }
template <class T, int N> __device__ __forceinline__ void store(T *to, const Vec<T, N> &value) { *reinterpret_cast<Vec<T, N> *>(to) = value; }

// N elements as f32, whatever they are in memory. N · sizeof(T) may be 32 bytes here (two accesses).
template <int N> __device__ __forceinline__ void load_f32(float (&into)[N], const bf16 *from) {
    constexpr int M = N <= 8 ? N : 8;
    static_assert(N % M == 0, "a multiple of 8, or fewer");
#pragma unroll
    for (int i = 0; i < N; i += M) {
        Vec<bf16, M> v = load<M>(from + i);
#pragma unroll
        for (int j = 0; j < M; j++) into[i + j] = to_f32(v[j]);
    }
}
template <int N> __device__ __forceinline__ void load_f32(float (&into)[N], const float *from) {
    constexpr int M = N <= 4 ? N : 4;
    static_assert(N % M == 0, "a multiple of 4, or fewer");
#pragma unroll
    for (int i = 0; i < N; i += M) {
        Vec<float, M> v = load<M>(from + i);
#pragma unroll
        for (int j = 0; j < M; j++) into[i + j] = v[j];
    }
}
template <int N> __device__ __forceinline__ void store_f32(bf16 *to, const float (&from)[N]) {
    constexpr int M = N <= 8 ? N : 8;
    static_assert(N % M == 0 && M % 2 == 0, "an even number, and a multiple of 8 above 8");
#pragma unroll
    for (int i = 0; i < N; i += M) {
        Vec<unsigned, M / 2> v;
#pragma unroll
        for (int j = 0; j < M / 2; j++) v[j] = pack_bf16(from[i + 2 * j], from[i + 2 * j + 1]);
        *reinterpret_cast<Vec<unsigned, M / 2> *>(to + i) = v;
    }
}
template <int N> __device__ __forceinline__ void store_f32(float *to, const float (&from)[N]) {
    constexpr int M = N <= 4 ? N : 4;
    static_assert(N % M == 0, "a multiple of 4, or fewer");
#pragma unroll
    for (int i = 0; i < N; i += M) {
        Vec<float, M> v;
#pragma unroll
        for (int j = 0; j < M; j++) v[j] = from[i + j];
        store(to + i, v);
    }
}

// -- A warp's matrix products -------------------------------------------------------------------------------------------

// d[16, 8] += a[16, 16] · b[16, 8], bf16 with f32 sums. All 32 lanes take part. Lane l holds, with g = l / 4 and p = 2 (l % 4):
//   a: rows g and g + 8 of columns p, p + 1 (registers 0, 1) and of columns p + 8, p + 9 (registers 2, 3)
//   b: rows p, p + 1 (register 0) and p + 8, p + 9 (register 1) of column g
//   d: columns p, p + 1 of row g (0, 1) and of row g + 8 (2, 3)
__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

// Loads 8 x 8 matrices of bf16 from shared memory: lane 8 m + r gives the address of row r (16 bytes, aligned) of matrix m
// (x2 looks at lanes 0 to 15 only, but the others' addresses must be valid too), and receives in register m its elements
// (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1); with `trans`, those of the transposed matrix.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&d)[4], const void *shared_row);
__device__ __forceinline__ void ldmatrix_x2(unsigned (&d)[2], const void *shared_row);
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&d)[4], const void *shared_row);
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&d)[2], const void *shared_row);

// -- Asynchronous copies from global to shared memory -------------------------------------------------------------------

// 16 bytes, both addresses aligned. They are there after cp_async_commit, cp_async_wait and, for other threads, a barrier.
__device__ __forceinline__ void cp_async_16(void *shared, const void *global);
// As before if `valid`, else zeros; `global` must be a valid address even then.
__device__ __forceinline__ void cp_async_16_zfill(void *shared, const void *global, bool valid);
// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit();
// Waits until at most the N latest groups are still on their way.
template <int N> __device__ __forceinline__ void cp_async_wait();

// -- Exponentials -------------------------------------------------------------------------------------------------------

// 2^x by one instruction, to about 2 units in the last place; 0 where the result is below the smallest normal number.
__device__ __forceinline__ float exp2_approx(float x);

#ifndef BEIT2_EMULATE

__device__ __forceinline__ float exp2_approx(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ __forceinline__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void mma_bf16_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void ldmatrix_x4(unsigned (&d)[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(unsigned (&d)[2], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(shared_address(shared_row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&d)[4], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&d)[2], const void *shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(shared_address(shared_row)) : "memory");
}

__device__ __forceinline__ void cp_async_16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void cp_async_16_zfill(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#else // BEIT2_EMULATE

inline float exp2_approx(float x) {
    float r = exp2f(x);
    return r < 1.17549435e-38f ? 0.0f : r;
}

inline unsigned emulated_bf16_bits(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff; // the NaN that the instruction gives
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline unsigned pack_bf16(float low, float high) { return emulated_bf16_bits(low) | emulated_bf16_bits(high) << 16; }

inline void mma_bf16_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulate_lane lane = {};
    lane.d = d;
    lane.a = a;
    lane.b = b;
    emulate_warp(EMULATE_MMA_BF16, 0xffffffffu, &lane);
}

inline void emulated_ldmatrix(emulate_warp_operation operation, unsigned *d, const void *shared_row) {
    emulate_lane lane = {};
    lane.d = d;
    lane.a = shared_row;
    emulate_warp(operation, 0xffffffffu, &lane);
}
inline void ldmatrix_x4(unsigned (&d)[4], const void *shared_row) { emulated_ldmatrix(EMULATE_LDMATRIX_X4, d, shared_row); }
inline void ldmatrix_x2(unsigned (&d)[2], const void *shared_row) { emulated_ldmatrix(EMULATE_LDMATRIX_X2, d, shared_row); }
inline void ldmatrix_x4_trans(unsigned (&d)[4], const void *shared_row) { emulated_ldmatrix(EMULATE_LDMATRIX_X4_TRANS, d, shared_row); }
inline void ldmatrix_x2_trans(unsigned (&d)[2], const void *shared_row) { emulated_ldmatrix(EMULATE_LDMATRIX_X2_TRANS, d, shared_row); }

inline void cp_async_16(void *shared, const void *global) { emulate_copy_async(shared, global, 16, 16); }
inline void cp_async_16_zfill(void *shared, const void *global, bool valid) { emulate_copy_async(shared, global, 16, valid ? 16 : 0); }
inline void cp_async_commit() { emulate_copy_commit(); }
template <int N> inline void cp_async_wait() { emulate_copy_wait(N); }

#endif

// -- Sums and maxima ----------------------------------------------------------------------------------------------------

// Over the 32 lanes of a warp; every lane receives the result. The order of summation is fixed.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int flip = 16; flip; flip /= 2) x += __shfl_xor_sync(0xffffffffu, x, flip);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int flip = 16; flip; flip /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, flip));
    return x;
}

// Over a block of THREADS threads in one dimension (a multiple of 32, at most 1024); every thread calls and receives the
// result. The order of summation is fixed.
template <int THREADS> __device__ __forceinline__ float block_sum(float x) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    __shared__ float of_warp[THREADS / 32];
    x = warp_sum(x);
    __syncthreads(); // an earlier call may still be read
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) sum += of_warp[w];
    return sum;
}
template <int THREADS> __device__ __forceinline__ float block_max(float x) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    __shared__ float of_warp[THREADS / 32];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    float most = of_warp[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; w++) most = fmaxf(most, of_warp[w]);
    return most;
}

// -- Sums over rows -----------------------------------------------------------------------------------------------------

#ifndef NAN // math.h, where there is one
#define NAN __int_as_float(0x7fc00000)
#define INFINITY __int_as_float(0x7f800000)
#endif

template <int N> __device__ __forceinline__ void fill_f32(float (&v)[N], float value) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = value;
}

// The part of a matrix that a thread goes over in a pass that sums columns. Blocks have 8 warps: a warp reads 256 columns of
// a row, 8 a thread, of every `8 * gridDim.y`th row.
struct ColumnThread {
    unsigned column; // the first of 8
    bool inside;     // whether the matrix has that column; its width is a multiple of 8
    unsigned long long row, step;
};

__device__ __forceinline__ ColumnThread column_thread(unsigned width) {
    ColumnThread t;
    t.column = blockIdx.x * 256 + threadIdx.x % 32 * 8;
    t.inside = t.column < width;
    t.row = (unsigned long long)blockIdx.y * 8 + threadIdx.x / 32;
    t.step = (unsigned long long)gridDim.y * 8;
    return t;
}

// Adds up the block's warps, in order, for its columns of `to [width]`. All threads of the block call it.
__device__ __forceinline__ void store_columns(const float (&sums)[8], float *to, unsigned width) {
    __shared__ float of_warp[8][256];
    __syncthreads(); // an earlier call may still be read
#pragma unroll
    for (int i = 0; i < 8; i++) of_warp[threadIdx.x / 32][threadIdx.x % 32 * 8 + i] = sums[i];
    __syncthreads();
    unsigned column = blockIdx.x * 256 + threadIdx.x;
    if (column < width) {
        float sum = of_warp[0][threadIdx.x];
#pragma unroll
        for (int warp = 1; warp < 8; warp++) sum += of_warp[warp][threadIdx.x];
        to[column] = sum;
    }
}
