//! 3×3 convolution of channels-last maps, stride 1, padded by one zero on each side, without bias.
//!
//! Contract: no copy of a map is made that is nine times as large. Memory beside operands and result is
//! bounded by a few bands of rows and one copy of the weight; on NVIDIA's GPUs by one copy of the padded map in f32, and
//! three in bf16. The input's gradient is the same convolution
//! with the kernel flipped; a backward pass keeps the input only if the weight needs a gradient, and
//! the weight only if the input does. Results do not depend on the number of threads.
//!
//! A precision is that of the operands, as in a linear layer's matmuls. A backend may compute in f32 nevertheless, as the CPU
//! does; [`conv_precision`](crate::conv_precision) says in which one it does.

pub(crate) mod fast;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions, FloatTensor};
use burn::tensor::{Tensor, TensorMetadata};

use crate::Precision;
use crate::flex::is_f32;
use crate::graph::{accumulate, record};
use crate::interrupt::tick;
use crate::residual_scale::ResidualScaleOps;
use crate::tensor::{unwrap, wrap};

/// 3×3 convolution on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait Conv3x3Ops: ResidualScaleOps {
    /// [`conv_precision`](crate::conv_precision).
    fn conv_precision(_device: &Self::Device, _precision: Precision) -> Precision {
        Precision::F32
    }

    /// [`conv3x3`](crate::conv3x3).
    fn fused_conv3x3(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        _precision: Precision,
    ) -> FloatTensor<Self> {
        composed::conv3x3::<Self>(x, weight)
    }

    /// Gradient of [`conv3x3`](crate::conv3x3) with respect to its input, `[B, H, W, in]`.
    fn fused_conv3x3_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        _precision: Precision,
    ) -> FloatTensor<Self> {
        composed::conv3x3_backward_input::<Self>(weight, grad)
    }

    /// Gradient of [`conv3x3`](crate::conv3x3) with respect to its weight, `[out, in, 3, 3]`.
    fn fused_conv3x3_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        _precision: Precision,
    ) -> FloatTensor<Self> {
        composed::conv3x3_backward_weight::<Self>(x, grad)
    }
}

/// In which precision convolutions compute on `device` in a model whose matmuls compute in `precision`. Layers that stand between
/// convolutions (1×1, transposed) take the same.
pub fn conv_precision<B: Conv3x3Ops>(device: &B::Device, precision: Precision) -> Precision {
    B::conv_precision(device, precision)
}

/// 3×3 convolution: `x [B, H, W, in]`, `weight [out, in, 3, 3]` → `[B, H, W, out]`, forward and backward in `precision`.
///
/// # Panics
/// If the weight is not of that shape or has another number of inputs than `x`.
pub fn conv3x3<B: Conv3x3Ops>(x: Tensor<B, 4>, weight: Tensor<B, 4>, precision: Precision) -> Tensor<B, 4> {
    let (map, kernel) = (x.dims(), weight.dims());
    assert!(
        kernel[1..] == [map[3], 3, 3],
        "conv3x3: x {map:?} needs a weight [out, {}, 3, 3], found {kernel:?}",
        map[3]
    );
    let y = wrap(B::fused_conv3x3(unwrap(x), unwrap(weight), precision));
    tick(operations(map.iter().product(), kernel[0]));
    y
}

/// Operations for this many values of the input.
fn operations(values: usize, outputs: usize) -> usize {
    18 * values * outputs
}

/// [`conv3x3`](crate::conv3x3) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(x: Tensor<B, 4>, weight: Tensor<B, 4>) -> Tensor<B, 4> {
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    conv2d(x.permute([0, 3, 1, 2]), weight, None, options).permute([0, 2, 3, 1])
}

/// The gradient of the input: a convolution by the kernel flipped, inputs and outputs exchanged.
pub(crate) fn reference_backward_input<B: BurnBackend>(
    weight: Tensor<B, 4>,
    grad: Tensor<B, 4>,
) -> Tensor<B, 4> {
    reference(grad, weight.flip([2, 3]).swap_dims(0, 1))
}

/// The gradient of the weight: for each of the nine taps the matmul of `grad` with the shifted input.
pub(crate) fn reference_backward_weight<B: BurnBackend>(x: Tensor<B, 4>, grad: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, height, width, inputs] = x.dims();
    let outputs = grad.dims()[3];
    let pixels = batch * height * width;
    // Burn's `pad` has the default type whatever the tensor's.
    let options = (&x.device(), x.dtype());
    let side = Tensor::<B, 4>::zeros([batch, height, 1, inputs], options);
    let edge = Tensor::<B, 4>::zeros([batch, 1, width + 2, inputs], options);
    let wide = Tensor::cat(vec![side.clone(), x, side], 2);
    let padded = Tensor::cat(vec![edge.clone(), wide, edge], 1);
    let grad = grad.reshape([pixels, outputs]).transpose();
    let tap = |tap: usize| {
        let shifted = padded.clone().narrow(1, tap / 3, height).narrow(2, tap % 3, width);
        grad.clone().matmul(shifted.reshape([pixels, inputs])).unsqueeze_dim::<3>(2) // [out, in, 1]
    };
    Tensor::cat((0..9).map(tap).collect(), 2).reshape([outputs, inputs, 3, 3])
}

