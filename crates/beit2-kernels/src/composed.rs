//! The operations of [`Backend`](crate::Backend) composed from Burn's primitives, on a backend's own
//! tensors: what a backend without anything better runs, and what the CPU runs for other types
//! than 32-bit floats.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Tensor, TensorMetadata, TensorPrimitive};

use crate::backend::{AttentionGradients, AttentionOutput, ChannelGradients, PixelLoss};
use crate::{
    AdamwStep, AttentionSpec, Precision, adamw as step, attention as attend, channel_moments as moments,
    channel_norm as channels, conv3x3 as conv, cross_entropy as ce, gelu as act, layer_norm as norm,
    linear as lin, nearest_code as code, pixel_cross_entropy as pixels, residual_scale as residual,
    samples as some,
};

pub(crate) fn gelu<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    from_rows(x.shape(), act::reference(rows::<B>(x)))
}

pub(crate) fn square_sum<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum(B::float_mul(x.clone(), x))
}

pub(crate) fn sum<B: BurnBackend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
    B::float_add(x, y)
}

pub(crate) fn product<B: BurnBackend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(x, y)
}

pub(crate) fn gelu_train<B: BurnBackend>(x: FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = x.shape();
    let (y, slope) = act::reference_train(rows::<B>(x));
    (from_rows(shape.clone(), y), from_rows(shape, slope))
}

pub(crate) fn layer_norm<B: BurnBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    eps: f64,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = x.shape();
    let (y, mean, rstd) = norm::reference_train(rows::<B>(x), wrap(weight), wrap(bias), eps);
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
        norm::reference_backward(rows::<B>(x), wrap(weight), wrap(mean), wrap(rstd), rows(grad));
    (from_rows(shape, dx), unwrap(dw), unwrap(db))
}

pub(crate) fn linear<B: BurnBackend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    precision: Precision,
) -> FloatTensor<B> {
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    shape[last] = weight.shape()[0];
    let (x, weight) = (precision.round(rows(x)), precision.round(wrap(weight)));
    from_rows(shape, lin::reference::<B, 2>(x, weight, bias.map(wrap)))
}

pub(crate) fn linear_backward_input<B: BurnBackend>(
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    precision: Precision,
) -> FloatTensor<B> {
    let mut shape = grad.shape();
    let last = shape.num_dims() - 1;
    shape[last] = weight.shape()[1];
    let weight = precision.round(wrap::<B, 2>(weight));
    from_rows(shape, precision.round(rows::<B>(grad)).matmul(weight))
}

pub(crate) fn linear_backward_weight<B: BurnBackend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    precision: Precision,
) -> FloatTensor<B> {
    let [grad, x] = [grad, x].map(|x| precision.round(rows::<B>(x)));
    unwrap(grad.transpose().matmul(x))
}

pub(crate) fn sum_rows<B: BurnBackend>(grad: FloatTensor<B>) -> FloatTensor<B> {
    unwrap(rows::<B>(grad).sum_dim(0).squeeze_dim::<1>(0))
}

pub(crate) fn attention<B: BurnBackend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    spec: AttentionSpec,
) -> AttentionOutput<B> {
    let (y, lse) = attend::reference_train::<B>(wrap(q), wrap(k), wrap(v), bias.map(wrap), spec);
    (unwrap(y), unwrap(lse))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn attention_backward<B: BurnBackend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    output: AttentionOutput<B>,
    grad: FloatTensor<B>,
    spec: AttentionSpec,
    bias_grad: bool,
) -> AttentionGradients<B> {
    let (dq, dk, dv, dbias) = attend::reference_backward::<B>(
        wrap(q),
        wrap(k),
        wrap(v),
        bias.map(wrap),
        (wrap(output.0), wrap(output.1)),
        wrap(grad),
        spec,
        bias_grad,
    );
    (unwrap(dq), unwrap(dk), unwrap(dv), dbias.map(unwrap))
}

pub(crate) fn attention_qkv<B: BurnBackend>(
    qkv: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    spec: AttentionSpec,
) -> AttentionOutput<B> {
    let [q, k, v] = attend::split_qkv::<B>(wrap(qkv)).map(unwrap);
    attention::<B>(q, k, v, bias, spec)
}

pub(crate) fn attention_qkv_backward<B: BurnBackend>(
    qkv: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    output: AttentionOutput<B>,
    grad: FloatTensor<B>,
    spec: AttentionSpec,
    bias_grad: bool,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let [q, k, v] = attend::split_qkv::<B>(wrap(qkv)).map(unwrap);
    let (dq, dk, dv, dbias) = attention_backward::<B>(q, k, v, bias, output, grad, spec, bias_grad);
    let parts = [dq, dk, dv].map(wrap::<B, 3>);
    (unwrap(Tensor::cat(parts.into(), 2)), dbias)
}

pub(crate) fn cross_entropy<B: BurnBackend>(logits: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
    unwrap(ce::reference::<B>(wrap(logits), Tensor::from_primitive(targets)))
}

pub(crate) fn cross_entropy_train<B: BurnBackend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (loss, gradient) = ce::reference_train::<B>(wrap(logits), Tensor::from_primitive(targets));
    (unwrap(loss), unwrap(gradient))
}

