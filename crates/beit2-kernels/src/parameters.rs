//! Operations over all parameters of a model at once: the norm of the gradients, AdamW, weighted sums; and many scalars as one.
//!
//! Contract: what comes out is what the same arithmetic tensor by tensor gives, in order. A GPU takes hundreds of small
//! tensors in a few launches; the default takes them one after the other. In place where the tensors given are the only
//! ones of their memory. Not for graphs: call them on the inner backend.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{ElementConversion, Tensor, TensorMetadata};

use crate::adamw::{AdamwOps, AdamwStep};
use crate::tensor::{unwrap, wrap};

/// A tensor of any rank: a model's parameters have several.
#[derive(Debug, Clone)]
pub struct AnyRank<B: BurnBackend>(pub(crate) FloatTensor<B>);

impl<B: BurnBackend, const D: usize> From<Tensor<B, D>> for AnyRank<B> {
    fn from(x: Tensor<B, D>) -> Self {
        Self(unwrap(x))
    }
}

impl<B: BurnBackend> AnyRank<B> {
    /// The tensor again.
    ///
    /// # Panics
    /// If its rank is not `D`.
    pub fn ranked<const D: usize>(self) -> Tensor<B, D> {
        assert!(self.0.shape().num_dims() == D, "a tensor of shape {:?} has no rank {D}", self.0.shape());
        wrap(self.0)
    }

    /// All its values in one axis.
    #[must_use]
    pub fn flat(self) -> Tensor<B, 1> {
        match self.0.shape().num_dims() {
            1 => wrap(self.0),
            _ => {
                let count = self.0.shape().num_elements();
                wrap(B::float_reshape(self.0, [count].into()))
            }
        }
    }
}

/// One parameter in [`adamw_all`](crate::adamw_all).
#[derive(Debug, Clone)]
pub struct AdamwTensors<B: BurnBackend> {
    /// The parameter.
    pub value: AnyRank<B>,
    /// Its gradient, of the same shape; `None` counts as 0.
    pub grad: Option<AnyRank<B>>,
    /// The first and the second moment, flat; `None` before the first step: 0.
    pub moments: Option<[Tensor<B, 1>; 2]>,
    /// Rates and decays of this parameter.
    pub step: AdamwStep,
}

/// What [`adamw_all`](crate::adamw_all) makes of a parameter: its new value and moments.
pub type AdamwUpdated<B> = (AnyRank<B>, [Tensor<B, 1>; 2]);

/// Operations over all parameters on a backend's own tensors.
pub trait ParameterOps: AdamwOps {
    /// [`grad_norm`](crate::grad_norm).
    fn fused_grad_norm(grads: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        composed::grad_norm::<Self>(grads)
    }

    /// [`adamw_all`](crate::adamw_all).
    fn fused_adamw_all(
        params: Vec<AdamwTensors<Self>>,
        clip: Option<(FloatTensor<Self>, f64)>,
    ) -> Vec<AdamwUpdated<Self>> {
        composed::adamw_all::<Self>(params, clip)
    }

    /// [`join_scalars`](crate::join_scalars).
    fn fused_join_scalars(scalars: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        composed::join_scalars::<Self>(scalars)
    }

    /// [`weighted_sums`](crate::weighted_sums).
    fn fused_weighted_sums(pairs: Vec<[FloatTensor<Self>; 2]>, factors: [f64; 2]) -> Vec<FloatTensor<Self>> {
        composed::weighted_sums::<Self>(pairs, factors)
    }
}

/// Global L2 norm of gradients, `[1]`, on the device.
///
/// # Panics
/// If there are none.
pub fn grad_norm<B: ParameterOps>(grads: Vec<AnyRank<B>>) -> Tensor<B, 1> {
    assert!(!grads.is_empty(), "grad_norm: no gradients");
    wrap(B::fused_grad_norm(grads.into_iter().map(|grad| grad.0).collect()))
}

