//! The fast convolution: matmuls on overlapping views of padded bands of rows.
//!
//! In a padded band the three pixels below a kernel's row are neighbours in memory, so that row's taps of
//! all pixels are one matrix with overlapping rows, read where it lies: three matmuls of width 3·in make
//! the convolution. Between two rows of the image lies one pixel of zeros, the right border of one and the
//! left border of the next; results at its place are computed for nothing and dropped.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::Precision;
use crate::flex::{owned, tensor, view};
use crate::interrupt::Rest;
use crate::matmul::{MatmulOptions, matmul};
use crate::matrix::{Accumulate, Matrix};
use crate::memory::Buffer;

/// Pixels of a band: enough that a matmul is long against the packing of its weights, and few enough that
/// the band is small against the map.
const SMALLEST: usize = 256;
const LARGEST: usize = 2048;

/// Batch, height, width and channels of a map.
type Dims = [usize; 4];

/// `x [B, H, W, in]`, `weight [out, in, 3, 3]` → `[B, H, W, out]`.
pub(crate) fn forward(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
    let (x, weight) = (owned(x), owned(weight));
    let [outputs, inputs] = kernel(&weight);
    let mut taps = Buffer::any(outputs * inputs * 9);
    taps.par_chunks_mut((9 * inputs).max(1)).zip(view(&weight).par_chunks((9 * inputs).max(1))).for_each(
        |(taps, weight)| {
            for (input, nine) in weight.as_chunks::<9>().0.iter().enumerate() {
                for (tap, value) in nine.iter().enumerate() {
                    taps[tap * inputs + input] = *value;
                }
            }
        },
    );
    convolve(&x, &taps, outputs)
}

/// The gradient of the input from `grad [B, H, W, out]`.
pub(crate) fn backward_input(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (weight, grad) = (owned(weight), owned(grad));
    let [outputs, inputs] = kernel(&weight);
    let mut taps = Buffer::any(outputs * inputs * 9);
    let weight = view(&weight).as_chunks::<9>().0;
    taps.par_chunks_mut((9 * outputs).max(1)).enumerate().for_each(|(input, taps)| {
        for output in 0..outputs {
            let nine = &weight[output * inputs + input];
            for (tap, value) in nine.iter().rev().enumerate() {
                taps[tap * outputs + output] = *value;
            }
        }
    });
    convolve(&grad, &taps, inputs)
}

/// The gradient of the weight `[out, in, 3, 3]`.
pub(crate) fn backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let (x, grad) = (owned(x), owned(grad));
    let (dims, [.., outputs]) = (dims(&x), dims(&grad));
    let [.., inputs] = dims;
    let row = 9 * inputs;
    let mut taps = Buffer::zeros(outputs * row);
    for band in bands(dims) {
        let padded = band.padded(view(&x), dims);
        let grad = band.spread(view(&grad), outputs, dims);
        for (at, part) in [0, 1, 2].map(|at| (at, band.taps(&padded, at, dims))) {
            let grad = Matrix::new(&grad, band.pixels(dims), outputs, outputs);
            let how = MatmulOptions::parallel(Precision::F32);
            matmul(&mut taps[at * 3 * inputs..], row, Accumulate::There, 1.0, grad.transposed(), part, how);
        }
    }
    let mut dw = Buffer::any(outputs * row);
    dw.par_chunks_mut(row.max(1)).zip(taps.par_chunks(row.max(1))).for_each(|(dw, taps)| {
        for (input, nine) in dw.as_chunks_mut::<9>().0.iter_mut().enumerate() {
            for (tap, value) in nine.iter_mut().enumerate() {
                *value = taps[tap * inputs + input];
            }
        }
    });
    tensor(dw, [outputs, inputs, 3, 3])
}

/// The convolution of a map with `taps [out, 3, 3·in]`: for each output the taps in the order of memory.
fn convolve(x: &FlexTensor, taps: &[f32], outputs: usize) -> FlexTensor {
    let dims = dims(x);
    let [batch, height, width, inputs] = dims;
    let mut y = Buffer::any(batch * height * width * outputs);
    let bands = bands(dims);
    let alone = bands.len() == 1;
    let mut rest = &mut y[..];
    let mut tasks = Vec::with_capacity(bands.len());
    for band in bands {
        let (own, others) = rest.split_at_mut(band.images * band.rows * width * outputs);
        tasks.push((band, own));
        rest = others;
    }
    let left = Rest::here();
    tasks.into_par_iter().for_each(|(band, y)| {
        if left.is_left_out() {
            return;
        }
        let padded = band.padded(view(x), dims);
        let mut spread = Buffer::any(band.pixels(dims) * outputs);
        for at in 0..3 {
            let start = if at == 0 { Accumulate::Zero } else { Accumulate::There };
            let part = Matrix::new(&taps[at * 3 * inputs..], outputs, 3 * inputs, 9 * inputs).transposed();
            let how = MatmulOptions { precision: Precision::F32, parallel: alone };
            matmul(&mut spread, outputs, start, 1.0, band.taps(&padded, at, dims), part, how);
        }
        for (at, y) in y.chunks_exact_mut((width * outputs).max(1)).enumerate() {
            y.copy_from_slice(&spread[band.start_of_row(at, dims) * outputs..][..width * outputs]);
        }
    });
    tensor(y, [batch, height, width, outputs])
}

