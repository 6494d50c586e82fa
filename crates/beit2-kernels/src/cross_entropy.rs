//! Mean cross entropy against class ids.
//!
//! Contract: training computes the gradient with respect to the logits, `(softmax − onehot)/n`, in
//! the forward pass, in the logits' own buffer when nobody else holds it; the backward pass only
//! scales it. Losses of rows are added in order.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation};

use crate::flex::is_f32;
use crate::graph::record;
use crate::tensor::{unwrap, wrap};

/// Cross entropy on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait CrossEntropyOps: BurnBackend {
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
}

/// Mean cross entropy of `logits [n, K]` against class ids `targets [n]` → `[1]`.
///
/// # Panics
/// If the numbers of rows differ, or (on the CPU) if an id is not below K.
pub fn cross_entropy<B: CrossEntropyOps>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let (dims, [ids]) = (logits.dims(), targets.dims());
    assert!(ids == dims[0], "cross_entropy: {ids} targets for logits {dims:?}");
    wrap(B::fused_cross_entropy(unwrap(logits), targets.into_primitive()))
}

/// [`cross_entropy`](crate::cross_entropy) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    activation::log_softmax(logits, 1).gather(1, targets.unsqueeze_dim(1)).mean().neg()
}

pub(crate) fn reference_train<B: BurnBackend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let [n, _] = logits.dims();
    let log = activation::log_softmax(logits, 1);
    let column = targets.unsqueeze_dim::<2>(1);
    let ones = log.clone().narrow(1, 0, 1).ones_like(); // [n, 1]
    let gradient =
        log.clone().exp().scatter(1, column.clone(), ones.neg(), IndexingUpdateOp::Add).div_scalar(n as f64);
    let loss = log.gather(1, column).mean().neg();
    (loss, gradient)
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: CrossEntropyOps> Backward<B, 1> for CrossEntropyBackward {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |upstream| {
            B::float_mul(gradient, B::float_reshape(upstream, [1, 1].into()))
        });
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn cross_entropy<B: BurnBackend>(
        logits: FloatTensor<B>,
        targets: IntTensor<B>,
    ) -> FloatTensor<B> {
        unwrap(super::reference::<B>(wrap(logits), Tensor::from_primitive(targets)))
    }

    pub(crate) fn cross_entropy_train<B: BurnBackend>(
        logits: FloatTensor<B>,
        targets: IntTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let (loss, gradient) = super::reference_train::<B>(wrap(logits), Tensor::from_primitive(targets));
        (unwrap(loss), unwrap(gradient))
    }
}

impl<B: CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn fused_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        record!(B, C, CrossEntropyBackward, [logits],
            tracked { B::fused_cross_entropy_train(logits.primitive, targets) },
            untracked { B::fused_cross_entropy(logits.primitive, targets) })
    }
}

