//! The block as one node of Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{BlockDrop, BlockGradients, BlockInputs, BlockOps, BlockSizes, BlockSpec, PARAMETERS, composed};
use crate::collective::{Rank, overlap};
use crate::graph::{constant, register};
use crate::interrupt::tick;
use crate::tokens::{TokenChoice, TokenOps};

/// Parents: x, the bias, and the parameters. Where a block has no such tensor, x stands for it and gets nothing there:
/// the number of parents is part of the type.
const PARENTS: usize = FIRST + PARAMETERS;

/// The first parameter among the parents.
const FIRST: usize = 2;

#[derive(Debug)]
struct BlockBackward;

/// What the backward pass needs.
#[derive(Debug, Clone)]
struct State<B: BlockOps> {
    inputs: BlockInputs<FloatTensor<B>>,
    saved: Vec<FloatTensor<B>>,
    spec: BlockSpec,
    /// `None`: all tokens.
    choice: Option<TokenChoice<B>>,
    operations: usize,
}

impl<B: BlockOps> Backward<B, PARENTS> for BlockBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let State { inputs, saved, spec, choice, operations } = ops.state;
        let bias_grad = inputs.bias.is_some() && ops.parents[1].is_some();
        let given = inputs.parameters.each_ref().list().into_iter();
        // Nothing reads a leaf's gradient in this pass; something may read another's.
        let leaves = given.zip(&ops.parents[FIRST..]).all(|(given, parent)| {
            given.is_none() || parent.as_ref().is_none_or(|parent| parent.parents.is_empty())
        });
        let group = if leaves { overlap::group() } else { None };
        let to = group.as_ref();
        let BlockGradients { x, bias, parameters } = match choice {
            Some(choice) => B::fused_block_tokens_backward(inputs, choice, spec, saved, grad, bias_grad, to),
            None => B::fused_block_backward(inputs, spec, saved, grad, bias_grad, to),
        };
        let mut parameters = parameters.list();
        if group.is_some() {
            let means = std::mem::take(&mut parameters).into_iter();
            let keys =
                ops.parents[FIRST..].iter().map(|parent| parent.as_ref().map(|parent| parent.id.value));
            overlap::keep::<B>(keys.zip(means).filter_map(|(key, mean)| Some((key, mean?))));
        }
        let gradients = [Some(x), bias].into_iter().chain(parameters);
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
        record::<B, C>(inputs, None, spec)
    }

    fn fused_block_tokens(
        inputs: BlockInputs<FloatTensor<Self>>,
        choice: TokenChoice<Self>,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        record::<B, C>(inputs, Some(choice), spec)
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
        _: Option<&Rank>,
    ) -> BlockGradients<FloatTensor<Self>> {
        refuse()
    }
}

/// The block, or some tokens of it, as a node.
fn record<B: BlockOps, C: CheckpointStrategy>(
    inputs: BlockInputs<FloatTensor<Autodiff<B, C>>>,
    choice: Option<TokenChoice<Autodiff<B, C>>>,
    spec: BlockSpec,
) -> FloatTensor<Autodiff<B, C>> {
    let shape = inputs.x.shape();
    let sizes = BlockSizes {
        batch: shape[0],
        tokens: shape[1],
        width: shape[2],
        hidden: inputs.parameters.fc1[1].shape()[0],
        heads: spec.heads,
    };
    if !B::fuses_block(&B::float_device(&inputs.x.primitive), &sizes, &spec) {
        let y = composed::block::<Autodiff<B, C>>(inputs, spec);
        return match choice {
            Some(choice) => Autodiff::<B, C>::fused_gather_tokens(y, choice),
            None => y,
        };
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
    // Integers are the inner backend's already.
    let choice = choice.map(|choice| TokenChoice::<B> { local: choice.local, per_sample: choice.per_sample });
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
            let (y, saved) = match choice.clone() {
                Some(choice) => B::fused_block_tokens_train(inner.clone(), choice, spec),
                None => B::fused_block_train(inner.clone(), spec),
            };
            node.finish(State { inputs: inner, saved, spec, choice, operations: sizes.operations() }, y)
        }
        OpsKind::UnTracked(node) => node.finish(match choice {
            Some(choice) => B::fused_block_tokens(inner, choice, spec),
            None => B::fused_block(inner, spec),
        }),
    }
}
