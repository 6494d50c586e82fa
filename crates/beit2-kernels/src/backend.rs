//! The seam between the operations and the backends.
//!
//! One method per operation and one per backward formula, on a backend's own tensors, each with a
//! default composed from Burn's primitives. A backend overrides what it can do better; `Autodiff`
//! records the pair as one node of the graph. The functions of the crate root are what callers use.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::backend::{AutodiffBackend as _, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::{
    AdamwStep, AttentionSpec, NormMlpSaved, NormMlpTensors, PackedWeight, Precision, Rank, attention,
    channel_moments, channel_norm, collective, composed, conv3x3, cross_entropy, gelu, images, layer_norm,
    linear, norm_mlp, pixel_cross_entropy, residual_scale, samples,
};

/// What a backward pass must keep of an attention: its output and the log of each row's softmax
/// sum `[B, H, Tq]`, a constant to a graph.
pub type AttentionOutput<B> = (FloatTensor<B>, FloatTensor<B>);

/// Gradients of an attention with respect to q, k, v and, when asked for, the bias.
pub type AttentionGradients<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Option<FloatTensor<B>>);

/// Gradients of a channel norm with respect to x, and to mean, scale and shift.
pub type ChannelGradients<B> = (FloatTensor<B>, [FloatTensor<B>; 3]);

/// What training needs of a pixel cross entropy.
pub struct PixelLoss<B: BurnBackend> {
    /// The mean loss, `[1]`.
    pub loss: FloatTensor<B>,
    /// The share of pixels that are right, `[1]`.
    pub share: FloatTensor<B>,
    /// The gradient of the loss with respect to the logits, `[B, h, w, C]`.
    pub gradient: FloatTensor<B>,
}

/// A Burn backend with the fused operations of this crate.
///
/// Methods take and return the backend's tensors; shapes are those of the functions of the same
/// name in the crate root, and the last axis is the width `D` where one is named.
pub trait Backend: BurnBackend {
    /// Whether a computation that leaves some samples of a batch out is worth it. Not on backends that
    /// tune or compile their kernels for every new shape, because the number left out is another at every step.
    const SKIPS_DROPPED_SAMPLES: bool = false;

    /// Whether operations return before they are done, so that values must be waited for.
    const IS_ASYNC: bool = true;

