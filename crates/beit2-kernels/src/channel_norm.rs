//! `(x − mean)·scale + shift` per channel, with or without a ReLU: the second half of batch normalization.
//!
//! Contract: one pass forward and one backward. The backward pass works out from the saved input where the
//! ReLU was at zero, so the result need not be kept. Gradients of the three vectors are summed in fixed
//! groups of rows, so they do not depend on the number of threads.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::{record, register};
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// Gradients of a channel norm with respect to x, and to mean, scale and shift.
pub type ChannelGradients<B> = (FloatTensor<B>, [FloatTensor<B>; 3]);

/// Normalization of channels on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait ChannelNormOps: BurnBackend {
    /// [`channel_norm`](crate::channel_norm).
    fn fused_channel_norm(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        composed::channel_norm::<Self>(x, mean, scale, shift, relu)
    }

    /// Gradients of [`channel_norm`](crate::channel_norm).
    fn fused_channel_norm_backward(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        relu: bool,
    ) -> ChannelGradients<Self> {
        composed::channel_norm_backward::<Self>(x, mean, scale, shift, grad, relu)
    }
}

/// `(x − mean)·scale + shift` for `x [.., C]` and vectors `[C]`; negative results become 0 if `relu`.
///
/// # Panics
/// If a vector is not as long as the last axis of `x`.
pub fn channel_norm<B: ChannelNormOps, const D: usize>(
    x: Tensor<B, D>,
    mean: Tensor<B, 1>,
    scale: Tensor<B, 1>,
    shift: Tensor<B, 1>,
    relu: bool,
) -> Tensor<B, D> {
    let (dims, [m], [a], [b]) = (x.dims(), mean.dims(), scale.dims(), shift.dims());
    assert!(
        [m, a, b] == [dims[D - 1]; 3],
        "channel_norm: mean [{m}], scale [{a}] and shift [{b}] do not fit the last axis of {dims:?}"
    );
    wrap(B::fused_channel_norm(unwrap(x), unwrap(mean), unwrap(scale), unwrap(shift), relu))
}

/// [`channel_norm`](crate::channel_norm) composed from Burn's primitives.
pub fn reference<B: BurnBackend, const D: usize>(
    x: Tensor<B, D>,
    mean: Tensor<B, 1>,
    scale: Tensor<B, 1>,
    shift: Tensor<B, 1>,
    relu: bool,
) -> Tensor<B, D> {
    let y = (x - mean.unsqueeze()) * scale.unsqueeze() + shift.unsqueeze();
    if relu { burn::tensor::activation::relu(y) } else { y }
}

/// Gradients of `x [n, C]`, `mean`, `scale` and `shift`.
pub(crate) fn reference_backward<B: BurnBackend>(
    x: Tensor<B, 2>,
    mean: Tensor<B, 1>,
    scale: Tensor<B, 1>,
    shift: Tensor<B, 1>,
    grad: Tensor<B, 2>,
    relu: bool,
) -> (Tensor<B, 2>, [Tensor<B, 1>; 3]) {
    let centred = x - mean.unsqueeze();
    let grad = match relu {
        true => {
            let y = centred.clone() * scale.clone().unsqueeze() + shift.unsqueeze();
            grad.mask_fill(y.lower_equal_elem(0.0), 0.0)
        }
        false => grad,
    };
    let dshift = grad.clone().sum_dim(0).squeeze_dim::<1>(0);
    let dscale = (grad.clone() * centred).sum_dim(0).squeeze_dim::<1>(0);
    let dmean = dshift.clone() * scale.clone().neg();
    (grad * scale.unsqueeze(), [dmean, dscale, dshift])
}

#[derive(Debug)]
struct ChannelNormBackward {
    relu: bool,
}

