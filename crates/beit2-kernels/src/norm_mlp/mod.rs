//! A Transformer's MLP branch, `W₂·gelu(W₁·LN(x) + b₁) + b₂`, as one operation.
//!
//! Contract: rows are taken in blocks that stay in the second-level cache from the norm to the result, so that hidden
//! values cross memory once. The backward pass keeps the normalised rows, the activations and GELU's derivative, in the
//! products' precision (what products round anyway; the derivative is rounded too), and nothing else of the size of the
//! hidden layer.

#[cfg(target_arch = "x86_64")]
pub(crate) mod fast;
mod graph;
#[cfg(test)]
mod tests;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use crate::backend::Backend;
use crate::composed::{unwrap, wrap};
use crate::linear::PackedWeight;
use crate::precision::Precision;
pub(crate) use graph::autodiff;

/// Parameters of the branch.
#[derive(Debug, Clone)]
pub struct NormMlp<B: BurnBackend> {
    /// Scale and shift of the norm, `[D]` each.
    pub norm: [Tensor<B, 1>; 2],
    /// ε of the norm.
    pub eps: f64,
    /// `[H, D]` and `[H]`.
    pub fc1: (Tensor<B, 2>, Tensor<B, 1>),
    /// `[D, H]` and `[D]`.
    pub fc2: (Tensor<B, 2>, Tensor<B, 1>),
    /// Of the products, forward and backward.
    pub precision: Precision,
}

/// The same on a backend's own tensors.
#[derive(Debug, Clone)]
pub struct NormMlpTensors<B: BurnBackend> {
    /// Scale and shift of the norm, W₁, b₁, W₂, b₂.
    pub tensors: [FloatTensor<B>; 6],
    /// ε of the norm.
    pub eps: f64,
    /// Of the products.
    pub precision: Precision,
}

/// What a backward pass needs besides the input and the parameters; a backend knows what its own means.
pub type NormMlpSaved<B> = Vec<FloatTensor<B>>;

/// `W₂·gelu(W₁·LN(x) + b₁) + b₂` with exact GELU: `x [.., D]` → `[.., D]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn norm_mlp<B: Backend, const D: usize>(x: Tensor<B, D>, p: NormMlp<B>) -> Tensor<B, D> {
    let width = x.dims()[D - 1];
    let [hidden, inner] = p.fc1.0.dims();
    let vectors = [p.norm[0].dims(), p.norm[1].dims(), p.fc2.1.dims()];
    assert!(
        inner == width
            && p.fc2.0.dims() == [width, hidden]
            && p.fc1.1.dims() == [hidden]
            && vectors == [[width]; 3],
        "norm_mlp: weights [{hidden}, {inner}] and {:?} do not fit x {:?}",
        p.fc2.0.dims(),
        x.dims()
    );
    let [scale, shift] = p.norm;
    let tensors =
        [unwrap(scale), unwrap(shift), unwrap(p.fc1.0), unwrap(p.fc1.1), unwrap(p.fc2.0), unwrap(p.fc2.1)];
    wrap(B::fused_norm_mlp(unwrap(x), NormMlpTensors { tensors, eps: p.eps, precision: p.precision }))
}

/// [`norm_mlp`] of a frozen branch: packed weights with their biases, the same to the bit.
pub fn norm_mlp_packed<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    norm: [Tensor<B, 1>; 2],
    eps: f64,
    fc1: (&PackedWeight, Tensor<B, 1>),
    fc2: (&PackedWeight, Tensor<B, 1>),
) -> Tensor<B, D> {
    let width = x.dims()[D - 1];
    let ([hidden, inner], out) = (fc1.0.dims(), fc2.0.dims());
    let vectors = [norm[0].dims(), norm[1].dims(), fc2.1.dims()];
    assert!(
        inner == width && out == [width, hidden] && fc1.1.dims() == [hidden] && vectors == [[width]; 3],
        "norm_mlp_packed: weights [{hidden}, {inner}] and {out:?} do not fit x {:?}",
        x.dims()
    );
    let fc1 = (fc1.0, unwrap(fc1.1));
    let fc2 = (fc2.0, unwrap(fc2.1));
    wrap(B::fused_norm_mlp_packed(unwrap(x), norm.map(unwrap), eps, fc1, fc2))
}

/// [`norm_mlp_packed`] from a backend's other operations.
pub(crate) fn composed_packed<B: Backend>(
    x: FloatTensor<B>,
    [scale, shift]: [FloatTensor<B>; 2],
    eps: f64,
    (w1, b1): (&PackedWeight, FloatTensor<B>),
    (w2, b2): (&PackedWeight, FloatTensor<B>),
) -> FloatTensor<B> {
    let (x, ..) = B::fused_layer_norm(x, scale, shift, eps);
    let hidden = B::fused_gelu(B::fused_linear_packed(x, w1, Some(b1)));
    B::fused_linear_packed(hidden, w2, Some(b2))
}

/// [`norm_mlp`] from a backend's other operations.
pub(crate) fn composed<B: Backend>(x: FloatTensor<B>, p: NormMlpTensors<B>) -> FloatTensor<B> {
    let [scale, shift, w1, b1, w2, b2] = p.tensors;
    let (x, ..) = B::fused_layer_norm(x, scale, shift, p.eps);
    let hidden = B::fused_gelu(B::fused_linear(x, w1, Some(b1), p.precision));
    B::fused_linear(hidden, w2, Some(b2), p.precision)
}
