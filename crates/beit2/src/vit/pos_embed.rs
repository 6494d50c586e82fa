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
    /// By the ratio of the sizes, with an antialiased filter: bicubic with a = −0.5, whose support grows when the grid
    /// shrinks (PyTorch's `interpolate` with `antialias`; timm, and DINOv2 with registers).
    Antialiased,
}

/// Resizes `[1, 1+s², D]` to a `rows × cols` grid, CLS first and unchanged: bicubic with a = −0.75,
/// half-pixel centres, clamped edges. Differentiable. A grid that fits already is returned as it is.
pub fn resize_pos_embed<B: Backend>(
    pos: Tensor<B, 3>,
    rows: usize,
    cols: usize,
    how: PosResize,
) -> Tensor<B, 3> {
    let [_, tokens, _] = pos.dims();
    let side = (tokens - 1).isqrt();
    if tokens == rows * cols + 1 && (rows == cols || side * side != tokens - 1) {
        return pos;
    }
    let cls = pos.clone().narrow(1, 0, 1);
    let grid = resize_grid(pos.narrow(1, 1, side * side), rows, cols, how);
    Tensor::cat(vec![cls, grid], 1)
}

/// [`resize_pos_embed`] of the patches alone: `[1, s², D]` → `[1, rows·cols, D]`.
pub fn resize_grid<B: Backend>(pos: Tensor<B, 3>, rows: usize, cols: usize, how: PosResize) -> Tensor<B, 3> {
    let [_, patches, width] = pos.dims();
    let side = patches.isqrt();
    if patches == rows * cols && (rows == cols || side * side != patches) {
        return pos;
    }
    let grid = pos.reshape([side, side * width]);
    let (device, dtype) = (grid.device(), grid.dtype());
    let matrix = |target: usize| {
        let values = match how {
            PosResize::Antialiased => antialiased_matrix(side, target),
            how => bicubic_matrix(side, target, how),
        };
        Tensor::<B, 2>::from_data(TensorData::new(values, [target, side]), (&device, dtype))
    };
    let tall = matrix(rows).matmul(grid).reshape([rows, side, width]); // rows resized
    let tall = tall.swap_dims(0, 1).reshape([side, rows * width]);
    let both = matrix(cols).matmul(tall).reshape([cols, rows, width]).swap_dims(0, 1);
    both.reshape([1, rows * cols, width])
}

/// `[target, source]` weights of a one-dimensional bicubic resize.
fn bicubic_matrix(source: usize, target: usize, how: PosResize) -> Vec<f64> {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0; // |x| ≤ 1
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A; // 1 < |x| < 2
    let scale = match how {
        PosResize::ByPaddedScale => source as f64 / (target as f64 + 0.1),
        PosResize::BySize | PosResize::Antialiased => source as f64 / target as f64,
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

/// `[target, source]` weights of an antialiased bicubic resize.
fn antialiased_matrix(source: usize, target: usize) -> Vec<f64> {
    const A: f64 = -0.5;
    let filter = |x: f64| match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    };
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let mut weights = vec![0.0; target * source];
    for (t, row) in weights.chunks_mut(source).enumerate() {
        let centre = scale * (t as f64 + 0.5);
        let first = ((centre - 2.0 * stretch + 0.5) as usize).min(source); // Negative numbers become 0.
        let end = ((centre + 2.0 * stretch + 0.5) as usize).min(source);
        for (s, weight) in row.iter_mut().enumerate().take(end).skip(first) {
            *weight = filter((s as f64 - centre + 0.5) / stretch);
        }
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights
}
