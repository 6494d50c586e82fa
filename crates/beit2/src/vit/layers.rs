//! Linear and layer norm in the checkpoints' layout.

use beit2_kernels::{self as kernels, Backend, PackedWeight, Precision};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// `y = x·Wᵀ + b` with the weight stored `[out, in]`, as in the published files.
///
/// A frozen layer ([`Linear::freeze`]) has its weight in the packed form that matmuls read, and nothing else.
#[derive(Module, Debug)]
pub struct Linear<B: burn::tensor::backend::Backend> {
    /// `[out, in]`; `[0, 0]` in a frozen layer that has a packed weight.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    precision: Precision,
    /// Whether freezing rounds the weight to 8-bit integers.
    #[module(skip)]
    int8: bool,
    #[module(skip)]
    packed: Option<PackedWeight>,
}

impl<B: Backend> Linear<B> {
    /// A layer of zeros; values come from an initialiser or a file.
    pub fn new(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros([outputs, inputs], device)),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([outputs], device))),
            precision: Precision::F32,
            int8: false,
            packed: None,
        }
    }

    /// Of the matmuls; f32 unless set otherwise.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Runs the matmuls in `precision` from now on.
    ///
    /// # Panics
    /// If the layer is frozen in another one.
    pub fn set_precision(&mut self, precision: Precision) {
        assert!(
            self.packed.is_none() || precision == self.precision,
            "a layer frozen in {} cannot compute in {precision}; set the precision before freezing",
            self.precision
        );
        self.precision = precision;
    }

    /// Makes [`Linear::freeze`] round the weight to 8-bit integers where the backend can; then results are not those of the
    /// weight itself ([`kernels::pack_weight_int8`]).
    pub fn set_int8(&mut self) {
        self.int8 = true;
    }

    /// The layer for a model whose weights do not change any more: its weight is packed once instead of in every call,
    /// where the backend packs, and let go. Results are the same to the bit.
    ///
    /// To be called last: a frozen model cannot be trained, saved or loaded into.
    #[must_use]
    pub fn freeze(mut self) -> Self {
        if self.packed.is_none() {
            let weight = self.weight.val();
            self.packed = match self.int8 {
                true => kernels::pack_weight_int8(weight.clone()),
                false => kernels::pack_weight(weight.clone(), self.precision),
            };
            if self.packed.is_some() {
                // Why not kept: it is as large as the packed one. Its shape makes every use of it fail.
                self.weight = Param::from_tensor(Tensor::empty([0, 0], &weight.device()));
            }
        }
        self
    }

    /// The packed weight of a frozen layer.
    pub(crate) fn packed(&self) -> Option<&PackedWeight> {
        self.packed.as_ref()
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.packed.as_ref().map_or_else(|| self.weight.dims(), PackedWeight::dims)[0]
    }

    /// # Shapes
    /// `[.., in]` → `[.., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.forward_with(x, self.bias.as_ref().map(Param::val))
    }

    /// [`Linear::forward`] with a bias of the caller's.
    pub(super) fn forward_with<const D: usize>(
        &self,
        x: Tensor<B, D>,
        bias: Option<Tensor<B, 1>>,
    ) -> Tensor<B, D> {
        match &self.packed {
            Some(packed) => kernels::linear_packed(x, packed, bias),
            None => kernels::linear(x, self.weight.val(), bias, self.precision),
        }
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
