//! One pre-norm Transformer block.

use beit2_kernels::{
    self as kernels, AttentionSpec, Backend, BlockActivation, BlockParameters, BlockSpec, NormMlp, Precision,
};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::drop_path::add_branch;
use super::trunk::TokenSubset;
use super::{Attention, BranchDrop, LayerNorm, Linear, RelPosBias};

/// Two linear layers around GELU.
#[derive(Module, Debug)]
pub struct Mlp<B: burn::tensor::backend::Backend> {
    /// `[hidden, D]`.
    pub fc1: Linear<B>,
    /// `[D, hidden]`.
    pub fc2: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    /// Shape is kept.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.fc2.forward(kernels::gelu(self.fc1.forward(x)))
    }
}

/// Everything that tells one block from another.
#[derive(Debug, Clone, Copy)]
pub struct BlockOptions {
    /// D.
    pub width: usize,
    /// H.
    pub heads: usize,
    /// Hidden units of the MLP.
    pub mlp_hidden: usize,
    /// Learned q and v biases.
    pub qkv_bias: bool,
    /// Whether γ exists.
    pub layer_scale: bool,
    /// ε of both norms.
    pub norm_eps: f64,
    /// Grid of this block's own bias table.
    pub own_table: Option<(usize, usize)>,
}

/// `x + γ₁⊙Attn(LN x)`, then `x + γ₂⊙MLP(LN x)`, each branch with drop path.
#[derive(Module, Debug)]
pub struct Block<B: burn::tensor::backend::Backend> {
    /// Layer scale of the attention branch, `[D]`.
    pub gamma_1: Option<Param<Tensor<B, 1>>>,
    /// Layer scale of the MLP branch, `[D]`.
    pub gamma_2: Option<Param<Tensor<B, 1>>>,
    /// Norm before attention.
    pub norm1: LayerNorm<B>,
    /// Attention.
    pub attn: Attention<B>,
    /// Norm before the MLP.
    pub norm2: LayerNorm<B>,
    /// MLP.
    pub mlp: Mlp<B>,
    /// All parameters of a frozen block, where a backend computes a run of them as one operation.
    pub(super) packed: Option<Tensor<B, 1>>,
}

impl<B: Backend> Block<B> {
    /// A block of zeros.
    pub fn new(o: BlockOptions, device: &B::Device) -> Self {
        let gamma = || o.layer_scale.then(|| Param::from_tensor(Tensor::ones([o.width], device)));
        let table = o.own_table.map(|(rows, cols)| RelPosBias::new(rows, cols, o.heads, device));
        Self {
            gamma_1: gamma(),
            gamma_2: gamma(),
            norm1: LayerNorm::new(o.width, o.norm_eps, device),
            attn: Attention::new(o.width, o.heads, o.qkv_bias, table, device),
            norm2: LayerNorm::new(o.width, o.norm_eps, device),
            mlp: Mlp {
                fc1: Linear::new(o.width, o.mlp_hidden, true, device),
                fc2: Linear::new(o.mlp_hidden, o.width, true, device),
            },
            packed: None,
        }
    }

