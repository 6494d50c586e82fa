//! Transformer blocks, `x + s₁⊙γ₁⊙Attn(LN₁ x)` and then `x + s₂⊙γ₂⊙MLP(LN₂ x)`, a run of them as one operation.
//!
//! Contract: a backend that fuses blocks ([`BlockOps::fuses_blocks`]) computes a run of them in one operation each way, and
//! Burn's graph has one node for it. Values between the matmuls are then bf16 (norm outputs, q, k, v, attention output, branches,
//! hidden values, and the gradients of all of these); the residual stream and its gradient, statistics, softmax, sums, and
//! gradients of parameters are f32. γ is multiplied into the weights and biases of the layer before it, so that neither
//! pass touches a branch for it. Why a run: the sum that ends a block and the norm that begins the next are one pass, and
//! what is done once a block (packing weights, finishing sums, adding gradients of a shared bias) is done once a run.
//! Everywhere else blocks are composed from the finer operations, with the numbers that they give. Start reading at
//! [`BlockOps`]; `rounded` (tests) says in Burn's primitives what fused blocks compute.

mod call;
pub(crate) mod composed;
mod graph;
#[cfg(test)]
pub(crate) mod rounded;
#[cfg(test)]
pub(crate) mod tests;

use burn::backend::Flex;
use burn::tensor::ops::FloatTensor;

use crate::attention::AttentionOps;
use crate::collective::{AllReduceOps, Rank};
use crate::concat::ConcatOps;
use crate::norm_mlp::NormMlpOps;
use crate::precision::Precision;
use crate::residual_scale::ResidualScaleOps;
use crate::tokens::{TokenChoice, TokenOps};

pub use call::{BlockParameters, blocks, blocks_packed, fuses_blocks, pack_block};

/// Activation between the two layers of a block's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BlockActivation {
    /// Exact GELU, `x·Φ(x)`.
    #[default]
    Gelu,
    /// [`quick_gelu`](crate::quick_gelu).
    QuickGelu,
    /// [`gelu_tanh`](crate::gelu_tanh).
    GeluTanh,
}

/// The numbers of a block that are not tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockSpec {
    /// Heads H.
    pub heads: usize,
    /// Factor on the queries, `d^-½` in the paper.
    pub scale: f64,
    /// ε of both norms.
    pub eps: f64,
    /// Of the MLP. Only [`BlockActivation::Gelu`] has a backward pass in one computation.
    pub activation: BlockActivation,
    /// Of the matmuls, forward and backward.
    pub precision: Precision,
    /// Whether fused blocks keep nothing but their inputs for the backward pass and compute the rest again there: a
    /// third more time, an eighth of the memory, the same gradients. Composed blocks keep what their parts keep.
    pub recompute: bool,
}

/// Sizes of a block's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSizes {
    /// B.
    pub batch: usize,
    /// T.
    pub tokens: usize,
    /// D.
    pub width: usize,
    /// Hidden units F of the MLP.
    pub hidden: usize,
    /// H.
    pub heads: usize,
}

impl BlockSizes {
    /// B·T.
    pub fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// Floating-point operations of the matmuls of a forward pass.
    pub fn operations(&self) -> usize {
        let linear = 2 * self.rows() * self.width * (4 * self.width + 2 * self.hidden);
        linear + 4 * self.rows() * self.width * self.tokens
    }
}

/// The parameters of a block, as tensors or whatever belongs to each of them.
#[derive(Debug, Clone)]
pub struct BlockTensors<T> {
    /// Scale and shift of the norm before attention, `[D]` each.
    pub norm1: [T; 2],
    /// `[3D, D]`: rows of q, then k, then v.
    pub qkv: T,
    /// Biases of q and v, `[D]` each; k has none.
    pub qv_bias: Option<[T; 2]>,
    /// Weight `[D, D]` and bias `[D]` of the output projection.
    pub proj: [T; 2],
    /// Scale and shift of the norm before the MLP, `[D]` each.
    pub norm2: [T; 2],
    /// Weight `[F, D]` and bias `[F]`.
    pub fc1: [T; 2],
    /// Weight `[D, F]` and bias `[D]`.
    pub fc2: [T; 2],
    /// Layer scale γ of both branches, `[D]` each.
    pub gammas: Option<[T; 2]>,
}

/// Most tensors that a block's parameters can be.
pub(crate) const PARAMETERS: usize = 15;

