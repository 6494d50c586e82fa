//! The passes over rows of logits between the matmuls of attention.

use crate::simd::{LANES, dispatch, exp, madd, max, reduce};

dispatch!(
    /// Rows of `logits` become `exp(logits + bias − top)`; `lse` and `inverse` get the log and the
    /// inverse of each row's sum.
    ///
    /// The caller multiplies by the inverse after the matmul with the values, which has fewer
    /// columns.
    pub(crate) fn softmax_rows(
        logits: &mut [f32],
        bias: Option<&[f32]>,
        lse: &mut [f32],
        inverse: &mut [f32],
    ) => softmax_body
);

#[inline(always)]
fn softmax_body<const FMA: bool>(
    logits: &mut [f32],
    bias: Option<&[f32]>,
    lse: &mut [f32],
    inverse: &mut [f32],
) {
    if lse.is_empty() {
        return;
    }
    let keys = logits.len() / lse.len();
    for (i, row) in logits.chunks_exact_mut(keys).enumerate() {
        if let Some(bias) = bias {
            for (x, b) in row.iter_mut().zip(&bias[i * keys..(i + 1) * keys]) {
                *x += b;
            }
        }
        let top = max(row);
        let (chunks, tail) = row.as_chunks_mut::<LANES>();
        let mut acc = [0.0; LANES];
        for c in chunks {
            for j in 0..LANES {
                c[j] = exp::<FMA>(c[j] - top);
                acc[j] += c[j];
            }
        }
        for (a, x) in acc.iter_mut().zip(tail) {
            *x = exp::<FMA>(*x - top);
            *a += *x;
        }
        let sum = reduce(acc);
        lse[i] = top + sum.ln();
        inverse[i] = 1.0 / sum;
    }
}

dispatch!(
    /// One row of the backward pass: `weights` (logits on entry) become the softmax weights, `slopes`
    /// (matmuls of the gradient with the values on entry) the gradient of the logits, which is also
    /// added to `dbias` unless that is empty.
    pub(crate) fn backward_rows(
        weights: &mut [f32],
        slopes: &mut [f32],
        bias: Option<&[f32]>,
        lse: f32,
        grad: &[f32],
        output: &[f32],
        dbias: &mut [f32],
    ) => backward_body
);

#[inline(always)]
fn backward_body<const FMA: bool>(
    weights: &mut [f32],
    slopes: &mut [f32],
    bias: Option<&[f32]>,
    lse: f32,
    grad: &[f32],
    output: &[f32],
    dbias: &mut [f32],
) {
    // Σ weights·slopes, from the shorter row: the gradient times the output.
    let along = dot::<FMA>(grad, output);
    match bias {
        Some(bias) => {
            for (w, b) in weights.iter_mut().zip(bias) {
                *w = exp::<FMA>(*w + b - lse);
            }
        }
        None => {
            for w in weights.iter_mut() {
                *w = exp::<FMA>(*w - lse);
            }
        }
    }
    for (slope, w) in slopes.iter_mut().zip(weights.iter()) {
        *slope = w * (*slope - along);
    }
    if !dbias.is_empty() {
        for (d, slope) in dbias.iter_mut().zip(slopes) {
            *d += *slope;
        }
    }
}

#[inline(always)]
fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    let mut acc = [0.0; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            acc[i] = madd::<FMA>(a[i], b[i], acc[i]);
        }
    }
    for ((acc, a), b) in acc.iter_mut().zip(a_tail).zip(b_tail) {
        *acc = madd::<FMA>(*a, *b, *acc);
    }
    reduce(acc)
}
