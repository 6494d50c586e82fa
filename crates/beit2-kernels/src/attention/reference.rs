//! Attention composed from Burn's primitives, forward and backward.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Tensor, activation};

use super::AttentionSpec;

/// The softmax weights `[B, H, Tq, T]` of [`attention`](crate::attention), for inspection.
pub fn attention_weights<B: BurnBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    heads: usize,
    scale: f64,
) -> Tensor<B, 4> {
    activation::softmax(logits(q, k, bias, heads, scale), 3)
}

/// [`attention`](crate::attention) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    heads: usize,
    scale: f64,
) -> Tensor<B, 3> {
    let v = split_heads(v, heads);
    merge_heads(attention_weights(q, k, bias, heads, scale).matmul(v))
}

pub(crate) fn reference_train<B: BurnBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    AttentionSpec { heads, scale, precision }: AttentionSpec,
) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let [q, k, v] = [q, k, v].map(|x| precision.round(x));
    let logits = logits(q, k, bias, heads, scale);
    let top = logits.clone().max_dim(3); // [B, H, Tq, 1]
    let weights = (logits - top.clone()).exp();
    let sum = weights.clone().sum_dim(3);
    // Rounded before they are divided by their sum, as the fast version multiplies them.
    let y = precision.round(weights).matmul(split_heads(v, heads)) / sum.clone();
    (merge_heads(y), (sum.log() + top).squeeze_dim(3))
}

#[allow(clippy::too_many_arguments, clippy::type_complexity)]
pub(crate) fn reference_backward<B: BurnBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    (output, lse): (Tensor<B, 3>, Tensor<B, 3>),
    grad: Tensor<B, 3>,
    AttentionSpec { heads, scale, precision }: AttentionSpec,
    bias_grad: bool,
) -> (Tensor<B, 3>, Tensor<B, 3>, Tensor<B, 3>, Option<Tensor<B, 4>>) {
    let shared = bias.as_ref().map(|bias| bias.dims()[0] == 1);
    let along = split_heads(grad.clone() * output, heads).sum_dim(3); // [B, H, Tq, 1]
    let [q, k, v, grad] = [q, k, v, grad].map(|x| precision.round(x));
    let logits = logits(q.clone(), k.clone(), bias, heads, scale);
    let weights = (logits - lse.unsqueeze_dim(3)).exp(); // [B, H, Tq, T]
    let (q, k, v) = (split_heads(q, heads), split_heads(k, heads), split_heads(v, heads));
    let grad = split_heads(grad, heads);
    let dv = precision.round(weights.clone()).transpose().matmul(grad.clone());
    let dlogits = weights * (grad.matmul(v.transpose()) - along);
    let slopes = precision.round(dlogits.clone());
    let dq = slopes.clone().matmul(k).mul_scalar(scale);
    let dk = slopes.transpose().matmul(q).mul_scalar(scale);
    let dbias = match shared {
        Some(true) if bias_grad => Some(dlogits.sum_dim(0)),
        Some(false) if bias_grad => Some(dlogits),
        _ => None,
    };
    (merge_heads(dq), merge_heads(dk), merge_heads(dv), dbias)
}

fn logits<B: BurnBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    heads: usize,
    scale: f64,
) -> Tensor<B, 4> {
    let logits = split_heads(q.mul_scalar(scale), heads).matmul(split_heads(k, heads).transpose());
    match bias {
        Some(bias) => logits + bias,
        None => logits,
    }
}

/// `[B, T, 3·D]` as three `[B, T, D]`.
pub(crate) fn split_qkv<B: BurnBackend>(qkv: Tensor<B, 3>) -> [Tensor<B, 3>; 3] {
    let width = qkv.dims()[2] / 3;
    [0, 1, 2].map(|i| qkv.clone().narrow(2, i * width, width))
}

fn split_heads<B: BurnBackend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
}

fn merge_heads<B: BurnBackend>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, tokens, depth] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * depth])
}
