//! The inverse transform of 8 × 8 coefficients to samples: libjpeg's accurate integer method (`islow`), which is Loeffler,
//! Ligtenberg and Moschytz's "Practical fast 1-D DCT algorithms with 11 multiplications" (ICASSP 1989) in fixed point.
//!
//! The arithmetic is that of libjpeg-turbo's vector code: sums of coefficients wrap at 16 bits and results between the two
//! passes are clipped to 16 bits, which no image within 8 bits ever meets. The plain form does the same steps.

use crate::frame::BLOCK;

/// Bits behind the point of a constant.
const CONSTANT_BITS: i32 = 13;

/// Bits behind the point between the two passes.
const PASS_BITS: i32 = 2;

/// The method's constants with [`CONSTANT_BITS`] bits, by what they multiply. Products that libjpeg sums up in steps are
/// taken together; integer sums do not depend on the order.
mod constant {
    /// Even part: coefficients 2 and 6 to the two middle sums.
    pub(super) const EVEN: [[i16; 2]; 2] = [[4433, 4433 - 15137], [4433 + 6270, 4433]];
    /// Odd part: sums 7 + 3 and 5 + 1 to what they give to two outputs each.
    pub(super) const ODD_SUMS: [[i16; 2]; 2] = [[9633 - 16069, 9633], [9633, 9633 - 3196]];
    /// Coefficients 7 and 1 to outputs 0 and 3 of the odd part.
    pub(super) const OUTER: [[i16; 2]; 2] = [[2446 - 7373, -7373], [-7373, 12299 - 7373]];
    /// Coefficients 5 and 3 to outputs 1 and 2 of the odd part.
    pub(super) const INNER: [[i16; 2]; 2] = [[16819 - 20995, -20995], [-20995, 25172 - 20995]];
}

/// A block of dequantised coefficients, row by row.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Block(pub(crate) [i16; BLOCK]);

/// Samples of a block.
pub(crate) type Samples = [[u8; 8]; 8];

/// The sample that all 64 positions of a block have when only its first coefficient is not zero.
pub(crate) fn flat(first: i16) -> u8 {
    let wide = i32::from(first) << PASS_BITS;
    let value = (wide + (1 << (PASS_BITS + 2))) >> (PASS_BITS + 3);
    (value + 128).clamp(0, 255) as u8
}

/// Transforms two blocks.
pub(crate) fn two_blocks(blocks: &[Block; 2]) -> [Samples; 2] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was just detected.
        return unsafe { x86::two_blocks(blocks) };
    }
    [one_block(&blocks[0]), one_block(&blocks[1])]
}

/// Transforms a block by the plain form.
pub(crate) fn one_block(block: &Block) -> Samples {
    let column = |x: usize| std::array::from_fn(|y| block.0[y * 8 + x]);
    let columns: [[i16; 8]; 8] = std::array::from_fn(|x| one_dimension(column(x), CONSTANT_BITS - PASS_BITS));
    std::array::from_fn(|y| {
        let row = std::array::from_fn(|x| columns[x][y]);
        let values = one_dimension(row, CONSTANT_BITS + PASS_BITS + 3);
        values.map(|value| (i32::from(value).clamp(-128, 127) + 128) as u8)
    })
}

