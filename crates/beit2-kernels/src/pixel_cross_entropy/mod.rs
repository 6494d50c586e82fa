//! Cross entropy of every pixel against its class, of logits that are enlarged to the size of the labels.
//!
//! Contract: the enlarged logits (0.3 GB for two crops of 512 px and 150 classes, several times that in a
//! graph) exist for a few pixels at a time only. Training computes the gradient with respect to the small
//! logits in the forward pass; the backward pass only scales it. The mean is over **all** pixels, those
//! without a class included, as mmsegmentation takes it. Results do not depend on the number of threads.

pub(crate) mod fast;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, activation};

use crate::bilinear::{Between, bilinear, positions};
use crate::flex::is_f32;
use crate::graph::record_with;
use crate::tensor::{unwrap, wrap};

/// The label of a pixel without a class.
pub const IGNORE: u8 = 255;

/// What training needs of a pixel cross entropy.
pub struct PixelLoss<B: BurnBackend> {
    /// The mean loss, `[1]`.
    pub loss: FloatTensor<B>,
    /// The share of pixels that are right, `[1]`.
    pub share: FloatTensor<B>,
    /// The gradient of the loss with respect to the logits, `[B, h, w, C]`.
    pub gradient: FloatTensor<B>,
}

/// Pixel cross entropy on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait PixelCrossEntropyOps: BurnBackend {
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

    /// `gradient [B, h, w, C]` times the number `upstream [1]`.
    fn fused_pixel_cross_entropy_backward(
        gradient: FloatTensor<Self>,
        upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::pixel_cross_entropy_backward::<Self>(gradient, upstream)
    }
}

/// Mean cross entropy `[1]` of `logits [B, h, w, C]`, resized to the labels' size (bilinear), against
/// `labels [B, H, W]`; and the share `[1]` of all pixels whose largest logit is their class. Pixels labelled
/// [`IGNORE`] add nothing to either sum, but count.
///
/// # Panics
/// If the batches differ, a size is 0, or (on the CPU) if another label is not below C.
pub fn pixel_cross_entropy<B: PixelCrossEntropyOps>(
    logits: Tensor<B, 4>,
    labels: Tensor<B, 3, Int>,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let (map, target) = (logits.dims(), labels.dims());
    assert!(
        map[0] == target[0] && map.iter().chain(&target).all(|n| *n > 0),
        "pixel_cross_entropy: logits {map:?} do not fit labels {target:?}"
    );
    let (loss, right) = B::fused_pixel_cross_entropy(unwrap(logits), labels.into_primitive());
    (wrap(loss), wrap(right))
}

/// [`pixel_cross_entropy`](crate::pixel_cross_entropy) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(
    logits: Tensor<B, 4>,
    labels: Tensor<B, 3, Int>,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let [batch, height, width] = labels.dims();
    let classes = logits.dims()[3];
    let n = batch * height * width;
    let large = bilinear(logits, height, width).reshape([n, classes]);
    let labels = labels.cast(DType::I32).reshape([n, 1]);
    let without = labels.clone().equal_elem(i32::from(IGNORE));
    let right = large.clone().argmax(1).cast(DType::I32).equal(labels.clone());
    let log = activation::log_softmax(large, 1);
    let own = log.clone().gather(1, labels.mask_fill(without.clone(), 0)).mask_fill(without, 0.0);
    let share = right.int().sum().float().cast(log.dtype()).div_scalar(n as f64);
    (own.mean().neg(), share)
}

/// Loss, share and gradient of the logits, one image at a time.
pub(crate) fn reference_train<B: BurnBackend>(
    logits: Tensor<B, 4>,
    labels: Tensor<B, 3, Int>,
) -> (Tensor<B, 1>, Tensor<B, 1>, Tensor<B, 4>) {
    let [batch, height, width] = labels.dims();
    let [_, rows, cols, classes] = logits.dims();
    let n = height * width;
    let (mut losses, mut shares, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    for image in 0..batch {
        let logits = logits.clone().narrow(0, image, 1);
        let labels = labels.clone().narrow(0, image, 1);
        let (loss, share) = reference(logits.clone(), labels.clone());
        losses.push(loss);
        shares.push(share);
        let labels = labels.cast(DType::I32).reshape([n, 1]);
        let without = labels.clone().equal_elem(i32::from(IGNORE));
        let softmax = activation::softmax(bilinear(logits, height, width).reshape([n, classes]), 1);
        let ones = softmax.clone().narrow(1, 0, 1).ones_like();
        let column = labels.mask_fill(without.clone(), 0);
        let large = softmax.scatter(1, column, ones.neg(), IndexingUpdateOp::Add);
        let large = large.mask_fill(without.expand([n, classes]), 0.0).div_scalar((batch * n) as f64);
        gradients.push(shrink(large.reshape([1, height, width, classes]), rows, cols));
    }
    let mean = |parts: Vec<Tensor<B, 1>>| Tensor::cat(parts, 0).mean();
    (mean(losses), mean(shares), Tensor::cat(gradients, 0))
}

/// The gradient of a map `[1, rows, cols, C]` from that of its enlarged form.
fn shrink<B: BurnBackend>(large: Tensor<B, 4>, rows: usize, cols: usize) -> Tensor<B, 4> {
    let [_, height, width, classes] = large.dims();
    let options = (&large.device(), large.dtype());
    let matrix = |from: usize, to: usize| {
        let mut weights = vec![0.0; from * to];
        for (at, Between { low, high, share }) in positions(from, to).enumerate() {
            weights[low * to + at] += 1.0 - share;
            weights[high * to + at] += share;
        }
        Tensor::<B, 3>::from_data(TensorData::new(weights, [1, from, to]), options)
    };
    let few = matrix(rows, height).matmul(large.reshape([1, height, width * classes]));
    let small = matrix(cols, width).matmul(few.reshape([rows, width, classes]));
    small.reshape([1, rows, cols, classes])
}

#[derive(Debug)]
struct PixelLossBackward;

impl<B: PixelCrossEntropyOps> Backward<B, 1> for PixelLossBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |upstream| {
            B::fused_pixel_cross_entropy_backward(gradient, upstream)
        });
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn pixel_cross_entropy_backward<B: BurnBackend>(
        gradient: FloatTensor<B>,
        upstream: FloatTensor<B>,
    ) -> FloatTensor<B> {
        B::float_mul(gradient, B::float_reshape(upstream, [1, 1, 1, 1].into()))
    }

    pub(crate) fn pixel_cross_entropy<B: BurnBackend>(
        logits: FloatTensor<B>,
        labels: IntTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let (loss, share) = super::reference::<B>(wrap(logits), Tensor::from_primitive(labels));
        (unwrap(loss), unwrap(share))
    }

    pub(crate) fn pixel_cross_entropy_train<B: BurnBackend>(
        logits: FloatTensor<B>,
        labels: IntTensor<B>,
    ) -> PixelLoss<B> {
        let (loss, share, gradient) =
            super::reference_train::<B>(wrap(logits), Tensor::from_primitive(labels));
        PixelLoss { loss: unwrap(loss), share: unwrap(share), gradient: unwrap(gradient) }
    }
}

