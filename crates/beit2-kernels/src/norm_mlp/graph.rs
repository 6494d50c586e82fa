//! The branch as one node of Burn's graph, on backends that compute it as one.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;

use super::{NormMlpSaved, NormMlpTensors, composed};
use crate::backend::Backend;

/// Parents: x, then the parameters in their order.
#[derive(Debug)]
struct NormMlpBackward;

impl<B: Backend> Backward<B, 7> for NormMlpBackward {
    type State = (FloatTensor<B>, NormMlpTensors<B>, NormMlpSaved<B>);

    fn backward(self, ops: Ops<Self::State, 7>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, parameters, saved) = ops.state;
        let (dx, rest) = B::fused_norm_mlp_backward(x, parameters, saved, grad);
        for (parent, grad) in ops.parents.into_iter().zip(std::iter::once(dx).chain(rest)) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

pub(crate) fn autodiff<B: Backend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    p: NormMlpTensors<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    let inner = p.tensors.clone().map(|tensor| tensor.primitive);
    let inner = NormMlpTensors::<B> { tensors: inner, eps: p.eps, precision: p.precision };
    if !B::fuses_norm_mlp(&x.primitive, &inner) {
        return composed::<Autodiff<B, C>>(x, p);
    }
    let [scale, shift, w1, b1, w2, b2] = p.tensors.map(|tensor| tensor.node);
    let nodes = [x.node, scale, shift, w1, b1, w2, b2];
    let prep = Backward::<B, 7>::prepare::<C>(NormMlpBackward, nodes);
    match prep.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (y, saved) = B::fused_norm_mlp_train(x.primitive.clone(), inner.clone());
            prep.finish((x.primitive, inner, saved), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::fused_norm_mlp(x.primitive, inner)),
    }
}
