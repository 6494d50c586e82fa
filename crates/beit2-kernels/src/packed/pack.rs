//! Operands in the order in which tiles read them, rounded to bf16 where matmuls are in bf16.

use std::arch::x86_64::*;
use std::ops::Range;

use burn::tensor::bf16;

use super::element::Element;
use super::register::Register;
use super::tile::{Block, compute};

/// What a word of the inner axis is, how words are multiplied, and by which instructions. Unless a kind says
/// otherwise, a word is one f32.
pub(super) trait Kind: Copy + Send + Sync + 'static {
    /// Words of a tile's columns, and its sums.
    type R: Register;

    /// Elements of a word.
    const PER_WORD: usize = 1;

    /// Rows of a tile, a multiple of three: its sums and one word of its columns fill the registers.
    const ROWS: usize;

    /// Columns of a tile.
    const COLS: usize = 2 * Self::R::LANES;

    /// Most words of a block: both panels of a tile stay close to the first-level cache.
    const WORDS: usize = 256;

    /// Whether tiles ask for columns of large operands in advance: narrow ones go through them too fast for the processor.
    const PREFETCHES: bool = false;

    /// `sum + lhs·right` in every lane.
    ///
    /// # Safety
    /// The CPU has the kind's instructions.
    #[inline(always)]
    unsafe fn madd(sum: Self::R, lhs: Self::R, right: Self::R) -> Self::R {
        // SAFETY: the caller's promise.
        unsafe { sum.plus_product(lhs, right) }
    }

    /// The words of one register along the inner axis: the elements of so many words, `n` in all, from `x`.
    ///
    /// # Safety
    /// The elements can be read, and the CPU has the kind's instructions.
    #[inline(always)]
    unsafe fn along<E: Element>(x: *const E, n: usize) -> Self::R {
        // SAFETY: the caller's promise.
        unsafe { E::wide(x, n) }
    }

    /// One word of each of `lanes` neighbouring lanes, of which `n` elements of the inner axis, `depth`
    /// apart, are left.
    ///
    /// # Safety
    /// As [`Kind::along`].
    #[inline(always)]
    unsafe fn across<E: Element>(x: *const E, lanes: usize, _depth: usize, _n: usize) -> Self::R {
        // SAFETY: the caller's promise.
        unsafe { E::wide(x, lanes) }
    }

    /// One word from a function that gives the element at a distance along the inner axis.
    fn joined(element: impl Fn(usize) -> f32) -> f32 {
        element(0)
    }

    /// [`pack`], compiled for the kind's instructions.
    ///
    /// # Safety
    /// The CPU has them.
    unsafe fn pack<E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]);

    /// [`copy`], compiled for the kind's instructions.
    ///
    /// # Safety
    /// The CPU has them.
    unsafe fn copy<E: Element>(side: Side<'_, E>, stride: usize, words: Range<usize>, dst: &mut [f32]);

    /// [`compute`], compiled for the kind's instructions.
    ///
    /// # Safety
    /// As [`compute`].
    unsafe fn compute(block: &Block<'_>);
}

/// The three functions of a kind with these features.
macro_rules! compiled_for {
    ($features:literal, $rows:literal) => {
        const ROWS: usize = $rows;

        unsafe fn pack<E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]) {
            #[target_feature(enable = $features)]
            unsafe fn inner<K: Kind, E: Element>(
                side: Side<'_, E>,
                panels: Panels,
                words: Range<usize>,
                dst: &mut [f32],
            ) {
                // SAFETY: this function has the features.
                unsafe { pack::<K, E>(side, panels, words, dst) }
            }
            // SAFETY: the caller's promise.
            unsafe { inner::<Self, E>(side, panels, words, dst) }
        }

        unsafe fn copy<E: Element>(side: Side<'_, E>, stride: usize, words: Range<usize>, dst: &mut [f32]) {
            #[target_feature(enable = $features)]
            unsafe fn inner<K: Kind, E: Element>(
                side: Side<'_, E>,
                stride: usize,
                words: Range<usize>,
                dst: &mut [f32],
            ) {
                // SAFETY: this function has the features.
                unsafe { copy::<K, E>(side, stride, words, dst) }
            }
            // SAFETY: the caller's promise.
            unsafe { inner::<Self, E>(side, stride, words, dst) }
        }

        unsafe fn compute(block: &Block<'_>) {
            #[target_feature(enable = $features)]
            unsafe fn inner<K: Kind>(block: &Block<'_>) {
                // SAFETY: this function has the features; the rest is the caller's promise.
                unsafe { compute::<K, $rows>(block) }
            }
            // SAFETY: the caller's promise.
            unsafe { inner::<Self>(block) }
        }
    };
}

