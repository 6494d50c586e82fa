//! Loops over slices that several operations use, compiled for several instruction sets.

use crate::simd::{dispatch, madd};

dispatch!(
    /// `x` becomes `x·y`.
    pub(crate) fn times(x: &mut [f32], y: &[f32]) => times_body
);

#[inline(always)]
fn times_body<const FMA: bool>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

dispatch!(
    /// Adds rows as long as `total` to it, in order.
    pub(crate) fn add_rows(x: &[f32], total: &mut [f32]) => add_rows_body
);

#[inline(always)]
fn add_rows_body<const FMA: bool>(x: &[f32], total: &mut [f32]) {
    for row in x.chunks_exact(total.len().max(1)) {
        for (t, x) in total.iter_mut().zip(row) {
            *t += x;
        }
    }
}

dispatch!(
    /// `y` becomes `x + γ⊙branch`, rows as long as `gamma`.
    pub(crate) fn add_scaled(y: &mut [f32], x: &[f32], branch: &[f32], gamma: &[f32]) => add_scaled_body
);

#[inline(always)]
fn add_scaled_body<const FMA: bool>(y: &mut [f32], x: &[f32], branch: &[f32], gamma: &[f32]) {
    let width = gamma.len();
    let rows = x.chunks_exact(width).zip(branch.chunks_exact(width));
    for (y, (x, branch)) in y.chunks_exact_mut(width).zip(rows) {
        for ((y, x), (branch, gamma)) in y.iter_mut().zip(x).zip(branch.iter().zip(gamma)) {
            *y = madd::<FMA>(*branch, *gamma, *x);
        }
    }
}
