//! Colour steps by tables, 64 pixels at a time, with AVX-512 and its byte permutations (VBMI, VNNI).

use std::arch::x86_64::*;

use crate::transform::pixel_steps::tables::{Saturation, Stage, Table};

/// Pixels that are computed together.
pub(super) const BLOCK: usize = 64;

/// Applies the stages, in order, to every pixel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn apply(stages: &[Stage], pixels: &mut [[u8; 3]]) {
    let indices = Indices::new();
    let (blocks, rest) = pixels.as_chunks_mut::<BLOCK>();
    let in_place = |block: &mut [[u8; 3]; BLOCK]| {
        let mut values = load(block);
        staged(stages, &indices, &mut values);
        for (part, value) in block.as_flattened_mut().as_chunks_mut::<64>().0.iter_mut().zip(values) {
            // SAFETY: the part has 64 bytes.
            unsafe { _mm512_storeu_si512(part.as_mut_ptr().cast(), value) };
        }
    };
    blocks.iter_mut().for_each(in_place);
    if !rest.is_empty() {
        let mut block = [[0; 3]; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        in_place(&mut block);
        rest.copy_from_slice(&block[..rest.len()]);
    }
}

/// Sum of the grey values that the stages would leave in whole blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn luma_sum(stages: &[Stage], blocks: &[[[u8; 3]; BLOCK]]) -> u64 {
    let indices = Indices::new();
    let mut sum = 0;
    // Each of the 16 sums has four grey values of a block: they stay below 2^31.
    for some in blocks.chunks(1 << 16) {
        let mut sums = _mm512_setzero_si512();
        for block in some {
            let mut values = load(block);
            staged(stages, &indices, &mut values);
            let [a, b, c, d] = luma(&indices, values);
            sums = _mm512_add_epi32(sums, _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)));
        }
        sum += _mm512_reduce_add_epi32(sums) as u32 as u64;
    }
    sum
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn load(block: &[[u8; 3]; BLOCK]) -> [__m512i; 3] {
    let bytes = block.as_flattened().as_ptr();
    // SAFETY: the block has 192 bytes.
    [0, 1, 2].map(|part| unsafe { _mm512_loadu_si512(bytes.add(part * 64).cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn staged(stages: &[Stage], indices: &Indices, values: &mut [__m512i; 3]) {
    for stage in stages {
        match stage {
            Stage::Blends(table) => *values = look_up(table, *values),
            Stage::Saturation(saturation) => *values = saturate(saturation, indices, *values),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn look_up(table: &Table, values: [__m512i; 3]) -> [__m512i; 3] {
    // SAFETY: the table has 256 bytes.
    let [a, b, c, d] =
        [0, 1, 2, 3].map(|part| unsafe { _mm512_loadu_si512(table.0.as_ptr().add(part * 64).cast()) });
    values.map(|value| {
        let low = _mm512_permutex2var_epi8(a, value, b);
        let high = _mm512_permutex2var_epi8(c, value, d);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(value), low, high)
    })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn saturate(saturation: &Saturation, indices: &Indices, values: [__m512i; 3]) -> [__m512i; 3] {
    let [a, b, c, d] = luma(indices, values);
    // In 128-bit lanes: four grey values of each of the four quarters.
    let gray = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
    let grays = indices.spread.map(|spread| _mm512_permutexvar_epi8(spread, gray));
    let pairs = [0, 1, 2].map(|part| (values[part], grays[part]));
    let rise = look_up(&saturation.rise, pairs.map(|(value, gray)| _mm512_subs_epu8(value, gray)));
    let fall = look_up(&saturation.fall, pairs.map(|(value, gray)| _mm512_subs_epu8(gray, value)));
    [0, 1, 2].map(|part| _mm512_subs_epu8(_mm512_adds_epu8(grays[part], rise[part]), fall[part]))
}

/// The grey values of the four quarters of a block, in 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn luma(indices: &Indices, [x, y, z]: [__m512i; 3]) -> [__m512i; 4] {
    // The weights of `jitter::luma` for red, half of green, blue and half of green, as 256 * HIGH + LOW.
    const HIGH: i32 = i32::from_le_bytes([77, 75, 29, 75]);
    const LOW: i32 = i32::from_le_bytes([-117i8 as u8, 35, 47, 35]);
    let [a, b, c, d] = indices.quarters;
    let quarters = [
        _mm512_permutexvar_epi8(a, x),
        _mm512_permutex2var_epi8(x, b, y),
        _mm512_permutex2var_epi8(y, c, z),
        _mm512_permutexvar_epi8(d, z),
    ];
    quarters.map(|pixels| {
        let high = _mm512_dpbusd_epi32(_mm512_set1_epi32(0x80), pixels, _mm512_set1_epi32(HIGH));
        let sum = _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(high), pixels, _mm512_set1_epi32(LOW));
        _mm512_srli_epi32::<16>(sum)
    })
}

/// Where bytes go.
struct Indices {
    /// The bytes red, green, blue, green of 16 pixels each.
    quarters: [__m512i; 4],
    /// The grey value of the pixel of each byte, in the order in which `saturate` packs them.
    spread: [__m512i; 3],
}

impl Indices {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn new() -> Self {
        let indices = |index: &dyn Fn(usize) -> usize| {
            let bytes: [u8; 64] = std::array::from_fn(|at| index(at) as u8);
            // SAFETY: 64 bytes.
            unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
        };
        // The quarter's first byte in the register, or the first of the two, that holds it.
        let quarters =
            [0, 48, 32, 16].map(|first| indices(&move |at| first + at / 4 * 3 + [0, 1, 2, 1][at % 4]));
        let spread = [0, 1, 2].map(|part| {
            indices(&move |at| {
                let pixel = (part * 64 + at) / 3;
                let (quarter, within) = (pixel / 16, pixel % 16);
                within / 4 * 16 + quarter * 4 + within % 4
            })
        });
        Self { quarters, spread }
    }
}