/// f32 with AVX-512.
#[derive(Clone, Copy)]
pub(super) struct F32Avx512;

impl Kind for F32Avx512 {
    type R = __m512;

    compiled_for!("avx512f,avx512bw,avx512vl,avx512dq", 12);
}

/// f32 with AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct F32Avx2;

impl Kind for F32Avx2 {
    type R = __m256;

    // A tile is half as wide, so its panel is no larger.
    const WORDS: usize = 384;

    const PREFETCHES: bool = true;

    compiled_for!("avx2,fma", 6);
}

/// Two neighbouring bf16 a word, with AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Bf16Avx512;

impl Kind for Bf16Avx512 {
    type R = __m512;

    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn madd(sum: __m512, lhs: __m512, right: __m512) -> __m512 {
        // SAFETY: the caller's promise; the types are 512 bits of anything.
        unsafe {
            let pairs = |x| std::mem::transmute::<__m512, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(lhs), pairs(right))
        }
    }

    #[inline(always)]
    unsafe fn along<E: Element>(x: *const E, n: usize) -> __m512 {
        let (low, high) = (n.min(__m512::LANES), n.saturating_sub(__m512::LANES));
        // SAFETY: the caller's promise; with nothing left for the upper half, nothing is read there.
        unsafe { _mm512_castsi512_ps(E::narrow(x, low, x.wrapping_add(__m512::LANES), high)) }
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

    fn joined(element: impl Fn(usize) -> f32) -> f32 {
        let bits = |i| u32::from(bf16::from_f32(element(i)).to_bits());
        f32::from_bits(bits(0) | bits(1) << 16)
    }

    compiled_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16", 12);
}

/// Lanes of an operand: rows of a left-hand one, columns of a right-hand one. Element `k` of lane `i` lies at
/// `i·lane + k·depth`.
#[derive(Clone, Copy)]
pub(super) struct Side<'a, E> {
    pub(super) data: &'a [E],
    pub(super) lane: usize,
    pub(super) depth: usize,
    /// Number of lanes, and of elements of each.
    pub(super) lanes: usize,
    pub(super) len: usize,
}

impl<'a, E: Element> Side<'a, E> {
    /// Lanes `from..from + n`, at most to the end.
    pub(super) fn some(self, from: usize, n: usize) -> Self {
        let from = from.min(self.lanes);
        let lanes = n.min(self.lanes - from);
        let data = &self.data[(from * self.lane).min(self.data.len())..];
        Self { data, lanes, ..self }
    }
}

/// The panels that lanes are packed into.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    /// Lanes of a panel: the distance of two words.
    pub(super) lanes: usize,
    /// Distance of two panels.
    pub(super) stride: usize,
}

impl Panels {
    /// Panels of `lanes` lanes and `words` words. A register may reach beyond the last word's lanes.
    pub(super) fn new<K: Kind>(lanes: usize, words: usize) -> Self {
        Self { lanes, stride: words * lanes + lanes.next_multiple_of(K::R::LANES) - lanes }
    }
}

/// Rows that are read ahead of their turn.
const AHEAD: usize = 8;

/// Puts element `i` of the lower half of a register beside element `i` of the upper.
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

