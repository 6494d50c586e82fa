//! Colour steps in single precision, eight pixels at a time, with AVX2.
//!
//! A value stays a whole number in f32 from step to step. Grey values are exact there too: all sums are whole numbers
//! below 2^24.

use std::arch::x86_64::*;

use crate::transform::pixel_steps::Step;

/// Bytes of eight pixels.
const BLOCK: usize = 24;

/// Blocks that are computed together: one alone waits for its own results most of the time.
const MANY: usize = 4;

/// Bytes that are read behind the last block.
const BEHIND: usize = 4;

/// Applies the steps, in order, to the first pixels, as many as come in whole blocks with four bytes behind them. Returns how
/// many that are.
#[target_feature(enable = "avx2")]
pub(super) fn apply(steps: &[Step], pixels: &mut [[u8; 3]]) -> usize {
    let bytes = pixels.as_flattened_mut();
    let mut at = 0;
    while at + MANY * BLOCK + BEHIND <= bytes.len() {
        apply_blocks::<MANY>(steps, &mut bytes[at..at + MANY * BLOCK + BEHIND]);
        at += MANY * BLOCK;
    }
    while at + BLOCK + BEHIND <= bytes.len() {
        apply_blocks::<1>(steps, &mut bytes[at..at + BLOCK + BEHIND]);
        at += BLOCK;
    }
    at / 3
}

#[inline]
#[target_feature(enable = "avx2")]
fn apply_blocks<const N: usize>(steps: &[Step], bytes: &mut [u8]) {
    // Red, green and blue of four pixels in the low bytes of 32-bit numbers, to 12 bytes.
    let pack =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    let mut blocks = load::<N>(bytes);
    staged(steps, &mut blocks);
    for (number, [r, g, b]) in blocks.into_iter().enumerate() {
        let (r, g, b) = (_mm256_cvttps_epi32(r), _mm256_cvttps_epi32(g), _mm256_cvttps_epi32(b));
        let words =
            _mm256_or_si256(r, _mm256_or_si256(_mm256_slli_epi32::<8>(g), _mm256_slli_epi32::<16>(b)));
        let packed = _mm256_shuffle_epi8(words, pack);
        let (first, second) = (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
        let out = bytes[number * BLOCK..(number + 1) * BLOCK].as_mut_ptr();
        // SAFETY: 24 bytes.
        unsafe {
            _mm_storeu_si128(out.cast(), first);
            _mm_storel_epi64(out.add(12).cast(), second);
            out.add(20).cast::<i32>().write_unaligned(_mm_extract_epi32::<2>(second));
        }
    }
}

/// Sum of the grey values that the steps would leave in the first pixels, as for [`apply`], and how many pixels that are.
#[target_feature(enable = "avx2")]
pub(super) fn luma_sum(steps: &[Step], pixels: &[[u8; 3]]) -> (u64, usize) {
    let bytes = pixels.as_flattened();
    let (mut at, mut sum) = (0, 0);
    while at + MANY * BLOCK + BEHIND <= bytes.len() {
        let mut sums = _mm256_setzero_si256();
        // Each of the eight sums stays below 2^31.
        for _ in 0..1 << 16 {
            if at + MANY * BLOCK + BEHIND > bytes.len() {
                break;
            }
            let mut blocks = load::<MANY>(&bytes[at..]);
            staged(steps, &mut blocks);
            for block in blocks {
                sums = _mm256_add_epi32(sums, _mm256_cvttps_epi32(luma(block)));
            }
            at += MANY * BLOCK;
        }
        let mut eight = [0u32; 8];
        // SAFETY: eight numbers of 32 bits.
        unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), sums) };
        sum += eight.iter().map(|&sum| u64::from(sum)).sum::<u64>();
    }
    (sum, at / 3)
}

/// Red, green and blue of eight pixels in each of the first blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn load<const N: usize>(bytes: &[u8]) -> [[__m256; 3]; N] {
    assert!(bytes.len() >= N * BLOCK + BEHIND);
    let mut blocks = [[_mm256_setzero_ps(); 3]; N];
    for (number, block) in blocks.iter_mut().enumerate() {
        // SAFETY: 28 bytes from the block's first on.
        let pixels = unsafe {
            let start = bytes.as_ptr().add(number * BLOCK);
            let (first, second) = (_mm_loadu_si128(start.cast()), _mm_loadu_si128(start.add(12).cast()));
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second)
        };
        for (color, values) in (0i8..).zip(block) {
            let z = -1;
            let [a, b, c, d] = [color, color + 3, color + 6, color + 9];
            let of_four = _mm_setr_epi8(a, z, z, z, b, z, z, z, c, z, z, z, d, z, z, z);
            let bytes = _mm256_shuffle_epi8(pixels, _mm256_broadcastsi128_si256(of_four));
            *values = _mm256_cvtepi32_ps(bytes);
        }
    }
    blocks
}

#[inline]
#[target_feature(enable = "avx2")]
fn staged<const N: usize>(steps: &[Step], blocks: &mut [[__m256; 3]; N]) {
    for step in steps {
        match *step {
            // Differences from 0 and sums with 0 are exact: they can be left out.
            Step::Blend { degenerate: 0, factor } if factor >= 0.0 && factor.is_finite() => {
                let (factor, most) = (_mm256_set1_ps(factor), _mm256_set1_ps(255.0));
                for color in blocks.as_flattened_mut() {
                    *color = _mm256_min_ps(cut(_mm256_mul_ps(*color, factor)), most);
                }
            }
            // Between the two, nothing has to be clipped.
            Step::Blend { degenerate, factor } if (0.0..=1.0).contains(&factor) => {
                let (degenerate, factor) = (_mm256_set1_ps(degenerate.into()), _mm256_set1_ps(factor));
                for color in blocks.as_flattened_mut() {
                    *color = cut(between(degenerate, *color, factor));
                }
            }
            Step::Blend { degenerate, factor } => {
                let (degenerate, factor) = (_mm256_set1_ps(degenerate.into()), _mm256_set1_ps(factor));
                for color in blocks.as_flattened_mut() {
                    *color = clip(cut(between(degenerate, *color, factor)));
                }
            }
            Step::Saturation { factor } => {
                let inside = (0.0..=1.0).contains(&factor);
                let factor = _mm256_set1_ps(factor);
                for block in &mut *blocks {
                    let gray = luma(*block);
                    for color in block {
                        let whole = cut(between(gray, *color, factor));
                        *color = if inside { whole } else { clip(whole) };
                    }
                }
            }
        }
    }
}

/// The sum of `jitter::blend`; nothing is fused.
#[inline]
#[target_feature(enable = "avx2")]
fn between(degenerate: __m256, value: __m256, factor: __m256) -> __m256 {
    _mm256_add_ps(degenerate, _mm256_mul_ps(factor, _mm256_sub_ps(value, degenerate)))
}

/// Cuts fractions off.
#[inline]
#[target_feature(enable = "avx2")]
fn cut(value: __m256) -> __m256 {
    _mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(value)
}

/// Clips to 0..=255. A NaN becomes 0, as a cast makes it: the second operand is the result where one is NaN.
#[inline]
#[target_feature(enable = "avx2")]
fn clip(whole: __m256) -> __m256 {
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
