//! Layer normalization over the last axis.
//!
//! Contract: the forward pass gives the mean and inverse standard deviation of each row besides the
//! result; the backward pass reads the saved input with them and writes over the incoming gradient
//! when nobody else holds it. Gradients of weight and bias are summed in fixed groups of rows, then
//! over the groups in order, so they do not depend on the number of threads.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend as BurnBackend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::flex::is_f32;
use crate::graph::{constant, record_with, register};
use crate::tensor::{from_rows, rows, unwrap, wrap};

/// Layer normalization on a backend's own tensors. Shapes are those of the functions of the same names.
pub trait LayerNormOps: BurnBackend {
    /// [`layer_norm`](crate::layer_norm) with the mean and the inverse deviation of each row, both
    /// constants to a graph.
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::layer_norm::<Self>(x, weight, bias, eps)
    }

    /// Gradients of [`layer_norm`](crate::layer_norm): of `x`, `weight` and `bias`.
    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::layer_norm_backward::<Self>(x, weight, mean, rstd, grad)
    }
}

/// Layer normalization over the last axis (`weight`, `bias`: `[D]`).
///
/// # Panics
/// If `weight` or `bias` is not as long as the last axis of `x`.
pub fn layer_norm<B: LayerNormOps, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let (dims, [w], [b]) = (x.dims(), weight.dims(), bias.dims());
    assert!(
        w == dims[D - 1] && b == w,
        "layer_norm: weight [{w}] and bias [{b}] do not fit the last axis of {dims:?}"
    );
    wrap(B::fused_layer_norm(unwrap(x), unwrap(weight), unwrap(bias), eps).0)
}

/// [`layer_norm`](crate::layer_norm) composed from Burn's primitives.
pub fn reference<B: BurnBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    let centered = x.clone() - x.mean_dim(D - 1);
    let var = centered.clone().powi_scalar(2).mean_dim(D - 1);
    let normalized = centered / var.add_scalar(eps).sqrt();
    normalized * weight.unsqueeze() + bias.unsqueeze()
}

pub(crate) fn reference_train<B: BurnBackend>(
    x: Tensor<B, 2>, // [n, D]
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
    let mean = x.clone().mean_dim(1); // [n, 1]
    let centered = x - mean.clone();
    let var = centered.clone().powi_scalar(2).mean_dim(1);
    let rstd = var.add_scalar(eps).sqrt().recip();
    let y = centered * rstd.clone() * weight.unsqueeze() + bias.unsqueeze();
    (y, mean.squeeze_dim(1), rstd.squeeze_dim(1))
}

pub(crate) fn reference_backward<B: BurnBackend>(
    x: Tensor<B, 2>, // [n, D]
    weight: Tensor<B, 1>,
    mean: Tensor<B, 1>,
    rstd: Tensor<B, 1>,
    grad: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 1>, Tensor<B, 1>) {
    let rstd = rstd.unsqueeze_dim::<2>(1); // [n, 1]
    let normalized = (x - mean.unsqueeze_dim(1)) * rstd.clone();
    let dw = (grad.clone() * normalized.clone()).sum_dim(0);
    let db = grad.clone().sum_dim(0);
    let inner = grad * weight.unsqueeze(); // gradient of `normalized`
    let along = (inner.clone() * normalized.clone()).mean_dim(1);
    let dx = (inner.clone() - inner.mean_dim(1) - normalized * along) * rstd;
    (dx, dw.squeeze_dim(0), db.squeeze_dim(0))
}

#[derive(Debug)]
struct LayerNormBackward;

impl<B: LayerNormOps> Backward<B, 3> for LayerNormBackward {
    /// x, weight, mean, rstd.
    type State = [FloatTensor<B>; 4];

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, weight, mean, rstd] = ops.state;
        let (dx, dw, db) = B::fused_layer_norm_backward(x, weight, mean, rstd, grad);
        register!(B, grads, ops.parents, [dx, dw, db]);
    }
}

/// The reference on a backend's own tensors.
pub(crate) mod composed {
    use super::*;

    pub(crate) fn layer_norm<B: BurnBackend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        eps: f64,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let shape = x.shape();
        let (y, mean, rstd) = super::reference_train(rows::<B>(x), wrap(weight), wrap(bias), eps);
        (from_rows(shape, y), unwrap(mean), unwrap(rstd))
    }

    pub(crate) fn layer_norm_backward<B: BurnBackend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        mean: FloatTensor<B>,
        rstd: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let shape = x.shape();
        let (dx, dw, db) =
            super::reference_backward(rows::<B>(x), wrap(weight), wrap(mean), wrap(rstd), rows(grad));
        (from_rows(shape, dx), unwrap(dw), unwrap(db))
    }
}

