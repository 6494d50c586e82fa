//! The fast CPU operations on the memory of Burn's `Flex` backend.
//!
//! Only 32-bit floats are fast; a tensor of another type takes the composed reference.

use burn::backend::Flex;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_flex::{FlexTensor, Layout};

use crate::backend::{AttentionGradients, AttentionOutput, Backend, ChannelGradients, PixelLoss};
use crate::memory::Buffer;
#[cfg(target_arch = "x86_64")]
use crate::memory::{Stored, Values};
use crate::{
    AdamwStep, AttentionSpec, PackedWeight, Precision, adamw, attention, channel_moments, channel_norm,
    composed, conv3x3, cross_entropy, gelu, images, layer_norm, linear, nearest_code, pixel_cross_entropy,
    residual_scale, samples,
};
#[cfg(target_arch = "x86_64")]
use crate::{NormMlpSaved, NormMlpTensors, norm_mlp, packed};

/// Elements that one task of an element-wise operation handles: 64 KiB, so that a task is long
/// against its start and its operands stay in the second-level cache.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Whether every tensor holds 32-bit floats.
pub(crate) fn is_f32(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|t| t.dtype() == DType::F32)
}

/// The tensor with its elements in order and nothing around them; copied only if it is not so.
pub(crate) fn owned(x: FlexTensor) -> FlexTensor {
    let layout = x.layout();
    let bytes = layout.num_elements() * size_of::<f32>();
    if layout.is_contiguous() && layout.start_offset() == 0 && x.bytes().len() == bytes {
        return x;
    }
    x.to_contiguous()
}

/// The elements of a tensor made by [`owned`], for writing; copied first if someone else holds them.
pub(crate) fn values(x: &mut FlexTensor) -> &mut [f32] {
    x.storage_mut::<f32>()
}

/// The elements of a tensor made by [`owned`].
pub(crate) fn view(x: &FlexTensor) -> &[f32] {
    x.storage::<f32>()
}

/// A tensor of what was written to a buffer.
pub(crate) fn tensor(buffer: Buffer, shape: impl Into<Shape>) -> FlexTensor {
    let shape = shape.into();
    debug_assert_eq!(shape.num_elements(), buffer.len());
    FlexTensor::new(buffer.into_bytes(), Layout::contiguous(shape), DType::F32)
}

/// A tensor of stored activations, for a backward pass.
#[cfg(target_arch = "x86_64")]
pub(crate) fn stored<S: Stored>(values: Values<S>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(values.into_bytes(), Layout::contiguous(shape.into()), S::DTYPE)
}

/// The elements of an integer tensor of any width.
pub(crate) fn integers(x: &FlexTensor) -> Vec<i64> {
    x.clone().into_data().iter::<i64>().collect()
}

/// How `n` rows are cut for sums over rows: rows of a group and number of groups. A function of `n`
/// alone, so that sums do not depend on threads.
pub(crate) fn row_groups(n: usize) -> (usize, usize) {
    let rows = n.div_ceil(32).max(32);
    (rows, n.div_ceil(rows))
}

