//! `x·Wᵀ + b` of 8-bit integers, for frozen models on the CPU.
//!
//! Contract: a weight has a scale for each output (its largest magnitude becomes 127), a row of activations has one of its
//! own, found when it is met. Products are summed as integers, exactly, so a result does not depend on threads or on the
//! instruction set. A row or a weight that holds a NaN or an infinity gives NaN, never a number.
//!
//! Fast where the CPU multiplies bytes (AVX-512 VNNI); correct everywhere.

mod plain;
#[cfg(target_arch = "x86_64")]
mod vnni;

use rayon::prelude::*;

use crate::interrupt::Rest;
use crate::matrix::Matrix;
use crate::memory::Buffer;
use crate::rows::Rows;
use crate::simd::dispatch;
#[cfg(target_arch = "x86_64")]
use crate::simd::multiplies_bytes;

/// Outputs of a panel.
const COLS: usize = 32;
/// Values of the inner axis that one instruction sums up.
const GROUP: usize = 4;
/// What is added to an activation, so that it is a number without a sign.
const OFFSET: u8 = 128;
/// The largest magnitude.
const LARGEST: f32 = 127.0;

/// Rows of a tile: 24 registers hold its sums.
const ROWS: usize = 12;
/// Tiles of rows of a task: its activations stay in the second-level cache.
const TILES: usize = 12;
/// Panels of a task that has all rows.
const PANELS: usize = 6;

/// Four values of the inner axis for each output of a panel.
type Word = [[i8; GROUP]; COLS];

/// A weight `[out, in]` in integers, in panels that tiles read in order.
#[derive(Debug)]
pub(crate) struct Int8Weight {
    inner: usize,
    out: usize,
    /// Panel after panel, each of `inner` / 4 words.
    words: Vec<Word>,
    /// Of each output, and 0 behind the last.
    scales: Vec<f32>,
    /// What the offset of the activations adds to each output's sum, negated.
    starts: Vec<i32>,
}

/// Rows of activations in integers with [`OFFSET`], `stride` bytes apart, zeros behind the last value.
struct Activations {
    data: Buffer,
    stride: usize,
    /// Of each row.
    scales: Buffer,
}

/// A tile: some rows of the result in one panel of outputs.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// From the tile's first row on.
    activations: &'a [u8],
    stride: usize,
    words: &'a [Word],
    starts: &'a [i32; COLS],
}

impl Int8Weight {
    /// Rounds a weight `[out, in]`, both at least 1.
    pub(crate) fn new(weight: Matrix<'_>) -> Self {
        let (out, inner) = (weight.rows(), weight.cols());
        let (groups, panels) = (inner.div_ceil(GROUP), out.div_ceil(COLS));
        let mut words = vec![[[0; GROUP]; COLS]; panels * groups];
        let (mut scales, mut starts) = (vec![0.0; panels * COLS], vec![0; panels * COLS]);
        let each =
            words.par_chunks_mut(groups).zip(scales.par_chunks_mut(COLS)).zip(starts.par_chunks_mut(COLS));
        each.enumerate().for_each(|(panel, ((words, scales), starts))| {
            let mut row = vec![0.0; inner];
            for column in 0..COLS.min(out - panel * COLS) {
                for (at, value) in row.iter_mut().enumerate() {
                    *value = weight.data[(panel * COLS + column) * weight.row + at * weight.col];
                }
                let (scale, inverse) = scale(&row);
                scales[column] = scale;
                let mut sum = 0;
                for (at, value) in row.iter().enumerate() {
                    let whole = (value * inverse).round_ties_even() as i8;
                    words[at / GROUP][column][at % GROUP] = whole;
                    sum += i32::from(whole);
                }
                starts[column] = -i32::from(OFFSET) * sum;
            }
        });
        Self { inner, out, words, scales, starts }
    }

