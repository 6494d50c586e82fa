//! Attention as one node of Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;

use super::AttentionSpec;
use crate::backend::{AttentionOutput, Backend};

/// What the backward pass needs: the `N` inputs, the bias, and what the forward pass gave.
#[derive(Debug, Clone)]
struct State<B: Backend, const N: usize> {
    inputs: [FloatTensor<B>; N],
    bias: Option<FloatTensor<B>>,
    output: AttentionOutput<B>,
    spec: AttentionSpec,
}

/// Parents q, k, v and, if there is one, the bias.
#[derive(Debug)]
struct AttentionBackward;

impl<B: Backend, const N: usize> Backward<B, N> for AttentionBackward {
    type State = State<B, 3>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let s = ops.state;
        let [q, k, v] = s.inputs;
        let bias_grad = ops.parents.get(3).is_some_and(Option::is_some);
        let (dq, dk, dv, dbias) =
            B::fused_attention_backward(q, k, v, s.bias, s.output, grad, s.spec, bias_grad);
        let gradients = [Some(dq), Some(dk), Some(dv), dbias];
        for (parent, grad) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

/// Parents qkv and, if there is one, the bias.
#[derive(Debug)]
struct AttentionQkvBackward;

impl<B: Backend, const N: usize> Backward<B, N> for AttentionQkvBackward {
    type State = State<B, 1>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let s = ops.state;
        let [qkv] = s.inputs;
        let bias_grad = ops.parents.get(1).is_some_and(Option::is_some);
        let (dqkv, dbias) = B::fused_attention_qkv_backward(qkv, s.bias, s.output, grad, s.spec, bias_grad);
        for (parent, grad) in ops.parents.into_iter().zip([Some(dqkv), dbias]) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

type Primitive<B, C> = FloatTensor<Autodiff<B, C>>;
type Output<B, C> = AttentionOutput<Autodiff<B, C>>;

/// Records `$backward` with these parents, whose number is part of its type.
macro_rules! record {
    ($B:ident, $C:ident, $backward:ident, $n:literal, [$($node:expr),*], $state:expr) => {{
        let prep = Backward::<$B, $n>::prepare::<$C>($backward, [$($node),*]);
        let state = $state;
        let (y, lse) = state.output.clone();
        let lse = Autodiff::<$B, $C>::from_inner(lse);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => (prep.finish(state, y), lse),
            OpsKind::UnTracked(prep) => (prep.finish(y), lse),
        }
    }};
}

pub(crate) fn autodiff<B: Backend, C: CheckpointStrategy>(
    q: Primitive<B, C>,
    k: Primitive<B, C>,
    v: Primitive<B, C>,
    bias: Option<Primitive<B, C>>,
    spec: AttentionSpec,
) -> Output<B, C> {
    let inputs = [q.primitive, k.primitive, v.primitive];
    let run = |bias: Option<FloatTensor<B>>| {
        let [q, k, v] = inputs.clone();
        State::<B, 3> { output: B::fused_attention(q, k, v, bias.clone(), spec), inputs, bias, spec }
    };
    let (q, k, v) = (q.node, k.node, v.node);
    match bias {
        None => record!(B, C, AttentionBackward, 3, [q, k, v], run(None)),
        Some(bias) => {
            let state = run(Some(bias.primitive));
            record!(B, C, AttentionBackward, 4, [q, k, v, bias.node], state)
        }
    }
}

pub(crate) fn autodiff_qkv<B: Backend, C: CheckpointStrategy>(
    qkv: Primitive<B, C>,
    bias: Option<Primitive<B, C>>,
    spec: AttentionSpec,
) -> Output<B, C> {
    let inputs = [qkv.primitive];
    let run = |bias: Option<FloatTensor<B>>| {
        let [qkv] = inputs.clone();
        State::<B, 1> { output: B::fused_attention_qkv(qkv, bias.clone(), spec), inputs, bias, spec }
    };
    match bias {
        None => record!(B, C, AttentionQkvBackward, 1, [qkv.node], run(None)),
        Some(bias) => {
            let state = run(Some(bias.primitive));
            record!(B, C, AttentionQkvBackward, 2, [qkv.node, bias.node], state)
        }
    }
}
