//! Mean and variance of every channel over all rows: what batch normalization needs of a batch.
//!
//! Contract: the variance is that of the rows themselves (divided by n), taken around the mean in a second
//! pass. Sums go over fixed groups of rows, then over the groups in order, so they do not depend on the
//! number of threads. Both results carry gradients to the input.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, unary};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::record;
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// Moments of channels on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait ChannelMomentsOps: BurnBackend {
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
}

/// Mean and variance of the channels of `x [.., C]` over all other axes, `[C]` each.
pub fn channel_moments<B: ChannelMomentsOps, const D: usize>(
    x: Tensor<B, D>,
) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let both: Tensor<B, 2> = wrap(B::fused_channel_moments(unwrap(x)));
    let [mean, var] = [0, 1].map(|at| both.clone().narrow(0, at, 1).squeeze_dim(0));
    (mean, var)
}

/// [`channel_moments`](crate::channel_moments) composed from Burn's primitives.
pub fn reference<B: BurnBackend>(x: Tensor<B, 2>) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let mean = x.clone().mean_dim(0); // [1, C]
    let var = (x - mean.clone()).powi_scalar(2).mean_dim(0);
    (mean.squeeze_dim(0), var.squeeze_dim(0))
}

/// Gradient of `x [n, C]` from the moments `[2, C]` and their gradients `[2, C]`.
pub(crate) fn reference_backward<B: BurnBackend>(
    x: Tensor<B, 2>,
    moments: Tensor<B, 2>,
    grad: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let n = x.dims()[0] as f64;
    let [mean, _] = rows_of(moments);
    let [dmean, dvar] = rows_of(grad);
    ((x - mean) * dvar.mul_scalar(2.0) + dmean).div_scalar(n)
}

fn rows_of<B: BurnBackend>(both: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    [0, 1].map(|at| both.clone().narrow(0, at, 1))
}

#[derive(Debug)]
struct MomentsBackward;

impl<B: ChannelMomentsOps> Backward<B, 1> for MomentsBackward {
    /// The input and its moments.
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, moments] = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            B::fused_channel_moments_backward(x, moments, grad)
        });
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn channel_moments<B: BurnBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let (mean, var) = super::reference::<B>(rows(x));
        unwrap(Tensor::stack::<2>(vec![mean, var], 0))
    }

    pub(crate) fn channel_moments_backward<B: BurnBackend>(
        x: FloatTensor<B>,
        found: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> FloatTensor<B> {
        from_rows(x.shape(), super::reference_backward::<B>(rows(x), wrap(found), wrap(grad)))
    }
}

impl<B: ChannelMomentsOps, C: CheckpointStrategy> ChannelMomentsOps for Autodiff<B, C> {
    fn fused_channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        record!(B, C, MomentsBackward, [x],
            tracked {
                let moments = B::fused_channel_moments(x.primitive.clone());
                (moments.clone(), [x.primitive, moments])
            },
            untracked { B::fused_channel_moments(x.primitive) })
    }
}

impl ChannelMomentsOps for Flex {
    fn fused_channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x]) { fast::forward(x) } else { composed::channel_moments::<Self>(x) }
    }

    fn fused_channel_moments_backward(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &moments, &grad]) {
            fast::backward(x, moments, grad)
        } else {
            composed::channel_moments_backward::<Self>(x, moments, grad)
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{GRAIN, owned, row_groups, tensor, view};
    use crate::memory::Buffer;
    use crate::simd::{dispatch, madd};
    use crate::slices::add_rows;

    pub(crate) fn forward(x: FlexTensor) -> FlexTensor {
        let width = x.layout().shape().last().copied().unwrap_or(1);
        let x = owned(x);
        let x = view(&x);
        let n = (x.len() / width.max(1)) as f32;
        let mut moments = Buffer::zeros(2 * width);
        let (mean, var) = moments.split_at_mut(width);
        sum_groups(x, mean, add_rows);
        mean.iter_mut().for_each(|mean| *mean /= n);
        sum_groups(x, var, |rows, total| add_deviations(rows, mean, total));
        var.iter_mut().for_each(|var| *var /= n);
        tensor(moments, [2, width])
    }

    /// Adds up what `add` makes of groups of rows.
    fn sum_groups(x: &[f32], total: &mut [f32], add: impl Fn(&[f32], &mut [f32]) + Sync) {
        let width = total.len().max(1);
        let (rows, groups) = row_groups(x.len() / width);
        let mut partial = Buffer::zeros(groups * width);
        partial
            .par_chunks_mut(width)
            .zip(x.par_chunks((rows * width).max(1)))
            .for_each(|(partial, x)| add(x, partial));
        for partial in partial.chunks_exact(width) {
            for (total, part) in total.iter_mut().zip(partial) {
                *total += part;
            }
        }
    }

    dispatch!(fn add_deviations(x: &[f32], mean: &[f32], total: &mut [f32]) => add_deviations_body);

    #[inline(always)]
    fn add_deviations_body<const FMA: bool>(x: &[f32], mean: &[f32], total: &mut [f32]) {
        for row in x.chunks_exact(total.len().max(1)) {
            for ((t, x), mean) in total.iter_mut().zip(row).zip(mean) {
                let d = x - mean;
                *t = madd::<FMA>(d, d, *t);
            }
        }
    }

    pub(crate) fn backward(x: FlexTensor, moments: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let (x, moments, grad) = (owned(x), owned(moments), owned(grad));
        let shape = x.layout().shape().clone();
        let width = shape.last().copied().unwrap_or(1);
        let n = (view(&x).len() / width.max(1)) as f32;
        let mean = &view(&moments)[..width];
        let (dmean, dvar) = view(&grad).split_at(width);
        // dx = slope·(x − mean) + level
        let slope: Vec<f32> = dvar.iter().map(|d| 2.0 * d / n).collect();
        let level: Vec<f32> = dmean.iter().map(|d| d / n).collect();
        let mut dx = Buffer::any(shape.num_elements());
        let chunk = (GRAIN / width.max(1)).max(1) * width.max(1);
        dx.par_chunks_mut(chunk)
            .zip(view(&x).par_chunks(chunk))
            .for_each(|(dx, x)| lines(x, mean, &slope, &level, dx));
        tensor(dx, shape)
    }

    dispatch!(fn lines(x: &[f32], mean: &[f32], slope: &[f32], level: &[f32], y: &mut [f32]) => lines_body);

    #[inline(always)]
    fn lines_body<const FMA: bool>(x: &[f32], mean: &[f32], slope: &[f32], level: &[f32], y: &mut [f32]) {
        let width = mean.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let channels = mean.iter().zip(slope.iter().zip(level));
            for ((y, x), (mean, (slope, level))) in y.iter_mut().zip(x).zip(channels) {
                *y = madd::<FMA>(x - mean, *slope, *level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, random};
    use burn::tensor::Tensor;

    #[test]
    fn matches_reference_and_differences() {
        for (n, width) in [(1, 1), (2, 5), (197, 33), (1000, 40), (33, 200)] {
            let inputs = [random(n * width, 1, 2.0)];
            check(
                "channel_moments",
                &inputs,
                |x| {
                    let (mean, var) = super::channel_moments(x[0].clone().reshape([1, n, width]));
                    Tensor::cat(vec![mean, var], 0)
                },
                |x| {
                    let (mean, var) = super::reference(x[0].clone().reshape([n, width]));
                    Tensor::cat(vec![mean, var], 0)
                },
                3e-6,
            );
        }
    }
}