    /// `[out, in]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.out, self.inner]
    }

    /// `y = x·Wᵀ + bias` for `rows` rows, on all threads.
    pub(crate) fn matmul(&self, y: &mut [f32], bias: Option<&[f32]>, x: Matrix<'_>) {
        let rows = x.rows();
        assert!(x.cols() == self.inner && y.len() == rows * self.out);
        assert!(bias.is_none_or(|bias| bias.len() == self.out));
        let x = Activations::new(x);
        let (tiles, panels) = (rows.div_ceil(ROWS), self.out.div_ceil(COLS));
        // Few rows are cut by outputs, so that each thread reads its part of the weight once.
        let few = tiles <= 2 * TILES;
        let (high, wide) = if few { (tiles.max(1), PANELS) } else { (TILES, panels) };
        let (down, across) = (tiles.div_ceil(high), panels.div_ceil(wide));
        let (out, rest) = (Rows::new(y, 1), Rest::here());
        (0..down * across).into_par_iter().for_each(|task| {
            if rest.is_left_out() {
                return;
            }
            let (i, j) = (task / across, task % across);
            for panel in j * wide..((j + 1) * wide).min(panels) {
                for tile in i * high..((i + 1) * high).min(tiles) {
                    self.tile(out, bias, &x, rows, tile, panel);
                }
            }
        });
    }

    /// Computes one tile and writes it. Nobody else writes to its part of the result.
    fn tile(
        &self,
        out: Rows<'_, f32>,
        bias: Option<&[f32]>,
        x: &Activations,
        rows: usize,
        tile: usize,
        panel: usize,
    ) {
        let (first_row, first) = (tile * ROWS, panel * COLS);
        let high = ROWS.min(rows - first_row);
        let wide = COLS.min(self.out - first);
        let groups = self.inner.div_ceil(GROUP);
        let activations = &x.bytes()[first_row * x.stride..(first_row + high) * x.stride];
        let Some((starts, _)) = self.starts[first..].split_first_chunk() else { return };
        let words = &self.words[panel * groups..(panel + 1) * groups];
        let sums = sums(Tile { activations, stride: x.stride, words, starts });
        let scales = &self.scales[first..first + wide];
        for (row, sums) in sums.iter().enumerate().take(high) {
            let place = (first_row + row) * self.out + first;
            // SAFETY: this row and these outputs belong to this tile alone.
            let out = unsafe { out.some(&(place..place + wide)) };
            let scale = x.scales[first_row + row];
            match bias {
                Some(bias) => finish(sums, scale, scales, &bias[first..first + wide], out),
                None => finish(sums, scale, scales, &[0.0; COLS][..wide], out),
            }
        }
    }
}

/// The sums of a tile's rows, by the best instructions of this CPU.
fn sums(tile: Tile<'_>) -> [[i32; COLS]; ROWS] {
    #[cfg(target_arch = "x86_64")]
    if multiplies_bytes() {
        // SAFETY: the instructions were just found.
        return unsafe { vnni::sums(tile) };
    }
    plain::sums(tile)
}

dispatch!(fn finish(sums: &[i32; COLS], scale: f32, scales: &[f32], bias: &[f32], out: &mut [f32]) => finish_body);

#[inline(always)]
fn finish_body<const FMA: bool>(
    sums: &[i32; COLS],
    scale: f32,
    scales: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    for (((out, &sum), by), bias) in out.iter_mut().zip(sums).zip(scales).zip(bias) {
        // Not fused, so that every instruction set gives the same.
        *out = sum as f32 * (scale * by) + bias;
    }
}

impl Activations {
    fn new(x: Matrix<'_>) -> Self {
        let (rows, cols) = (x.rows(), x.cols());
        let stride = cols.next_multiple_of(GROUP);
        let mut data = Buffer::any((rows * stride).div_ceil(size_of::<f32>()));
        let mut scales = Buffer::any(rows);
        let bytes: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut data)[..rows * stride];
        bytes.par_chunks_mut(stride).zip(scales.par_iter_mut()).enumerate().for_each(|(row, (to, scale))| {
            let from = &x.data[row * x.row..];
            *scale = match x.col {
                1 => round(&from[..cols], to),
                apart => round(&from.iter().step_by(apart).take(cols).copied().collect::<Vec<_>>(), to),
            };
        });
        Self { data, stride, scales }
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }
}

dispatch!(
    /// Rounds a row; its scale. Places behind its end become 0.
    fn round(from: &[f32], to: &mut [u8]) -> f32 => round_body
);

#[inline(always)]
fn round_body<const FMA: bool>(from: &[f32], to: &mut [u8]) -> f32 {
    let (scale, inverse) = scale(from);
    let (values, behind) = to.split_at_mut(from.len());
    // Adding 1.5·2²³ rounds to a whole number, ties to even, in the low bits of the mantissa; what a NaN gives is not used.
    const MAGIC: f32 = 12_582_912.0;
    for (to, from) in values.iter_mut().zip(from) {
        *to = (from * inverse + MAGIC).to_bits().wrapping_add(OFFSET.into()) as u8;
    }
    behind.fill(0);
    scale
}