    /// [`gelu`](crate::gelu) without what a backward pass needs.
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu::<Self>(x)
    }

    /// [`gelu`](crate::gelu) and its derivative at `x`; the backward pass is a product with it.
    fn fused_gelu_train(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::gelu_train::<Self>(x)
    }

    /// [`images`](crate::images).
    fn images(bytes: Vec<u8>, dims: [usize; 4], device: &Self::Device) -> FloatTensor<Self> {
        images::composed_images::<Self>(bytes, dims, device)
    }

    /// [`standardise`](crate::standardise).
    fn fused_standardise(x: FloatTensor<Self>, mean: &[f64], std: &[f64]) -> FloatTensor<Self> {
        images::composed_standardise::<Self>(x, mean, std)
    }

    /// [`patches`](crate::patches).
    fn fused_patches(x: FloatTensor<Self>, patch: usize) -> FloatTensor<Self> {
        images::composed_patches::<Self>(x, patch)
    }

    /// Sum of the squares of all elements, `[1]`.
    fn fused_square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::square_sum::<Self>(x)
    }

    /// Sum of two tensors of one shape.
    fn fused_sum(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::sum::<Self>(x, y)
    }

    /// Elementwise product of two tensors of one shape: the backward pass of [`gelu`](crate::gelu).
    fn fused_mul(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::product::<Self>(x, y)
    }

    /// Whether [`norm_mlp`](crate::norm_mlp) of these tensors is one computation here, with a backward pass of its own.
    fn fuses_norm_mlp(_x: &FloatTensor<Self>, _p: &NormMlpTensors<Self>) -> bool {
        false
    }

    /// [`norm_mlp`](crate::norm_mlp).
    fn fused_norm_mlp(x: FloatTensor<Self>, p: NormMlpTensors<Self>) -> FloatTensor<Self> {
        norm_mlp::composed::<Self>(x, p)
    }

    /// [`norm_mlp_packed`](crate::norm_mlp_packed), for backends that pack.
    fn fused_norm_mlp_packed(
        x: FloatTensor<Self>,
        norm: [FloatTensor<Self>; 2],
        eps: f64,
        fc1: (&PackedWeight, FloatTensor<Self>),
        fc2: (&PackedWeight, FloatTensor<Self>),
    ) -> FloatTensor<Self> {
        norm_mlp::composed_packed::<Self>(x, norm, eps, fc1, fc2)
    }

    /// [`norm_mlp`](crate::norm_mlp) and what its backward pass needs; only where it is one computation.
    fn fused_norm_mlp_train(
        _x: FloatTensor<Self>,
        _p: NormMlpTensors<Self>,
    ) -> (FloatTensor<Self>, NormMlpSaved<Self>) {
        unreachable!("{} composes norm_mlp", std::any::type_name::<Self>())
    }

    /// Gradients of [`norm_mlp`](crate::norm_mlp) with respect to x and the parameters in their order.
    fn fused_norm_mlp_backward(
        _x: FloatTensor<Self>,
        _p: NormMlpTensors<Self>,
        _saved: NormMlpSaved<Self>,
        _grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 6]) {
        unreachable!("{} composes norm_mlp", std::any::type_name::<Self>())
    }

    /// [`layer_norm`](crate::layer_norm) with the mean and the inverse deviation of each row, both
    /// constants to a graph.
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::layer_norm::<Self>(x, weight, bias, eps)
    }

    /// Gradients of [`layer_norm`](crate::layer_norm): of `x`, `weight` and `bias`.
    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::layer_norm_backward::<Self>(x, weight, mean, rstd, grad)
    }

    /// [`linear`](crate::linear) on `x [.., in]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::linear::<Self>(x, weight, bias, precision)
    }

    /// [`pack_weight`](crate::pack_weight).
    fn pack_weight(_weight: FloatTensor<Self>, _precision: Precision) -> Option<PackedWeight> {
        None
    }

    /// [`linear_packed`](crate::linear_packed), for backends that pack.
    fn fused_linear_packed(
        _x: FloatTensor<Self>,
        _weight: &PackedWeight,
        _bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        panic!("linear_packed: this backend packs no weights; the layer was frozen on another one")
    }

    /// Gradient of [`linear`](crate::linear) with respect to its input: `grad·W`, `[.., in]`.
    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::linear_backward_input::<Self>(weight, grad, precision)
    }

    /// Gradient of [`linear`](crate::linear) with respect to its weight: `gradᵀ·x`, `[out, in]`.
    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::linear_backward_weight::<Self>(x, grad, precision)
    }

    /// Gradient of a bias that was added to each row: the sum of the rows of `grad`, `[out]`.
    fn fused_sum_rows(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::sum_rows::<Self>(grad)
    }

    /// [`attention`](crate::attention).
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        composed::attention::<Self>(q, k, v, bias, spec)
    }

    /// Gradients of [`attention`](crate::attention); the bias's only if `bias_grad`.
    #[allow(clippy::too_many_arguments)]
    fn fused_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> AttentionGradients<Self> {
        composed::attention_backward::<Self>(q, k, v, bias, output, grad, spec, bias_grad)
    }

    /// [`attention_qkv`](crate::attention_qkv).
    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        composed::attention_qkv::<Self>(qkv, bias, spec)
    }

    /// Gradients of [`attention_qkv`](crate::attention_qkv): of `qkv` and, if `bias_grad`, the bias.
    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        composed::attention_qkv_backward::<Self>(qkv, bias, output, grad, spec, bias_grad)
    }

    /// [`cross_entropy`](crate::cross_entropy) without what a backward pass needs.
    fn fused_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        composed::cross_entropy::<Self>(logits, targets)
    }

    /// [`cross_entropy`](crate::cross_entropy) and its gradient `[n, K]` with respect to the logits.
    fn fused_cross_entropy_train(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::cross_entropy_train::<Self>(logits, targets)
    }

    /// [`pixel_cross_entropy`](crate::pixel_cross_entropy) without what a backward pass needs.
    fn fused_pixel_cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::pixel_cross_entropy::<Self>(logits, labels)
    }

    /// [`pixel_cross_entropy`](crate::pixel_cross_entropy) and its gradient.
    fn fused_pixel_cross_entropy_train(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> PixelLoss<Self> {
        composed::pixel_cross_entropy_train::<Self>(logits, labels)
    }

    /// [`conv3x3`](crate::conv3x3).
    fn fused_conv3x3(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::conv3x3::<Self>(x, weight)
    }

    /// Gradient of [`conv3x3`](crate::conv3x3) with respect to its input, `[B, H, W, in]`.
    fn fused_conv3x3_backward_input(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::conv3x3_backward_input::<Self>(weight, grad)
    }

    /// Gradient of [`conv3x3`](crate::conv3x3) with respect to its weight, `[out, in, 3, 3]`.
    fn fused_conv3x3_backward_weight(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::conv3x3_backward_weight::<Self>(x, grad)
    }

    /// [`channel_moments`](crate::channel_moments): mean and variance as the rows of one tensor `[2, C]`.
    fn fused_channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::channel_moments::<Self>(x)
    }

    /// Gradient of [`channel_moments`](crate::channel_moments) with respect to `x`, from the moments and their gradient,
    /// `[2, C]` each.
    fn fused_channel_moments_backward(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::channel_moments_backward::<Self>(x, moments, grad)
    }

    /// [`channel_norm`](crate::channel_norm).
    fn fused_channel_norm(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        composed::channel_norm::<Self>(x, mean, scale, shift, relu)
    }

    /// Gradients of [`channel_norm`](crate::channel_norm).
    fn fused_channel_norm_backward(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        relu: bool,
    ) -> ChannelGradients<Self> {
        composed::channel_norm_backward::<Self>(x, mean, scale, shift, grad, relu)
    }

    /// [`gather_samples`](crate::gather_samples).
    fn fused_gather_samples(x: FloatTensor<Self>, kept: &[usize]) -> FloatTensor<Self> {
        composed::gather_samples::<Self>(x, kept)
    }

    /// Gradient of [`gather_samples`](crate::gather_samples): `grad` at the samples taken of `batch`, else 0.
    fn fused_gather_samples_backward(
        grad: FloatTensor<Self>,
        kept: &[usize],
        batch: usize,
    ) -> FloatTensor<Self> {
        composed::gather_samples_backward::<Self>(grad, kept, batch)
    }

    /// [`scatter_add_samples`](crate::scatter_add_samples). Its gradients are those of
    /// [`residual_scale`](crate::residual_scale) at the samples taken.
    fn fused_scatter_add_samples(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        kept: &[usize],
    ) -> FloatTensor<Self> {
        composed::scatter_add_samples::<Self>(x, branch, gamma, kept)
    }

    /// [`nearest_code`](crate::nearest_code).
    fn fused_nearest_code(z: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        composed::nearest_code::<Self>(z, codebook)
    }

    /// [`adamw`](crate::adamw).
    fn fused_adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::adamw::<Self>(param, grad, m, v, step)
    }

    /// [`residual_scale`](crate::residual_scale) on `x`, `branch` `[.., D]`.
    fn fused_residual_scale(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::residual_scale::<Self>(x, branch, gamma)
    }

    /// Gradients of [`residual_scale`](crate::residual_scale): of `branch` and `gamma`; that of `x` is
    /// `grad` itself.
    fn fused_residual_scale_backward(
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::residual_scale_backward::<Self>(branch, gamma, grad)
    }

    /// [`Rank::sum`], in a group of more than one.
    fn all_reduce_sum(x: FloatTensor<Self>, rank: &Rank) -> FloatTensor<Self> {
        collective::through_host::<Self>(x, rank)
    }
}