impl<B: LayerNormOps, C: CheckpointStrategy> LayerNormOps for Autodiff<B, C> {
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (y, (mean, rstd)) = record_with!(B, C, LayerNormBackward, [x, weight, bias],
        tracked {
            let (input, scale) = (x.primitive.clone(), weight.primitive.clone());
            let (y, mean, rstd) = B::fused_layer_norm(x.primitive, weight.primitive, bias.primitive, eps);
            let state = [input, scale, mean.clone(), rstd.clone()];
            (y, (mean, rstd), state)
        },
        untracked {
            let (y, mean, rstd) = B::fused_layer_norm(x.primitive, weight.primitive, bias.primitive, eps);
            (y, (mean, rstd))
        });
        (y, Self::from_inner(mean), Self::from_inner(rstd))
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, weight, mean, rstd, grad] =
            [x, weight, mean, rstd, grad].map(|t| constant::<B, C>("layer_norm", t));
        let (dx, dw, db) = B::fused_layer_norm_backward(x, weight, mean, rstd, grad);
        let wrap = Self::from_inner;
        (wrap(dx), wrap(dw), wrap(db))
    }
}

impl LayerNormOps for Flex {
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x, &weight, &bias]) {
            fast::forward(x, weight, bias, eps)
        } else {
            composed::layer_norm::<Self>(x, weight, bias, eps)
        }
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if is_f32(&[&x, &weight, &mean, &rstd, &grad]) {
            fast::backward(x, weight, mean, rstd, grad)
        } else {
            composed::layer_norm_backward::<Self>(x, weight, mean, rstd, grad)
        }
    }
}

pub(crate) mod fast {
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::flex::{GRAIN, owned, row_groups, tensor, values, view};
    use crate::memory::Buffer;
    use crate::simd::{LANES, dispatch, madd, reduce, sum};

