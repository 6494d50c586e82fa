//! The kernels themselves, for every runtime of CubeCL. Tensors may have any strides.

use cubecl::prelude::*;

/// Units that share a row of scores. The width of a warp; a power of two.
pub(super) const LANES: u32 = 32;
/// Rows of scores that a cube computes.
pub(super) const ROWS: u32 = 4;

/// Which gradient of the bias is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum BiasGradient {
    /// None; its tensor is not touched.
    No,
    /// Of one bias for the whole batch: the sum of its samples'.
    Summed,
    /// Of each sample's own bias.
    Each,
}

/// Columns `start ..` of `x [B, T, ..]` as heads: `y [B, H, T, d]`. One unit per element of `y`, in the order of `x`.
#[cube(launch, address_type = "dynamic")]
pub(super) fn split_heads<I: Float, O: Float>(
    x: &Tensor<I>,
    y: &mut Tensor<O>,
    start: u32,
    #[define(I, O)] _types: [StorageType; 2],
) {
    let column = ABSOLUTE_POS_X as usize;
    let token = ABSOLUTE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let depth = y.shape(3);
    if column >= y.shape(1) * depth || token >= y.shape(2) {
        terminate!();
    }
    let from = batch * x.stride(0) + token * x.stride(1) + (start as usize + column) * x.stride(2);
    let (head, at) = (column / depth, column % depth);
    let to = batch * y.stride(0) + head * y.stride(1) + token * y.stride(2) + at * y.stride(3);
    y[to] = O::cast_from(x[from]);
}

/// The way back: heads `x [B, H, T, d]` times `factor` as columns `start ..` of `y [B, T, ..]`.
#[cube(launch, address_type = "dynamic")]
pub(super) fn merge_heads(x: &Tensor<f32>, y: &mut Tensor<f32>, start: u32, factor: f32) {
    let column = ABSOLUTE_POS_X as usize;
    let token = ABSOLUTE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let depth = x.shape(3);
    if column >= x.shape(1) * depth || token >= x.shape(2) {
        terminate!();
    }
    let (head, at) = (column / depth, column % depth);
    let from = batch * x.stride(0) + head * x.stride(1) + token * x.stride(2) + at * x.stride(3);
    let to = batch * y.stride(0) + token * y.stride(1) + (start as usize + column) * y.stride(2);
    y[to] = x[from] * factor;
}

/// Softmax of each row of `scale·scores + bias`, and the log of its sum.
///
/// `scores [B, H, Q, K]`, `bias [1 or B, H, Q, K]` (read only if `biased`), `weights` like the scores, `lse [B, H, Q]`.
/// A row is read twice: for its largest value and sum together, then for the weights.
#[cube(launch, address_type = "dynamic")]
pub(super) fn softmax_rows<O: Float>(
    scores: &Tensor<f32>,
    bias: &Tensor<f32>,
    weights: &mut Tensor<O>,
    lse: &mut Tensor<f32>,
    scale: f32,
    #[comptime] biased: bool,
    #[define(O)] _type: StorageType,
) {
    let (lane, row) = (UNIT_POS_X, UNIT_POS_Y);
    let query = (CUBE_POS_X * CUBE_DIM_Y + row) as usize;
    let head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let inside = query < scores.shape(2);
    // Units outside go on without keys: all units of a cube must come to the barriers.
    let mut keys = scores.shape(3);
    if !inside {
        keys = 0usize;
    }
    let from = batch * scores.stride(0) + head * scores.stride(1) + query * scores.stride(2);
    let mut bias_from = 0usize;
    if comptime!(biased) {
        bias_from = bias_row(bias, batch, head, query);
    }

    // The largest value of this lane, and the sum of exponentials relative to it.
    let mut top = f32::new(-3.0e38);
    let mut sum = f32::new(0.0);
    let mut key = lane as usize;
    while key < keys {
        let x = logit(scores, bias, from, bias_from, key, scale, biased);
        if x > top {
            sum = sum * f32::exp(top - x) + 1.0;
            top = x;
        } else {
            sum += f32::exp(x - top);
        }
        key += LANES as usize;
    }

    let mut tops = SharedMemory::<f32>::new(comptime!((LANES * ROWS) as usize));
    let mut sums = SharedMemory::<f32>::new(comptime!((LANES * ROWS) as usize));
    let place = (row * LANES + lane) as usize;
    tops[place] = top;
    sums[place] = sum;
    sync_cube();
    let mut step = comptime!(LANES / 2).runtime();
    while step > 0 {
        if lane < step {
            let other = place + step as usize;
            let (a, b) = (tops[place], tops[other]);
            let both = max(a, b);
            sums[place] = sums[place] * f32::exp(a - both) + sums[other] * f32::exp(b - both);
            tops[place] = both;
        }
        sync_cube();
        step /= 2;
    }
    let first = (row * LANES) as usize;
    let log = tops[first] + f32::ln(sums[first]);

    let to = batch * weights.stride(0) + head * weights.stride(1) + query * weights.stride(2);
    let mut key = lane as usize;
    while key < keys {
        let x = logit(scores, bias, from, bias_from, key, scale, biased);
        weights[to + key * weights.stride(3)] = O::cast_from(f32::exp(x - log));
        key += LANES as usize;
    }
    if inside && lane == 0 {
        lse[batch * lse.stride(0) + head * lse.stride(1) + query * lse.stride(2)] = log;
    }
}

