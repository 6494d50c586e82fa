//! Bilinear resizing of channels-last maps, as matmuls with one small constant matrix along each axis.
//!
//! Half-pixel centres, clamped at the border, two neighbours whatever the scale: PyTorch's `interpolate` with
//! `align_corners=False`. Burn's own resizing has another rule when it shrinks.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Tensor, TensorData};

/// The two neighbours of one target position, and how much of the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Between {
    pub(crate) low: usize,
    pub(crate) high: usize,
    pub(crate) share: f64,
}

/// For each of `to` positions where it lies among `from`.
pub(crate) fn positions(from: usize, to: usize) -> impl Iterator<Item = Between> {
    let scale = from as f64 / to as f64;
    (0..to).map(move |at| {
        let x = ((at as f64 + 0.5) * scale - 0.5).max(0.0);
        let low = (x as usize).min(from - 1);
        Between { low, high: (low + 1).min(from - 1), share: x - low as f64 }
    })
}

/// `[B, H, W, C]` → `[B, height, width, C]`. A map of that size is returned as it is.
///
/// # Panics
/// If one of the sizes is 0.
pub fn bilinear<B: BurnBackend>(x: Tensor<B, 4>, height: usize, width: usize) -> Tensor<B, 4> {
    let [batch, rows, cols, channels] = x.dims();
    assert!(rows * cols * height * width > 0, "bilinear: cannot resize {rows}×{cols} to {height}×{width}");
    let options = (&x.device(), x.dtype());
    let matrix = |from: usize, to: usize| {
        let mut weights = vec![0.0; to * from];
        for (row, Between { low, high, share }) in weights.chunks_exact_mut(from).zip(positions(from, to)) {
            row[low] += 1.0 - share;
            row[high] += share;
        }
        Tensor::<B, 3>::from_data(TensorData::new(weights, [1, to, from]), options)
    };
    let x = match cols == width {
        true => x,
        false => {
            let lines = matrix(cols, width).matmul(x.reshape([batch * rows, cols, channels]));
            lines.reshape([batch, rows, width, channels])
        }
    };
    match rows == height {
        true => x,
        false => {
            let columns = matrix(rows, height).matmul(x.reshape([batch, rows, width * channels]));
            columns.reshape([batch, height, width, channels])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    fn resized(x: Vec<f32>, rows: usize, cols: usize, height: usize, width: usize) -> Vec<f32> {
        let x = Tensor::<Flex, 4>::from_data(TensorData::new(x, [1, rows, cols, 1]), &Default::default());
        bilinear(x, height, width).into_data().into_vec().unwrap()
    }

    #[test]
    fn by_hand() {
        // 2 → 4: centres −¼, ¼, ¾, 1¼ of the source, the outer ones clamped.
        assert_eq!(resized(vec![0.0, 4.0], 1, 2, 1, 4), [0.0, 1.0, 3.0, 4.0]);
        assert_eq!(resized(vec![0.0, 4.0], 2, 1, 4, 1), [0.0, 1.0, 3.0, 4.0]);
        // 4 → 2 looks at two neighbours only: centres ½ and 2½.
        assert_eq!(resized(vec![0.0, 1.0, 5.0, 9.0], 1, 4, 1, 2), [0.5, 7.0]);
        // One pixel fills everything.
        assert_eq!(resized(vec![3.0], 1, 1, 2, 3), [3.0; 6]);
        let same = vec![1.0, 2.0, 3.0, 4.0];
        assert_eq!(resized(same.clone(), 2, 2, 2, 2), same);
    }

    #[test]
    fn positions_stay_inside() {
        for from in 1..20 {
            for to in 1..40 {
                for Between { low, high, share } in positions(from, to) {
                    assert!(high < from && (high == low || high == low + 1) && (0.0..1.0).contains(&share));
                }
            }
        }
    }
}
