//! A Transformer's MLP branch, `W₂·gelu(W₁·LN(x) + b₁) + b₂`, as one operation.
//!
//! Contract: rows are taken in blocks that stay in the second-level cache from the norm to the result, so that hidden
//! values cross memory once. The backward pass keeps the normalised rows, the activations and GELU's derivative, in the
//! matmuls' precision (what matmuls round anyway; the derivative is rounded too), and nothing else of the size of the
//! hidden layer.

#[cfg(target_arch = "x86_64")]
pub(crate) mod fast;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

#[cfg(target_arch = "x86_64")]
use crate::flex::is_f32;
use crate::gelu::GeluOps;
use crate::graph::{record, register};
use crate::interrupt::tick;
use crate::layer_norm::LayerNormOps;
use crate::linear::{LinearOps, PackedWeight};
#[cfg(target_arch = "x86_64")]
use crate::packed;
use crate::precision::Precision;
use crate::tensor::{unwrap, wrap};

/// Parameters of the branch.
#[derive(Debug, Clone)]
pub struct NormMlp<B: BurnBackend> {
    /// Scale and shift of the norm, `[D]` each.
    pub norm: [Tensor<B, 1>; 2],
    /// ε of the norm.
    pub eps: f64,
    /// `[H, D]` and `[H]`.
    pub fc1: (Tensor<B, 2>, Tensor<B, 1>),
    /// `[D, H]` and `[D]`.
    pub fc2: (Tensor<B, 2>, Tensor<B, 1>),
    /// Of the matmuls, forward and backward.
    pub precision: Precision,
}

/// The same on a backend's own tensors.
#[derive(Debug, Clone)]
pub struct NormMlpTensors<B: BurnBackend> {
    /// Scale and shift of the norm, W₁, b₁, W₂, b₂.
    pub tensors: [FloatTensor<B>; 6],
    /// ε of the norm.
    pub eps: f64,
    /// Of the matmuls.
    pub precision: Precision,
}

/// What a backward pass needs besides the input and the parameters; a backend knows what its own means.
pub type NormMlpSaved<B> = Vec<FloatTensor<B>>;

/// A Transformer's MLP branch on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait NormMlpOps: LayerNormOps + GeluOps + LinearOps {
    /// Whether [`norm_mlp`](crate::norm_mlp) of these tensors is one computation here, with a backward pass of its own.
    fn fuses_norm_mlp(_x: &FloatTensor<Self>, _p: &NormMlpTensors<Self>) -> bool {
        false
    }

    /// [`norm_mlp`](crate::norm_mlp).
    fn fused_norm_mlp(x: FloatTensor<Self>, p: NormMlpTensors<Self>) -> FloatTensor<Self> {
        composed::norm_mlp::<Self>(x, p)
    }

    /// [`norm_mlp_packed`](crate::norm_mlp_packed), for backends that pack.
    fn fused_norm_mlp_packed(
        x: FloatTensor<Self>,
        norm: [FloatTensor<Self>; 2],
        eps: f64,
        fc1: (&PackedWeight, FloatTensor<Self>),
        fc2: (&PackedWeight, FloatTensor<Self>),
    ) -> FloatTensor<Self> {
        composed::norm_mlp_packed::<Self>(x, norm, eps, fc1, fc2)
    }

    /// [`norm_mlp`](crate::norm_mlp) and what its backward pass needs; only where it is one computation.
    fn fused_norm_mlp_train(
        _x: FloatTensor<Self>,
        _p: NormMlpTensors<Self>,
    ) -> (FloatTensor<Self>, NormMlpSaved<Self>) {
        unreachable!("{} composes norm_mlp", std::any::type_name::<Self>())
    }

    /// Gradients of [`norm_mlp`](crate::norm_mlp) with respect to x and the parameters in their order.
    fn fused_norm_mlp_backward(
        _x: FloatTensor<Self>,
        _p: NormMlpTensors<Self>,
        _saved: NormMlpSaved<Self>,
        _grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 6]) {
        unreachable!("{} composes norm_mlp", std::any::type_name::<Self>())
    }
}