impl<B: ChannelNormOps> Backward<B, 4> for ChannelNormBackward {
    /// x, mean, scale, shift.
    type State = [FloatTensor<B>; 4];

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, mean, scale, shift] = ops.state;
        let (dx, [dmean, dscale, dshift]) =
            B::fused_channel_norm_backward(x, mean, scale, shift, grad, self.relu);
        register!(B, grads, ops.parents, [dx, dmean, dscale, dshift]);
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn channel_norm<B: BurnBackend>(
        x: FloatTensor<B>,
        mean: FloatTensor<B>,
        scale: FloatTensor<B>,
        shift: FloatTensor<B>,
        relu: bool,
    ) -> FloatTensor<B> {
        let shape = x.shape();
        from_rows(shape, super::reference::<B, 2>(rows(x), wrap(mean), wrap(scale), wrap(shift), relu))
    }

    pub(crate) fn channel_norm_backward<B: BurnBackend>(
        x: FloatTensor<B>,
        mean: FloatTensor<B>,
        scale: FloatTensor<B>,
        shift: FloatTensor<B>,
        grad: FloatTensor<B>,
        relu: bool,
    ) -> ChannelGradients<B> {
        let shape = x.shape();
        let (dx, vectors) =
            super::reference_backward::<B>(rows(x), wrap(mean), wrap(scale), wrap(shift), rows(grad), relu);
        (from_rows(shape, dx), vectors.map(unwrap))
    }
}

impl<B: ChannelNormOps, C: CheckpointStrategy> ChannelNormOps for Autodiff<B, C> {
    fn fused_channel_norm(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        let backward = ChannelNormBackward { relu };
        record!(B, C, backward, [x, mean, scale, shift],
        tracked {
            let state = [x.primitive, mean.primitive, scale.primitive, shift.primitive];
            let [x, mean, scale, shift] = state.clone();
            (B::fused_channel_norm(x, mean, scale, shift, relu), state)
        },
        untracked {
            B::fused_channel_norm(x.primitive, mean.primitive, scale.primitive, shift.primitive, relu)
        })
    }
}