/// Eight coefficients to eight values, rounded off by `shift` bits and clipped to 16.
fn one_dimension(c: [i16; 8], shift: i32) -> [i16; 8] {
    let dot = |[a, b]: [i16; 2], [x, y]: [i16; 2]| {
        i32::from(a).wrapping_mul(x.into()).wrapping_add(i32::from(b).wrapping_mul(y.into()))
    };
    let ends = [c[0].wrapping_add(c[4]), c[0].wrapping_sub(c[4])].map(|sum| i32::from(sum) << CONSTANT_BITS);
    let middle = constant::EVEN.map(|pair| dot(pair, [c[2], c[6]]));
    let even = [
        ends[0].wrapping_add(middle[1]),
        ends[1].wrapping_add(middle[0]),
        ends[1].wrapping_sub(middle[0]),
        ends[0].wrapping_sub(middle[1]),
    ];
    let sums = [c[7].wrapping_add(c[3]), c[5].wrapping_add(c[1])];
    let [z3, z4] = constant::ODD_SUMS.map(|pair| dot(pair, sums));
    let outer = constant::OUTER.map(|pair| dot(pair, [c[7], c[1]]));
    let inner = constant::INNER.map(|pair| dot(pair, [c[5], c[3]]));
    let odd = [
        outer[1].wrapping_add(z4),
        inner[1].wrapping_add(z3),
        inner[0].wrapping_add(z4),
        outer[0].wrapping_add(z3),
    ];
    let round = |value: i32| {
        (value.wrapping_add(1 << (shift - 1)) >> shift).clamp(i16::MIN.into(), i16::MAX.into()) as i16
    };
    std::array::from_fn(|at| match at {
        0..4 => round(even[at].wrapping_add(odd[at])),
        _ => round(even[7 - at].wrapping_sub(odd[7 - at])),
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Block, CONSTANT_BITS, PASS_BITS, Samples, constant};

    /// Eight rows of two blocks, one block in each half.
    type Rows = [__m256i; 8];

    /// [`super::two_blocks`] with AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) fn two_blocks(blocks: &[Block; 2]) -> [Samples; 2] {
        let row = |y: usize| {
            let part = |block: &Block| {
                // SAFETY: a block has eight rows of eight values; `y` is below 8.
                unsafe { _mm_loadu_si128(block.0.as_ptr().add(y * 8).cast()) }
            };
            _mm256_set_m128i(part(&blocks[1]), part(&blocks[0]))
        };
        let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
        let columns = transpose(one_dimension::<{ CONSTANT_BITS - PASS_BITS }>(rows));
        let rows = transpose(one_dimension::<{ CONSTANT_BITS + PASS_BITS + 3 }>(columns));
        let mut out = [[[0u8; 8]; 8]; 2];
        let center = _mm256_set1_epi8(-128);
        for y in (0..8).step_by(2) {
            let bytes = _mm256_add_epi8(_mm256_packs_epi16(rows[y], rows[y + 1]), center);
            let halves = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
            for (samples, half) in out.iter_mut().zip(halves) {
                // SAFETY: two rows of eight samples follow each other from row `y` on.
                unsafe { _mm_storeu_si128(samples[y..y + 2].as_mut_ptr().cast(), half) };
            }
        }
        out
    }

    /// `pair[0]·a + pair[1]·b` in 32 bits, of the lower and upper four lanes of each half.
    #[target_feature(enable = "avx2")]
    fn dot(pair: [i16; 2], low: __m256i, high: __m256i) -> [__m256i; 2] {
        let both = _mm256_set1_epi32((pair[0] as u16 as u32 | (pair[1] as u16 as u32) << 16) as i32);
        [_mm256_madd_epi16(low, both), _mm256_madd_epi16(high, both)]
    }

    #[target_feature(enable = "avx2")]
    fn one_dimension<const SHIFT: i32>(c: Rows) -> Rows {
        let zip = |a, b| (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        let add =
            |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])];
        let sub =
            |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])];
        // To 32 bits with the sign, times 2¹³: into the upper half, then down again by what is too much.
        let zero = _mm256_setzero_si256();
        let scaled = |sum: __m256i| {
            let (low, high) = (_mm256_unpacklo_epi16(zero, sum), _mm256_unpackhi_epi16(zero, sum));
            [
                _mm256_srai_epi32::<{ 16 - CONSTANT_BITS }>(low),
                _mm256_srai_epi32::<{ 16 - CONSTANT_BITS }>(high),
            ]
        };
        let ends = [scaled(_mm256_add_epi16(c[0], c[4])), scaled(_mm256_sub_epi16(c[0], c[4]))];
        let (low, high) = zip(c[2], c[6]);
        let middle = [dot(constant::EVEN[0], low, high), dot(constant::EVEN[1], low, high)];
        let even = [
            add(ends[0], middle[1]),
            add(ends[1], middle[0]),
            sub(ends[1], middle[0]),
            sub(ends[0], middle[1]),
        ];
        let (low, high) = zip(_mm256_add_epi16(c[7], c[3]), _mm256_add_epi16(c[5], c[1]));
        let (z3, z4) = (dot(constant::ODD_SUMS[0], low, high), dot(constant::ODD_SUMS[1], low, high));
        let (low, high) = zip(c[7], c[1]);
        let outer =
            [add(dot(constant::OUTER[0], low, high), z3), add(dot(constant::OUTER[1], low, high), z4)];
        let (low, high) = zip(c[5], c[3]);
        let inner =
            [add(dot(constant::INNER[0], low, high), z4), add(dot(constant::INNER[1], low, high), z3)];
        let odd = [outer[1], inner[1], inner[0], outer[0]];
        let half = _mm256_set1_epi32(1 << (SHIFT - 1));
        let round = |[low, high]: [__m256i; 2]| {
            let down = |value| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(value, half));
            _mm256_packs_epi32(down(low), down(high))
        };
        [
            round(add(even[0], odd[0])),
            round(add(even[1], odd[1])),
            round(add(even[2], odd[2])),
            round(add(even[3], odd[3])),
            round(sub(even[3], odd[3])),
            round(sub(even[2], odd[2])),
            round(sub(even[1], odd[1])),
            round(sub(even[0], odd[0])),
        ]
    }

    /// Rows to columns, in each half.
    #[target_feature(enable = "avx2")]
    fn transpose(r: Rows) -> Rows {
        let words =
            |a: usize, b: usize| (_mm256_unpacklo_epi16(r[a], r[b]), _mm256_unpackhi_epi16(r[a], r[b]));
        let ((a0, a1), (b0, b1), (c0, c1), (d0, d1)) = (words(0, 1), words(2, 3), words(4, 5), words(6, 7));
        let doubles = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let ((e0, e1), (f0, f1)) = (doubles(a0, b0), doubles(c0, d0));
        let ((g0, g1), (h0, h1)) = (doubles(a1, b1), doubles(c1, d1));
        let quads = |a, b| [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)];
        let [[t0, t1], [t2, t3], [t4, t5], [t6, t7]] =
            [quads(e0, f0), quads(e1, f1), quads(g0, h0), quads(g1, h1)];
        [t0, t1, t2, t3, t4, t5, t6, t7]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_vector_form_is_the_plain_one(values in proptest::collection::vec(any::<i16>(), 128), shift in 0u32..12, mask: u64) {
            let kept = |at: usize| if mask >> (at % 64) & 1 == 1 { values[at] >> shift } else { 0 };
            let blocks = [0, 64].map(|first| Block(std::array::from_fn(|at| kept(first + at))));
            prop_assert_eq!(two_blocks(&blocks), [one_block(&blocks[0]), one_block(&blocks[1])]);
        }

        #[test]
        fn a_flat_block_is_the_transform_of_its_mean(first in -2000i16..2000) {
            let mut block = Block([0; BLOCK]);
            block.0[0] = first;
            prop_assert_eq!(one_block(&block), [[flat(first); 8]; 8]);
        }
    }

    #[test]
    fn the_transform_is_a_cosine_transform() {
        // Against the definition in f64: within one level.
        let coefficients: [i16; BLOCK] = std::array::from_fn(|at| (at as i16 * 37 % 41 - 20) * 2);
        let scale = |n: usize| if n == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
        let found = one_block(&Block(coefficients));
        for (y, row) in found.iter().enumerate() {
            for (x, &value) in row.iter().enumerate() {
                let term = |at: usize| {
                    let (u, v) = (at % 8, at / 8);
                    let wave = |n: usize, place: usize| {
                        ((2 * place + 1) as f64 * n as f64 * std::f64::consts::PI / 16.0).cos()
                    };
                    f64::from(coefficients[at]) * scale(u) * scale(v) * wave(u, x) * wave(v, y) / 4.0
                };
                let exact = ((0..BLOCK).map(term).sum::<f64>() + 128.0).clamp(0.0, 255.0);
                assert!((f64::from(value) - exact).abs() < 1.0, "{x} {y}: {value} {exact}");
            }
        }
    }
}
