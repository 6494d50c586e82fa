//! Blocks one after the other: as one operation where the backend has it, else each of finer operations.

use beit2_kernels::{self as kernels, Backend, BlocksDrop};
use burn::tensor::Tensor;

use super::trunk::TokenSubset;
use super::{Block, BranchDrop, DropPath, recompute};

/// Runs `blocks`, of which the first is number `first` in order of execution. With a `subset` it gives those tokens only: in
/// the last block, everything but keys and values is computed for them alone.
///
/// # Shapes
/// `x [B, T, D]`, `bias [1, H, T, T]` → `[B, T, D]`, or `[B, R, D]` of a subset of R tokens.
pub fn run_blocks<B: Backend>(
    blocks: &[Block<B>],
    x: Tensor<B, 3>,
    subset: Option<&TokenSubset<B>>,
    bias: Option<&Tensor<B, 4>>,
    drop: &DropPath<B>,
    first: usize,
) -> Tensor<B, 3> {
    let Some((last, inner)) = blocks.split_last() else {
        return match subset {
            Some(subset) => subset.gather(x),
            None => x,
        };
    };
    let drops: Vec<BranchDrop<B>> = (first..first + blocks.len()).map(|number| drop.block(number)).collect();
    if let Some(y) = fused(blocks, &x, subset, bias, &drops) {
        return y;
    }
    let each = inner.iter().zip(&drops);
    let x = each.fold(x, |x, (block, drop)| recompute::forward(block, x, None, bias, drop));
    recompute::forward(last, x, subset, bias, &drops[inner.len()])
}

/// All blocks as one operation; `None` if the backend has none for them.
fn fused<B: Backend>(
    blocks: &[Block<B>],
    x: &Tensor<B, 3>,
    subset: Option<&TokenSubset<B>>,
    bias: Option<&Tensor<B, 4>>,
    drops: &[BranchDrop<B>],
) -> Option<Tensor<B, 3>> {
    let form = |block: &Block<B>| (block.spec(), block.mlp.fc1.outputs());
    let (spec, hidden) = form(&blocks[0]);
    let alike = blocks.iter().all(|block| form(block) == (spec, hidden));
    if !alike || !kernels::fuses_blocks(x, hidden, &spec) {
        return None;
    }
    let drop = joined(drops)?;
    let (x, choice) = (x.clone(), subset.map(TokenSubset::choice));
    // One for all blocks unless they have tables of their own.
    let own = blocks.iter().any(|block| block.attn.rel_pos.is_some());
    let biases = match own {
        true => blocks.iter().map(|block| block.attn.total_bias(bias)).collect::<Option<Vec<_>>>()?,
        false => bias.cloned().into_iter().collect(),
    };
    let packed: Option<Vec<_>> = blocks.iter().map(|block| block.packed.clone()).collect();
    if let (Some(packed), None) = (packed, &drop) {
        return Some(kernels::blocks_packed(x, biases, packed, hidden, choice, spec));
    }
    if blocks.iter().any(|block| block.attn.qkv.packed().is_some()) {
        return None;
    }
    let parameters: Option<Vec<_>> = blocks.iter().map(Block::parameters).collect();
    Some(kernels::blocks(x, biases, parameters?, choice, drop, spec))
}

/// Drop path of a run; `None` inside: nothing is dropped. `None`: dropped samples are left out, which such an operation does
/// not do.
fn joined<B: Backend>(drops: &[BranchDrop<B>]) -> Option<Option<BlocksDrop<Tensor<B, 2>>>> {
    let mut factors = None;
    let mut rows = Vec::with_capacity(drops.len());
    for drop in drops {
        let of_block = drop.fused()?;
        rows.push(of_block.as_ref().map(|(_, rows)| *rows));
        factors = factors.or(of_block.map(|(factors, _)| factors));
    }
    Some(factors.map(|factors| BlocksDrop { factors, rows }))
}
