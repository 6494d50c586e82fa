//! Matmuls on CPUs with AVX-512: f32, and bf16 with f32 sums where the CPU has the instructions.
//!
//! The right-hand operand is copied into panels that tiles read in order, once for all threads ([`PackedRhs`]), or once for
//! all matmuls with the same weights. Rows of the left-hand operand are read where they lie if their words are
//! there already; otherwise they are copied a block at a time, and rounding to bf16 and transposing of transposed
//! operands happen in that copy. An element of the result is summed over the inner axis in blocks that depend on its
//! length alone, never split between threads, so results do not depend on threads. The bf16 instructions take
//! subnormal numbers for 0.

mod element;
mod lhs;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use crate::interrupt::Rest;
use crate::matrix::{Accumulate, Matrix};
use crate::memory::Buffer;
use crate::precision::Precision;
use crate::simd::{Level, level};
pub(crate) use element::Element;
use lhs::{LhsBlock, LhsRows, SharedRows};
use pack::{Kind, Pair, Panels, Side, Single};
pub(crate) use tile::ROWS;
use tile::{Block, COLS};

/// Row panels of a task: their words and results stay in the second-level cache.
const PANELS: usize = 8;

/// Most row panels that are not cut: their words and results stay in the second-level cache.
pub(crate) const FEW: usize = 24;

/// Column panels of a task that has all rows.
const WIDE: usize = 12;

/// Column panels that one task packs: rows of a transposed operand are read in runs as long as they are wide.
const GROUP: usize = 4;

/// Most words of a block: both panels of a tile stay close to the first-level cache.
const WORDS: usize = 256;

/// Whether this CPU has the instructions for matmuls of `precision`.
pub(crate) fn is_available(precision: Precision) -> bool {
    level()
        >= match precision {
            Precision::F32 => Level::Avx512,
            Precision::Bf16 => Level::Avx512Bf16,
        }
}

/// The precision of matmuls here when a caller asks for `wanted`: bf16 becomes f32 on a CPU that has f32 matmuls only.
/// `None`: this CPU has neither.
pub(crate) fn offered(wanted: Precision) -> Option<Precision> {
    [wanted, Precision::F32].into_iter().find(|&precision| is_available(precision))
}

/// A result that tasks write different parts of.
#[derive(Clone, Copy)]
struct Target(*mut f32);

// SAFETY: tasks write to tiles of their own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    /// The place lies in the result's allocation.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// A right-hand operand in panels.
pub(crate) struct PackedRhs {
    precision: Precision,
    data: Buffer,
    panels: Panels,
    depth: usize,
    cols: usize,
}

