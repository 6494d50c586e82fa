//! Relative position biases of all pairs of tokens from a table.
//!
//! Contract: token 0 is CLS, the others are a grid of patches row by row. The bias of a pair is the table's row for its
//! offset (docs/method.md §2.1). A GPU finds the row by arithmetic, and adds the gradient of each row over its pairs in a
//! fixed order; elsewhere an index does the same with Burn's primitives.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use crate::graph::{record, register};
use crate::tensor::{unwrap, wrap};

/// Which pairs of tokens a table of biases is spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionGrid {
    /// Rows of patches.
    pub rows: usize,
    /// Columns of patches.
    pub cols: usize,
    /// Rows and columns that the table was made for, not fewer.
    pub table: (usize, usize),
}

impl PositionGrid {
    /// Tokens, CLS included.
    pub fn tokens(&self) -> usize {
        self.rows * self.cols + 1
    }

    /// Rows of the table: every offset, and three for CLS.
    pub fn table_len(&self) -> usize {
        (2 * self.table.0 - 1) * (2 * self.table.1 - 1) + 3
    }
}

/// Position biases on a backend's own tensors.
pub trait PositionBiasOps: BurnBackend {
    /// Whether this operation (on f32) is one computation here, with a backward pass of its own.
    fn fuses_position_bias(_device: &Self::Device) -> bool {
        false
    }

    /// [`position_bias`](crate::position_bias).
    fn fused_position_bias(
        table: FloatTensor<Self>,
        index: IntTensor<Self>,
        grid: PositionGrid,
    ) -> FloatTensor<Self> {
        composed::position_bias::<Self>(table, index, grid)
    }

    /// The gradient of the table for one of the biases; only where it is one computation.
    fn fused_position_bias_backward(
        grad: FloatTensor<Self>,
        index: IntTensor<Self>,
        grid: PositionGrid,
    ) -> FloatTensor<Self> {
        composed::position_bias_backward::<Self>(grad, index, grid)
    }
}

/// Biases `[1, H, T, T]` of all pairs of T tokens: `table [L, H]`, `index [T·T]` its row for each pair of (query, key).
///
/// # Panics
/// If table and index do not fit the grid.
pub fn position_bias<B: PositionBiasOps>(
    table: Tensor<B, 2>,
    index: Tensor<B, 1, Int>,
    grid: PositionGrid,
) -> Tensor<B, 4> {
    let (tokens, len) = (grid.tokens(), grid.table_len());
    let ([found, _], [pairs]) = (table.dims(), index.dims());
    assert!(
        found == len && pairs == tokens * tokens && grid.rows <= grid.table.0 && grid.cols <= grid.table.1,
        "position_bias: a table of {found} rows and an index of {pairs} pairs do not fit {grid:?}"
    );
    wrap(B::fused_position_bias(unwrap(table), index.into_primitive(), grid))
}

/// Burn's primitives on a backend's own tensors.
pub(crate) mod composed {
    use burn::tensor::IndexingUpdateOp;

    use super::*;

    pub(crate) fn position_bias<B: BurnBackend>(
        table: FloatTensor<B>,
        index: IntTensor<B>,
        grid: PositionGrid,
    ) -> FloatTensor<B> {
        let (table, index) = (wrap::<B, 2>(table), Tensor::<B, 1, Int>::from_primitive(index));
        let (heads, tokens) = (table.dims()[1], grid.tokens());
        let biases = table
            .select(0, index)
            .transpose() // [H, T²]
            // One axis forces a copy in order here, once, instead of in every block that reads the biases.
            .reshape([heads * tokens * tokens])
            .reshape([1, heads, tokens, tokens]);
        unwrap(biases)
    }

    pub(crate) fn position_bias_backward<B: BurnBackend>(
        grad: FloatTensor<B>,
        index: IntTensor<B>,
        grid: PositionGrid,
    ) -> FloatTensor<B> {
        let (grad, index) = (wrap::<B, 4>(grad), Tensor::<B, 1, Int>::from_primitive(index));
        let [_, heads, tokens, _] = grad.dims();
        let zeros = Tensor::<B, 2>::zeros([grid.table_len(), heads], (&grad.device(), grad.dtype()));
        let pairs = grad.reshape([heads, tokens * tokens]).transpose();
        unwrap(zeros.select_assign(0, index, pairs, IndexingUpdateOp::Add))
    }
}

#[derive(Debug)]
struct PositionBiasBackward;

impl<B: PositionBiasOps> Backward<B, 1> for PositionBiasBackward {
    type State = (IntTensor<B>, PositionGrid);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (index, grid) = ops.state;
        register!(B, grads, ops.parents, [B::fused_position_bias_backward(grad, index, grid)]);
    }
}

impl<B: PositionBiasOps, C: CheckpointStrategy> PositionBiasOps for Autodiff<B, C> {
    fn fused_position_bias(
        table: FloatTensor<Self>,
        index: IntTensor<Self>,
        grid: PositionGrid,
    ) -> FloatTensor<Self> {
        if !B::fuses_position_bias(&B::float_device(&table.primitive)) {
            return composed::position_bias::<Self>(table, index, grid);
        }
        record!(B, C, PositionBiasBackward, [table],
            tracked { (B::fused_position_bias(table.primitive, index.clone(), grid), (index, grid)) },
            untracked { B::fused_position_bias(table.primitive, index, grid) })
    }
}

impl PositionBiasOps for Flex {}
