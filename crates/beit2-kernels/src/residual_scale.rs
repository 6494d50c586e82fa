//! `x + γ⊙branch`: a residual branch with layer scale.
//!
//! Contract: one pass over memory each way; the gradient of `x` is the incoming one, unchanged.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::record;
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// Residual branches on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait ResidualScaleOps: BurnBackend {
    /// Sum of two tensors of one shape.
    fn fused_sum(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::sum::<Self>(x, y)
    }

    /// [`residual_scale`](crate::residual_scale) on `x`, `branch` `[.., D]`.
    fn fused_residual_scale(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::residual_scale::<Self>(x, branch, gamma)
    }

    /// Gradients of [`residual_scale`](crate::residual_scale): of `branch` and `gamma`; that of `x` is
    /// `grad` itself.
    fn fused_residual_scale_backward(
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::residual_scale_backward::<Self>(branch, gamma, grad)
    }
}

/// `x + γ⊙branch` (layer scale of CaiT, Touvron et al. 2021): `x`, `branch` `[.., D]`, `gamma [D]` →
/// `[.., D]`.
///
/// # Panics
/// If the shapes of `x` and `branch` differ, or `gamma` is not as long as their last axis.
pub fn residual_scale<B: ResidualScaleOps, const D: usize>(
    x: Tensor<B, D>,
    branch: Tensor<B, D>,
    gamma: Tensor<B, 1>,
) -> Tensor<B, D> {
    let (dims, other, [g]) = (x.dims(), branch.dims(), gamma.dims());
    assert!(
        dims == other && g == dims[D - 1],
        "residual_scale: x {dims:?}, branch {other:?} and gamma [{g}] do not fit"
    );
    wrap(B::fused_residual_scale(unwrap(x), unwrap(branch), unwrap(gamma)))
}

/// `x + branch`: a residual branch without layer scale, of one shape with `x`.
///
/// # Panics
/// If the shapes differ.
pub fn residual<B: ResidualScaleOps, const D: usize>(x: Tensor<B, D>, branch: Tensor<B, D>) -> Tensor<B, D> {
    let (dims, other) = (x.dims(), branch.dims());
    assert!(dims == other, "residual: x {dims:?} and branch {other:?} do not fit");
    wrap(B::fused_sum(unwrap(x), unwrap(branch)))
}

/// [`residual_scale`](crate::residual_scale) composed from Burn's primitives.
pub fn reference<B: BurnBackend, const D: usize>(
    x: Tensor<B, D>,
    branch: Tensor<B, D>,
    gamma: Tensor<B, 1>,
) -> Tensor<B, D> {
    x + branch * gamma.unsqueeze()
}

#[derive(Debug)]
struct ResidualScaleBackward;

impl<B: ResidualScaleOps> Backward<B, 3> for ResidualScaleBackward {
    /// branch, gamma.
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [branch, gamma] = ops.state;
        let [x, node_branch, node_gamma] = ops.parents;
        if node_branch.is_some() || node_gamma.is_some() {
            let (dbranch, dgamma) = B::fused_residual_scale_backward(branch, gamma, grad.clone());
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

    pub(crate) fn sum<B: BurnBackend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
        B::float_add(x, y)
    }

    pub(crate) fn residual_scale<B: BurnBackend>(
        x: FloatTensor<B>,
        branch: FloatTensor<B>,
        gamma: FloatTensor<B>,
    ) -> FloatTensor<B> {
        from_rows(x.shape(), super::reference::<B, 2>(rows(x), rows(branch), wrap(gamma)))
    }

    pub(crate) fn residual_scale_backward<B: BurnBackend>(
        branch: FloatTensor<B>,
        gamma: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let shape = branch.shape();
        let (branch, grad) = (rows::<B>(branch), rows::<B>(grad));
        let dgamma = (grad.clone() * branch).sum_dim(0).squeeze_dim::<1>(0);
        let dbranch = grad * wrap::<B, 1>(gamma).unsqueeze();
        (from_rows(shape, dbranch), unwrap(dgamma))
    }
}

impl<B: ResidualScaleOps, C: CheckpointStrategy> ResidualScaleOps for Autodiff<B, C> {
    fn fused_residual_scale(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record!(B, C, ResidualScaleBackward, [x, branch, gamma],
            tracked {
                let state = [branch.primitive.clone(), gamma.primitive.clone()];
                (B::fused_residual_scale(x.primitive, branch.primitive, gamma.primitive), state)
            },
            untracked { B::fused_residual_scale(x.primitive, branch.primitive, gamma.primitive) })
    }
}

impl ResidualScaleOps for Flex {
    fn fused_sum(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        if is_f32(&[&x, &y]) { fast::sum(x, y) } else { composed::sum::<Self>(x, y) }
    }

    fn fused_residual_scale(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if is_f32(&[&x, &branch, &gamma]) {
            fast::forward(x, branch, gamma)
        } else {
            composed::residual_scale::<Self>(x, branch, gamma)
        }
    }

