//! Patches to vectors.

use beit2_kernels::{self as kernels, AutodiffBackend, Backend, PackedWeight, PatchSpec, Precision, Scaling};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// What a model sees of a batch: images scaled as it wants them, whole or cut into its patches.
#[derive(Debug, Clone)]
pub enum Pixels<B: burn::tensor::backend::Backend> {
    /// `[B, C, H, W]`.
    Images(Tensor<B, 4>),
    /// `[B, N, C·p·p]`, row by row, with the numbers of rows and columns.
    Patches(Tensor<B, 3>, [usize; 2]),
}

impl<B: burn::tensor::backend::Backend> From<Tensor<B, 4>> for Pixels<B> {
    fn from(images: Tensor<B, 4>) -> Self {
        Self::Images(images)
    }
}

impl<B: Backend> Pixels<B> {
    /// The same on the backend that records gradients.
    pub fn record<A: AutodiffBackend<InnerBackend = B>>(self) -> Pixels<A> {
        match self {
            Self::Images(images) => Pixels::Images(Tensor::from_inner(images)),
            Self::Patches(patches, grid) => Pixels::Patches(Tensor::from_inner(patches), grid),
        }
    }
}

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

    /// Side of a patch.
    pub fn patch(&self) -> usize {
        self.proj.weight.dims()[2]
    }

    /// How the layer reads images of this scaling.
    pub fn spec<'a>(&self, scaling: Scaling<'a>) -> PatchSpec<'a> {
        PatchSpec { patch: self.patch(), scaling, precision: self.precision }
    }

    /// Vectors of patches row by row, `[B, N, D]`, with the numbers of rows and columns.
    pub fn forward(&self, x: Pixels<B>) -> (Tensor<B, 3>, [usize; 2]) {
        let (patches, grid) = match x {
            Pixels::Patches(patches, grid) => (patches, grid),
            Pixels::Images(images) => {
                let ([_, _, height, width], patch) = (images.dims(), self.patch());
                (kernels::patches(images, patch), [height / patch, width / patch])
            }
        };
        let bias = self.proj.bias.as_ref().map(Param::val);
        let vectors = match &self.packed {
            Some(packed) => kernels::linear_packed(patches, packed, bias),
            None => kernels::linear(patches, self.rows(), bias, self.precision),
        };
        (vectors, grid)
    }
}
