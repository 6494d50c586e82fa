//! The innermost loops: a tile of the result stays in registers while both operands stream by.

use std::arch::x86_64::*;

use super::element::{LANES, mask};
use super::pack::Kind;
use crate::matrix::Accumulate;

/// Rows of a tile: 24 registers hold its sums, two hold a word of the right panel.
pub(crate) const ROWS: usize = 12;
/// Columns of a tile.
pub(super) const COLS: usize = 2 * LANES;

/// Where the words of the left-hand operand's rows are.
#[derive(Clone, Copy)]
pub(super) enum PackedLhs {
    /// Panels of [`ROWS`] rows, so many floats apart: word by word, rows side by side.
    Panels(*const f32, usize),
    /// Rows so many bytes apart, each with its words in order; the number of rows is a multiple of [`ROWS`].
    Rows(*const u8, usize),
}

/// Rows times packed columns for some words of the inner axis. A word is one f32, or two neighbouring bf16 of one
/// lane, kept as the f32 of the same 32 bits.
pub(super) struct Block<'a> {
    pub(super) a: PackedLhs,
    /// Panels of [`COLS`] lanes, `b_stride` apart, from the block's first word on.
    pub(super) b: &'a [f32],
    pub(super) b_stride: usize,
    pub(super) words: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// First element of the result, whose rows are `row` apart.
    pub(super) dst: *mut f32,
    pub(super) row: usize,
    pub(super) start: Accumulate<'a>,
    pub(super) factor: f32,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions of `K`; the left-hand operand holds all rows and words (panels: whole ones); every element
/// of the result lies in one allocation and nobody else touches it.
#[inline(always)]
pub(super) unsafe fn compute<K: Kind>(block: &Block<'_>) {
    let &Block { words, rows, cols, .. } = block;
    let (row_panels, col_panels) = (rows.div_ceil(ROWS), cols.div_ceil(COLS));
    assert!(rows > 0 && cols > 0 && words > 0);
    assert!(block.b.len() >= (col_panels - 1) * block.b_stride + words * COLS);
    for j in 0..col_panels {
        let wide = (cols - j * COLS).min(COLS);
        for i in 0..row_panels {
            let high = (rows - i * ROWS).min(ROWS);
            // SAFETY: the panels exist, as asserted and promised; the tile lies in the result.
            unsafe {
                let b = block.b.as_ptr().add(j * block.b_stride);
                let dst = block.dst.add(i * ROWS * block.row + j * COLS);
                let place = Tile { b, dst, high, wide, first: j * COLS };
                match block.a {
                    PackedLhs::Panels(a, stride) => {
                        let a = a.add(i * stride).cast();
                        let step = size_of::<f32>();
                        if wide > LANES {
                            tile::<K, 2, true>(block, a, step, place);
                        } else {
                            tile::<K, 1, true>(block, a, step, place);
                        }
                    }
                    PackedLhs::Rows(a, stride) => {
                        let a = a.add(i * ROWS * stride);
                        if wide > LANES {
                            tile::<K, 2, false>(block, a, stride, place);
                        } else {
                            tile::<K, 1, false>(block, a, stride, place);
                        }
                    }
                }
            }
        }
    }
}

/// One tile: its columns' panel, its place, its rows and columns, and its first column of the block.
#[derive(Clone, Copy)]
struct Tile {
    b: *const f32,
    dst: *mut f32,
    high: usize,
    wide: usize,
    first: usize,
}

/// Repeats a block for every row of a tile with the row's number as a constant. Why not a loop: one that
/// the compiler does not unroll would index the sums, and they would live in memory all the time.
macro_rules! each_row {
    ($i:ident => $block:block) => {
        each_row!($i => $block; 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    ($i:ident => $block:block; $($number:literal)*) => {
        $({
            let $i: usize = $number;
            $block
        })*
    };
}

/// Computes a tile of `V` registers a row. Words of a row follow each other, or (`PANEL`) rows do; rows are `apart`
/// bytes apart.
///
/// # Safety
/// As [`compute`]; the tile is the caller's to write.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // the compiler must see constant indices to keep sums in registers
unsafe fn tile<K: Kind, const V: usize, const PANEL: bool>(
    block: &Block<'_>,
    a: *const u8,
    apart: usize,
    Tile { b, dst, high, wide, first }: Tile,
) {
    // SAFETY: of the intrinsics: the caller's promise about the CPU; of the pointers: about operands and tile.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
        for i in 0..ROWS {
            // The tile's lines are needed when the sums are done.
            let line = dst.wrapping_add(i.min(high - 1) * block.row);
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(wide - 1).cast());
        }
        // Four pointers and one distance, so that twelve rows need few registers.
        let mut a = [0, 3, 6, 9].map(|i| a.wrapping_add(i * apart));
        let mut b = b;
        for _ in 0..block.words {
            let mut right = [_mm512_setzero_ps(); V];
            for v in 0..V {
                right[v] = _mm512_loadu_ps(b.add(v * LANES));
            }
            for i in 0..ROWS {
                let place: *const f32 = match PANEL {
                    true => a[0].add(i * size_of::<f32>()).cast(),
                    false => a[i / 3].add(i % 3 * apart).cast(),
                };
                let lhs = _mm512_set1_ps(place.read_unaligned());
                for v in 0..V {
                    sums[i][v] = K::madd(sums[i][v], lhs, right[v]);
                }
            }
            let step = size_of::<f32>() * if PANEL { ROWS } else { 1 };
            a = a.map(|row| row.wrapping_add(step));
            b = b.add(COLS);
        }
        let factor = _mm512_set1_ps(block.factor);
        // Of the last register of a row; the first of two is full.
        let masks = [if V == 1 { mask(wide) } else { u16::MAX }, mask(wide.saturating_sub(LANES))];
        let row = |v: usize| match block.start {
            Accumulate::Row(values) => {
                _mm512_maskz_loadu_ps(masks[v], values.as_ptr().add(first + v * LANES))
            }
            _ => _mm512_setzero_ps(),
        };
        let rows = [row(0), if V == 1 { _mm512_setzero_ps() } else { row(1) }];
        let there = matches!(block.start, Accumulate::There);
        each_row!(i => {
            if i < high {
                let place = dst.add(i * block.row);
                store(place, _mm512_mul_ps(factor, sums[i][0]), rows[0], there, masks[0]);
                if V == 2 {
                    let place = place.add(LANES);
                    store(place, _mm512_mul_ps(factor, sums[i][V - 1]), rows[1], there, masks[1]);
                }
            }
        });
    }
}

/// Writes `sum` plus `base`, or plus what is there, to the lanes of `mask`.
///
/// # Safety
/// The lanes are the caller's, and the CPU has AVX-512 F.
#[inline(always)]
unsafe fn store(place: *mut f32, sum: __m512, base: __m512, there: bool, mask: u16) {
    // SAFETY: the caller's promise.
    unsafe {
        // A store under a mask is slow on some CPUs.
        if mask == u16::MAX {
            let base = if there { _mm512_loadu_ps(place) } else { base };
            _mm512_storeu_ps(place, _mm512_add_ps(sum, base));
        } else {
            let base = if there { _mm512_maskz_loadu_ps(mask, place) } else { base };
            _mm512_mask_storeu_ps(place, mask, _mm512_add_ps(sum, base));
        }
    }
}
