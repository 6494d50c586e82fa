//! The reference on a backend's own tensors.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use super::reference::{reference_backward, reference_train, split_qkv};
use super::{AttentionGradients, AttentionOutput, AttentionSpec};
use crate::tensor::{unwrap, wrap};

pub(crate) fn attention<B: BurnBackend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    spec: AttentionSpec,
) -> AttentionOutput<B> {
    let (y, lse) = reference_train::<B>(wrap(q), wrap(k), wrap(v), bias.map(wrap), spec);
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
    let (dq, dk, dv, dbias) = reference_backward::<B>(
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
    let [q, k, v] = split_qkv::<B>(wrap(qkv)).map(unwrap);
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
    let [q, k, v] = split_qkv::<B>(wrap(qkv)).map(unwrap);
    let (dq, dk, dv, dbias) = attention_backward::<B>(q, k, v, bias, output, grad, spec, bias_grad);
    let parts = [dq, dk, dv].map(wrap::<B, 3>);
    (unwrap(Tensor::cat(parts.into(), 2)), dbias)
}