impl CrossEntropyOps for Flex {
    fn fused_cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&logits]) {
            fast::forward(logits, targets)
        } else {
            composed::cross_entropy::<Self>(logits, targets)
        }
    }

    fn fused_cross_entropy_train(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&logits]) {
            fast::forward_train(logits, targets)
        } else {
            composed::cross_entropy_train::<Self>(logits, targets)
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{GRAIN, integers, owned, tensor, values, view};
    use crate::memory::Buffer;
    use crate::simd::{LANES, dispatch, exp, max, reduce};

    pub(crate) fn forward(logits: FlexTensor, targets: FlexTensor) -> FlexTensor {
        let targets = checked(&logits, &targets);
        let logits = owned(logits);
        let classes = logits.layout().shape()[1];
        let rows = (GRAIN / classes.max(1)).max(1);
        let mut losses = Buffer::any(targets.len());
        losses
            .par_chunks_mut(rows)
            .zip(view(&logits).par_chunks((rows * classes).max(1)))
            .zip(targets.par_chunks(rows))
            .for_each(|((losses, logits), targets)| loss(logits, targets, losses));
        mean(&losses)
    }

    pub(crate) fn forward_train(logits: FlexTensor, targets: FlexTensor) -> (FlexTensor, FlexTensor) {
        let targets = checked(&logits, &targets);
        let mut logits = owned(logits);
        let classes = logits.layout().shape()[1];
        let rows = (GRAIN / classes.max(1)).max(1);
        let mut losses = Buffer::any(targets.len());
        let scale = 1.0 / targets.len() as f32;
        losses
            .par_chunks_mut(rows)
            .zip(values(&mut logits).par_chunks_mut((rows * classes).max(1)))
            .zip(targets.par_chunks(rows))
            .for_each(|((losses, logits), targets)| {
                loss_and_gradient(logits, targets, scale, losses);
            });
        (mean(&losses), logits)
    }

    /// The ids, each a column of the logits.
    fn checked(logits: &FlexTensor, targets: &FlexTensor) -> Vec<usize> {
        let classes = logits.layout().shape()[1];
        let ids = integers(targets);
        ids.into_iter()
            .map(|id| match usize::try_from(id) {
                Ok(id) if id < classes => id,
                _ => panic!("cross_entropy: target {id} is not one of {classes} classes"),
            })
            .collect()
    }

    fn mean(losses: &[f32]) -> FlexTensor {
        let total: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        let mut mean = Buffer::any(1);
        mean[0] = (total / losses.len() as f64) as f32;
        tensor(mean, [1])
    }

    dispatch!(fn loss(logits: &[f32], targets: &[usize], losses: &mut [f32]) => loss_body);

    #[inline(always)]
    fn loss_body<const FMA: bool>(logits: &[f32], targets: &[usize], losses: &mut [f32]) {
        let classes = logits.len() / targets.len();
        for ((row, &target), loss) in logits.chunks_exact(classes).zip(targets).zip(losses) {
            let top = max(row);
            let (chunks, tail) = row.as_chunks::<LANES>();
            let mut acc = [0.0; LANES];
            for c in chunks {
                for i in 0..LANES {
                    acc[i] += exp::<FMA>(c[i] - top);
                }
            }
            for (a, x) in acc.iter_mut().zip(tail) {
                *a += exp::<FMA>(x - top);
            }
            *loss = reduce(acc).ln() - (row[target] - top);
        }
    }

    dispatch!(
        /// The logits become `scale·(softmax − onehot)`.
        fn loss_and_gradient(
            logits: &mut [f32],
            targets: &[usize],
            scale: f32,
            losses: &mut [f32],
        ) => loss_and_gradient_body
    );

    #[inline(always)]
    fn loss_and_gradient_body<const FMA: bool>(
        logits: &mut [f32],
        targets: &[usize],
        scale: f32,
        losses: &mut [f32],
    ) {
        let classes = logits.len() / targets.len();
        for ((row, &target), loss) in logits.chunks_exact_mut(classes).zip(targets).zip(losses) {
            let top = max(row);
            let wanted = row[target] - top;
            let (chunks, tail) = row.as_chunks_mut::<LANES>();
            let mut acc = [0.0; LANES];
            for c in chunks {
                for i in 0..LANES {
                    c[i] = exp::<FMA>(c[i] - top);
                    acc[i] += c[i];
                }
            }
            for (a, x) in acc.iter_mut().zip(tail) {
                *x = exp::<FMA>(*x - top);
                *a += *x;
            }
            let total = reduce(acc);
            *loss = total.ln() - wanted;
            let factor = scale / total;
            for x in row.iter_mut() {
                *x *= factor;
            }
            row[target] -= scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Checked, check, random};
    use burn::tensor::{Int, Tensor};

    fn targets(n: usize, classes: usize) -> Tensor<Checked, 1, Int> {
        let ids: Vec<i32> = (0..n).map(|i| (i * 31 % classes) as i32).collect();
        Tensor::from_ints(ids.as_slice(), &Default::default())
    }

    #[test]
    fn matches_reference_and_differences() {
        for (n, classes) in [(1, 1), (1, 2), (3, 33), (75, 512), (197, 1000)] {
            let t = targets(n, classes);
            check(
                "cross_entropy",
                &[random(n * classes, 4, 4.0)],
                |x| super::cross_entropy(x[0].clone().reshape([n, classes]), t.clone()),
                |x| super::reference(x[0].clone().reshape([n, classes]), t.clone()),
                2e-6,
            );
        }
    }

    #[test]
    #[should_panic(expected = "target 5 is not one of 5 classes")]
    fn rejects_a_class_that_does_not_exist() {
        let d = Default::default();
        let logits = Tensor::<burn::backend::Flex, 2>::zeros([1, 5], &d);
        super::cross_entropy(logits, Tensor::from_ints([5], &d));
    }
}