impl Backend for Flex {
    const SKIPS_DROPPED_SAMPLES: bool = true;
    const IS_ASYNC: bool = false;

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x]) { gelu::fast::forward(x) } else { composed::gelu::<Self>(x) }
    }

    fn fused_gelu_train(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x]) { gelu::fast::forward_train(x) } else { composed::gelu_train::<Self>(x) }
    }

    fn images(bytes: Vec<u8>, dims: [usize; 4], _: &Self::Device) -> FloatTensor<Self> {
        images::fast::images(&bytes, dims)
    }

    fn fused_standardise(x: FloatTensor<Self>, mean: &[f64], std: &[f64]) -> FloatTensor<Self> {
        match is_f32(&[&x]) {
            true => images::fast::standardise(x, mean, std),
            false => images::composed_standardise::<Self>(x, mean, std),
        }
    }

    fn fused_patches(x: FloatTensor<Self>, patch: usize) -> FloatTensor<Self> {
        match is_f32(&[&x]) {
            true => images::fast::patches(x, patch),
            false => images::composed_patches::<Self>(x, patch),
        }
    }

    fn fused_square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x]) { adamw::fast::square_sum(x) } else { composed::square_sum::<Self>(x) }
    }

    fn fused_sum(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x, &y]) { residual_scale::fast::sum(x, y) } else { composed::sum::<Self>(x, y) }
    }

    fn fused_mul(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x, &y]) { gelu::fast::product(x, y) } else { composed::product::<Self>(x, y) }
    }

    #[cfg(target_arch = "x86_64")]
    fn fuses_norm_mlp(x: &FloatTensor<Self>, p: &NormMlpTensors<Self>) -> bool {
        let width = x.layout().shape().last().copied().unwrap_or(0);
        let rows = x.layout().num_elements() / width.max(1);
        let floats = is_f32(&[x]) && p.tensors.iter().all(|tensor| is_f32(&[tensor]));
        floats && rows >= norm_mlp::fast::FEWEST && packed::is_available(p.precision)
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp(x: FloatTensor<Self>, p: NormMlpTensors<Self>) -> FloatTensor<Self> {
        match Self::fuses_norm_mlp(&x, &p) {
            true => norm_mlp::fast::forward_only(x, p),
            false => norm_mlp::composed::<Self>(x, p),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp_packed(
        x: FloatTensor<Self>,
        norm: [FloatTensor<Self>; 2],
        eps: f64,
        (w1, b1): (&PackedWeight, FloatTensor<Self>),
        (w2, b2): (&PackedWeight, FloatTensor<Self>),
    ) -> FloatTensor<Self> {
        let rows = x.layout().num_elements() / w1.dims()[1].max(1);
        let [scale, shift] = norm;
        if is_f32(&[&x, &scale, &shift, &b1, &b2]) && rows >= norm_mlp::fast::FEWEST_PACKED {
            norm_mlp::fast::forward_packed(x, [scale, shift, b1, b2], eps, [w1.right(), w2.right()])
        } else {
            norm_mlp::composed_packed::<Self>(x, [scale, shift], eps, (w1, b1), (w2, b2))
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp_train(
        x: FloatTensor<Self>,
        p: NormMlpTensors<Self>,
    ) -> (FloatTensor<Self>, NormMlpSaved<Self>) {
        let (y, saved) = norm_mlp::fast::forward_train(x, p);
        (y, saved.into())
    }

    #[cfg(target_arch = "x86_64")]
    fn fused_norm_mlp_backward(
        x: FloatTensor<Self>,
        p: NormMlpTensors<Self>,
        saved: NormMlpSaved<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 6]) {
        let Ok(saved) = saved.try_into() else { unreachable!("made by `fused_norm_mlp_train`") };
        norm_mlp::fast::backward(x, p, saved, grad)
    }

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x, &weight, &bias]) {
            layer_norm::fast::forward(x, weight, bias, eps)
        } else {
            composed::layer_norm::<Self>(x, weight, bias, eps)
        }
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x, &weight, &mean, &rstd, &grad]) {
            layer_norm::fast::backward(x, weight, mean, rstd, grad)
        } else {
            composed::layer_norm_backward::<Self>(x, weight, mean, rstd, grad)
        }
    }

    fn fused_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&logits]) {
            cross_entropy::fast::forward(logits, targets)
        } else {
            composed::cross_entropy::<Self>(logits, targets)
        }
    }

    fn fused_cross_entropy_train(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&logits]) {
            cross_entropy::fast::forward_train(logits, targets)
        } else {
            composed::cross_entropy_train::<Self>(logits, targets)
        }
    }

    fn fused_pixel_cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&logits]) {
            pixel_cross_entropy::fast::forward(logits, labels)
        } else {
            composed::pixel_cross_entropy::<Self>(logits, labels)
        }
    }

    fn fused_pixel_cross_entropy_train(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> PixelLoss<Self> {
        if is_f32(&[&logits]) {
            pixel_cross_entropy::fast::forward_train(logits, labels)
        } else {
            composed::pixel_cross_entropy_train::<Self>(logits, labels)
        }
    }

    fn fused_conv3x3(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x, &weight]) {
            conv3x3::fast::forward(x, weight)
        } else {
            composed::conv3x3::<Self>(x, weight)
        }
    }

    fn fused_conv3x3_backward_input(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&weight, &grad]) {
            conv3x3::fast::backward_input(weight, grad)
        } else {
            composed::conv3x3_backward_input::<Self>(weight, grad)
        }
    }

    fn fused_conv3x3_backward_weight(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x, &grad]) {
            conv3x3::fast::backward_weight(x, grad)
        } else {
            composed::conv3x3_backward_weight::<Self>(x, grad)
        }
    }

    fn fused_channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x]) { channel_moments::fast::forward(x) } else { composed::channel_moments::<Self>(x) }
    }

    fn fused_channel_moments_backward(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &moments, &grad]) {
            channel_moments::fast::backward(x, moments, grad)
        } else {
            composed::channel_moments_backward::<Self>(x, moments, grad)
        }
    }

    fn fused_channel_norm(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &mean, &scale, &shift]) {
            channel_norm::fast::forward(x, mean, scale, shift, relu)
        } else {
            composed::channel_norm::<Self>(x, mean, scale, shift, relu)
        }
    }

    fn fused_channel_norm_backward(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        relu: bool,
    ) -> ChannelGradients<Self> {
        if is_f32(&[&x, &mean, &scale, &shift, &grad]) {
            channel_norm::fast::backward(x, mean, scale, shift, grad, relu)
        } else {
            composed::channel_norm_backward::<Self>(x, mean, scale, shift, grad, relu)
        }
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &weight]) && bias.as_ref().is_none_or(|b| is_f32(&[b])) {
            linear::fast::forward(x, weight, bias, precision)
        } else {
            composed::linear::<Self>(x, weight, bias, precision)
        }
    }

    fn pack_weight(weight: FloatTensor<Self>, precision: Precision) -> Option<PackedWeight> {
        if is_f32(&[&weight]) { linear::fast::pack(&weight, precision) } else { None }
    }

    fn fused_linear_packed(
        x: FloatTensor<Self>,
        weight: &PackedWeight,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let plain = bias.as_ref().is_none_or(|b| is_f32(&[b]));
        assert!(plain && is_f32(&[&x]), "linear_packed: expected f32, found {:?}", x.dtype());
        linear::fast::forward_packed(x, weight, bias)
    }

    fn fused_linear_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&weight, &grad]) {
            linear::fast::backward_input(weight, grad, precision)
        } else {
            composed::linear_backward_input::<Self>(weight, grad, precision)
        }
    }

    fn fused_linear_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &grad]) {
            linear::fast::backward_weight(x, grad, precision)
        } else {
            composed::linear_backward_weight::<Self>(x, grad, precision)
        }
    }

    fn fused_sum_rows(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&grad]) { linear::fast::sum_rows(grad) } else { composed::sum_rows::<Self>(grad) }
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        if is_f32(&[&q, &k, &v]) && bias.as_ref().is_none_or(|b| is_f32(&[b])) {
            attention::attention_f32(q, k, v, bias, spec)
        } else {
            composed::attention::<Self>(q, k, v, bias, spec)
        }
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
        let plain = bias.as_ref().is_none_or(|b| is_f32(&[b]));
        if plain && is_f32(&[&q, &k, &v, &output.0, &output.1, &grad]) {
            attention::attention_backward_f32(q, k, v, bias, output, grad, spec, bias_grad)
        } else {
            composed::attention_backward::<Self>(q, k, v, bias, output, grad, spec, bias_grad)
        }
    }

    fn fused_attention_qkv(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        spec: AttentionSpec,
    ) -> AttentionOutput<Self> {
        if is_f32(&[&qkv]) && bias.as_ref().is_none_or(|b| is_f32(&[b])) {
            attention::attention_qkv_f32(qkv, bias, spec)
        } else {
            composed::attention_qkv::<Self>(qkv, bias, spec)
        }
    }

    fn fused_attention_qkv_backward(
        qkv: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        spec: AttentionSpec,
        bias_grad: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let plain = bias.as_ref().is_none_or(|b| is_f32(&[b]));
        if plain && is_f32(&[&qkv, &output.0, &output.1, &grad]) {
            attention::attention_qkv_backward_f32(qkv, bias, output, grad, spec, bias_grad)
        } else {
            composed::attention_qkv_backward::<Self>(qkv, bias, output, grad, spec, bias_grad)
        }
    }

    fn fused_gather_samples(x: FloatTensor<Self>, kept: &[usize]) -> FloatTensor<Self> {
        if is_f32(&[&x]) { samples::fast::take(x, kept) } else { composed::gather_samples::<Self>(x, kept) }
    }

    fn fused_gather_samples_backward(
        grad: FloatTensor<Self>,
        kept: &[usize],
        batch: usize,
    ) -> FloatTensor<Self> {
        if is_f32(&[&grad]) {
            samples::fast::take_backward(grad, kept, batch)
        } else {
            composed::gather_samples_backward::<Self>(grad, kept, batch)
        }
    }

    fn fused_scatter_add_samples(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        kept: &[usize],
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &branch, &gamma]) {
            samples::fast::add(x, branch, gamma, kept)
        } else {
            composed::scatter_add_samples::<Self>(x, branch, gamma, kept)
        }
    }

    fn fused_nearest_code(z: FloatTensor<Self>, codebook: FloatTensor<Self>) -> IntTensor<Self> {
        if is_f32(&[&z, &codebook]) {
            nearest_code::fast::nearest(z, codebook)
        } else {
            composed::nearest_code::<Self>(z, codebook)
        }
    }

    fn fused_adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&param, &grad, &m, &v]) {
            adamw::fast::step(param, grad, m, v, step)
        } else {
            composed::adamw::<Self>(param, grad, m, v, step)
        }
    }

    fn fused_residual_scale(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &branch, &gamma]) {
            residual_scale::fast::forward(x, branch, gamma)
        } else {
            composed::residual_scale::<Self>(x, branch, gamma)
        }
    }

    fn fused_residual_scale_backward(
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&branch, &gamma, &grad]) {
            residual_scale::fast::backward(branch, gamma, grad)
        } else {
            composed::residual_scale_backward::<Self>(branch, gamma, grad)
        }
    }
}
