//! Linear layer, tanh, linear layer: what stands between a Transformer of the tokenizer and its task.
//!
//! Contract: `W₂·tanh(W₁·x + b₁) + b₂`. NVIDIA's GPUs do it in one operation each way: in bf16, values between the matmuls and
//! their gradients are bf16 there, and gradients of biases are sums of what a matmul reads; x and the result stay f32.
//! Elsewhere it is composed of [`linear`](crate::linear) and Burn's tanh.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use crate::graph::{record, register};
use crate::interrupt::tick;
use crate::linear::LinearOps;
use crate::precision::Precision;
use crate::tensor::{unwrap, wrap};

/// Both layers: weight `[H, I]` and bias `[H]`, weight `[O, H]` and bias `[O]`.
pub type TanhMlpTensors<T> = [T; 4];

/// The layers on a backend's own tensors.
pub trait TanhMlpOps: LinearOps {
    /// Whether [`tanh_mlp`](crate::tanh_mlp) of these tensors is one computation here, with a backward pass of its own.
    fn fuses_tanh_mlp(
        _x: &FloatTensor<Self>,
        _layers: &TanhMlpTensors<FloatTensor<Self>>,
        _precision: Precision,
    ) -> bool {
        false
    }

    /// [`tanh_mlp`](crate::tanh_mlp).
    fn fused_tanh_mlp(
        x: FloatTensor<Self>,
        layers: TanhMlpTensors<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::tanh_mlp::<Self>(x, layers, precision)
    }

    /// [`tanh_mlp`](crate::tanh_mlp) and what its backward pass needs (a backend knows what its own means); only where it is one
    /// computation.
    fn fused_tanh_mlp_train(
        _x: FloatTensor<Self>,
        _layers: TanhMlpTensors<FloatTensor<Self>>,
        _precision: Precision,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        unreachable!("{} composes tanh_mlp", std::any::type_name::<Self>())
    }

    /// Gradients of x and of the layers, from what the forward pass saved; only where it is one computation.
    fn fused_tanh_mlp_backward(
        _saved: Vec<FloatTensor<Self>>,
        _grad: FloatTensor<Self>,
        _precision: Precision,
    ) -> (FloatTensor<Self>, TanhMlpTensors<FloatTensor<Self>>) {
        unreachable!("{} composes tanh_mlp", std::any::type_name::<Self>())
    }
}

/// `W₂·tanh(W₁·x + b₁) + b₂` with matmuls in `precision`: `x [B, N, I]`, weights and biases `[H, I]`, `[H]` and `[O, H]`, `[O]` →
/// `[B, N, O]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn tanh_mlp<B: TanhMlpOps>(
    x: Tensor<B, 3>,
    first: (Tensor<B, 2>, Tensor<B, 1>),
    second: (Tensor<B, 2>, Tensor<B, 1>),
    precision: Precision,
) -> Tensor<B, 3> {
    let ([batch, count, width], [hidden, inner], [outputs, between]) =
        (x.dims(), first.0.dims(), second.0.dims());
    assert!(
        inner == width && between == hidden && first.1.dims() == [hidden] && second.1.dims() == [outputs],
        "tanh_mlp: weights [{hidden}, {inner}] and [{outputs}, {between}] with their biases do not fit x [{batch}, {count}, {width}]"
    );
    let layers = [unwrap(first.0), unwrap(first.1), unwrap(second.0), unwrap(second.1)];
    wrap(B::fused_tanh_mlp(unwrap(x), layers, precision))
}

/// From a backend's other operations.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn tanh_mlp<B: LinearOps>(
        x: FloatTensor<B>,
        [w1, b1, w2, b2]: TanhMlpTensors<FloatTensor<B>>,
        precision: Precision,
    ) -> FloatTensor<B> {
        let hidden = crate::linear::<B, 3>(wrap(x), wrap(w1), Some(wrap(b1)), precision).tanh();
        unwrap(crate::linear(hidden, wrap(w2), Some(wrap(b2)), precision))
    }
}

#[derive(Debug)]
struct TanhMlpBackward;

impl<B: TanhMlpOps> Backward<B, 5> for TanhMlpBackward {
    /// What the forward pass saved, and operations of the forward pass.
    type State = (Vec<FloatTensor<B>>, Precision, usize);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (saved, precision, operations) = ops.state;
        let (dx, [w1, b1, w2, b2]) = B::fused_tanh_mlp_backward(saved, grad, precision);
        register!(B, grads, ops.parents, [dx, w1, b1, w2, b2]);
        tick(2 * operations);
    }
}

/// Operations of both matmuls.
fn operations<B: BurnBackend>(x: &FloatTensor<B>, layers: &TanhMlpTensors<FloatTensor<B>>) -> usize {
    use burn::tensor::TensorMetadata;
    let (x, w1, w2) = (x.shape(), layers[0].shape(), layers[2].shape());
    let rows = x.num_elements() / w1[1].max(1);
    2 * rows * (w1.num_elements() + w2.num_elements())
}

impl<B: TanhMlpOps, C: CheckpointStrategy> TanhMlpOps for Autodiff<B, C> {
    fn fused_tanh_mlp(
        x: FloatTensor<Self>,
        layers: TanhMlpTensors<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let inner = layers.clone().map(|tensor| tensor.primitive);
        if !B::fuses_tanh_mlp(&x.primitive, &inner, precision) {
            return composed::tanh_mlp::<Self>(x, layers, precision);
        }
        let operations = operations::<B>(&x.primitive, &inner);
        tick(operations);
        let [w1, b1, w2, b2] = layers;
        record!(B, C, TanhMlpBackward, [x, w1, b1, w2, b2],
            tracked {
                let (y, saved) = B::fused_tanh_mlp_train(x.primitive, inner, precision);
                (y, (saved, precision, operations))
            },
            untracked { B::fused_tanh_mlp(x.primitive, inner, precision) })
    }
}

impl TanhMlpOps for Flex {}
