//! Matmuls on CPUs with AVX2 or AVX-512: f32, and bf16 with f32 sums where the CPU has the instructions (AVX-512-BF16).
//!
//! The right-hand operand is copied into panels that tiles read in order, once for all threads ([`PackedRhs`]), or once for
//! all matmuls with the same weights. Rows of the left-hand operand are read where they lie if their words are
//! there already; otherwise they are copied a block at a time, and rounding to bf16 and transposing of transposed
//! operands happen in that copy. An element of the result is summed over the inner axis in blocks that depend on its
//! length alone, never split between threads, so results do not depend on threads. The bf16 instructions take
//! subnormal numbers for 0.
//!
//! What differs between instruction sets is a [`Kind`]: the width of a register and the size of a tile. An operand keeps
//! the kind that it was packed for, also when [`crate::simd::limit`] changes afterwards.

mod element;
mod lhs;
mod pack;
mod register;
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
use pack::{Bf16Avx512, F32Avx2, F32Avx512, Kind, Panels, Side};
use tile::Block;

/// A multiple of the rows of a tile of any kind.
pub(crate) const ROWS: usize = 12;

/// A multiple of the columns of a tile of any kind.
pub(crate) const COLS: usize = 32;

/// Rows of a task: their words and results stay in the second-level cache.
const TASK: usize = 8 * ROWS;

/// Most rows that are not cut: their words and results stay in the second-level cache.
pub(crate) const FEW: usize = 24 * ROWS;

/// Columns of a task that has all rows.
const WIDE: usize = 12 * COLS;

/// Columns that one task packs: rows of a transposed operand are read in runs as long as they are wide.
const GROUP: usize = 4 * COLS;

/// Kinds by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    F32Avx2,
    F32Avx512,
    Bf16Avx512,
}

/// An expression in which `$kind` is the kind of a form.
macro_rules! with_kind {
    ($form:expr, $kind:ident => $body:expr) => {
        match $form {
            Form::F32Avx2 => {
                type $kind = F32Avx2;
                $body
            }
            Form::F32Avx512 => {
                type $kind = F32Avx512;
                $body
            }
            Form::Bf16Avx512 => {
                type $kind = Bf16Avx512;
                $body
            }
        }
    };
}

impl Form {
    /// Of matmuls of `precision` at the current level.
    fn of(precision: Precision) -> Option<Self> {
        match (precision, level()) {
            (Precision::F32, Level::Avx512 | Level::Avx512Bf16) => Some(Self::F32Avx512),
            (Precision::F32, Level::Avx2) => Some(Self::F32Avx2),
            (Precision::Bf16, Level::Avx512Bf16) => Some(Self::Bf16Avx512),
            _ => None,
        }
    }

    fn precision(self) -> Precision {
        match self {
            Self::F32Avx2 | Self::F32Avx512 => Precision::F32,
            Self::Bf16Avx512 => Precision::Bf16,
        }
    }
}

/// Whether this CPU has the instructions for matmuls of `precision`.
pub(crate) fn is_available(precision: Precision) -> bool {
    Form::of(precision).is_some()
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
    form: Form,
    data: Buffer,
    panels: Panels,
    depth: usize,
    cols: usize,
}

impl PackedRhs {
    /// The precision of its words.
    pub(crate) fn precision(&self) -> Precision {
        self.form.precision()
    }

    /// Packs `b`, on all threads if `parallel`.
    ///
    /// # Panics
    /// Unless [`is_available`] says yes to the precision.
    pub(crate) fn new<B: Element>(b: Matrix<'_, B>, precision: Precision, parallel: bool) -> Self {
        let Some(form) = Form::of(precision) else { panic!("no {precision} matmuls on this CPU") };
        // SAFETY: `Form::of` found the instructions.
        unsafe { Self::in_form(b, form, parallel) }
    }

    /// # Safety
    /// The CPU has the form's instructions.
    unsafe fn in_form<B: Element>(b: Matrix<'_, B>, form: Form, parallel: bool) -> Self {
        // SAFETY: the caller's promise.
        unsafe { with_kind!(form, K => Self::of::<K, B>(b, form, parallel)) }
    }

    /// # Safety
    /// As [`PackedRhs::in_form`].
    unsafe fn of<K: Kind, B: Element>(b: Matrix<'_, B>, form: Form, parallel: bool) -> Self {
        const { assert!(ROWS.is_multiple_of(K::ROWS) && COLS.is_multiple_of(K::COLS)) };
        let (depth, cols) = (b.rows(), b.cols());
        let words = depth.div_ceil(K::PER_WORD);
        let (side, panels) = (columns_of(b), Panels::new::<K>(K::COLS, words));
        let mut data = Buffer::any(cols.div_ceil(K::COLS) * panels.stride);
        let fill = |(j, part): (usize, &mut [f32])| {
            // SAFETY: the caller says that the CPU has the instructions.
            unsafe { K::pack(side.some(j * GROUP, GROUP), panels, 0..words, part) }
        };
        let size = (GROUP / K::COLS * panels.stride).max(1);
        if parallel {
            data.par_chunks_mut(size).enumerate().for_each(fill);
        } else {
            data.chunks_mut(size).enumerate().for_each(fill);
        }
        Self { form, data, panels, depth, cols }
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
        unsafe { with_kind!(self.form, K => self.multiply::<K, A>(tasks, a)) }
    }

