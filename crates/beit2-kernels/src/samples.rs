//! Samples left out of a computation: some samples of a batch taken, and a residual branch with layer
//! scale added to those only.
//!
//! Contract: `kept` are numbers of samples, ascending, each once; they are known on the host, so that
//! nothing waits for a device. Whole samples are copied, in parallel. Samples that were not taken get a
//! gradient of 0 from [`gather_samples`]; those that nothing is added to pass [`scatter_add_samples`]
//! unchanged, to the bit.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::record;
use crate::residual_scale::ResidualScaleOps;
use crate::tensor::{unwrap, wrap};

fn check(operation: &str, kept: &[usize], batch: usize) {
    let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = kept.last().is_none_or(|&last| last < batch);
    assert!(ascending && inside, "{operation}: samples {kept:?} of {batch} are not ascending or not there");
}

/// Gathering and adding to samples on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait SampleOps: ResidualScaleOps {
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
}

/// The samples `kept` of `x [B, T, D]` → `[K, T, D]`.
///
/// # Panics
/// If `kept` is not ascending or not inside the batch.
pub fn gather_samples<B: SampleOps>(x: Tensor<B, 3>, kept: &[usize]) -> Tensor<B, 3> {
    check("gather_samples", kept, x.dims()[0]);
    wrap(B::fused_gather_samples(unwrap(x), kept))
}

/// `x [B, T, D]` with `γ⊙branch` added to its samples `kept`: `branch [K, T, D]`, `gamma [D]` →
/// `[B, T, D]`.
///
/// # Panics
/// If `kept` is not ascending or not inside the batch, or the shapes do not fit.
pub fn scatter_add_samples<B: SampleOps>(
    x: Tensor<B, 3>,
    branch: Tensor<B, 3>,
    gamma: Tensor<B, 1>,
    kept: &[usize],
) -> Tensor<B, 3> {
    let ([batch, tokens, width], other, [g]) = (x.dims(), branch.dims(), gamma.dims());
    check("scatter_add_samples", kept, batch);
    assert!(
        other == [kept.len(), tokens, width] && g == width,
        "scatter_add_samples: x {:?}, branch {other:?} of {} samples and gamma [{g}] do not fit",
        x.dims(),
        kept.len()
    );
    wrap(B::fused_scatter_add_samples(unwrap(x), unwrap(branch), unwrap(gamma), kept))
}

/// [`gather_samples`](crate::gather_samples) composed from Burn's primitives.
pub fn reference_gather<B: BurnBackend>(x: Tensor<B, 3>, kept: &[usize]) -> Tensor<B, 3> {
    let numbers = numbers(kept, &x);
    x.select(0, numbers)
}

/// [`scatter_add_samples`](crate::scatter_add_samples) composed from Burn's primitives.
pub fn reference_scatter_add<B: BurnBackend>(
    x: Tensor<B, 3>,
    branch: Tensor<B, 3>,
    gamma: Tensor<B, 1>,
    kept: &[usize],
) -> Tensor<B, 3> {
    let numbers = numbers(kept, &x);
    x.select_assign(0, numbers, branch * gamma.unsqueeze(), IndexingUpdateOp::Add)
}

pub(crate) fn reference_gather_backward<B: BurnBackend>(
    grad: Tensor<B, 3>,
    kept: &[usize],
    batch: usize,
) -> Tensor<B, 3> {
    let ([_, tokens, width], numbers) = (grad.dims(), numbers(kept, &grad));
    let zeros = Tensor::zeros([batch, tokens, width], (&grad.device(), grad.dtype()));
    zeros.select_assign(0, numbers, grad, IndexingUpdateOp::Add)
}

fn numbers<B: BurnBackend>(kept: &[usize], x: &Tensor<B, 3>) -> Tensor<B, 1, Int> {
    let numbers: Vec<i32> = kept.iter().map(|&number| number as i32).collect();
    Tensor::from_data(TensorData::new(numbers, [kept.len()]), &x.device())
}

#[derive(Debug)]
struct GatherSamplesBackward;

impl<B: SampleOps> Backward<B, 1> for GatherSamplesBackward {
    /// The samples and the batch they are from.
    type State = (Vec<usize>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (kept, batch) = ops.state;
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::fused_gather_samples_backward(grad, &kept, batch));
        }
    }
}

#[derive(Debug)]
struct ScatterAddSamplesBackward;