impl<B: PixelCrossEntropyOps, C: CheckpointStrategy> PixelCrossEntropyOps for Autodiff<B, C> {
    fn fused_pixel_cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (loss, share) = record_with!(B, C, PixelLossBackward, [logits],
            tracked {
                let found = B::fused_pixel_cross_entropy_train(logits.primitive, labels);
                (found.loss, found.share, found.gradient)
            },
            untracked { B::fused_pixel_cross_entropy(logits.primitive, labels) });
        (loss, Self::from_inner(share))
    }
}

impl PixelCrossEntropyOps for Flex {
    fn fused_pixel_cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&logits]) {
            fast::forward(logits, labels)
        } else {
            composed::pixel_cross_entropy::<Self>(logits, labels)
        }
    }

    fn fused_pixel_cross_entropy_train(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
    ) -> PixelLoss<Self> {
        if is_f32(&[&logits]) {
            fast::forward_train(logits, labels)
        } else {
            composed::pixel_cross_entropy_train::<Self>(logits, labels)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::IGNORE;
    use crate::testing::{Checked, check, random};
    use burn::tensor::{DType, Int, Tensor, TensorData};

    fn labels(dims: [usize; 3], classes: usize) -> Tensor<Checked, 3, Int> {
        let count = dims.iter().product();
        let label = |at: usize| if at % 5 == 2 { IGNORE } else { (at * 31 % classes) as u8 };
        let labels: Vec<u8> = (0..count).map(label).collect();
        Tensor::from_data(TensorData::new(labels, dims), (&Default::default(), DType::U8))
    }

    #[test]
    fn matches_reference_and_differences() {
        for (batch, [rows, cols], [height, width], classes) in [
            (1, [1, 1], [1, 1], 1),
            (1, [1, 1], [3, 2], 2),
            (2, [3, 4], [12, 16], 5),
            (1, [5, 3], [17, 40], 33),
            (3, [4, 4], [4, 4], 7),
            (1, [7, 6], [3, 4], 3),
            (2, [16, 16], [64, 64], 150),
        ] {
            let map = [batch, rows, cols, classes];
            let y = labels([batch, height, width], classes);
            check(
                "pixel_cross_entropy",
                &[random(map.iter().product(), 4, 4.0)],
                |x| super::pixel_cross_entropy(x[0].clone().reshape(map), y.clone()).0,
                |x| super::reference(x[0].clone().reshape(map), y.clone()).0,
                2e-6,
            );
        }
    }

    #[test]
    fn counts_right_pixels() {
        for dtype in [DType::F32, DType::F64] {
            let device = Default::default();
            let data = TensorData::new(vec![0.0, 1.0, 2.0, 1.0, 3.0, 3.0, 0.0, 5.0], [1, 2, 2, 2]);
            let logits = Tensor::<burn::backend::Flex, 4>::from_data(data, (&device, dtype));
            // Right, wrong, a tie for the first class, no class.
            let y = TensorData::new(vec![1u8, 1, 0, IGNORE], [1, 2, 2]);
            let y = Tensor::from_data(y, (&device, DType::U8));
            let (_, share) = super::pixel_cross_entropy(logits, y);
            assert_eq!(share.into_data().convert::<f64>().into_vec::<f64>().unwrap(), [0.5]);
        }
    }

    #[test]
    #[should_panic(expected = "pixel_cross_entropy: label 5 is not one of 5 classes")]
    fn rejects_a_class_that_does_not_exist() {
        let d = Default::default();
        let logits = Tensor::<burn::backend::Flex, 4>::zeros([1, 1, 1, 5], &d);
        let y = Tensor::from_data(TensorData::new(vec![5u8], [1, 1, 1]), (&d, DType::U8));
        super::pixel_cross_entropy(logits, y);
    }
}
