//! Mean cross entropy against soft targets: mixup, label smoothing.
//!
//! Contract: targets are constants; where they need a gradient, the composed version runs.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, activation};

use crate::graph::record;
use crate::tensor::{unwrap, wrap};

/// Cross entropy against soft targets on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait SoftCrossEntropyOps: BurnBackend {
    /// Whether [`soft_cross_entropy`](crate::soft_cross_entropy) of these tensors is one computation here, with a backward
    /// pass of its own.
    fn fuses_soft_cross_entropy(_logits: &FloatTensor<Self>, _targets: &FloatTensor<Self>) -> bool {
        false
    }

    /// [`soft_cross_entropy`](crate::soft_cross_entropy).
    fn fused_soft_cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::soft_cross_entropy::<Self>(logits, targets)
    }

    /// [`soft_cross_entropy`](crate::soft_cross_entropy) and what its backward pass needs besides logits and targets;
    /// only where it is one computation.
    fn fused_soft_cross_entropy_train(
        _logits: FloatTensor<Self>,
        _targets: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{} composes soft_cross_entropy", std::any::type_name::<Self>())
    }

    /// The gradient with respect to the logits from that of the mean loss, `upstream [1]`.
    fn fused_soft_cross_entropy_backward(
        _logits: FloatTensor<Self>,
        _targets: FloatTensor<Self>,
        _saved: FloatTensor<Self>,
        _upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{} composes soft_cross_entropy", std::any::type_name::<Self>())
    }
}

/// Mean over the rows of `−Σ target · log softmax(logits)`, both `[n, K]` → `[1]`.
///
/// # Panics
/// If the shapes differ.
pub fn soft_cross_entropy<B: SoftCrossEntropyOps>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let (dims, other) = (logits.dims(), targets.dims());
    assert!(dims == other, "soft_cross_entropy: targets {other:?} for logits {dims:?}");
    wrap(B::fused_soft_cross_entropy(unwrap(logits), unwrap(targets)))
}

/// [`soft_cross_entropy`](crate::soft_cross_entropy) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(logits: Tensor<B, 2>, targets: Tensor<B, 2>) -> Tensor<B, 1> {
    let rows = logits.dims()[0] as f64;
    (activation::log_softmax(logits, 1) * targets).sum().div_scalar(-rows)
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn soft_cross_entropy<B: BurnBackend>(
        logits: FloatTensor<B>,
        targets: FloatTensor<B>,
    ) -> FloatTensor<B> {
        unwrap(super::reference::<B>(wrap(logits), wrap(targets)))
    }
}

#[derive(Debug)]
struct SoftCrossEntropyBackward;

impl<B: SoftCrossEntropyOps> Backward<B, 1> for SoftCrossEntropyBackward {
    /// logits, targets, what the forward pass saved.
    type State = [FloatTensor<B>; 3];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [logits, targets, saved] = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |upstream| {
            B::fused_soft_cross_entropy_backward(logits, targets, saved, upstream)
        });
    }
}

impl<B: SoftCrossEntropyOps, C: CheckpointStrategy> SoftCrossEntropyOps for Autodiff<B, C> {
    fn fused_soft_cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        if targets.is_tracked() || !B::fuses_soft_cross_entropy(&logits.primitive, &targets.primitive) {
            return composed::soft_cross_entropy::<Self>(logits, targets);
        }
        let targets = targets.primitive;
        record!(B, C, SoftCrossEntropyBackward, [logits],
            tracked {
                let logits = logits.primitive;
                let (loss, saved) = B::fused_soft_cross_entropy_train(logits.clone(), targets.clone());
                (loss, [logits, targets, saved])
            },
            untracked { B::fused_soft_cross_entropy(logits.primitive, targets) })
    }
}

impl SoftCrossEntropyOps for Flex {}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use crate::testing::{Checked, check, random};

    /// Targets are an input here: their gradient is −log softmax / n.
    #[test]
    fn matches_reference_and_differences() {
        for (n, classes) in [(1, 1), (3, 33), (20, 100)] {
            let pair = |x: &[Tensor<Checked, 1>]| [0, 1].map(|i| x[i].clone().reshape([n, classes]));
            check(
                "soft_cross_entropy",
                &[random(n * classes, 4, 4.0), random(n * classes, 5, 1.0)],
                |x| {
                    let [logits, targets] = pair(x);
                    super::soft_cross_entropy(logits, targets)
                },
                |x| {
                    let [logits, targets] = pair(x);
                    super::reference(logits, targets)
                },
                2e-6,
            );
        }
    }
}