#[derive(Debug)]
struct ConvBackward(Precision);

impl<B: Conv3x3Ops> Backward<B, 2> for ConvBackward {
    /// The input if the weight needs a gradient, the weight if the input does.
    type State = (Option<FloatTensor<B>>, Option<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let [input, kernel] = ops.parents;
        let values = grad.shape().num_elements();
        if let (Some(node), Some(x)) = (kernel, x) {
            let inputs = x.shape()[3];
            let dw = B::fused_conv3x3_backward_weight(x, grad.clone(), self.0);
            grads.register::<B>(node.id, dw);
            tick(operations(values, inputs));
        }
        if let (Some(node), Some(weight)) = (input, weight) {
            let inputs = weight.shape()[1];
            let dx = B::fused_conv3x3_backward_input(weight, grad, self.0);
            accumulate!(B, grads, &node, dx);
            tick(operations(values, inputs));
        }
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn conv3x3<B: BurnBackend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
        unwrap(super::reference::<B>(wrap(x), wrap(weight)))
    }

    pub(crate) fn conv3x3_backward_input<B: BurnBackend>(
        weight: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> FloatTensor<B> {
        unwrap(super::reference_backward_input::<B>(wrap(weight), wrap(grad)))
    }

    pub(crate) fn conv3x3_backward_weight<B: BurnBackend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> FloatTensor<B> {
        unwrap(super::reference_backward_weight::<B>(wrap(x), wrap(grad)))
    }
}

impl<B: Conv3x3Ops, C: CheckpointStrategy> Conv3x3Ops for Autodiff<B, C> {
    fn conv_precision(device: &Self::Device, precision: Precision) -> Precision {
        B::conv_precision(device, precision)
    }

    fn fused_conv3x3(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        let state = (
            weight.is_tracked().then(|| x.primitive.clone()),
            x.is_tracked().then(|| weight.primitive.clone()),
        );
        let backward = ConvBackward(precision);
        record!(B, C, backward, [x, weight],
            tracked { (B::fused_conv3x3(x.primitive, weight.primitive, precision), state) },
            untracked { B::fused_conv3x3(x.primitive, weight.primitive, precision) })
    }
}

impl Conv3x3Ops for Flex {
    fn fused_conv3x3(x: FloatTensor<Self>, weight: FloatTensor<Self>, _: Precision) -> FloatTensor<Self> {
        if is_f32(&[&x, &weight]) { fast::forward(x, weight) } else { composed::conv3x3::<Self>(x, weight) }
    }

    fn fused_conv3x3_backward_input(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        _: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&weight, &grad]) {
            fast::backward_input(weight, grad)
        } else {
            composed::conv3x3_backward_input::<Self>(weight, grad)
        }
    }

    fn fused_conv3x3_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        _: Precision,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &grad]) {
            fast::backward_weight(x, grad)
        } else {
            composed::conv3x3_backward_weight::<Self>(x, grad)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Precision;
    use crate::testing::{check, random};

    #[test]
    fn matches_reference_and_differences() {
        for (b, h, w, inputs, outputs) in [
            (1, 1, 1, 1, 1),
            (1, 1, 5, 2, 3),
            (2, 6, 1, 3, 2),
            (3, 2, 2, 5, 7),
            (2, 5, 7, 4, 33),
            (1, 40, 37, 9, 8),
            (9, 13, 11, 6, 5),
        ] {
            let x = [b, h, w, inputs];
            let weight = [outputs, inputs, 3, 3];
            let count = b * h * w * outputs;
            let tensors = [random(x.iter().product(), 1, 1.0), random(weight.iter().product(), 2, 0.5)];
            check(
                "conv3x3",
                &tensors,
                |t| {
                    let (x, weight) = (t[0].clone().reshape(x), t[1].clone().reshape(weight));
                    super::conv3x3(x, weight, Precision::F32).reshape([count])
                },
                |t| super::reference(t[0].clone().reshape(x), t[1].clone().reshape(weight)).reshape([count]),
                5e-6,
            );
        }
    }

    #[test]
    #[should_panic(expected = "conv3x3: x [1, 2, 2, 3] needs a weight [out, 3, 3, 3], found [4, 2, 3, 3]")]
    fn names_the_shapes_that_do_not_fit() {
        let d = Default::default();
        let x = burn::tensor::Tensor::<burn::backend::Flex, 4>::zeros([1, 2, 2, 3], &d);
        super::conv3x3(x, burn::tensor::Tensor::zeros([4, 2, 3, 3], &d), Precision::F32);
    }
}
