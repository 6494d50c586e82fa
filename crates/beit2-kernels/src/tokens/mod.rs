//! What happens to tokens around the blocks: patches become tokens, some tokens are taken out.
//!
//! Contract: [`embed_tokens`] puts a token in place of masked patches, CLS before all of them, and adds positions;
//! [`gather_tokens`] takes some tokens of each sample, and [`gather_bias`] the rows of a bias that belong to them;
//! [`narrow_tokens`] takes a range of tokens, [`mean_tokens`] their mean, [`replace_cls`] the CLS token of another tensor. A GPU does each in one pass, with
//! a backward pass of its own that adds in a fixed order; elsewhere they are Burn's primitives.

mod cpu;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::{accumulate, constant, record, register};
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

/// Burn's primitives on a backend's own tensors.
pub(crate) mod composed {
    use burn::tensor::IndexingUpdateOp;

    use super::*;

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

    pub(crate) fn narrow_tokens<B: BurnBackend>(
        x: FloatTensor<B>,
        from: usize,
        count: usize,
    ) -> FloatTensor<B> {
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

    pub(crate) fn mean_tokens_backward<B: BurnBackend>(
        grad: FloatTensor<B>,
        tokens: usize,
    ) -> FloatTensor<B> {
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

    pub(crate) fn gather_bias<B: BurnBackend>(
        bias: FloatTensor<B>,
        choice: TokenChoice<B>,
    ) -> FloatTensor<B> {
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
}

#[derive(Debug)]
struct EmbedBackward;

/// Parents: patches, CLS, the mask token, positions; the patches stand for what is not there, and get nothing there.
impl<B: TokenOps> Backward<B, 4> for EmbedBackward {
    /// The mask, and whether there are positions.
    type State = (Option<FloatTensor<B>>, bool);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (mask, positions) = ops.state;
        let patches = ops.parents[0].is_some();
        let found = B::fused_embed_tokens_backward(grad, mask, positions, patches);
        let all = [found.patches, Some(found.cls), found.mask_token, found.positions];
        register!(B, grads, ops.parents, all);
    }
}

#[derive(Debug)]
struct GatherTokensBackward;

impl<B: TokenOps> Backward<B, 1> for GatherTokensBackward {
    /// The tokens, of how many.
    type State = (TokenChoice<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (choice, tokens) = ops.state;
        register!(B, grads, ops.parents, [B::fused_gather_tokens_backward(grad, choice, tokens)]);
    }
}

#[derive(Debug)]
struct NarrowBackward;

impl<B: TokenOps> Backward<B, 1> for NarrowBackward {
    /// Where the range begins, of how many tokens.
    type State = (usize, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (from, tokens) = ops.state;
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            accumulate!(B, grads, &parent, B::fused_narrow_tokens_backward(grad, from, tokens));
        }
    }
}

#[derive(Debug)]
struct MeanBackward;

impl<B: TokenOps> Backward<B, 1> for MeanBackward {
    /// How many tokens.
    type State = usize;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        register!(B, grads, ops.parents, [B::fused_mean_tokens_backward(grad, ops.state)]);
    }
}

#[derive(Debug)]
struct ReplaceClsBackward;

impl<B: TokenOps> Backward<B, 2> for ReplaceClsBackward {
    /// Tokens of `cls`.
    type State = usize;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        register!(B, grads, ops.parents, B::fused_replace_cls_backward(grad, ops.state));
    }
}

#[derive(Debug)]
struct GatherBiasBackward;

impl<B: TokenOps> Backward<B, 1> for GatherBiasBackward {
    /// The tokens, of how many.
    type State = (TokenChoice<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (choice, tokens) = ops.state;
        register!(B, grads, ops.parents, [B::fused_gather_bias_backward(grad, choice, tokens)]);
    }
}

/// Integers are the inner backend's already.
fn inner<B: BurnBackend, C: CheckpointStrategy>(choice: TokenChoice<Autodiff<B, C>>) -> TokenChoice<B> {
    TokenChoice { local: choice.local, per_sample: choice.per_sample }
}

