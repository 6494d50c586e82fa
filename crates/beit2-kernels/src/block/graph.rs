//! A run of blocks as a node of Burn's graph.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{
    BlockActivation, BlockOps, BlockSizes, BlockSpec, BlocksDrop, BlocksGradients, BlocksInputs, PARAMETERS,
    composed,
};
use crate::collective::{Rank, overlap};
use crate::graph::{accumulate, constant, register};
use crate::interrupt::tick;
use crate::tokens::TokenChoice;

/// Blocks of one node; longer runs become several.
const MOST: usize = 12;

/// Parents: x, the biases, and the parameters of each block. Where a run has no such tensor, x stands for it and gets
/// nothing there: the number of parents is part of the type.
const PARENTS: usize = FIRST + MOST * PARAMETERS;

/// The first parameter among the parents.
const FIRST: usize = 1 + MOST;

#[derive(Debug)]
struct BlocksBackward;

/// What the backward pass needs.
#[derive(Debug, Clone)]
struct State<B: BlockOps> {
    inputs: BlocksInputs<FloatTensor<B>>,
    saved: Vec<FloatTensor<B>>,
    spec: BlockSpec,
    /// `None`: all tokens.
    choice: Option<TokenChoice<B>>,
    operations: usize,
}

/// A tensor, or what belongs to it, for each parent after x.
fn in_order<T>(biases: Vec<T>, parameters: Vec<super::BlockTensors<T>>) -> impl Iterator<Item = Option<T>> {
    let biases = biases.into_iter().map(Some).chain(std::iter::repeat_with(|| None)).take(MOST);
    biases.chain(parameters.into_iter().flat_map(super::BlockTensors::list))
}

impl<B: BlockOps> Backward<B, PARENTS> for BlocksBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let State { inputs, saved, spec, choice, operations } = ops.state;
        let bias_grad = ops.parents[1..=inputs.biases.len()].iter().any(Option::is_some);
        let given = inputs.parameters.iter().flat_map(|block| block.each_ref().list());
        // Nothing reads a leaf's gradient in this pass; something may read another's.
        let leaves = given.zip(&ops.parents[FIRST..]).all(|(given, parent)| {
            given.is_none() || parent.as_ref().is_none_or(|parent| parent.parents.is_empty())
        });
        let group = if leaves { overlap::group() } else { None };
        let BlocksGradients { x, biases, mut parameters } =
            B::fused_blocks_backward(inputs, choice, spec, saved, grad, bias_grad, group.as_ref());
        if group.is_some() {
            let means = std::mem::take(&mut parameters).into_iter().flat_map(super::BlockTensors::list);
            let keys =
                ops.parents[FIRST..].iter().map(|parent| parent.as_ref().map(|parent| parent.id.value));
            overlap::keep::<B>(keys.zip(means).filter_map(|(key, mean)| Some((key, mean?))));
        }
        let mut parents = ops.parents.into_iter();
        if let Some(parent) = parents.next().flatten() {
            accumulate!(B, grads, &parent, x);
        }
        register!(B, grads, parents, in_order(biases, parameters));
        tick(2 * operations);
    }
}

/// Why a panic, not a composed form: whoever asks for a second derivative would get it without the node's first.
fn refuse() -> ! {
    panic!("blocks: second derivatives are not implemented")
}

impl<B: BlockOps, C: CheckpointStrategy> BlockOps for Autodiff<B, C> {
    // Frozen blocks alone have other activations than GELU, so those have no backward pass.
    fn fuses_blocks(device: &Self::Device, sizes: &BlockSizes, spec: &BlockSpec) -> bool {
        spec.activation == BlockActivation::Gelu && B::fuses_blocks(device, sizes, spec)
    }

    fn fused_blocks(
        inputs: BlocksInputs<FloatTensor<Self>>,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        let shape = inputs.x.shape();
        let sizes = BlockSizes {
            batch: shape[0],
            tokens: shape[1],
            width: shape[2],
            hidden: inputs.parameters[0].fc1[1].shape()[0],
            heads: spec.heads,
        };
        if !Self::fuses_blocks(&B::float_device(&inputs.x.primitive), &sizes, &spec) {
            return composed::blocks::<Self>(inputs, choice, spec);
        }
        // Nodes of about the same size.
        let count = inputs.parameters.len();
        let of_node = count.div_ceil(count.div_ceil(MOST));
        let operations = sizes.operations();
        let mut x = inputs.x.clone();
        for first in (0..count).step_by(of_node) {
            let range = first..(first + of_node).min(count);
            let biases = match inputs.biases.len() {
                0 | 1 => inputs.biases.clone(),
                _ => inputs.biases[range.clone()].to_vec(),
            };
            let drop = inputs.drop.as_ref().map(|drop| BlocksDrop {
                factors: drop.factors.clone(),
                rows: drop.rows[range.clone()].to_vec(),
            });
            let choice = if range.end == count { choice.clone() } else { None };
            let parameters = inputs.parameters[range.clone()].to_vec();
            let part = BlocksInputs { x, biases, parameters, drop };
            x = record::<B, C>(part, choice, spec, range.len() * operations);
        }
        x
    }

    fn fused_blocks_train(
        _: BlocksInputs<FloatTensor<Self>>,
        _: Option<TokenChoice<Self>>,
        _: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        refuse()
    }

    fn fused_blocks_backward(
        _: BlocksInputs<FloatTensor<Self>>,
        _: Option<TokenChoice<Self>>,
        _: BlockSpec,
        _: Vec<FloatTensor<Self>>,
        _: FloatTensor<Self>,
        _: bool,
        _: Option<&Rank>,
    ) -> BlocksGradients<FloatTensor<Self>> {
        refuse()
    }
}

/// At most [`MOST`] blocks as a node.
fn record<B: BlockOps, C: CheckpointStrategy>(
    inputs: BlocksInputs<FloatTensor<Autodiff<B, C>>>,
    choice: Option<TokenChoice<Autodiff<B, C>>>,
    spec: BlockSpec,
    operations: usize,
) -> FloatTensor<Autodiff<B, C>> {
    let x = inputs.x.node.clone();
    let biases = inputs.biases.iter().map(|bias| bias.node.clone()).collect();
    let parameters = inputs.parameters.iter();
    let parameters = parameters.map(|block| block.each_ref().map(|tensor| tensor.node.clone())).collect();
    let mut nodes = in_order(biases, parameters);
    let nodes = std::array::from_fn(|at| match at {
        0 => x.clone(),
        _ => nodes.next().flatten().unwrap_or_else(|| x.clone()),
    });
    // Integers are the inner backend's already.
    let choice = choice.map(|choice| TokenChoice::<B> { local: choice.local, per_sample: choice.per_sample });
    let BlocksInputs { x, biases, parameters, drop } = inputs;
    let inner = BlocksInputs {
        x: x.primitive,
        biases: biases.into_iter().map(|bias| bias.primitive).collect(),
        parameters: parameters.into_iter().map(|block| block.map(|tensor| tensor.primitive)).collect(),
        drop: drop
            .map(|drop| BlocksDrop { factors: constant::<B, C>("blocks", drop.factors), rows: drop.rows }),
    };
    match Backward::<B, PARENTS>::prepare::<C>(BlocksBackward, nodes).compute_bound().stateful() {
        OpsKind::Tracked(node) => {
            let (y, saved) = B::fused_blocks_train(inner.clone(), choice.clone(), spec);
            node.finish(State { inputs: inner, saved, spec, choice, operations }, y)
        }
        OpsKind::UnTracked(node) => node.finish(B::fused_blocks(inner, choice, spec)),
    }
}