/// Softmax weights again, and the gradient of the logits: `slope = weight·(dweight − along)`.
///
/// `scores`, `dweights [B, H, Q, K]`; `lse`, `along [B, H, Q]`; `weights`, `slopes` like the scores; `dbias` as `gradient`
/// says. One unit for each place of a row takes the samples one after the other, so the sum has a fixed order.
#[cube(launch, address_type = "dynamic")]
pub(super) fn softmax_slopes<O: Float>(
    scores: &Tensor<f32>,
    bias: &Tensor<f32>,
    dweights: &Tensor<f32>,
    lse: &Tensor<f32>,
    along: &Tensor<f32>,
    weights: &mut Tensor<O>,
    slopes: &mut Tensor<O>,
    dbias: &mut Tensor<f32>,
    scale: f32,
    #[comptime] biased: bool,
    #[comptime] gradient: BiasGradient,
    #[define(O)] _type: StorageType,
) {
    let key = ABSOLUTE_POS_X as usize;
    let query = CUBE_POS_Y as usize;
    let head = CUBE_POS_Z as usize;
    if key >= scores.shape(3) {
        terminate!();
    }
    let mut total = f32::new(0.0);
    for batch in 0..scores.shape(0) {
        let from = batch * scores.stride(0) + head * scores.stride(1) + query * scores.stride(2);
        let mut bias_from = 0usize;
        if comptime!(biased) {
            bias_from = bias_row(bias, batch, head, query);
        }
        let log = lse[batch * lse.stride(0) + head * lse.stride(1) + query * lse.stride(2)];
        let weight = f32::exp(logit(scores, bias, from, bias_from, key, scale, biased) - log);
        let dweight = dweights[batch * dweights.stride(0)
            + head * dweights.stride(1)
            + query * dweights.stride(2)
            + key * dweights.stride(3)];
        let mean = along[batch * along.stride(0) + head * along.stride(1) + query * along.stride(2)];
        let slope = weight * (dweight - mean);
        weights[batch * weights.stride(0)
            + head * weights.stride(1)
            + query * weights.stride(2)
            + key * weights.stride(3)] = O::cast_from(weight);
        slopes[batch * slopes.stride(0)
            + head * slopes.stride(1)
            + query * slopes.stride(2)
            + key * slopes.stride(3)] = O::cast_from(slope);
        if comptime!(gradient == BiasGradient::Each) {
            dbias[batch * dbias.stride(0)
                + head * dbias.stride(1)
                + query * dbias.stride(2)
                + key * dbias.stride(3)] = slope;
        }
        total += slope;
    }
    if comptime!(gradient == BiasGradient::Summed) {
        dbias[head * dbias.stride(1) + query * dbias.stride(2) + key * dbias.stride(3)] = total;
    }
}

/// Where a row of the bias begins.
#[cube]
fn bias_row(bias: &Tensor<f32>, batch: usize, head: usize, query: usize) -> usize {
    let row = head * bias.stride(1) + query * bias.stride(2);
    if bias.shape(0) > 1 { row + batch * bias.stride(0) } else { row }
}

/// One logit, from the rows' beginnings.
#[cube]
fn logit(
    scores: &Tensor<f32>,
    bias: &Tensor<f32>,
    from: usize,
    bias_from: usize,
    key: usize,
    scale: f32,
    #[comptime] biased: bool,
) -> f32 {
    let x = scores[from + key * scores.stride(3)] * scale;
    if comptime!(biased) { x + bias[bias_from + key * bias.stride(3)] } else { x }
}
