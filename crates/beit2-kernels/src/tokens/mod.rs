//! What happens to tokens around the blocks: patches become tokens, some tokens are taken out.
//!
//! Contract: [`embed_tokens`] puts a token in place of masked patches, CLS before all of them, and adds positions;
//! [`gather_tokens`] takes some tokens of each sample, and [`gather_bias`] the rows of a bias that belong to them;
//! [`narrow_tokens`] takes a range of tokens, [`mean_tokens`] their mean, [`replace_cls`] the CLS token of another tensor. A GPU does each in one pass, with
//! a backward pass of its own that adds in a fixed order; elsewhere they are Burn's primitives,
//! but for two that have a CPU version in one pass.

pub(crate) mod composed;
mod cpu;
mod graph;

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::flex::is_f32;
use crate::residual_scale::ResidualScaleOps;
use crate::tensor::{unwrap, wrap};

/// What [`embed_tokens`](crate::embed_tokens) makes tokens of, as tensors or whatever belongs to each of them.
#[derive(Debug, Clone)]
pub struct TokenParts<T> {
    /// `[B, N, D]`.
    pub patches: T,
    /// The first token, `[1, 1, D]`.
    pub cls: T,
    /// 1 where a patch is replaced and 0 elsewhere, `[B, N, 1]`, a constant to a graph; with the token that replaces it,
    /// `[1, 1, D]`.
    pub masked: Option<(T, T)>,
    /// Added to the tokens, `[1, N+1, D]`.
    pub positions: Option<T>,
}

/// Gradients of [`TokenParts`]; the one of the mask is missing always.
#[derive(Debug, Clone)]
pub struct TokenGradients<T> {
    /// Of the patches, unless they need none.
    pub patches: Option<T>,
    /// Of CLS.
    pub cls: T,
    /// Of the token that replaces masked patches.
    pub mask_token: Option<T>,
    /// Of the positions.
    pub positions: Option<T>,
}

/// Some tokens of each sample on a backend's own tensors.
#[derive(Debug, Clone)]
pub struct TokenChoice<B: BurnBackend> {
    /// Tokens of each sample in turn, none twice, `[B·R]` into `[T]`.
    pub local: IntTensor<B>,
    /// R.
    pub per_sample: usize,
}

/// Operations on tokens on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait TokenOps: ResidualScaleOps {
    /// Whether these operations (on f32) are one computation each here, with backward passes of their own.
    fn fuses_tokens(_device: &Self::Device) -> bool {
        false
    }

    /// [`embed_tokens`](crate::embed_tokens).
    fn fused_embed_tokens(parts: TokenParts<FloatTensor<Self>>) -> FloatTensor<Self> {
        composed::embed_tokens::<Self>(parts)
    }

    /// Its gradients for one of the output; only where it is one computation. `positions`: whether there are some.
    fn fused_embed_tokens_backward(
        grad: FloatTensor<Self>,
        mask: Option<FloatTensor<Self>>,
        positions: bool,
        _patches: bool,
    ) -> TokenGradients<FloatTensor<Self>> {
        composed::embed_tokens_backward::<Self>(grad, mask, positions)
    }

    /// [`gather_tokens`](crate::gather_tokens).
    fn fused_gather_tokens(x: FloatTensor<Self>, choice: TokenChoice<Self>) -> FloatTensor<Self> {
        composed::gather_tokens::<Self>(x, choice)
    }

    /// The gradient of the `tokens` tokens of each sample; only where it is one computation.
    fn fused_gather_tokens_backward(
        grad: FloatTensor<Self>,
        choice: TokenChoice<Self>,
        tokens: usize,
    ) -> FloatTensor<Self> {
        composed::gather_tokens_backward::<Self>(grad, choice, tokens)
    }

    /// [`narrow_tokens`](crate::narrow_tokens).
    fn fused_narrow_tokens(x: FloatTensor<Self>, from: usize, count: usize) -> FloatTensor<Self> {
        composed::narrow_tokens::<Self>(x, from, count)
    }

    /// The gradient of the `tokens` tokens of each sample, 0 outside the range; only where it is one computation.
    fn fused_narrow_tokens_backward(
        grad: FloatTensor<Self>,
        from: usize,
        tokens: usize,
    ) -> FloatTensor<Self> {
        composed::narrow_tokens_backward::<Self>(grad, from, tokens)
    }

    /// [`mean_tokens`](crate::mean_tokens).
    fn fused_mean_tokens(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::mean_tokens::<Self>(x)
    }

    /// The gradient of the `tokens` tokens of each sample; only where it is one computation.
    fn fused_mean_tokens_backward(grad: FloatTensor<Self>, tokens: usize) -> FloatTensor<Self> {
        composed::mean_tokens_backward::<Self>(grad, tokens)
    }

    /// [`replace_cls`](crate::replace_cls).
    fn fused_replace_cls(cls: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::replace_cls::<Self>(cls, x)
    }

    /// Its gradients of `cls`, of `tokens` tokens, and of `x`; only where it is one computation.
    fn fused_replace_cls_backward(grad: FloatTensor<Self>, tokens: usize) -> [FloatTensor<Self>; 2] {
        composed::replace_cls_backward::<Self>(grad, tokens)
    }

    /// Whether [`gather_bias`](crate::gather_bias) (of f32) is one computation here, with a backward pass of its own.
    fn fuses_gather_bias(bias: &FloatTensor<Self>) -> bool {
        Self::fuses_tokens(&Self::float_device(bias))
    }

    /// [`gather_bias`](crate::gather_bias).
    fn fused_gather_bias(bias: FloatTensor<Self>, choice: TokenChoice<Self>) -> FloatTensor<Self> {
        composed::gather_bias::<Self>(bias, choice)
    }

    /// The gradient of the bias of `tokens` tokens; only where it is one computation.
    fn fused_gather_bias_backward(
        grad: FloatTensor<Self>,
        choice: TokenChoice<Self>,
        tokens: usize,
    ) -> FloatTensor<Self> {
        composed::gather_bias_backward::<Self>(grad, choice, tokens)
    }
}

