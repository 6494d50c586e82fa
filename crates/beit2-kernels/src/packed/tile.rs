//! The innermost loops: a tile of the result stays in registers while both operands stream by.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

use super::pack::Kind;
use super::register::Register;
use crate::matrix::Accumulate;

/// Where the words of the left-hand operand's rows are.
#[derive(Clone, Copy)]
pub(super) enum PackedLhs {
    /// Panels of [`Kind::ROWS`] rows, so many floats apart: word by word, rows side by side.
    Panels(*const f32, usize),
    /// Rows so many bytes apart, each with its words in order; the number of rows is a multiple of [`Kind::ROWS`].
    Rows(*const u8, usize),
}

/// Rows times packed columns for some words of the inner axis. A word is one f32, or two neighbouring bf16 of one
/// lane, kept as the f32 of the same 32 bits.
pub(super) struct Block<'a> {
    pub(super) a: PackedLhs,
    /// Panels of [`Kind::COLS`] lanes, `b_stride` apart, from the block's first word on.
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

/// Computes a block in tiles of `ROWS` = [`Kind::ROWS`] rows.
///
/// # Safety
/// The CPU has the instructions of `K`; the left-hand operand holds all rows and words (panels: whole ones); every element
/// of the result lies in one allocation and nobody else touches it.
#[inline(always)]
pub(super) unsafe fn compute<K: Kind, const ROWS: usize>(block: &Block<'_>) {
    const { assert!(ROWS == K::ROWS && ROWS.is_multiple_of(3) && ROWS <= 12) };
    let &Block { words, rows, cols, .. } = block;
    let (row_panels, col_panels) = (rows.div_ceil(ROWS), cols.div_ceil(K::COLS));
    assert!(rows > 0 && cols > 0 && words > 0);
    assert!(block.b.len() >= (col_panels - 1) * block.b_stride + words * K::COLS);
    for j in 0..col_panels {
        let wide = (cols - j * K::COLS).min(K::COLS);
        for i in 0..row_panels {
            let high = (rows - i * ROWS).min(ROWS);
            // SAFETY: the panels exist, as asserted and promised; the tile lies in the result.
            unsafe {
                let b = block.b.as_ptr().add(j * block.b_stride);
                let dst = block.dst.add(i * ROWS * block.row + j * K::COLS);
                let place = Tile { b, dst, high, wide, first: j * K::COLS };
                if K::PREFETCHES && j + 1 < col_panels && block.b.len() > FAR {
                    let part = i * words / row_panels..(i + 1) * words / row_panels;
                    prefetch::<K>(b.wrapping_add(block.b_stride), part);
                }
                match block.a {
                    PackedLhs::Panels(a, stride) => {
                        let a = a.add(i * stride).cast();
                        let step = size_of::<f32>();
                        if wide > K::R::LANES {
                            tile::<K, ROWS, 2, true>(block, a, step, place);
                        } else {
                            tile::<K, ROWS, 1, true>(block, a, step, place);
                        }
                    }
                    PackedLhs::Rows(a, stride) => {
                        let a = a.add(i * ROWS * stride);
                        if wide > K::R::LANES {
                            tile::<K, ROWS, 2, false>(block, a, stride, place);
                        } else {
                            tile::<K, ROWS, 1, false>(block, a, stride, place);
                        }
                    }
                }
            }
        }
    }
}

/// Floats of an operand that the second-level cache does not hold, nor a core's part of the third: 4 MiB.
const FAR: usize = 1 << 20;