    /// # Safety
    /// As [`PackedRhs::matmul`].
    unsafe fn multiply<K: Kind, A: Element>(&self, tasks: Tasks<'_>, a: Matrix<'_, A>) {
        let Tasks { target, row, start, factor, parallel } = tasks;
        let (rows, cols) = (a.rows(), self.cols);
        let lhs = rows_of(a);
        let (row_panels, col_panels) = (rows.div_ceil(K::ROWS), cols.div_ceil(K::COLS));
        let (row_tasks, col_tasks) = match parallel {
            true => grid::<K>(row_panels, col_panels, rayon::current_num_threads()),
            false => (row_panels.div_ceil(TASK / K::ROWS), 1),
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
            let (rows, cols) = (
                part(i, row_tasks, row_panels, K::ROWS, rows),
                part(j, col_tasks, col_panels, K::COLS, cols),
            );
            let lhs = match &shared {
                Some(shared) => LhsRows::Shared(shared, rows.clone()),
                None => LhsRows::Own(lhs.some(rows.start, rows.len())),
            };
            // SAFETY: the block lies in the destination, and no other task has it; the caller says that the CPU
            // has the instructions.
            unsafe {
                let dst = target.at(rows.start * row + cols.start);
                self.block::<K, A>(dst, row, start, factor, lhs, cols, 0..self.depth);
            }
        };
        if parallel {
            (0..row_tasks * col_tasks).into_par_iter().for_each(task);
        } else {
            (0..row_tasks * col_tasks).for_each(task);
        }
    }

    /// Elements of the inner axis that are summed before they are added to the result.
    pub(crate) fn summed(&self) -> usize {
        with_kind!(self.form, K => self.words_summed::<K>() * K::PER_WORD)
    }

    /// Blocks of the same size, so that none is a short rest.
    fn words_summed<K: Kind>(&self) -> usize {
        let words = self.depth.div_ceil(K::PER_WORD);
        words.div_ceil(words.div_ceil(K::WORDS).max(1)).max(1)
    }

    /// `dst = start + a·self` for columns `cols` (from a multiple of 32 on) and elements `inner` of the inner axis (from a
    /// multiple of [`PackedRhs::summed`] on), on the caller's thread; `dst` is the place of the first of these columns,
    /// `start`'s row the whole one. Parts of the inner axis, each added to what the one before it made, give the bits of a
    /// single call.
    ///
    /// # Safety
    /// As [`PackedRhs::matmul`], for these columns.
    pub(crate) unsafe fn part<A: Element>(
        &self,
        dst: *mut f32,
        row: usize,
        start: Accumulate<'_>,
        a: Matrix<'_, A>,
        cols: Range<usize>,
        inner: Range<usize>,
    ) {
        assert!(a.cols() == inner.len() && !inner.is_empty() && inner.end <= self.depth);
        assert!(inner.start.is_multiple_of(self.summed()) && cols.start.is_multiple_of(COLS));
        assert!(cols.start < cols.end && cols.end <= self.cols);
        let lhs = LhsRows::Own(rows_of(a));
        // SAFETY: the caller's promise.
        unsafe { with_kind!(self.form, K => self.block::<K, A>(dst, row, start, 1.0, lhs, cols, inner)) }
    }

    /// # Safety
    /// As [`PackedRhs::part`].
    #[allow(clippy::too_many_arguments)]
    unsafe fn block<K: Kind, A: Element>(
        &self,
        dst: *mut f32,
        row: usize,
        start: Accumulate<'_>,
        factor: f32,
        lhs: LhsRows<'_, A>,
        cols: Range<usize>,
        inner: Range<usize>,
    ) {
        let (first_word, words) = (inner.start / K::PER_WORD, inner.len().div_ceil(K::PER_WORD));
        let size = self.words_summed::<K>();
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
            let b = &self.data[cols.start / K::COLS * b_stride + (first_word + from) * K::COLS..];
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
fn grid<K: Kind>(row_panels: usize, col_panels: usize, threads: usize) -> (usize, usize) {
    let col_tasks = col_panels.div_ceil(WIDE / K::COLS).next_multiple_of(threads);
    if row_panels <= FEW / K::ROWS && col_tasks <= col_panels {
        // Why: each thread then reads its part of a weight once, from the memory, and all rows of a result
        // of one image find it in the cache.
        return (1, col_tasks);
    }
    let row_tasks = row_panels.div_ceil(TASK / K::ROWS).next_multiple_of(threads).min(row_panels);
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
/// allocation, and nobody else touches them during the call.
///
/// # Panics
/// Unless [`is_available`] says yes to the precision.
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
