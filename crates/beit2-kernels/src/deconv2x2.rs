//! Transposed convolution with a kernel and a stride of 2 on channels-last maps: every pixel becomes 2×2 pixels.
//!
//! Contract: one matmul forward and two backward, in a precision as a linear layer's; the bias and its gradient are not
//! rounded. A GPU puts pixels where they belong in one pass; elsewhere it is a linear layer and a permutation.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::Precision;
use crate::graph::{accumulate, record};
use crate::interrupt::tick;
use crate::linear::LinearOps;
use crate::tensor::{unwrap, wrap};

/// Transposed convolutions on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait DeconvOps: LinearOps {
    /// Whether a map is enlarged by one computation here, with a backward pass of its own.
    fn fuses_deconv2x2(_x: &FloatTensor<Self>) -> bool {
        false
    }

    /// [`deconv2x2`](crate::deconv2x2).
    fn fused_deconv2x2(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        composed::deconv2x2::<Self>(x, weight, bias, precision)
    }

    /// Gradient of the input, `[B, H, W, in]`; only where it is one computation.
    fn fused_deconv2x2_backward_input(
        _weight: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _precision: Precision,
    ) -> FloatTensor<Self> {
        unreachable!("deconv2x2 is composed here")
    }

    /// Gradient of the weight, `[in, out, 2, 2]`; only where it is one computation.
    fn fused_deconv2x2_backward_weight(
        _x: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _precision: Precision,
    ) -> FloatTensor<Self> {
        unreachable!("deconv2x2 is composed here")
    }
}

/// `x [B, H, W, in]`, `weight [in, out, 2, 2]`, `bias [out]` → `[B, 2H, 2W, out]`.
///
/// # Panics
/// If the weight has another number of inputs than `x` or another size, or the bias another length.
pub fn deconv2x2<B: DeconvOps>(
    x: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    bias: Tensor<B, 1>,
    precision: Precision,
) -> Tensor<B, 4> {
    let (map, [inputs, outputs, height, width], [b]) = (x.dims(), weight.dims(), bias.dims());
    assert!(
        [inputs, height, width, b] == [map[3], 2, 2, outputs],
        "deconv2x2: x {map:?} and bias [{b}] need a weight [{}, {b}, 2, 2], found {:?}",
        map[3],
        weight.dims()
    );
    wrap(B::fused_deconv2x2(unwrap(x), unwrap(weight), unwrap(bias), precision))
}

/// Operations for this many values of the input.
fn operations(values: usize, outputs: usize) -> usize {
    8 * values * outputs
}

#[derive(Debug)]
struct DeconvBackward(Precision);

impl<B: DeconvOps> Backward<B, 3> for DeconvBackward {
    /// The input if the weight needs a gradient, the weight if the input does.
    type State = (Option<FloatTensor<B>>, Option<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let [input, kernel, bias] = ops.parents;
        let values = grad.shape().num_elements();
        if let (Some(node), Some(x)) = (kernel, x) {
            let inputs = x.shape()[3];
            let dw = B::fused_deconv2x2_backward_weight(x, grad.clone(), self.0);
            grads.register::<B>(node.id, dw);
            tick(operations(values, inputs) / 4);
        }
        if let Some(node) = bias {
            grads.register::<B>(node.id, B::fused_sum_rows(grad.clone()));
        }
        if let (Some(node), Some(weight)) = (input, weight) {
            let inputs = weight.shape()[0];
            let dx = B::fused_deconv2x2_backward_input(weight, grad, self.0);
            accumulate!(B, grads, &node, dx);
            tick(operations(values, inputs) / 4);
        }
    }
}

/// By a linear layer.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn deconv2x2<B: LinearOps>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        precision: Precision,
    ) -> FloatTensor<B> {
        let (x, weight, bias): (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 1>) =
            (wrap(x), wrap(weight), wrap(bias));
        let [batch, height, width, _] = x.dims();
        let [inputs, outputs, ..] = weight.dims();
        // Rows of the matmul's weight: (row of the four, column, output).
        let weight = weight.permute([2, 3, 1, 0]).reshape([4 * outputs, inputs]);
        // Burn 0.21's `repeat_dim` mixes up the gradient of an axis longer than one.
        let bias = bias.unsqueeze::<2>().expand([4, outputs]).reshape([4 * outputs]);
        let four: Tensor<B, 4> = crate::linear(x, weight, Some(bias), precision);
        let four = four.reshape([batch, height, width, 2, 2, outputs]).permute([0, 1, 3, 2, 4, 5]);
        unwrap(four.reshape([batch, 2 * height, 2 * width, outputs]))
    }
}

impl<B: DeconvOps, C: CheckpointStrategy> DeconvOps for Autodiff<B, C> {
    fn fused_deconv2x2(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        precision: Precision,
    ) -> FloatTensor<Self> {
        if !B::fuses_deconv2x2(&x.primitive) {
            return composed::deconv2x2::<Self>(x, weight, bias, precision);
        }
        tick(operations(x.primitive.shape().num_elements(), bias.primitive.shape()[0]));
        let state = (
            weight.is_tracked().then(|| x.primitive.clone()),
            x.is_tracked().then(|| weight.primitive.clone()),
        );
        let backward = DeconvBackward(precision);
        record!(B, C, backward, [x, weight, bias],
            tracked { (B::fused_deconv2x2(x.primitive, weight.primitive, bias.primitive, precision), state) },
            untracked { B::fused_deconv2x2(x.primitive, weight.primitive, bias.primitive, precision) })
    }
}

impl DeconvOps for Flex {}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use burn::tensor::module::conv_transpose2d;
    use burn::tensor::ops::ConvTransposeOptions;

    use crate::Precision;
    use crate::testing::{check, random};

    #[test]
    fn matches_burns_own_and_differences() {
        for (b, h, w, inputs, outputs) in [(1, 1, 1, 1, 1), (2, 3, 2, 5, 4)] {
            let (x, weight) = ([b, h, w, inputs], [inputs, outputs, 2, 2]);
            let tensors = [
                random(x.iter().product(), 1, 1.0),
                random(weight.iter().product(), 2, 0.5),
                random(outputs, 3, 1.0),
            ];
            let count = b * h * w * 4 * outputs;
            check(
                "deconv2x2",
                &tensors,
                |t| {
                    let (x, weight) = (t[0].clone().reshape(x), t[1].clone().reshape(weight));
                    super::deconv2x2(x, weight, t[2].clone(), Precision::F32).reshape([count])
                },
                |t| {
                    let options = ConvTransposeOptions::new([2, 2], [0, 0], [0, 0], [1, 1], 1);
                    let x: Tensor<_, 4> = t[0].clone().reshape(x).permute([0, 3, 1, 2]);
                    let y = conv_transpose2d(x, t[1].clone().reshape(weight), Some(t[2].clone()), options);
                    y.permute([0, 2, 3, 1]).reshape([count])
                },
                5e-6,
            );
        }
    }
}
