//! The two passes with AVX2: two taps at a time by products of 16-bit numbers.
//!
//! A weight is `high << LOW_BITS | low` with both parts in 16 bits, so that `vpmaddwd` multiplies two values by two weights
//! and adds; the sums of the two parts are put together at the end. All of it is arithmetic modulo 2^32, so nothing
//! is lost.

use std::arch::x86_64::*;

use crate::transform::resample::kernel::{HALF, Kernel, PRECISION};
use crate::transform::rows::{Rows, SLACK};

/// Bits of the low part of a weight.
const LOW_BITS: u32 = 11;

/// A kernel cut into groups of four weights; those that are missing in the last group are 0.
pub(super) struct Taps {
    /// Of each output: its first input, and its number of groups.
    outputs: Vec<(usize, usize)>,
    /// High parts of the first and the second pair of weights, then the low parts.
    groups: Vec<[i32; 4]>,
    /// Behind the last input.
    end: usize,
}

impl Taps {
    /// `None` when a weight has more than 16 bits above the low part: there is no such filter today.
    pub fn new(kernel: &Kernel) -> Option<Self> {
        let mut outputs = Vec::with_capacity(kernel.starts.len());
        let mut groups = Vec::with_capacity(kernel.weights.len() / 3);
        for (start, weights) in kernel.outputs() {
            outputs.push((start, weights.len().div_ceil(4)));
            for four in weights.chunks(4) {
                let part = |at: usize| {
                    let weight = four.get(at).copied().unwrap_or(0);
                    (i16::try_from(weight >> LOW_BITS), weight & ((1 << LOW_BITS) - 1))
                };
                let parts = [part(0), part(1), part(2), part(3)];
                let [Ok(a), Ok(b), Ok(c), Ok(d)] = parts.map(|(high, _)| high) else { return None };
                let high = |first: i16, second: i16| i32::from(first) & 0xFFFF | i32::from(second) << 16;
                let low = parts.map(|(_, low)| low);
                groups.push([high(a, b), high(c, d), low[0] | low[1] << 16, low[2] | low[3] << 16]);
            }
        }
        Some(Self { outputs, groups, end: kernel.inputs().end })
    }
}

/// Bytes from row to row of what the horizontal pass writes: a store of a pixel has a fourth byte.
pub(super) fn stride(outputs: usize) -> usize {
    (outputs * 3 + 1).next_multiple_of(32)
}

/// Weighted sums along rows of `width` pixels, four rows at a time, to rows of `out_stride` bytes.
#[target_feature(enable = "avx2")]
pub(super) fn horizontal(
    rows: Rows,
    count: usize,
    width: usize,
    taps: &Taps,
    out: &mut [u8],
    out_stride: usize,
) {
    assert!(taps.end <= width && count > 0);
    assert!(rows.data.len() >= (count - 1) * rows.stride + width * 3 + SLACK);
    assert!(taps.outputs.len() * 3 < out_stride && out.len() >= count * out_stride);
    // Bytes of four pixels, as 16-bit numbers: the pair of each channel.
    let pair = |first: i8| {
        let z = -1;
        let [r, g, b] = [first, first + 1, first + 2];
        let lane = _mm_setr_epi8(r, z, r + 3, z, g, z, g + 3, z, b, z, b + 3, z, z, z, z, z);
        _mm256_broadcastsi128_si256(lane)
    };
    let (first_pair, second_pair) = (pair(0), pair(6));
    for four in (0..count).step_by(4) {
        // Rows that are not there are the last one, twice.
        let row = |number: usize| (four + number).min(count - 1);
        let source = [0, 1, 2, 3].map(|number| rows.data[row(number) * rows.stride..].as_ptr());
        let target = [0, 1, 2, 3].map(|number| out[row(number) * out_stride..].as_mut_ptr());
        let mut groups = taps.groups.as_slice();
        for (position, &(start, length)) in taps.outputs.iter().enumerate() {
            let (mine, behind) = groups.split_at(length);
            groups = behind;
            let mut high = [_mm256_setzero_si256(); 2];
            let mut low = [_mm256_set1_epi32(HALF); 2];
            for (number, weights) in mine.iter().enumerate() {
                let [high_a, high_b, low_a, low_b] = weights.map(|pair| _mm256_set1_epi32(pair));
                let at = (start + number * 4) * 3;
                for half in 0..2 {
                    // SAFETY: the group begins at one of the first `width` pixels, and 16 bytes from there on lie
                    // inside the row or the slack behind it (asserted above).
                    let both = unsafe {
                        let upper = _mm_loadu_si128(source[half * 2].add(at).cast());
                        let lower = _mm_loadu_si128(source[half * 2 + 1].add(at).cast());
                        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(upper), lower)
                    };
                    let a = _mm256_shuffle_epi8(both, first_pair);
                    let b = _mm256_shuffle_epi8(both, second_pair);
                    let sum = |weights_a, weights_b| {
                        _mm256_add_epi32(_mm256_madd_epi16(a, weights_a), _mm256_madd_epi16(b, weights_b))
                    };
                    high[half] = _mm256_add_epi32(high[half], sum(high_a, high_b));
                    low[half] = _mm256_add_epi32(low[half], sum(low_a, low_b));
                }
            }
            let [first, second] = [0, 1].map(|half| finish(high[half], low[half]));
            // Both packs clip; each 128-bit lane then has a pixel of its row of either half.
            let words = _mm256_packs_epi32(first, second);
            let bytes = _mm256_packus_epi16(words, words);
            let (upper, lower) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            let pixels = [
                _mm_extract_epi32::<0>(upper),
                _mm_extract_epi32::<0>(lower),
                _mm_extract_epi32::<1>(upper),
                _mm_extract_epi32::<1>(lower),
            ];
            for (target, pixel) in target.iter().zip(pixels) {
                // SAFETY: four bytes at any output's place lie inside a row of `out_stride` bytes (asserted above).
                unsafe { target.add(position * 3).cast::<i32>().write_unaligned(pixel) };
            }
        }
    }
}

