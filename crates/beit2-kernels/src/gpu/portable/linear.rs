//! `x·Wᵀ + b` and its gradients by Burn's matmuls.

use burn::tensor::Shape;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::{BoolElement, CubeRuntime};

use super::matmul::{Side, matmul};
use super::{Gpu, is_tuned, operands};
use crate::tensor::{from_rows, rows, unwrap, wrap};
use crate::{Precision, linear};

/// A tensor of a GPU's backend.
type GpuTensor<R, BT> = FloatTensor<Gpu<R, BT>>;

/// Rows of a tensor in the element type that matmuls see.
fn operand<B: BurnBackend>(x: FloatTensor<B>, precision: Precision) -> FloatTensor<B> {
    unwrap(rows::<B>(x).cast(operands(precision)))
}

/// Whether Burn's own matmul is taken, which fusion may join with what follows, and which is always tuned.
fn is_burns<R: CubeRuntime>(precision: Precision) -> bool {
    precision == Precision::F32 && is_tuned::<R>()
}

/// `x·Wᵀ + b`
pub(in super::super) fn forward<R: CubeRuntime, BT: BoolElement>(
    x: GpuTensor<R, BT>,
    weight: GpuTensor<R, BT>,
    bias: Option<GpuTensor<R, BT>>,
    precision: Precision,
) -> GpuTensor<R, BT> {
    if is_burns::<R>(precision) {
        return linear::composed::linear::<Gpu<R, BT>>(x, weight, bias, precision);
    }
    let shape = with_last(&x.shape, weight.shape[0]);
    let [x, weight] = [x, weight].map(|x| operand::<Gpu<R, BT>>(x, precision));
    let y = wrap::<Gpu<R, BT>, 2>(matmul::<R, BT>(x, weight, Side::Right));
    let y = match bias {
        Some(bias) => y + wrap::<Gpu<R, BT>, 1>(bias).unsqueeze(),
        None => y,
    };
    from_rows(shape, y)
}

/// `grad·W`
pub(in super::super) fn backward_input<R: CubeRuntime, BT: BoolElement>(
    weight: GpuTensor<R, BT>,
    grad: GpuTensor<R, BT>,
    precision: Precision,
) -> GpuTensor<R, BT> {
    if is_burns::<R>(precision) {
        return linear::composed::linear_backward_input::<Gpu<R, BT>>(weight, grad, precision);
    }
    let shape = with_last(&grad.shape, weight.shape[1]);
    let [grad, weight] = [grad, weight].map(|x| operand::<Gpu<R, BT>>(x, precision));
    from_rows(shape, wrap::<Gpu<R, BT>, 2>(matmul::<R, BT>(grad, weight, Side::Neither)))
}

/// `gradᵀ·x`
pub(in super::super) fn backward_weight<R: CubeRuntime, BT: BoolElement>(
    x: GpuTensor<R, BT>,
    grad: GpuTensor<R, BT>,
    precision: Precision,
) -> GpuTensor<R, BT> {
    if is_burns::<R>(precision) {
        return linear::composed::linear_backward_weight::<Gpu<R, BT>>(x, grad, precision);
    }
    let [x, grad] = [x, grad].map(|x| operand::<Gpu<R, BT>>(x, precision));
    matmul::<R, BT>(grad, x, Side::Left)
}

/// `shape` with another last axis.
pub(in super::super) fn with_last(shape: &Shape, width: usize) -> Shape {
    let mut shape = shape.clone();
    let last = shape.num_dims() - 1;
    shape[last] = width;
    shape
}
