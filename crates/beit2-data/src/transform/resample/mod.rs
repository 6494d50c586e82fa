//! Pillow's resampling, to the bit: two passes of a widened kernel over 8-bit values.
//!
//! Why not a crate: `fast_image_resize` 6.1 was measured against Pillow 13 on the golden vectors (suite
//! J): a fifth of the values differ, by up to 10 levels (lanczos, shrinking). This code differs in
//! none.
//!
//! Horizontal pass first, then vertical; weights in fixed point; each pass rounds and clips to 8
//! bits. A direction that keeps its length has no pass, as in Pillow. The sums are sums of integers, so every
//! instruction set gives the same bits: `plain.rs` is the obvious form, `avx2.rs` and `avx512.rs` the fast ones.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod plain;

pub(crate) use kernel::Axis;

use std::ops::Range;

use crate::simd::{self, Level};
use crate::transform::resize::Interpolation;
use crate::transform::rows::Cut;
use kernel::Kernel;

/// Resizes a cut of RGB pixels: the outputs of both axes, `[down.outputs, across.outputs, 3]`.
///
/// The cut holds at least [`Axis::inputs`] of each axis, from its `origin` on. Lengths are at least 1.
pub(crate) fn resample(cut: &Cut, across: &Axis, down: &Axis, filter: Interpolation) -> Vec<u8> {
    let kernel = |axis: &Axis| (axis.from != axis.to).then(|| Kernel::new(axis, filter));
    run(simd::level(), cut, across, down, kernel(across).as_ref(), kernel(down).as_ref())
}

fn run(
    level: Level,
    cut: &Cut,
    across: &Axis,
    down: &Axis,
    across_kernel: Option<&Kernel>,
    down_kernel: Option<&Kernel>,
) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512
        && let (Some(across), Some(down)) = (across_kernel, down_kernel)
        // SAFETY: the level says that there is AVX-512 with what the function needs.
        && let Some(out) = unsafe { avx512::resample(cut, across, down) }
    {
        return out;
    }
    let outputs = across.outputs.len();
    let needed = down_kernel.map_or(given(down), Kernel::inputs);
    let (wide, stride) = match across_kernel {
        Some(kernel) => horizontal(level, cut, needed.clone(), kernel),
        None => (columns(cut, needed.clone(), given(across)), outputs * 3),
    };
    let row_bytes = outputs * 3;
    match down_kernel {
        Some(kernel) => vertical(level, &wide, stride, row_bytes, needed.start, kernel),
        None if stride == row_bytes => wide,
        None => wide.chunks_exact(stride).flat_map(|row| &row[..row_bytes]).copied().collect(),
    }
}

/// The outputs of a direction that keeps its length, as places in the cut.
fn given(axis: &Axis) -> Range<usize> {
    axis.outputs.start - axis.origin..axis.outputs.end - axis.origin
}

/// The given rows and columns of the cut without gaps.
fn columns(cut: &Cut, rows: Range<usize>, columns: Range<usize>) -> Vec<u8> {
    let mut out = vec![0; rows.len() * cut.width * 3];
    cut.copy(rows.start, &mut out);
    if columns == (0..cut.width) {
        return out;
    }
    let bytes = columns.start * 3..columns.end * 3;
    out.chunks_exact(cut.width * 3).flat_map(|row| &row[bytes.clone()]).copied().collect()
}

/// The horizontal pass over the given rows: `[rows, outputs, 3]`, and the bytes from row to row.
fn horizontal(level: Level, cut: &Cut, rows: Range<usize>, kernel: &Kernel) -> (Vec<u8>, usize) {
    let outputs = kernel.starts.len();
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2
        && let Some(taps) = avx2::Taps::new(kernel)
    {
        let stride = avx2::stride(outputs);
        let mut wide = vec![0; rows.len() * stride];
        let mut buffer = Vec::new();
        for (group, out) in wide.chunks_mut(stride * GROUP).enumerate() {
            let count = out.len() / stride;
            let source = cut.rows(rows.start + group * GROUP, count, &mut buffer);
            // SAFETY: the level says that there is AVX2.
            unsafe { avx2::horizontal(source, count, cut.width, &taps, out, stride) };
        }
        return (wide, stride);
    }
    let _ = level;
    let stride = outputs * 3;
    let mut wide = vec![0; rows.len() * stride];
    let mut buffer = Vec::new();
    let mut columns = vec![[0; plain::ROWS * 3]; cut.width];
    for (group, out) in wide.chunks_mut(stride * plain::ROWS).enumerate() {
        let count = out.len() / stride;
        let source = cut.rows(rows.start + group * plain::ROWS, count, &mut buffer);
        plain::horizontal(source, count, kernel, &mut columns, out, stride);
    }
    (wide, stride)
}

