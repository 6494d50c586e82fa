//! Pooling of channels-last maps.

use beit2_kernels::Backend;
use burn::tensor::{Tensor, TensorData};

/// The means over a grid of cells that may overlap by a pixel, `[B, H, W, C]` → `[B, side, side, C]`: cell i goes
/// from ⌊i·H/side⌋ to ⌈(i+1)·H/side⌉ (PyTorch's adaptive average pooling).
pub(super) fn adaptive_mean<B: Backend>(x: Tensor<B, 4>, side: usize) -> Tensor<B, 4> {
    let [batch, height, width, channels] = x.dims();
    let options = (&x.device(), x.dtype());
    let matrix = |from: usize| {
        let mut weights = vec![0.0; side * from];
        for (cell, row) in weights.chunks_exact_mut(from).enumerate() {
            let own = cell * from / side..((cell + 1) * from).div_ceil(side);
            let share = 1.0 / own.len() as f64;
            row[own].fill(share);
        }
        Tensor::<B, 3>::from_data(TensorData::new(weights, [1, side, from]), options)
    };
    let rows = matrix(height).matmul(x.reshape([batch, height, width * channels]));
    let cells = matrix(width).matmul(rows.reshape([batch * side, width, channels]));
    cells.reshape([batch, side, side, channels])
}

/// The largest values of squares of `side` pixels, `[B, H, W, C]` → `[B, H/side, W/side, C]`; what is left at the
/// end is dropped.
pub(super) fn max_pool<B: Backend>(x: Tensor<B, 4>, side: usize) -> Tensor<B, 4> {
    let [batch, height, width, channels] = x.dims();
    let (rows, cols) = (height / side, width / side);
    let x = x.narrow(1, 0, rows * side).narrow(2, 0, cols * side);
    let x = x.reshape([batch * rows, side, cols * side * channels]).max_dim(1);
    let x = x.reshape([batch * rows * cols, side, channels]).max_dim(1);
    x.reshape([batch, rows, cols, channels])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    fn map(values: Vec<f32>, dims: [usize; 4]) -> Tensor<Flex, 4> {
        Tensor::from_data(TensorData::new(values, dims), &Default::default())
    }

    fn values(x: Tensor<Flex, 4>) -> Vec<f32> {
        x.into_data().into_vec().unwrap()
    }

    #[test]
    fn means_by_hand() {
        // 5 pixels in 3 cells: 0–1, 1–3, 3–4.
        let x = map(vec![1.0, 3.0, 5.0, 7.0, 11.0], [1, 1, 5, 1]);
        assert_eq!(values(adaptive_mean(x, 3))[..3], [2.0, 5.0, 9.0]);
        let x = map(vec![1.0, 10.0, 3.0, 30.0], [1, 1, 2, 2]);
        assert_eq!(values(adaptive_mean(x, 1)), [2.0, 20.0]);
        // Fewer pixels than cells: cells repeat them.
        let x = map(vec![4.0], [1, 1, 1, 1]);
        assert_eq!(values(adaptive_mean(x, 2)), [4.0; 4]);
    }

    #[test]
    fn maxima_by_hand() {
        let x = map((0..15).map(|v| v as f32).collect(), [1, 3, 5, 1]);
        assert_eq!(values(max_pool(x, 2)), [6.0, 8.0]);
        let x = map(vec![1.0, -1.0, 0.0, -5.0, 3.0, -9.0, 2.0, -7.0], [1, 2, 2, 2]);
        assert_eq!(values(max_pool(x, 2)), [3.0, -1.0]);
    }
}
