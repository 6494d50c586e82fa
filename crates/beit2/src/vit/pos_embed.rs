//! Absolute position embeddings for another grid.

use beit2_kernels::Backend;
use burn::tensor::{Tensor, TensorData};

/// How source coordinates follow from target ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PosResize {
    /// The scale is the ratio of the sizes (PyTorch's `interpolate` by size).
    BySize,
    /// The scale is `(target + 0.1) / source`, as the reference passes it to avoid rounding down;
    /// a little different numerically, so parity needs it.
    ByPaddedScale,
}

/// Resizes `[1, 1+s², D]` to a `rows × cols` grid, CLS first and unchanged: bicubic with a = −0.75,
/// half-pixel centres, clamped edges. Differentiable. A grid that fits already is returned as it is.
pub fn resize_pos_embed<B: Backend>(
    pos: Tensor<B, 3>,
    rows: usize,
    cols: usize,
    how: PosResize,
) -> Tensor<B, 3> {
    let [_, tokens, width] = pos.dims();
    let side = (tokens - 1).isqrt();
    if tokens == rows * cols + 1 && (rows == cols || side * side != tokens - 1) {
        return pos;
    }
    let cls = pos.clone().narrow(1, 0, 1);
    let grid = pos.narrow(1, 1, side * side).reshape([side, side * width]);
    let (device, dtype) = (grid.device(), grid.dtype());
    let matrix = |target: usize| {
        let data = TensorData::new(bicubic_matrix(side, target, how), [target, side]);
        Tensor::<B, 2>::from_data(data, (&device, dtype))
    };
    let tall = matrix(rows).matmul(grid).reshape([rows, side, width]); // rows resized
    let tall = tall.swap_dims(0, 1).reshape([side, rows * width]);
    let both = matrix(cols).matmul(tall).reshape([cols, rows, width]).swap_dims(0, 1);
    Tensor::cat(vec![cls, both.reshape([1, rows * cols, width])], 1)
}

/// `[target, source]` weights of a one-dimensional bicubic resize.
fn bicubic_matrix(source: usize, target: usize, how: PosResize) -> Vec<f64> {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0; // |x| ≤ 1
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A; // 1 < |x| < 2
    let scale = match how {
        PosResize::BySize => source as f64 / target as f64,
        PosResize::ByPaddedScale => source as f64 / (target as f64 + 0.1),
    };
    let mut weights = vec![0.0; target * source];
    for t in 0..target {
        let x = (t as f64 + 0.5) * scale - 0.5;
        let (base, f) = (x.floor(), x - x.floor());
        for (offset, weight) in
            [(-1.0, far(f + 1.0)), (0.0, near(f)), (1.0, near(1.0 - f)), (2.0, far(2.0 - f))]
        {
            let s = (base + offset).clamp(0.0, source as f64 - 1.0) as usize;
            weights[t * source + s] += weight;
        }
    }
    weights
}
