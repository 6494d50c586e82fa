//! Linear and layer norm in the checkpoints' layout.

use beit2_kernels::{self as kernels, Backend, Precision};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// `y = x·Wᵀ + b` with the weight stored `[out, in]`, as in the published files.
#[derive(Module, Debug)]
pub struct Linear<B: burn::tensor::backend::Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    precision: Precision,
}

impl<B: Backend> Linear<B> {
    /// A layer of zeros; values come from an initialiser or a file.
    pub fn new(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros([outputs, inputs], device)),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([outputs], device))),
            precision: Precision::F32,
        }
    }

    /// How the products are computed; f32 until something else is said.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Computes the products in `precision` from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// # Shapes
    /// `[.., in]` → `[.., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        kernels::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val), self.precision)
    }
}

/// Layer normalization over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm<B: burn::tensor::backend::Backend> {
    /// Scale `[D]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Shift `[D]`.
    pub bias: Param<Tensor<B, 1>>,
    eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// The identity scale and shift.
    pub fn new(width: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([width], device)),
            bias: Param::from_tensor(Tensor::zeros([width], device)),
            eps,
        }
    }

    /// ε.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Shape is kept.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}