/// Patches `[B, N, D]` as tokens `[B, N+1, D]`.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn embed_tokens<B: TokenOps>(
    patches: Tensor<B, 3>,
    cls: Tensor<B, 3>,
    masked: Option<(Tensor<B, 3>, Tensor<B, 3>)>,
    positions: Option<Tensor<B, 3>>,
) -> Tensor<B, 3> {
    let [batch, count, width] = patches.dims();
    let mut wanted = vec![(cls.dims(), [1, 1, width])];
    wanted.extend(
        masked
            .iter()
            .flat_map(|(mask, token)| [(mask.dims(), [batch, count, 1]), (token.dims(), [1, 1, width])]),
    );
    wanted.extend(positions.iter().map(|positions| (positions.dims(), [1, count + 1, width])));
    for (found, wanted) in wanted {
        assert!(
            found == wanted,
            "embed_tokens: expected {wanted:?} for {batch}×{count} patches, found {found:?}"
        );
    }
    wrap(B::fused_embed_tokens(TokenParts {
        patches: unwrap(patches),
        cls: unwrap(cls),
        masked: masked.map(|(mask, token)| (unwrap(mask), unwrap(token))),
        positions: positions.map(unwrap),
    }))
}

/// Tokens `from ..` of each sample, `count` of them: `x [B, T, D]` → `[B, count, D]`.
///
/// # Panics
/// If there are fewer.
pub fn narrow_tokens<B: TokenOps>(x: Tensor<B, 3>, from: usize, count: usize) -> Tensor<B, 3> {
    let tokens = x.dims()[1];
    assert!(from + count <= tokens, "narrow_tokens: tokens {from} to {} of {tokens}", from + count);
    wrap(B::fused_narrow_tokens(unwrap(x), from, count))
}

/// The mean of all tokens of each sample but the first: `x [B, T, D]` → `[B, D]`.
pub fn mean_tokens<B: TokenOps>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    wrap(B::fused_mean_tokens(unwrap(x)))
}

/// The first token of each sample of `cls [B, R, D]`, and all but the first of `x [B, T, D]` → `[B, T, D]`.
///
/// # Panics
/// If batch or width differ.
pub fn replace_cls<B: TokenOps>(cls: Tensor<B, 3>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let ([batch, _, width], other) = (x.dims(), cls.dims());
    assert!(other[0] == batch && other[2] == width, "replace_cls: {other:?} does not fit {:?}", x.dims());
    wrap(B::fused_replace_cls(unwrap(cls), unwrap(x)))
}

/// Some tokens of each sample: `x [B, T, D]` → `[B, R, D]`.
pub fn gather_tokens<B: TokenOps>(x: Tensor<B, 3>, choice: TokenChoice<B>) -> Tensor<B, 3> {
    wrap(B::fused_gather_tokens(unwrap(x), choice))
}

/// The queries' rows of a bias: `[1, H, T, T]` → `[B, H, R, T]`.
pub fn gather_bias<B: TokenOps>(bias: Tensor<B, 4>, choice: TokenChoice<B>) -> Tensor<B, 4> {
    wrap(B::fused_gather_bias(unwrap(bias), choice))
}

impl TokenOps for Flex {
    fn fused_embed_tokens(parts: TokenParts<FloatTensor<Self>>) -> FloatTensor<Self> {
        let masked = parts.masked.iter().flat_map(|(mask, token)| [mask, token]);
        let all: Vec<_> =
            [&parts.patches, &parts.cls].into_iter().chain(masked).chain(&parts.positions).collect();
        match is_f32(&all) {
            true => cpu::embed_tokens(parts),
            false => composed::embed_tokens::<Self>(parts),
        }
    }

    fn fuses_gather_bias(bias: &FloatTensor<Self>) -> bool {
        is_f32(&[bias])
    }

    fn fused_gather_bias(bias: FloatTensor<Self>, choice: TokenChoice<Self>) -> FloatTensor<Self> {
        match is_f32(&[&bias]) {
            true => cpu::gather_bias(bias, choice),
            false => composed::gather_bias::<Self>(bias, choice),
        }
    }

    fn fused_gather_bias_backward(
        grad: FloatTensor<Self>,
        choice: TokenChoice<Self>,
        tokens: usize,
    ) -> FloatTensor<Self> {
        cpu::gather_bias_backward(grad, choice, tokens)
    }
}
