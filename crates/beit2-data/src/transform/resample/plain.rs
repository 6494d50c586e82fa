//! The two passes as plain loops, for any processor: what the vector code is compared with.

use crate::transform::resample::kernel::{HALF, Kernel, PRECISION};
use crate::transform::rows::Rows;

/// Rows that the horizontal pass takes together: with three channels they fill whole registers of sums.
pub(super) const ROWS: usize = 8;

/// Weighted sums along at most [`ROWS`] rows: `[count, width, 3]` to `[count, outputs, 3]`.
///
/// Why eight rows at a time: the rows are first interleaved to `[width, 8 * 3]` in `columns`, so that one weight
/// meets 24 neighbouring bytes. Row by row only three values share a weight, which was measured to
/// be ten times slower.
pub(super) fn horizontal(
    rows: Rows,
    count: usize,
    kernel: &Kernel,
    columns: &mut [[u8; ROWS * 3]],
    out: &mut [u8],
    out_stride: usize,
) {
    let width = columns.len();
    for number in 0..count {
        let row = &rows.data[number * rows.stride..][..width * 3];
        for (column, pixel) in columns.iter_mut().zip(row.as_chunks::<3>().0) {
            column[number * 3..number * 3 + 3].copy_from_slice(pixel);
        }
    }
    for (position, (start, weights)) in kernel.outputs().enumerate() {
        let mut sums = [HALF; ROWS * 3];
        for (column, &weight) in columns[start..start + weights.len()].iter().zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(column) {
                *sum += weight * i32::from(value);
            }
        }
        let done = sums.map(clip);
        for (out_row, pixel) in out.chunks_mut(out_stride).zip(done.as_chunks::<3>().0).take(count) {
            out_row[position * 3..position * 3 + 3].copy_from_slice(pixel);
        }
    }
}

/// Weighted sums of whole rows, which lie `stride` bytes apart and begin with row `first` of the kernel: to `[outputs, row_bytes]` without gaps.
pub(super) fn vertical(
    data: &[u8],
    stride: usize,
    row_bytes: usize,
    first: usize,
    kernel: &Kernel,
    out: &mut [u8],
) {
    const LANES: usize = 32;
    for (out_row, (start, weights)) in out.chunks_exact_mut(row_bytes).zip(kernel.outputs()) {
        let rows = &data[(start - first) * stride..];
        let (blocks, rest) = out_row.as_chunks_mut::<LANES>();
        let done = blocks.len() * LANES;
        for (number, block) in blocks.iter_mut().enumerate() {
            let mut sums = [HALF; LANES];
            for (row, &weight) in rows.chunks(stride).zip(weights) {
                let values = &row[number * LANES..(number + 1) * LANES];
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum += weight * i32::from(value);
                }
            }
            *block = sums.map(clip);
        }
        for (column, value) in (done..).zip(rest) {
            let terms =
                rows.chunks(stride).zip(weights).map(|(row, &weight)| weight * i32::from(row[column]));
            *value = clip(HALF + terms.sum::<i32>());
        }
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
