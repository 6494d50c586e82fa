//! Attention as one node of Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::TensorMetadata;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::{AttentionGradients, AttentionOps, AttentionOutput, AttentionSpec, operations};
use crate::graph::{constant, record_with, register};
use crate::interrupt::tick;

/// What the backward pass needs: the `N` inputs, the bias, and what the forward pass gave.
#[derive(Debug, Clone)]
struct State<B: AttentionOps, const N: usize> {
    inputs: [FloatTensor<B>; N],
    bias: Option<FloatTensor<B>>,
    output: AttentionOutput<B>,
    spec: AttentionSpec,
}

impl<B: AttentionOps, const N: usize> State<B, N> {
    /// The output, the log sums, and all of it for a backward pass.
    fn outputs(self) -> (FloatTensor<B>, FloatTensor<B>, Self) {
        let (y, lse) = self.output.clone();
        (y, lse, self)
    }
}

/// Parents q, k, v and, if there is one, the bias.
#[derive(Debug)]
struct AttentionBackward;

impl<B: AttentionOps, const N: usize> Backward<B, N> for AttentionBackward {
    type State = State<B, 3>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let s = ops.state;
        let [q, k, v] = s.inputs;
        let bias_grad = ops.parents.get(3).is_some_and(Option::is_some);
        let work = operations(q.shape().num_elements(), k.shape()[1]);
        let (dq, dk, dv, dbias) =
            B::fused_attention_backward(q, k, v, s.bias, s.output, grad, s.spec, bias_grad);
        register!(B, grads, ops.parents, [Some(dq), Some(dk), Some(dv), dbias]);
        tick(2 * work);
    }
}

/// Parents qkv and, if there is one, the bias.
#[derive(Debug)]
struct AttentionQkvBackward;

impl<B: AttentionOps, const N: usize> Backward<B, N> for AttentionQkvBackward {
    type State = State<B, 1>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let s = ops.state;
        let [qkv] = s.inputs;
        let bias_grad = ops.parents.get(1).is_some_and(Option::is_some);
        let work = operations(qkv.shape().num_elements() / 3, qkv.shape()[1]);
        let (dqkv, dbias) = B::fused_attention_qkv_backward(qkv, s.bias, s.output, grad, s.spec, bias_grad);
        register!(B, grads, ops.parents, [Some(dqkv), dbias]);
        tick(2 * work);
    }
}

/// Parents q, kv and, if there is one, the bias.
#[derive(Debug)]
struct AttentionSubsetBackward;

impl<B: AttentionOps, const N: usize> Backward<B, N> for AttentionSubsetBackward {
    type State = (State<B, 2>, IntTensor<B>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (s, rows) = ops.state;
        let [q, kv] = s.inputs;
        let bias_grad = ops.parents.get(2).is_some_and(Option::is_some);
        let work = operations(q.shape().num_elements(), kv.shape()[1]);
        let (dq, dkv, dbias) =
            B::fused_attention_subset_backward(q, kv, s.bias, rows, s.output, grad, s.spec, bias_grad);
        register!(B, grads, ops.parents, [Some(dq), Some(dkv), dbias]);
        tick(2 * work);
    }
}

/// Runs attention and keeps what a backward pass needs.
fn attend<B: AttentionOps>(
    inputs: [FloatTensor<B>; 3],
    bias: Option<FloatTensor<B>>,
    spec: AttentionSpec,
) -> State<B, 3> {
    let [q, k, v] = inputs.clone();
    State { output: B::fused_attention(q, k, v, bias.clone(), spec), inputs, bias, spec }
}

/// As [`attend`], of a fused projection.
fn attend_qkv<B: AttentionOps>(
    qkv: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    spec: AttentionSpec,
) -> State<B, 1> {
    State { output: B::fused_attention_qkv(qkv.clone(), bias.clone(), spec), inputs: [qkv], bias, spec }
}

