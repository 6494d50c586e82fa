//! Tokens by Burn's primitives on a backend's own tensors.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::{TokenChoice, TokenGradients, TokenParts};
use crate::tensor::{unwrap, wrap};

fn int<B: BurnBackend>(x: IntTensor<B>) -> Tensor<B, 1, Int> {
    Tensor::from_primitive(x)
}

/// The chosen tokens among the flattened ones `[B·T]`, `[B·R]`.
fn flat<B: BurnBackend>(choice: TokenChoice<B>, tokens: usize) -> Tensor<B, 1, Int> {
    let local = int::<B>(choice.local);
    let (count, per_sample) = (local.dims()[0], choice.per_sample.max(1));
    let first: Vec<i32> = (0..count).map(|at| (at / per_sample * tokens) as i32).collect();
    local.clone() + Tensor::from_data(TensorData::new(first, [count]), &local.device())
}

pub(crate) fn embed_tokens<B: BurnBackend>(parts: TokenParts<FloatTensor<B>>) -> FloatTensor<B> {
    let mut tokens = wrap::<B, 3>(parts.patches);
    let batch = tokens.dims()[0];
    if let Some((mask, token)) = parts.masked {
        let (mask, token) = (wrap::<B, 3>(mask), wrap::<B, 3>(token));
        tokens = tokens * (mask.clone().neg() + 1.0) + mask * token;
    }
    let cls = wrap::<B, 3>(parts.cls).repeat_dim(0, batch);
    let tokens = Tensor::cat(vec![cls, tokens], 1);
    unwrap(match parts.positions {
        Some(positions) => tokens + wrap(positions),
        None => tokens,
    })
}

pub(crate) fn embed_tokens_backward<B: BurnBackend>(
    grad: FloatTensor<B>,
    mask: Option<FloatTensor<B>>,
    positions: bool,
) -> TokenGradients<FloatTensor<B>> {
    let grad = wrap::<B, 3>(grad);
    let patches = grad.clone().narrow(1, 1, grad.dims()[1] - 1);
    let cls = unwrap(grad.clone().narrow(1, 0, 1).sum_dim(0));
    let positions = positions.then(|| unwrap(grad.sum_dim(0)));
    let (patches, mask_token) = match mask.map(wrap::<B, 3>) {
        Some(mask) => {
            let token = (patches.clone() * mask.clone()).sum_dim(0).sum_dim(1);
            (patches * (mask.neg() + 1.0), Some(unwrap(token)))
        }
        None => (patches, None),
    };
    TokenGradients { patches: Some(unwrap(patches)), cls, mask_token, positions }
}

pub(crate) fn gather_tokens<B: BurnBackend>(x: FloatTensor<B>, choice: TokenChoice<B>) -> FloatTensor<B> {
    let x = wrap::<B, 3>(x);
    let [batch, tokens, width] = x.dims();
    let per_sample = choice.per_sample;
    let taken = x.reshape([batch * tokens, width]).select(0, flat::<B>(choice, tokens));
    unwrap(taken.reshape([batch, per_sample, width]))
}

pub(crate) fn gather_tokens_backward<B: BurnBackend>(
    grad: FloatTensor<B>,
    choice: TokenChoice<B>,
    tokens: usize,
) -> FloatTensor<B> {
    let grad = wrap::<B, 3>(grad);
    let [batch, count, width] = grad.dims();
    let zeros = Tensor::<B, 2>::zeros([batch * tokens, width], (&grad.device(), grad.dtype()));
    let grad = grad.reshape([batch * count, width]);
    let all = zeros.select_assign(0, flat::<B>(choice, tokens), grad, IndexingUpdateOp::Add);
    unwrap(all.reshape([batch, tokens, width]))
}

pub(crate) fn narrow_tokens<B: BurnBackend>(x: FloatTensor<B>, from: usize, count: usize) -> FloatTensor<B> {
    unwrap(wrap::<B, 3>(x).narrow(1, from, count))
}

pub(crate) fn narrow_tokens_backward<B: BurnBackend>(
    grad: FloatTensor<B>,
    from: usize,
    tokens: usize,
) -> FloatTensor<B> {
    let grad = wrap::<B, 3>(grad);
    let [batch, count, width] = grad.dims();
    let zeros = Tensor::<B, 3>::zeros([batch, tokens, width], (&grad.device(), grad.dtype()));
    unwrap(zeros.slice_assign([0..batch, from..from + count, 0..width], grad))
}

pub(crate) fn mean_tokens<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = wrap::<B, 3>(x);
    let [batch, tokens, width] = x.dims();
    unwrap(x.narrow(1, 1, tokens - 1).mean_dim(1).reshape([batch, width]))
}

pub(crate) fn mean_tokens_backward<B: BurnBackend>(grad: FloatTensor<B>, tokens: usize) -> FloatTensor<B> {
    let grad = wrap::<B, 2>(grad);
    let [batch, width] = grad.dims();
    let share = grad.div_scalar((tokens - 1) as f64).reshape([batch, 1, width]);
    narrow_tokens_backward::<B>(unwrap(share.repeat_dim(1, tokens - 1)), 1, tokens)
}

pub(crate) fn replace_cls<B: BurnBackend>(cls: FloatTensor<B>, x: FloatTensor<B>) -> FloatTensor<B> {
    let x = wrap::<B, 3>(x);
    let others = x.dims()[1] - 1;
    unwrap(Tensor::cat(vec![wrap::<B, 3>(cls).narrow(1, 0, 1), x.narrow(1, 1, others)], 1))
}

pub(crate) fn replace_cls_backward<B: BurnBackend>(
    grad: FloatTensor<B>,
    tokens: usize,
) -> [FloatTensor<B>; 2] {
    let grad = wrap::<B, 3>(grad);
    let others = grad.dims()[1] - 1;
    let cls = narrow_tokens_backward::<B>(unwrap(grad.clone().narrow(1, 0, 1)), 0, tokens);
    [cls, narrow_tokens_backward::<B>(unwrap(grad.narrow(1, 1, others)), 1, others + 1)]
}

pub(crate) fn gather_bias<B: BurnBackend>(bias: FloatTensor<B>, choice: TokenChoice<B>) -> FloatTensor<B> {
    let bias = wrap::<B, 4>(bias);
    let [_, heads, tokens, keys] = bias.dims();
    let local = int::<B>(choice.local);
    let batch = local.dims()[0] / choice.per_sample.max(1);
    let taken = bias
        .reshape([heads, tokens, keys])
        .swap_dims(0, 1)
        .reshape([tokens, heads * keys])
        .select(0, local)
        .reshape([batch, choice.per_sample, heads, keys])
        .swap_dims(1, 2);
    unwrap(taken)
}

pub(crate) fn gather_bias_backward<B: BurnBackend>(
    grad: FloatTensor<B>,
    choice: TokenChoice<B>,
    tokens: usize,
) -> FloatTensor<B> {
    let grad = wrap::<B, 4>(grad);
    let [batch, heads, count, keys] = grad.dims();
    let zeros = Tensor::<B, 2>::zeros([tokens, heads * keys], (&grad.device(), grad.dtype()));
    let grad = grad.swap_dims(1, 2).reshape([batch * count, heads * keys]);
    let all = zeros.select_assign(0, int::<B>(choice.local), grad, IndexingUpdateOp::Add);
    unwrap(all.reshape([tokens, heads, keys]).swap_dims(0, 1).reshape([1, heads, tokens, keys]))
}