/// `W₂·gelu(W₁·LN(x) + b₁) + b₂` with exact GELU: `x [.., D]` → `[.., D]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn norm_mlp<B: NormMlpOps, const D: usize>(x: Tensor<B, D>, p: NormMlp<B>) -> Tensor<B, D> {
    let width = x.dims()[D - 1];
    let [hidden, inner] = p.fc1.0.dims();
    let vectors = [p.norm[0].dims(), p.norm[1].dims(), p.fc2.1.dims()];
    assert!(
        inner == width
            && p.fc2.0.dims() == [width, hidden]
            && p.fc1.1.dims() == [hidden]
            && vectors == [[width]; 3],
        "norm_mlp: weights [{hidden}, {inner}] and {:?} do not fit x {:?}",
        p.fc2.0.dims(),
        x.dims()
    );
    let [scale, shift] = p.norm;
    let tensors =
        [unwrap(scale), unwrap(shift), unwrap(p.fc1.0), unwrap(p.fc1.1), unwrap(p.fc2.0), unwrap(p.fc2.1)];
    let values: usize = x.dims().iter().product();
    let y =
        wrap(B::fused_norm_mlp(unwrap(x), NormMlpTensors { tensors, eps: p.eps, precision: p.precision }));
    tick(operations(values, hidden));
    y
}

/// Operations of both matmuls for this many values of the input.
fn operations(values: usize, hidden: usize) -> usize {
    4 * values * hidden
}

/// [`norm_mlp`] of a frozen branch: packed weights with their biases, the same to the bit.
pub fn norm_mlp_packed<B: NormMlpOps, const D: usize>(
    x: Tensor<B, D>,
    norm: [Tensor<B, 1>; 2],
    eps: f64,
    fc1: (&PackedWeight, Tensor<B, 1>),
    fc2: (&PackedWeight, Tensor<B, 1>),
) -> Tensor<B, D> {
    let width = x.dims()[D - 1];
    let ([hidden, inner], out) = (fc1.0.dims(), fc2.0.dims());
    let vectors = [norm[0].dims(), norm[1].dims(), fc2.1.dims()];
    assert!(
        inner == width && out == [width, hidden] && fc1.1.dims() == [hidden] && vectors == [[width]; 3],
        "norm_mlp_packed: weights [{hidden}, {inner}] and {out:?} do not fit x {:?}",
        x.dims()
    );
    let fc1 = (fc1.0, unwrap(fc1.1));
    let fc2 = (fc2.0, unwrap(fc2.1));
    let values: usize = x.dims().iter().product();
    let y = wrap(B::fused_norm_mlp_packed(unwrap(x), norm.map(unwrap), eps, fc1, fc2));
    tick(operations(values, hidden));
    y
}

/// The branch from a backend's other operations.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn norm_mlp<B: NormMlpOps>(x: FloatTensor<B>, p: NormMlpTensors<B>) -> FloatTensor<B> {
        let [scale, shift, w1, b1, w2, b2] = p.tensors;
        let (x, ..) = B::fused_layer_norm(x, scale, shift, p.eps);
        let hidden = B::fused_gelu(B::fused_linear(x, w1, Some(b1), p.precision));
        B::fused_linear(hidden, w2, Some(b2), p.precision)
    }

    pub(crate) fn norm_mlp_packed<B: NormMlpOps>(
        x: FloatTensor<B>,
        [scale, shift]: [FloatTensor<B>; 2],
        eps: f64,
        (w1, b1): (&PackedWeight, FloatTensor<B>),
        (w2, b2): (&PackedWeight, FloatTensor<B>),
    ) -> FloatTensor<B> {
        let (x, ..) = B::fused_layer_norm(x, scale, shift, eps);
        let hidden = B::fused_gelu(B::fused_linear_packed(x, w1, Some(b1)));
        B::fused_linear_packed(hidden, w2, Some(b2))
    }
}