/// Asks for words of a panel that is needed soon. Rows share this work, so that it hides behind what they compute.
///
/// # Safety
/// None: nothing is read. But the CPU is one with SSE.
#[inline(always)]
unsafe fn prefetch<K: Kind>(panel: *const f32, words: Range<usize>) {
    const LINE: usize = 64 / size_of::<f32>();
    for at in (words.start * K::COLS..words.end * K::COLS).step_by(LINE) {
        // SAFETY: an address that cannot be read is ignored.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(panel.wrapping_add(at).cast()) };
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
unsafe fn tile<K: Kind, const ROWS: usize, const V: usize, const PANEL: bool>(
    block: &Block<'_>,
    a: *const u8,
    apart: usize,
    Tile { b, dst, high, wide, first }: Tile,
) {
    let lanes = K::R::LANES;
    // SAFETY: of the registers: the caller's promise about the CPU; of the pointers: about operands and tile.
    unsafe {
        let mut sums = [[K::R::zero(); V]; ROWS];
        for i in 0..ROWS {
            // The tile's lines are needed when the sums are done.
            let line = dst.wrapping_add(i.min(high - 1) * block.row);
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(wide - 1).cast());
        }
        // A pointer for three rows and one distance, so that twelve rows need few registers.
        let mut a = [0, 3, 6, 9].map(|i| a.wrapping_add(i * apart));
        let mut b = b;
        let step = size_of::<f32>() * if PANEL { ROWS } else { 1 };
        let mut left = block.words;
        // Two words at a time: the processor decodes the multiplications and little else.
        while left >= 2 {
            for word in 0..2 {
                let a = a.map(|row| row.wrapping_add(word * step));
                add_word::<K, ROWS, V, PANEL>(&mut sums, a, apart, b.wrapping_add(word * K::COLS));
            }
            a = a.map(|row| row.wrapping_add(2 * step));
            b = b.wrapping_add(2 * K::COLS);
            left -= 2;
        }
        if left > 0 {
            add_word::<K, ROWS, V, PANEL>(&mut sums, a, apart, b);
        }
        let factor = K::R::splat(block.factor);
        // Lanes of a row's registers; the first of two is full.
        let live = [if V == 1 { wide } else { lanes }, wide.saturating_sub(lanes)];
        let row = |v: usize| match block.start {
            Accumulate::Row(values) => K::R::load_some(values.as_ptr().add(first + v * lanes), live[v]),
            _ => K::R::zero(),
        };
        let rows = [row(0), if V == 1 { K::R::zero() } else { row(1) }];
        let there = matches!(block.start, Accumulate::There);
        each_row!(i => {
            if i < ROWS && i < high {
                let place = dst.add(i * block.row);
                store(place, factor.times(sums[i][0]), rows[0], there, live[0]);
                if V == 2 {
                    let place = place.add(lanes);
                    store(place, factor.times(sums[i][V - 1]), rows[1], there, live[1]);
                }
            }
        });
    }
}

/// Adds the products of one word to the sums of a tile.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // as in `tile`
unsafe fn add_word<K: Kind, const ROWS: usize, const V: usize, const PANEL: bool>(
    sums: &mut [[K::R; V]; ROWS],
    a: [*const u8; 4],
    apart: usize,
    b: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut right = [K::R::zero(); V];
        for v in 0..V {
            right[v] = K::R::load(b.add(v * K::R::LANES));
        }
        for i in 0..ROWS {
            let place: *const f32 = match PANEL {
                true => a[0].add(i * size_of::<f32>()).cast(),
                false => a[i / 3].add(i % 3 * apart).cast(),
            };
            let lhs = K::R::splat(place.read_unaligned());
            for v in 0..V {
                sums[i][v] = K::madd(sums[i][v], lhs, right[v]);
            }
        }
    }
}

/// Writes `sum` plus `base`, or plus what is there, to the first `live` lanes.
///
/// # Safety
/// The lanes are the caller's, and the CPU has the register's instructions.
#[inline(always)]
unsafe fn store<R: Register>(place: *mut f32, sum: R, base: R, there: bool, live: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        // A store of some lanes is slow on some CPUs.
        if live >= R::LANES {
            let base = if there { R::load(place) } else { base };
            sum.plus(base).store(place);
        } else {
            let base = if there { R::load_some(place, live) } else { base };
            sum.plus(base).store_some(place, live);
        }
    }
}