impl PackedRhs {
    /// The precision of its words.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Packs `b`, on all threads if `parallel`.
    ///
    /// # Safety
    /// [`is_available`] said yes to the precision.
    pub(crate) unsafe fn new<B: Element>(b: Matrix<'_, B>, precision: Precision, parallel: bool) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match precision {
                Precision::F32 => Self::of::<Single, B>(b, precision, parallel),
                Precision::Bf16 => Self::of::<Pair, B>(b, precision, parallel),
            }
        }
    }

    /// # Safety
    /// As [`PackedRhs::new`].
    unsafe fn of<K: Kind, B: Element>(b: Matrix<'_, B>, precision: Precision, parallel: bool) -> Self {
        let (depth, cols) = (b.rows(), b.cols());
        let words = depth.div_ceil(K::PER_WORD);
        let (side, panels) = (columns_of(b), Panels::new(COLS, words));
        let mut data = Buffer::any(cols.div_ceil(COLS) * panels.stride);
        let fill = |(j, part): (usize, &mut [f32])| {
            // SAFETY: the caller says that the CPU has the instructions.
            unsafe { K::pack(side.some(j * GROUP * COLS, GROUP * COLS), panels, 0..words, part) }
        };
        let size = (GROUP * panels.stride).max(1);
        if parallel {
            data.par_chunks_mut(size).enumerate().for_each(fill);
        } else {
            data.chunks_mut(size).enumerate().for_each(fill);
        }
        Self { precision, data, panels, depth, cols }
    }

    /// Length of the inner axis, and number of columns.
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.depth, self.cols]
    }

    /// `dst = start + factor·a·self`, with rows of `dst` `row` apart, on all threads if `parallel`. The inner
    /// axis must not be empty.
    ///
    /// # Safety
    /// All elements of the destination, `a.rows()` rows of `self.cols()` elements `row` apart, lie in one
    /// allocation, and nobody else touches them during the call.
    pub(crate) unsafe fn matmul<A: Element>(
        &self,
        dst: *mut f32,
        row: usize,
        start: Accumulate<'_>,
        factor: f32,
        a: Matrix<'_, A>,
        parallel: bool,
    ) {
        assert!(a.cols() == self.depth && a.cols() > 0);
        let tasks = Tasks { target: Target(dst), row, start, factor, parallel };
        // SAFETY: `new` found the instructions; the rest is the caller's promise.
        unsafe {
            match self.precision {
                Precision::F32 => self.multiply::<Single, A>(tasks, a),
                Precision::Bf16 => self.multiply::<Pair, A>(tasks, a),
            }
        }
    }

    /// # Safety
    /// As [`PackedRhs::matmul`].
    unsafe fn multiply<K: Kind, A: Element>(&self, tasks: Tasks<'_>, a: Matrix<'_, A>) {
        let Tasks { target, row, start, factor, parallel } = tasks;
        let (rows, cols) = (a.rows(), self.cols);
        let lhs = rows_of(a);
        let (row_panels, col_panels) = (rows.div_ceil(ROWS), cols.div_ceil(COLS));
        let (row_tasks, col_tasks) = match parallel {
            true => grid(row_panels, col_panels, rayon::current_num_threads()),
            false => (row_panels.div_ceil(PANELS), 1),
        };
        // Tasks with the same rows share a copy of them.
        let shared = match row_tasks < col_tasks {
            // SAFETY: the caller says that the CPU has the instructions.
            true => unsafe { SharedRows::new::<K, A>(lhs) },
            false => None,
        };
        let rest = parallel.then(Rest::here);
        let task = |task: usize| {
            if rest.as_ref().is_some_and(Rest::is_left_out) {
                return;
            }
            let (i, j) = (task / col_tasks, task % col_tasks);
            let part = |at: usize, parts: usize, panels: usize, size: usize, end: usize| {
                (at * panels / parts * size)..((at + 1) * panels / parts * size).min(end)
            };
            let (rows, cols) =
                (part(i, row_tasks, row_panels, ROWS, rows), part(j, col_tasks, col_panels, COLS, cols));
            let lhs = match &shared {
                Some(shared) => LhsRows::Shared(shared, rows.clone()),
                None => LhsRows::Own(lhs.some(rows.start, rows.len())),
            };
            // SAFETY: the block lies in the destination, and no other task has it; the caller says that the CPU
            // has the instructions.
            unsafe {
                let dst = target.at(rows.start * row + cols.start);
                self.block::<K, A>(dst, row, start, factor, lhs, cols);
            }
        };
        if parallel {
            (0..row_tasks * col_tasks).into_par_iter().for_each(task);
        } else {
            (0..row_tasks * col_tasks).for_each(task);
        }
    }

    /// `dst = start + a·self` for columns `cols` (from a multiple of 32 on), on the caller's thread; `dst` is the place of
    /// the first of these columns, `start`'s row the whole one.
    ///
    /// # Safety
    /// As [`PackedRhs::matmul`], for these columns.
    pub(crate) unsafe fn columns<A: Element>(
        &self,
        dst: *mut f32,
        row: usize,
        start: Accumulate<'_>,
        a: Matrix<'_, A>,
        cols: Range<usize>,
    ) {
        assert!(a.cols() == self.depth && a.cols() > 0 && cols.start.is_multiple_of(COLS));
        assert!(cols.start < cols.end && cols.end <= self.cols);
        let lhs = LhsRows::Own(rows_of(a));
        // SAFETY: the caller's promise.
        unsafe {
            match self.precision {
                Precision::F32 => self.block::<Single, A>(dst, row, start, 1.0, lhs, cols),
                Precision::Bf16 => self.block::<Pair, A>(dst, row, start, 1.0, lhs, cols),
            }
        }
    }

    /// # Safety
    /// As [`PackedRhs::columns`].
    unsafe fn block<K: Kind, A: Element>(
        &self,
        dst: *mut f32,
        row: usize,
        start: Accumulate<'_>,
        factor: f32,
        lhs: LhsRows<'_, A>,
        cols: Range<usize>,
    ) {
        let words = self.depth.div_ceil(K::PER_WORD);
        // Blocks of the same size, so that none is a short rest.
        let size = words.div_ceil(words.div_ceil(WORDS));
        let (mut own, shared) = match lhs {
            LhsRows::Own(side) => (Some(LhsBlock::new::<K>(side, size)), None),
            LhsRows::Shared(shared, rows) => (None, Some((shared, rows))),
        };
        for from in (0..words).step_by(size) {
            let words = size.min(words - from);
            let start = match (from, start) {
                (1.., _) => Accumulate::There,
                (0, Accumulate::Row(values)) => Accumulate::Row(&values[cols.clone()]),
                (0, start) => start,
            };
            let (b_stride, cols) = (self.panels.stride, cols.clone());
            let b = &self.data[cols.start / COLS * b_stride + from * COLS..];
            // SAFETY: the caller's promise.
            unsafe {
                let parts = match (&mut own, &shared) {
                    (Some(own), _) => own.words::<K>(from..from + words),
                    (None, Some((shared, rows))) => [Some(shared.words(rows.clone(), from)), None],
                    (None, None) => [None, None],
                };
                for (first, rows, a) in parts.into_iter().flatten() {
                    let dst = dst.add(first * row);
                    K::compute(&Block {
                        a,
                        b,
                        b_stride,
                        words,
                        rows,
                        cols: cols.len(),
                        dst,
                        row,
                        start,
                        factor,
                    });
                }
            }
        }
    }
}

