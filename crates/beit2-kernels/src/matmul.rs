//! Matmuls on views of memory: by [`crate::packed`] where the CPU can, else in f32 by the `gemm` crate.
//!
//! Both ways sum the inner axis in an order that depends on the shapes alone.

use rayon::prelude::*;

use crate::flex::GRAIN;
use crate::matrix::{Accumulate, Matrix, span};
#[cfg(target_arch = "x86_64")]
use crate::packed;
use crate::precision::Precision;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Work below which a matmul stays on its own thread (multiplications).
const PARALLEL: usize = 1 << 21;

/// How a matmul is computed.
#[derive(Clone, Copy)]
pub(crate) struct MatmulOptions {
    /// Type of the operands. Only x86-64 has bf16 matmuls.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) precision: Precision,
    /// Whether all threads may work on it, if it is much work.
    pub(crate) parallel: bool,
}

impl MatmulOptions {
    /// On all threads.
    pub(crate) fn parallel(precision: Precision) -> Self {
        Self { precision, parallel: true }
    }

    /// On the caller's thread.
    pub(crate) fn alone(precision: Precision) -> Self {
        Self { precision, parallel: false }
    }
}

/// `dst = start + factor·a·b`, with rows of `dst` `row` apart.
pub(crate) fn matmul(
    dst: &mut [f32],
    row: usize,
    start: Accumulate<'_>,
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    how: MatmulOptions,
) {
    assert!(span(a.rows, b.cols, row, 1) <= dst.len());
    // SAFETY: the slice holds every element of the destination and is borrowed mutably.
    unsafe { matmul_at(dst.as_mut_ptr(), row, start, factor, a, b, how) }
}

/// `dst = a·b` of operands of any stored type, rows of `dst` one after another.
#[cfg(target_arch = "x86_64")]
pub(crate) fn matmul_of<A: Operand, B: Operand>(
    dst: &mut [f32],
    row: usize,
    a: Matrix<'_, A>,
    b: Matrix<'_, B>,
    how: MatmulOptions,
) {
    assert!(a.cols == b.rows && b.cols == row && a.rows * row <= dst.len());
    if let (Some(a), Some(b)) = (A::plain(a), B::plain(b)) {
        return matmul(dst, row, Accumulate::Zero, 1.0, a, b, how);
    }
    assert!(packed::is_available(how.precision) && a.cols > 0);
    // SAFETY: the slice holds the destination, and the instructions are there.
    unsafe { packed::matmul(dst.as_mut_ptr(), row, Accumulate::Zero, 1.0, a, b, how.precision, how.parallel) }
}

/// An element type that [`matmul_of`] takes.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Operand: packed::Element {
    /// The matrix, if it is one of f32.
    fn plain(x: Matrix<'_, Self>) -> Option<Matrix<'_>>;
}

#[cfg(target_arch = "x86_64")]
impl Operand for f32 {
    fn plain(x: Matrix<'_, Self>) -> Option<Matrix<'_>> {
        Some(x)
    }
}

#[cfg(target_arch = "x86_64")]
impl Operand for burn::tensor::bf16 {
    fn plain(_: Matrix<'_, Self>) -> Option<Matrix<'_>> {
        None
    }
}

/// A right-hand operand for many matmuls, in the form that they read fastest.
pub(crate) struct Packed {
    #[cfg(target_arch = "x86_64")]
    rhs: packed::PackedRhs,
}

impl Packed {
    /// `None` where matmuls read operands as they are.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(crate) fn new(b: Matrix<'_>, precision: Precision) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if b.rows > 0 && b.cols > 0 {
            let precision = packed::offered(precision)?;
            return Some(Self { rhs: packed::PackedRhs::new(b, precision, true) });
        }
        None
    }

    /// The operand itself.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rhs(&self) -> &packed::PackedRhs {
        &self.rhs
    }

    /// Length of the inner axis, and number of columns.
    pub(crate) fn dims(&self) -> [usize; 2] {
        #[cfg(target_arch = "x86_64")]
        return self.rhs.dims();
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("made by `new` only")
    }

    /// `dst = start + a·self`, with rows of `dst` side by side: what [`matmul`] gives, to the bit, for rows that lie in
    /// order.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(crate) fn matmul(&self, dst: &mut [f32], start: Accumulate<'_>, a: Matrix<'_>) {
        let [depth, cols] = self.dims();
        assert!(a.cols == depth && span(a.rows, cols, cols, 1) <= dst.len());
        if let Accumulate::Row(values) = start {
            assert_eq!(values.len(), cols);
        }
        if a.rows == 0 {
            return;
        }
        let parallel = a.rows.saturating_mul(cols).saturating_mul(depth) >= PARALLEL;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the slice holds every element of the destination and is borrowed mutably.
        unsafe {
            self.rhs.matmul(dst.as_mut_ptr(), cols, start, 1.0, a, parallel);
        }
    }
}