    /// Runs the matmuls in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.attn.set_precision(precision);
        self.mlp.fc1.set_precision(precision);
        self.mlp.fc2.set_precision(precision);
    }

    /// Makes [`Block::freeze`] round the weights to 8-bit integers ([`Linear::set_int8`]).
    pub fn set_int8(&mut self) {
        let Self { attn, mlp, .. } = self;
        [&mut attn.qkv, &mut attn.proj, &mut mlp.fc1, &mut mlp.fc2].into_iter().for_each(Linear::set_int8);
    }

    /// For a model whose weights do not change any more ([`Linear::freeze`]).
    #[must_use]
    pub fn freeze(self) -> Self {
        if self.attn.qkv.packed().is_some() {
            return self;
        }
        let packed = self.parameters().and_then(|parameters| kernels::pack_block(parameters, &self.spec()));
        let Self { attn, mlp, .. } = self;
        let attn = attn.freeze();
        let mlp = Mlp { fc1: mlp.fc1.freeze(), fc2: mlp.fc2.freeze() };
        // Where weights stay they may be exchanged, and must be what is computed with.
        let packed = packed.filter(|_| attn.qkv.packed().is_some());
        Self { attn, mlp, packed, ..self }
    }

    pub(super) fn spec(&self) -> BlockSpec {
        let AttentionSpec { heads, scale, precision } = self.attn.spec();
        let (eps, activation) = (self.norm1.eps(), BlockActivation::Gelu);
        BlockSpec { heads, scale, eps, activation, precision, recompute: kernels::recomputes::<B>() }
    }

    /// For the block as one operation; `None` if it is not of that form.
    pub(super) fn parameters(&self) -> Option<BlockParameters<B>> {
        let pair = |a: &Option<Param<Tensor<B, 1>>>, b: &Option<Param<Tensor<B, 1>>>| match (a, b) {
            (Some(a), Some(b)) => Some(Some([a.val(), b.val()])),
            (None, None) => Some(None),
            _ => None,
        };
        let norm = |norm: &LayerNorm<B>| [norm.weight.val(), norm.bias.val()];
        let layer = |layer: &Linear<B>| Some((layer.weight.val(), layer.bias.as_ref()?.val()));
        let precision = self.attn.qkv.precision();
        let layers = [&self.attn.proj, &self.mlp.fc1, &self.mlp.fc2];
        let uniform = layers.iter().all(|layer| layer.precision() == precision)
            && self.norm1.eps() == self.norm2.eps()
            && self.attn.qkv.bias.is_none();
        let [proj, fc1, fc2] = layers.map(layer);
        uniform.then_some(BlockParameters {
            norm1: norm(&self.norm1),
            qkv: self.attn.qkv.weight.val(),
            qv_bias: pair(&self.attn.q_bias, &self.attn.v_bias)?,
            proj: proj?,
            norm2: norm(&self.norm2),
            fc1: fc1?,
            fc2: fc2?,
            gammas: pair(&self.gamma_1, &self.gamma_2)?,
        })
    }

    /// Composed of finer operations; [`run_blocks`](super::run_blocks) does several blocks as one where a backend can.
    ///
    /// # Shapes
    /// `x [B, T, D]`, `bias [1, H, T, T]` → `[B, T, D]`.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        bias: Option<&Tensor<B, 4>>,
        drop: &BranchDrop<B>,
    ) -> Tensor<B, 3> {
        let x = add_branch(x.clone(), &self.gamma_1, &drop.attn, |kept| {
            self.attn.forward(self.norm1.forward(kept.take(x)), bias)
        });
        self.mlp_residual(x, drop)
    }

    /// The block's output for some tokens only, `[B, R, D]`: keys and values of all tokens, everything
    /// else for those. Equal to selecting them from the output of [`Block::forward`].
    pub fn forward_subset(
        &self,
        x: Tensor<B, 3>,
        subset: &TokenSubset<B>,
        bias: Option<&Tensor<B, 4>>,
        drop: &BranchDrop<B>,
    ) -> Tensor<B, 3> {
        let x = add_branch(subset.gather(x.clone()), &self.gamma_1, &drop.attn, |kept| {
            let subset = subset.of_samples(kept);
            self.attn.forward_subset(self.norm1.forward(kept.take(x)), &subset, bias)
        });
        self.mlp_residual(x, drop)
    }

    fn mlp_residual(&self, x: Tensor<B, 3>, drop: &BranchDrop<B>) -> Tensor<B, 3> {
        add_branch(x.clone(), &self.gamma_2, &drop.mlp, |kept| self.mlp_branch(kept.take(x)))
    }

    /// MLP(LN x).
    fn mlp_branch(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let Mlp { fc1, fc2 } = &self.mlp;
        let (Some(b1), Some(b2)) = (&fc1.bias, &fc2.bias) else {
            return self.mlp.forward(self.norm2.forward(x));
        };
        if let (Some(w1), Some(w2)) = (fc1.packed(), fc2.packed()) {
            let norm = [self.norm2.weight.val(), self.norm2.bias.val()];
            return kernels::norm_mlp_packed(x, norm, self.norm2.eps(), (w1, b1.val()), (w2, b2.val()));
        }
        let parameters = NormMlp {
            norm: [self.norm2.weight.val(), self.norm2.bias.val()],
            eps: self.norm2.eps(),
            fc1: (fc1.weight.val(), b1.val()),
            fc2: (fc2.weight.val(), b2.val()),
            precision: fc1.precision(),
        };
        kernels::norm_mlp(x, parameters)
    }

    /// The softmax weights `[B, H, T, T]` of this block for its input.
    pub fn attention_weights(&self, x: Tensor<B, 3>, bias: Option<&Tensor<B, 4>>) -> Tensor<B, 4> {
        self.attn.weights(self.norm1.forward(x), bias)
    }
}
