//! Mean cross entropy against class ids, and how often the largest logit is the target's.
//!
//! Contract: the backward pass starts from what the forward pass saved, which is each backend's own. On the CPU that is
//! the gradient with respect to the logits, `(softmax − onehot)/n`, in the logits' own buffer when nobody else holds it;
//! the backward pass only scales it. Losses of rows are added in order.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation};

use crate::flex::is_f32;
use crate::graph::record_with;
use crate::tensor::{unwrap, wrap};

/// What the backward pass of a cross entropy needs; a backend knows what its own means.
#[derive(Debug, Clone)]
pub struct CrossEntropySaved<B: BurnBackend> {
    /// By default the gradient `[n, K]` of the mean loss alone.
    pub floats: Vec<FloatTensor<B>>,
    /// Where the backward pass reads the class ids again.
    pub targets: Option<IntTensor<B>>,
}

/// Cross entropy on a backend's own tensors. Shapes are those of the functions of the same names; the accuracy `[1]` is
/// there if it is asked for.
pub trait CrossEntropyOps: BurnBackend {
    /// [`cross_entropy`](crate::cross_entropy) without what a backward pass needs.
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        accuracy: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        composed::cross_entropy::<Self>(logits, targets, accuracy)
    }

    /// [`cross_entropy`](crate::cross_entropy) and what its backward pass needs.
    fn fused_cross_entropy_train(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        accuracy: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>, CrossEntropySaved<Self>) {
        composed::cross_entropy_train::<Self>(logits, targets, accuracy)
    }

    /// The gradient with respect to the logits from that of the mean loss, `upstream [1]`.
    fn fused_cross_entropy_backward(
        saved: CrossEntropySaved<Self>,
        upstream: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::cross_entropy_backward::<Self>(saved, upstream)
    }
}

/// Mean cross entropy of `logits [n, K]` against class ids `targets [n]` → `[1]`.
///
/// # Panics
/// If the numbers of rows differ, or (on the CPU) if an id is not below K.
pub fn cross_entropy<B: CrossEntropyOps>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    check(&logits, &targets);
    wrap(B::fused_cross_entropy(unwrap(logits), targets.into_primitive(), false).0)
}

/// [`cross_entropy`](crate::cross_entropy), and the part of the rows whose largest logit (the first of equals) is that of
/// their target, without gradient: both `[1]`.
///
/// # Panics
/// As [`cross_entropy`](crate::cross_entropy).
pub fn cross_entropy_with_accuracy<B: CrossEntropyOps>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    check(&logits, &targets);
    let (loss, accuracy) = B::fused_cross_entropy(unwrap(logits), targets.into_primitive(), true);
    (wrap(loss), wrap(accuracy.unwrap_or_else(|| unreachable!("it was asked for"))))
}

fn check<B: BurnBackend>(logits: &Tensor<B, 2>, targets: &Tensor<B, 1, Int>) {
    let (dims, [ids]) = (logits.dims(), targets.dims());
    assert!(ids == dims[0], "cross_entropy: {ids} targets for logits {dims:?}");
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
    type State = CrossEntropySaved<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let saved = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |upstream| {
            B::fused_cross_entropy_backward(saved, upstream)
        });
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn cross_entropy<B: BurnBackend>(
        logits: FloatTensor<B>,
        targets: IntTensor<B>,
        accuracy: bool,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        let accuracy = accuracy.then(|| self::accuracy::<B>(logits.clone(), targets.clone()));
        (unwrap(super::reference::<B>(wrap(logits), Tensor::from_primitive(targets))), accuracy)
    }

    pub(crate) fn cross_entropy_train<B: BurnBackend>(
        logits: FloatTensor<B>,
        targets: IntTensor<B>,
        accuracy: bool,
    ) -> (FloatTensor<B>, Option<FloatTensor<B>>, CrossEntropySaved<B>) {
        let accuracy = accuracy.then(|| self::accuracy::<B>(logits.clone(), targets.clone()));
        let (loss, gradient) = super::reference_train::<B>(wrap(logits), Tensor::from_primitive(targets));
        (unwrap(loss), accuracy, CrossEntropySaved { floats: vec![unwrap(gradient)], targets: None })
    }

    /// Of a saved gradient.
    pub(crate) fn cross_entropy_backward<B: BurnBackend>(
        mut saved: CrossEntropySaved<B>,
        upstream: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let gradient = saved.floats.pop().unwrap_or_else(|| unreachable!("the forward pass saved it"));
        B::float_mul(gradient, B::float_reshape(upstream, [1, 1].into()))
    }

    pub(crate) fn accuracy<B: BurnBackend>(logits: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
        let predicted = wrap::<B, 2>(logits).argmax(1).reshape([-1]);
        unwrap(predicted.equal(Tensor::<B, 1, Int>::from_primitive(targets)).float().mean())
    }
}

impl<B: CrossEntropyOps, C: CheckpointStrategy> CrossEntropyOps for Autodiff<B, C> {
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        accuracy: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (loss, accuracy) = record_with!(B, C, CrossEntropyBackward, [logits],
            tracked { B::fused_cross_entropy_train(logits.primitive, targets, accuracy) },
            untracked { B::fused_cross_entropy(logits.primitive, targets, accuracy) });
        (loss, accuracy.map(Self::from_inner))
    }
}

impl CrossEntropyOps for Flex {
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        accuracy: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        if !is_f32(&[&logits]) {
            return composed::cross_entropy::<Self>(logits, targets, accuracy);
        }
        let accuracy = accuracy.then(|| composed::accuracy::<Self>(logits.clone(), targets.clone()));
        (fast::forward(logits, targets), accuracy)
    }

    fn fused_cross_entropy_train(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        accuracy: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>, CrossEntropySaved<Self>) {
        if !is_f32(&[&logits]) {
            return composed::cross_entropy_train::<Self>(logits, targets, accuracy);
        }
        let accuracy = accuracy.then(|| composed::accuracy::<Self>(logits.clone(), targets.clone()));
        let (loss, gradient) = fast::forward_train(logits, targets);
        (loss, accuracy, CrossEntropySaved { floats: vec![gradient], targets: None })
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
    use burn::tensor::{DType, Int, Tensor};

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
    fn accuracy_counts_the_first_of_equal_logits() {
        let d = Default::default();
        let rows = [[0.0f32, 2.0, 2.0], [3.0, 1.0, 3.0], [1.0, 0.0, 5.0], [0.5, 0.25, 0.0]];
        let logits = Tensor::<Checked, 2>::from_data(rows, (&d, DType::F32));
        let (loss, accuracy) =
            super::cross_entropy_with_accuracy(logits.clone(), Tensor::from_ints([1, 2, 2, 0], &d));
        let alone = super::cross_entropy(logits, Tensor::from_ints([1, 2, 2, 0], &d));
        assert_eq!(accuracy.into_data().to_vec::<f32>().unwrap(), [0.75]);
        assert_eq!(loss.into_data(), alone.into_data());
    }

    #[test]
    #[should_panic(expected = "target 5 is not one of 5 classes")]
    fn rejects_a_class_that_does_not_exist() {
        let d = Default::default();
        let logits = Tensor::<burn::backend::Flex, 2>::zeros([1, 5], &d);
        super::cross_entropy(logits, Tensor::from_ints([5], &d));
    }
}
