//! A Transformer block, `x + s₁⊙γ₁⊙Attn(LN₁ x)` and then `x + s₂⊙γ₂⊙MLP(LN₂ x)`, as one operation.
//!
//! Contract: a backend that fuses the block ([`BlockOps::fuses_block`]) computes it in one operation each way, and Burn's
//! graph has one node for it. Values between the matmuls are then bf16 (norm outputs, q, k, v, attention output, branches,
//! hidden values, and the gradients of all of these); the residual stream and its gradient, statistics, softmax, sums, and
//! gradients of parameters are f32. γ is multiplied into the weights and biases of the layer before it, so that neither
//! pass touches a branch for it. Everywhere else the block is composed from the finer operations, with the numbers
//! that they give. Start reading at [`BlockOps`]; `rounded` (tests) says in Burn's primitives what a fused block computes.

pub(crate) mod composed;
mod graph;
#[cfg(test)]
pub(crate) mod rounded;
#[cfg(test)]
pub(crate) mod tests;

use burn::backend::Flex;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata};

use crate::attention::AttentionOps;
use crate::collective::{AllReduceOps, Rank};
use crate::interrupt::tick;
use crate::norm_mlp::NormMlpOps;
use crate::precision::Precision;
use crate::residual_scale::ResidualScaleOps;
use crate::tensor::{unwrap, wrap};
use crate::tokens::{TokenChoice, TokenOps};

/// The numbers of a block that are not tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockSpec {
    /// Heads H.
    pub heads: usize,
    /// Factor on the queries, `d^-½` in the paper.
    pub scale: f64,
    /// ε of both norms.
    pub eps: f64,
    /// Of the matmuls, forward and backward.
    pub precision: Precision,
    /// Whether a fused block keeps nothing but its input for the backward pass and computes the rest again there: a
    /// third more time, an eighth of the memory, the same gradients. A composed block keeps what its parts keep.
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

/// Factors of drop path on a block's branches: 0 for a dropped sample, `1/(1−p)` for a kept one.
#[derive(Debug, Clone)]
pub struct BlockDrop<T> {
    /// Of all branches of a model, `[branches, B]`, so that one transfer brings them all to a device.
    pub factors: T,
    /// Which rows are this block's: of the attention branch and of the MLP.
    pub rows: [usize; 2],
}

/// What a block computes with.
#[derive(Debug, Clone)]
pub struct BlockInputs<T> {
    /// `[B, T, D]`.
    pub x: T,
    /// Additive bias of the logits, `[1, H, T, T]`.
    pub bias: Option<T>,
    /// Parameters.
    pub parameters: BlockTensors<T>,
    /// Drop path; `None` keeps all. A constant to a graph.
    pub drop: Option<BlockDrop<T>>,
}

/// Gradients of a block.
#[derive(Debug, Clone)]
pub struct BlockGradients<T> {
    /// Of x.
    pub x: T,
    /// Of the bias, if it was asked for.
    pub bias: Option<T>,
    /// Of the parameters.
    pub parameters: BlockTensors<T>,
}

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

/// A Transformer block on a backend's own tensors.
pub trait BlockOps: AllReduceOps + AttentionOps + NormMlpOps + ResidualScaleOps + TokenOps {
    /// Whether [`block`](crate::block) of f32 tensors of these sizes is one computation here, with a backward pass of its
    /// own.
    fn fuses_block(_device: &Self::Device, _sizes: &BlockSizes, _spec: &BlockSpec) -> bool {
        false
    }

    /// [`block`](crate::block).
    fn fused_block(inputs: BlockInputs<FloatTensor<Self>>, spec: BlockSpec) -> FloatTensor<Self> {
        composed::block::<Self>(inputs, spec)
    }

    /// [`block`](crate::block) and what its backward pass needs (a backend knows what its own means); only where it is one
    /// computation.
    fn fused_block_train(
        _inputs: BlockInputs<FloatTensor<Self>>,
        _spec: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        unreachable!("{} composes block", std::any::type_name::<Self>())
    }

    /// Gradients of [`block`](crate::block); the bias's only if `bias_grad`. With a group, which only a backend is given that
    /// overlaps ([`AllReduceOps::overlaps_all_reduce`]), those of the parameters are the means over it, and may be written
    /// later: nothing reads them before [`arrived_means`](AllReduceOps::arrived_means).
    fn fused_block_backward(
        _inputs: BlockInputs<FloatTensor<Self>>,
        _spec: BlockSpec,
        _saved: Vec<FloatTensor<Self>>,
        _grad: FloatTensor<Self>,
        _bias_grad: bool,
        _group: Option<&Rank>,
    ) -> BlockGradients<FloatTensor<Self>> {
        unreachable!("{} composes block", std::any::type_name::<Self>())
    }

    /// [`block_tokens`](crate::block_tokens).
    fn fused_block_tokens(
        inputs: BlockInputs<FloatTensor<Self>>,
        choice: TokenChoice<Self>,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        Self::fused_gather_tokens(Self::fused_block(inputs, spec), choice)
    }

