//! Tokens as nodes of Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use super::{TokenChoice, TokenOps, TokenParts, composed};
use crate::graph::{accumulate, constant, record, register};

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