/// Writes words `words` of all lanes of `side` to panels: word by word, lanes side by side, missing ones as
/// zeros.
///
/// # Safety
/// The CPU has the kind's instructions.
#[inline(always)]
unsafe fn pack<K: Kind, E: Element>(side: Side<'_, E>, panels: Panels, words: Range<usize>, dst: &mut [f32]) {
    let width = K::R::LANES;
    let Side { lanes, len, lane, depth, .. } = side;
    assert!(words.end <= len.div_ceil(K::PER_WORD));
    if lanes == 0 || words.is_empty() {
        return;
    }
    assert!((lanes - 1) * lane + (len - 1) * depth < side.data.len());
    assert!(panels.stride >= (words.len() - 1) * panels.lanes + panels.lanes.next_multiple_of(width));
    assert!(lanes.div_ceil(panels.lanes) * panels.stride <= dst.len());
    let per_panel = panels.lanes.div_ceil(width);
    let groups = lanes.div_ceil(panels.lanes) * per_panel;
    // First lane, number of lanes and place of a register; panels of a left-hand operand have one.
    let dst = dst.as_mut_ptr();
    let group = |group: usize| {
        let (panel, part) = (group / per_panel, group % per_panel * width);
        let first = panel * panels.lanes + part;
        let live = lanes.saturating_sub(first).min(width).min(panels.lanes - part);
        (first, live, dst.wrapping_add(panel * panels.stride + part))
    };
    // SAFETY: elements and places are inside, as asserted; the caller vouches for the CPU.
    unsafe {
        let from = side.data.as_ptr();
        if depth == 1 {
            for (first, live, dst) in (0..groups).map(group) {
                transpose_block::<K, E>(
                    from.wrapping_add(first * lane),
                    lane,
                    live,
                    len,
                    words.clone(),
                    dst,
                    panels.lanes,
                );
            }
        } else if lane == 1 {
            // Lanes inside, so that memory is read in order.
            for (at, word) in words.enumerate() {
                let k = word * K::PER_WORD;
                // Rows are too far apart for the processor to see what comes next.
                let later = from.wrapping_add((k + AHEAD) * depth);
                for line in (0..lanes).step_by(64 / size_of::<E>()) {
                    _mm_prefetch::<_MM_HINT_T0>(later.wrapping_add(line).cast());
                }
                let (mut from, mut dst) = (from.wrapping_add(k * depth), dst.wrapping_add(at * panels.lanes));
                let mut left = lanes;
                // No division in here: it would cost more than the copy.
                while left > 0 {
                    let live = left.min(panels.lanes);
                    let mut part = 0;
                    while part < live {
                        let n = (live - part).min(width);
                        K::across(from.add(part), n, depth, len - k).store(dst.add(part));
                        part += width;
                    }
                    // Missing lanes of the last panel.
                    while part < panels.lanes {
                        K::R::zero().store(dst.add(part));
                        part += width;
                    }
                    left -= live;
                    from = from.wrapping_add(panels.lanes);
                    dst = dst.wrapping_add(panels.stride);
                }
            }
        } else {
            for (first, live, dst) in (0..groups).map(group) {
                for (at, word) in words.clone().enumerate() {
                    let k = word * K::PER_WORD;
                    for i in 0..width {
                        let value = |step: usize| match i < live && k + step < len {
                            true => (*from.add((first + i) * lane + (k + step) * depth)).value(),
                            false => 0.0,
                        };
                        *dst.add(at * panels.lanes + i) = K::joined(value);
                    }
                }
            }
        }
    }
}

/// Lanes whose elements are neighbours: as many words and lanes at a time as a register has, transposed in registers.
///
/// # Safety
/// As [`pack`], which checks the bounds.
#[inline(always)]
unsafe fn transpose_block<K: Kind, E: Element>(
    from: *const E,
    lane: usize,
    live: usize,
    len: usize,
    words: Range<usize>,
    dst: *mut f32,
    stride: usize,
) {
    let width = K::R::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut word = words.start;
        while word < words.end {
            let count = (words.end - word).min(width);
            let k = word * K::PER_WORD;
            let left = (len - k).min(count * K::PER_WORD);
            let mut rows = K::R::zeros();
            for (i, row) in rows.as_mut().iter_mut().enumerate() {
                if i < live {
                    *row = K::along(from.add(i * lane + k), left);
                }
            }
            let columns = K::R::transposed(rows);
            let dst = dst.add((word - words.start) * stride);
            if count == width {
                for (i, column) in columns.as_ref().iter().enumerate() {
                    column.store(dst.add(i * stride));
                }
            } else {
                for (i, column) in columns.as_ref().iter().enumerate() {
                    if i < count {
                        column.store(dst.add(i * stride));
                    }
                }
            }
            word += count;
        }
    }
}

/// Words `words` of all lanes of `side`, whose elements are neighbours, lane by lane, `stride` floats apart.
///
/// # Safety
/// The CPU has the kind's instructions.
#[inline(always)]
unsafe fn copy<K: Kind, E: Element>(side: Side<'_, E>, stride: usize, words: Range<usize>, dst: &mut [f32]) {
    let width = K::R::LANES;
    let Side { data, lane, depth, lanes, len } = side;
    if lanes == 0 || words.is_empty() {
        return;
    }
    assert!(
        depth == 1 && words.end <= len.div_ceil(K::PER_WORD) && stride >= words.len().next_multiple_of(width)
    );
    assert!((lanes - 1) * lane + len <= data.len() && lanes * stride <= dst.len());
    let (from, to) = (words.start * K::PER_WORD, (words.end * K::PER_WORD).min(len));
    for i in 0..lanes {
        // SAFETY: elements and places are inside, as asserted; the caller vouches for the CPU.
        unsafe {
            let (x, y) = (data.as_ptr().add(i * lane), dst.as_mut_ptr().add(i * stride));
            for (at, k) in (from..to).step_by(width * K::PER_WORD).enumerate() {
                let left = (to - k).min(width * K::PER_WORD);
                K::along(x.add(k), left).store(y.add(at * width));
            }
        }
    }
}
