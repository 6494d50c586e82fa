//! A block whose values are computed again in the backward pass.

use beit2_kernels::{self as kernels, AnyRank, Backend};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;

use super::trunk::TokenSubset;
use super::{Block, BranchDrop};

/// [`Block::forward`], or of some tokens [`Block::forward_subset`], of which nothing but the input is kept where the thread
/// [recomputes](kernels::Recomputing). Both runs drop the same branches.
pub(super) fn forward<B: Backend>(
    block: &Block<B>,
    x: Tensor<B, 3>,
    subset: Option<&TokenSubset<B>>,
    bias: Option<&Tensor<B, 4>>,
    drop: &BranchDrop<B>,
) -> Tensor<B, 3> {
    if !kernels::recomputes::<B>() {
        return run(block, x, subset, bias, drop);
    }
    let mut taken = Take(Vec::new());
    let block = block.clone().map(&mut taken);
    let has_bias = bias.is_some();
    let inputs = std::iter::once(AnyRank::from(x)).chain(bias.cloned().map(AnyRank::from)).chain(taken.0);
    let (subset, drop) = (subset.cloned(), drop.clone());
    // The rows of a subset are taken out of the bias before the block begins, so their gradients come last.
    let late: &[usize] = if has_bias && subset.is_some() { &[1] } else { &[] };
    kernels::recompute(inputs.collect(), late, move |inputs| {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().unwrap_or_else(|| unreachable!("as many as were taken"));
        let (x, bias) = (next().ranked(), has_bias.then(|| next().ranked()));
        let block = block.clone().map(&mut Put(inputs));
        run(&block, x, subset.as_ref(), bias.as_ref(), &drop)
    })
}

fn run<B: Backend>(
    block: &Block<B>,
    x: Tensor<B, 3>,
    subset: Option<&TokenSubset<B>>,
    bias: Option<&Tensor<B, 4>>,
    drop: &BranchDrop<B>,
) -> Tensor<B, 3> {
    match subset {
        Some(subset) => block.forward_subset(x, subset, bias, drop),
        None => block.forward(x, bias, drop),
    }
}

/// Takes the parameters out of a block and leaves constants in their places.
struct Take<B: Backend>(Vec<AnyRank<B>>);

impl<B: Backend> ModuleMapper<B> for Take<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, value, mapper) = param.consume();
        self.0.push(value.clone().into());
        Param::from_mapped_value(id, value.set_require_grad(false), mapper)
    }
}

/// Puts others in the places of the parameters that [`Take`] took, in the same order.
struct Put<B: Backend>(std::vec::IntoIter<AnyRank<B>>);

impl<B: Backend> ModuleMapper<B> for Put<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(value) = self.0.next() else { unreachable!("as many are put back as were taken") };
        let (id, _, mapper) = param.consume();
        Param::from_mapped_value(id, value.ranked(), mapper)
    }
}
