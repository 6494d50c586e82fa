//! Mean of 1 − cosine over rows: how far decoded features are from a teacher's.
//!
//! Contract: there is no epsilon, as in the reference; a row of zeros gives NaN. Where the second operand needs a gradient, the
//! composed version runs.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use crate::graph::record;
use crate::tensor::{unwrap, wrap};

/// The loss on a backend's own tensors. Shapes are those of [`cosine_loss`](crate::cosine_loss).
pub trait CosineLossOps: BurnBackend {
    /// Whether the loss of these tensors is one computation here, with a backward pass of its own.
    fn fuses_cosine_loss(_a: &FloatTensor<Self>, _b: &FloatTensor<Self>) -> bool {
        false
    }

    /// [`cosine_loss`](crate::cosine_loss).
    fn fused_cosine_loss(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::cosine_loss::<Self>(a, b)
    }

    /// [`cosine_loss`](crate::cosine_loss) and what its backward pass needs beside both operands; only where it is one
    /// computation.
    fn fused_cosine_loss_train(
        _a: FloatTensor<Self>,
        _b: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{} composes cosine_loss", std::any::type_name::<Self>())
    }

    /// The gradient of `a` from that of the loss, `upstream [1]`; only where it is one computation.
    fn fused_cosine_loss_backward(
        _a: FloatTensor<Self>,
        _b: FloatTensor<Self>,
        _saved: FloatTensor<Self>,
        _upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        unreachable!("{} composes cosine_loss", std::any::type_name::<Self>())
    }
}

/// Mean over rows of 1 − cos(a, b), both `[B, N, D]`, without an epsilon → `[1]`.
///
/// # Panics
/// If the shapes differ.
pub fn cosine_loss<B: CosineLossOps>(a: Tensor<B, 3>, b: Tensor<B, 3>) -> Tensor<B, 1> {
    let (dims, other) = (a.dims(), b.dims());
    assert!(dims == other, "cosine_loss: {dims:?} against {other:?}");
    wrap(B::fused_cosine_loss(unwrap(a), unwrap(b)))
}

/// [`cosine_loss`](crate::cosine_loss) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(a: Tensor<B, 3>, b: Tensor<B, 3>) -> Tensor<B, 1> {
    let unit = |x: Tensor<B, 3>| x.clone() / x.powi_scalar(2).sum_dim(2).sqrt();
    (unit(a) * unit(b)).sum_dim(2).mean().neg().add_scalar(1.0)
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn cosine_loss<B: BurnBackend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
        unwrap(super::reference::<B>(wrap(a), wrap(b)))
    }
}

#[derive(Debug)]
struct CosineLossBackward;

impl<B: CosineLossOps> Backward<B, 1> for CosineLossBackward {
    /// Both operands and what the forward pass saved.
    type State = [FloatTensor<B>; 3];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [a, b, saved] = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |upstream| {
            B::fused_cosine_loss_backward(a, b, saved, upstream)
        });
    }
}

impl<B: CosineLossOps, C: CheckpointStrategy> CosineLossOps for Autodiff<B, C> {
    fn fused_cosine_loss(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        if b.is_tracked() || !B::fuses_cosine_loss(&a.primitive, &b.primitive) {
            return composed::cosine_loss::<Self>(a, b);
        }
        let b = b.primitive;
        record!(B, C, CosineLossBackward, [a],
            tracked {
                let a = a.primitive;
                let (loss, saved) = B::fused_cosine_loss_train(a.clone(), b.clone());
                (loss, [a, b, saved])
            },
            untracked { B::fused_cosine_loss(a.primitive, b) })
    }
}

impl CosineLossOps for Flex {}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Tensor;

    #[test]
    fn is_the_mean_over_rows() {
        let device = Default::default();
        let a = Tensor::<Flex, 3>::from_floats([[[3.0, 0.0], [2.0, 2.0], [1.0, -1.0]]], &device);
        let b = Tensor::<Flex, 3>::from_floats([[[0.5, 0.0], [0.0, 4.0], [-5.0, 5.0]]], &device);
        let loss = super::cosine_loss(a, b).into_data().to_vec::<f32>().unwrap();
        let want = (0.0 + (1.0 - 0.5f32.sqrt()) + 2.0) / 3.0;
        assert!((loss[0] - want).abs() < 1e-6, "{loss:?}, not {want}");
    }
}
