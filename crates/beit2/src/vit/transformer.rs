//! The reference's `VisionTransformer`: a trunk with final norm, pooling and head.

use beit2_kernels::{self as kernels, Backend, Precision};
use burn::module::Module;
use burn::tensor::Tensor;

use super::{DropPath, LayerNorm, Linear, Pixels, TokenSubset, Trunk, VitConfig};

/// What becomes the image's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean of the patch tokens, then `fc_norm`.
    Mean,
    /// `norm`, then the CLS token.
    Cls,
}

/// A Vision Transformer with a head (docs/method.md §2.1): classifier, VQ-KD encoder and decoder.
#[derive(Module, Debug)]
pub struct VisionTransformer<B: burn::tensor::backend::Backend> {
    /// Embedding and blocks.
    pub trunk: Trunk<B>,
    /// Final norm, with CLS pooling.
    pub norm: Option<LayerNorm<B>>,
    /// Final norm, with mean pooling.
    pub fc_norm: Option<LayerNorm<B>>,
    /// Linear head; `None` passes features through.
    pub head: Option<Linear<B>>,
}

impl<B: Backend> VisionTransformer<B> {
    /// A model of zeros; `outputs` 0 leaves the head out.
    pub fn new(config: &VitConfig, pooling: Pooling, outputs: usize, device: &B::Device) -> Self {
        let norm = || LayerNorm::new(config.width, config.norm_eps, device);
        Self {
            trunk: Trunk::new(config, device),
            norm: (pooling == Pooling::Cls).then(norm),
            fc_norm: (pooling == Pooling::Mean).then(norm),
            head: (outputs > 0).then(|| Linear::new(config.width, outputs, true, device)),
        }
    }

    /// Runs the matmuls in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.trunk.set_precision(precision);
        self.head.iter_mut().for_each(|head| head.set_precision(precision));
    }

    /// Makes freezing round the blocks' weights to 8-bit integers ([`Trunk::set_int8`]).
    pub fn set_int8(&mut self) {
        self.trunk.set_int8();
    }

    /// For a model whose weights do not change any more ([`Linear::freeze`]): faster on CPUs, the same results to the bit. To
    /// be called last: a frozen model cannot be trained, saved or loaded into, nor change its precision.
    #[must_use]
    pub fn freeze(self) -> Self {
        Self { trunk: self.trunk.freeze(), head: self.head.map(Linear::freeze), ..self }
    }

    /// All tokens after the final norm, `[B, C, H, W]` → `[B, N+1, D]`.
    pub fn tokens(&self, x: impl Into<Pixels<B>>, drop: &DropPath<B>) -> Tensor<B, 3> {
        let x = self.trunk.embed(x, None);
        let bias = self.trunk.shared_bias();
        let x = self.trunk.run(x, 0..self.trunk.blocks.len(), None, bias.as_ref(), drop);
        match (&self.norm, &self.fc_norm) {
            (Some(norm), _) | (None, Some(norm)) => norm.forward(x),
            (None, None) => x,
        }
    }

    /// Patch tokens after the final norm and the head, `[B, N, outputs]`.
    pub fn patch_tokens(&self, x: impl Into<Pixels<B>>, drop: &DropPath<B>) -> Tensor<B, 3> {
        let tokens = self.tokens(x, drop);
        let patches = tokens.dims()[1] - 1;
        let tokens = kernels::narrow_tokens(tokens, 1, patches);
        match &self.head {
            Some(head) => head.forward(tokens),
            None => tokens,
        }
    }

    /// Some tokens after the final norm, `[B, R, D]`: in the last block, everything but keys and values is computed for them
    /// alone. Equal to selecting them from [`VisionTransformer::tokens`].
    pub fn token_subset(&self, x: impl Into<Pixels<B>>, subset: &TokenSubset<B>) -> Tensor<B, 3> {
        let x = self.trunk.embed(x, None);
        let (bias, drop) = (self.trunk.shared_bias(), DropPath::none());
        let x = self.trunk.run(x, 0..self.trunk.blocks.len(), Some(subset), bias.as_ref(), &drop);
        match (&self.norm, &self.fc_norm) {
            (Some(norm), _) | (None, Some(norm)) => norm.forward(x),
            (None, None) => x,
        }
    }

    /// The head's output for the pooled image, `[B, outputs]`.
    pub fn forward(&self, x: impl Into<Pixels<B>>, drop: &DropPath<B>) -> Tensor<B, 2> {
        let x = self.trunk.embed(x, None);
        let bias = self.trunk.shared_bias();
        let x = self.trunk.run(x, 0..self.trunk.blocks.len(), None, bias.as_ref(), drop);
        let [batch, _, width] = x.dims();
        let pooled = match (&self.fc_norm, &self.norm) {
            (Some(fc_norm), _) => fc_norm.forward(kernels::mean_tokens(x)),
            (None, Some(norm)) => norm.forward(x.narrow(1, 0, 1).reshape([batch, width])),
            (None, None) => x.narrow(1, 0, 1).reshape([batch, width]),
        };
        match &self.head {
            Some(head) => head.forward(pooled),
            None => pooled,
        }
    }
}