impl<B: TokenOps, C: CheckpointStrategy> TokenOps for Autodiff<B, C> {
    fn fused_embed_tokens(parts: TokenParts<FloatTensor<Self>>) -> FloatTensor<Self> {
        if !B::fuses_tokens(&B::float_device(&parts.patches.primitive)) {
            return composed::embed_tokens::<Self>(parts);
        }
        let TokenParts { patches, cls, masked, positions } = parts;
        let (mask, token) = match masked {
            Some((mask, token)) => (Some(constant::<B, C>("embed_tokens", mask)), Some(token)),
            None => (None, None),
        };
        let node =
            |x: &Option<FloatTensor<Self>>| x.as_ref().map_or(patches.node.clone(), |x| x.node.clone());
        /// For the macro, which asks for nodes.
        struct Parent<N> {
            node: N,
        }
        let token_parent = Parent { node: node(&token) };
        let positions_parent = Parent { node: node(&positions) };
        let state = (mask.clone(), positions.is_some());
        let masked = mask.zip(token).map(|(mask, token)| (mask, token.primitive));
        let positions = positions.map(|positions| positions.primitive);
        let run = |patches, cls| B::fused_embed_tokens(TokenParts { patches, cls, masked, positions });
        record!(B, C, EmbedBackward, [patches, cls, token_parent, positions_parent],
            tracked { (run(patches.primitive, cls.primitive), state) },
            untracked { run(patches.primitive, cls.primitive) })
    }

    fn fused_gather_tokens(x: FloatTensor<Self>, choice: TokenChoice<Self>) -> FloatTensor<Self> {
        if !B::fuses_tokens(&B::float_device(&x.primitive)) {
            return composed::gather_tokens::<Self>(x, choice);
        }
        let (choice, tokens) = (inner(choice), x.primitive.shape()[1]);
        record!(B, C, GatherTokensBackward, [x],
            tracked { (B::fused_gather_tokens(x.primitive, choice.clone()), (choice, tokens)) },
            untracked { B::fused_gather_tokens(x.primitive, choice) })
    }

    fn fused_narrow_tokens(x: FloatTensor<Self>, from: usize, count: usize) -> FloatTensor<Self> {
        if !B::fuses_tokens(&B::float_device(&x.primitive)) {
            return composed::narrow_tokens::<Self>(x, from, count);
        }
        let tokens = x.primitive.shape()[1];
        record!(B, C, NarrowBackward, [x],
            tracked { (B::fused_narrow_tokens(x.primitive, from, count), (from, tokens)) },
            untracked { B::fused_narrow_tokens(x.primitive, from, count) })
    }

    fn fused_mean_tokens(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if !B::fuses_tokens(&B::float_device(&x.primitive)) {
            return composed::mean_tokens::<Self>(x);
        }
        let tokens = x.primitive.shape()[1];
        record!(B, C, MeanBackward, [x],
            tracked { (B::fused_mean_tokens(x.primitive), tokens) },
            untracked { B::fused_mean_tokens(x.primitive) })
    }

    fn fused_replace_cls(cls: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        if !B::fuses_tokens(&B::float_device(&x.primitive)) {
            return composed::replace_cls::<Self>(cls, x);
        }
        let tokens = cls.primitive.shape()[1];
        record!(B, C, ReplaceClsBackward, [cls, x],
            tracked { (B::fused_replace_cls(cls.primitive, x.primitive), tokens) },
            untracked { B::fused_replace_cls(cls.primitive, x.primitive) })
    }

    fn fused_gather_bias(bias: FloatTensor<Self>, choice: TokenChoice<Self>) -> FloatTensor<Self> {
        if !B::fuses_gather_bias(&bias.primitive) {
            return composed::gather_bias::<Self>(bias, choice);
        }
        let (choice, tokens) = (inner(choice), bias.primitive.shape()[2]);
        record!(B, C, GatherBiasBackward, [bias],
            tracked { (B::fused_gather_bias(bias.primitive, choice.clone()), (choice, tokens)) },
            untracked { B::fused_gather_bias(bias.primitive, choice) })
    }
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
        match is_f32(&[&grad]) {
            true => cpu::gather_bias_backward(grad, choice, tokens),
            false => composed::gather_bias_backward::<Self>(grad, choice, tokens),
        }
    }
}