impl<B: SampleOps> Backward<B, 3> for ScatterAddSamplesBackward {
    /// branch, gamma, the samples.
    type State = (FloatTensor<B>, FloatTensor<B>, Vec<usize>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (branch, gamma, kept) = ops.state;
        let [x, node_branch, node_gamma] = ops.parents;
        if node_branch.is_some() || node_gamma.is_some() {
            let taken = B::fused_gather_samples(grad.clone(), &kept);
            let (dbranch, dgamma) = B::fused_residual_scale_backward(branch, gamma, taken);
            if let Some(node) = node_branch {
                grads.register::<B>(node.id, dbranch);
            }
            if let Some(node) = node_gamma {
                grads.register::<B>(node.id, dgamma);
            }
        }
        if let Some(node) = x {
            grads.register::<B>(node.id, grad);
        }
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn gather_samples<B: BurnBackend>(x: FloatTensor<B>, kept: &[usize]) -> FloatTensor<B> {
        unwrap(super::reference_gather::<B>(wrap(x), kept))
    }

    pub(crate) fn gather_samples_backward<B: BurnBackend>(
        grad: FloatTensor<B>,
        kept: &[usize],
        batch: usize,
    ) -> FloatTensor<B> {
        unwrap(super::reference_gather_backward::<B>(wrap(grad), kept, batch))
    }

    pub(crate) fn scatter_add_samples<B: BurnBackend>(
        x: FloatTensor<B>,
        branch: FloatTensor<B>,
        gamma: FloatTensor<B>,
        kept: &[usize],
    ) -> FloatTensor<B> {
        unwrap(super::reference_scatter_add::<B>(wrap(x), wrap(branch), wrap(gamma), kept))
    }
}

impl<B: SampleOps, C: CheckpointStrategy> SampleOps for Autodiff<B, C> {
    fn fused_gather_samples(x: FloatTensor<Self>, kept: &[usize]) -> FloatTensor<Self> {
        let batch = x.primitive.shape()[0];
        record!(B, C, GatherSamplesBackward, [x],
            tracked { (B::fused_gather_samples(x.primitive, kept), (kept.to_vec(), batch)) },
            untracked { B::fused_gather_samples(x.primitive, kept) })
    }

    fn fused_scatter_add_samples(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        kept: &[usize],
    ) -> FloatTensor<Self> {
        record!(B, C, ScatterAddSamplesBackward, [x, branch, gamma],
            tracked {
                let state = (branch.primitive.clone(), gamma.primitive.clone(), kept.to_vec());
                (B::fused_scatter_add_samples(x.primitive, branch.primitive, gamma.primitive, kept), state)
            },
            untracked { B::fused_scatter_add_samples(x.primitive, branch.primitive, gamma.primitive, kept) })
    }
}

impl SampleOps for Flex {
    fn fused_gather_samples(x: FloatTensor<Self>, kept: &[usize]) -> FloatTensor<Self> {
        if is_f32(&[&x]) { fast::take(x, kept) } else { composed::gather_samples::<Self>(x, kept) }
    }