    /// As `fused_block_train`, of [`block_tokens`](crate::block_tokens).
    fn fused_block_tokens_train(
        inputs: BlockInputs<FloatTensor<Self>>,
        choice: TokenChoice<Self>,
        spec: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        let (y, saved) = Self::fused_block_train(inputs, spec);
        (Self::fused_gather_tokens(y, choice), saved)
    }

    /// As `fused_block_backward`, of [`block_tokens`](crate::block_tokens).
    fn fused_block_tokens_backward(
        inputs: BlockInputs<FloatTensor<Self>>,
        choice: TokenChoice<Self>,
        spec: BlockSpec,
        saved: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        bias_grad: bool,
        group: Option<&Rank>,
    ) -> BlockGradients<FloatTensor<Self>> {
        let tokens = inputs.x.shape()[1];
        let grad = Self::fused_gather_tokens_backward(grad, choice, tokens);
        Self::fused_block_backward(inputs, spec, saved, grad, bias_grad, group)
    }

    /// [`pack_block`](crate::pack_block).
    fn pack_block(
        _parameters: BlockTensors<FloatTensor<Self>>,
        _sizes: &BlockSizes,
        _spec: &BlockSpec,
    ) -> Option<FloatTensor<Self>> {
        None
    }

    /// [`block_tokens_packed`](crate::block_tokens_packed), for backends that pack.
    fn fused_block_tokens_packed(
        x: FloatTensor<Self>,
        choice: TokenChoice<Self>,
        bias: Option<FloatTensor<Self>>,
        packed: FloatTensor<Self>,
        hidden: usize,
        spec: BlockSpec,
    ) -> FloatTensor<Self> {
        Self::fused_gather_tokens(Self::fused_block_packed(x, bias, packed, hidden, spec), choice)
    }

    /// [`block_packed`](crate::block_packed), for backends that pack.
    fn fused_block_packed(
        _x: FloatTensor<Self>,
        _bias: Option<FloatTensor<Self>>,
        _packed: FloatTensor<Self>,
        _hidden: usize,
        _spec: BlockSpec,
    ) -> FloatTensor<Self> {
        panic!("block_packed: this backend packs no blocks; the block was frozen on another one")
    }
}

/// Whether [`block`] of these tensors is one computation on their device. If not, a caller may as well compose it, and
/// leave parts of it out.
pub fn fuses_block<B: BlockOps>(x: &Tensor<B, 3>, hidden: usize, spec: &BlockSpec) -> bool {
    x.dtype() == DType::F32 && B::fuses_block(&x.device(), &sizes(x, hidden, spec), spec)
}

fn sizes<B: BurnBackend>(x: &Tensor<B, 3>, hidden: usize, spec: &BlockSpec) -> BlockSizes {
    let [batch, tokens, width] = x.dims();
    BlockSizes { batch, tokens, width, hidden, heads: spec.heads }
}

/// A pre-norm Transformer block: `x + s₁⊙γ₁⊙Attn(LN₁ x)`, then `x + s₂⊙γ₂⊙MLP(LN₂ x)` with exact GELU.
///
/// # Shapes
/// `x [B, T, D]`, `bias [1, H, T, T]` → `[B, T, D]`.
///
/// # Panics
/// If the shapes do not fit, or the width is not a multiple of the heads.
pub fn block<B: BlockOps>(
    x: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    parameters: BlockParameters<B>,
    drop: Option<BlockDrop<Tensor<B, 2>>>,
    spec: BlockSpec,
) -> Tensor<B, 3> {
    let (sizes, inputs) = inputs(x, bias, parameters, drop, &spec);
    let y = wrap(B::fused_block(inputs, spec));
    tick(sizes.operations());
    y
}

/// Some tokens of what [`block`] gives, `[B, R, D]`: keys and values of all tokens, everything else for those.
///
/// # Panics
/// As [`block`].
pub fn block_tokens<B: BlockOps>(
    x: Tensor<B, 3>,
    choice: TokenChoice<B>,
    bias: Option<Tensor<B, 4>>,
    parameters: BlockParameters<B>,
    drop: Option<BlockDrop<Tensor<B, 2>>>,
    spec: BlockSpec,
) -> Tensor<B, 3> {
    let (sizes, inputs) = inputs(x, bias, parameters, drop, &spec);
    let y = wrap(B::fused_block_tokens(inputs, choice, spec));
    tick(sizes.operations());
    y
}

