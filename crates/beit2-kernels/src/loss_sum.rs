//! A loss and a second one with a weight.
//!
//! Contract: `loss + weight·other` of two numbers, on a GPU as one kernel each way.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use crate::graph::{record, register};
use crate::tensor::{unwrap, wrap};

/// Sums of losses on a backend's own tensors.
pub trait LossSumOps: BurnBackend {
    /// [`loss_sum`](crate::loss_sum).
    fn fused_loss_sum(loss: FloatTensor<Self>, other: FloatTensor<Self>, weight: f64) -> FloatTensor<Self> {
        unwrap(wrap::<Self, 1>(loss) + wrap::<Self, 1>(other).mul_scalar(weight))
    }

    /// The gradient of the other loss.
    fn fused_loss_sum_backward(grad: FloatTensor<Self>, weight: f64) -> FloatTensor<Self> {
        unwrap(wrap::<Self, 1>(grad).mul_scalar(weight))
    }
}

/// `loss + weight·other`, `[1]` each.
pub fn loss_sum<B: LossSumOps>(loss: Tensor<B, 1>, other: Tensor<B, 1>, weight: f64) -> Tensor<B, 1> {
    wrap(B::fused_loss_sum(unwrap(loss), unwrap(other), weight))
}

#[derive(Debug)]
struct LossSumBackward;

impl<B: LossSumOps> Backward<B, 2> for LossSumBackward {
    /// The weight.
    type State = f64;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let other = B::fused_loss_sum_backward(grad.clone(), ops.state);
        register!(B, grads, ops.parents, [grad, other]);
    }
}

impl<B: LossSumOps, C: CheckpointStrategy> LossSumOps for Autodiff<B, C> {
    fn fused_loss_sum(loss: FloatTensor<Self>, other: FloatTensor<Self>, weight: f64) -> FloatTensor<Self> {
        record!(B, C, LossSumBackward, [loss, other],
            tracked { (B::fused_loss_sum(loss.primitive, other.primitive, weight), weight) },
            untracked { B::fused_loss_sum(loss.primitive, other.primitive, weight) })
    }
}

impl LossSumOps for Flex {}

#[cfg(test)]
mod tests {
    use crate::testing::{check, random};

    #[test]
    fn matches_reference_and_differences() {
        let inputs = [random(1, 1, 2.0), random(1, 2, 2.0)];
        let reference =
            |x: &[burn::tensor::Tensor<crate::testing::Checked, 1>]| x[0].clone() + x[1].clone() * 0.4;
        check("loss_sum", &inputs, |x| super::loss_sum(x[0].clone(), x[1].clone(), 0.4), reference, 1e-6);
    }
}
