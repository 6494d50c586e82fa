//! Pillow's resampling, to the bit: two passes of a widened kernel over 8-bit values.
//!
//! Why not a crate: `fast_image_resize` 6.1 was measured against Pillow 13 on the golden vectors (suite
//! J): a fifth of the values differ, by up to 10 levels (lanczos, shrinking). This code differs in
//! none. It is three times slower (0.5 against 0.14 ms for 500 x 375 to 64 pixels, AVX2), where decoding
//! that image takes 0.7 ms or more.
//!
//! Horizontal pass first, then vertical; weights in fixed point; each pass rounds and clips to 8
//! bits. The bodies are plain loops that the compiler vectorises, compiled a second time for AVX2
//! and chosen at run time; the integer arithmetic makes both give the same bits.

use crate::transform::resize::Interpolation;

/// Bits behind the point of a weight: what is left of 32 after 8 for the value and 2 for overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// Half a level, added before the bits behind the point are cut off.
const HALF: i32 = 1 << (PRECISION - 1);

/// Resizes `[height, width, 3]` to `[new_height, new_width, 3]`; sizes are given as (width,
/// height), all at least 1.
pub(super) fn resample(
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    filter: Interpolation,
) -> Vec<u8> {
    let ((width, height), (new_width, new_height)) = (from, to);
    let mut wide = Vec::new();
    if width != new_width {
        wide = vec![0; height * new_width * 3];
        run(Pass::Horizontal, data, width, &Kernel::new(width, new_width, filter), &mut wide);
    }
    let source = if width == new_width { data } else { &wide };
    if height == new_height {
        return source.to_vec();
    }
    let mut out = vec![0; new_height * new_width * 3];
    run(Pass::Vertical, source, new_width, &Kernel::new(height, new_height, filter), &mut out);
    out
}

/// The weights of one direction: for each output pixel, where its inputs start and how much each
/// counts.
struct Kernel {
    starts: Vec<usize>,
    lengths: Vec<usize>,
    /// Fixed point, output after output.
    weights: Vec<i32>,
}