/// What a whole number of these values stands for, and its inverse; NaN if one of them is not a number or infinite.
#[inline(always)]
fn scale(values: &[f32]) -> (f32, f32) {
    const LANES: usize = 32;
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut most = [0f32; LANES];
    let mut wrong = [0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            let size = chunk[i].abs();
            most[i] = if size > most[i] { size } else { most[i] };
            // Stays 0 for every finite number.
            wrong[i] += size * 0.0;
        }
    }
    for (i, value) in tail.iter().enumerate() {
        let size = value.abs();
        most[i] = if size > most[i] { size } else { most[i] };
        wrong[i] += size * 0.0;
    }
    let most = most.into_iter().fold(0.0, f32::max);
    let wrong: f32 = wrong.into_iter().sum();
    let scale = most / LARGEST + wrong;
    // A row of zeros, or of numbers whose scale is no normal number: 0.
    match scale >= f32::MIN_POSITIVE {
        true => (scale, LARGEST / most),
        false => (if wrong == 0.0 { 0.0 } else { f32::NAN }, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn floats(n: usize, seed: u64, size: f64) -> Vec<f32> {
        random(n, seed, size).into_iter().map(|x| x as f32).collect()
    }

    fn multiply(x: &[f32], w: &[f32], bias: Option<&[f32]>, [rows, inner, out]: [usize; 3]) -> Vec<f32> {
        let weight = Int8Weight::new(Matrix::new(w, out, inner, inner));
        let mut y = vec![f32::NAN; rows * out];
        weight.matmul(&mut y, bias, Matrix::new(x, rows, inner, inner));
        y
    }

    /// The definition, in f64 but for the scales.
    fn reference(x: &[f32], w: &[f32], bias: &[f32], [rows, inner, out]: [usize; 3]) -> Vec<f32> {
        let whole = |row: &[f32]| {
            let most = row.iter().fold(0f32, |most, x| most.max(x.abs()));
            let (scale, inverse) = (most / LARGEST, LARGEST / most);
            (scale, row.iter().map(|x| f64::from((x * inverse).round_ties_even())).collect::<Vec<_>>())
        };
        let (x, w): (Vec<_>, Vec<_>) =
            (x.chunks(inner).map(whole).collect(), w.chunks(inner).map(whole).collect());
        let mut y = Vec::new();
        for (scale, x) in &x[..rows] {
            for ((by, w), bias) in w[..out].iter().zip(bias) {
                let sum: f64 = x.iter().zip(w).map(|(a, b)| a * b).sum();
                y.push(sum as f32 * (scale * by) + bias);
            }
        }
        y
    }

    #[test]
    fn integers_are_those_of_the_definition() {
        for dims in [[1, 1, 1], [13, 7, 33], [197, 48, 65], [300, 129, 32], [40, 130, 500]] {
            let [rows, inner, out] = dims;
            let (x, w, b) = (floats(rows * inner, 1, 2.0), floats(out * inner, 2, 0.1), floats(out, 3, 1.0));
            let expected = reference(&x, &w, &b, dims);
            assert!(multiply(&x, &w, Some(&b), dims) == expected, "{dims:?}");
        }
    }

    #[test]
    fn the_fast_sums_are_the_plain_ones() {
        for rows in [1, 5, ROWS] {
            let words: Vec<Word> = (0..9i32)
                .map(|at| {
                    std::array::from_fn(|c| {
                        std::array::from_fn(|k| (at * 97 + c as i32 * 31 + k as i32 * 53) as i8)
                    })
                })
                .collect();
            let activations: Vec<u8> = (0..rows * 36).map(|at| (at * 89 % 251) as u8).collect();
            let tile = Tile { activations: &activations, stride: 36, words: &words, starts: &[-7; COLS] };
            let (fast, plain) = (sums(tile), plain::sums(tile));
            assert_eq!(fast[..rows], plain[..rows]);
        }
    }

    #[test]
    fn results_are_close_to_the_exact_ones() {
        let dims @ [rows, inner, out] = [50, 384, 96];
        let (x, w) = (floats(rows * inner, 4, 1.0), floats(out * inner, 5, 0.05));
        let found = multiply(&x, &w, None, dims);
        let (mut error, mut size) = (0.0, 0.0);
        for row in 0..rows {
            for column in 0..out {
                let pairs = x[row * inner..][..inner].iter().zip(&w[column * inner..][..inner]);
                let exact: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                error += (f64::from(found[row * out + column]) - exact).powi(2);
                size += exact * exact;
            }
        }
        assert!((error / size).sqrt() < 0.02, "{}", (error / size).sqrt());
    }

    #[test]
    fn what_is_not_a_number_stays_visible() {
        let dims = [3, 5, 2];
        let mut x = vec![1.0; 15];
        (x[7], x[12]) = (f32::NAN, f32::INFINITY);
        let y = multiply(&x, &[1.0; 10], None, dims);
        assert_eq!(y[..2], [5.0, 5.0]);
        assert!(y[2..].iter().all(|y| y.is_nan()), "{y:?}");
        let mut w = [1.0; 10];
        w[9] = f32::NEG_INFINITY;
        let y = multiply(&[1.0; 15], &w, None, dims);
        assert!(y[0] == 5.0 && y[1].is_nan(), "{y:?}");
        assert_eq!(multiply(&[0.0; 15], &[1.0; 10], Some(&[2.0, 3.0]), dims)[..2], [2.0, 3.0]);
    }
}
