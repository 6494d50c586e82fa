//! Colour steps in single precision, eight pixels at a time, with AVX2.
//!
//! A value stays a whole number in f32 from step to step. Grey values are exact there too: all sums are whole numbers
//! below 2^24.

use std::arch::x86_64::*;

use crate::transform::pixel_steps::Step;

/// Pixels that are computed together.
pub(super) const BLOCK: usize = 8;

/// Bytes that are read at each block: four more than it has.
const READ: usize = 28;

/// Applies the steps, in order, to the first pixels, as many as come in whole blocks with four bytes behind them. Returns how
/// many that are.
#[target_feature(enable = "avx2")]
pub(super) fn apply(steps: &[Step], pixels: &mut [[u8; 3]]) -> usize {
    let bytes = pixels.as_flattened_mut();
    // Red, green and blue of four pixels in the low bytes of 32-bit numbers, to 12 bytes.
    let pack =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let mut at = 0;
    while at + READ <= bytes.len() {
        let block = &mut bytes[at..at + READ];
        let mut colors = load(block);
        staged(steps, &mut colors);
        let [r, g, b] = colors.map(|color| _mm256_cvttps_epi32(color));
        let words =
            _mm256_or_si256(r, _mm256_or_si256(_mm256_slli_epi32::<8>(g), _mm256_slli_epi32::<16>(b)));
        let packed = _mm256_shuffle_epi8(words, pack);
        let (first, second) = (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
        // SAFETY: the block has 28 bytes, of which 24 are written.
        unsafe {
            let out = block.as_mut_ptr();
            _mm_storeu_si128(out.cast(), first);
            _mm_storel_epi64(out.add(12).cast(), second);
            out.add(20).cast::<i32>().write_unaligned(_mm_extract_epi32::<2>(second));
        }
        at += BLOCK * 3;
    }
    at / 3
}

/// Sum of the grey values that the steps would leave in the first pixels, as for [`apply`], and how many pixels that are.
#[target_feature(enable = "avx2")]
pub(super) fn luma_sum(steps: &[Step], pixels: &[[u8; 3]]) -> (u64, usize) {
    let bytes = pixels.as_flattened();
    let (mut at, mut sum) = (0, 0);
    while at + READ <= bytes.len() {
        let mut sums = _mm256_setzero_si256();
        // Each of the eight sums stays below 2^31.
        for _ in 0..1 << 16 {
            if at + READ > bytes.len() {
                break;
            }
            let mut colors = load(&bytes[at..at + READ]);
            staged(steps, &mut colors);
            sums = _mm256_add_epi32(sums, _mm256_cvttps_epi32(luma(colors)));
            at += BLOCK * 3;
        }
        let mut eight = [0u32; 8];
        // SAFETY: eight numbers of 32 bits.
        unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), sums) };
        sum += eight.iter().map(|&sum| u64::from(sum)).sum::<u64>();
    }
    (sum, at / 3)
}

/// Red, green and blue of eight pixels.
#[inline]
#[target_feature(enable = "avx2")]
fn load(block: &[u8]) -> [__m256; 3] {
    assert!(block.len() >= READ);
    // SAFETY: 28 bytes.
    let pixels = unsafe {
        let first = _mm_loadu_si128(block.as_ptr().cast());
        let second = _mm_loadu_si128(block.as_ptr().add(12).cast());
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second)
    };
    [0, 1, 2].map(|color: i8| {
        let z = -1;
        let of_four =
            _mm_setr_epi8(color, z, z, z, color + 3, z, z, z, color + 6, z, z, z, color + 9, z, z, z);
        _mm256_cvtepi32_ps(_mm256_shuffle_epi8(pixels, _mm256_broadcastsi128_si256(of_four)))
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn staged(steps: &[Step], colors: &mut [__m256; 3]) {
    for step in steps {
        match *step {
            Step::Blend { degenerate, factor } => {
                let (degenerate, factor) = (_mm256_set1_ps(degenerate.into()), _mm256_set1_ps(factor));
                *colors = colors.map(|color| blend(degenerate, color, factor));
            }
            Step::Saturation { factor } => {
                let (gray, factor) = (luma(*colors), _mm256_set1_ps(factor));
                *colors = colors.map(|color| blend(gray, color, factor));
            }
        }
    }
}

/// `jitter::blend`: nothing is fused, and the fraction is cut off before clipping. A NaN becomes 0, as a cast makes it.
#[inline]
#[target_feature(enable = "avx2")]
fn blend(degenerate: __m256, value: __m256, factor: __m256) -> __m256 {
    let moved = _mm256_mul_ps(factor, _mm256_sub_ps(value, degenerate));
    let whole =
        _mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(_mm256_add_ps(degenerate, moved));
    // The second operand is the result where one is NaN.
    _mm256_min_ps(_mm256_max_ps(whole, _mm256_setzero_ps()), _mm256_set1_ps(255.0))
}

/// `jitter::luma` in f32.
#[inline]
#[target_feature(enable = "avx2")]
fn luma([r, g, b]: [__m256; 3]) -> __m256 {
    let weighted = |color, weight| _mm256_mul_ps(color, _mm256_set1_ps(weight));
    let rg = _mm256_add_ps(weighted(r, 19_595.0), weighted(g, 38_470.0));
    let sum = _mm256_add_ps(rg, _mm256_add_ps(weighted(b, 7_471.0), _mm256_set1_ps(32_768.0)));
    _mm256_floor_ps(_mm256_mul_ps(sum, _mm256_set1_ps(1.0 / 65_536.0)))
}