impl<T> BlockTensors<T> {
    /// `f` of each, in the order of [`BlockTensors::list`].
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> BlockTensors<U> {
        let mut f = |x| f(x);
        BlockTensors {
            norm1: self.norm1.map(&mut f),
            qkv: f(self.qkv),
            qv_bias: self.qv_bias.map(|pair| pair.map(&mut f)),
            proj: self.proj.map(&mut f),
            norm2: self.norm2.map(&mut f),
            fc1: self.fc1.map(&mut f),
            fc2: self.fc2.map(&mut f),
            gammas: self.gammas.map(|pair| pair.map(&mut f)),
        }
    }

    /// References to them.
    pub fn each_ref(&self) -> BlockTensors<&T> {
        BlockTensors {
            norm1: self.norm1.each_ref(),
            qkv: &self.qkv,
            qv_bias: self.qv_bias.as_ref().map(|pair| pair.each_ref()),
            proj: self.proj.each_ref(),
            norm2: self.norm2.each_ref(),
            fc1: self.fc1.each_ref(),
            fc2: self.fc2.each_ref(),
            gammas: self.gammas.as_ref().map(|pair| pair.each_ref()),
        }
    }

    /// All of them in a fixed order, `None` for what the block does not have.
    pub fn list(self) -> [Option<T>; PARAMETERS] {
        let pair = |pair: Option<[T; 2]>| match pair {
            Some([a, b]) => [Some(a), Some(b)],
            None => [None, None],
        };
        let [n1, s1] = self.norm1;
        let [q, v] = pair(self.qv_bias);
        let [proj, proj_bias] = self.proj;
        let [n2, s2] = self.norm2;
        let [fc1, fc1_bias] = self.fc1;
        let [fc2, fc2_bias] = self.fc2;
        let [g1, g2] = pair(self.gammas);
        let first = [Some(n1), Some(s1), Some(self.qkv), q, v, Some(proj), Some(proj_bias), Some(n2)];
        let second = [Some(s2), Some(fc1), Some(fc1_bias), Some(fc2), Some(fc2_bias), g1, g2];
        let mut all = first.into_iter().chain(second);
        std::array::from_fn(|_| all.next().flatten())
    }
}

/// Factors of drop path on the branches of a run of blocks: 0 for a dropped sample, `1/(1−p)` for a kept one.
#[derive(Debug, Clone)]
pub struct BlocksDrop<T> {
    /// Of all branches of a model, `[branches, B]`, so that one transfer brings them all to a device.
    pub factors: T,
    /// Which rows are those of each block: of the attention branch and of the MLP. `None`: the block drops nothing.
    pub rows: Vec<Option<[usize; 2]>>,
}

/// What a run of blocks computes with. All blocks have the same sizes.
#[derive(Debug, Clone)]
pub struct BlocksInputs<T> {
    /// `[B, T, D]`.
    pub x: T,
    /// Additive biases of the logits, `[1, H, T, T]`: none, one for all blocks, or one for each.
    pub biases: Vec<T>,
    /// Parameters of each block; of one at least.
    pub parameters: Vec<BlockTensors<T>>,
    /// Drop path; `None` keeps all. A constant to a graph.
    pub drop: Option<BlocksDrop<T>>,
}

impl<T: Clone> BlocksInputs<T> {
    /// What block `number` computes with, `x` being its input.
    pub(crate) fn block(&self, number: usize, x: T) -> BlockInputs<T> {
        let rows = |drop: &BlocksDrop<T>| {
            drop.rows[number].map(|rows| BlockDrop { factors: drop.factors.clone(), rows })
        };
        BlockInputs {
            x,
            bias: self.biases.get(self.bias_of(number)).cloned(),
            parameters: self.parameters[number].clone(),
            drop: self.drop.as_ref().and_then(rows),
        }
    }
}

impl<T> BlocksInputs<T> {
    /// Which of the biases is that of block `number`.
    pub(crate) fn bias_of(&self, number: usize) -> usize {
        if self.biases.len() == 1 { 0 } else { number }
    }
}

/// [`BlocksDrop`] of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockDrop<T> {
    pub factors: T,
    pub rows: [usize; 2],
}

/// [`BlocksInputs`] of one block.
#[derive(Debug, Clone)]
pub(crate) struct BlockInputs<T> {
    pub x: T,
    pub bias: Option<T>,
    pub parameters: BlockTensors<T>,
    pub drop: Option<BlockDrop<T>>,
}

/// Gradients of a run of blocks.
#[derive(Debug, Clone)]
pub struct BlocksGradients<T> {
    /// Of x.
    pub x: T,
    /// Of the biases, as many, if they were asked for.
    pub biases: Vec<T>,
    /// Of the parameters of each block.
    pub parameters: Vec<BlockTensors<T>>,
}

