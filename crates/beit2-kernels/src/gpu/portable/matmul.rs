//! Matmuls whose operands may be narrower than their result.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul as burn_matmul};
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeRuntime};

use super::custom::{Recorded, custom};
use super::is_tuned;

/// Which operand of a matmul is read transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Side {
    /// As they are.
    Neither,
    /// `lhsᵀ·rhs`
    Left,
    /// `lhs·rhsᵀ`
    Right,
}

/// The matmul of two matrices of one element type, in f32: nothing is rounded after the operands.
pub(in super::super) fn matmul<R: CubeRuntime, BT: BoolElement>(
    lhs: Recorded<R>,
    rhs: Recorded<R>,
    transposed: Side,
) -> Recorded<R> {
    let rows = lhs.shape[usize::from(transposed == Side::Left)];
    let cols = rhs.shape[usize::from(transposed != Side::Right)];
    let output = (Shape::new([rows, cols]), DType::F32);
    let mut outputs = custom::<R, BT>("matmul", vec![lhs, rhs], vec![output], move |mut inputs| {
        let (rhs, lhs) = (inputs.pop(), inputs.pop());
        lhs.zip(rhs).map(|(lhs, rhs)| multiply(lhs, rhs, transposed)).into_iter().collect()
    });
    outputs.next().unwrap_or_else(|| unreachable!("one output"))
}

/// `lhs·rhs` of the last two axes in f32, for each of the leading ones.
///
/// # Panics
/// If the device has no kernel for it, which Burn's fallback excludes.
pub(super) fn multiply<R: CubeRuntime>(
    lhs: CubeTensor<R>,
    rhs: CubeTensor<R>,
    transposed: Side,
) -> CubeTensor<R> {
    let lhs = if transposed == Side::Left { flipped(lhs) } else { lhs };
    let rhs = if transposed == Side::Right { flipped(rhs) } else { rhs };
    let strategy = if is_tuned::<R>() { MatmulStrategy::Autotune } else { MatmulStrategy::Cube };
    burn_matmul(lhs, rhs, None, strategy, DType::F32).unwrap_or_else(|error| panic!("matmul: {error:?}"))
}

/// The last two axes swapped, without moving anything.
fn flipped<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let rank = x.meta.shape().num_dims();
    let mut axes: Vec<usize> = (0..rank).collect();
    axes.swap(rank - 2, rank - 1);
    permute(x, &axes)
}