    pub(crate) fn forward(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        eps: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, weight, bias) = (owned(x), owned(weight), owned(bias));
        let shape = x.layout().shape().clone();
        let (w, b) = (view(&weight), view(&bias));
        let width = w.len();
        let n = view(&x).len() / width.max(1);
        let (mut y, mut mean, mut rstd) = (Buffer::any(n * width), Buffer::any(n), Buffer::any(n));
        let rows = (GRAIN / width.max(1)).max(1);
        y.par_chunks_mut((rows * width).max(1))
            .zip(view(&x).par_chunks((rows * width).max(1)))
            .zip(mean.par_chunks_mut(rows).zip(rstd.par_chunks_mut(rows)))
            .for_each(|((y, x), (mean, rstd))| normalize(x, w, b, eps as f32, y, mean, rstd));
        (tensor(y, shape), tensor(mean, [n]), tensor(rstd, [n]))
    }

    dispatch!(
        pub(crate) fn normalize(
            x: &[f32],
            w: &[f32],
            b: &[f32],
            eps: f32,
            y: &mut [f32],
            mean: &mut [f32],
            rstd: &mut [f32],
        ) => normalize_body
    );

    #[inline(always)]
    fn normalize_body<const FMA: bool>(
        x: &[f32],
        w: &[f32],
        b: &[f32],
        eps: f32,
        y: &mut [f32],
        mean: &mut [f32],
        rstd: &mut [f32],
    ) {
        let width = w.len();
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((x, y), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
            *mean = sum(x) / width as f32;
            *rstd = 1.0 / (deviations::<FMA>(x, *mean) / width as f32 + eps).sqrt();
            let (mean, rstd) = (*mean, *rstd);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = madd::<FMA>((x - mean) * rstd, *w, *b);
            }
        }
    }

    /// Sum of squared distances from `mean`: a second pass over a row in the first-level cache,
    /// because the difference of two sums would cancel.
    #[inline(always)]
    fn deviations<const FMA: bool>(x: &[f32], mean: f32) -> f32 {
        let (chunks, tail) = x.as_chunks::<LANES>();
        let mut acc = [0.0; LANES];
        for c in chunks {
            for i in 0..LANES {
                let d = c[i] - mean;
                acc[i] = madd::<FMA>(d, d, acc[i]);
            }
        }
        for (a, x) in acc.iter_mut().zip(tail) {
            *a = madd::<FMA>(x - mean, x - mean, *a);
        }
        reduce(acc)
    }

    pub(crate) fn backward(
        x: FlexTensor,
        weight: FlexTensor,
        mean: FlexTensor,
        rstd: FlexTensor,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, weight, mean, rstd) = (owned(x), owned(weight), owned(mean), owned(rstd));
        let mut grad = owned(grad);
        let w = view(&weight);
        let width = w.len();
        let n = view(&mean).len();
        let (rows, groups) = row_groups(n);
        let mut partial = Buffer::zeros(groups * 2 * width);
        values(&mut grad)
            .par_chunks_mut((rows * width).max(1))
            .zip(view(&x).par_chunks((rows * width).max(1)))
            .zip(view(&mean).par_chunks(rows).zip(view(&rstd).par_chunks(rows)))
            .zip(partial.par_chunks_mut((2 * width).max(1)))
            .for_each(|(((grad, x), (mean, rstd)), partial)| {
                let (dw, db) = partial.split_at_mut(width);
                gradients(x, w, mean, rstd, grad, dw, db);
            });
        let (mut dw, mut db) = (Buffer::zeros(width), Buffer::zeros(width));
        for partial in partial.chunks_exact((2 * width).max(1)) {
            for i in 0..width {
                dw[i] += partial[i];
                db[i] += partial[width + i];
            }
        }
        (grad, tensor(dw, [width]), tensor(db, [width]))
    }

    dispatch!(
        /// `grad` becomes the gradient of `x`; those of weight and bias are added to `dw` and `db`.
        pub(crate) fn gradients(
            x: &[f32],
            w: &[f32],
            mean: &[f32],
            rstd: &[f32],
            grad: &mut [f32],
            dw: &mut [f32],
            db: &mut [f32],
        ) => gradients_body
    );

    #[inline(always)]
    fn gradients_body<const FMA: bool>(
        x: &[f32],
        w: &[f32],
        mean: &[f32],
        rstd: &[f32],
        grad: &mut [f32],
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let width = w.len();
        let rows = x.chunks_exact(width).zip(grad.chunks_exact_mut(width));
        for ((x, grad), (&mean, &rstd)) in rows.zip(mean.iter().zip(rstd)) {
            let (total, along) = projections::<FMA>(x, w, grad, mean, rstd);
            let (total, along) = (total / width as f32, along / width as f32);
            let parts = x.iter().zip(w).zip(dw.iter_mut().zip(db.iter_mut()));
            for (g, ((x, w), (dw, db))) in grad.iter_mut().zip(parts) {
                let normalized = (x - mean) * rstd;
                *dw = madd::<FMA>(*g, normalized, *dw);
                *db += *g;
                // Rounded as in the sum, so that a width of one gives zero.
                let inner = *g * *w - total;
                *g = rstd * madd::<FMA>(-normalized, along, inner);
            }
        }
    }

    /// Sums over a row of the gradient of the normalized values, alone and times those values.
    #[inline(always)]
    fn projections<const FMA: bool>(x: &[f32], w: &[f32], grad: &[f32], mean: f32, rstd: f32) -> (f32, f32) {
        let (xs, x_tail) = x.as_chunks::<LANES>();
        let (ws, w_tail) = w.as_chunks::<LANES>();
        let (gs, g_tail) = grad.as_chunks::<LANES>();
        let (mut total, mut along) = ([0.0; LANES], [0.0; LANES]);
        for ((x, w), g) in xs.iter().zip(ws).zip(gs) {
            for i in 0..LANES {
                let inner = g[i] * w[i];
                total[i] += inner;
                along[i] = madd::<FMA>(inner, (x[i] - mean) * rstd, along[i]);
            }
        }
        for (i, ((x, w), g)) in x_tail.iter().zip(w_tail).zip(g_tail).enumerate() {
            let inner = g * w;
            total[i] += inner;
            along[i] = madd::<FMA>(inner, (x - mean) * rstd, along[i]);
        }
        (reduce(total), reduce(along))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, random};

    #[test]
    fn matches_reference_and_differences() {
        for (n, d) in [(1, 1), (3, 5), (197, 384), (2, 33), (1000, 40), (8 * 65, 192)] {
            let inputs = [random(n * d, 1, 2.0), random(d, 2, 1.0), random(d, 3, 1.0)];
            check(
                "layer_norm",
                &inputs,
                |x| {
                    super::layer_norm(x[0].clone().reshape([n, d]), x[1].clone(), x[2].clone(), 1e-3)
                        .reshape([n * d])
                },
                |x| {
                    super::reference(x[0].clone().reshape([n, d]), x[1].clone(), x[2].clone(), 1e-3)
                        .reshape([n * d])
                },
                1e-5,
            );
        }
    }

    #[test]
    #[should_panic(expected = "layer_norm: weight [3] and bias [4] do not fit the last axis of [2, 4]")]
    fn names_the_shapes_that_do_not_fit() {
        let d = Default::default();
        let ones = |n| burn::tensor::Tensor::<burn::backend::Flex, 1>::ones([n], &d);
        super::layer_norm(ones(8).reshape([2, 4]), ones(3), ones(4), 1e-5);
    }
}