/// A run of Transformer blocks on a backend's own tensors. With a `choice` of tokens the last block is computed for those
/// alone.
pub trait BlockOps:
    AllReduceOps + AttentionOps + ConcatOps + NormMlpOps + ResidualScaleOps + TokenOps
{
    /// Whether [`blocks`] of f32 tensors of these sizes is one computation here, with a backward pass of its own.
    fn fuses_blocks(_device: &Self::Device, _sizes: &BlockSizes, _spec: &BlockSpec) -> bool {
        false
    }

    /// [`blocks`].
    fn fused_blocks(
        inputs: BlocksInputs<FloatTensor<Self>>,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        composed::blocks::<Self>(inputs, choice, spec)
    }

    /// [`blocks`] and what its backward pass needs (a backend knows what its own means); only where it is one computation.
    fn fused_blocks_train(
        _inputs: BlocksInputs<FloatTensor<Self>>,
        _choice: Option<TokenChoice<Self>>,
        _spec: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        unreachable!("{} composes blocks", std::any::type_name::<Self>())
    }

    /// Gradients of [`blocks`]; the biases' only if `bias_grad`. With a group, which only a backend is given that overlaps
    /// ([`AllReduceOps::overlaps_all_reduce`]), those of the parameters are the
    /// means over it, and may be written later: nothing reads them before
    /// [`arrived_means`](AllReduceOps::arrived_means).
    fn fused_blocks_backward(
        _inputs: BlocksInputs<FloatTensor<Self>>,
        _choice: Option<TokenChoice<Self>>,
        _spec: BlockSpec,
        _saved: Vec<FloatTensor<Self>>,
        _grad: FloatTensor<Self>,
        _bias_grad: bool,
        _group: Option<&Rank>,
    ) -> BlocksGradients<FloatTensor<Self>> {
        unreachable!("{} composes blocks", std::any::type_name::<Self>())
    }

    /// [`pack_block`].
    fn pack_block(
        _parameters: BlockTensors<FloatTensor<Self>>,
        _sizes: &BlockSizes,
        _spec: &BlockSpec,
    ) -> Option<FloatTensor<Self>> {
        None
    }

    /// [`blocks_packed`], for backends that pack.
    fn fused_blocks_packed(
        _x: FloatTensor<Self>,
        _biases: Vec<FloatTensor<Self>>,
        _packed: Vec<FloatTensor<Self>>,
        _hidden: usize,
        _choice: Option<TokenChoice<Self>>,
        _spec: BlockSpec,
    ) -> FloatTensor<Self> {
        panic!("blocks_packed: this backend packs no blocks; they were frozen on another one")
    }
}

impl BlockOps for Flex {
    // Tests run the whole seam on the CPU, with the reference of what fused blocks compute.
    #[cfg(test)]
    fn fuses_blocks(_: &Self::Device, _: &BlockSizes, _: &BlockSpec) -> bool {
        rounded::FUSED.with(std::cell::Cell::get)
    }

    #[cfg(test)]
    fn fused_blocks(
        inputs: BlocksInputs<FloatTensor<Self>>,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        match rounded::FUSED.with(std::cell::Cell::get) {
            true => rounded::blocks::<Self>(&inputs, choice, &spec),
            false => composed::blocks::<Self>(inputs, choice, spec),
        }
    }

    #[cfg(test)]
    fn fused_blocks_train(
        inputs: BlocksInputs<FloatTensor<Self>>,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        (rounded::blocks::<Self>(&inputs, choice, &spec), Vec::new())
    }

    #[cfg(test)]
    fn fused_blocks_backward(
        inputs: BlocksInputs<FloatTensor<Self>>,
        choice: Option<TokenChoice<Self>>,
        spec: BlockSpec,
        _: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        bias_grad: bool,
        group: Option<&Rank>,
    ) -> BlocksGradients<FloatTensor<Self>> {
        let mut gradients = rounded::blocks_backward::<Self>(&inputs, choice, &spec, grad, bias_grad);
        if let Some(group) = group {
            let mean = |x: FloatTensor<Self>| {
                let shape = burn::tensor::TensorMetadata::shape(&x);
                let sum = crate::collective::through_host::<Self>(x, group);
                let mean = crate::tensor::rows::<Self>(sum).div_scalar(group.world() as f64);
                crate::tensor::from_rows::<Self>(shape, mean)
            };
            gradients.parameters = gradients.parameters.into_iter().map(|block| block.map(mean)).collect();
        }
        gradients
    }
}