/// As [`attend`], for the queries of some tokens.
fn attend_subset<B: AttentionOps>(
    inputs: [FloatTensor<B>; 2],
    bias: Option<FloatTensor<B>>,
    rows: IntTensor<B>,
    spec: AttentionSpec,
) -> State<B, 2> {
    let [q, kv] = inputs.clone();
    State { output: B::fused_attention_subset(q, kv, bias.clone(), rows, spec), inputs, bias, spec }
}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        let inputs = [q.primitive, k.primitive, v.primitive];
        // The number of parents is part of the type, hence the two arms.
        let (y, lse) = match bias {
            None => record_with!(B, C, AttentionBackward, [q, k, v],
                tracked { attend(inputs, None, spec).outputs() },
                untracked { attend::<B>(inputs, None, spec).output }),
            Some(bias) => record_with!(B, C, AttentionBackward, [q, k, v, bias],
                tracked { attend(inputs, Some(bias.primitive), spec).outputs() },
                untracked { attend::<B>(inputs, Some(bias.primitive), spec).output }),
        };
        (y, Self::from_inner(lse))
    }

    fn fused_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> AttentionGradients<Self> {
        let plain = |t| constant::<B, C>("attention", t);
        let [q, k, v, grad] = [q, k, v, grad].map(plain);
        let (bias, output) = (bias.map(plain), (output.0.primitive, output.1.primitive));
        let (dq, dk, dv, dbias) = B::fused_attention_backward(q, k, v, bias, output, grad, spec, bias_grad);
        let wrap = Self::from_inner;
        (wrap(dq), wrap(dk), wrap(dv), dbias.map(wrap))
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        let input = qkv.primitive;
        let (y, lse) = match bias {
            None => record_with!(B, C, AttentionQkvBackward, [qkv],
                tracked { attend_qkv(input, None, spec).outputs() },
                untracked { attend_qkv::<B>(input, None, spec).output }),
            Some(bias) => record_with!(B, C, AttentionQkvBackward, [qkv, bias],
                tracked { attend_qkv(input, Some(bias.primitive), spec).outputs() },
                untracked { attend_qkv::<B>(input, Some(bias.primitive), spec).output }),
        };
        (y, Self::from_inner(lse))
    }

    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let plain = |t| constant::<B, C>("attention_qkv", t);
        let (qkv, bias, grad) = (plain(qkv), bias.map(plain), plain(grad));
        let output = (output.0.primitive, output.1.primitive);
        let (dqkv, dbias) = B::fused_attention_qkv_backward(qkv, bias, output, grad, spec, bias_grad);
        (Self::from_inner(dqkv), dbias.map(Self::from_inner))
    }

    fn reads_bias_by_rows(q: &FloatTensor<Self>, kv: &FloatTensor<Self>, spec: AttentionSpec) -> bool {
        B::reads_bias_by_rows(&q.primitive, &kv.primitive, spec)
    }

    fn fused_attention_subset(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        rows: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        let inputs = [q.primitive, kv.primitive];
        let tracked = |inputs, bias, rows: IntTensor<B>| {
            let state = attend_subset::<B>(inputs, bias, rows.clone(), spec);
            let (y, lse, state) = state.outputs();
            (y, lse, (state, rows))
        };
        let (y, lse) = match bias {
            None => record_with!(B, C, AttentionSubsetBackward, [q, kv],
                tracked { tracked(inputs, None, rows) },
                untracked { attend_subset::<B>(inputs, None, rows, spec).output }),
            Some(bias) => record_with!(B, C, AttentionSubsetBackward, [q, kv, bias],
                tracked { tracked(inputs, Some(bias.primitive), rows) },
                untracked { attend_subset::<B>(inputs, Some(bias.primitive), rows, spec).output }),
        };
        (y, Self::from_inner(lse))
    }

    fn fused_attention_subset_backward(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        rows: IntTensor<Self>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let plain = |t| constant::<B, C>("attention_subset", t);
        let [q, kv, grad] = [q, kv, grad].map(plain);
        let (bias, output) = (bias.map(plain), (output.0.primitive, output.1.primitive));
        let (dq, dkv, dbias) =
            B::fused_attention_subset_backward(q, kv, bias, rows, output, grad, spec, bias_grad);
        let wrap = Self::from_inner;
        (wrap(dq), wrap(dkv), dbias.map(wrap))
    }
}