/// Rows that pass through the buffer of [`Cut::rows`] together.
#[cfg(target_arch = "x86_64")]
const GROUP: usize = 8;

/// The vertical pass: `[outputs, row_bytes]` without gaps. The rows begin with row `first` of the kernel.
fn vertical(
    level: Level,
    wide: &[u8],
    stride: usize,
    row_bytes: usize,
    first: usize,
    kernel: &Kernel,
) -> Vec<u8> {
    let mut out = vec![0; kernel.starts.len() * row_bytes];
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2
        && row_bytes >= avx2::BLOCK
        && let Some(taps) = avx2::Taps::new(kernel)
    {
        // SAFETY: the level says that there is AVX2.
        unsafe { avx2::vertical(wide, stride, row_bytes, first, kernel, &taps, &mut out) };
        return out;
    }
    let _ = level;
    plain::vertical(wide, stride, row_bytes, first, kernel, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;
    use crate::transform::crop::CropBox;
    use crate::transform::rows::Cut;
    use proptest::prelude::*;

    const FILTERS: [Interpolation; 3] =
        [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos];

    /// Pixels without any order, extremes included.
    fn noise(width: usize, height: usize, seed: u8) -> Image {
        let value = |i: usize| {
            let mixed = (i as u32 + 1).wrapping_mul(2_654_435_761 + u32::from(seed)).to_be_bytes()[0];
            if mixed < 64 { 0 } else { mixed.saturating_mul(2) }
        };
        Image::new(width as u32, height as u32, (0..width * height * 3).map(value).collect()).unwrap()
    }

    /// Both passes as plain loops, also where a length stays as it is: a pass with the single weight 1.
    fn plain(image: &Image, to: (usize, usize), filter: Interpolation) -> Vec<u8> {
        let (w, h) = (image.width as usize, image.height as usize);
        let (across, down) = (Axis::whole(w, to.0), Axis::whole(h, to.1));
        let (across, down) = (Kernel::new(&across, filter), Kernel::new(&down, filter));
        let cut = Cut::new(image, CropBox::whole(image.width, image.height));
        run(Level::Baseline, &cut, &Axis::whole(w, to.0), &Axis::whole(h, to.1), Some(&across), Some(&down))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn every_level_gives_the_bits_of_the_plain_loops(w in 1usize..90, h in 1usize..90, nw in 1usize..90, nh in 1usize..90, seed: u8, kind in 0usize..3, same in 0usize..4) {
            let (nw, nh) = (if same == 1 { w } else { nw }, if same == 2 { h } else { nh });
            let image = noise(w, h, seed);
            let expected = plain(&image, (nw, nh), FILTERS[kind]);
            let cut = Cut::new(&image, CropBox::whole(w as u32, h as u32));
            for level in Level::ALL.into_iter().filter(|&level| level <= simd::level()) {
                let (across, down) = (Axis::whole(w, nw), Axis::whole(h, nh));
                let kernel = |axis: &Axis| (axis.from != axis.to).then(|| Kernel::new(axis, FILTERS[kind]));
                let out = run(level, &cut, &across, &down, kernel(&across).as_ref(), kernel(&down).as_ref());
                prop_assert!(out == expected, "{:?}", level);
            }
        }

        #[test]
        fn a_window_of_a_part_is_the_window_of_the_whole(w in 1usize..60, h in 1usize..60, nw in 1usize..60, nh in 1usize..60, seed: u8, cut_w in 0usize..60, cut_h in 0usize..60, kind in 0usize..3) {
            let image = noise(w, h, seed);
            let whole = plain(&image, (nw, nh), FILTERS[kind]);
            let part = |from, to, cut: usize| {
                let outputs = cut.min(to - 1) / 2..to - cut.min(to - 1) / 3;
                let axis = Axis { outputs, ..Axis::whole(from, to) };
                let inputs = axis.inputs(FILTERS[kind]);
                (Axis { origin: inputs.start, ..axis }, inputs)
            };
            let ((across, columns), (down, rows)) = (part(w, nw, cut_w), part(h, nh, cut_h));
            let area = CropBox { top: rows.start as u32, left: columns.start as u32, height: rows.len() as u32, width: columns.len() as u32 };
            let expected: Vec<u8> = whole.chunks_exact(nw * 3).skip(down.outputs.start).take(down.outputs.len())
                .flat_map(|row| &row[across.outputs.start * 3..across.outputs.end * 3]).copied().collect();
            for level in Level::ALL.into_iter().filter(|&level| level <= simd::level()) {
                let kernel = |axis: &Axis| (axis.from != axis.to).then(|| Kernel::new(axis, FILTERS[kind]));
                let out = run(level, &Cut::new(&image, area), &across, &down, kernel(&across).as_ref(), kernel(&down).as_ref());
                prop_assert!(out == expected, "{:?}", level);
            }
        }
    }
}
