//! The code nearest to each row by cosine, and what each code stands for.
//!
//! Contract: similarities of rows and codes exist only block by block; of equally near codes
//! the first wins. Rows of a code are added in their order. No gradients.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

use crate::flex::is_f32;
use crate::tensor::{unwrap, wrap};

/// Nearest codes on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait NearestCodeOps: BurnBackend {
    /// [`nearest_code`](crate::nearest_code).
    fn fused_nearest_code(z: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        composed::nearest_code::<Self>(z, codebook)
    }

    /// [`code_counts`](crate::code_counts) in `dtype`.
    fn fused_code_counts(ids: IntTensor<Self>, codes: usize, dtype: DType) -> FloatTensor<Self> {
        composed::code_counts::<Self>(ids, codes, dtype)
    }

    /// [`code_statistics`](crate::code_statistics).
    fn fused_code_statistics(
        ids: IntTensor<Self>,
        z: FloatTensor<Self>,
        codes: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::code_statistics::<Self>(ids, z, codes)
    }
}

/// The code nearest to each row by cosine: unit rows `z [n, C]`, unit codes `codebook [K, C]` → ids
/// `[n]`; of equally near codes the first.
///
/// # Panics
/// If the widths differ.
pub fn nearest_code<B: NearestCodeOps>(z: Tensor<B, 2>, codebook: Tensor<B, 2>) -> Tensor<B, 1, Int> {
    let (dims, codes) = (z.dims(), codebook.dims());
    assert!(dims[1] == codes[1], "nearest_code: rows {dims:?} and codes {codes:?} differ in width");
    Tensor::from_primitive(B::fused_nearest_code(unwrap(z), unwrap(codebook)))
}

/// How many of `ids [n]` name each of `codes` codes: `[codes]` of type `dtype`.
pub fn code_counts<B: NearestCodeOps>(ids: Tensor<B, 1, Int>, codes: usize, dtype: DType) -> Tensor<B, 1> {
    wrap(B::fused_code_counts(ids.into_primitive(), codes, dtype))
}

/// [`code_counts`](crate::code_counts) of `ids [n]`, and the sums of the rows of `z [n, C]` that each code is named for:
/// `[codes]` and `[codes, C]`, without gradients.
///
/// # Panics
/// If the numbers of rows differ.
pub fn code_statistics<B: NearestCodeOps>(
    ids: Tensor<B, 1, Int>,
    z: Tensor<B, 2>,
    codes: usize,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let ([count], dims) = (ids.dims(), z.dims());
    assert!(count == dims[0], "code_statistics: {count} ids for rows {dims:?}");
    let (counts, sums) = B::fused_code_statistics(ids.into_primitive(), unwrap(z), codes);
    (wrap(counts), wrap(sums))
}

/// [`nearest_code`](crate::nearest_code) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(z: Tensor<B, 2>, codebook: Tensor<B, 2>) -> Tensor<B, 1, Int> {
    z.matmul(codebook.transpose()).argmax(1).squeeze_dim(1)
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn nearest_code<B: BurnBackend>(z: FloatTensor<B>, codebook: FloatTensor<B>) -> IntTensor<B> {
        super::reference::<B>(wrap(z), wrap(codebook)).into_primitive()
    }

    pub(crate) fn code_counts<B: BurnBackend>(
        ids: IntTensor<B>,
        codes: usize,
        dtype: DType,
    ) -> FloatTensor<B> {
        let ids = Tensor::<B, 1, Int>::from_primitive(ids);
        let ones = Tensor::ones([ids.dims()[0]], (&ids.device(), dtype));
        let zeros = Tensor::<B, 1>::zeros([codes], (&ids.device(), dtype));
        unwrap(zeros.select_assign(0, ids, ones, IndexingUpdateOp::Add))
    }

    pub(crate) fn code_statistics<B: BurnBackend>(
        ids: IntTensor<B>,
        z: FloatTensor<B>,
        codes: usize,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let z = wrap::<B, 2>(z);
        let counts = code_counts::<B>(ids.clone(), codes, z.dtype());
        let zeros = Tensor::<B, 2>::zeros([codes, z.dims()[1]], (&z.device(), z.dtype()));
        let sums = zeros.select_assign(0, Tensor::from_primitive(ids), z, IndexingUpdateOp::Add);
        (counts, unwrap(sums))
    }
}

impl<B: NearestCodeOps, C: CheckpointStrategy> NearestCodeOps for Autodiff<B, C> {
    // Ids have no gradient, as Burn's own `argmax`.
    fn fused_nearest_code(z: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        B::fused_nearest_code(z.primitive, codebook.primitive)
    }

    fn fused_code_counts(ids: IntTensor<Self>, codes: usize, dtype: DType) -> FloatTensor<Self> {
        Self::from_inner(B::fused_code_counts(ids, codes, dtype))
    }

    fn fused_code_statistics(
        ids: IntTensor<Self>,
        z: FloatTensor<Self>,
        codes: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (counts, sums) = B::fused_code_statistics(ids, z.primitive, codes);
        (Self::from_inner(counts), Self::from_inner(sums))
    }
}

