//! Patches to vectors.

use beit2_kernels::{self as kernels, Backend, PackedWeight, Precision};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// A convolution whose stride equals its kernel, computed as one matmul over patches.
#[derive(Module, Debug)]
pub struct PatchEmbed<B: burn::tensor::backend::Backend> {
    /// The projection, named as the reference's `Conv2d`.
    pub proj: PatchProjection<B>,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    packed: Option<PackedWeight>,
}

/// Weight and bias of the patch projection.
#[derive(Module, Debug)]
pub struct PatchProjection<B: burn::tensor::backend::Backend> {
    /// `[D, C, p, p]`.
    pub weight: Param<Tensor<B, 4>>,
    /// `[D]`; CLIP's tower has none.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> PatchEmbed<B> {
    /// A projection of zeros.
    pub fn new(channels: usize, patch: usize, width: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            proj: PatchProjection {
                weight: Param::from_tensor(Tensor::zeros([width, channels, patch, patch], device)),
                bias: bias.then(|| Param::from_tensor(Tensor::zeros([width], device))),
            },
            precision: Precision::F32,
            packed: None,
        }
    }

    /// Runs the matmul in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// For a model whose weights do not change any more, see [`Linear::freeze`](super::Linear::freeze). The weight stays, for
    /// its shape: it is small.
    #[must_use]
    pub fn freeze(mut self) -> Self {
        self.packed = kernels::pack_weight(self.rows(), self.precision);
        self
    }

    /// The weight as `[D, C·p·p]`.
    fn rows(&self) -> Tensor<B, 2> {
        let weight = self.proj.weight.val();
        let [dim, channels, patch, _] = weight.dims();
        weight.reshape([dim, channels * patch * patch])
    }

    /// # Shapes
    /// `[B, C, H, W]` → `[B, N, D]`, patches row by row.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 3> {
        let patches = kernels::patches(x, self.proj.weight.dims()[2]);
        let bias = self.proj.bias.as_ref().map(Param::val);
        match &self.packed {
            Some(packed) => kernels::linear_packed(patches, packed, bias),
            None => kernels::linear(patches, self.rows(), bias, self.precision),
        }
    }
}
