//! Batch normalization of channels-last tensors in one operation, and the running statistics of many norms.
//!
//! Contract: what [`channel_moments`](crate::channel_moments) and [`channel_norm`](crate::channel_norm) give one after the other,
//! with a backward pass that goes through the moments too; the moments themselves carry no gradient. Only where a backend
//! has it ([`fuses_batch_norm`](crate::fuses_batch_norm)), and on one device: several must add up their moments in between.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorPrimitive};

use crate::graph::{accumulate, constant, record_with, register};
use crate::residual_scale::ResidualScaleOps;
use crate::tensor::{unwrap, wrap};

/// Scale `[C]` and shift `[C]` of a norm, and how it computes.
#[derive(Debug, Clone)]
pub struct ChannelAffine<T> {
    /// Scale.
    pub weight: T,
    /// Shift.
    pub bias: T,
    /// Added to the variance.
    pub eps: f64,
    /// Whether negative results become 0.
    pub relu: bool,
}

/// Running statistics of a norm and a batch that they take in, as tensors or whatever belongs to them.
#[derive(Debug, Clone)]
pub struct RunningMoments<F, I> {
    /// Averages of the batches' means and variances, `[C]` each.
    pub running: [F; 2],
    /// Batches seen, `[1]`.
    pub batches: I,
    /// Mean and variance of this batch, `[C]` each; the variance is that of the values themselves.
    pub seen: [F; 2],
    /// What makes the variance that of the population which the values are a sample of: n / (n − 1).
    pub unbiased: f64,
}

/// Running statistics on a backend's own tensors.
pub type RunningOf<B> = RunningMoments<FloatTensor<B>, IntTensor<B>>;

/// New averages and number of batches.
pub type Recorded<F, I> = ([F; 2], I);

/// Batch normalization on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait BatchNormOps: ResidualScaleOps {
    /// [`fuses_batch_norm`](crate::fuses_batch_norm).
    fn fuses_batch_norm(_x: &FloatTensor<Self>) -> bool {
        false
    }

    /// [`batch_norm`](crate::batch_norm): the result, mean and variance. Only where it is one computation.
    fn fused_batch_norm(
        _x: FloatTensor<Self>,
        _affine: ChannelAffine<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]) {
        unreachable!("batch norm is two operations here")
    }

    /// Its gradients of `x`, and of weight and bias. Only where it is one computation.
    fn fused_batch_norm_backward(
        _x: FloatTensor<Self>,
        _moments: [FloatTensor<Self>; 2],
        _affine: ChannelAffine<FloatTensor<Self>>,
        _grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]) {
        unreachable!("batch norm is two operations here")
    }

    /// [`record_moments`](crate::record_moments).
    fn fused_record_moments(
        norms: Vec<RunningOf<Self>>,
        momentum: f64,
    ) -> Vec<Recorded<FloatTensor<Self>, IntTensor<Self>>> {
        composed::record_moments::<Self>(norms, momentum)
    }
}

/// Whether [`batch_norm`](crate::batch_norm) of `x` is one operation here.
pub fn fuses_batch_norm<B: BatchNormOps, const D: usize>(x: &Tensor<B, D>) -> bool {
    B::fuses_batch_norm(&unwrap(x.clone()))
}

/// `x [.., C]` normalized by the mean and variance of each channel, which come with the result; they carry no gradient.
///
/// # Panics
/// If it isn't one operation here ([`fuses_batch_norm`](crate::fuses_batch_norm)), or weight or bias is not as long as the last axis of `x`.
pub fn batch_norm<B: BatchNormOps, const D: usize>(
    x: Tensor<B, D>,
    affine: ChannelAffine<Tensor<B, 1>>,
) -> (Tensor<B, D>, [Tensor<B, 1>; 2]) {
    let ChannelAffine { weight, bias, eps, relu } = affine;
    let (dims, [a], [b]) = (x.dims(), weight.dims(), bias.dims());
    assert!(
        [a, b] == [dims[D - 1]; 2],
        "batch_norm: weight [{a}] and bias [{b}] do not fit the last axis of {dims:?}"
    );
    let affine = ChannelAffine { weight: unwrap(weight), bias: unwrap(bias), eps, relu };
    let (y, moments) = B::fused_batch_norm(unwrap(x), affine);
    (wrap(y), moments.map(wrap))
}

/// Takes a batch into the running statistics of each norm: `(1 − momentum)·running + momentum·seen`, and one batch more. No
/// gradients.
pub fn record_moments<B: BatchNormOps>(
    norms: Vec<RunningMoments<Tensor<B, 1>, Tensor<B, 1, Int>>>,
    momentum: f64,
) -> Vec<Recorded<Tensor<B, 1>, Tensor<B, 1, Int>>> {
    let norms = norms.into_iter().map(|norm| RunningMoments {
        running: norm.running.map(unwrap),
        batches: norm.batches.into_primitive(),
        seen: norm.seen.map(unwrap),
        unbiased: norm.unbiased,
    });
    let recorded = B::fused_record_moments(norms.collect(), momentum);
    recorded
        .into_iter()
        .map(|(running, batches)| (running.map(wrap), Tensor::from_primitive(batches)))
        .collect()
}