/// [`matmul`] to a place that other threads write around.
///
/// # Safety
/// All elements of the destination, `a.rows` rows of `b.cols` elements `row` apart, lie in one
/// allocation, and nobody else touches them during the call.
pub(crate) unsafe fn matmul_at(
    dst: *mut f32,
    row: usize,
    start: Accumulate<'_>,
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    how: MatmulOptions,
) {
    assert_eq!(a.cols, b.rows);
    if let Accumulate::Row(values) = start {
        assert_eq!(values.len(), b.cols);
    }
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    let work = a.rows.saturating_mul(b.cols).saturating_mul(a.cols);
    let parallel = how.parallel && work >= PARALLEL;
    // bf16 of any size, so that what is rounded does not depend on shapes. In f32 with AVX-512, `gemm` is as fast where
    // rows of the left-hand operand must be transposed, slower where it copies what could be read in place. With AVX2, it
    // would be no faster either, and on a better CPU it would not keep to a limit of the level.
    #[cfg(target_arch = "x86_64")]
    if let Some(precision) = packed::offered(how.precision)
        && a.cols > 0
        && (precision == Precision::Bf16 || a.col == 1 || level() == Level::Avx2)
    {
        // SAFETY: the caller vouches for the destination; `Matrix` checked the span of both operands.
        unsafe { packed::matmul(dst, row, start, factor, a, b, precision, parallel) }
        return;
    }
    // SAFETY: as above.
    unsafe { gemm_at(dst, row, start, factor, a, b, parallel) }
}

/// A destination whose rows several tasks fill.
#[derive(Clone, Copy)]
struct Place(*mut f32);

// SAFETY: memory is only reached through `row`, whose callers keep to rows of their own.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// # Safety
    /// The `n` elements from `offset` on exist, and nobody else uses them.
    unsafe fn row<'a>(self, offset: usize, n: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), n) }
    }
}

/// # Safety
/// As [`matmul_at`].
unsafe fn gemm_at(
    dst: *mut f32,
    row: usize,
    start: Accumulate<'_>,
    factor: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    parallel: bool,
) {
    if let Accumulate::Row(values) = start {
        let place = Place(dst);
        // SAFETY: row `i` of the destination, which is the caller's.
        let fill = |i: usize| unsafe { place.row(i * row, values.len()).copy_from_slice(values) };
        if parallel {
            (0..a.rows).into_par_iter().with_min_len(GRAIN.div_ceil(b.cols)).for_each(fill);
        } else {
            (0..a.rows).for_each(fill);
        }
    }
    let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the caller vouches for the destination; `Matrix` checked the span of both operands.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst,
            1,
            row as isize,
            !matches!(start, Accumulate::Zero),
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 37 % 19) as f32 - 9.0).collect()
    }

    #[test]
    fn every_combination_of_transposition() {
        let (m, k, n) = (7, 5, 3);
        let (a, b) = (numbers(m * k), numbers(k * n));
        let at = |i: usize, j: usize| a[i * k + j];
        let bt = |i: usize, j: usize| b[i * n + j];
        let transpose = |x: &[f32], r: usize, c: usize| -> Vec<f32> {
            (0..r * c).map(|i| x[i % r * c + i / r]).collect()
        };
        let (a_t, b_t) = (transpose(&a, m, k), transpose(&b, k, n));
        for (a, b) in [
            (Matrix::new(&a, m, k, k), Matrix::new(&b, k, n, n)),
            (Matrix::new(&a_t, k, m, m).transposed(), Matrix::new(&b, k, n, n)),
            (Matrix::new(&a, m, k, k), Matrix::new(&b_t, n, k, k).transposed()),
        ] {
            let mut y = vec![1.0; m * (n + 2)];
            matmul(&mut y, n + 2, Accumulate::There, 2.0, a, b, MatmulOptions::parallel(Precision::F32));
            for i in 0..m {
                for j in 0..n {
                    let sum: f32 = (0..k).map(|l| at(i, l) * bt(l, j)).sum();
                    assert_eq!(y[i * (n + 2) + j], 1.0 + 2.0 * sum);
                }
                assert_eq!(y[i * (n + 2) + n], 1.0);
            }
        }
    }
}