/// Some rows of one image, or all rows of some images.
struct Band {
    first_image: usize,
    images: usize,
    first_row: usize,
    rows: usize,
}

/// How a map is cut: a function of its shape alone, so that sums do not depend on threads.
fn bands([batch, height, width, _]: Dims) -> Vec<Band> {
    if batch * height * width == 0 {
        return Vec::new();
    }
    let per_image = (height + 1) * (width + 1);
    let wanted = (batch * per_image / 16).clamp(SMALLEST, LARGEST);
    if per_image < wanted {
        let images = wanted / per_image;
        let band = |first_image| Band {
            first_image,
            images: images.min(batch - first_image),
            first_row: 0,
            rows: height,
        };
        return (0..batch).step_by(images).map(band).collect();
    }
    // Bands of equal height, the last one perhaps less.
    let rows = height.div_ceil(per_image.div_ceil(wanted));
    let of_image = |first_image| {
        let band =
            move |first_row| Band { first_image, images: 1, first_row, rows: rows.min(height - first_row) };
        (0..height).step_by(rows).map(band)
    };
    (0..batch).flat_map(of_image).collect()
}

impl Band {
    /// Pixels from the first to the last of the band, those between rows included.
    fn pixels(&self, [_, _, width, _]: Dims) -> usize {
        (self.images * (self.rows + 1) - 2) * (width + 1) + width
    }

    /// Where the band's row number `at` begins among its pixels.
    fn start_of_row(&self, at: usize, [_, _, width, _]: Dims) -> usize {
        (at / self.rows * (self.rows + 1) + at % self.rows) * (width + 1)
    }

    /// The band of `x` with a row above each image, one below the last, and a pixel before each row.
    fn padded(&self, x: &[f32], [_, height, width, channels]: Dims) -> Buffer {
        let stride = (width + 1) * channels;
        let rows = self.images * (self.rows + 1) + 1;
        let mut padded = Buffer::any(rows * stride + channels);
        for (at, target) in padded.chunks_mut(stride.max(1)).enumerate() {
            // Above the first image is row −1 of it; in bands of several images all borders are zeros.
            let (image, row) = match self.images {
                1 => (0, (self.first_row + at).wrapping_sub(1)),
                _ => (at / (self.rows + 1), (at % (self.rows + 1)).wrapping_sub(1)),
            };
            if row >= height || at >= rows || image >= self.images {
                target.fill(0.0);
                continue;
            }
            let from = ((self.first_image + image) * height + row) * width * channels;
            target[..channels].fill(0.0);
            target[channels..].copy_from_slice(&x[from..][..width * channels]);
        }
        padded
    }

    /// The band of a gradient, at the places that [`Band::pixels`] counts; zeros between rows.
    fn spread(&self, grad: &[f32], channels: usize, dims: Dims) -> Buffer {
        let [_, height, width, _] = dims;
        let mut spread = Buffer::zeros(self.pixels(dims) * channels);
        let first = (self.first_image * height + self.first_row) * width * channels;
        for at in 0..self.images * self.rows {
            let row = &grad[first + at * width * channels..][..width * channels];
            spread[self.start_of_row(at, dims) * channels..][..width * channels].copy_from_slice(row);
        }
        spread
    }

    /// For every pixel the three inputs below row `at` of the kernel, `[pixels, 3·in]`.
    fn taps<'a>(&self, padded: &'a [f32], at: usize, dims: Dims) -> Matrix<'a> {
        let [_, _, width, channels] = dims;
        Matrix::new(&padded[at * (width + 1) * channels..], self.pixels(dims), 3 * channels, channels)
    }
}

fn dims(x: &FlexTensor) -> Dims {
    let shape = x.layout().shape();
    [shape[0], shape[1], shape[2], shape[3]]
}

fn kernel(weight: &FlexTensor) -> [usize; 2] {
    let [outputs, inputs, ..] = dims(weight);
    [outputs, inputs]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_every_row_once() {
        for dims in
            [[1, 1, 1, 1], [3, 2, 2, 1], [1, 128, 128, 1], [8, 16, 16, 1], [5, 37, 1, 1], [2, 300, 9, 1]]
        {
            let [batch, height, ..] = dims;
            let mut next = (0, 0);
            for band in bands(dims) {
                assert_eq!((band.first_image, band.first_row), next);
                assert!(band.images == 1 || band.rows == height);
                assert!(band.pixels(dims) <= LARGEST || band.rows == 1);
                let row = band.first_row + band.rows;
                next =
                    if row == height { (band.first_image + band.images, 0) } else { (band.first_image, row) };
            }
            assert_eq!(next, (batch, 0));
        }
        assert!(bands([0, 4, 4, 2]).is_empty());
    }
}