    fn fused_gather_samples_backward(
        grad: FloatTensor<Self>,
        kept: &[usize],
        batch: usize,
    ) -> FloatTensor<Self> {
        if is_f32(&[&grad]) {
            fast::take_backward(grad, kept, batch)
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
            fast::add(x, branch, gamma, kept)
        } else {
            composed::scatter_add_samples::<Self>(x, branch, gamma, kept)
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{owned, tensor, view};
    use crate::memory::Buffer;
    use crate::slices::add_scaled;

    /// The shape of a batch of `samples` samples like those of `x`, and the length of one.
    fn like(x: &FlexTensor, samples: usize) -> ([usize; 3], usize) {
        let shape = x.layout().shape();
        ([samples, shape[1], shape[2]], shape[1] * shape[2])
    }

    pub(crate) fn take(x: FlexTensor, kept: &[usize]) -> FlexTensor {
        let x = owned(x);
        let (shape, length) = like(&x, kept.len());
        let (from, mut taken) = (view(&x), Buffer::any(kept.len() * length));
        let samples = taken.par_chunks_mut(length.max(1)).zip(kept);
        samples.for_each(|(to, at)| to.copy_from_slice(&from[at * length..][..length]));
        tensor(taken, shape)
    }

    /// For each sample of a batch its place among the kept ones.
    fn places(kept: &[usize], batch: usize) -> Vec<Option<usize>> {
        let mut places = vec![None; batch];
        for (place, &number) in kept.iter().enumerate() {
            places[number] = Some(place);
        }
        places
    }

    pub(crate) fn take_backward(grad: FlexTensor, kept: &[usize], batch: usize) -> FlexTensor {
        let grad = owned(grad);
        let (shape, length) = like(&grad, batch);
        let (from, mut all) = (view(&grad), Buffer::any(batch * length));
        let samples = all.par_chunks_mut(length.max(1)).zip(places(kept, batch));
        samples.for_each(|(to, place)| match place {
            Some(place) => to.copy_from_slice(&from[place * length..][..length]),
            None => to.fill(0.0),
        });
        tensor(all, shape)
    }

    pub(crate) fn add(x: FlexTensor, branch: FlexTensor, gamma: FlexTensor, kept: &[usize]) -> FlexTensor {
        let (x, branch, gamma) = (owned(x), owned(branch), owned(gamma));
        let batch = x.layout().shape()[0];
        let (shape, length) = like(&x, batch);
        let (branch, gamma) = (view(&branch), view(&gamma));
        let mut y = Buffer::any(batch * length);
        let samples = y.par_chunks_mut(length.max(1)).zip(view(&x).par_chunks(length.max(1)));
        samples.zip(places(kept, batch)).for_each(|((y, x), place)| match place {
            Some(place) => add_scaled(y, x, &branch[place * length..][..length], gamma),
            None => y.copy_from_slice(x),
        });
        tensor(y, shape)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Tensor, TensorData};

    use crate::testing::{check, random};

    const SHAPES: [(usize, usize, usize, &[usize]); 6] = [
        (1, 1, 1, &[0]),
        (3, 5, 7, &[1]),
        (4, 3, 40, &[0, 2, 3]),
        (2, 197, 64, &[0, 1]),
        (5, 65, 192, &[0, 1, 3]),
        (32, 33, 48, &[1, 2, 3, 5, 8, 13, 21, 30, 31]),
    ];

    #[test]
    fn taking_matches_reference_and_differences() {
        for (b, t, d, kept) in SHAPES {
            check(
                "gather_samples",
                &[random(b * t * d, 1, 1.0)],
                |x| super::gather_samples(x[0].clone().reshape([b, t, d]), kept).reshape([-1]),
                |x| super::reference_gather(x[0].clone().reshape([b, t, d]), kept).reshape([-1]),
                0.0,
            );
        }
    }

    #[test]
    fn adding_matches_reference_and_differences() {
        for (b, t, d, kept) in SHAPES {
            let k = kept.len();
            check(
                "scatter_add_samples",
                &[random(b * t * d, 1, 1.0), random(k * t * d, 2, 1.0), random(d, 3, 1.0)],
                |x| {
                    let (a, b) = (x[0].clone().reshape([b, t, d]), x[1].clone().reshape([k, t, d]));
                    super::scatter_add_samples(a, b, x[2].clone(), kept).reshape([-1])
                },
                |x| {
                    let (a, b) = (x[0].clone().reshape([b, t, d]), x[1].clone().reshape([k, t, d]));
                    super::reference_scatter_add(a, b, x[2].clone(), kept).reshape([-1])
                },
                3e-6, // as residual_scale: one rounding, and sums of γ's gradient
            );
        }
    }

    #[test]
    fn kept_samples_are_those_of_residual_scale_to_the_bit_and_others_are_untouched() {
        let tensor = |seed, dims: [usize; 3]| {
            let values = random(dims.iter().product(), seed, 1.0);
            Tensor::<Flex, 3>::from_data(TensorData::new(values, dims).convert::<f32>(), &Default::default())
        };
        let (x, branch, gamma) = (tensor(1, [5, 9, 24]), tensor(2, [5, 9, 24]), tensor(3, [1, 1, 24]));
        let (kept, gamma) = ([0, 2, 4], gamma.reshape([24]));
        let some = super::scatter_add_samples(
            x.clone(),
            super::gather_samples(branch.clone(), &kept),
            gamma.clone(),
            &kept,
        );
        let all = crate::residual_scale(x.clone(), branch, gamma);
        let values = |x: &Tensor<Flex, 3>, at| x.clone().narrow(0, at, 1).into_data();
        for at in 0..5 {
            let expected = if kept.contains(&at) { &all } else { &x };
            assert_eq!(values(&some, at), values(expected, at));
        }
    }

    #[test]
    #[should_panic(expected = "samples [2, 1] of 3")]
    fn samples_out_of_order_are_refused() {
        super::gather_samples(Tensor::<Flex, 3>::zeros([3, 1, 1], &Default::default()), &[2, 1]);
    }
}
