// Matrices that the lanes of a warp hold together (nvcuda::wmma). Which lane holds which element is up to the implementation:
// here lane l holds elements l·n to l·n + n - 1 of the matrix, row by row.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32;
}

// f32 with the 10 bits of fraction that a product in tf32 looks at; to nearest.
inline float __float_to_tf32(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u); }

namespace emulated {
template <class T> struct Stored { using Type = T; };
template <> struct Stored<precision::tf32> { using Type = float; };
template <class Use, int M, int N, int K> struct Size;
template <int M, int N, int K> struct Size<matrix_a, M, N, K> { static constexpr int rows = M, columns = K; };
template <int M, int N, int K> struct Size<matrix_b, M, N, K> { static constexpr int rows = K, columns = N; };
template <int M, int N, int K> struct Size<accumulator, M, N, K> { static constexpr int rows = M, columns = N; };
} // namespace emulated

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static constexpr int rows = emulated::Size<Use, M, N, K>::rows, columns = emulated::Size<Use, M, N, K>::columns;
    static constexpr int num_elements = rows * columns / 32;
    typename emulated::Stored<T>::Type x[num_elements];
};

template <class F, class V> void fill_fragment(F &f, V value) {
    for (int i = 0; i < F::num_elements; i++) f.x[i] = value;
    __syncwarp();
}

namespace emulated {
// Calls `each(element of this lane, offset in memory)`.
template <class F, class Each> void elements(unsigned ld, bool by_columns, Each each) {
    for (int i = 0; i < F::num_elements; i++) {
        int number = emulate_lane_index() * F::num_elements + i;
        size_t row = size_t(number / F::columns), column = size_t(number % F::columns);
        each(i, by_columns ? column * ld + row : row * ld + column);
    }
}
} // namespace emulated

template <class Use, int M, int N, int K, class T, class Layout, class From>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &f, const From *from, unsigned ld) {
    using F = fragment<Use, M, N, K, T, Layout>;
    __syncwarp();
    emulated::elements<F>(ld, std::is_same<Layout, col_major>::value, [&](int i, size_t at) { f.x[i] = from[at]; });
    __syncwarp();
}
template <int M, int N, int K, class T, class From>
void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const From *from, unsigned ld, layout_t layout) {
    using F = fragment<accumulator, M, N, K, T>;
    __syncwarp();
    emulated::elements<F>(ld, layout == mem_col_major, [&](int i, size_t at) { f.x[i] = from[at]; });
    __syncwarp();
}
template <int M, int N, int K, class T, class To>
void store_matrix_sync(To *to, const fragment<accumulator, M, N, K, T> &f, unsigned ld, layout_t layout) {
    using F = fragment<accumulator, M, N, K, T>;
    __syncwarp();
    emulated::elements<F>(ld, layout == mem_col_major, [&](int i, size_t at) { to[at] = f.x[i]; });
    __syncwarp();
}

namespace emulated {
// Products and sums in f32; the sum is rounded to the type of the accumulator once.
template <class D, class A, class B, class C> void product(emulate_lane *const lanes[32]) {
    float a[A::rows * A::columns], b[B::rows * B::columns], d[D::rows * D::columns];
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < A::num_elements; i++) a[lane * A::num_elements + i] = float(static_cast<const A *>(lanes[lane]->a)->x[i]);
        for (int i = 0; i < B::num_elements; i++) b[lane * B::num_elements + i] = float(static_cast<const B *>(lanes[lane]->b)->x[i]);
        for (int i = 0; i < C::num_elements; i++) d[lane * C::num_elements + i] = float(static_cast<const C *>(lanes[lane]->c)->x[i]);
    }
    for (int row = 0; row < A::rows; row++)
        for (int k = 0; k < A::columns; k++)
            for (int column = 0; column < B::columns; column++) d[row * D::columns + column] += a[row * A::columns + k] * b[k * B::columns + column];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < D::num_elements; i++) static_cast<D *>(lanes[lane]->d)->x[i] = d[lane * D::num_elements + i];
}
} // namespace emulated

template <class D, class A, class B, class C> void mma_sync(D &d, const A &a, const B &b, const C &c) {
    emulate_lane lane = {};
    lane.d = &d;
    lane.a = &a;
    lane.b = &b;
    lane.c = &c;
    lane.call = emulated::product<D, A, B, C>;
    emulate_warp(EMULATE_CALL, 0xffffffffu, &lane);
}

} // namespace wmma
} // namespace nvcuda
