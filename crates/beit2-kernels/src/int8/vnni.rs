//! A tile's sums with AVX-512 VNNI: an instruction multiplies 64 pairs of bytes and adds them up by fours.

use std::arch::x86_64::*;

use super::{COLS, ROWS, Tile};

/// [`super::sums`]. Of a tile with fewer rows, those behind its last one repeat it.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn sums(tile: Tile<'_>) -> [[i32; COLS]; ROWS] {
    let Tile { activations, stride, words, starts } = tile;
    let last = activations.len() / stride - 1;
    assert!(words.len() * 4 <= stride && last < ROWS && activations.len() == (last + 1) * stride);
    let rows: [*const u8; ROWS] = std::array::from_fn(|row| activations[row.min(last) * stride..].as_ptr());
    let mut out = [[0; COLS]; ROWS];
    // SAFETY: each row has four bytes for each word, as asserted; a word has 128 bytes, and so have starts and a row of
    // the result.
    unsafe {
        let from = starts.as_ptr();
        let start = [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(16).cast())];
        let mut sums = [start; ROWS];
        for (at, word) in words.iter().enumerate() {
            let word = word.as_ptr().cast::<i8>();
            let right = [_mm512_loadu_si512(word.cast()), _mm512_loadu_si512(word.add(64).cast())];
            for (sums, row) in sums.iter_mut().zip(rows) {
                let left = _mm512_set1_epi32(row.add(at * 4).cast::<i32>().read_unaligned());
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm512_dpbusd_epi32(*sum, left, right);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), sums[0]);
            _mm512_storeu_si512(out[16..].as_mut_ptr().cast(), sums[1]);
        }
    }
    out
}