impl NearestCodeOps for Flex {
    fn fused_nearest_code(z: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        if is_f32(&[&z, &codebook]) {
            fast::nearest(z, codebook)
        } else {
            composed::nearest_code::<Self>(z, codebook)
        }
    }
}

pub(crate) mod fast {
    use burn::tensor::{Bytes, DType};
    use burn_flex::{FlexTensor, Layout};
    use rayon::prelude::*;

    use crate::matmul::{MatmulOptions, matmul};
    use crate::matrix::{Accumulate, Matrix, with_rows};
    use crate::precision::Precision;
    use crate::simd::{dispatch, max};

    /// Rows and codes of one block of similarities: 128 KiB.
    const ROWS: usize = 64;
    const CODES: usize = 512;

    pub(crate) fn nearest(z: FlexTensor, codebook: FlexTensor) -> FlexTensor {
        let ids = with_rows(&z, |z| with_rows(&codebook, |codes| search(z, codes)));
        let shape = [ids.len()];
        FlexTensor::new(Bytes::from_elems(ids), Layout::contiguous(shape.into()), DType::I32)
    }

    fn search(z: Matrix<'_>, codes: Matrix<'_>) -> Vec<i32> {
        let mut ids = vec![0; z.rows()];
        ids.par_chunks_mut(ROWS).enumerate().for_each_init(
            || vec![0.0; ROWS * CODES],
            |similarities, (i, ids)| {
                let z = z.some_rows(i * ROWS, ids.len());
                let mut best = [f32::NEG_INFINITY; ROWS];
                for first in (0..codes.rows()).step_by(CODES) {
                    let n = CODES.min(codes.rows() - first);
                    let similarities = &mut similarities[..ids.len() * n];
                    let codes = codes.some_rows(first, n).transposed();
                    matmul(
                        similarities,
                        n,
                        Accumulate::Zero,
                        1.0,
                        z,
                        codes,
                        MatmulOptions::alone(Precision::F32),
                    );
                    update(similarities, first, &mut best[..ids.len()], ids);
                }
            },
        );
        ids
    }

    dispatch!(
        /// Takes a block of similarities with codes from number `first` on into account.
        fn update(similarities: &[f32], first: usize, best: &mut [f32], ids: &mut [i32]) => update_body
    );

    #[inline(always)]
    fn update_body<const FMA: bool>(similarities: &[f32], first: usize, best: &mut [f32], ids: &mut [i32]) {
        let rows = similarities.chunks_exact(similarities.len() / ids.len());
        for (row, (best, id)) in rows.zip(best.iter_mut().zip(ids)) {
            let top = max(row);
            // Strictly: an equal similarity of an earlier block wins.
            if top > *best {
                *best = top;
                let at = row.iter().position(|&x| x == top).unwrap_or(0);
                *id = (first + at) as i32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::random;
    use burn::backend::Flex;
    use burn::tensor::{Int, Tensor, TensorData};

    fn unit_rows(n: usize, width: usize, seed: u64) -> Tensor<Flex, 2> {
        let x: Vec<f32> = random(n * width, seed, 1.0).iter().map(|&x| x as f32).collect();
        let x = Tensor::<Flex, 2>::from_data(TensorData::new(x, [n, width]), &Default::default());
        let norm = x.clone().powi_scalar(2).sum_dim(1).sqrt();
        x / norm
    }

    #[test]
    fn matches_reference() {
        for (n, codes, width) in [(1, 1, 3), (3, 7, 5), (197, 512, 32), (130, 1500, 17)] {
            let (z, codebook) = (unit_rows(n, width, 1), unit_rows(codes, width, 2));
            let got = super::nearest_code(z.clone(), codebook.clone());
            let want = super::reference(z.clone(), codebook.clone());
            assert_eq!(got.dtype(), want.dtype());
            got.into_data().assert_eq(&want.into_data(), true);
        }
    }

    #[test]
    fn of_equal_codes_the_first_wins() {
        let codes = unit_rows(700, 4, 3);
        let twice = Tensor::cat(vec![codes.clone(), codes.clone()], 0);
        let ids = super::nearest_code(codes, twice);
        let want: Vec<i32> = (0..700).collect();
        assert_eq!(ids.into_data().to_vec::<i32>().unwrap(), want);
    }
    #[test]
    fn rows_are_counted_and_added_by_code() {
        let device = Default::default();
        let ids = Tensor::<Flex, 1, Int>::from_ints([2, 0, 2], &device);
        let z = Tensor::<Flex, 2>::from_floats([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let (counts, sums) = super::code_statistics(ids, z, 4);
        assert_eq!(counts.into_data().to_vec::<f32>().unwrap(), [1.0, 0.0, 2.0, 0.0]);
        assert_eq!(sums.into_data().to_vec::<f32>().unwrap(), [3.0, 4.0, 0.0, 0.0, 6.0, 8.0, 0.0, 0.0]);
    }
}
