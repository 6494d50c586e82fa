//! Left-hand operands: read where they lie, or copied a block of words at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::pack::{Kind, Panels, Side};
use super::tile::PackedLhs;
use crate::memory::Buffer;

/// All rows of a left-hand operand, copied in the order of words.
pub(super) struct SharedRows {
    copy: Buffer,
    /// Floats between two rows.
    apart: usize,
}

impl SharedRows {
    /// `None` where rows can be read in place, or must be transposed.
    ///
    /// # Safety
    /// The CPU has the kind's instructions.
    pub(super) unsafe fn new<K: Kind, A: Element>(side: Side<'_, A>) -> Option<Self> {
        if Copied::of::<K, A>(&side) != Copied::Rows {
            return None;
        }
        let words = side.len.div_ceil(K::PER_WORD);
        let apart = stride(words);
        let mut copy = Buffer::any(side.lanes.next_multiple_of(K::ROWS) * apart);
        copy.par_chunks_mut(K::ROWS * apart).enumerate().for_each(|(panel, part)| {
            // SAFETY: the caller's promise.
            unsafe { K::copy(side.some(panel * K::ROWS, K::ROWS), apart, 0..words, part) };
        });
        Some(Self { copy, apart })
    }

    /// Of these rows, the words from `from` on.
    pub(super) fn words(&self, rows: Range<usize>, from: usize) -> LhsPart {
        let first = &self.copy[rows.start * self.apart + from..];
        (0, rows.len(), PackedLhs::Rows(first.as_ptr().cast(), self.apart * size_of::<f32>()))
    }
}

/// The left-hand operand of a block.
pub(super) enum LhsRows<'a, A> {
    /// Rows of its own.
    Own(Side<'a, A>),
    /// Some of the rows that several blocks share.
    Shared(&'a SharedRows, Range<usize>),
}

/// The rows of a task, for a block of words at a time.
pub(super) struct LhsBlock<'a, A> {
    side: Side<'a, A>,
    copy: Buffer,
    how: Copied,
}

/// What of a task's rows is copied.
#[derive(Clone, Copy, PartialEq)]
enum Copied {
    /// Only the rows after the last whole panel: elements in memory are words already.
    Rest,
    /// All rows, each with its words in order.
    Rows,
    /// All rows, into panels.
    Panels,
}

impl Copied {
    fn of<K: Kind, A: Element>(side: &Side<'_, A>) -> Self {
        let apart = side.lane * size_of::<A>();
        let is_words =
            size_of::<A>() * K::PER_WORD == size_of::<f32>() && side.len.is_multiple_of(K::PER_WORD);
        match side.depth == 1 {
            false => Self::Panels,
            // Rows a page apart would share the same few lines of the first-level cache.
            true if is_words && !apart.is_multiple_of(4096) => Self::Rest,
            true => Self::Rows,
        }
    }
}

/// First row, number of rows, and where they are.
pub(super) type LhsPart = (usize, usize, PackedLhs);

impl<'a, A: Element> LhsBlock<'a, A> {
    /// For blocks of at most `block` words.
    pub(super) fn new<K: Kind>(side: Side<'a, A>, block: usize) -> Self {
        let how = Copied::of::<K, A>(&side);
        let rows = match how {
            Copied::Rest => side.lanes % K::ROWS,
            _ => side.lanes,
        };
        let floats = match how {
            Copied::Panels => rows.div_ceil(K::ROWS) * Panels::new::<K>(K::ROWS, block).stride,
            _ => rows.next_multiple_of(K::ROWS) * stride(block),
        };
        Self { side, copy: Buffer::any(floats), how }
    }

    /// Words `words` of all rows.
    ///
    /// # Safety
    /// The CPU has the kind's instructions.
    pub(super) unsafe fn words<K: Kind>(&mut self, words: Range<usize>) -> [Option<LhsPart>; 2] {
        let Self { side, copy, how } = self;
        let rows = side.lanes;
        // SAFETY: the caller's promise; both functions check their bounds.
        unsafe {
            if *how == Copied::Panels {
                let panels = Panels::new::<K>(K::ROWS, words.len());
                K::pack(*side, panels, words, copy);
                return [Some((0, rows, PackedLhs::Panels(copy.as_ptr(), panels.stride))), None];
            }
            let whole = if *how == Copied::Rest { rows / K::ROWS * K::ROWS } else { 0 };
            let rest = side.some(whole, rows - whole);
            let apart = stride(words.len());
            let place = side.data.as_ptr().wrapping_add(words.start * K::PER_WORD).cast();
            K::copy(rest, apart, words, copy);
            let direct = (0, whole, PackedLhs::Rows(place, side.lane * size_of::<A>()));
            let copied =
                (whole, rows - whole, PackedLhs::Rows(copy.as_ptr().cast(), apart * size_of::<f32>()));
            [direct, copied].map(|part| (part.1 > 0).then_some(part))
        }
    }
}

/// Floats between two copied rows of `words` words: an odd number of cache lines, so that rows spread over the cache.
fn stride(words: usize) -> usize {
    const LINE: usize = 64 / size_of::<f32>();
    (words.div_ceil(LINE) | 1) * LINE
}