/// By Burn's primitives.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn record_moments<B: BurnBackend>(
        norms: Vec<RunningOf<B>>,
        momentum: f64,
    ) -> Vec<Recorded<FloatTensor<B>, IntTensor<B>>> {
        let one = |RunningMoments { running, batches, seen, unbiased }: RunningOf<B>| {
            let float = |x| Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(x));
            let average = |old: Tensor<B, 1>, batch: Tensor<B, 1>| {
                let batch = batch.cast(old.dtype());
                unwrap(old.mul_scalar(1.0 - momentum) + batch.mul_scalar(momentum))
            };
            let [mean, var] = running.map(float);
            let [seen_mean, seen_var] = seen.map(float);
            let running = [average(mean, seen_mean), average(var, seen_var.mul_scalar(unbiased))];
            (running, Tensor::<B, 1, Int>::from_primitive(batches).add_scalar(1).into_primitive())
        };
        norms.into_iter().map(one).collect()
    }
}

#[derive(Debug)]
struct BatchNormBackward;

impl<B: BatchNormOps> Backward<B, 3> for BatchNormBackward {
    /// x, moments, weight and bias.
    type State = (FloatTensor<B>, [FloatTensor<B>; 2], ChannelAffine<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, moments, affine) = ops.state;
        let (dx, [dweight, dbias]) = B::fused_batch_norm_backward(x, moments, affine, grad);
        let [input, weight, bias] = ops.parents;
        register!(B, grads, [weight, bias], [dweight, dbias]);
        if let Some(input) = input {
            accumulate!(B, grads, &input, dx);
        }
    }
}

impl<B: BatchNormOps, C: CheckpointStrategy> BatchNormOps for Autodiff<B, C> {
    fn fuses_batch_norm(x: &FloatTensor<Self>) -> bool {
        B::fuses_batch_norm(&x.primitive)
    }

    fn fused_batch_norm(
        x: FloatTensor<Self>,
        affine: ChannelAffine<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]) {
        let ChannelAffine { weight, bias, eps, relu } = affine;
        let inner = ChannelAffine { weight: weight.primitive, bias: bias.primitive, eps, relu };
        let (weight, bias) = (Parent { node: weight.node }, Parent { node: bias.node });
        let (y, moments) = record_with!(B, C, BatchNormBackward, [x, weight, bias],
            tracked {
                let (y, moments) = B::fused_batch_norm(x.primitive.clone(), inner.clone());
                (y, moments.clone(), (x.primitive, moments, inner))
            },
            untracked { B::fused_batch_norm(x.primitive, inner) });
        (y, moments.map(FloatTensor::<Self>::new))
    }

    fn fused_record_moments(
        norms: Vec<RunningOf<Self>>,
        momentum: f64,
    ) -> Vec<Recorded<FloatTensor<Self>, IntTensor<Self>>> {
        let norms = norms.into_iter().map(|norm| RunningMoments {
            running: norm.running.map(|x| constant::<B, C>("record_moments", x)),
            batches: norm.batches,
            seen: norm.seen.map(|x| constant::<B, C>("record_moments", x)),
            unbiased: norm.unbiased,
        });
        let recorded = B::fused_record_moments(norms.collect(), momentum).into_iter();
        recorded.map(|(running, batches)| (running.map(FloatTensor::<Self>::new), batches)).collect()
    }
}

/// For the macro, which asks for nodes.
struct Parent<N> {
    node: N,
}

impl BatchNormOps for Flex {}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Int, Tensor};

    use super::{RunningMoments, record_moments};

    #[test]
    fn running_statistics_by_hand() {
        let d = Default::default();
        let one = |x: f32| Tensor::<Flex, 1>::from_floats([x, 2.0 * x], &d);
        let norm = RunningMoments {
            running: [one(1.0), one(10.0)],
            batches: Tensor::<Flex, 1, Int>::from_ints([4], &d),
            seen: [one(3.0), one(20.0)],
            unbiased: 1.5,
        };
        let mut found = record_moments(vec![norm], 0.25);
        let ([mean, var], batches) = found.remove(0);
        assert_eq!(mean.into_data().into_vec::<f32>().unwrap(), [1.5, 3.0]);
        assert_eq!(var.into_data().into_vec::<f32>().unwrap(), [15.0, 30.0]);
        assert_eq!(batches.into_data().convert::<i32>().into_vec::<i32>().unwrap(), [5]);
    }
}
