//! The innermost loops: a tile of the result stays in registers while both panels stream by.

use std::arch::x86_64::*;
use std::ops::Range;

use super::pack::{Element, Panels, Side, pack_body};
use crate::matrix::Start;

/// 32-bit lanes of a register.
pub(super) const LANES: usize = 16;
/// Rows of a tile: 24 registers hold its sums, two hold a word of the right panel.
pub(super) const ROWS: usize = 12;
/// Columns of a tile.
pub(super) const COLS: usize = 2 * LANES;

/// Packed rows times packed columns for some words of the inner axis. A word is 32 bits of one lane:
/// one f32, or two neighbouring bf16.
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

/// An element type of products.
pub(super) trait Kind: 'static {
    /// Elements in a word.
    const PER_WORD: usize;
    /// Most words of a block: both panels of a tile stay close to the first-level cache.
    const WORDS: usize;

    /// The words of one register along the inner axis: `n` elements from `x`.
    ///
    /// # Safety
    /// The elements can be read, and the CPU has the instructions of this kind.
    unsafe fn run<E: Element>(x: *const E, n: usize) -> __m512;

    /// One word of each of `lanes` neighbouring lanes, of which `n` elements of the inner axis,
    /// `depth` apart, are left.
    ///
    /// # Safety
    /// As [`Kind::run`].
    unsafe fn across<E: Element>(x: *const E, lanes: usize, depth: usize, n: usize) -> __m512;

    /// One word from a function that gives the element at a distance along the inner axis.
    fn word(element: impl Fn(usize) -> f32) -> f32;

    /// `sum + a·b` in every lane.
    ///
    /// # Safety
    /// The CPU has the instructions of this kind.
    unsafe fn multiply_add(sum: __m512, a: __m512, b: __m512) -> __m512;

    /// [`pack_body`] compiled for this kind.
    ///
    /// # Safety
    /// The CPU has the instructions of this kind.
    unsafe fn pack<E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]);

    /// Computes a block.
    ///
    /// # Safety
    /// The CPU has the instructions of this kind; every element of the result lies in one allocation
    /// and nobody else touches it.
    unsafe fn block(block: &Block<'_>);
}

/// 32-bit floats.
pub(super) struct Single;

/// Pairs of bf16.
pub(super) struct Pair;

/// Words that interleave two registers' halves: element `i` of the first, then of the second.
const INTERLEAVE: [u16; 32] = {
    let mut index = [0; 32];
    let mut i = 0;
    while i < 16 {
        index[2 * i] = i as u16;
        index[2 * i + 1] = 16 + i as u16;
        i += 1;
    }
    index
};

impl Kind for Single {
    const PER_WORD: usize = 1;
    const WORDS: usize = 384;

    #[inline(always)]
    unsafe fn run<E: Element>(x: *const E, n: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { E::widen(x, n) }
    }

    #[inline(always)]
    unsafe fn across<E: Element>(x: *const E, lanes: usize, _: usize, _: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { E::widen(x, lanes) }
    }

    fn word(element: impl Fn(usize) -> f32) -> f32 {
        element(0)
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }

    unsafe fn pack<E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn compiled<E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]) {
            // SAFETY: the enclosing function has the features.
            unsafe { pack_body::<Single, E>(side, panels, words, dst) }
        }
        // SAFETY: the caller's promise.
        unsafe { compiled(side, panels, words, dst) }
    }

    unsafe fn block(block: &Block<'_>) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn compiled(block: &Block<'_>) {
            // SAFETY: the enclosing function has the features; the rest is the caller's promise.
            unsafe { block_body::<Single>(block) }
        }
        // SAFETY: the caller's promise.
        unsafe { compiled(block) }
    }
}

impl Kind for Pair {
    const PER_WORD: usize = 2;
    const WORDS: usize = 256;

    #[inline(always)]
    unsafe fn run<E: Element>(x: *const E, n: usize) -> __m512 {
        let (low, high) = (n.min(LANES), n.saturating_sub(LANES).min(LANES));
        // SAFETY: the caller's promise; with no upper half left, nothing is read there.
        unsafe { _mm512_castsi512_ps(E::narrow(x, low, x.wrapping_add(LANES), high)) }
    }

    #[inline(always)]
    unsafe fn across<E: Element>(x: *const E, lanes: usize, depth: usize, n: usize) -> __m512 {
        let second = if n > 1 { lanes } else { 0 };
        // SAFETY: the caller's promise; without a second element, nothing is read there.
        unsafe {
            let both = E::narrow(x, lanes, x.wrapping_add(depth), second);
            let index = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(index, both))
        }
    }

    fn word(element: impl Fn(usize) -> f32) -> f32 {
        let bits = |i| u32::from(burn::tensor::bf16::from_f32(element(i)).to_bits());
        f32::from_bits(bits(0) | bits(1) << 16)
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise; both types are 512 bits.
        unsafe {
            let [a, b] = [a, b].map(|x| std::mem::transmute::<__m512, __m512bh>(x));
            _mm512_dpbf16_ps(sum, a, b)
        }
    }

    unsafe fn pack<E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
        fn compiled<E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]) {
            // SAFETY: the enclosing function has the features.
            unsafe { pack_body::<Pair, E>(side, panels, words, dst) }
        }
        // SAFETY: the caller's promise.
        unsafe { compiled(side, panels, words, dst) }
    }

    unsafe fn block(block: &Block<'_>) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
        unsafe fn compiled(block: &Block<'_>) {
            // SAFETY: the enclosing function has the features; the rest is the caller's promise.
            unsafe { block_body::<Pair>(block) }
        }
        // SAFETY: the caller's promise.
        unsafe { compiled(block) }
    }
}

/// # Safety
/// As [`Kind::block`].
#[inline(always)]
unsafe fn block_body<K: Kind>(block: &Block<'_>) {
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
                    tile::<K, 2>(block, a, b, dst, high, wide, j * COLS);
                } else {
                    tile::<K, 1>(block, a, b, dst, high, wide, j * COLS);
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
unsafe fn tile<K: Kind, const V: usize>(
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
            let mut right = [_mm512_setzero_ps(); V];
            for v in 0..V {
                right[v] = _mm512_loadu_ps(b.add(v * LANES));
            }
            for i in 0..ROWS {
                let left = _mm512_set1_ps(*a.add(i));
                for v in 0..V {
                    sums[i][v] = K::multiply_add(sums[i][v], left, right[v]);
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
