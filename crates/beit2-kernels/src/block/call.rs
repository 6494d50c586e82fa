//! Runs of blocks with Burn's tensors: what callers use.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use super::{BlockOps, BlockSizes, BlockSpec, BlockTensors, BlocksDrop, BlocksInputs};
use crate::interrupt::tick;
use crate::tensor::{unwrap, wrap};
use crate::tokens::TokenChoice;

/// The parameters of a block as Burn's tensors. Shapes are those of [`BlockTensors`].
#[derive(Debug, Clone)]
pub struct BlockParameters<B: BurnBackend> {
    /// Scale and shift of the norm before attention.
    pub norm1: [Tensor<B, 1>; 2],
    /// q, k and v.
    pub qkv: Tensor<B, 2>,
    /// Biases of q and v.
    pub qv_bias: Option<[Tensor<B, 1>; 2]>,
    /// Output projection.
    pub proj: (Tensor<B, 2>, Tensor<B, 1>),
    /// Scale and shift of the norm before the MLP.
    pub norm2: [Tensor<B, 1>; 2],
    /// First layer of the MLP.
    pub fc1: (Tensor<B, 2>, Tensor<B, 1>),
    /// Second layer of the MLP.
    pub fc2: (Tensor<B, 2>, Tensor<B, 1>),
    /// Layer scale of both branches.
    pub gammas: Option<[Tensor<B, 1>; 2]>,
}

impl<B: BurnBackend> BlockParameters<B> {
    fn check(&self, width: usize) {
        let [hidden, _] = self.fc1.0.dims();
        let matrices = [self.qkv.dims(), self.proj.0.dims(), self.fc1.0.dims(), self.fc2.0.dims()];
        let wanted = [[3 * width, width], [width, width], [hidden, width], [width, hidden]];
        assert!(
            matrices == wanted,
            "block: weights of qkv, proj, fc1 and fc2 {matrices:?} do not fit a width of {width}"
        );
        let pairs = [Some(&self.norm1), self.qv_bias.as_ref(), Some(&self.norm2), self.gammas.as_ref()];
        let vectors = pairs.into_iter().flatten().flatten().chain([&self.proj.1, &self.fc2.1]);
        let wrong = vectors.map(|v| v.dims()[0]).find(|&length| length != width);
        assert!(
            wrong.is_none() && self.fc1.1.dims() == [hidden],
            "block: a vector of {wrong:?}, or the hidden bias {:?}, does not fit a width of {width}",
            self.fc1.1.dims()
        );
    }

    fn tensors(self) -> BlockTensors<FloatTensor<B>> {
        let layer = |(weight, bias): (Tensor<B, 2>, Tensor<B, 1>)| [unwrap(weight), unwrap(bias)];
        BlockTensors {
            norm1: self.norm1.map(unwrap),
            qkv: unwrap(self.qkv),
            qv_bias: self.qv_bias.map(|pair| pair.map(unwrap)),
            proj: layer(self.proj),
            norm2: self.norm2.map(unwrap),
            fc1: layer(self.fc1),
            fc2: layer(self.fc2),
            gammas: self.gammas.map(|pair| pair.map(unwrap)),
        }
    }
}

/// Whether [`blocks`] of these tensors is one computation on their device. If not, a caller may as well compose it, and
/// leave parts of it out.
pub fn fuses_blocks<B: BlockOps>(x: &Tensor<B, 3>, hidden: usize, spec: &BlockSpec) -> bool {
    x.dtype() == DType::F32 && B::fuses_blocks(&x.device(), &sizes(x, hidden, spec), spec)
}

fn sizes<B: BurnBackend>(x: &Tensor<B, 3>, hidden: usize, spec: &BlockSpec) -> BlockSizes {
    let [batch, tokens, width] = x.dims();
    BlockSizes { batch, tokens, width, hidden, heads: spec.heads }
}

