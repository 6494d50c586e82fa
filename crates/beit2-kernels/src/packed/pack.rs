//! Operands in the order in which tiles read them, rounded to bf16 where matmuls are in bf16.

use std::arch::x86_64::*;
use std::ops::Range;

use burn::tensor::bf16;

use super::element::{Element, LANES};
use super::tile::{Block, compute};

/// What a word of the inner axis is, and how words are multiplied.
pub(super) trait Kind: Copy + Send + Sync + 'static {
    /// Elements of a word.
    const PER_WORD: usize;

    /// `sum + lhs·right` in every lane.
    ///
    /// # Safety
    /// The CPU has the kind's instructions.
    unsafe fn madd(sum: __m512, lhs: __m512, right: __m512) -> __m512;

    /// The words of one register along the inner axis: `n` ≤ 16 words' elements from `x`.
    ///
    /// # Safety
    /// The elements can be read, and the CPU has the kind's instructions.
    unsafe fn along<E: Element>(x: *const E, n: usize) -> __m512;

    /// One word of each of `lanes` neighbouring lanes, of which `n` elements of the inner axis, `depth`
    /// apart, are lhs.
    ///
    /// # Safety
    /// As [`Kind::along`].
    unsafe fn across<E: Element>(x: *const E, lanes: usize, depth: usize, n: usize) -> __m512;

    /// One word from a function that gives the element at a distance along the inner axis.
    fn joined(element: impl Fn(usize) -> f32) -> f32;

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
    ($features:literal) => {
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
                unsafe { compute::<K>(block) }
            }
            // SAFETY: the caller's promise.
            unsafe { inner::<Self>(block) }
        }
    };
}

/// One f32 a word.
#[derive(Clone, Copy)]
pub(super) struct Single;

impl Kind for Single {
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn madd(sum: __m512, lhs: __m512, right: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(lhs, right, sum) }
    }

    #[inline(always)]
    unsafe fn along<E: Element>(x: *const E, n: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { E::wide(x, n) }
    }

    #[inline(always)]
    unsafe fn across<E: Element>(x: *const E, lanes: usize, _: usize, _: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { E::wide(x, lanes) }
    }

    fn joined(element: impl Fn(usize) -> f32) -> f32 {
        element(0)
    }

    compiled_for!("avx512f,avx512bw,avx512vl,avx512dq");
}

/// Two bf16 a word.
#[derive(Clone, Copy)]
pub(super) struct Pair;

impl Kind for Pair {
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
        let (low, high) = (n.min(LANES), n.saturating_sub(LANES));
        // SAFETY: the caller's promise; with no upper half lhs, nothing is read there.
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

    fn joined(element: impl Fn(usize) -> f32) -> f32 {
        let bits = |i| u32::from(bf16::from_f32(element(i)).to_bits());
        f32::from_bits(bits(0) | bits(1) << 16)
    }