pub(crate) fn pixel_cross_entropy<B: BurnBackend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (loss, share) = pixels::reference::<B>(wrap(logits), Tensor::from_primitive(labels));
    (unwrap(loss), unwrap(share))
}

pub(crate) fn pixel_cross_entropy_train<B: BurnBackend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
) -> PixelLoss<B> {
    let (loss, share, gradient) = pixels::reference_train::<B>(wrap(logits), Tensor::from_primitive(labels));
    PixelLoss { loss: unwrap(loss), share: unwrap(share), gradient: unwrap(gradient) }
}

pub(crate) fn conv3x3<B: BurnBackend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    unwrap(conv::reference::<B>(wrap(x), wrap(weight)))
}

pub(crate) fn conv3x3_backward_input<B: BurnBackend>(
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    unwrap(conv::reference_backward_input::<B>(wrap(weight), wrap(grad)))
}

pub(crate) fn conv3x3_backward_weight<B: BurnBackend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    unwrap(conv::reference_backward_weight::<B>(wrap(x), wrap(grad)))
}

pub(crate) fn channel_moments<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let (mean, var) = moments::reference::<B>(rows(x));
    unwrap(Tensor::stack::<2>(vec![mean, var], 0))
}

pub(crate) fn channel_moments_backward<B: BurnBackend>(
    x: FloatTensor<B>,
    found: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    from_rows(x.shape(), moments::reference_backward::<B>(rows(x), wrap(found), wrap(grad)))
}

pub(crate) fn channel_norm<B: BurnBackend>(
    x: FloatTensor<B>,
    mean: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    relu: bool,
) -> FloatTensor<B> {
    let shape = x.shape();
    from_rows(shape, channels::reference::<B, 2>(rows(x), wrap(mean), wrap(scale), wrap(shift), relu))
}

pub(crate) fn channel_norm_backward<B: BurnBackend>(
    x: FloatTensor<B>,
    mean: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    grad: FloatTensor<B>,
    relu: bool,
) -> ChannelGradients<B> {
    let shape = x.shape();
    let (dx, vectors) =
        channels::reference_backward::<B>(rows(x), wrap(mean), wrap(scale), wrap(shift), rows(grad), relu);
    (from_rows(shape, dx), vectors.map(unwrap))
}

pub(crate) fn nearest_code<B: BurnBackend>(z: FloatTensor<B>, codebook: FloatTensor<B>) -> IntTensor<B> {
    code::reference::<B>(wrap(z), wrap(codebook)).into_primitive()
}

pub(crate) fn adamw<B: BurnBackend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    m: FloatTensor<B>,
    v: FloatTensor<B>,
    step: AdamwStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = param.shape();
    let (param, m, v) = step::reference::<B, 2>(rows(param), rows(grad), rows(m), rows(v), step);
    (from_rows(shape.clone(), param), from_rows(shape.clone(), m), from_rows(shape, v))
}

pub(crate) fn gather_samples<B: BurnBackend>(x: FloatTensor<B>, kept: &[usize]) -> FloatTensor<B> {
    unwrap(some::reference_gather::<B>(wrap(x), kept))
}

pub(crate) fn gather_samples_backward<B: BurnBackend>(
    grad: FloatTensor<B>,
    kept: &[usize],
    batch: usize,
) -> FloatTensor<B> {
    unwrap(some::reference_gather_backward::<B>(wrap(grad), kept, batch))
}

pub(crate) fn scatter_add_samples<B: BurnBackend>(
    x: FloatTensor<B>,
    branch: FloatTensor<B>,
    gamma: FloatTensor<B>,
    kept: &[usize],
) -> FloatTensor<B> {
    unwrap(some::reference_scatter_add::<B>(wrap(x), wrap(branch), wrap(gamma), kept))
}

pub(crate) fn residual_scale<B: BurnBackend>(
    x: FloatTensor<B>,
    branch: FloatTensor<B>,
    gamma: FloatTensor<B>,
) -> FloatTensor<B> {
    from_rows(x.shape(), residual::reference::<B, 2>(rows(x), rows(branch), wrap(gamma)))
}

pub(crate) fn residual_scale_backward<B: BurnBackend>(
    branch: FloatTensor<B>,
    gamma: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = branch.shape();
    let (branch, grad) = (rows::<B>(branch), rows::<B>(grad));
    let dgamma = (grad.clone() * branch).sum_dim(0).squeeze_dim::<1>(0);
    let dbranch = grad * wrap::<B, 1>(gamma).unsqueeze();
    (from_rows(shape, dbranch), unwrap(dgamma))
}

/// A tensor of rank `D` around a backend's own.
pub(crate) fn wrap<B: BurnBackend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// The backend's own tensor.
pub(crate) fn unwrap<B: BurnBackend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// `[.., D]` as rows `[n, D]`.
pub(crate) fn rows<B: BurnBackend>(x: FloatTensor<B>) -> Tensor<B, 2> {
    let shape = x.shape();
    let width = shape.last().copied().unwrap_or(1);
    let count = shape.num_elements() / width.max(1);
    wrap(B::float_reshape(x, [count, width].into()))
}

/// Rows back in the shape they came from.
pub(crate) fn from_rows<B: BurnBackend>(shape: burn::tensor::Shape, x: Tensor<B, 2>) -> FloatTensor<B> {
    B::float_reshape(unwrap(x), shape)
}