    fn fused_residual_scale_backward(
        branch: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&branch, &gamma, &grad]) {
            fast::backward(branch, gamma, grad)
        } else {
            composed::residual_scale_backward::<Self>(branch, gamma, grad)
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{GRAIN, owned, row_groups, tensor, values, view};
    use crate::memory::Buffer;
    use crate::simd::{dispatch, madd};
    use crate::slices::add_scaled;

    /// `x + y`, over `y` when nobody else holds it.
    pub(crate) fn sum(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        let (x, mut y) = (owned(x), owned(y));
        values(&mut y).par_chunks_mut(GRAIN).zip(view(&x).par_chunks(GRAIN)).for_each(|(y, x)| add(y, x));
        y
    }

    dispatch!(fn add(y: &mut [f32], x: &[f32]) => add_to_body);

    #[inline(always)]
    fn add_to_body<const FMA: bool>(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    pub(crate) fn forward(x: FlexTensor, branch: FlexTensor, gamma: FlexTensor) -> FlexTensor {
        let (x, branch, gamma) = (owned(x), owned(branch), owned(gamma));
        let (gamma, shape) = (view(&gamma), x.layout().shape().clone());
        let mut y = Buffer::any(shape.num_elements());
        let chunk = (GRAIN / gamma.len().max(1)).max(1) * gamma.len().max(1);
        y.par_chunks_mut(chunk)
            .zip(view(&x).par_chunks(chunk).zip(view(&branch).par_chunks(chunk)))
            .for_each(|(y, (x, branch))| add_scaled(y, x, branch, gamma));
        tensor(y, shape)
    }

    /// → gradients of `branch` and `gamma`.
    pub(crate) fn backward(
        branch: FlexTensor,
        gamma: FlexTensor,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (branch, gamma, grad) = (owned(branch), owned(gamma), owned(grad));
        let (gamma, shape) = (view(&gamma), branch.layout().shape().clone());
        let width = gamma.len();
        let (rows, groups) = row_groups(shape.num_elements() / width.max(1));
        let chunk = (rows * width).max(1);
        let mut dbranch = Buffer::any(shape.num_elements());
        let mut partial = Buffer::zeros(groups * width);
        dbranch
            .par_chunks_mut(chunk)
            .zip(view(&branch).par_chunks(chunk).zip(view(&grad).par_chunks(chunk)))
            .zip(partial.par_chunks_mut(width.max(1)))
            .for_each(|((dbranch, (branch, grad)), dgamma)| {
                gradients(branch, gamma, grad, dbranch, dgamma);
            });
        let mut dgamma = Buffer::zeros(width);
        for partial in partial.chunks_exact(width.max(1)) {
            for (total, part) in dgamma.iter_mut().zip(partial) {
                *total += part;
            }
        }
        (tensor(dbranch, shape), tensor(dgamma, [width]))
    }

    dispatch!(
        /// The gradient of `gamma` is added to `dgamma`.
        fn gradients(
            branch: &[f32],
            gamma: &[f32],
            grad: &[f32],
            dbranch: &mut [f32],
            dgamma: &mut [f32],
        ) => gradients_body
    );

    #[inline(always)]
    fn gradients_body<const FMA: bool>(
        branch: &[f32],
        gamma: &[f32],
        grad: &[f32],
        dbranch: &mut [f32],
        dgamma: &mut [f32],
    ) {
        let width = gamma.len();
        let rows = branch.chunks_exact(width).zip(grad.chunks_exact(width));
        for (dbranch, (branch, grad)) in dbranch.chunks_exact_mut(width).zip(rows) {
            let inputs = branch.iter().zip(gamma).zip(grad);
            for (((branch, gamma), grad), (d, dgamma)) in
                inputs.zip(dbranch.iter_mut().zip(dgamma.iter_mut()))
            {
                *d = grad * gamma;
                *dgamma = madd::<FMA>(*grad, *branch, *dgamma);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, random};

    #[test]
    fn plain_sums() {
        for n in [1, 197, 40_000] {
            let inputs = [random(n, 1, 1.0), random(n, 2, 1.0)];
            let add = |x: &[_]| super::residual(Clone::clone(&x[0]), Clone::clone(&x[1]));
            check("residual", &inputs, add, |x| x[0].clone() + x[1].clone(), 1e-7);
        }
    }

    #[test]
    fn matches_reference_and_differences() {
        for (n, d) in [(1, 1), (3, 5), (197, 384), (1000, 40)] {
            let inputs = [random(n * d, 1, 1.0), random(n * d, 2, 1.0), random(d, 3, 1.0)];
            check(
                "residual_scale",
                &inputs,
                |x| {
                    let [a, b] = [0, 1].map(|i| x[i].clone().reshape([n, d]));
                    super::residual_scale(a, b, x[2].clone()).reshape([n * d])
                },
                |x| {
                    let [a, b] = [0, 1].map(|i| x[i].clone().reshape([n, d]));
                    super::reference(a, b, x[2].clone()).reshape([n * d])
                },
                3e-6,
            );
        }
    }
}