/// A [`Backend`] that records gradients over an inner [`Backend`].
pub trait AutodiffBackend: burn::tensor::backend::AutodiffBackend<InnerBackend: Backend> + Backend {}
impl<B> AutodiffBackend for B where B: burn::tensor::backend::AutodiffBackend<InnerBackend: Backend> + Backend {}

// Backward methods that keep their defaults are composed and can be differentiated once more; those
// of layer norm and attention use statistics of the forward pass, which are constants to a graph,
// so they refuse instead of losing a part of the second derivative.
impl<B: Backend, C: CheckpointStrategy> Backend for Autodiff<B, C> {
    const SKIPS_DROPPED_SAMPLES: bool = B::SKIPS_DROPPED_SAMPLES;
    const IS_ASYNC: bool = B::IS_ASYNC;

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::autodiff::<B, C>(x)
    }

    fn images(bytes: Vec<u8>, dims: [usize; 4], device: &Self::Device) -> FloatTensor<Self> {
        Self::from_inner(B::images(bytes, dims, device))
    }

    fn fused_patches(x: FloatTensor<Self>, patch: usize) -> FloatTensor<Self> {
        match x.is_tracked() {
            // A graph goes through Burn's operations; images are constants nearly always.
            true => images::composed_patches::<Self>(x, patch),
            false => Self::from_inner(B::fused_patches(x.primitive, patch)),
        }
    }

    fn fused_norm_mlp(x: FloatTensor<Self>, p: NormMlpTensors<Self>) -> FloatTensor<Self> {
        norm_mlp::autodiff::<B, C>(x, p)
    }

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        layer_norm::autodiff::<B, C>(x, weight, bias, eps)
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, weight, mean, rstd, grad] =
            [x, weight, mean, rstd, grad].map(|t| constant::<B, C>("layer_norm", t));
        let (dx, dw, db) = B::fused_layer_norm_backward(x, weight, mean, rstd, grad);
        let wrap = Self::from_inner;
        (wrap(dx), wrap(dw), wrap(db))
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        linear::autodiff::<B, C>(x, weight, bias, precision)
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::autodiff::<B, C>(q, k, v, bias, spec)
    }

    fn fused_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> AttentionGradients<Self> {
        let plain = |t| constant::<B, C>("attention", t);
        let [q, k, v, grad] = [q, k, v, grad].map(plain);
        let (bias, output) = (bias.map(plain), (output.0.primitive, output.1.primitive));
        let (dq, dk, dv, dbias) = B::fused_attention_backward(q, k, v, bias, output, grad, spec, bias_grad);
        let wrap = Self::from_inner;
        (wrap(dq), wrap(dk), wrap(dv), dbias.map(wrap))
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::autodiff_qkv::<B, C>(qkv, bias, spec)
    }

    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let plain = |t| constant::<B, C>("attention_qkv", t);
        let (qkv, bias, grad) = (plain(qkv), bias.map(plain), plain(grad));
        let output = (output.0.primitive, output.1.primitive);
        let (dqkv, dbias) = B::fused_attention_qkv_backward(qkv, bias, output, grad, spec, bias_grad);
        (Self::from_inner(dqkv), dbias.map(Self::from_inner))
    }

    fn fused_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        cross_entropy::autodiff::<B, C>(logits, targets)
    }

    fn fused_pixel_cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        pixel_cross_entropy::autodiff::<B, C>(logits, labels)
    }

    fn fused_conv3x3(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        conv3x3::autodiff::<B, C>(x, weight)
    }

    fn fused_channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        channel_moments::autodiff::<B, C>(x)
    }

    fn fused_channel_norm(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        channel_norm::autodiff::<B, C>(x, mean, scale, shift, relu)
    }

    fn fused_gather_samples(x: FloatTensor<Self>, kept: &[usize]) -> FloatTensor<Self> {
        samples::autodiff_take::<B, C>(x, kept)
    }

    fn fused_scatter_add_samples(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        kept: &[usize],
    ) -> FloatTensor<Self> {
        samples::autodiff_add::<B, C>(x, branch, gamma, kept)
    }

    // Ids have no gradient, as Burn's own `argmax`.
    fn fused_nearest_code(z: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        B::fused_nearest_code(z.primitive, codebook.primitive)
    }

    fn fused_residual_scale(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        residual_scale::autodiff::<B, C>(x, branch, gamma)
    }

    fn all_reduce_sum(x: FloatTensor<Self>, rank: &Rank) -> FloatTensor<Self> {
        collective::autodiff::<B, C>(x, rank)
    }
}

/// The inner tensor of one without gradient.
fn constant<B: Backend, C: CheckpointStrategy>(op: &str, x: FloatTensor<Autodiff<B, C>>) -> FloatTensor<B> {
    assert!(!x.is_tracked(), "{op}: second derivatives are not implemented");
    x.primitive
}