/// Parents: x, then the parameters in their order.
#[derive(Debug)]
struct NormMlpBackward;

impl<B: NormMlpOps> Backward<B, 7> for NormMlpBackward {
    type State = (FloatTensor<B>, NormMlpTensors<B>, NormMlpSaved<B>);

    fn backward(self, ops: Ops<Self::State, 7>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, parameters, saved) = ops.state;
        let (values, hidden) = (x.shape().num_elements(), parameters.tensors[3].shape()[0]);
        let (dx, rest) = B::fused_norm_mlp_backward(x, parameters, saved, grad);
        register!(B, grads, ops.parents, std::iter::once(dx).chain(rest));
        tick(2 * operations(values, hidden));
    }
}

impl<B: NormMlpOps, C: CheckpointStrategy> NormMlpOps for Autodiff<B, C> {
    fn fused_norm_mlp(x: FloatTensor<Self>, p: NormMlpTensors<Self>) -> FloatTensor<Self> {
        let inner = p.tensors.clone().map(|tensor| tensor.primitive);
        let inner = NormMlpTensors::<B> { tensors: inner, eps: p.eps, precision: p.precision };
        if !B::fuses_norm_mlp(&x.primitive, &inner) {
            return composed::norm_mlp::<Self>(x, p);
        }
        let [scale, shift, w1, b1, w2, b2] = p.tensors;
        record!(B, C, NormMlpBackward, [x, scale, shift, w1, b1, w2, b2],
            tracked {
                let (y, saved) = B::fused_norm_mlp_train(x.primitive.clone(), inner.clone());
                (y, (x.primitive, inner, saved))
            },
            untracked { B::fused_norm_mlp(x.primitive, inner) })
    }
}

impl NormMlpOps for Flex {
    #[cfg(target_arch = "x86_64")]
    fn fuses_norm_mlp(x: &FloatTensor<Self>, p: &NormMlpTensors<Self>) -> bool {
        let width = x.layout().shape().last().copied().unwrap_or(0);
        let rows = x.layout().num_elements() / width.max(1);
        let floats = is_f32(&[x]) && p.tensors.iter().all(|tensor| is_f32(&[tensor]));
        floats && rows >= fast::FEWEST && packed::offered(p.precision).is_some()
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp(x: FloatTensor<Self>, p: NormMlpTensors<Self>) -> FloatTensor<Self> {
        match Self::fuses_norm_mlp(&x, &p) {
            true => fast::forward_only(x, p),
            false => composed::norm_mlp::<Self>(x, p),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp_packed(
        x: FloatTensor<Self>,
        norm: [FloatTensor<Self>; 2],
        eps: f64,
        (w1, b1): (&PackedWeight, FloatTensor<Self>),
        (w2, b2): (&PackedWeight, FloatTensor<Self>),
    ) -> FloatTensor<Self> {
        let rows = x.layout().num_elements() / w1.dims()[1].max(1);
        let [scale, shift] = norm;
        let floats = is_f32(&[&x, &scale, &shift, &b1, &b2]) && rows >= fast::FEWEST_PACKED;
        match (w1.rhs(), w2.rhs()) {
            (Some(w1), Some(w2)) if floats => fast::forward_packed(x, [scale, shift, b1, b2], eps, [w1, w2]),
            _ => composed::norm_mlp_packed::<Self>(x, [scale, shift], eps, (w1, b1), (w2, b2)),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp_train(
        x: FloatTensor<Self>,
        p: NormMlpTensors<Self>,
    ) -> (FloatTensor<Self>, NormMlpSaved<Self>) {
        let (y, saved) = fast::forward_train(x, p);
        (y, saved.into())
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp_backward(
        x: FloatTensor<Self>,
        p: NormMlpTensors<Self>,
        saved: NormMlpSaved<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 6]) {
        let Ok(saved) = saved.try_into() else { unreachable!("made by `fused_norm_mlp_train`") };
        fast::backward(x, p, saved, grad)
    }
}