/// Pre-norm Transformer blocks one after the other: `x + s₁⊙γ₁⊙Attn(LN₁ x)`, then `x + s₂⊙γ₂⊙MLP(LN₂ x)`. With a `choice`,
/// some tokens of what they give: in the last block keys and values are those of all tokens, everything else is
/// computed for the chosen ones.
///
/// # Shapes
/// `x [B, T, D]`, `biases [1, H, T, T]` (none, one for all blocks, or one for each) → `[B, T, D]`, or `[B, R, D]` of
/// R chosen tokens.
///
/// # Panics
/// If there is no block, the shapes do not fit or differ between blocks, or the width is not a multiple of the heads.
pub fn blocks<B: BlockOps>(
    x: Tensor<B, 3>,
    biases: Vec<Tensor<B, 4>>,
    parameters: Vec<BlockParameters<B>>,
    choice: Option<TokenChoice<B>>,
    drop: Option<BlocksDrop<Tensor<B, 2>>>,
    spec: BlockSpec,
) -> Tensor<B, 3> {
    let count = parameters.len();
    assert!(count > 0, "blocks: there is none");
    let sizes = sizes(&x, parameters[0].fc1.0.dims()[0], &spec);
    for block in &parameters {
        block.check(sizes.width);
        let hidden = block.fc1.0.dims()[0];
        assert!(hidden == sizes.hidden, "blocks: one has {hidden} hidden units, the first {}", sizes.hidden);
    }
    check(&sizes, &biases, count);
    if let Some(drop) = &drop {
        let [rows, batch] = drop.factors.dims();
        let places = drop.rows.iter().flatten().flatten();
        assert!(
            batch == sizes.batch && drop.rows.len() == count && places.clone().all(|&row| row < rows),
            "blocks: drop path factors [{rows}, {batch}] have no rows {:?} for {} samples and {count} blocks",
            drop.rows,
            sizes.batch
        );
    }
    let drop = drop.map(|drop| BlocksDrop { factors: unwrap(drop.factors), rows: drop.rows });
    let inputs = BlocksInputs {
        x: unwrap(x),
        biases: biases.into_iter().map(unwrap).collect(),
        parameters: parameters.into_iter().map(BlockParameters::tensors).collect(),
        drop,
    };
    let y = wrap(B::fused_blocks(inputs, choice, spec));
    tick(count * sizes.operations());
    y
}

fn check<B: BurnBackend>(sizes: &BlockSizes, biases: &[Tensor<B, 4>], blocks: usize) {
    let BlockSizes { tokens, width, heads, .. } = *sizes;
    assert!(heads > 0 && width % heads == 0, "blocks: width {width} is not a multiple of {heads} heads");
    let count = biases.len();
    assert!([0, 1, blocks].contains(&count), "blocks: {count} biases for {blocks} blocks");
    for bias in biases {
        let (dims, wanted) = (bias.dims(), [1, heads, tokens, tokens]);
        assert!(dims == wanted, "blocks: bias {dims:?} is not {wanted:?}");
    }
}

/// The parameters of a block whose weights do not change any more, in the form that [`blocks_packed`] reads, as one tensor;
/// `None` where a backend does not fuse the block. Recording backends have nothing: such a block passes no gradient on.
pub fn pack_block<B: BlockOps>(parameters: BlockParameters<B>, spec: &BlockSpec) -> Option<Tensor<B, 1>> {
    let [hidden, width] = parameters.fc1.0.dims();
    parameters.check(width);
    let sizes = BlockSizes { batch: 1, tokens: 1, width, hidden, heads: spec.heads };
    B::pack_block(parameters.tensors(), &sizes, spec).map(wrap)
}

/// [`blocks`] of packed parameters, without drop path: the same to the bit. `hidden` is the F of their MLPs.
///
/// # Panics
/// If there is no block, the shapes do not fit, or the blocks were packed for another backend.
pub fn blocks_packed<B: BlockOps>(
    x: Tensor<B, 3>,
    biases: Vec<Tensor<B, 4>>,
    packed: Vec<Tensor<B, 1>>,
    hidden: usize,
    choice: Option<TokenChoice<B>>,
    spec: BlockSpec,
) -> Tensor<B, 3> {
    let (sizes, count) = (sizes(&x, hidden, &spec), packed.len());
    assert!(count > 0, "blocks_packed: there is none");
    check(&sizes, &biases, count);
    let biases = biases.into_iter().map(unwrap).collect();
    let packed = packed.into_iter().map(unwrap).collect();
    let y = wrap(B::fused_blocks_packed(unwrap(x), biases, packed, hidden, choice, spec));
    tick(count * sizes.operations());
    y
}