/// Into how many parts rows and columns are cut, of so many panels each. Only the time depends on it.
fn grid(row_panels: usize, col_panels: usize, threads: usize) -> (usize, usize) {
    let col_tasks = col_panels.div_ceil(WIDE).next_multiple_of(threads);
    if row_panels <= FEW && col_tasks <= col_panels {
        // Why: each thread then reads its part of a weight once, from the memory, and all rows of a result
        // of one image find it in the cache.
        return (1, col_tasks);
    }
    let row_tasks = row_panels.div_ceil(PANELS).next_multiple_of(threads).min(row_panels);
    let col_tasks = match row_tasks < 2 * threads && threads > 1 {
        true => (2 * threads).div_ceil(row_tasks).min(col_panels),
        false => 1,
    };
    (row_tasks, col_tasks)
}

/// Where a matmul goes, and how.
struct Tasks<'a> {
    target: Target,
    row: usize,
    start: Accumulate<'a>,
    factor: f32,
    parallel: bool,
}

/// `dst = start + factor·a·b`, with rows of `dst` `row` apart, on all threads if `parallel`. The inner axis
/// must not be empty.
///
/// # Safety
/// All elements of the destination, `a.rows()` rows of `b.cols()` elements `row` apart, lie in one
/// allocation, and nobody else touches them during the call. [`is_available`] said yes to the precision.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn matmul<A: Element, B: Element>(
    dst: *mut f32,
    row: usize,
    start: Accumulate<'_>,
    factor: f32,
    a: Matrix<'_, A>,
    b: Matrix<'_, B>,
    precision: Precision,
    parallel: bool,
) {
    // SAFETY: the caller's promises.
    unsafe { PackedRhs::new(b, precision, parallel).matmul(dst, row, start, factor, a, parallel) }
}

fn rows_of<E: Element>(a: Matrix<'_, E>) -> Side<'_, E> {
    let (data, lane, depth) = a.layout();
    Side { data, lane, depth, lanes: a.rows(), len: a.cols() }
}

fn columns_of<E: Element>(b: Matrix<'_, E>) -> Side<'_, E> {
    rows_of(b.transposed())
}
