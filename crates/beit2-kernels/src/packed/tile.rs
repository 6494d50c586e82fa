//! The innermost loops: a tile of the result stays in registers while both panels stream by.

use std::arch::x86_64::*;

use crate::matrix::Start;

/// 32-bit lanes of a register.
pub(super) const LANES: usize = 16;
/// Rows of a tile: 24 registers hold its sums, two hold a word of the right panel.
pub(super) const ROWS: usize = 12;
/// Columns of a tile.
pub(super) const COLS: usize = 2 * LANES;

/// Packed rows times packed columns for some words of the inner axis. A word is two neighbouring bf16 of
/// one lane; it is kept as the f32 of the same 32 bits.
pub(super) struct Block<'a> {
    /// Panels of [`ROWS`] lanes, `a_stride` apart, and of [`COLS`] lanes, `b_stride` apart, both from the
    /// block's first word on.
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) a_stride: usize,
    pub(super) b_stride: usize,
    pub(super) words: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// First element of the result, whose rows are `row` apart.
    pub(super) dst: *mut f32,
    pub(super) row: usize,
    pub(super) start: Start<'a>,
    pub(super) factor: f32,
}

/// Computes a block.
///
/// # Safety
/// The CPU has the instructions; every element of the result lies in one allocation and nobody else touches it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn compute(block: &Block<'_>) {
    // SAFETY: this function has the features; the rest is the caller's promise.
    unsafe { compute_body(block) }
}

/// # Safety
/// As [`compute`].
#[inline(always)]
unsafe fn compute_body(block: &Block<'_>) {
    let &Block { words, rows, cols, .. } = block;
    let (row_panels, col_panels) = (rows.div_ceil(ROWS), cols.div_ceil(COLS));
    let reach = |panels: usize, stride: usize, lanes: usize| (panels - 1) * stride + words * lanes;
    assert!(rows > 0 && block.a.len() >= reach(row_panels, block.a_stride, ROWS));
    assert!(cols > 0 && block.b.len() >= reach(col_panels, block.b_stride, COLS));
    for j in 0..col_panels {
        let wide = (cols - j * COLS).min(COLS);
        for i in 0..row_panels {
            let high = (rows - i * ROWS).min(ROWS);
            // SAFETY: both panels exist, as asserted; the tile lies in the result.
            unsafe {
                let a = block.a.as_ptr().add(i * block.a_stride);
                let b = block.b.as_ptr().add(j * block.b_stride);
                let dst = block.dst.add(i * ROWS * block.row + j * COLS);
                if wide > LANES {
                    tile::<2>(block, a, b, dst, high, wide, j * COLS);
                } else {
                    tile::<1>(block, a, b, dst, high, wide, j * COLS);
                }
            }
        }
    }
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

/// One tile of `high` rows and `wide` columns, of `V` registers a row, from column `first` of the block.
///
/// # Safety
/// Both panels hold the block's words, and the tile is the caller's to write.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // the compiler must see constant indices to keep sums in registers
unsafe fn tile<const V: usize>(
    block: &Block<'_>,
    a: *const f32,
    b: *const f32,
    dst: *mut f32,
    high: usize,
    wide: usize,
    first: usize,
) {
    // SAFETY: of the intrinsics: the caller's promise about the CPU; of the pointers: about panels and tile.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
        for i in 0..ROWS {
            // The tile's lines are needed when the sums are done.
            let line = dst.wrapping_add(i.min(high - 1) * block.row);
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(wide - 1).cast());
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..block.words {
            let mut right = [pairs(_mm512_setzero_ps()); V];
            for v in 0..V {
                right[v] = pairs(_mm512_loadu_ps(b.add(v * LANES)));
            }
            for i in 0..ROWS {
                let left = pairs(_mm512_set1_ps(*a.add(i)));
                for v in 0..V {
                    sums[i][v] = _mm512_dpbf16_ps(sums[i][v], left, right[v]);
                }
            }
            a = a.add(ROWS);
            b = b.add(COLS);
        }
        let factor = _mm512_set1_ps(block.factor);
        // Of the last register of a row; the first of two is full.
        let masks = [if V == 1 { mask(wide) } else { u16::MAX }, mask(wide.saturating_sub(LANES))];
        let row = |v: usize| match block.start {
            Start::Row(values) => _mm512_maskz_loadu_ps(masks[v], values.as_ptr().add(first + v * LANES)),
            _ => _mm512_setzero_ps(),
        };
        let rows = [row(0), if V == 1 { _mm512_setzero_ps() } else { row(1) }];
        let there = matches!(block.start, Start::There);
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

/// The pairs of bf16 in a register.
#[inline(always)]
fn pairs(x: __m512) -> __m512bh {
    // SAFETY: both types are 512 bits of anything.
    unsafe { std::mem::transmute::<__m512, __m512bh>(x) }
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

/// The first `n` of sixteen lanes.
#[inline(always)]
pub(super) fn mask(n: usize) -> u16 {
    if n >= LANES { u16::MAX } else { (1 << n) - 1 }
}