impl Kernel {
    fn new(from: usize, to: usize, filter: Interpolation) -> Self {
        let scale = from as f64 / to as f64;
        // Why: when shrinking, the kernel is widened so that every input pixel counts (no
        // aliasing).
        let widen = scale.max(1.0);
        let support = filter_support(filter) * widen;
        let mut kernel =
            Self { starts: Vec::with_capacity(to), lengths: Vec::with_capacity(to), weights: Vec::new() };
        let mut exact: Vec<f64> = Vec::new();
        for out in 0..to {
            let center = (out as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            exact.clear();
            exact.extend(
                (start..end).map(|x| filter_value(filter, (x as f64 - center + 0.5) * (1.0 / widen))),
            );
            let sum: f64 = exact.iter().sum();
            let fixed = |w: f64| {
                let scaled = w / sum * f64::from(1 << PRECISION);
                (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            };
            kernel.starts.push(start);
            kernel.lengths.push(end - start);
            kernel.weights.extend(exact.iter().map(|&w| fixed(w)));
        }
        kernel
    }

    /// Start and weights of each output pixel.
    #[inline(always)]
    fn outputs(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut rest = self.weights.as_slice();
        self.starts.iter().zip(&self.lengths).map(move |(&start, &length)| {
            let (weights, behind) = rest.split_at(length);
            rest = behind;
            (start, weights)
        })
    }
}

/// How far the filter reaches on each side, in output pixels when shrinking and input pixels when
/// growing.
fn filter_support(filter: Interpolation) -> f64 {
    match filter {
        Interpolation::Bilinear => 1.0,
        Interpolation::Bicubic => 2.0,
        Interpolation::Lanczos => 3.0,
    }
}

fn filter_value(filter: Interpolation, x: f64) -> f64 {
    let d = x.abs();
    match filter {
        Interpolation::Bilinear => (1.0 - d).max(0.0),
        // Keys 1981, "Cubic convolution interpolation for digital image processing", a = -0.5.
        Interpolation::Bicubic => {
            const A: f64 = -0.5;
            if d < 1.0 {
                ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0
            } else if d < 2.0 {
                (((d - 5.0) * d + 8.0) * d - 4.0) * A
            } else {
                0.0
            }
        }
        Interpolation::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
        Interpolation::Lanczos => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    let angle = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { angle.sin() / angle }
}

#[derive(Clone, Copy)]
enum Pass {
    Horizontal,
    Vertical,
}

/// Runs one pass with the widest instructions this machine has. `width` is that of `data`'s rows.
fn run(pass: Pass, data: &[u8], width: usize, kernel: &Kernel, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the function only needs AVX2, which was just detected.
        unsafe { run_avx2(pass, data, width, kernel, out) };
        return;
    }
    run_plain(pass, data, width, kernel, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2(pass: Pass, data: &[u8], width: usize, kernel: &Kernel, out: &mut [u8]) {
    run_plain(pass, data, width, kernel, out);
}

#[inline(always)]
fn run_plain(pass: Pass, data: &[u8], width: usize, kernel: &Kernel, out: &mut [u8]) {
    match pass {
        Pass::Horizontal => horizontal(data, width, kernel, out),
        Pass::Vertical => vertical(data, width, kernel, out),
    }
}

/// Rows that the horizontal pass takes together: with three channels they fill three AVX2 registers
/// of sums.
const ROWS: usize = 8;

/// Weighted sums along each row: `[height, width, 3]` to `[height, outputs, 3]`.
///
/// Why eight rows at a time: the rows are first interleaved to `[width, 8 * 3]`, so that one weight
/// meets 24 neighbouring bytes. Row by row only three values share a weight, which was measured to
/// be ten times slower.
#[inline(always)]
fn horizontal(data: &[u8], width: usize, kernel: &Kernel, out: &mut [u8]) {
    let out_stride = kernel.starts.len() * 3;
    let mut columns = vec![[0u8; ROWS * 3]; width];
    let groups = data.chunks(width * 3 * ROWS).zip(out.chunks_mut(out_stride * ROWS));
    for (source, out_rows) in groups {
        for (number, row) in source.chunks_exact(width * 3).enumerate() {
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
            for (out_row, pixel) in out_rows.chunks_exact_mut(out_stride).zip(done.as_chunks::<3>().0) {
                out_row[position * 3..position * 3 + 3].copy_from_slice(pixel);
            }
        }
    }
}

/// Weighted sums of whole rows: `[height, width, 3]` to `[outputs, width, 3]`.
#[inline(always)]
fn vertical(data: &[u8], width: usize, kernel: &Kernel, out: &mut [u8]) {
    const LANES: usize = 32;
    let stride = width * 3;
    for (out_row, (start, weights)) in out.chunks_exact_mut(stride).zip(kernel.outputs()) {
        let rows = &data[start * stride..(start + weights.len()) * stride];
        let (blocks, rest) = out_row.as_chunks_mut::<LANES>();
        let done = blocks.len() * LANES;
        for (number, block) in blocks.iter_mut().enumerate() {
            let mut sums = [HALF; LANES];
            for (row, &weight) in rows.chunks_exact(stride).zip(weights) {
                let values = &row[number * LANES..(number + 1) * LANES];
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum += weight * i32::from(value);
                }
            }
            *block = sums.map(clip);
        }
        for (column, value) in (done..).zip(rest) {
            let terms =
                rows.chunks_exact(stride).zip(weights).map(|(row, &weight)| weight * i32::from(row[column]));
            *value = clip(HALF + terms.sum::<i32>());
        }
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILTERS: [Interpolation; 3] =
        [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        // The vector code against the same loops compiled for the base instruction set.
        #[test]
        fn detected_instructions_change_no_bit(w in 1usize..90, h in 1usize..90, nw in 1usize..90, nh in 1usize..90, seed: u8, kind in 0usize..3) {
            let data: Vec<u8> = (0..w * h * 3).map(|i| (i as u32).wrapping_mul(2_654_435_761 + u32::from(seed)).to_be_bytes()[0]).collect();
            let (across, down) = (Kernel::new(w, nw, FILTERS[kind]), Kernel::new(h, nh, FILTERS[kind]));
            let mut wide = vec![0; nw * h * 3];
            let mut out = vec![0; nw * nh * 3];
            horizontal(&data, w, &across, &mut wide);
            vertical(&wide, nw, &down, &mut out);
            let fast = resample(&data, (w, h), (nw, nh), FILTERS[kind]);
            // An untouched direction is a pass with the single weight 1, so the comparison holds
            // there too.
            prop_assert_eq!(fast, out);
        }
    }

    #[test]
    fn weights_sum_to_one() {
        for (from, to) in [(1, 7), (500, 224), (224, 500), (4000, 3), (64, 64)] {
            for filter in FILTERS {
                for (start, weights) in Kernel::new(from, to, filter).outputs() {
                    let sum: i32 = weights.iter().sum();
                    assert!((sum - (1 << PRECISION)).unsigned_abs() as usize <= weights.len());
                    assert!(!weights.is_empty() && start + weights.len() <= from);
                }
            }
        }
    }
}
