//! A tile's sums without byte products, value by value.

use super::{COLS, ROWS, Tile};
use crate::simd::dispatch;

dispatch!(pub(super) fn sums(tile: Tile<'_>) -> [[i32; COLS]; ROWS] => sums_body);

#[inline(always)]
fn sums_body<const FMA: bool>(tile: Tile<'_>) -> [[i32; COLS]; ROWS] {
    let mut out = [*tile.starts; ROWS];
    for (sums, row) in out.iter_mut().zip(tile.activations.chunks_exact(tile.stride)) {
        for (word, values) in tile.words.iter().zip(row.as_chunks::<4>().0) {
            let [a, b, c, d] = values.map(i32::from);
            for (sum, w) in sums.iter_mut().zip(word) {
                let w = w.map(i32::from);
                *sum += a * w[0] + b * w[1] + c * w[2] + d * w[3];
            }
        }
    }
    out
}
