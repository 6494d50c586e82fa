//! `x·Wᵀ + b` and its gradients.

use burn::tensor::ops::FloatTensor;
use burn_cubecl::BoolElement;
use cubecl::cuda::CudaRuntime;

use super::super::Gpu;
use super::super::portable::linear;
use crate::{LinearOps, Precision};

impl<BT: BoolElement> LinearOps for Gpu<CudaRuntime, BT> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        linear::forward::<CudaRuntime, BT>(x, weight, bias, precision)
    }

    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        linear::backward_input::<CudaRuntime, BT>(weight, grad, precision)
    }

    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        linear::backward_weight::<CudaRuntime, BT>(x, grad, precision)
    }
}