/// One step of AdamW for every parameter given, in order. With `clip` (the gradients' norm `[1]`, the largest norm) gradients
/// are first multiplied by `min(1, largest / (norm + 1e-6))`, as PyTorch's `clip_grad_norm_` does.
///
/// # Panics
/// If a gradient or a moment has another number of values than its parameter.
pub fn adamw_all<B: ParameterOps>(
    params: Vec<AdamwTensors<B>>,
    clip: Option<(Tensor<B, 1>, f64)>,
) -> Vec<AdamwUpdated<B>> {
    for param in &params {
        let count = param.value.0.shape().num_elements();
        let moments = param.moments.iter().flatten().map(|moment| moment.dims()[0]);
        let others = param.grad.iter().map(|grad| grad.0.shape().num_elements()).chain(moments);
        for other in others {
            assert!(other == count, "adamw_all: {other} values do not fit a parameter of {count}");
        }
    }
    B::fused_adamw_all(params, clip.map(|(norm, max)| (unwrap(norm), max)))
}

/// Tensors `[1]` side by side, `[n]`: what a step leaves on the device is fetched as one.
///
/// # Panics
/// If there are none.
pub fn join_scalars<B: ParameterOps>(scalars: Vec<Tensor<B, 1>>) -> Tensor<B, 1> {
    assert!(!scalars.is_empty(), "join_scalars: no tensors");
    wrap(B::fused_join_scalars(scalars.into_iter().map(unwrap).collect()))
}

/// `a·x + b·y` for every pair `[x, y]` of as many values, in order and in the shape of `x`.
///
/// # Panics
/// If the numbers of values of a pair differ.
pub fn weighted_sums<B: ParameterOps>(pairs: Vec<[AnyRank<B>; 2]>, [a, b]: [f64; 2]) -> Vec<AnyRank<B>> {
    let pairs = pairs.into_iter().map(|[x, y]| {
        let [left, right] = [&x, &y].map(|x| x.0.shape().num_elements());
        assert!(left == right, "weighted_sums: {left} values do not fit {right}");
        [x.0, y.0]
    });
    B::fused_weighted_sums(pairs.collect(), [a, b]).into_iter().map(AnyRank).collect()
}

/// One tensor after the other, each in one axis.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn grad_norm<B: AdamwOps>(grads: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        let squares = grads.into_iter().map(|grad| wrap::<B, 1>(B::fused_square_sum(grad))).collect();
        unwrap(Tensor::cat(squares, 0).sum().sqrt())
    }

    pub(crate) fn adamw_all<B: AdamwOps>(
        params: Vec<AdamwTensors<B>>,
        clip: Option<(FloatTensor<B>, f64)>,
    ) -> Vec<AdamwUpdated<B>> {
        let clip = clip.map(|(norm, max)| clip_factor::<B>(norm, max));
        let update = |param: AdamwTensors<B>| {
            let shape = param.value.0.shape();
            let value = param.value.flat();
            let mut grad = param.grad.map_or_else(|| value.zeros_like(), AnyRank::flat);
            if let Some(clip) = &clip {
                grad = grad * clip.clone();
            }
            let [first, second] = param.moments.unwrap_or_else(|| [value.zeros_like(), value.zeros_like()]);
            let (value, first, second) =
                B::fused_adamw(unwrap(value), unwrap(grad), unwrap(first), unwrap(second), param.step);
            (AnyRank(B::float_reshape(value, shape)), [wrap(first), wrap(second)])
        };
        params.into_iter().map(update).collect()
    }

    /// What gradients of this norm are multiplied by, `[1]`.
    pub(crate) fn clip_factor<B: BurnBackend>(norm: FloatTensor<B>, max: f64) -> Tensor<B, 1> {
        wrap::<B, 1>(norm).add_scalar(1e-6).recip().mul_scalar(max).clamp_max(1.0)
    }

    pub(crate) fn join_scalars<B: BurnBackend>(scalars: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        B::float_cat(scalars, 0)
    }

    pub(crate) fn weighted_sums<B: BurnBackend>(
        pairs: Vec<[FloatTensor<B>; 2]>,
        factors: [f64; 2],
    ) -> Vec<FloatTensor<B>> {
        // A factor of 1 is no pass over memory.
        let scaled = |x: FloatTensor<B>, factor: f64| {
            let x = AnyRank::<B>(x).flat();
            if factor == 1.0 { x } else { x.mul_scalar(factor) }
        };
        let sum = |[x, y]: [FloatTensor<B>; 2]| {
            let shape = x.shape();
            let sum = scaled(x, factors[0]) + scaled(y, factors[1]);
            B::float_reshape(unwrap(sum), shape)
        };
        pairs.into_iter().map(sum).collect()
    }
}

