//! Between Burn's tensors and a backend's own.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata, TensorPrimitive};

/// A tensor of rank `D` around a backend's own.
pub(crate) fn wrap<B: BurnBackend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// The backend's own tensor.
pub(crate) fn unwrap<B: BurnBackend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// `[.., D]` as rows `[n, D]`.
pub(crate) fn rows<B: BurnBackend>(x: FloatTensor<B>) -> Tensor<B, 2> {
    let shape = x.shape();
    let width = shape.last().copied().unwrap_or(1);
    let count = shape.num_elements() / width.max(1);
    wrap(B::float_reshape(x, [count, width].into()))
}

/// Rows back in the shape they came from.
pub(crate) fn from_rows<B: BurnBackend>(shape: burn::tensor::Shape, x: Tensor<B, 2>) -> FloatTensor<B> {
    B::float_reshape(unwrap(x), shape)
}