impl ChannelNormOps for Flex {
    fn fused_channel_norm(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        relu: bool,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &mean, &scale, &shift]) {
            fast::forward(x, mean, scale, shift, relu)
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
            fast::backward(x, mean, scale, shift, grad, relu)
        } else {
            composed::channel_norm_backward::<Self>(x, mean, scale, shift, grad, relu)
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{GRAIN, owned, row_groups, tensor, values, view};
    use crate::memory::Buffer;
    use crate::simd::{dispatch, madd};

    /// The line of every channel, and the value below which results are cut off.
    #[derive(Clone, Copy)]
    struct Lines<'a> {
        mean: &'a [f32],
        scale: &'a [f32],
        shift: &'a [f32],
        floor: f32,
    }

    fn floor(relu: bool) -> f32 {
        if relu { 0.0 } else { f32::NEG_INFINITY }
    }

    pub(crate) fn forward(
        x: FlexTensor,
        mean: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        relu: bool,
    ) -> FlexTensor {
        let [x, mean, scale, shift] = [x, mean, scale, shift].map(owned);
        let lines = Lines { mean: view(&mean), scale: view(&scale), shift: view(&shift), floor: floor(relu) };
        let shape = x.layout().shape().clone();
        let mut y = Buffer::any(shape.num_elements());
        let width = lines.mean.len().max(1);
        let chunk = (GRAIN / width).max(1) * width;
        y.par_chunks_mut(chunk).zip(view(&x).par_chunks(chunk)).for_each(|(y, x)| follow(x, lines, y));
        tensor(y, shape)
    }

    dispatch!(fn follow(x: &[f32], lines: Lines<'_>, y: &mut [f32]) => follow_body);

    #[inline(always)]
    fn follow_body<const FMA: bool>(x: &[f32], lines: Lines<'_>, y: &mut [f32]) {
        let Lines { mean, scale, shift, floor } = lines;
        let width = mean.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let channels = mean.iter().zip(scale.iter().zip(shift));
            for ((y, x), (mean, (scale, shift))) in y.iter_mut().zip(x).zip(channels) {
                let value = madd::<FMA>(x - mean, *scale, *shift);
                // Written so that a NaN stays.
                *y = if value < floor { floor } else { value };
            }
        }
    }

    pub(crate) fn backward(
        x: FlexTensor,
        mean: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        grad: FlexTensor,
        relu: bool,
    ) -> (FlexTensor, [FlexTensor; 3]) {
        let [x, mean, scale, shift, mut grad] = [x, mean, scale, shift, grad].map(owned);
        let lines = Lines { mean: view(&mean), scale: view(&scale), shift: view(&shift), floor: floor(relu) };
        let width = lines.mean.len();
        let (rows, groups) = row_groups(view(&x).len() / width.max(1));
        let chunk = (rows * width).max(1);
        let mut partial = Buffer::zeros(groups * 2 * width);
        values(&mut grad)
            .par_chunks_mut(chunk)
            .zip(view(&x).par_chunks(chunk))
            .zip(partial.par_chunks_mut((2 * width).max(1)))
            .for_each(|((grad, x), partial)| {
                let (dscale, dshift) = partial.split_at_mut(width);
                gradients(x, lines, grad, dscale, dshift);
            });
        let [mut dmean, mut dscale, mut dshift] = [(); 3].map(|()| Buffer::zeros(width));
        for partial in partial.chunks_exact((2 * width).max(1)) {
            for i in 0..width {
                dscale[i] += partial[i];
                dshift[i] += partial[width + i];
            }
        }
        for ((dmean, dshift), scale) in dmean.iter_mut().zip(dshift.iter()).zip(lines.scale) {
            *dmean = -scale * dshift;
        }
        (grad, [dmean, dscale, dshift].map(|vector| tensor(vector, [width])))
    }

    dispatch!(
        /// `grad` becomes the gradient of `x`; those of scale and shift are added to `dscale` and `dshift`.
        fn gradients(
            x: &[f32],
            lines: Lines<'_>,
            grad: &mut [f32],
            dscale: &mut [f32],
            dshift: &mut [f32],
        ) => gradients_body
    );

    #[inline(always)]
    fn gradients_body<const FMA: bool>(
        x: &[f32],
        lines: Lines<'_>,
        grad: &mut [f32],
        dscale: &mut [f32],
        dshift: &mut [f32],
    ) {
        let Lines { mean, scale, shift, floor } = lines;
        let width = mean.len();
        // Slices of one known length, so that the loop over them needs no checks.
        let (scale, shift) = (&scale[..width], &shift[..width]);
        let (dscale, dshift) = (&mut dscale[..width], &mut dshift[..width]);
        for (grad, x) in grad.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (grad, x) = (&mut grad[..width], &x[..width]);
            for i in 0..width {
                let centred = x[i] - mean[i];
                // The same rounding as forward, so that both agree where the ReLU is at zero.
                let open = madd::<FMA>(centred, scale[i], shift[i]) > floor;
                let g = if open { grad[i] } else { 0.0 };
                dscale[i] = madd::<FMA>(g, centred, dscale[i]);
                dshift[i] += g;
                grad[i] = g * scale[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, random};

    #[test]
    fn matches_reference_and_differences() {
        for (n, width) in [(1, 1), (2, 5), (197, 33), (1000, 40), (33, 200)] {
            let vector = |seed, spread| random(width, seed, spread);
            let inputs = [random(n * width, 1, 2.0), vector(2, 1.0), vector(3, 1.5), vector(4, 1.0)];
            for relu in [false, true] {
                check(
                    "channel_norm",
                    &inputs,
                    |x| {
                        let [mean, scale, shift] = [1, 2, 3].map(|i| x[i].clone());
                        super::channel_norm(x[0].clone().reshape([n, width]), mean, scale, shift, relu)
                            .reshape([n * width])
                    },
                    |x| {
                        let [mean, scale, shift] = [1, 2, 3].map(|i| x[i].clone());
                        super::reference(x[0].clone().reshape([n, width]), mean, scale, shift, relu)
                            .reshape([n * width])
                    },
                    3e-6,
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "channel_norm: mean [3], scale [4] and shift [4] do not fit the last axis")]
    fn names_the_shapes_that_do_not_fit() {
        let d = Default::default();
        let ones = |n| burn::tensor::Tensor::<burn::backend::Flex, 1>::ones([n], &d);
        super::channel_norm(ones(8).reshape([2, 4]), ones(3), ones(4), ones(4), true);
    }
}