    compiled_for!("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16");
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
    pub(super) fn new(lanes: usize, words: usize) -> Self {
        Self { lanes, stride: words * lanes + lanes.next_multiple_of(LANES) - lanes }
    }
}

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
    let Side { lanes, len, lane, depth, .. } = side;
    assert!(words.end <= len.div_ceil(K::PER_WORD));
    if lanes == 0 || words.is_empty() {
        return;
    }
    assert!((lanes - 1) * lane + (len - 1) * depth < side.data.len());
    assert!(panels.stride >= (words.len() - 1) * panels.lanes + panels.lanes.next_multiple_of(LANES));
    assert!(lanes.div_ceil(panels.lanes) * panels.stride <= dst.len());
    let per_panel = panels.lanes.div_ceil(LANES);
    let groups = lanes.div_ceil(panels.lanes) * per_panel;
    // First lane, number of lanes and place of a group of sixteen; panels of twelve have one group.
    let dst = dst.as_mut_ptr();
    let group = |group: usize| {
        let (panel, part) = (group / per_panel, group % per_panel * LANES);
        let first = panel * panels.lanes + part;
        let live = lanes.saturating_sub(first).min(LANES).min(panels.lanes - part);
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
                let (mut from, mut dst) = (from.wrapping_add(k * depth), dst.wrapping_add(at * panels.lanes));
                let mut lhs = lanes;
                // No division in here: it would cost more than the copy.
                while lhs > 0 {
                    let live = lhs.min(panels.lanes);
                    let mut part = 0;
                    while part < live {
                        let n = (live - part).min(LANES);
                        _mm512_storeu_ps(dst.add(part), K::across(from.add(part), n, depth, len - k));
                        part += LANES;
                    }
                    // Missing lanes of the last panel.
                    while part < panels.lanes {
                        _mm512_storeu_ps(dst.add(part), _mm512_setzero_ps());
                        part += LANES;
                    }
                    lhs -= live;
                    from = from.wrapping_add(panels.lanes);
                    dst = dst.wrapping_add(panels.stride);
                }
            }
        } else {
            for (first, live, dst) in (0..groups).map(group) {
                for (at, word) in words.clone().enumerate() {
                    let k = word * K::PER_WORD;
                    for i in 0..LANES {
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

/// Lanes whose elements are neighbours: sixteen words of sixteen lanes at a time, transposed in registers.
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
    // SAFETY: the caller's promise.
    unsafe {
        let mut word = words.start;
        while word < words.end {
            let count = (words.end - word).min(LANES);
            let k = word * K::PER_WORD;
            let lhs = (len - k).min(count * K::PER_WORD);
            let mut rows = [_mm512_setzero_ps(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                if i < live {
                    *row = K::along(from.add(i * lane + k), lhs);
                }
            }
            let columns = transposed(rows);
            let dst = dst.add((word - words.start) * stride);
            if count == LANES {
                for (i, column) in columns.iter().enumerate() {
                    _mm512_storeu_ps(dst.add(i * stride), *column);
                }
            } else {
                for (i, column) in columns.iter().enumerate() {
                    if i < count {
                        _mm512_storeu_ps(dst.add(i * stride), *column);
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
    let Side { data, lane, depth, lanes, len } = side;
    if lanes == 0 || words.is_empty() {
        return;
    }
    assert!(
        depth == 1 && words.end <= len.div_ceil(K::PER_WORD) && stride >= words.len().next_multiple_of(LANES)
    );
    assert!((lanes - 1) * lane + len <= data.len() && lanes * stride <= dst.len());
    let (from, to) = (words.start * K::PER_WORD, (words.end * K::PER_WORD).min(len));
    for i in 0..lanes {
        // SAFETY: elements and places are inside, as asserted; the caller vouches for the CPU.
        unsafe {
            let (x, y) = (data.as_ptr().add(i * lane), dst.as_mut_ptr().add(i * stride));
            for (at, k) in (from..to).step_by(LANES * K::PER_WORD).enumerate() {
                let lhs = (to - k).min(LANES * K::PER_WORD);
                _mm512_storeu_ps(y.add(at * LANES), K::along(x.add(k), lhs));
            }
        }
    }
}

/// The transpose of a 16 × 16 matrix of words.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn transposed(r: [__m512; LANES]) -> [__m512; LANES] {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = _mm512_setzero_ps();
        // Pairs of rows, then fours: each 128-bit quarter holds a 4 × 4 transpose.
        let (mut t, mut u) = ([zero; LANES], [zero; LANES]);
        for i in 0..LANES / 2 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..LANES / 4 {
            let pd = |x| _mm512_castps_pd(x);
            let ps = |x| _mm512_castpd_ps(x);
            let (a, b, c, d) = (pd(t[4 * i]), pd(t[4 * i + 1]), pd(t[4 * i + 2]), pd(t[4 * i + 3]));
            u[4 * i] = ps(_mm512_unpacklo_pd(a, c));
            u[4 * i + 1] = ps(_mm512_unpackhi_pd(a, c));
            u[4 * i + 2] = ps(_mm512_unpacklo_pd(b, d));
            u[4 * i + 3] = ps(_mm512_unpackhi_pd(b, d));
        }
        // Quarters to their places: column 4q + j collects quarter q of u[j], u[4 + j], u[8 + j], u[12 + j].
        let mut out = [zero; LANES];
        for j in 0..4 {
            let (a, b, c, d) = (u[j], u[4 + j], u[8 + j], u[12 + j]);
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
            let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
            let low2 = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
            let high2 = _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d);
            out[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low, low2);
            out[4 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low, low2);
            out[8 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high, high2);
            out[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high, high2);
        }
        out
    }
}
