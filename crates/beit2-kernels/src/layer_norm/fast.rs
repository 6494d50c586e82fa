//! The fast CPU version of [`layer_norm`](crate::layer_norm): one pass over rows each way.

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
