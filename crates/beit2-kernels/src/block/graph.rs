//! The block as one node of Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{BlockDrop, BlockGradients, BlockInputs, BlockOps, BlockSizes, BlockSpec, PARAMETERS, composed};
use crate::graph::{constant, register};
use crate::interrupt::tick;

/// Parents: x, the bias, and the parameters. Where a block has no such tensor, x stands for it and gets nothing there:
/// the number of parents is part of the type.
const PARENTS: usize = 2 + PARAMETERS;

#[derive(Debug)]
struct BlockBackward;

/// What the backward pass needs.
#[derive(Debug, Clone)]
struct State<B: BlockOps> {
    inputs: BlockInputs<FloatTensor<B>>,
    saved: Vec<FloatTensor<B>>,
    spec: BlockSpec,
    operations: usize,
}

impl<B: BlockOps> Backward<B, PARENTS> for BlockBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let State { inputs, saved, spec, operations } = ops.state;
        let bias_grad = inputs.bias.is_some() && ops.parents[1].is_some();
        let BlockGradients { x, bias, parameters } =
            B::fused_block_backward(inputs, spec, saved, grad, bias_grad);
        let gradients = [Some(x), bias].into_iter().chain(parameters.list());
        register!(B, grads, ops.parents, gradients);
        tick(2 * operations);
    }
}

/// Why a panic, not a composed form: whoever asks for a second derivative would get it without the node's first.
fn refuse() -> ! {
    panic!("block: second derivatives are not implemented")
}

impl<B: BlockOps, C: CheckpointStrategy> BlockOps for Autodiff<B, C> {
    fn fuses_block(device: &Self::Device, sizes: &BlockSizes, spec: &BlockSpec) -> bool {
        B::fuses_block(device, sizes, spec)
    }

    fn fused_block(inputs: BlockInputs<FloatTensor<Self>>, spec: BlockSpec) -> FloatTensor<Self> {
        let shape = inputs.x.shape();
        let sizes = BlockSizes {
            batch: shape[0],
            tokens: shape[1],
            width: shape[2],
            hidden: inputs.parameters.fc1[1].shape()[0],
            heads: spec.heads,
        };
        if !B::fuses_block(&B::float_device(&inputs.x.primitive), &sizes, &spec) {
            return composed::block::<Self>(inputs, spec);
        }
        let x = inputs.x.node.clone();
        let mut nodes = [inputs.bias.as_ref().map(|bias| bias.node.clone())]
            .into_iter()
            .chain(inputs.parameters.each_ref().map(|tensor| tensor.node.clone()).list())
            .map(|node| node.unwrap_or_else(|| x.clone()));
        let nodes = std::array::from_fn(|at| match at {
            0 => x.clone(),
            _ => nodes.next().unwrap_or_else(|| unreachable!("as many as parents")),
        });
        let BlockInputs { x, bias, parameters, drop } = inputs;
        let inner = BlockInputs {
            x: x.primitive,
            bias: bias.map(|bias| bias.primitive),
            parameters: parameters.map(|tensor| tensor.primitive),
            drop: drop
                .map(|drop| BlockDrop { factors: constant::<B, C>("block", drop.factors), rows: drop.rows }),
        };
        match Backward::<B, PARENTS>::prepare::<C>(BlockBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(node) => {
                let (y, saved) = B::fused_block_train(inner.clone(), spec);
                node.finish(State { inputs: inner, saved, spec, operations: sizes.operations() }, y)
            }
            OpsKind::UnTracked(node) => node.finish(B::fused_block(inner, spec)),
        }
    }

    fn fused_block_train(
        _: BlockInputs<FloatTensor<Self>>,
        _: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        refuse()
    }

    fn fused_block_backward(
        _: BlockInputs<FloatTensor<Self>>,
        _: BlockSpec,
        _: Vec<FloatTensor<Self>>,
        _: FloatTensor<Self>,
        _: bool,
    ) -> BlockGradients<FloatTensor<Self>> {
        refuse()
    }
}