impl<B: ParameterOps, C: CheckpointStrategy> ParameterOps for Autodiff<B, C> {}

impl ParameterOps for Flex {
    fn fused_adamw_all(
        mut params: Vec<AdamwTensors<Self>>,
        clip: Option<(FloatTensor<Self>, f64)>,
    ) -> Vec<AdamwUpdated<Self>> {
        // The factor is at hand, so that gradients are not multiplied in a pass of their own.
        if let Some((norm, max)) = clip {
            let factor = composed::clip_factor::<Self>(norm, max).into_scalar().elem::<f64>();
            params.iter_mut().for_each(|param| param.step.grad_scale *= factor);
        }
        composed::adamw_all::<Self>(params, None)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::random;
    use burn::tensor::TensorData;

    /// Sizes that are no multiples of anything.
    const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 7], [64, 96], [1, 5_003], [257, 129]];

    fn tensor<B: BurnBackend>(shape: [usize; 2], seed: u64, device: &B::Device) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(random(shape.iter().product(), seed, 1.0), shape), device)
    }

    /// Three steps over 70 parameters, one without a gradient: parameters and moments as one list, and the last norm.
    pub(crate) fn steps<B: ParameterOps>(max: Option<f64>, device: &B::Device) -> (Vec<f32>, f32) {
        let shapes: Vec<[usize; 2]> = SHAPES.iter().copied().cycle().take(70).collect();
        let start =
            |(at, &shape): (usize, &[usize; 2])| (AnyRank::from(tensor::<B>(shape, at as u64, device)), None);
        let mut state: Vec<_> = shapes.iter().enumerate().map(start).collect();
        let mut last = 0.0;
        for step in 1..=3 {
            let grad = |at: usize| {
                (at != 4).then(|| AnyRank::from(tensor::<B>(shapes[at], 1000 * step + at as u64, device)))
            };
            let grads: Vec<_> = (0..shapes.len()).map(grad).collect();
            let norm = super::grad_norm(grads.iter().flatten().cloned().collect());
            last = norm.clone().into_data().iter::<f32>().next().unwrap();
            let params = state
                .into_iter()
                .zip(grads)
                .enumerate()
                .map(|(at, ((value, moments), grad))| AdamwTensors {
                    value,
                    grad,
                    moments,
                    step: AdamwStep {
                        lr: 1.5e-3 * (at + 1) as f64,
                        beta1: 0.9,
                        beta2: 0.98,
                        eps: 1e-8,
                        weight_decay: if at % 2 == 0 { 0.05 } else { 0.0 },
                        step,
                        grad_scale: 1.0,
                    },
                })
                .collect();
            let updated = super::adamw_all(params, max.map(|max| (norm, max)));
            state = updated.into_iter().map(|(value, moments)| (value, Some(moments))).collect();
        }
        let mut all = Vec::new();
        for (value, moments) in state {
            all.extend(value.flat().into_data().iter::<f32>());
            moments.into_iter().flatten().for_each(|moment| all.extend(moment.into_data().iter::<f32>()));
        }
        (all, last)
    }

    #[test]
    fn all_at_once_is_one_after_the_other() {
        let device = Default::default();
        for max in [None, Some(3.0), Some(1e9)] {
            let (all, norm) = steps::<Flex>(max, &device);
            // The step of one tensor, with the clipping written out in f64.
            let shapes: Vec<[usize; 2]> = SHAPES.iter().copied().cycle().take(70).collect();
            let mut at = 0;
            let scales = [1u64, 2, 3].map(|step| {
                let grads = (0..70)
                    .filter(|&at| at != 4)
                    .map(|at| 1000 * step + at as u64)
                    .zip((0..70).filter(|&at| at != 4).map(|at| shapes[at]));
                let squares: f64 = grads
                    .flat_map(|(seed, shape)| random(shape.iter().product(), seed, 1.0))
                    .map(|x| f64::from(x as f32).powi(2))
                    .sum();
                (squares.sqrt(), max.map_or(1.0, |max| (max / (squares.sqrt() + 1e-6)).min(1.0)))
            });
            assert!(
                (f64::from(norm) - scales[2].0).abs() < 1e-5 * scales[2].0,
                "{norm}, not {}",
                scales[2].0
            );
            for (number, &shape) in shapes.iter().enumerate() {
                let start = tensor::<Flex>(shape, number as u64, &device);
                let (mut value, mut m, mut v) = (start.clone(), start.zeros_like(), start.zeros_like());
                for (step, (_, scale)) in (1u64..).zip(scales) {
                    let grad = match number {
                        4 => start.zeros_like(),
                        _ => tensor::<Flex>(shape, 1000 * step + number as u64, &device).mul_scalar(scale),
                    };
                    let step = AdamwStep {
                        lr: 1.5e-3 * (number + 1) as f64,
                        beta1: 0.9,
                        beta2: 0.98,
                        eps: 1e-8,
                        weight_decay: if number % 2 == 0 { 0.05 } else { 0.0 },
                        step,
                        grad_scale: 1.0,
                    };
                    (value, m, v) = crate::adamw::reference(value, grad, m, v, step);
                }
                for expected in [value, m, v] {
                    for expected in expected.into_data().iter::<f32>() {
                        let found = all[at];
                        at += 1;
                        assert!(
                            (found - expected).abs() < 2e-6,
                            "parameter {number}: {found}, not {expected}"
                        );
                    }
                }
            }
            assert_eq!(at, all.len());
        }
    }

    /// Weighted sums of some tensors, as one list.
    #[cfg(feature = "cuda")]
    pub(crate) fn averages<B: ParameterOps>(factors: [f64; 2], device: &B::Device) -> Vec<f32> {
        let pair = |at: usize| {
            let of = |seed: u64| AnyRank::from(tensor::<B>(SHAPES[at], seed + at as u64, device));
            [of(5), of(50)]
        };
        let sums = super::weighted_sums((0..SHAPES.len()).map(pair).collect(), factors);
        sums.into_iter().flat_map(|sum| sum.flat().into_data().into_vec::<f32>().unwrap()).collect()
    }

    #[test]
    fn scalars_in_order() {
        let scalars: Vec<_> =
            [3.0, 1.0, 2.0].map(|x| Tensor::<Flex, 1>::from_data([x], &Default::default())).to_vec();
        assert_eq!(super::join_scalars(scalars).into_data().to_vec::<f32>().unwrap(), [3.0, 1.0, 2.0]);
    }

    #[test]
    fn weighted_sums_by_hand() {
        let x = Tensor::<Flex, 2>::from_data([[1.0, 2.0]], &Default::default());
        let y = Tensor::<Flex, 2>::from_data([[10.0, -4.0]], &Default::default());
        let sums = super::weighted_sums(vec![[x.into(), y.into()]], [0.5, 0.25]);
        let sum: Tensor<Flex, 2> = sums.into_iter().next().unwrap().ranked();
        assert_eq!(sum.into_data().to_vec::<f32>().unwrap(), [3.0, 0.0]);
    }
}
