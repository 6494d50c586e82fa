//! The hot operations of a Vision Transformer as Burn backend extensions.
//!
//! Every operation is a plain function on Burn tensors. A backend that has nothing better gets
//! the version composed from Burn's own primitives, which is also what the fast versions are
//! tested against. This crate knows nothing of models, parameters' names or files.

use burn::tensor::{Int, Tensor, activation};

/// A Burn backend with the fused operations of this crate.
pub trait Backend: burn::tensor::backend::Backend {}
impl<B: burn::tensor::backend::Backend> Backend for B {}

/// A [`Backend`] that records gradients over an inner [`Backend`].
pub trait AutodiffBackend:
    burn::tensor::backend::AutodiffBackend<InnerBackend: Backend> + Backend
{
}
impl<B> AutodiffBackend for B where
    B: burn::tensor::backend::AutodiffBackend<InnerBackend: Backend> + Backend
{
}

/// Exact GELU, `x·Φ(x)` by the error function. Shape is kept.
pub fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let cdf = x
        .clone()
        .mul_scalar(std::f64::consts::FRAC_1_SQRT_2)
        .erf()
        .add_scalar(1.0)
        .mul_scalar(0.5);
    x * cdf
}

/// Layer normalization over the last axis (`weight`, `bias`: `[D]`).
pub fn layer_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let centered = x.clone() - x.mean_dim(D - 1);
    let var = centered.clone().powi_scalar(2).mean_dim(D - 1);
    let normalized = centered / var.add_scalar(eps).sqrt();
    normalized * weight.unsqueeze() + bias.unsqueeze()
}

/// `x·Wᵀ + b`: `x [.., in]`, `weight [out, in]`, `bias [out]` → `[.., out]`.
pub fn linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    let mut dims = x.dims();
    let [out, inner] = weight.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    dims[D - 1] = out;
    let y = x.reshape([rows, inner]).matmul(weight.transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
    .reshape(dims)
}

/// Multi-head attention with an additive bias on the logits.
///
/// # Shapes
/// `q [B, Tq, H·d]`, `k`, `v [B, T, H·d]`, `bias [1 or B, H, Tq, T]` → `[B, Tq, H·d]`; `q` is
/// multiplied by `scale` before the product with `k`.
pub fn attention<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    heads: usize,
    scale: f64,
) -> Tensor<B, 3> {
    let [batch, queries, width] = q.dims();
    let v = split_heads(v, heads);
    attention_weights(q, k, bias, heads, scale)
        .matmul(v)
        .swap_dims(1, 2)
        .reshape([batch, queries, width])
}

/// The softmax weights `[B, H, Tq, T]` of [`attention`], for inspection.
pub fn attention_weights<B: Backend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    bias: Option<Tensor<B, 4>>,
    heads: usize,
    scale: f64,
) -> Tensor<B, 4> {
    let logits = split_heads(q.mul_scalar(scale), heads).matmul(split_heads(k, heads).transpose());
    let logits = match bias {
        Some(bias) => logits + bias,
        None => logits,
    };
    activation::softmax(logits, 3)
}

fn split_heads<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads])
        .swap_dims(1, 2)
}

/// Mean cross entropy of `logits [n, K]` against class ids `targets [n]` → `[1]`.
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    activation::log_softmax(logits, 1)
        .gather(1, targets.unsqueeze_dim(1))
        .mean()
        .neg()
}

/// The code nearest to each row by cosine: unit rows `z [n, C]`, unit codes `codebook [K, C]` → ids
/// `[n]`; of equally near codes the first.
pub fn nearest_code<B: Backend>(z: Tensor<B, 2>, codebook: Tensor<B, 2>) -> Tensor<B, 1, Int> {
    z.matmul(codebook.transpose()).argmax(1).squeeze_dim(1)
}

/// The numbers of one [`adamw`] step of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct AdamwStep {
    /// Learning rate of this tensor in this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: the tensor is first multiplied by `1 − lr·weight_decay`.
    pub weight_decay: f64,
    /// Number of this step, from 1, for the bias correction.
    pub step: u64,
    /// Factor on the gradient (1, or what clipping asks for).
    pub grad_scale: f64,
}

/// One decoupled-weight-decay Adam step (Loshchilov & Hutter 2019) → `(param, m, v)`.
pub fn adamw<B: Backend, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    m: Tensor<B, D>,
    v: Tensor<B, D>,
    s: AdamwStep,
) -> (Tensor<B, D>, Tensor<B, D>, Tensor<B, D>) {
    let grad = if s.grad_scale == 1.0 {
        grad
    } else {
        grad.mul_scalar(s.grad_scale)
    };
    let m = m.mul_scalar(s.beta1) + grad.clone().mul_scalar(1.0 - s.beta1);
    let v = v.mul_scalar(s.beta2) + grad.powi_scalar(2).mul_scalar(1.0 - s.beta2);
    let correction1 = 1.0 - s.beta1.powi(s.step as i32);
    let correction2 = 1.0 - s.beta2.powi(s.step as i32);
    let denominator = v
        .clone()
        .sqrt()
        .div_scalar(correction2.sqrt())
        .add_scalar(s.eps);
    let update = m.clone().mul_scalar(s.lr / correction1) / denominator;
    (param.mul_scalar(1.0 - s.lr * s.weight_decay) - update, m, v)
}