/// The inputs of a block, checked.
fn inputs<B: BlockOps>(
    x: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    parameters: BlockParameters<B>,
    drop: Option<BlockDrop<Tensor<B, 2>>>,
    spec: &BlockSpec,
) -> (BlockSizes, BlockInputs<FloatTensor<B>>) {
    let sizes = sizes(&x, parameters.fc1.0.dims()[0], spec);
    parameters.check(sizes.width);
    check(&sizes, bias.as_ref());
    if let Some(drop) = &drop {
        let [rows, batch] = drop.factors.dims();
        assert!(
            batch == sizes.batch && drop.rows.iter().all(|&row| row < rows),
            "block: drop path factors [{rows}, {batch}] have no rows {:?} for {} samples",
            drop.rows,
            sizes.batch
        );
    }
    let drop = drop.map(|drop| BlockDrop { factors: unwrap(drop.factors), rows: drop.rows });
    let inputs = BlockInputs { x: unwrap(x), bias: bias.map(unwrap), parameters: parameters.tensors(), drop };
    (sizes, inputs)
}

fn check<B: BurnBackend>(sizes: &BlockSizes, bias: Option<&Tensor<B, 4>>) {
    let BlockSizes { tokens, width, heads, .. } = *sizes;
    assert!(heads > 0 && width % heads == 0, "block: width {width} is not a multiple of {heads} heads");
    if let Some(bias) = bias {
        let (dims, wanted) = (bias.dims(), [1, heads, tokens, tokens]);
        assert!(dims == wanted, "block: bias {dims:?} is not {wanted:?}");
    }
}

/// The parameters of a block whose weights do not change any more, in the form that [`block_packed`] reads, as one tensor;
/// `None` where a backend does not fuse the block. Recording backends have nothing: such a block passes no gradient on.
pub fn pack_block<B: BlockOps>(parameters: BlockParameters<B>, spec: &BlockSpec) -> Option<Tensor<B, 1>> {
    let [hidden, width] = parameters.fc1.0.dims();
    parameters.check(width);
    let sizes = BlockSizes { batch: 1, tokens: 1, width, hidden, heads: spec.heads };
    B::pack_block(parameters.tensors(), &sizes, spec).map(wrap)
}

/// [`block`] of packed parameters, without drop path: the same to the bit. `hidden` is the F of its MLP.
///
/// # Panics
/// If the shapes do not fit, or the block was packed for another backend.
pub fn block_packed<B: BlockOps>(
    x: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    packed: Tensor<B, 1>,
    hidden: usize,
    spec: BlockSpec,
) -> Tensor<B, 3> {
    let sizes = sizes(&x, hidden, &spec);
    check(&sizes, bias.as_ref());
    let y = wrap(B::fused_block_packed(unwrap(x), bias.map(unwrap), unwrap(packed), hidden, spec));
    tick(sizes.operations());
    y
}

/// [`block_tokens`] of packed parameters, without drop path.
///
/// # Panics
/// As [`block_packed`].
pub fn block_tokens_packed<B: BlockOps>(
    x: Tensor<B, 3>,
    choice: TokenChoice<B>,
    bias: Option<Tensor<B, 4>>,
    packed: Tensor<B, 1>,
    hidden: usize,
    spec: BlockSpec,
) -> Tensor<B, 3> {
    let sizes = sizes(&x, hidden, &spec);
    check(&sizes, bias.as_ref());
    let (x, bias, packed) = (unwrap(x), bias.map(unwrap), unwrap(packed));
    let y = wrap(B::fused_block_tokens_packed(x, choice, bias, packed, hidden, spec));
    tick(sizes.operations());
    y
}

impl BlockOps for Flex {
    // Tests run the whole seam on the CPU, with the reference of what a fused block computes.
    #[cfg(test)]
    fn fuses_block(_: &Self::Device, _: &BlockSizes, _: &BlockSpec) -> bool {
        rounded::FUSED.with(std::cell::Cell::get)
    }

    #[cfg(test)]
    fn fused_block(inputs: BlockInputs<FloatTensor<Self>>, spec: BlockSpec) -> FloatTensor<Self> {
        match rounded::FUSED.with(std::cell::Cell::get) {
            true => rounded::forward::<Self>(&inputs, &spec).y(),
            false => composed::block::<Self>(inputs, spec),
        }
    }

    #[cfg(test)]
    fn fused_block_train(
        inputs: BlockInputs<FloatTensor<Self>>,
        spec: BlockSpec,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        (rounded::forward::<Self>(&inputs, &spec).y(), Vec::new())
    }

    #[cfg(test)]
    fn fused_block_backward(
        inputs: BlockInputs<FloatTensor<Self>>,
        spec: BlockSpec,
        _: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        bias_grad: bool,
        group: Option<&Rank>,
    ) -> BlockGradients<FloatTensor<Self>> {
        let mut gradients = rounded::backward::<Self>(&inputs, &spec, grad, bias_grad);
        if let Some(group) = group {
            let mean = |x: FloatTensor<Self>| {
                let shape = x.shape();
                let sum = crate::tensor::rows::<Self>(crate::collective::through_host::<Self>(x, group));
                crate::tensor::from_rows::<Self>(shape, sum.div_scalar(group.world() as f64))
            };
            gradients.parameters = gradients.parameters.map(mean);
        }
        gradients
    }
}