/// Weighted sums of whole rows, which lie `stride` bytes apart and begin with row `first` of the kernel: to
/// `[outputs, row_bytes]` without gaps. Rows have at least 32 bytes.
#[target_feature(enable = "avx2")]
pub(super) fn vertical(
    data: &[u8],
    stride: usize,
    row_bytes: usize,
    first: usize,
    kernel: &Kernel,
    taps: &Taps,
    out: &mut [u8],
) {
    assert!(row_bytes >= BLOCK && row_bytes <= stride);
    assert!(taps.end > first && data.len() >= (taps.end - first - 1) * stride + row_bytes);
    let mut groups = taps.groups.as_slice();
    for ((out_row, &(start, length)), &rows) in
        out.chunks_exact_mut(row_bytes).zip(&taps.outputs).zip(&kernel.lengths)
    {
        let (mine, behind) = groups.split_at(length);
        groups = behind;
        let source = data[(start - first) * stride..].as_ptr();
        // The last block overlaps the one before it.
        for at in (0..row_bytes).step_by(BLOCK).map(|at| at.min(row_bytes - BLOCK)) {
            // SAFETY: the rows and the columns of the block lie inside `data` (asserted above).
            let block = unsafe { block(source.add(at), stride, rows, mine) };
            // SAFETY: the slice has 32 bytes.
            unsafe { _mm256_storeu_si256(out_row[at..at + BLOCK].as_mut_ptr().cast(), block) };
        }
    }
}

/// Bytes of a register.
pub(super) const BLOCK: usize = 32;

/// 32 columns of one output row.
///
/// # Safety
/// `source` has 32 bytes in each of `rows` rows.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn block(source: *const u8, stride: usize, rows: usize, groups: &[[i32; 4]]) -> __m256i {
    let zero = _mm256_setzero_si256();
    let mut high = [zero; 4];
    let mut low = [_mm256_set1_epi32(HALF); 4];
    for pair in 0..rows.div_ceil(2) {
        let weights = &groups[pair / 2];
        let (weights_high, weights_low) =
            (_mm256_set1_epi32(weights[pair % 2]), _mm256_set1_epi32(weights[2 + pair % 2]));
        // A second row that is not there is the first one, with weight 0.
        let below = (2 * pair + 1).min(rows - 1);
        // SAFETY: the caller's promise.
        let (a, b) = unsafe {
            let row = |number: usize| _mm256_loadu_si256(source.add(number * stride).cast());
            (row(2 * pair), row(below))
        };
        let (left, right) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        let pairs = [
            _mm256_unpacklo_epi8(left, zero),
            _mm256_unpackhi_epi8(left, zero),
            _mm256_unpacklo_epi8(right, zero),
            _mm256_unpackhi_epi8(right, zero),
        ];
        for quarter in 0..4 {
            high[quarter] = _mm256_add_epi32(high[quarter], _mm256_madd_epi16(pairs[quarter], weights_high));
            low[quarter] = _mm256_add_epi32(low[quarter], _mm256_madd_epi16(pairs[quarter], weights_low));
        }
    }
    // Both unpacked and packed within 128-bit lanes, so that the order is the rows' again. The packs clip.
    let [a, b, c, d] = [0, 1, 2, 3].map(|quarter| finish(high[quarter], low[quarter]));
    _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d))
}

/// Puts the sums of both parts together and cuts the bits behind the point off.
#[inline]
#[target_feature(enable = "avx2")]
fn finish(high: __m256i, low: __m256i) -> __m256i {
    let sum = _mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high), low);
    _mm256_srai_epi32::<{ PRECISION as i32 }>(sum)
}
