//! Layer normalization over the last axis.
//!
//! Contract: the forward pass gives the mean and inverse standard deviation of each row besides the
//! result; the backward pass reads the saved input with them and writes over the incoming gradient
//! when nobody else holds it. Gradients of weight and bias are summed in fixed groups of rows, then
//! over the groups in order, so they do not depend on the number of threads.

pub(crate) mod fast;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::{constant, record_with, register};
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// Layer normalization on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait LayerNormOps: BurnBackend {
    /// [`layer_norm`](crate::layer_norm) with the mean and the inverse deviation of each row, both
    /// constants to a graph.
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::layer_norm::<Self>(x, weight, bias, eps)
    }

    /// Gradients of [`layer_norm`](crate::layer_norm): of `x`, `weight` and `bias`.
    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::layer_norm_backward::<Self>(x, weight, mean, rstd, grad)
    }
}

/// Layer normalization over the last axis (`weight`, `bias`: `[D]`).
///
/// # Panics
/// If `weight` or `bias` is not as long as the last axis of `x`.
pub fn layer_norm<B: LayerNormOps, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let (dims, [w], [b]) = (x.dims(), weight.dims(), bias.dims());
    assert!(
        w == dims[D - 1] && b == w,
        "layer_norm: weight [{w}] and bias [{b}] do not fit the last axis of {dims:?}"
    );
    wrap(B::fused_layer_norm(unwrap(x), unwrap(weight), unwrap(bias), eps).0)
}

/// [`layer_norm`](crate::layer_norm) composed from Burn's primitives.
pub fn reference<B: BurnBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let centered = x.clone() - x.mean_dim(D - 1);
    let var = centered.clone().powi_scalar(2).mean_dim(D - 1);
    let normalized = centered / var.add_scalar(eps).sqrt();
    normalized * weight.unsqueeze() + bias.unsqueeze()
}

pub(crate) fn reference_train<B: BurnBackend>(
    x: Tensor<B, 2>, // [n, D]
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
    let mean = x.clone().mean_dim(1); // [n, 1]
    let centered = x - mean.clone();
    let var = centered.clone().powi_scalar(2).mean_dim(1);
    let rstd = var.add_scalar(eps).sqrt().recip();
    let y = centered * rstd.clone() * weight.unsqueeze() + bias.unsqueeze();
    (y, mean.squeeze_dim(1), rstd.squeeze_dim(1))
}

pub(crate) fn reference_backward<B: BurnBackend>(
    x: Tensor<B, 2>, // [n, D]
    weight: Tensor<B, 1>,
    mean: Tensor<B, 1>,
    rstd: Tensor<B, 1>,
    grad: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
    let rstd = rstd.unsqueeze_dim::<2>(1); // [n, 1]
    let normalized = (x - mean.unsqueeze_dim(1)) * rstd.clone();
    let dw = (grad.clone() * normalized.clone()).sum_dim(0);
    let db = grad.clone().sum_dim(0);
    let inner = grad * weight.unsqueeze(); // gradient of `normalized`
    let along = (inner.clone() * normalized.clone()).mean_dim(1);
    let dx = (inner.clone() - inner.mean_dim(1) - normalized * along) * rstd;
    (dx, dw.squeeze_dim(0), db.squeeze_dim(0))
}

#[derive(Debug)]
struct LayerNormBackward;

impl<B: LayerNormOps> Backward<B, 3> for LayerNormBackward {
    /// x, weight, mean, rstd.
    type State = [FloatTensor<B>; 4];

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight, mean, rstd] = ops.state;
        let (dx, dw, db) = B::fused_layer_norm_backward(x, weight, mean, rstd, grad);
        register!(B, grads, ops.parents, [dx, dw, db]);
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn layer_norm<B: BurnBackend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        eps: f64,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let shape = x.shape();
        let (y, mean, rstd) = super::reference_train(rows::<B>(x), wrap(weight), wrap(bias), eps);
        (from_rows(shape, y), unwrap(mean), unwrap(rstd))
    }

    pub(crate) fn layer_norm_backward<B: BurnBackend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        mean: FloatTensor<B>,
        rstd: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let shape = x.shape();
        let (dx, dw, db) =
            super::reference_backward(rows::<B>(x), wrap(weight), wrap(mean), wrap(rstd), rows(grad));
        (from_rows(shape, dx), unwrap(dw), unwrap(db))
    }
}

impl<B: LayerNormOps, C: CheckpointStrategy> LayerNormOps for Autodiff<B, C> {
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (y, (mean, rstd)) = record_with!(B, C, LayerNormBackward, [x, weight, bias],
        tracked {
            let (input, scale) = (x.primitive.clone(), weight.primitive.clone());
            let (y, mean, rstd) = B::fused_layer_norm(x.primitive, weight.primitive, bias.primitive, eps);
            let state = [input, scale, mean.clone(), rstd.clone()];
            (y, (mean, rstd), state)
        },
        untracked {
            let (y, mean, rstd) = B::fused_layer_norm(x.primitive, weight.primitive, bias.primitive, eps);
            (y, (mean, rstd))
        });
        (y, Self::from_inner(mean), Self::from_inner(rstd))
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, weight, mean, rstd, grad] =
            [x, weight, mean, rstd, grad].map(|t| constant::<B, C>("layer_norm", t));
        let (dx, dw, db) = B::fused_layer_norm_backward(x, weight, mean, rstd, grad);
        let wrap = Self::from_inner;
        (wrap(dx), wrap(dw), wrap(db))
    }
}

impl LayerNormOps for Flex {
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x, &weight, &bias]) {
            fast::forward(x, weight, bias, eps)
        } else {
            composed::layer_norm::<Self>(x, weight, bias, eps)
        }
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x, &weight, &mean, &rstd, &grad]) {
            fast::backward(x, weight, mean, rstd, grad)
        } else {
            composed::layer_norm_backward::<Self>(x, weight, mean, rstd, grad)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, random};

    #[test]
    fn matches_reference_and_differences() {
        for (n, d) in [(1, 1), (3, 5), (197, 384), (2, 33), (1000, 40), (8 * 65, 192)] {
            let inputs = [random(n * d, 1, 2.0), random(d, 2, 1.0), random(d, 3, 1.0)];
            check(
                "layer_norm",
                &inputs,
                |x| {
                    super::layer_norm(x[0].clone().reshape([n, d]), x[1].clone(), x[2].clone(), 1e-3)
                        .reshape([n * d])
                },
                |x| {
                    super::reference(x[0].clone().reshape([n, d]), x[1].clone(), x[2].clone(), 1e-3)
                        .reshape([n * d])
                },
                1e-5,
            );
        }
    }

    #[test]
    #[should_panic(expected = "layer_norm: weight [3] and bias [4] do not fit the last axis of [2, 4]")]
    fn names_the_shapes_that_do_not_fit() {
        let d = Default::default();
        let ones = |n| burn::tensor::Tensor::<burn::backend::Flex, 1>::ones([n], &d);
        super::layer_norm(ones(8).reshape([2, 4]), ones(3), ones(4), 1e-5);
    }
}
