//! Both passes with AVX-512 and its byte products (VNNI): four taps at a time.
//!
//! A weight is `d2 << 16 + d1 << 8 + d0` with signed 8-bit digits, and `vpdpbusd` adds the products of four unsigned bytes
//! and four digits to a sum; the three sums are put together at the end. All of it is arithmetic modulo 2^32, so
//! nothing is lost.
//!
//! Between the passes four rows are interleaved byte by byte, so that the vertical pass finds its four taps side by
//! side.

use std::arch::x86_64::*;

use crate::transform::resample::GROUP;
use crate::transform::resample::kernel::{HALF, Kernel, PRECISION};
use crate::transform::rows::{Cut, Rows, SLACK};

/// A kernel in groups of four inputs; the weights of inputs that do not count are 0.
struct Digits {
    /// Of each output: its first group's first input, and its number of groups.
    outputs: Vec<(usize, usize)>,
    /// The digits of four weights, lowest first: byte `i` of a number belongs to weight `i`.
    groups: Vec<[i32; 3]>,
}

impl Digits {
    /// Groups that begin with the first input that counts, or with `aligned` at a multiple of four inputs from
    /// `first` on. `None` when a weight has more than three digits: there is no such filter today.
    fn new(kernel: &Kernel, first: usize, aligned: bool) -> Option<Self> {
        let mut outputs = Vec::with_capacity(kernel.starts.len());
        let mut groups = Vec::with_capacity(kernel.weights.len() / 2);
        for (start, weights) in kernel.outputs() {
            let ahead = if aligned { (start - first) % 4 } else { 0 };
            let count = (ahead + weights.len()).div_ceil(4);
            outputs.push((start - first - ahead, count));
            let before = groups.len();
            groups.resize(before + count, [0; 3]);
            for (place, &weight) in (ahead..).zip(weights) {
                // The same number modulo 2^24 as unsigned digits of an offset weight, each 128 too large.
                let shifted = weight + 0x0080_8080;
                if !(0..1 << 24).contains(&shifted) {
                    return None;
                }
                let digits = (shifted ^ 0x0080_8080).to_le_bytes();
                for (number, digit) in groups[before + place / 4].iter_mut().zip(digits) {
                    *number |= i32::from(digit) << (8 * (place % 4));
                }
            }
        }
        Some(Self { outputs, groups })
    }
}

/// Resizes in both directions: `[down outputs, across outputs, 3]`. `None` for a kernel that does not fit.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn resample(cut: &Cut, across: &Kernel, down: &Kernel) -> Option<Vec<u8>> {
    let rows = down.inputs();
    let across_digits = Digits::new(across, 0, false)?;
    let down_digits = Digits::new(down, rows.start, true)?;
    assert!(across.inputs().end <= cut.width && rows.end <= cut.height);
    let values = across.starts.len() * 3;
    // A store of a pixel has 16 bytes, of which 12 count.
    let stride = (values * 4 + 4).next_multiple_of(64);
    let mut wide = vec![0; rows.len().div_ceil(4) * stride];
    let mut buffer = Vec::new();
    for (group, out) in wide.chunks_mut(stride * GROUP / 4).enumerate() {
        let first = group * GROUP;
        let count = GROUP.min(rows.len() - first);
        let source = cut.rows(rows.start + first, count, &mut buffer);
        assert!(source.data.len() >= (count - 1) * source.stride + cut.width * 3 + SLACK);
        for (four, out) in out.chunks_exact_mut(stride).enumerate() {
            // SAFETY: every group of inputs begins inside the `cut.width` pixels, and the rows have slack behind
            // them; `out` has room for 16 bytes at each output. All asserted above.
            unsafe { horizontal(source, four * 4, count, &across_digits, out) };
        }
    }
    let mut out = vec![0; down.starts.len() * values];
    let mut groups = down_digits.groups.as_slice();
    for (out_row, &(first, count)) in out.chunks_exact_mut(values).zip(&down_digits.outputs) {
        let (mine, behind) = groups.split_at(count);
        groups = behind;
        vertical(&wide[first / 4 * stride..][..count * stride], stride, mine, out_row);
    }
    Some(out)
}

/// Weighted sums along four rows from `first` on (rows beyond `count` are the last one): `[outputs, 3, 4 rows]`.
///
/// # Safety
/// 16 bytes can be read from each group's first pixel on, in each of `count` rows; `out` has 12 bytes for each output and
/// four more.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn horizontal(rows: Rows, first: usize, count: usize, digits: &Digits, out: &mut [u8]) {
    // Four pixels, channel by channel.
    let taps = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    // A pixel of each of four rows to four rows of each channel.
    let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let source =
        [0, 1, 2, 3].map(|number| rows.data[(first + number).min(count - 1) * rows.stride..].as_ptr());
    let out = out.as_mut_ptr();
    let mut groups = digits.groups.as_slice();
    for (position, &(start, length)) in digits.outputs.iter().enumerate() {
        let (mine, behind) = groups.split_at(length);
        groups = behind;
        let mut sums = [_mm512_setzero_si512(); 3];
        for (number, weights) in mine.iter().enumerate() {
            let at = (start + number * 4) * 3;
            // SAFETY: the caller's promise.
            let four = unsafe {
                let row = |number: usize| _mm_loadu_si128(source[number].add(at).cast());
                let two = |a: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(a)), row(a + 1));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(two(0)), two(2))
            };
            let four = _mm512_shuffle_epi8(four, taps);
            for (sum, &digits) in sums.iter_mut().zip(weights) {
                *sum = _mm512_dpbusd_epi32(*sum, four, _mm512_set1_epi32(digits));
            }
        }
        let pixels = _mm_shuffle_epi8(finish(sums), turn);
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(out.add(position * 12).cast(), pixels) };
    }
}

/// One output row from groups of four interleaved rows, which lie `stride` bytes apart; a multiple of 64.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn vertical(wide: &[u8], stride: usize, groups: &[[i32; 3]], out: &mut [u8]) {
    assert!(wide.len() == groups.len() * stride && out.len() * 4 <= stride && stride.is_multiple_of(64));
    let columns = |first: usize| {
        let mut sums = [_mm512_setzero_si512(); 3];
        for (number, weights) in groups.iter().enumerate() {
            // SAFETY: 64 bytes of a group of rows; `first` is below the length of `out` and a multiple of 16.
            let four = unsafe { _mm512_loadu_si512(wide.as_ptr().add(number * stride + first * 4).cast()) };
            for (sum, &digits) in sums.iter_mut().zip(weights) {
                *sum = _mm512_dpbusd_epi32(*sum, four, _mm512_set1_epi32(digits));
            }
        }
        finish(sums)
    };
    let (blocks, rest) = out.as_chunks_mut::<16>();
    let done = blocks.len() * 16;
    for (number, block) in blocks.iter_mut().enumerate() {
        let bytes = columns(number * 16);
        // SAFETY: the block has 16 bytes.
        unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), bytes) };
    }
    if !rest.is_empty() {
        let mut block = [0u8; 16];
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), columns(done)) };
        rest.copy_from_slice(&block[..rest.len()]);
    }
}

/// Puts the sums of the three digits together, cuts the bits behind the point off and clips.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn finish([low, middle, high]: [__m512i; 3]) -> __m128i {
    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), middle);
    let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), low);
    let sum = _mm512_add_epi32(sum, _mm512_set1_epi32(HALF));
    let whole = _mm512_srai_epi32::<{ PRECISION }>(sum);
    _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()))
}
